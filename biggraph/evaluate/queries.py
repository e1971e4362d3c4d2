"""The questions of an evaluation: which entity stands at the replaced side of an edge?

Reads the edges of a split and turns each into two questions. Knows nothing of models or ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import InputError, did_you_mean
from biggraph.evaluate.numbering import Numbering, Numbers
from biggraph.graph.graph import Graph
from biggraph.types import Bucket, IntArray, mix_seed

_EDGES = 1  # purpose of the generator that chooses edges


@dataclass(frozen=True)
class Queries:
    """Questions (anchor, relation, ?) and (?, relation, anchor) with their true answers.

    Args:
        anchor: number of the entity at the kept side, int64, shape [Q].
        rel: relation ids, int64, shape [Q].
        truth: number of the entity at the replaced side, int64, shape [Q].
        replaces_lhs: whether the left end is the replaced side, bool, shape [Q].
    """

    anchor: Numbers
    rel: Numbers
    truth: Numbers
    replaces_lhs: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.anchor)

    def take(self, index: IntArray) -> Queries:
        """Return the questions at these positions."""
        return Queries(
            self.anchor[index], self.rel[index], self.truth[index], self.replaces_lhs[index]
        )


def both_sides(lhs: Numbers, rel: Numbers, rhs: Numbers) -> Queries:
    """Return two questions for each edge: first all that replace rhs, then all that replace lhs."""
    return Queries(
        anchor=np.concatenate((lhs, rhs)),
        rel=np.concatenate((rel, rel)),
        truth=np.concatenate((rhs, lhs)),
        replaces_lhs=np.repeat([False, True], len(lhs)),
    )


def select_queries(
    graph: Graph, numbering: Numbering, split: str, edges: int | None, seed: int
) -> Queries:
    """Return the questions of a split.

    Args:
        graph: where the edges are.
        numbering: of the graph's entities.
        split: name of the split.
        edges: how many edges, drawn without replacement; None or more than there are: all.
        seed: of the draw. It picks positions in the stored order of edges, so the same graph
            directory gives the same edges.

    Raises:
        InputError: the split does not exist or has no edges.
    """
    buckets = _buckets_of(graph, split)
    chosen = _choose(sum(buckets.values()), edges, seed)
    columns: list[tuple[Numbers, Numbers, Numbers]] = []
    start = 0
    for bucket, count in sorted(buckets.items()):
        first, last = (0, count)
        inside: slice | Numbers = slice(None)
        if chosen is not None:
            first, last = np.searchsorted(chosen, (start, start + count))
            inside = chosen[first:last] - start
        if last > first:
            picked = graph.edges(split, bucket).take(inside)
            lhs, rhs = numbering.ends(picked, bucket)
            columns.append((lhs, picked.rel.astype(np.int64), rhs))
        start += count
    lhs, rel, rhs = (np.concatenate(column) for column in zip(*columns, strict=True))
    return both_sides(lhs, rel, rhs)


def _buckets_of(graph: Graph, split: str) -> Mapping[Bucket, int]:
    if split not in graph.splits:
        hint = did_you_mean(split, graph.splits)
        raise InputError(f'{graph.path}: no split "{split}"{hint}')
    buckets = graph.splits[split]
    if sum(buckets.values()) == 0:
        raise InputError(
            f'{graph.path}: split "{split}" has no edges; '
            f"import some with --{split} or --holdout {split}=0.05"
        )
    return buckets


def _choose(total: int, wanted: int | None, seed: int) -> Numbers | None:
    if wanted is None or wanted >= total:
        return None
    if wanted < 1:
        raise InputError(f"edges = {wanted}: expected a number of at least 1")
    generator = np.random.default_rng(mix_seed(seed, _EDGES))
    return np.sort(generator.choice(total, wanted, replace=False, shuffle=False))
