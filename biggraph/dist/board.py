"""Which worker has which buckets of the epoch in training, and which are trained but not committed.

A bucket that a worker has trained is finished for the scheduler at once, so that the worker may
have another; it comes back if the worker is lost before its commit. Answers that were lost on the
way are given again. Knows leases and the scheduler; nothing of logs, messages or time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from biggraph.dist.holder import Holder
from biggraph.dist.protocol import Acquire, Holding
from biggraph.scheduling.scheduler import BucketScheduler, Grant, Wait
from biggraph.storage.state import RunState
from biggraph.types import Bucket, PartitionKey

# Makes the scheduler of the epoch in training.
Schedule = Callable[[RunState], BucketScheduler]
Partitions = frozenset[PartitionKey]


class Board:
    """The epoch in training.

    Args:
        schedule: makes an epoch's scheduler.
        on_epoch: called when an epoch begins, or is gone on with.
    """

    def __init__(self, schedule: Schedule, on_epoch: Callable[[], None]) -> None:
        self._schedule, self._on_epoch = schedule, on_epoch
        self._scheduler: BucketScheduler | None = None

    def ask(self, state: RunState, holder: Holder, request: Acquire) -> Grant | Wait:
        """Return what a worker is to do next; the same again if its bucket is not trained yet."""
        scheduler, worker = self._epoch(state), holder.worker
        if scheduler.running(worker) in request.holding.trained:
            self._finish(scheduler, holder)
        running = scheduler.running(worker)
        if running is not None:
            return Grant(running, holder.evict & scheduler.holds(worker))
        answer = scheduler.acquire(worker, frozenset(request.cached))
        holder.evict = answer.evict
        return answer if isinstance(answer, Grant) else Wait(answer.evict)

    def upcoming(self, holder: Holder, cached: Iterable[PartitionKey]) -> Bucket | None:
        """Return the bucket that the worker will probably have next."""
        scheduler = self._scheduler
        return None if scheduler is None else scheduler.peek(holder.worker, frozenset(cached))

    def adopt(self, state: RunState, holder: Holder, holding: Holding) -> bool:
        """Let a worker have what it says it has; return whether that was possible."""
        running = () if holding.running is None else (holding.running,)
        buckets = (*holding.trained, *running)
        if buckets and holding.epoch != state.epoch + 1:
            return False
        for bucket in buckets:
            scheduler = self._epoch(state)
            if not scheduler.claim(holder.worker, bucket):
                return False
            if bucket != holding.running:
                self._finish(scheduler, holder)
        return True

    def granted(self, holder: Holder, holding: Holding) -> bool:
        """Tell whether a worker has only what it was granted.

        An answer that was on its way when an earlier coordinator ended may have granted it more,
        which others may have been granted since.
        """
        own = set(holder.finished)
        if self._scheduler is not None:
            own.add(self._scheduler.running(holder.worker))  # type: ignore[arg-type]
        return own.issuperset(holding.trained) and holding.running in {None, *own}

    def commit(self, holder: Holder, buckets: Iterable[Bucket]) -> None:
        """Count buckets of a worker for good."""
        scheduler, committed = self._scheduler, set(buckets)
        if scheduler is not None and scheduler.running(holder.worker) in committed:
            self._finish(scheduler, holder)
        holder.finished = tuple(b for b in holder.finished if b not in committed)

    def release(self, holder: Holder, keys: Iterable[PartitionKey]) -> None:
        """Let others have partitions, as far as the worker holds and does not need them."""
        if self._scheduler is None:
            return
        held = self._scheduler.holds(holder.worker)  # it may say so twice
        spare = held.intersection(keys) - self._scheduler.needed(holder.worker)
        self._scheduler.give_back(holder.worker, spare)

    def lose(self, holder: Holder) -> None:
        """Take back everything of a worker that is not committed."""
        if self._scheduler is not None:
            self._scheduler.lost(holder.worker, holder.finished)

    def end(self) -> None:
        """The epoch is over."""
        self._scheduler = None

    def _epoch(self, state: RunState) -> BucketScheduler:
        if self._scheduler is None:
            self._scheduler = self._schedule(state)
            self._on_epoch()
        return self._scheduler

    @staticmethod
    def _finish(scheduler: BucketScheduler, holder: Holder) -> None:
        bucket = scheduler.running(holder.worker)
        assert bucket is not None
        scheduler.finish(holder.worker)
        holder.finished = (*holder.finished, bucket)
