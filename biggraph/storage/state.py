"""What the log of a run comes to: the state that follows from replaying its records.

`RunState.apply` is a pure function and the only place where the meaning of a record is decided.
It refuses whatever would count work twice, lose it, or fork a partition, so a writer that checks
a record against it before writing cannot damage a run. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from biggraph.errors import FormatError
from biggraph.storage import store
from biggraph.storage.files import FileRef
from biggraph.storage.grown import Grown
from biggraph.storage.log import Record
from biggraph.storage.records import (
    Based,
    Commit,
    Evaluation,
    Expired,
    Init,
    InitFacts,
    Lease,
    Named,
    PartitionVersion,
    Reconfigured,
    Resumed,
    Work,
    load_body,
    refused,
)
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket, PartitionKey


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that is kept.

    Args:
        number: of the log record that named it.
        epoch: epochs completed.
        heads: newest version of each partition that was ever trained.
        relations: the relation parameters.
        deltas: to be added to them, in this order.
    """

    number: int
    epoch: int
    heads: Mapping[PartitionKey, PartitionVersion]
    relations: FileRef | None
    deltas: tuple[FileRef, ...]

    def parameter_files(self) -> tuple[FileRef, ...]:
        """Return the files of the relation parameters."""
        return self.deltas if self.relations is None else (self.relations, *self.deltas)

    def files(self) -> set[FileRef]:
        """Return every file of this state."""
        return {saved.file for saved in self.heads.values()} | set(self.parameter_files())


@dataclass(frozen=True)
class RunState:
    """What a run has come to.

    Args:
        facts: what never changes.
        config: the configuration as JSON.
        number: of the next log record.
        fence: the highest ever used.
        leases: by fence.
        ended: the fence of each worker's last commit, and that of the lease that followed it.
        rate: multiplies the learning rates of the run file.
        epoch: epochs completed; the one in training is `epoch + 1`.
        done: buckets of the epoch in training that are committed, in training order.
        heads: newest committed version of each partition that was ever trained.
        relations: newest file of the relation parameters.
        deltas: committed since, to be added to them in this order.
        edges: edges trained in each epoch, from epoch 1.
        stats: what each commit reported, by epoch.
        evaluations: in order.
        snapshots: kept states by name.
    """

    facts: InitFacts
    config: str
    number: int = 1
    fence: int = 0
    leases: Mapping[int, Lease] = field(default_factory=dict)
    ended: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rate: float = 1.0
    epoch: int = 0
    done: Grown[Bucket] = field(default_factory=Grown)
    heads: Mapping[PartitionKey, PartitionVersion] = field(default_factory=dict)
    relations: FileRef | None = None
    deltas: tuple[FileRef, ...] = ()
    edges: Mapping[int, int] = field(default_factory=dict)
    stats: Mapping[int, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)

    @staticmethod
    def replay(records: Iterable[Record]) -> RunState:
        """Return the state after these records.

        Raises:
            FormatError: a record cannot be true after those before it; names the record.
        """
        state: RunState | None = None
        for record in records:
            state = RunState.begin(record) if state is None else state.apply(record)
        if state is None:
            raise FormatError("the log is empty")
        return state

    @staticmethod
    def begin(record: Record) -> RunState:
        """Return the state after the first record; raises as `replay`."""
        init = load_body(record)
        if not isinstance(init, Init):
            raise FormatError(f'log record {record.number}: is "{record.kind}", expected "init"')
        return RunState(init.facts, init.config)

    def apply(self, record: Record) -> RunState:
        """Return the state after one more record; raises as `replay`."""
        if record.number != self.number:
            raise refused(record, f"expected number {self.number}")
        body = load_body(record)
        if isinstance(body, Init):
            raise refused(record, "the run has begun already")
        return replace(_APPLY[type(body)](self, body, record), number=self.number + 1)

    @property
    def present(self) -> Snapshot:
        """The state of the last commit, as a snapshot would keep it."""
        return Snapshot(self.number - 1, self.epoch, self.heads, self.relations, self.deltas)

    def files(self) -> set[FileRef]:
        """Return every file that the present state or a snapshot names."""
        kept = (self.present, *self.snapshots.values())
        return set().union(*(snapshot.files() for snapshot in kept))


def _apply_commit(state: RunState, commit: Commit, record: Record) -> RunState:
    work = commit.work
    lease = _check_live(state, commit.fence, record)
    _check_fence(state, commit.next, record)
    _check_progress(state, work, record)
    heads = dict(state.heads)
    for head in work.partitions:
        if head.key.entity_type in state.facts.shared:
            raise refused(record, f"partition {head.key} is kept with the relation parameters")
        before = heads.get(head.key)
        if head.base != (before.version if before else 0) or head.saved.version <= head.base:
            raise refused(record, f"partition {head.key} does not follow its last version")
        heads[head.key] = head.saved
    _check_chains(state, heads, work, record)
    _check_edges(state, work, record)
    _check_names(commit, record)
    done, epoch, completed = state.done.plus(work.buckets), work.epoch, state.epoch
    if len(done) == len(state.facts.buckets):
        done, completed = Grown[Bucket](), epoch
    deltas = state.deltas if work.relations is None else ()
    return replace(
        state,
        fence=commit.next,
        leases=_without(state, commit.fence) | {commit.next: replace(lease, fence=commit.next)},
        ended={**state.ended, lease.worker: (commit.fence, commit.next)},
        epoch=completed,
        done=done,
        heads=heads,
        relations=work.relations or state.relations,
        deltas=deltas if work.delta is None else (*deltas, work.delta),
        edges={**state.edges, epoch: state.edges.get(epoch, 0) + work.edges},
        stats={**state.stats, epoch: (*state.stats.get(epoch, ()), work.stats)},
    )


def _check_progress(state: RunState, work: Work, record: Record) -> None:
    if work.epoch != state.epoch + 1:
        raise refused(record, f"epoch {work.epoch} while epoch {state.epoch + 1} is in training")
    seen = set[Bucket]()
    for bucket in work.buckets:
        if bucket not in state.facts.buckets:
            raise refused(record, f"bucket {bucket} is not one of the graph's")
        if bucket in seen or bucket in state.done:
            raise refused(record, f"bucket {bucket} of epoch {work.epoch} was committed before")
        seen.add(bucket)
    if work.delta and work.relations is None and state.relations is None:
        raise refused(record, "its delta has no relation parameters to be added to")


def _check_names(commit: Commit, record: Record) -> None:
    """Require that a commit names files of its own, so that it can make no other one disappear."""
    work = commit.work
    for head in work.partitions:
        expected = store.partition_path(head.key, head.saved.version, commit.fence)
        if head.saved.file.path != expected:
            raise refused(record, f"partition {head.key} is in {head.saved.file.path!r}")
    for ref in (work.relations, work.delta):
        if ref is not None and ref.path != store.parameters_path(commit.fence):
            raise refused(record, f"its relation parameters are in {ref.path!r}")


def _check_chains(
    state: RunState,
    heads: Mapping[PartitionKey, PartitionVersion],
    work: Work,
    record: Record,
) -> None:
    """Require that each partition's chain says it was trained on exactly the buckets so far."""
    chains = {key: saved.chain for key, saved in state.heads.items()}
    for bucket in work.buckets:
        for key in state.facts.locked(bucket):
            chains[key] = advance_chain(chains.get(key) or new_chain(key), work.epoch, bucket)
    chains |= {h.key: new_chain(h.key) for h in work.partitions if h.key not in chains}
    for key, chain in chains.items():
        if key not in heads or heads[key].chain != chain:
            raise refused(
                record, f"partition {key} was not trained on exactly the buckets committed"
            )


def _check_edges(state: RunState, work: Work, record: Record) -> None:
    expected = sum(state.facts.buckets[bucket] for bucket in work.buckets)
    if work.edges != expected:
        raise refused(record, f"{work.edges:,} edges trained, its buckets have {expected:,}")


def _apply_resumed(state: RunState, resumed: Resumed, record: Record) -> RunState:
    _check_fence(state, resumed.fence, record)
    return replace(state, fence=resumed.fence)


def _apply_lease(state: RunState, lease: Lease, record: Record) -> RunState:
    _check_fence(state, lease.fence, record)
    others = {f: other for f, other in state.leases.items() if other.worker != lease.worker}
    return replace(state, fence=lease.fence, leases=others | {lease.fence: lease})


def _apply_expired(state: RunState, expired: Expired, record: Record) -> RunState:
    _check_live(state, expired.fence, record)
    left = _without(state, expired.fence)
    return replace(state, leases=left, rate=state.rate * expired.rate)


def _apply_based(state: RunState, based: Based, record: Record) -> RunState:
    _check_fence(state, based.fence, record)
    return replace(state, fence=based.fence, relations=based.relations, deltas=())


def _check_fence(state: RunState, fence: int, record: Record) -> None:
    if fence <= state.fence:
        raise refused(record, f"fence {fence} is not above {state.fence}")


def _check_live(state: RunState, fence: int, record: Record) -> Lease:
    if fence not in state.leases:
        raise refused(record, f"fence {fence} is not that of a live lease")
    return state.leases[fence]


def _without(state: RunState, fence: int) -> dict[int, Lease]:
    return {other: lease for other, lease in state.leases.items() if other != fence}


def _apply_evaluation(state: RunState, evaluation: Evaluation, record: Record) -> RunState:
    return replace(state, evaluations=(*state.evaluations, evaluation))


def _apply_snapshot(state: RunState, named: Named, record: Record) -> RunState:
    kept = replace(state.present, number=record.number)
    return replace(state, snapshots={**state.snapshots, named.name: kept})


def _apply_config(state: RunState, body: Reconfigured, record: Record) -> RunState:
    return replace(state, config=body.config, rate=body.rate)


_APPLY: dict[type, Callable[[RunState, Any, Record], RunState]] = {
    Reconfigured: _apply_config,
    Resumed: _apply_resumed,
    Lease: _apply_lease,
    Expired: _apply_expired,
    Based: _apply_based,
    Commit: _apply_commit,
    Evaluation: _apply_evaluation,
    Named: _apply_snapshot,
}
