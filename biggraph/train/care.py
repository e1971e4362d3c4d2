"""How a training loop is to behave: when it commits, when it stops, what it trains as one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Care:
    """Numbers and choices of a training loop.

    Args:
        commit_every: longest time between two commits, in seconds.
        loss_spike: multiple of the untrained loss that counts as divergence, 0 for none.
        together: train all buckets as one, because all tables fit in memory.
        mixed: train the buckets of each state of the plan as one.
    """

    commit_every: float
    loss_spike: float
    together: bool
    mixed: bool = False
