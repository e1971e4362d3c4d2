"""The model: relation groups, their parameters, and scores as a function of given rows.

Holds relation parameters only; entity tables, sampling and optimization are others' work.

With reciprocal relations (Lacroix et al., ICML 2018, sec. 4.1) every relation has one operator a
side, applied to the end that is *not* replaced:
    replacing rhs: comparator(op_lhs[rel](lhs), rhs)
    replacing lhs: comparator(lhs, op_rhs[rel](rhs))
Without them there is one operator a relation, on the right: comparator(lhs, op_rhs[rel](rhs)).

Axes: B edges, N candidates, D dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.errors import ConfigError, did_you_mean
from biggraph.model.comparators import COMPARATORS, Comparator
from biggraph.model.operators import OPERATORS, Operator, Parameters
from biggraph.model.relations import RelationParameters
from biggraph.schema import GraphSchema
from biggraph.sections import ModelSection, RelationConfig
from biggraph.types import Side, mix_seed


@dataclass(frozen=True)
class RelationGroup:
    """Relations that share entity types and operator, so that one batch can mix them.

    Args:
        index: position in `Model.groups`.
        lhs: entity type of the left end.
        rhs: entity type of the right end.
        operator: name of the operator.
        relations: relation ids of the graph, ascending.
    """

    index: int
    lhs: str
    rhs: str
    operator: str
    relations: tuple[int, ...]

    def entity_type(self, side: Side) -> str:
        """Return the name of the entity type on that side."""
        return self.lhs if side is Side.LHS else self.rhs


class Model:
    """Scores edges of every relation group from rows that it is given.

    Args:
        groups: disjoint relation groups that cover all relations.
        dimension: D.
        comparator: similarity of the two ends.
        reciprocal: one operator a side, or a single one on the right.
        relation_weights: float32, shape [num_relations].
        parameters: of every group's operators, as `initial_parameters` makes them.
    """

    def __init__(
        self,
        groups: Sequence[RelationGroup],
        *,
        dimension: int,
        comparator: Comparator,
        reciprocal: bool,
        relation_weights: Tensor,
        parameters: RelationParameters,
    ) -> None:
        self.groups = tuple(groups)
        self.dimension = dimension
        self.comparator = comparator
        self.reciprocal = reciprocal
        self.relation_weights = relation_weights
        self.parameters = parameters
        self._names: dict[tuple[int, Side], dict[str, str]] = {}
        for full in parameters.values:
            index, end, own = full.split(".")
            self._names.setdefault((int(index), Side(end)), {})[own] = full
        self.group_of, self.place_of = self._placement(len(relation_weights))

    def with_parameters(self, parameters: RelationParameters) -> Model:
        """Return the same model with other values of its parameters, be it on another device."""
        other = copy.copy(self)
        other.parameters = parameters
        return other

    def operator(self, group: RelationGroup) -> Operator:
        """Return the operator of a group."""
        return OPERATORS[group.operator]

    def operator_sides(self) -> tuple[Side, ...]:
        """Return the ends that have an operator."""
        return operator_sides(self.reciprocal)

    def parameter_names(self, group: RelationGroup, end: Side) -> dict[str, str]:
        """Return, for the operator at `end`, full names in `parameters` by the operator's own."""
        return self._names.get((group.index, end), {})

    def query_with(
        self, group: RelationGroup, side: Side, anchor_BD: Tensor, parameters: Parameters
    ) -> Tensor:
        """Return what candidates are compared with when `side` is replaced, [B, D].

        Args:
            group: relation group of the edges.
            side: the side that is replaced.
            anchor_BD: rows of the other end.
            parameters: of the anchor's operator, one row an edge; ignored where it has none.
        """
        if side.other in self.operator_sides():
            anchor_BD = self.operator(group).apply(anchor_BD, parameters)
        return self.comparator.prepare(anchor_BD)

    def candidates_with(
        self, group: RelationGroup, side: Side, rows_ND: Tensor, parameters: Parameters
    ) -> Tensor:
        """Return rows of the replaced side ready to be compared with queries, [..., N, D]."""
        if not self.reciprocal and side in self.operator_sides():
            rows_ND = self.operator(group).apply(rows_ND, parameters)
        return self.comparator.prepare(rows_ND)

    def query(self, group: RelationGroup, side: Side, anchor_BD: Tensor, rel_B: Tensor) -> Tensor:
        """As `query_with`, with the model's own parameters; `rel_B`: relation ids of the graph."""
        parameters = self._rows_of(group, side.other, self.place_of[rel_B])
        return self.query_with(group, side, anchor_BD, parameters)

    def candidates(self, group: RelationGroup, side: Side, rows_ND: Tensor) -> Tensor:
        """As `candidates_with`, with the model's own parameters."""
        first = torch.zeros(1, dtype=torch.int64)
        return self.candidates_with(group, side, rows_ND, self._rows_of(group, side, first))

    def pairwise(self, query_BD: Tensor, candidates_ND: Tensor) -> Tensor:
        """Return the score of every query with every candidate, [B, N] (or [C, P, N])."""
        return self.comparator.pairwise(query_BD, candidates_ND)

    def matched(self, query_BD: Tensor, candidates_BD: Tensor) -> Tensor:
        """Return the score of every query with its own candidate, [B]."""
        return self.comparator.matched(query_BD, candidates_BD)

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Load relation parameters as `arrays` returned them; see `RelationParameters.load`."""
        self.parameters.load(arrays)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return relation parameters and their optimizer state by name."""
        return self.parameters.arrays()

    def _rows_of(self, group: RelationGroup, end: Side, place_B: Tensor) -> dict[str, Tensor]:
        names = self.parameter_names(group, end)
        return {own: self.parameters.values[name][place_B] for own, name in names.items()}

    def _placement(self, num_relations: int) -> tuple[Tensor, Tensor]:
        group_of = torch.full((num_relations,), -1, dtype=torch.int64)
        place_of = torch.full((num_relations,), -1, dtype=torch.int64)
        for group in self.groups:
            ids = torch.tensor(group.relations)
            group_of[ids] = group.index
            place_of[ids] = torch.arange(len(ids))
        return group_of, place_of


def operator_sides(reciprocal: bool) -> tuple[Side, ...]:
    """Return the ends that have an operator."""
    return (Side.LHS, Side.RHS) if reciprocal else (Side.RHS,)


def initial_parameters(
    groups: Sequence[RelationGroup], section: ModelSection, seed: int
) -> RelationParameters:
    """Return untrained relation parameters; equal seeds give equal ones.

    Names are "GROUP.END.PARAMETER", such as "0.lhs.real".
    """
    generator = torch.Generator().manual_seed(mix_seed(seed))
    return RelationParameters(
        {
            f"{group.index}.{end}.{name}": value
            for group in groups
            for end in operator_sides(section.reciprocal)
            for name, value in OPERATORS[group.operator]
            .initial(len(group.relations), section.dimension, section.init_scale, generator)
            .items()
        }
    )


def build_model(
    section: ModelSection,
    relations: Sequence[RelationConfig],
    schema: GraphSchema,
    *,
    seed: int = 0,
) -> Model:
    """Return the untrained model of a run.

    Relations with the same entity types and operator form one group. Without reciprocal
    relations each relation is its own group, since candidates then depend on the relation.

    Raises:
        ConfigError: a configured relation does not exist in the graph.
    """
    by_name = {relation.name: relation for relation in relations}
    names = [relation.name for relation in schema.relations]
    for name in by_name:
        if name not in names:
            raise ConfigError(
                f'relations: the graph has no relation "{name}"{did_you_mean(name, names)}'
            )
    members: dict[tuple[str, str, str, int], list[int]] = {}
    weights = torch.ones(len(names))
    for i, relation in enumerate(schema.relations):
        chosen = by_name.get(relation.name)
        operator = (chosen.operator if chosen else None) or section.operator
        weights[i] = chosen.weight if chosen else 1.0
        own_group = 0 if section.reciprocal else i
        members.setdefault((relation.lhs, relation.rhs, operator, own_group), []).append(i)
    groups = [
        RelationGroup(index, lhs, rhs, operator, tuple(ids))
        for index, ((lhs, rhs, operator, _), ids) in enumerate(members.items())
    ]
    return Model(
        groups,
        dimension=section.dimension,
        comparator=COMPARATORS[section.comparator],
        reciprocal=section.reciprocal,
        relation_weights=weights,
        parameters=initial_parameters(groups, section, seed),
    )
