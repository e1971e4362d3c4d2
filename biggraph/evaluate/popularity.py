"""The popularity baseline: a candidate's score is its number of training edges.

Only edges of the question's relation with the candidate at the replaced side count. What any
model must beat. Knows counts of edges; nothing of embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from biggraph.evaluate.filters import Known
from biggraph.evaluate.numbering import Numbering, Numbers
from biggraph.evaluate.queries import Queries
from biggraph.evaluate.ranking import Ranks
from biggraph.graph.graph import Graph
from biggraph.types import Side

_PENDING = 1 << 22  # items collected, or known answers looked up, at once


def rank_by_popularity(
    graph: Graph,
    queries: Queries,
    known: Known,
    numbering: Numbering,
    candidates: Mapping[str, Numbers] | None = None,
) -> Ranks:
    """Rank every question's answer by training counts; see `ranking.Ranker` for the arguments."""
    ranks = Ranks(np.zeros(len(queries), np.int64), np.zeros(len(queries), np.int64))
    codes, counts = _training_counts(graph, numbering)
    kind = _kind(numbering, queries.rel, queries.replaces_lhs.astype(np.int64))
    for value in np.unique(kind):
        questions = np.flatnonzero(kind == value)
        first, last = np.searchsorted(codes, (value, value + numbering.limit))
        numbers = codes[first:last] - value
        entity_type = _replaced_type(numbering, queries, int(questions[0]))
        chosen = None if candidates is None else candidates[entity_type]
        everyone = (
            numbering.schema.entity_type(entity_type).count if chosen is None else len(chosen)
        )
        table = _Counts(numbers, counts[first:last], everyone, chosen)
        for part in _cut_by_answers(questions, known):
            higher, tied = table.compare(part, queries.truth[part], known)
            ranks.higher[part], ranks.tied[part] = higher, tied
    return ranks


@dataclass(frozen=True)
class _Counts:
    """Training edges of one relation by the entity at one side.

    Args:
        numbers: entities with at least one, ascending.
        counts: their training edges.
        everyone: number of candidates, those without training edges included.
        chosen: the candidates' ascending numbers; None: all entities.
    """

    numbers: Numbers
    counts: Numbers
    everyone: int
    chosen: Numbers | None

    def compare(self, questions: Numbers, truth: Numbers, known: Known) -> tuple[Numbers, Numbers]:
        """Return how many competitors have a higher count than the truth, and how many its own."""
        competes = np.ones(len(self.numbers), bool)
        if self.chosen is not None:
            competes = np.isin(self.numbers, self.chosen)
        ordered = np.sort(self.counts[competes])
        score = self._score(truth)
        last = np.searchsorted(ordered, score, side="right")
        higher = len(ordered) - last
        tied = last - np.searchsorted(ordered, score, side="left")
        tied[score == 0] += self.everyone - len(ordered)
        row, number = known.answers(questions, 0, known.limit)
        if self.chosen is not None:
            present = np.isin(number, self.chosen)
            row, number = row[present], number[present]
        answer = self._score(number)
        higher -= np.bincount(row[answer > score[row]], minlength=len(questions))
        tied -= np.bincount(row[answer == score[row]], minlength=len(questions))
        return higher, tied

    def _score(self, numbers: Numbers) -> Numbers:
        if len(self.numbers) == 0:
            return np.zeros(len(numbers), np.int64)
        place = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        return np.where(self.numbers[place] == numbers, self.counts[place], 0)


def _training_counts(graph: Graph, numbering: Numbering) -> tuple[Numbers, Numbers]:
    """Return ascending codes of (side, relation, entity) and their training edges."""
    codes, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    pending: list[Numbers] = []
    for bucket in sorted(graph.splits.get("train", {})):
        edges = graph.edges("train", bucket)
        rel = edges.rel.astype(np.int64)
        lhs, rhs = numbering.ends(edges, bucket)
        pending += [_kind(numbering, rel, 0) + rhs, _kind(numbering, rel, 1) + lhs]
        if sum(map(len, pending)) > max(_PENDING, len(codes)):
            codes, counts = _add(codes, counts, pending)
            pending = []
    return _add(codes, counts, pending)


def _add(codes: Numbers, counts: Numbers, pending: list[Numbers]) -> tuple[Numbers, Numbers]:
    more, times = np.unique(np.concatenate([codes[:0], *pending]), return_counts=True)
    codes, inverse = np.unique(np.concatenate((codes, more)), return_inverse=True)
    total = np.zeros(len(codes), np.int64)
    np.add.at(total, inverse, np.concatenate((counts, times)))
    return codes, total


def _kind(numbering: Numbering, rel: Numbers, replaces_lhs: Numbers | int) -> Numbers:
    """Return the first code of a relation and replaced side; an entity's number is added to it."""
    return (replaces_lhs * len(numbering.schema.relations) + rel) * numbering.limit


def _replaced_type(numbering: Numbering, queries: Queries, question: int) -> str:
    side = Side.LHS if queries.replaces_lhs[question] else Side.RHS
    return numbering.schema.relations[int(queries.rel[question])].entity_type(side)


def _cut_by_answers(questions: Numbers, known: Known) -> Iterator[Numbers]:
    """Cut questions so that each part has a bounded number of known answers."""
    part = np.cumsum(known.counts(questions)) // _PENDING
    yield from np.split(questions, np.flatnonzero(np.diff(part)) + 1)
