"""The best candidates of many questions at once, block by block.

Scores come from one matrix product a tile, and compiled code keeps the best while the tile is in
the cache, so neither the table nor all scores are held. Knows rows and scores; nothing of names.

Axes: B queries, N candidates, D dimension, K kept for a query, X left out in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from biggraph.evaluate.numbering import Numbering, Numbers, RowSource
from biggraph.model.comparators import Comparator
from biggraph.types import FloatArray

_MEMORY = 64 * 2**20  # bytes of rows held at once
_QUERIES, _PIECE = 512, 1024  # queries and candidates of one matrix product
Best = tuple[Numbers, FloatArray]


@dataclass(frozen=True)
class Search:
    """Where the candidates of a type come from, and how they are compared.

    Args:
        source: where embeddings come from.
        numbering: of the graph's entities.
        entity_type: of the candidates.
        comparator: similarity of a query and a candidate.
        prepare: makes candidates comparable, rows [N, D] in and out.
    """

    source: RowSource
    numbering: Numbering
    entity_type: str
    comparator: Comparator
    prepare: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def best(self, query_BD: Tensor, without: Sequence[Numbers], k: int) -> list[Best]:
        """Return the numbers and scores of the k best of each query, best first, equal by number.

        Args:
            query_BD: prepared queries.
            without: for each query, the ascending numbers that are left out.
            k: how many; fewer come back where there are fewer.

        Which are the best is decided with the rounding of matrix products; their scores and order
        are those of `Comparator.matched`.
        """
        k = min(k, self.numbering.schema.entity_type(self.entity_type).count)
        found: list[Best] = []
        for start in range(0, len(query_BD), _QUERIES):
            some = slice(start, start + _QUERIES)
            found += self._best(query_BD[some], without[some], k)
        return found

    def _best(self, query_BD: Tensor, without: Sequence[Numbers], k: int) -> Iterator[Best]:
        kept_BK = np.full((len(query_BD), k), -np.inf, np.float32)
        number_BK = np.full((len(query_BD), k), -1, np.int64)
        ends = np.cumsum([0, *map(len, without)])
        out_X = np.concatenate([np.empty(0, np.int64), *without])
        size = max(1, _MEMORY // (4 * query_BD.shape[1]))
        for block in self.numbering.blocks(self.entity_type, size, None):
            rows_ND = torch.from_numpy(self.source.rows(block.key, block.offsets))
            for start in range(0, len(rows_ND), _PIECE):  # also for one query: into the cache
                ready_ND = self.prepare(rows_ND[start : start + _PIECE])
                scores_BN = self.comparator.pairwise(query_BD, ready_ND).numpy()
                _keep(scores_BN, int(block.numbers[start]), out_X, ends, kept_BK, number_BK)
        return self._final(query_BD, number_BK)

    def _final(self, query_BD: Tensor, number_BK: Numbers) -> Iterator[Best]:
        """Score the kept ones again, each by itself, and put them in order."""
        at_once = max(1, _MEMORY // (4 * query_BD.shape[1] * number_BK.shape[1]))
        for start in range(0, len(query_BD), at_once):
            chosen = number_BK[start : start + at_once]
            place, _ = np.nonzero(chosen >= 0)
            numbers = chosen[chosen >= 0]
            rows = torch.from_numpy(self.numbering.rows(self.source, self.entity_type, numbers))
            query = query_BD[start + place]
            scores: FloatArray = self.comparator.matched(query, self.prepare(rows)).numpy()
            order = np.lexsort((numbers, -scores, place))
            cuts = np.searchsorted(place, np.arange(1, len(chosen)))
            yield from zip(
                np.split(numbers[order], cuts), np.split(scores[order], cuts), strict=True
            )


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _keep(
    scores_BN: FloatArray,
    first: int,
    out_X: Numbers,
    ends: Numbers,
    kept_BK: FloatArray,
    number_BK: Numbers,
) -> None:
    """Replace the worst of the kept by what is better; candidates are numbered from `first`.

    A query's kept scores are a heap with the worst on top: the lowest, of equal ones the last.
    """
    count = scores_BN.shape[1]
    for i in range(scores_BN.shape[0]):
        left_out = out_X[ends[i] : ends[i + 1]]
        for x in left_out[np.searchsorted(left_out, first) :]:
            if x >= first + count:
                break
            scores_BN[i, x - first] = -np.inf
        for j in range(count):
            if scores_BN[i, j] > kept_BK[i, 0]:
                _replace_top(kept_BK[i], number_BK[i], scores_BN[i, j], first + j)


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _replace_top(kept: FloatArray, numbers: Numbers, score: float, number: int) -> None:
    place, child = 0, 1
    while child < len(kept):
        other = child + 1
        if other < len(kept) and (
            kept[other] < kept[child]
            or (kept[other] == kept[child] and numbers[other] > numbers[child])
        ):
            child = other
        # The new one came last, so of equal ones it is the worst.
        if score <= kept[child]:
            break
        kept[place], numbers[place] = kept[child], numbers[child]
        place, child = child, 2 * child + 1
    kept[place], numbers[place] = score, number
