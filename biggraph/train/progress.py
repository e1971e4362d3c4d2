"""How far the epoch in training has come, shown to people.

Knows edges and losses; nothing of buckets or commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from biggraph.log import Reporter


class Progress:
    """Edges and loss of the epoch in training: exact after each bucket, roughly right within.

    Args:
        reporter: shows it.
        epochs: of the run.
        total: edges of an epoch.
        clock: seconds that only move forward.
    """

    def __init__(
        self,
        reporter: Reporter,
        epochs: int,
        total: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reporter, self._epochs, self._total = reporter, epochs, total
        self._clock = clock
        self._epoch, self._began = 0, clock()
        self._before = self._finished = self._shown = 0

    @property
    def running(self) -> int:
        """Edges trained of the bucket in training."""
        return self._shown - self._finished

    def begin(self, epoch: int, done: int) -> bool:
        """Begin a bucket, and tell whether it is the first of its epoch here.

        Args:
            epoch: that it belongs to.
            done: edges of that epoch that are committed.
        """
        if epoch == self._epoch:
            return False
        self._epoch, self._began = epoch, self._clock()
        self._before, self._finished, self._shown = done, 0, 0
        return True

    def batch(self, edges: int, loss: float) -> None:
        """Show one more batch; a count that two threads lose between them is mended by `finish`."""
        self._shown += edges
        rate = self._shown / max(self._clock() - self._began, 1e-9)
        note = f"{rate:,.0f} edges/s  loss {loss:.4f}"
        name = f"epoch {self._epoch}/{self._epochs}"
        self._reporter.advance(name, self._before + self._shown, self._total, note)

    def finish(self, edges: int) -> None:
        """End a bucket of so many edges."""
        self._finished += edges
        self._shown = self._finished

    def validation(self, done: int, total: int) -> None:
        """Show how far a validation has come."""
        self._reporter.advance("validation", done, total)
