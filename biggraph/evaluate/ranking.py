"""Ranks of true entities among candidates, block by block.

Neither the table nor all scores need fit in memory: query vectors are made for as many questions
as the budget allows, candidates are read one block after the other, and each tile of scores is
counted while it is in the cache, and forgotten. Questions that differ in their truth alone share a
query, whose scores are computed once. Threads take pieces of a block; every product is of one
thread. Knows scores and known answers; nothing of splits or metrics.

Where the processor is fast at it, a screen of bfloat16 products tells first which candidates surely
win or lose (`screen.py`); the others' scores are those of `scores.py`, with a screen or without.

Axes: B queries of a tile, Q questions, N candidates, D dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.evaluate.counting import Asked, add_counts
from biggraph.evaluate.filters import Known
from biggraph.evaluate.numbering import Block, Numbering, Numbers, RowSource
from biggraph.evaluate.queries import Queries
from biggraph.evaluate.scores import PADDING, scores_of, scores_of_pairs, tie_range
from biggraph.evaluate.screen import Candidates, Question, Screen
from biggraph.model.model import Model, RelationGroup
from biggraph.types import FloatArray, IntArray, Side

Progress = Callable[[int, int], None]

DEFAULT_MEMORY = 256 * 2**20
# Queries and candidates of one matrix product: enough for full speed, few enough for the cache.
_TILE, _PIECE = 512, 1024
_TOGETHER = 4096  # open pairs to score together


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
        screened: by bfloat16 products first, which changes no rank; None: where they are fast.
    """

    source: RowSource
    model: Model
    numbering: Numbering
    candidates: Mapping[str, Numbers] | None = None
    memory: int = DEFAULT_MEMORY
    screened: bool | None = None

    @torch.no_grad()
    def rank(self, queries: Queries, known: Known, on_progress: Progress | None = None) -> Ranks:
        """Count, for every question, the competitors that score higher than or as the truth.

        Args:
            queries: the questions.
            known: answers that do not compete; must hold each question's own answer.
            on_progress: called with the number of scores done and in all.

        Takes as many threads as torch would. A true entity whose score is not a number ranks
        behind all; such a candidate behind none.
        """
        ranks = Ranks(np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64))
        done, total = 0, self._number_of_scores(queries)
        answers_K = known.codes % known.limit
        screen = Screen(self.model.comparator, self.screened)
        threads = torch.get_num_threads()
        with _pool(threads) as pool:
            for entity_type, segments in self._by_type(queries).items():
                for part in _cut(segments, self._rows_that_fit()):
                    questions = np.concatenate([segment.questions for segment in part])
                    tiles = [
                        tile
                        for segment in part
                        for tile in self._tiles(queries, segment, known, screen)
                    ]
                    counts_Q2 = np.zeros((len(questions), 2), np.int64)
                    for block in self._blocks(entity_type):
                        counts_Q2 += self._count_block(
                            pool, threads, block, tiles, answers_K, screen
                        )
                        done += len(block.numbers) * len(questions)
                        if on_progress:
                            on_progress(done, total)
                    ranks.higher[questions], ranks.tied[questions] = counts_Q2.T
        return ranks

    def _count_block(
        self,
        pool: ThreadPoolExecutor,
        threads: int,
        block: Block,
        tiles: list[_Tile],
        answers_K: Numbers,
        screen: Screen,
    ) -> IntArray:
        """Return what the candidates of a block add to higher and tied, [Q, 2]."""
        rows_ND = torch.from_numpy(self.source.rows(block.key, block.offsets))
        count = len(block.numbers)
        step = min(_PIECE, max(PADDING, -(-count // threads)))
        pieces = deque(slice(start, start + step) for start in range(0, count, step))

        def work(_: int) -> IntArray:
            counts_Q2 = np.zeros((sum(len(tile.asked.query_Q) for tile in tiles), 2), np.int64)
            while True:
                try:
                    piece = pieces.popleft()
                except IndexError:
                    return counts_Q2
                numbers_N = block.numbers[piece]
                self._count_piece(rows_ND[piece], numbers_N, tiles, answers_K, screen, counts_Q2)

        counts_Q2: IntArray = np.sum(list(pool.map(work, range(threads))), axis=0)
        return counts_Q2

    @torch.no_grad()
    def _count_piece(
        self,
        rows_ND: Tensor,
        numbers_N: Numbers,
        tiles: list[_Tile],
        answers_K: Numbers,
        screen: Screen,
        counts_Q2: IntArray,
    ) -> None:
        prepared: tuple[object, Tensor, Candidates | None] | None = None
        start, waiting = 0, _Open(self.model, counts_Q2)
        for tile in tiles:
            # Tiles come sorted by (group, side), so that candidates are prepared once for each.
            if prepared is None or prepared[0] != (tile.group.index, tile.side):
                ready_ND = self.model.candidates(tile.group, tile.side, rows_ND)
                rough = screen.candidates(ready_ND) if tile.screened else None
                prepared = ((tile.group.index, tile.side), ready_ND, rough)
            _, ready_ND, rough = prepared
            stop = start + len(tile.asked.query_Q)
            found = None
            if tile.screened and rough:
                found = screen.count(tile.screened, rough, tile.asked, numbers_N, answers_K)
            if found:
                counts_Q2[start:stop, 0] += found[0]
                waiting.add(start, tile, ready_ND, found[1])
            else:
                scores_BN = scores_of(self.model, tile.query_BD, ready_ND).numpy()
                add_counts(scores_BN, numbers_N, tile.asked, answers_K, counts_Q2[start:stop])
            start = stop
        waiting.settle()

    def _by_type(self, queries: Queries) -> dict[str, list[_Segment]]:
        """Group questions by replaced type, and in each by relation group and replaced side."""
        found: dict[str, list[_Segment]] = {}
        for group in self.model.groups:
            of_group = np.isin(queries.rel, group.relations)
            for side in Side:
                chosen = np.flatnonzero(of_group & (queries.replaces_lhs == (side is Side.LHS)))
                if len(chosen):
                    order = np.lexsort((queries.anchor[chosen], queries.rel[chosen]))
                    chosen = chosen[order]  # those with one query side by side
                    segment = _Segment(group, side, chosen)
                    found.setdefault(group.entity_type(side), []).append(segment)
        return found

    def _tiles(
        self, queries: Queries, segment: _Segment, known: Known, screen: Screen
    ) -> Iterator[_Tile]:
        """Cut a segment so that each tile has at most `_TILE` different queries."""
        some = queries.take(segment.questions)
        differs = (np.diff(some.anchor) != 0) | (np.diff(some.rel) != 0)
        query = np.concatenate(([0], np.cumsum(differs)))
        starts = np.searchsorted(query, np.arange(0, query[-1] + 1, _TILE))
        for start, stop in pairwise([*starts.tolist(), len(query)]):
            questions = segment.questions[start:stop]
            yield self._tile(segment, queries.take(questions), query[start:stop] - query[start],
                             known.spans(questions), screen)  # fmt: skip

    def _tile(
        self,
        segment: _Segment,
        some: Queries,
        query_Q: Numbers,
        spans: tuple[Numbers, Numbers],
        screen: Screen,
    ) -> _Tile:
        group, side = segment.group, segment.side
        first_B = np.searchsorted(query_Q, np.arange(query_Q[-1] + 1))
        anchor_BD = self._rows(group.entity_type(side.other), some.anchor[first_B])
        query_BD = self.model.query(group, side, anchor_BD, torch.from_numpy(some.rel[first_B]))
        ranges = []
        for start in range(0, len(query_Q), _TILE):
            piece = slice(start, start + _TILE)
            truth_QD = self._rows(group.entity_type(side), some.truth[piece])
            truth_QD = self.model.candidates(group, side, truth_QD)
            ranges.append(tie_range(self.model, query_BD[query_Q[piece]], truth_QD))
        low_Q, high_Q = (np.concatenate(pieces) for pieces in zip(*ranges, strict=True))
        asked = Asked(query_Q, low_Q, high_Q, *spans)
        return _Tile(group, side, query_BD, asked, screen.questions(query_BD, asked))

    def _rows(self, entity_type: str, numbers: Numbers) -> Tensor:
        return torch.from_numpy(self.numbering.rows(self.source, entity_type, numbers))

    def _blocks(self, entity_type: str) -> Iterator[Block]:
        chosen = None if self.candidates is None else self.candidates[entity_type]
        size = min(self._rows_that_fit(), max(PADDING, self.memory // (8 * 4 * _TILE)))
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
    """Different queries ready to be scored, and what is asked about them."""

    group: RelationGroup
    side: Side
    query_BD: Tensor
    asked: Asked
    screened: Question | None


class _Open:
    """Pairs that a screen left open, until there are enough to score them together.

    Args:
        model: that scores them.
        counts_Q2: higher and tied so far, to which they are added.
    """

    def __init__(self, model: Model, counts_Q2: IntArray) -> None:
        self._model, self._counts_Q2 = model, counts_Q2
        self._pairs: list[tuple[FloatArray, FloatArray]] = []
        self._asked: list[tuple[Numbers, FloatArray, FloatArray]] = []

    def add(self, first: int, tile: _Tile, ready_ND: Tensor, open_P2: IntArray) -> None:
        """Take pairs of a question of the tile, the first of which is `first`, and a candidate."""
        if len(open_P2) == 0:
            return
        asked, (question_P, column_P) = tile.asked, open_P2.T
        # NumPy gathers a few rows in a fraction of torch's time.
        query_PD = tile.query_BD.numpy()[asked.query_Q[question_P]]
        self._pairs.append((query_PD, ready_ND.numpy()[column_P]))
        self._asked.append((first + question_P, asked.low_Q[question_P], asked.high_Q[question_P]))
        if sum(len(query_PD) for query_PD, _ in self._pairs) >= _TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Score and count them."""
        if not self._pairs:
            return
        pairs = (torch.from_numpy(np.concatenate(rows)) for rows in zip(*self._pairs, strict=True))
        score_P = scores_of_pairs(self._model, *pairs).numpy()
        question_P, low_P, high_P = map(np.concatenate, zip(*self._asked, strict=True))
        above_P = score_P > high_P
        np.add.at(self._counts_Q2[:, 0], question_P[above_P], 1)
        np.add.at(self._counts_Q2[:, 1], question_P[(score_P >= low_P) & ~above_P], 1)
        self._pairs.clear()
        self._asked.clear()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads in which torch uses no further ones for a product."""
    try:
        with ThreadPoolExecutor(
            threads, "rank", initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            yield pool
    finally:
        # They set torch's default for threads to come; the caller's own ones need theirs back.
        torch.set_num_threads(threads)


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
