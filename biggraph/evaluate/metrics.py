"""Summaries of ranks: MRR, mean rank, hits at k.

Knows arrays of ranks; nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.types import Side


@dataclass(frozen=True)
class Metrics:
    """Averages over ranks; not a number where there are none.

    Args:
        mrr: mean of 1 / rank.
        mr: mean rank.
        hits_at_1: share of ranks that are at most 1.
        hits_at_3: share of ranks that are at most 3.
        hits_at_10: share of ranks that are at most 10.
        count: number of ranks; an edge ranked on both sides counts twice.
        sides: the same for each replaced side alone; empty in those.
    """

    mrr: float
    mr: float
    hits_at_1: float
    hits_at_3: float
    hits_at_10: float
    count: int
    sides: Mapping[Side, Metrics] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, under the keys of the command line's contract."""
        values: dict[str, Any] = {
            "mrr": self.mrr,
            "mr": self.mr,
            "hits@1": self.hits_at_1,
            "hits@3": self.hits_at_3,
            "hits@10": self.hits_at_10,
            "count": self.count,
        }
        if self.sides:
            values["sides"] = {str(side): metrics.to_dict() for side, metrics in self.sides.items()}
        return values


def summarize(ranks: NDArray[np.float64], replaces_lhs: NDArray[np.bool_]) -> Metrics:
    """Return the metrics of all ranks, and of each replaced side.

    Args:
        ranks: positions from 1, fractions where candidates tie, shape [Q].
        replaces_lhs: whether the left end was replaced, shape [Q].

    >>> metrics = summarize(np.array([1.0, 4.0]), np.array([False, True]))
    >>> metrics.mrr, metrics.hits_at_3, metrics.sides[Side.LHS].mrr
    (0.625, 0.5, 0.25)
    """
    sides = {
        Side.LHS: _averages(ranks[replaces_lhs], {}),
        Side.RHS: _averages(ranks[~replaces_lhs], {}),
    }
    return _averages(ranks, sides)


def _averages(ranks: NDArray[np.float64], sides: Mapping[Side, Metrics]) -> Metrics:
    if len(ranks) == 0:
        nan = float("nan")
        return Metrics(nan, nan, nan, nan, nan, 0, sides)
    return Metrics(
        mrr=float(np.mean(1.0 / ranks)),
        mr=float(np.mean(ranks)),
        hits_at_1=float(np.mean(ranks <= 1)),
        hits_at_3=float(np.mean(ranks <= 3)),
        hits_at_10=float(np.mean(ranks <= 10)),
        count=len(ranks),
        sides=sides,
    )
