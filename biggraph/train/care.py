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
        epochs: of the plan.
        lr_end: share of the learning rates in its last epoch.
    """

    commit_every: float
    loss_spike: float
    together: bool
    mixed: bool = False
    epochs: int = 1
    lr_end: float = 1.0

    def rate(self, epoch: int) -> float:
        """Return the share of the learning rates in an epoch: 1 in the first, then linear.

        >>> [Care(300.0, 5.0, True, epochs=3, lr_end=0.5).rate(epoch) for epoch in (1, 2, 3)]
        [1.0, 0.75, 0.5]
        """
        if self.epochs < 2:
            return 1.0
        return 1.0 - (1.0 - self.lr_end) * min(1.0, (epoch - 1) / (self.epochs - 1))
