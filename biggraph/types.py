"""Words shared by every layer: sides, buckets, partition keys, edges, seeds.

Knows nothing of files, tensors or training.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.float32]


class Side(StrEnum):
    """One end of an edge: lhs is the head (source), rhs the tail (destination)."""

    LHS = "lhs"
    RHS = "rhs"

    @property
    def other(self) -> Side:
        """Return the opposite end."""
        return Side.RHS if self is Side.LHS else Side.LHS


class Bucket(NamedTuple):
    """Edges whose lhs lies in partition `lhs` and whose rhs lies in partition `rhs`."""

    lhs: int
    rhs: int

    def __str__(self) -> str:
        return f"({self.lhs}, {self.rhs})"


class PartitionKey(NamedTuple):
    """One slice of one entity type."""

    entity_type: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here

    def __str__(self) -> str:
        return f"{self.entity_type}/{self.index}"


@dataclass(frozen=True, slots=True)
class Edges:
    """Columns of edges of one bucket.

    Args:
        lhs: offsets inside the lhs partition, int32 or int64, shape [E].
        rel: relation ids of the graph, int32, shape [E].
        rhs: offsets inside the rhs partition, int32 or int64, shape [E].
        weight: float32, shape [E], or None where every edge weighs 1.
    """

    lhs: IntArray
    rel: IntArray
    rhs: IntArray
    weight: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.lhs)

    def take(self, index: IntArray | NDArray[np.bool_] | slice) -> Edges:
        """Return the edges at `index` (positions, a boolean mask or a slice)."""
        weight = None if self.weight is None else self.weight[index]
        return Edges(self.lhs[index], self.rel[index], self.rhs[index], weight)


_MASK = (1 << 64) - 1


def mix_seed(*parts: int) -> int:
    """Mix integers into one 63-bit seed: same parts in the same order, same seed, on any machine.

    Each part passes through the finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable
    pseudorandom number generators", OOPSLA 2014).

    >>> mix_seed(1, 2) == mix_seed(1, 2), mix_seed(1, 2) == mix_seed(2, 1)
    (True, False)
    """
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1
