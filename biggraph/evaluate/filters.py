"""Known answers: the entities that must not compete with the true one.

Streams the edges of a graph and keeps what belongs to given questions. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from biggraph.evaluate.numbering import Numbering, Numbers
from biggraph.evaluate.queries import Queries
from biggraph.graph.graph import Graph
from biggraph.types import Bucket, Edges, Side

ReadEdges = Callable[[str, Bucket], Edges]
_KEPT = 64 * 2**20  # bytes of edges


@dataclass(frozen=True)
class Known:
    """For each question, the entities that are known to answer it.

    Questions with the same anchor, relation and side share a row. Each answer is one integer,
    row * limit + number, and all of them stand in one ascending array, so that the answers of a
    row inside a range of numbers are found by bisection.

    Args:
        codes: ascending and distinct, int64, shape [K].
        limit: above every entity's number.
        row: row of each question, int64, shape [Q].
    """

    codes: Numbers
    limit: int
    row: Numbers

    def answers(self, questions: Numbers, start: int, stop: int) -> tuple[Numbers, Numbers]:
        """Return known answers with start <= number < stop, where 0 <= start <= stop <= limit.

        Returns:
            Positions in `questions` and the numbers of the answers, both int64, same shape.
        """
        base = self.row[questions] * self.limit
        first = np.searchsorted(self.codes, base + start)
        count = np.searchsorted(self.codes, base + stop) - first
        position = np.repeat(np.arange(len(questions)), count)
        skipped = np.cumsum(count) - count
        index = np.arange(len(position)) + (first - skipped)[position]
        return position, self.codes[index] - base[position]

    def counts(self, questions: Numbers) -> Numbers:
        """Return the number of known answers of some questions, int64, same shape."""
        first, stop = self.spans(questions)
        return stop - first

    def spans(self, questions: Numbers) -> tuple[Numbers, Numbers]:
        """Return where in `codes` the answers of some questions begin and end, int64, same shape.

        There, `codes` modulo `limit` is ascending.
        """
        base = self.row[questions] * self.limit
        first, stop = np.searchsorted(self.codes, (base, base + self.limit))
        return first, stop


def only_truths(queries: Queries, numbering: Numbering) -> Known:
    """Return what raw ranking leaves out: each question's own answer."""
    row = np.arange(len(queries))
    return Known(row * numbering.limit + queries.truth, numbering.limit, row)


class KeptEdges:
    """Reads buckets, and keeps those that fit 64 MiB for whoever asks again.

    Args:
        read: as `Graph.edges`.
    """

    def __init__(self, read: ReadEdges) -> None:
        self._read, self._room = read, _KEPT
        self._kept: dict[tuple[str, Bucket], Edges] = {}

    def edges(self, split: str, bucket: Bucket) -> Edges:
        """Return the edges of a bucket without their weights; raises as `Graph.edges`."""
        found = self._kept.get((split, bucket))
        if found is None:
            whole = self._read(split, bucket)
            found = Edges(whole.lhs, whole.rel, whole.rhs)
            size = found.lhs.nbytes + found.rel.nbytes + found.rhs.nbytes
            if size <= self._room:
                self._room -= size
                self._kept[split, bucket] = found
        return found


def known_answers(
    graph: Graph, queries: Queries, numbering: Numbering, read: ReadEdges | None = None
) -> Known:
    """Return every answer to the questions that stands in any split of the graph.

    Reads bucket by bucket, by `Graph.edges` or as it is told; memory grows with the answers that
    are found.
    """
    read = read or graph.edges
    limit, relations = numbering.limit, len(graph.schema.relations)

    def code(rel: Numbers, anchor: Numbers, replaces_lhs: int | Numbers) -> Numbers:
        return (replaces_lhs * relations + rel) * limit + anchor

    wanted, row = np.unique(
        code(queries.rel, queries.anchor, queries.replaces_lhs.astype(np.int64)),
        return_inverse=True,
    )
    is_asked = np.zeros(relations, dtype=bool)
    is_asked[queries.rel] = True
    found = [np.empty(0, dtype=np.int64)]
    for bucket, split in _buckets_to_read(graph, queries, numbering):
        edges = read(split, bucket)
        edges = edges.take(is_asked[edges.rel])
        lhs, rhs = numbering.ends(edges, bucket)
        rel = edges.rel.astype(np.int64)
        for replaces_lhs, anchor, answer in ((0, lhs, rhs), (1, rhs, lhs)):
            if replaces_lhs not in queries.replaces_lhs:
                continue
            codes = code(rel, anchor, replaces_lhs)
            place = np.searchsorted(wanted, codes)
            place[place == len(wanted)] = 0
            match = wanted[place] == codes
            found.append(place[match] * limit + answer[match])
    codes = np.sort(np.concatenate(found))  # several times as fast as np.unique
    return Known(codes[np.diff(codes, prepend=-1) != 0], limit, row)


def _buckets_to_read(
    graph: Graph, queries: Queries, numbering: Numbering
) -> Iterator[tuple[Bucket, str]]:
    """Yield the non-empty buckets that can hold an edge of some question's anchor."""
    kept_lhs = _anchor_partitions(queries, numbering, Side.LHS)
    kept_rhs = _anchor_partitions(queries, numbering, Side.RHS)
    for split, buckets in graph.splits.items():
        for bucket in sorted(buckets):
            if bucket.lhs in kept_lhs or bucket.rhs in kept_rhs:
                yield bucket, split


def _anchor_partitions(queries: Queries, numbering: Numbering, kept: Side) -> set[int]:
    """Return the indexes of the partitions that hold anchors at the kept side."""
    at_side = queries.replaces_lhs == (kept is Side.RHS)
    types = np.array([r.entity_type(kept) for r in numbering.schema.relations])
    found: set[int] = set()
    for entity_type in np.unique(types):
        of_type = at_side & (types == entity_type)[queries.rel]
        partition, _ = numbering.places(str(entity_type), queries.anchor[of_type])
        found.update(np.unique(partition).tolist())
    return found
