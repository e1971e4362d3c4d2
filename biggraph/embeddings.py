"""Questions to a trained checkpoint: vectors, scores, neighbors, predictions.

Tables are read block by block, so memory does not grow with the graph; edges, which tell what is
known, are kept once they were read, as far as they fit 64 MiB. Knows names and blocks; nothing of
files or training.

Axes: N entities, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from biggraph.errors import InputError, did_you_mean
from biggraph.evaluate.filters import KeptEdges, known_answers
from biggraph.evaluate.numbering import Numbering, Numbers
from biggraph.evaluate.opening import graph_of, model_of
from biggraph.evaluate.queries import Queries
from biggraph.evaluate.top import Search
from biggraph.graph.graph import Graph
from biggraph.model.comparators import COMPARATORS
from biggraph.model.model import Model
from biggraph.storage.checkpoint import Checkpoint
from biggraph.types import FloatArray, Side

METRICS = ("cos", "dot", "l2")


@dataclass(frozen=True)
class Neighbor:
    """An entity near another; a higher score is nearer (a distance is negative)."""

    name: str
    score: float
    entity_type: str


@dataclass(frozen=True)
class Prediction:
    """A candidate for the missing end of an edge; `known` if the graph has that edge."""

    name: str
    score: float
    known: bool


class Embeddings:
    """The embeddings of a checkpoint, by entity name.

    An entity is named as in the source files. A name that several entity types share needs
    "TYPE:name" or `entity_type`; a name that stands in the graph as it is written always wins
    over that reading.

    Args:
        checkpoint: where rows come from.
        graph: the graph that it was trained on.
        model: with the checkpoint's relation parameters.
    """

    def __init__(self, checkpoint: Checkpoint, graph: Graph, model: Model) -> None:
        self.checkpoint, self.graph, self.model = checkpoint, graph, model
        self._numbering = Numbering(graph.schema)
        self._edges = KeptEdges(graph.edges)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        graph: str | Path | None = None,
        snapshot: str | None = None,
    ) -> Embeddings:
        """Open a run directory for questions.

        Args:
            path: run directory.
            graph: graph directory, if it moved since training.
            snapshot: a kept checkpoint by name; None: the best, else the latest.

        Raises:
            InputError: the graph moved or is another one; no such snapshot.
            FormatError: checkpoint or graph are damaged.
        """
        checkpoint = Checkpoint.open(path, snapshot)
        its_graph = graph_of(checkpoint, graph)
        return cls(checkpoint, its_graph, model_of(checkpoint, its_graph))

    def __getitem__(self, name: str) -> FloatArray:
        return self.vector(name)

    def __contains__(self, name: object) -> bool:
        try:
            self._resolve([str(name)], None)
        except InputError:
            return False
        return True

    def vector(self, name: str, entity_type: str | None = None) -> FloatArray:
        """Return the embedding of an entity, float32, shape [D].

        Raises:
            InputError: no such entity, or several.
        """
        vector: FloatArray = self.vectors([name], entity_type)[0]
        return vector

    def vectors(self, names: Sequence[str], entity_type: str | None = None) -> FloatArray:
        """Return the embeddings of entities, float32, shape [N, D]; raises as `vector`."""
        types, numbers = self._resolve(names, entity_type)
        rows_ND = np.empty((len(names), self.model.dimension), dtype=np.float32)
        for chosen in set(types):
            mask = np.array([kind == chosen for kind in types])
            rows_ND[mask] = self._numbering.rows(self.checkpoint, chosen, numbers[mask])
        return rows_ND

    def score(self, head: str, relation: str, tail: str) -> float:
        """Return the score of an edge as a candidate for its tail; see `scores`."""
        return float(self.scores([(head, relation, tail)])[0])

    @torch.no_grad()
    def scores(self, edges: Sequence[tuple[str, str, str]]) -> FloatArray:
        """Return the scores of (head, relation, tail), float32, shape [N]; higher is likelier.

        With reciprocal relations an edge has two scores, one for each replaced side; this is the
        one that compares tails. Scores of one head and relation compare with each other.

        Raises:
            InputError: an entity or relation is unknown.
        """
        schema = self.graph.schema
        rel = np.array([schema.relation_id(name) for _, name, _ in edges], dtype=np.int64)
        result = np.empty(len(edges), dtype=np.float32)
        for group in self.model.groups:
            places = np.flatnonzero(np.isin(rel, group.relations)).tolist()
            if places:
                heads = self.vectors([edges[i][0] for i in places], group.lhs)
                tails = self.vectors([edges[i][2] for i in places], group.rhs)
                ids = torch.from_numpy(rel[places])
                query_ND = self.model.query(group, Side.RHS, torch.from_numpy(heads), ids)
                tails_ND = self.model.candidates(group, Side.RHS, torch.from_numpy(tails))
                result[places] = self.model.matched(query_ND, tails_ND).numpy()
        return result

    def neighbors(
        self, name: str, k: int = 10, *, metric: str = "cos", entity_type: str | None = None
    ) -> list[Neighbor]:
        """Return the k entities of the same type nearest to one; see `neighbors_of`."""
        return self.neighbors_of([name], k, metric=metric, entity_type=entity_type)[0]

    def neighbors_of(
        self,
        names: Sequence[str],
        k: int = 10,
        *,
        metric: str = "cos",
        entity_type: str | None = None,
    ) -> list[list[Neighbor]]:
        """Return for each entity the k of the same type nearest to it, best first, without itself.

        Many at once are much faster than one after the other.

        Args:
            names: of entities.
            k: how many; fewer come back where there are fewer.
            metric: "cos", "dot" or "l2", whose score is the negative distance.
            entity_type: where a name belongs to several types.

        Raises:
            InputError: unknown entity or metric, or `k` is not positive.
        """
        _check_k(k)
        if metric not in METRICS:
            raise InputError(f'unknown metric "{metric}"{did_you_mean(metric, METRICS)}')
        types, numbers = self._resolve(names, entity_type)
        comparator = COMPARATORS[metric]
        found: list[list[Neighbor]] = [[] for _ in names]
        for kind in sorted(set(types)):
            places = [i for i, its_type in enumerate(types) if its_type == kind]
            search = Search(self.checkpoint, self._numbering, kind, comparator, comparator.prepare)
            rows_BD = self._numbering.rows(self.checkpoint, kind, numbers[places])
            query_BD = comparator.prepare(torch.from_numpy(rows_BD))
            best = search.best(query_BD, [numbers[[i]] for i in places], k)
            for i, (nearest, scores) in zip(places, best, strict=True):
                pairs = zip(self._names(kind, nearest), scores.tolist(), strict=True)
                found[i] = [Neighbor(name, score, kind) for name, score in pairs]
        return found

    def predict(
        self,
        *,
        relation: str,
        head: str | None = None,
        tail: str | None = None,
        k: int = 10,
        exclude_known: bool = True,
    ) -> list[Prediction]:
        """Return the k best candidates for the missing end of an edge; see `predictions`."""
        heads, tails = (None if name is None else [name] for name in (head, tail))
        found = self.predictions(
            relation=relation, heads=heads, tails=tails, k=k, exclude_known=exclude_known
        )
        return found[0]

    @torch.no_grad()
    def predictions(
        self,
        *,
        relation: str,
        heads: Sequence[str] | None = None,
        tails: Sequence[str] | None = None,
        k: int = 10,
        exclude_known: bool = True,
    ) -> list[list[Prediction]]:
        """Return, for each given end, the k best candidates for the missing one, best first.

        The given entity itself is left out, unless the graph has that edge. Reads the buckets of
        the graph that can hold edges of the given entities, once for all, to tell what is known:
        any edge of the train, validation or test split. A small graph is read at the first call.

        Args:
            relation: name of the relation.
            heads: the known left ends; then tails are predicted.
            tails: the known right ends; then heads are predicted.
            k: how many; fewer come back where there are fewer.
            exclude_known: leave out what the graph says already.

        Raises:
            InputError: unknown names, `k` not positive, or not exactly one kind of end given.
        """
        _check_k(k)
        if (heads is None) == (tails is None):
            raise InputError("predict: give either head or tail, and the other is predicted")
        anchors, side = (heads, Side.RHS) if heads is not None else (tails or (), Side.LHS)
        rel = self.graph.schema.relation_id(relation)
        group = next(group for group in self.model.groups if rel in group.relations)
        kind, anchor_type = group.entity_type(side), group.entity_type(side.other)
        _, numbers = self._resolve(anchors, anchor_type)
        rows_BD = torch.from_numpy(self._numbering.rows(self.checkpoint, anchor_type, numbers))
        rel_B = torch.full((len(numbers),), rel)
        query_BD = self.model.query(group, side, rows_BD, rel_B)
        known = self._known(numbers, rel, side)
        without = [some if exclude_known else some[:0] for some in known]
        if kind == anchor_type:
            # The entity itself is an answer only where the graph says so.
            own = [np.setdiff1d(numbers[[i]], some) for i, some in enumerate(known)]
            without = [np.union1d(*pair) for pair in zip(without, own, strict=True)]
        search = Search(
            self.checkpoint, self._numbering, kind, self.model.comparator,
            lambda rows_ND: self.model.candidates(group, side, rows_ND),
        )  # fmt: skip
        return [
            [
                Prediction(name, score, is_known)
                for name, score, is_known in zip(
                    self._names(kind, best), scores.tolist(), np.isin(best, its).tolist(),
                    strict=True,
                )
            ]
            for (best, scores), its in zip(search.best(query_BD, without, k), known, strict=True)
        ]  # fmt: skip

    def _known(self, anchors: Numbers, rel: int, side: Side) -> list[Numbers]:
        """Return the ascending numbers of all that the graph has at each missing end."""
        # Only anchor, relation and side matter here; there is no true answer.
        count = len(anchors)
        lhs_is_missing = np.full(count, side is Side.LHS)
        queries = Queries(anchors, np.full(count, rel), anchors, lhs_is_missing)
        known = known_answers(self.graph, queries, self._numbering, self._edges.edges)
        spans = zip(*known.spans(np.arange(count)), strict=True)
        return [known.codes[first:stop] % known.limit for first, stop in spans]

    def _names(self, entity_type: str, numbers: Numbers) -> list[str]:
        """Return the names of some entities, in their order."""
        names: dict[int, str] = {}
        for block in self._numbering.blocks(entity_type, max(1, len(numbers)), np.sort(numbers)):
            found = self.graph.names(block.key).take(pa.array(block.offsets)).to_pylist()
            names.update(zip(block.numbers.tolist(), found, strict=True))
        return [names[number] for number in numbers.tolist()]

    def _resolve(self, names: Sequence[str], entity_type: str | None) -> tuple[list[str], Numbers]:
        """Return the entity type and number of each name."""
        if entity_type is not None:
            self.graph.schema.entity_type(entity_type)
        every = [entity.name for entity in self.graph.schema.entities]
        types = every if entity_type is None else [entity_type]
        found = {kind: self._locate(kind, names) for kind in types}
        places = []
        for i, name in enumerate(names):
            at = [(kind, int(found[kind][i])) for kind in types if found[kind][i] >= 0]
            places.append(at[0] if len(at) == 1 else self._disambiguate(name, entity_type, at))
        return [kind for kind, _ in places], np.array([n for _, n in places], dtype=np.int64)

    def _disambiguate(
        self, name: str, entity_type: str | None, places: list[tuple[str, int]]
    ) -> tuple[str, int]:
        if places:
            types = " and ".join(f'"{kind}"' for kind, _ in places)
            raise InputError(
                f'"{name}" is an entity of the types {types}; '
                f'write "{places[0][0]}:{name}" or give the entity type'
            )
        kind, colon, rest = name.partition(":")
        every = [entity.name for entity in self.graph.schema.entities]
        if colon and kind in every and entity_type in (None, kind):
            number = int(self._locate(kind, [rest])[0])
            if number >= 0:
                return kind, number
            entity_type, name = kind, rest
        close = self.graph.suggest(entity_type, name)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        of_type = f' of type "{entity_type}"' if entity_type and len(every) > 1 else ""
        raise InputError(f'no entity "{name}"{of_type} in {self.graph.path}{hint}')

    def _locate(self, entity_type: str, names: Sequence[str]) -> Numbers:
        return self._numbering.numbers(entity_type, *self.graph.locate(entity_type, names))


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k = {k}: expected a whole number of at least 1")
