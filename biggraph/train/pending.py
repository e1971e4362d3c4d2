"""What a worker has trained since its last commit, and what that came to.

Knows sums; nothing of tables or files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from biggraph.train.bucket import BucketStats
from biggraph.types import Bucket


@dataclass
class Pending:
    """Work since the last commit.

    Args:
        since: when it began, in seconds of the trainer's clock.
        before: what `Trainer._traffic` counted then.
    """

    since: float
    before: dict[str, float]
    epoch: int = 0
    buckets: list[Bucket] = field(default_factory=list)
    edges: int = 0
    loss_sum: float = 0.0

    def stats(self, now: dict[str, float]) -> dict[str, Any]:
        """Return what a commit reports, given what the trainer has counted by now."""
        traffic = {name: round(now[name] - before, 3) for name, before in self.before.items()}
        return {"loss": self.loss_sum / max(self.edges, 1), "edges": self.edges, **traffic}

    def add(self, epoch: int, buckets: list[Bucket], stats: BucketStats) -> None:
        """Add buckets that were trained as one."""
        self.epoch = epoch
        self.buckets += buckets
        self.edges += stats.edges
        self.loss_sum += stats.loss * stats.edges
