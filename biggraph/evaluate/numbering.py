"""One number for each entity of a type: the first number of its partition plus its offset.

Turns stored edges into such numbers and such numbers into rows. Knows nothing of models or ranks.

Axes: N entities, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from biggraph.schema import GraphSchema
from biggraph.types import Bucket, Edges, FloatArray, IntArray, PartitionKey, Side

Numbers = NDArray[np.int64]


class RowSource(Protocol):
    """Whatever holds embeddings: a checkpoint, or tables in memory."""

    def shape(self, key: PartitionKey) -> tuple[int, int]:
        """Return rows and columns of a partition."""

    def rows(self, key: PartitionKey, offsets: IntArray | slice) -> FloatArray:
        """Return a fresh copy of some rows, float32, shape [N, D]."""


@dataclass(frozen=True)
class Block:
    """Some entities of one partition, by ascending number.

    Args:
        key: the partition.
        offsets: positions inside the partition.
        numbers: of the same entities, int64, shape [N].
    """

    key: PartitionKey
    offsets: slice | IntArray
    numbers: Numbers


class Numbering:
    """Numbers of the entities of a graph, from 0 in each entity type."""

    def __init__(self, schema: GraphSchema) -> None:
        self.schema = schema
        self._firsts = {
            entity.name: np.concatenate(([0], np.cumsum(entity.counts))).astype(np.int64)
            for entity in schema.entities
        }

    @property
    def limit(self) -> int:
        """A number above that of every entity."""
        return max((entity.count for entity in self.schema.entities), default=0) + 1

    def numbers(self, entity_type: str, partition: IntArray, offset: IntArray) -> Numbers:
        """Return the numbers of entities given by partition and offset; -1 where offset is."""
        return np.where(offset < 0, -1, self._firsts[entity_type][partition] + offset)

    def places(self, entity_type: str, numbers: Numbers) -> tuple[IntArray, IntArray]:
        """Return partition and offset of each entity, both int64, shape [N]."""
        firsts = self._firsts[entity_type]
        partition = np.searchsorted(firsts, numbers, side="right") - 1
        return partition, numbers - firsts[partition]

    def ends(self, edges: Edges, bucket: Bucket) -> tuple[Numbers, Numbers]:
        """Return the numbers of both ends of the edges of a bucket, int64, shape [E]."""
        first_lhs, first_rhs = self._first_by_relation(bucket)
        return edges.lhs + first_lhs[edges.rel], edges.rhs + first_rhs[edges.rel]

    def blocks(self, entity_type: str, size: int, chosen: Numbers | None) -> Iterator[Block]:
        """Cut a type, or the `chosen` ascending numbers of it, into blocks of at most `size`."""
        firsts = self._firsts[entity_type]
        for index, (first, stop) in enumerate(pairwise(firsts)):
            key = PartitionKey(entity_type, index)
            if chosen is None:
                for start in range(int(first), int(stop), size):
                    numbers = np.arange(start, min(start + size, stop), dtype=np.int64)
                    yield Block(
                        key, slice(int(start - first), int(numbers[-1] - first + 1)), numbers
                    )
                continue
            inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, stop)]
            for start in range(0, len(inside), size):
                numbers = inside[start : start + size]
                yield Block(key, numbers - first, numbers)

    def rows(self, source: RowSource, entity_type: str, numbers: Numbers) -> FloatArray:
        """Return the embeddings of some entities, float32, shape [N, D]; reads each row once."""
        distinct, inverse = np.unique(numbers, return_inverse=True)
        dimension = source.shape(PartitionKey(entity_type, 0))[1]
        rows_ND = np.empty((len(distinct), dimension), dtype=np.float32)
        start = 0
        for block in self.blocks(entity_type, max(1, len(distinct)), distinct):
            stop = start + len(block.numbers)
            rows_ND[start:stop] = source.rows(block.key, block.offsets)
            start = stop
        return rows_ND[inverse]

    def _first_by_relation(self, bucket: Bucket) -> tuple[Numbers, Numbers]:
        sides = []
        for side, index in ((Side.LHS, bucket.lhs), (Side.RHS, bucket.rhs)):
            firsts = [self._firsts[r.entity_type(side)] for r in self.schema.relations]
            # A type with fewer partitions than the grid has no edges in this bucket: any value.
            sides.append([f[min(index, len(f) - 1)] for f in firsts])
        return np.array(sides[0], dtype=np.int64), np.array(sides[1], dtype=np.int64)
