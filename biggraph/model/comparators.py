"""Comparators: the similarity of two vectors. Higher is more similar, always.

Knows pairs of vectors; nothing of relations, tables or losses. Both sides pass through `prepare`
once, however many pairs they are compared in.

Axes: B pairs, C chunks, P queries per chunk, N candidates per chunk, D dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Added under roots so that values and gradients stay finite at distance or length zero.
_EPSILON = 1e-12


class Comparator(ABC):
    """A similarity of vectors."""

    def prepare(self, rows_ND: Tensor) -> Tensor:
        """Return the vectors in the form that `matched` and `pairwise` take, shape [..., D]."""
        return rows_ND

    @abstractmethod
    def matched(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """Return the similarity of each vector with its partner, shape [B] (or [..., ])."""

    @abstractmethod
    def pairwise(self, a_CPD: Tensor, b_CND: Tensor) -> Tensor:
        """Return the similarity of every query with every candidate of its chunk, [C, P, N]."""


class Dot(Comparator):
    """The dot product."""

    def matched(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """Return row-wise dot products."""
        return (a_BD * b_BD).sum(-1)

    def pairwise(self, a_CPD: Tensor, b_CND: Tensor) -> Tensor:
        """Return all dot products, one matrix product a chunk."""
        return torch.matmul(a_CPD, b_CND.transpose(-1, -2))


class Cos(Comparator):
    """The cosine; a zero vector has cosine 0 with everything."""

    def prepare(self, rows_ND: Tensor) -> Tensor:
        """Return the vectors scaled to length 1."""
        return rows_ND * torch.rsqrt(rows_ND.square().sum(-1, keepdim=True) + _EPSILON)

    def matched(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """Return row-wise dot products of the scaled vectors."""
        return (a_BD * b_BD).sum(-1)

    def pairwise(self, a_CPD: Tensor, b_CND: Tensor) -> Tensor:
        """Return all dot products of the scaled vectors."""
        return torch.matmul(a_CPD, b_CND.transpose(-1, -2))


class SquaredL2(Comparator):
    """The negative squared Euclidean distance."""

    def matched(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """Return row-wise negative squared distances."""
        return -(a_BD - b_BD).square().sum(-1)

    def pairwise(self, a_CPD: Tensor, b_CND: Tensor) -> Tensor:
        """Return all negative squared distances."""
        return -_squared_distances(a_CPD, b_CND)


class L2(Comparator):
    """The negative Euclidean distance."""

    def matched(self, a_BD: Tensor, b_BD: Tensor) -> Tensor:
        """Return row-wise negative distances."""
        return -torch.sqrt((a_BD - b_BD).square().sum(-1) + _EPSILON)

    def pairwise(self, a_CPD: Tensor, b_CND: Tensor) -> Tensor:
        """Return all negative distances."""
        return -torch.sqrt(_squared_distances(a_CPD, b_CND) + _EPSILON)


def _squared_distances(a_CPD: Tensor, b_CND: Tensor) -> Tensor:
    """Return |a - b|^2 as |a|^2 + |b|^2 - 2ab, one matrix product a chunk; rounding cut at 0."""
    a_CP1 = a_CPD.square().sum(-1, keepdim=True)
    b_C1N = b_CND.square().sum(-1).unsqueeze(-2)
    cross_CPN = torch.matmul(a_CPD, b_CND.transpose(-1, -2))
    return (a_CP1 + b_C1N - 2 * cross_CPN).clamp_min(0)


COMPARATORS: dict[str, Comparator] = {
    "dot": Dot(),
    "cos": Cos(),
    "l2": L2(),
    "squared_l2": SquaredL2(),
}
