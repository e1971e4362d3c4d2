"""Batches: edges of one relation group, cut into chunks, with their negatives.

Knows offsets and generators; nothing of rows or of how a step uses a batch. A batch is on its
generator's device.

Axes: E edges, C chunks, P positives per chunk, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.model.model import Model, RelationGroup
from biggraph.model.negatives import (
    Candidates,
    Population,
    all_candidates,
    mask_known_in_chunk,
    sample_candidates,
)
from biggraph.sections import NegativesSection
from biggraph.types import Edges, Side

# Positives in a chunk where the chunk's own entities are not used as negatives.
_CHUNK_WITHOUT_IN_BATCH = 250

# By index of the relation group and replaced side.
Populations = Mapping[tuple[int, Side], Population]


@dataclass(frozen=True)
class Batch:
    """Edges of one step, padded to whole chunks.

    Args:
        group: the relation group that every edge belongs to.
        ids: offsets of both ends, int64 [C, P] by side.
        place_CP: place of the relation in the group, int64.
        weight_CP: edge weight times relation weight, float32; 0 at padding.
        valid_CP: bool, False at padding.
        candidates: negatives of each side that is replaced.
        keep: for dropout, float32 [C, P, D] factors (0 or 1/(1-p)) by replaced side.
    """

    group: RelationGroup
    ids: Mapping[Side, Tensor]
    place_CP: Tensor
    weight_CP: Tensor
    valid_CP: Tensor
    candidates: Mapping[Side, Candidates]
    keep: Mapping[Side, Tensor]

    @property
    def num_edges(self) -> int:
        """Edges without padding."""
        return int(self.valid_CP.sum())


@dataclass(frozen=True)
class Chosen:
    """Edges of a batch, as tensors on any device.

    Args:
        lhs_B: offsets of left ends, int64.
        rhs_B: of right ends.
        place_B: place of each relation in its group, int64.
        weight_B: edge weight times relation weight, float32.
    """

    lhs_B: Tensor
    rhs_B: Tensor
    place_B: Tensor
    weight_B: Tensor


class BatchMaker:
    """Cuts the edges of one bucket into batches and draws their negatives.

    Args:
        model: for relation groups, weights and dimension.
        negatives: section of the run file.
        batch_size: edges of one step.
        dropout: share of anchor coordinates set to 0.
    """

    def __init__(
        self, model: Model, negatives: NegativesSection, *, batch_size: int, dropout: float
    ) -> None:
        self._model = model
        self.negatives = negatives
        self._batch_size = batch_size
        self.dropout = dropout
        by_name = {"both": (Side.RHS, Side.LHS), "lhs": (Side.LHS,), "rhs": (Side.RHS,)}
        self.sides = by_name[negatives.sides]

    def plan(self, edges: Edges, generator: torch.Generator) -> list[NDArray[np.int64]]:
        """Return the positions of each batch's edges: shuffled, one relation group each.

        Batches of different groups are interleaved at random, so that no group comes last.
        """
        order_E = torch.randperm(len(edges), generator=generator)
        batches = [
            batch
            for part in self._by_group(edges, order_E)
            if len(part)
            for batch in torch.split(part, self._batch_size)
        ]
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i].numpy() for i in shuffled]

    def _by_group(self, edges: Edges, order_E: Tensor) -> Sequence[Tensor]:
        """Return the positions of each relation group's edges, in this order."""
        if len(self._model.groups) == 1:
            return [order_E]
        group_E = self._model.group_of[torch.from_numpy(edges.rel.astype(np.int64))[order_E]]
        counts = torch.bincount(group_E, minlength=len(self._model.groups)).tolist()
        return torch.split(order_E[torch.argsort(group_E, stable=True)], counts)

    def populations(
        self, edges: Edges, sizes: Mapping[tuple[Side, str], tuple[int, int, int]]
    ) -> Populations:
        """Return who can be a candidate, by relation group and replaced side.

        Args:
            edges: of one bucket.
            sizes: by (side, entity type): entities in the loaded partition, in the whole graph,
                and rows of the reservoir.
        """
        group_E = self._model.group_of[torch.from_numpy(edges.rel.astype(np.int64))]
        found = {}
        for group in self._model.groups:
            for side in self.sides:
                if (side, group.entity_type(side)) not in sizes:
                    continue  # no edge of this group can be in the bucket
                count, total, outside = sizes[side, group.entity_type(side)]
                share = None
                if self.negatives.in_batch:
                    own = getattr(edges, side)[(group_E == group.index).numpy()]
                    ends = torch.bincount(torch.from_numpy(own.astype(np.int64)), minlength=count)
                    share = ends.float() / max(len(own), 1)
                found[group.index, side] = Population(count, total, outside, share)
        return found

    def batches(
        self,
        edges: Edges,
        plan: list[NDArray[np.int64]],
        populations: Populations,
        generator: torch.Generator,
    ) -> Iterator[Batch]:
        """Yield the batches of a plan.

        Args:
            edges: of one bucket.
            plan: positions by batch, from `plan`.
            populations: from `populations`.
            generator: source of negatives and of dropout.
        """
        for positions in plan:
            chosen = edges.take(positions)
            yield self._make(chosen, populations, generator)

    def _make(self, edges: Edges, populations: Populations, generator: torch.Generator) -> Batch:
        rel = torch.from_numpy(edges.rel.astype(np.int64))
        group = self._model.groups[int(self._model.group_of[rel[0]])]
        weight = self._model.relation_weights[rel]
        if edges.weight is not None:
            weight = weight * torch.from_numpy(edges.weight)
        chosen = Chosen(
            torch.from_numpy(edges.lhs.astype(np.int64)),
            torch.from_numpy(edges.rhs.astype(np.int64)),
            self._model.place_of[rel],
            weight,
        )
        return self.make(group, chosen, populations, generator)

    def make(
        self,
        group: RelationGroup,
        edges: Chosen,
        populations: Populations,
        generator: torch.Generator,
    ) -> Batch:
        """Return the batch of some edges of one relation group.

        Args:
            group: of their relations.
            edges: on the generator's device.
            populations: from `populations`, their shares on that device too.
            generator: source of negatives and of dropout.
        """
        size = len(edges.place_B)
        chunk = self.chunk_size(size)
        chunks = -(-size // chunk)
        ids = {
            Side.LHS: _padded(edges.lhs_B, chunks, chunk),
            Side.RHS: _padded(edges.rhs_B, chunks, chunk),
        }
        place_CP = _padded(edges.place_B, chunks, chunk)
        valid_B = torch.ones(size, dtype=torch.bool, device=edges.place_B.device)
        valid_CP = _padded(valid_B, chunks, chunk)
        candidates = {}
        for side in self.sides:
            population = populations[group.index, side]
            drawn = self._draw(ids[side], valid_CP, population, generator)
            if self.negatives.filter_chunk:
                drawn = mask_known_in_chunk(drawn, ids[side.other], place_CP, ids[side], valid_CP)
            candidates[side] = drawn
        weight_CP = _padded(edges.weight_B, chunks, chunk)
        keep = self._keep(chunks, chunk, generator)
        return Batch(group, ids, place_CP, weight_CP, valid_CP, candidates, keep)

    def _draw(
        self,
        true_CP: Tensor,
        valid_CP: Tensor,
        population: Population,
        generator: torch.Generator,
    ) -> Candidates:
        if self.covers(population):
            outside = population.outside if self.negatives.all else self.negatives.uniform
            return all_candidates(
                true_CP, population=population, outside=outside, generator=generator
            )
        return sample_candidates(
            true_CP,
            valid_CP,
            population=population,
            uniform=self.negatives.uniform,
            generator=generator,
        )

    def covers(self, population: Population) -> bool:
        """Tell whether all entities of the partition are candidates.

        Where there are fewer than candidates, each of them once costs less and is exact.
        """
        wanted = self.negatives.in_batch + self.negatives.uniform
        return self.negatives.all or wanted >= population.count

    def chunk_size(self, size: int) -> int:
        """Return how many positives a whole chunk has in a batch of so many."""
        if self.negatives.all:
            return min(self._batch_size, size)
        return min(self.negatives.in_batch or _CHUNK_WITHOUT_IN_BATCH, size)

    def _keep(self, chunks: int, chunk: int, generator: torch.Generator) -> dict[Side, Tensor]:
        if self.dropout == 0:
            return {}
        share = 1 - self.dropout
        shape = (chunks, chunk, self._model.dimension)
        return {
            side: torch.empty(shape, device=generator.device)
            .bernoulli_(share, generator=generator)
            .div_(share)
            for side in self.sides
        }


def _padded(values_B: Tensor, chunks: int, chunk: int) -> Tensor:
    """Return [C, P], filled up with zeros (False for bool)."""
    padding = chunks * chunk - len(values_B)
    if padding:
        values_B = torch.cat((values_B, values_B.new_zeros(padding)))
    return values_B.view(chunks, chunk)
