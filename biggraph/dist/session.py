"""A worker's side of the protocol: its lease, and what it has under it.

The same object serves a worker beside the coordinator and one far away; only `call` differs. Other
threads may renew the lease meanwhile. Knows nothing of tables, training or sockets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from biggraph import errors
from biggraph.dist.protocol import (
    Acquire,
    Committed,
    Diverged,
    Done,
    Evaluated,
    Failed,
    Finished,
    GiveBack,
    Grant,
    Heads,
    Hello,
    Holding,
    Lost,
    Release,
    Renew,
    Reply,
    Request,
    Submit,
    Validate,
    Wait,
    Welcome,
)
from biggraph.storage.records import PartitionVersion, Work
from biggraph.types import Bucket, PartitionKey

# Sends a request and returns its answer, however long that takes.
Call = Callable[[Request], Reply]
Task = Grant | Validate | Wait | Finished


class LeaseLostError(Exception):
    """The lease has ended: what was not committed never happened; begin again."""


class Session:
    """One worker's conversation with the coordinator.

    Args:
        call: sends a request.
        worker: the worker's name, the same after every start.
        incarnation: above that of every earlier start.
        fingerprint: of graph and configuration.
        needs: partitions that each bucket locks.
    """

    def __init__(
        self,
        call: Call,
        worker: str,
        incarnation: int,
        fingerprint: str,
        needs: Mapping[Bucket, frozenset[PartitionKey]],
    ) -> None:
        self._call, self._worker, self._incarnation = call, worker, incarnation
        self._fingerprint, self._needs = fingerprint, needs
        # One request at a time, until its answer is taken in: a renewal that said what is no
        # longer so would mislead a coordinator that has just started.
        self._turn = threading.Lock()
        self.fence = 0
        self.ttl_s = float("inf")
        self.rate = 1.0
        self.failed = False  # whether the coordinator has said that the run has
        self.heads: dict[PartitionKey, PartitionVersion] = {}
        self._known = 0
        self._holding = Holding()

    @property
    def held(self) -> frozenset[PartitionKey]:
        """Partitions that no other worker has: their newest tables are here."""
        return frozenset(self._holding.held)

    @property
    def epoch(self) -> int:
        """The epoch of the buckets under this lease."""
        return self._holding.epoch

    @property
    def trained(self) -> tuple[Bucket, ...]:
        """Buckets trained since the last commit."""
        return self._holding.trained

    def begin(self) -> None:
        """Get a lease; what was done under an earlier one is given up.

        Raises:
            BigGraphError: the coordinator refuses this worker, or the run has failed.
        """
        with self._turn:
            self._incarnation += 1
            hello = Hello(self._worker, self._incarnation, self._fingerprint)
            welcome = self._expect(hello, Welcome)
            self.fence, self.ttl_s, self.rate = welcome.fence, welcome.ttl_s, welcome.rate
            self.heads, self._known = dict(welcome.heads), welcome.known
            self._holding = Holding()

    def acquire(self, cached: Iterable[PartitionKey] = ()) -> tuple[Task, frozenset[PartitionKey]]:
        """Ask what to do next.

        Args:
            cached: partitions whose tables in memory are those of `heads`, held or not.

        Returns:
            What to do, and the partitions that others have changed since the last call.

        Raises:
            LeaseLostError: the lease has ended.
            BigGraphError: the run has failed.
        """
        with self._turn:
            request = Acquire(self.fence, self._holding, tuple(cached), self._known)
            answer: Task = self._expect(request, Grant, Validate, Wait, Finished)
            if not isinstance(answer, Grant):
                return answer, frozenset()
            changed = self._learn(answer.heads)
            self._known = answer.known
            before = self._holding
            # An epoch begins with nothing held: all of the last one is committed.
            kept = self.held - changed if answer.epoch == before.epoch else frozenset()
            held = tuple(sorted(kept | self._needs[answer.bucket]))
            self._holding = Holding(answer.epoch, before.trained, answer.bucket, held)
            return answer, changed

    def finish(self, buckets: Iterable[Bucket]) -> None:
        """Count buckets as trained, though not committed."""
        with self._turn:
            before = self._holding
            self._holding = Holding(before.epoch, (*before.trained, *buckets), None, before.held)

    def commit(self, work: Work, released: Iterable[PartitionKey] = ()) -> None:
        """Make work count, and give back partitions; the lease goes on with another fence.

        Raises:
            LeaseLostError: the lease has ended, the work does not count.
            BigGraphError: the run has failed.
        """
        released = tuple(released)
        with self._turn:
            before = self._holding
            request = Submit(self._worker, self.fence, before, work, released)
            committed = self._expect(request, Committed)
            left = tuple(b for b in before.trained if b not in set(work.buckets))
            self._holding = Holding(before.epoch, left, before.running, before.held)
            self.fence = committed.next
            self.heads |= {head.key: head.saved for head in work.partitions}
            self._let_go(released)

    def give_back(self, partitions: Iterable[PartitionKey]) -> None:
        """Let others have partitions in which nothing is uncommitted; raises as `acquire`."""
        released = tuple(partitions)
        with self._turn:
            self._let_go(released)
            self._expect(GiveBack(self.fence, released), Done)

    def renew(self, edges: int) -> None:
        """Say that this worker is alive, from any thread; raises as `acquire`."""
        with self._turn:
            self._expect(Renew(self.fence, self._holding, edges), Done)

    def evaluated(self, epoch: int, metrics: Mapping[str, object]) -> None:
        """Report the metrics of a validation; raises as `acquire`."""
        self._expect(Evaluated(self.fence, epoch, dict(metrics)), Done)

    def diverged(self, reason: str) -> None:
        """Report that training diverged; always raises: LeaseLostError if it may go on."""
        self._expect(Diverged(self.fence, reason, self.rate))

    def release(self) -> None:
        """End the lease."""
        self._ask(Release(self.fence))

    def _learn(self, heads: Heads) -> frozenset[PartitionKey]:
        changed = {key: saved for key, saved in heads if self.heads.get(key) != saved}
        self.heads |= changed
        return frozenset(changed)

    def _let_go(self, keys: Iterable[PartitionKey]) -> None:
        before = self._holding
        held = tuple(key for key in before.held if key not in set(keys))
        self._holding = Holding(before.epoch, before.trained, before.running, held)

    def _expect(self, request: Request, *kinds: type) -> Any:
        answer = self._ask(request)
        if isinstance(answer, Lost):
            raise LeaseLostError(answer.reason)
        assert isinstance(answer, kinds), f"{request} was answered with {answer}"
        return answer

    def _ask(self, request: Request) -> Reply:
        answer = self._call(request)
        if isinstance(answer, Failed):
            self.failed = True
            raise getattr(errors, answer.kind, errors.BigGraphError)(answer.message)
        return answer
