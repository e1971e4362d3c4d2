"""The coordinator: who may work, on what, and what counts. A state machine over the run's log.

It answers requests (`protocol`) one at a time and knows the time only as a number that it is told.
What counts is in the log before the answer is given; who holds what is only in memory, so a
coordinator that starts again learns it from the workers: until every lease that the log knows has
said what it has, or has expired, nobody is granted a bucket.

A world of one calls it directly. Knows nothing of sockets, tensors, threads or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from biggraph.dist import course
from biggraph.dist.attic import Attic
from biggraph.dist.board import Board, Schedule
from biggraph.dist.course import Plan
from biggraph.dist.holder import Holder
from biggraph.dist.parameter_server import Parameters
from biggraph.dist.protocol import (
    Acquire,
    AskStatus,
    Committed,
    Diverged,
    Done,
    Evaluated,
    Failed,
    Finished,
    GiveBack,
    Grant,
    Hello,
    Holding,
    Lost,
    Release,
    Renew,
    Reply,
    Request,
    Status,
    Submit,
    Validate,
    Wait,
    Welcome,
)
from biggraph.dist.status import Chronicle, describe
from biggraph.errors import BigGraphError, ConfigError, DivergenceError, FormatError
from biggraph.scheduling import scheduler as scheduling
from biggraph.storage.files import FileRef
from biggraph.storage.place import CommitUnreadable
from biggraph.storage.records import PartitionVersion, Work
from biggraph.storage.run import RunDirectory
from biggraph.storage.state import RunState
from biggraph.types import PartitionKey

_LOOK_S = 5.0  # between two looks whether another coordinator writes the log
_HEAVY = 16  # times the weight of their base that deltas may have between two epochs' ends
_REFUSALS = 3  # commits of one worker that the log refuses in a row: a defect, not an accident


class Coordinator:
    """Serves one run.

    Args:
        run: the writer of its log.
        plan: how far to go.
        schedule: makes an epoch's scheduler.
        fingerprint: of graph and configuration; workers have to have the same.
        ttl: seconds of silence after which a lease expires; infinite in a world of one.
        parameters: of relations, or None where the one worker keeps them.
        chronicle: told what happens, for people and programs.
    """

    def __init__(
        self,
        run: RunDirectory,
        plan: Plan,
        schedule: Schedule,
        *,
        fingerprint: str,
        ttl: float,
        parameters: Parameters | None,
        chronicle: Chronicle,
    ) -> None:
        self._run, self._plan = run, plan
        self._fingerprint, self._ttl = fingerprint, ttl
        self._parameters, self._chronicle = parameters, chronicle
        self._board = Board(schedule, chronicle.begin_epoch)
        self._holders: dict[int, Holder] = {}
        self._changed = {key: run.state.number for key in run.state.heads}
        self._refused: dict[str, int] = {}
        # Alone, nobody else reads what was replaced.
        self._attic = Attic(run, 0.0 if math.isinf(ttl) else ttl)
        self.failure: Failed | None = None  # why the run cannot go on
        self._look = -math.inf
        self.edges = 0  # trained and committed since this coordinator began
        self._answers: dict[type, Callable[[Any, float], Reply]] = {
            Hello: self._hello,
            Acquire: self._acquire,
            Renew: self._renew,
            Submit: self._submit,
            Evaluated: self._evaluated,
            Diverged: self._diverged,
            GiveBack: self._give_back,
            Release: self._leave,
            AskStatus: self._status,
        }

    @property
    def state(self) -> RunState:
        """What the log says."""
        return self._run.state

    @property
    def end(self) -> Finished | None:
        """How the run ended, None while something is left to do."""
        if not course.finished(self.state, self._plan):
            return None
        early = self.state.epoch < self._plan.epochs
        return Finished(self.state.epoch, course.best(self.state, self._plan), early)

    def owner(self, fence: int) -> str | None:
        """Return the worker that has a lease, None where there is no such lease."""
        lease = self.state.leases.get(fence)
        return None if lease is None else lease.worker

    def start(self, now: float) -> None:
        """Take over the leases of the log: each may live for one more `ttl`."""
        for fence, lease in self.state.leases.items():
            self._holders[fence] = Holder(lease.worker, now + self._ttl, known=False)
            if self._parameters:
                self._parameters.begin(fence)
        if self.state.leases:  # else nobody reads what was replaced before this start
            self._attic.put(self._run.garbage(), now)

    def status(self, now: float) -> dict[str, Any]:
        """Return how the run stands, as `status.describe` does."""
        return describe(self.state, self._plan, self._holders, self._chronicle, now)

    def handle(self, request: Request, now: float) -> Reply:
        """Answer one request.

        Raises:
            StorageError: the log could not be written, or another coordinator writes it; this
                one has to end.
        """
        self.tick(now)
        if self.failure is not None and not isinstance(request, AskStatus | Release):
            return self.failure
        return self._answers[type(request)](request, now)

    def tick(self, now: float) -> None:
        """End leases whose time is over; raises as `handle`, also where nobody asks any more."""
        if now >= self._look:
            self._look = now + _LOOK_S
            self._run.require_own()
        for fence, holder in list(self._holders.items()):
            if now >= holder.deadline:
                self._end(fence, f"silent for {self._ttl:g} s")

    def expire_all(self, reason: str) -> None:
        """End every lease, where no worker of theirs can be alive; raises as `handle`."""
        for fence in list(self.state.leases):
            self._end(fence, reason)
        self._run.collect_garbage()

    def _hello(self, hello: Hello, now: float) -> Reply:
        if hello.run != self._fingerprint:
            return Failed(ConfigError.__name__, _OTHER_RUN.format(hello.worker))
        for fence, lease in self.state.leases.items():
            if lease.worker != hello.worker:
                continue
            if lease.incarnation > hello.incarnation:
                return Failed(ConfigError.__name__, _OTHER_START.format(hello.worker))
            if lease.incarnation == hello.incarnation and fence in self._holders:
                return self._welcome(fence)  # said before; the answer was lost
            self._forget(fence)
        fence = self._run.begin_lease(hello.worker, hello.incarnation)
        self._holders[fence] = Holder(hello.worker, now + self._ttl, known=True)
        if self._parameters:
            self._parameters.begin(fence)
        return self._welcome(fence)

    def _welcome(self, fence: int) -> Welcome:
        heads = tuple(self.state.heads.items())
        return Welcome(fence, self._ttl, self.state.rate, heads, self.state.number)

    def _acquire(self, request: Acquire, now: float) -> Reply:
        holder = self._heard(request.fence, request.holding, now)
        if holder is None:
            return _lost(request.fence)
        if holder.validating is None and (end := self.end) is not None:
            return end
        if not all(other.known for other in self._holders.values()):
            return Wait()
        if course.validation_due(self.state, self._plan):
            return self._validate(holder)
        return self._grant(holder, request)

    def _validate(self, holder: Holder) -> Reply:
        epoch = self.state.epoch
        if all(other is holder or other.validating != epoch for other in self._holders.values()):
            holder.validating = epoch
            return Validate(epoch)
        return Wait()

    def _grant(self, holder: Holder, request: Acquire) -> Reply:
        answer = self._board.ask(self.state, holder, request)
        evict = tuple(sorted(answer.evict))
        if not isinstance(answer, scheduling.Grant):
            return Wait(evict)
        return Grant(
            epoch=self.state.epoch + 1,
            bucket=answer.bucket,
            evict=evict,
            heads=self._heads_since(request.known),
            known=self.state.number,
            upcoming=self._board.upcoming(holder, request.cached),
            rate=self.state.rate,
            edges_done=self.state.edges.get(self.state.epoch + 1, 0),
        )

    def _heads_since(self, known: int) -> tuple[tuple[PartitionKey, PartitionVersion], ...]:
        heads = self.state.heads
        return tuple((key, heads[key]) for key, number in self._changed.items() if number > known)

    def _renew(self, request: Renew, now: float) -> Reply:
        holder = self._heard(request.fence, request.holding, now)
        if holder is None:
            went_on = any(ended == request.fence for ended, _ in self.state.ended.values())
            return Done() if went_on else _lost(request.fence)  # a commit overtook it
        holder.edges = request.edges
        return Done()

    def _submit(self, request: Submit, now: float) -> Reply:
        holder = self._holders.get(request.fence)
        if holder is None:
            ended = self.state.ended.get(request.worker)
            repeated = ended is not None and ended[0] == request.fence
            return Committed(ended[1]) if ended and repeated else _lost(request.fence)
        if not self._may_have(holder, request.holding):
            self._end(request.fence, _NOT_ITS_OWN)
            return Lost(_NOT_ITS_OWN)
        replaced = self._replaced_by(request.work)
        try:
            delta = self._parameters.check(request.work) if self._parameters else None
            following = self._run.commit(request.fence, request.work)
        except (FormatError, CommitUnreadable) as error:
            return self._refuse(request, error)
        if self._parameters:
            self._parameters.commit(request.fence, following, delta)
        self._attic.put(replaced, now)
        self._attic.empty(now, self.state)
        self._refused.pop(holder.worker, None)
        holder.deadline = now + self._ttl
        self._count(request, holder, following, now)
        return Committed(following)

    def _count(self, request: Submit, holder: Holder, following: int, now: float) -> None:
        """Remember what a commit changed."""
        work = request.work
        del self._holders[request.fence]
        self._holders[following] = holder
        holder.holding = Holding(work.epoch)
        self._board.commit(holder, work.buckets)
        self._board.release(holder, request.released)
        self._changed |= {head.key: self.state.number for head in work.partitions}
        self.edges += work.edges
        self._chronicle.commit(holder.worker, work)
        if self.state.epoch == work.epoch:
            self._end_epoch(now)
        elif self._parameters and _weight(self.state.deltas) > _HEAVY * _weight(
            [ref for ref in (self.state.relations,) if ref is not None]
        ):
            self._rebase(now)

    def _replaced_by(self, work: Work) -> list[str]:
        """Return the files that the state will no longer name after this work."""
        heads = self.state.heads
        replaced = [heads[head.key].file for head in work.partitions if head.key in heads]
        parameters = self.state.present.parameter_files() if work.relations else ()
        return [ref.path for ref in (*replaced, *parameters)]

    def _rebase(self, now: float) -> None:
        """Write the relation parameters whole, so that no reader has many deltas to add."""
        if self._parameters:
            self._attic.put([ref.path for ref in self.state.present.parameter_files()], now)
            self._parameters.rebase(self._run)

    def _end_epoch(self, now: float) -> None:
        self._board.end()
        self._rebase(now)
        self._run.collect_garbage(self._attic.names)
        self._chronicle.end_epoch(self.state)

    def _refuse(self, request: Submit, error: BigGraphError) -> Reply:
        """End the lease of a worker whose commit cannot be true; it may begin again."""
        refused = self._refused[request.worker] = self._refused.get(request.worker, 0) + 1
        self._end(request.fence, f"refused: {error}")
        if refused >= _REFUSALS:
            self.failure = Failed(FormatError.__name__, str(error))
            return self.failure
        return Lost(str(error))

    def _evaluated(self, request: Evaluated, now: float) -> Reply:
        holder = self._holders.get(request.fence)
        if holder is None:
            return _lost(request.fence)
        holder.deadline = now + self._ttl
        due = course.validation_due(self.state, self._plan)
        if due and holder.validating == request.epoch == self.state.epoch:
            metrics = {**request.metrics, "series": self._plan.series}
            earlier = course.best(self.state, self._plan)
            # The snapshot comes first: a crash in between only repeats the evaluation.
            if earlier is None or metrics[course.METRIC] > earlier[course.METRIC]:
                self._run.snapshot("best")
            self._run.record_evaluation(request.epoch, metrics)
            self._chronicle.evaluation(request.epoch, metrics)
        holder.validating = None
        return Done()

    def _diverged(self, request: Diverged, now: float) -> Reply:
        if request.fence not in self._holders:
            return _lost(request.fence)
        if request.rate > self.state.rate:  # another's divergence has lowered it meanwhile
            self._end(request.fence, f"diverged: {request.reason}")
            return Lost("diverged at a rate that is halved by now")
        slower = course.may_slow_down(self.state, self._plan)
        self._end(request.fence, f"diverged: {request.reason}", 0.5 if slower else 1.0)
        if not slower:
            self.failure = Failed(DivergenceError.__name__, request.reason)
            return self.failure
        self._chronicle.diverged(request.reason, self.state.rate)
        return Lost("diverged; goes back to the last commit at half the learning rate")

    def _give_back(self, request: GiveBack, now: float) -> Reply:
        holder = self._holders.get(request.fence)
        if holder is None:
            return _lost(request.fence)
        self._board.release(holder, request.released)
        return Done()

    def _leave(self, request: Release, now: float) -> Reply:
        if request.fence in self._holders:
            self._end(request.fence, "released")
            if self.end is not None and not self._holders:
                self._run.collect_garbage()  # nobody is left to read what was replaced
        return Done()

    def _status(self, request: AskStatus, now: float) -> Reply:
        return Status(self.status(now))

    def _heard(self, fence: int, holding: Holding, now: float) -> Holder | None:
        """Renew a lease, and learn what it has where that is not known."""
        holder = self._holders.get(fence)
        if holder is None:
            return None
        if not self._may_have(holder, holding):
            self._end(fence, _NOT_ITS_OWN)
            return None
        holder.deadline = now + self._ttl
        holder.holding = holding
        return holder

    def _may_have(self, holder: Holder, holding: Holding) -> bool:
        """Tell whether a worker may have what it says; one that outlived a coordinator keeps it."""
        if holder.known:
            return self._board.granted(holder, holding)
        holder.known = True
        return self._board.adopt(self.state, holder, holding)

    def _end(self, fence: int, reason: str, rate: float = 1.0) -> None:
        lease = self.state.leases[fence]
        self._run.expire(fence, reason, rate)
        self._forget(fence)
        self._chronicle.lease_ended(lease.worker, fence, reason)

    def _forget(self, fence: int) -> None:
        holder = self._holders.pop(fence, None)
        if self._parameters:
            self._parameters.drop(fence)
        if holder is not None:
            self._board.lose(holder)


def _lost(fence: int) -> Lost:
    return Lost(f"the lease with fence {fence} has ended")


_OTHER_RUN = "worker {}: has another run file or graph than the coordinator; give all the same"
_OTHER_START = "worker {0}: another of that name has started later; set BIGGRAPH_WORKER for each"
_NOT_ITS_OWN = "what it has, others have or have done"


def _weight(files: Iterable[FileRef]) -> int:
    return sum(ref.size for ref in files)
