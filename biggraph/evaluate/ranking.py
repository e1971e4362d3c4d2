"""Ranks of true entities among candidates, block by block.

Neither the table nor all scores need fit in memory: query vectors are made for as many questions
as the budget allows, candidates are read one block after the other, and each tile of scores is
counted and forgotten. Knows scores and known answers; nothing of splits or metrics.

A candidate ties with the true entity when their scores differ by no more than rounding can
explain, so that equal embeddings tie wherever they are stored: |difference| <= 1e-6 * the size of
the numbers that the score is made of (`_tolerance`).

Axes: B questions of a tile, N candidates, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.evaluate.filters import Known
from biggraph.evaluate.numbering import Block, Numbering, Numbers, RowSource
from biggraph.evaluate.queries import Queries
from biggraph.model.model import Model, RelationGroup
from biggraph.types import FloatArray, Side

Progress = Callable[[int, int], None]

DEFAULT_MEMORY = 256 * 2**20
_TIE = 1e-6
_TILE = 256  # questions of one matrix product: enough for full speed, few enough for the cache
_PADDING = 32  # below this many rows, matrix products round differently (other code paths)


@dataclass(frozen=True)
class Ranks:
    """How each true entity compares with its competitors.

    Args:
        higher: competitors with a higher score, int64, shape [Q].
        tied: competitors with an equal score, int64, shape [Q].
    """

    higher: Numbers
    tied: Numbers

    def realistic(self) -> NDArray[np.float64]:
        """Return 1 + higher + tied / 2: the mean rank over all orders of the tied ones.

        Source: Berrendorf et al., "On the ambiguity of rank-based evaluation of entity alignment
        or link prediction methods", 2020.
        """
        return 1.0 + self.higher + self.tied / 2.0


@dataclass(frozen=True)
class Ranker:
    """Everything that stays the same while questions are ranked.

    Args:
        source: where embeddings come from.
        model: with the relation parameters that belong to them.
        numbering: of the graph's entities.
        candidates: for each entity type, the ascending numbers that compete; None: all do.
        memory: budget in bytes for query vectors, candidate rows and scores.
    """

    source: RowSource
    model: Model
    numbering: Numbering
    candidates: Mapping[str, Numbers] | None = None
    memory: int = DEFAULT_MEMORY

    @torch.no_grad()
    def rank(self, queries: Queries, known: Known, on_progress: Progress | None = None) -> Ranks:
        """Count, for every question, the competitors that score higher than or as the truth.

        Args:
            queries: the questions.
            known: answers that do not compete; must hold each question's own answer.
            on_progress: called with the number of scores done and in all.

        A true entity whose score is not a number ranks behind all; such a candidate behind none.
        """
        ranks = Ranks(np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64))
        done, total = 0, self._number_of_scores(queries)
        for entity_type, segments in self._by_type(queries).items():
            for part in _cut(segments, self._rows_that_fit()):
                tiles = [tile for segment in part for tile in self._tiles(queries, segment)]
                for block in self._blocks(entity_type):
                    self._count_block(block, tiles, known, ranks)
                    done += len(block.numbers) * sum(len(tile.questions) for tile in tiles)
                    if on_progress:
                        on_progress(done, total)
        return ranks

    def _count_block(self, block: Block, tiles: list[_Tile], known: Known, ranks: Ranks) -> None:
        rows_ND = torch.from_numpy(self.source.rows(block.key, block.offsets))
        prepared: tuple[object, Tensor] | None = None
        for tile in tiles:
            # Tiles come sorted by (group, side), so that candidates are prepared once for each.
            if prepared is None or prepared[0] != (tile.group.index, tile.side):
                ready_ND = self.model.candidates(tile.group, tile.side, rows_ND)
                prepared = ((tile.group.index, tile.side), ready_ND)
            tile.count(self.model, prepared[1], block, known, ranks)

    def _by_type(self, queries: Queries) -> dict[str, list[_Segment]]:
        """Group questions by replaced type, and in each by relation group and replaced side."""
        found: dict[str, list[_Segment]] = {}
        for group in self.model.groups:
            of_group = np.isin(queries.rel, group.relations)
            for side in Side:
                chosen = np.flatnonzero(of_group & (queries.replaces_lhs == (side is Side.LHS)))
                if len(chosen):
                    segment = _Segment(group, side, chosen)
                    found.setdefault(group.entity_type(side), []).append(segment)
        return found

    def _tiles(self, queries: Queries, segment: _Segment) -> Iterator[_Tile]:
        group, side = segment.group, segment.side
        for start in range(0, len(segment.questions), _TILE):
            questions = segment.questions[start : start + _TILE]
            some = queries.take(questions)
            anchor_BD = self._rows(group.entity_type(side.other), some.anchor)
            truth_BD = self._rows(group.entity_type(side), some.truth)
            query_BD = self.model.query(group, side, anchor_BD, torch.from_numpy(some.rel))
            truth_BD = self.model.candidates(group, side, truth_BD)
            low_B, high_B = _tie_range(self.model, query_BD, truth_BD)
            yield _Tile(group, side, questions, query_BD, low_B, high_B)

    def _rows(self, entity_type: str, numbers: Numbers) -> Tensor:
        return torch.from_numpy(self.numbering.rows(self.source, entity_type, numbers))

    def _blocks(self, entity_type: str) -> Iterator[Block]:
        chosen = None if self.candidates is None else self.candidates[entity_type]
        size = min(self._rows_that_fit(), max(_PADDING, self.memory // (8 * 4 * _TILE)))
        return self.numbering.blocks(entity_type, size, chosen)

    def _rows_that_fit(self) -> int:
        return max(1, self.memory // (4 * 4 * self.model.dimension))

    def _number_of_scores(self, queries: Queries) -> int:
        total = 0
        for entity_type, segments in self._by_type(queries).items():
            count = self.numbering.schema.entity_type(entity_type).count
            if self.candidates is not None:
                count = len(self.candidates[entity_type])
            total += count * sum(len(segment.questions) for segment in segments)
        return total


@dataclass(frozen=True)
class _Segment:
    """Questions of one relation group and one replaced side."""

    group: RelationGroup
    side: Side
    questions: Numbers


@dataclass(frozen=True)
class _Tile:
    """Questions ready to be scored, and the range of scores that tie with each truth."""

    group: RelationGroup
    side: Side
    questions: Numbers
    query_BD: Tensor
    low_B: FloatArray
    high_B: FloatArray

    def count(
        self, model: Model, candidates_ND: Tensor, block: Block, known: Known, ranks: Ranks
    ) -> None:
        """Add to `ranks` what the candidates of one block contribute."""
        scores_BN = _scores(model, self.query_BD, candidates_ND).numpy()
        first, last = int(block.numbers[0]), int(block.numbers[-1])
        row, number = known.answers(self.questions, first, last + 1)
        column = np.searchsorted(block.numbers, number)
        present = block.numbers[column] == number
        scores_BN[row[present], column[present]] = -np.inf
        higher, tied, others = _count(scores_BN, self.low_B, self.high_B)
        lost = ~(self.high_B > -np.inf)  # the truth's score is NaN or -inf
        ranks.higher[self.questions] += np.where(lost, others, higher)
        ranks.tied[self.questions] += np.where(lost, 0, tied)


def _cut(segments: list[_Segment], size: int) -> Iterator[list[_Segment]]:
    """Cut segments into parts of at most `size` questions, in order."""
    part: list[_Segment] = []
    room = size
    for segment in segments:
        start = 0
        while start < len(segment.questions):
            questions = segment.questions[start : start + room]
            part.append(_Segment(segment.group, segment.side, questions))
            start, room = start + len(questions), room - len(questions)
            if room == 0:
                yield part
                part, room = [], size
    if part:
        yield part


def _scores(model: Model, query_BD: Tensor, candidates_ND: Tensor) -> Tensor:
    """Return all scores, [B, N]; padded, so that each pair rounds alike in any block."""
    padded_BD, padded_ND = _pad(query_BD), _pad(candidates_ND)
    scores = model.pairwise(padded_BD, padded_ND)
    return scores[: len(query_BD), : len(candidates_ND)].contiguous()


def _pad(rows_ND: Tensor) -> Tensor:
    missing = _PADDING - len(rows_ND)
    return torch.nn.functional.pad(rows_ND, (0, 0, 0, missing)) if missing > 0 else rows_ND


def _tie_range(model: Model, query_BD: Tensor, truth_BD: Tensor) -> tuple[FloatArray, FloatArray]:
    """Return the lowest and highest score that tie with each truth, float32, shape [B] each.

    The truth is scored by the same kind of product as its competitors: on most machines equal
    rows then have equal scores to the last bit, also where a distance cancels to noise.
    """
    parts = [
        _scores(model, query_BD[start : start + _PADDING], truth_BD[start : start + _PADDING])
        for start in range(0, len(query_BD), _PADDING)
    ]
    score_B = torch.cat([part.diagonal() for part in parts])
    tolerance_B = _tolerance(model, query_BD, truth_BD)
    tolerance_B = torch.where(torch.isfinite(score_B) & tolerance_B.isfinite(), tolerance_B, 0.0)
    low: FloatArray = (score_B - tolerance_B).numpy()
    high: FloatArray = (score_B + tolerance_B).numpy()
    return low, high


def _tolerance(model: Model, query_BD: Tensor, truth_BD: Tensor) -> Tensor:
    """Return how far apart rounding can put equal scores, [B].

    For a product of vectors the size of the numbers is |q||c|, for a distance |q| + |c|, for a
    squared one |q|^2 + |c|^2; scores of the vectors with themselves and with zero give all three.
    """
    zero_BD = torch.zeros_like(query_BD)
    product_B = model.matched(query_BD, query_BD) * model.matched(truth_BD, truth_BD)
    lengths_B = model.matched(query_BD, zero_BD).abs() + model.matched(truth_BD, zero_BD).abs()
    return _TIE * (product_B.abs().sqrt() + lengths_B)


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _count(
    scores_BN: FloatArray, low_B: FloatArray, high_B: FloatArray
) -> tuple[Numbers, Numbers, Numbers]:
    """Count in each row, in one pass, scores above `high`, from `low` to `high`, and all but -inf.

    Minus infinity marks entities that do not compete.
    """
    rows = scores_BN.shape[0]
    higher, tied = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    others = np.zeros(rows, np.int64)
    for i in range(rows):
        above, from_low, competing = 0, 0, 0
        low, high = low_B[i], high_B[i]
        for j in range(scores_BN.shape[1]):  # seven times the speed of iterating over the row
            score = scores_BN[i, j]
            above += score > high
            from_low += score >= low
            competing += score != -np.inf
        higher[i], tied[i], others[i] = above, from_low - above, competing
    return higher, tied, others
