"""What the log of a run says: its records, and the state that follows from replaying them.

`RunState.apply` is a pure function and the only place where the meaning of a record is decided.
It refuses whatever would count work twice, lose it, or fork a partition, so a writer that checks
a record against it before writing cannot damage a run. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError

from biggraph.errors import FormatError
from biggraph.schema import GraphSchema
from biggraph.storage.files import FileRef
from biggraph.storage.log import Record
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket, PartitionKey

Natural = Annotated[int, Field(ge=0)]
BucketEdges = Annotated[
    dict[Bucket, int],  # in JSON a list of [lhs, rhs, edges]
    BeforeValidator(lambda v: v if isinstance(v, dict) else {Bucket(i, j): n for i, j, n in v}),
    PlainSerializer(lambda buckets: [[*bucket, n] for bucket, n in buckets.items()]),
]


@dataclass(frozen=True, slots=True)
class InitFacts:
    """What never changes during a run.

    Args:
        schema: entity types with their partition sizes, relations.
        graph: fingerprint of the graph.
        dimension: floats in an embedding.
        row_wise: one float of optimizer state a row instead of one a coordinate.
        init_scale: standard deviation of initial embeddings.
        seed: of the run; initial tables follow from it.
        buckets: every non-empty bucket of the train split and its number of edges.
    """

    schema: GraphSchema
    graph: str
    dimension: Natural
    row_wise: bool
    init_scale: float
    seed: int
    buckets: BucketEdges

    def shape(self, key: PartitionKey) -> tuple[int, int]:
        """Return (count, D) of a partition's rows."""
        return self.schema.count(key), self.dimension


@dataclass(frozen=True, slots=True)
class PartitionVersion:
    """One saved state of one partition.

    Args:
        version: counts up; 0 is the initial table, which has no file.
        file: where it is.
        chain: which buckets trained it, see `table.advance_chain`.
    """

    version: Natural
    file: FileRef
    chain: str


@dataclass(frozen=True, slots=True)
class Head:
    """A partition moved from version `base` to a new one."""

    key: PartitionKey
    base: Natural
    saved: PartitionVersion


@dataclass(frozen=True, slots=True)
class Init:
    """Record kind "init": the run begins."""

    facts: InitFacts
    config: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """Record kind "config": the run goes on with another configuration."""

    config: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """Record kind "resumed": another process writes from here on, with fences above this one."""

    fence: Natural


@dataclass(frozen=True, slots=True)
class Commit:
    """Record kind "commit": these buckets are trained, and this is what came of them."""

    fence: Natural
    epoch: Natural
    buckets: tuple[Bucket, ...]
    partitions: tuple[Head, ...]
    relations: FileRef
    edges: Natural
    stats: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Record kind "evaluation": metrics after so many epochs."""

    epoch: Natural
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """Record kind "snapshot": the present state is kept under a name; the name may move."""

    name: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that is kept.

    Args:
        number: of the log record that named it.
        epoch: epochs completed.
        heads: newest version of each partition that was ever trained.
        relations: the relation parameters.
    """

    number: int
    epoch: int
    heads: Mapping[PartitionKey, PartitionVersion]
    relations: FileRef | None


@dataclass(frozen=True)
class RunState:
    """What a run has come to.

    Args:
        facts: what never changes.
        config: the configuration as JSON.
        number: of the next log record.
        fence: the highest that a commit or a start has used.
        epoch: epochs completed; the one in training is `epoch + 1`.
        done: buckets of the epoch in training that are committed, in training order.
        heads: newest committed version of each partition that was ever trained.
        relations: newest committed relation parameters.
        edges: edges trained in each epoch, from epoch 1.
        stats: what each commit reported, by epoch.
        evaluations: in order.
        snapshots: kept states by name.
    """

    facts: InitFacts
    config: str
    number: int = 1
    fence: int = 0
    epoch: int = 0
    done: tuple[Bucket, ...] = ()
    heads: Mapping[PartitionKey, PartitionVersion] = field(default_factory=dict)
    relations: FileRef | None = None
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
            raise _refused(record, f"expected number {self.number}")
        body = load_body(record)
        if isinstance(body, Init):
            raise _refused(record, "the run has begun already")
        return replace(_APPLY[type(body)](self, body, record), number=self.number + 1)

    def files(self) -> set[FileRef]:
        """Return every file that the present state or a snapshot names."""
        kept = [(self.heads, self.relations)]
        kept += [(s.heads, s.relations) for s in self.snapshots.values()]
        heads = {saved.file for heads, _ in kept for saved in heads.values()}
        return heads | {relations for _, relations in kept if relations is not None}


def load_body(record: Record) -> Any:
    """Return the body of a record as the class of its kind.

    Raises:
        FormatError: unknown kind or malformed body; names the record.
    """
    if record.kind not in _KINDS:
        raise _refused(record, f'unknown kind "{record.kind}"; use the biggraph that wrote it')
    try:
        return _KINDS[record.kind].validate_python(record.body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise _refused(record, f"malformed {record.kind}: {where}: {first['msg']}") from None


def dump_body(kind: str, body: object) -> dict[str, Any]:
    """Return the body of a record as values of JSON."""
    dumped: dict[str, Any] = _KINDS[kind].dump_python(body, mode="json")
    return dumped


def _apply_commit(state: RunState, commit: Commit, record: Record) -> RunState:
    _check_progress(state, commit, record)
    heads = dict(state.heads)
    for head in commit.partitions:
        before = heads.get(head.key)
        if head.base != (before.version if before else 0) or head.saved.version <= head.base:
            raise _refused(record, f"partition {head.key} does not follow its last version")
        heads[head.key] = head.saved
    _check_chains(state, heads, commit, record)
    _check_edges(state, commit, record)
    done, epoch = (*state.done, *commit.buckets), commit.epoch
    if len(done) == len(state.facts.buckets):
        done, completed = (), epoch
    else:
        completed = state.epoch
    return replace(
        state,
        fence=commit.fence,
        epoch=completed,
        done=done,
        heads=heads,
        relations=commit.relations,
        edges={**state.edges, epoch: state.edges.get(epoch, 0) + commit.edges},
        stats={**state.stats, epoch: (*state.stats.get(epoch, ()), commit.stats)},
    )


def _check_progress(state: RunState, commit: Commit, record: Record) -> None:
    _check_fence(state, commit.fence, record)
    if commit.epoch != state.epoch + 1:
        raise _refused(record, f"epoch {commit.epoch} while epoch {state.epoch + 1} is in training")
    seen = set(state.done)
    for bucket in commit.buckets:
        if bucket not in state.facts.buckets:
            raise _refused(record, f"bucket {bucket} is not one of the graph's")
        if bucket in seen:
            raise _refused(record, f"bucket {bucket} of epoch {commit.epoch} was committed before")
        seen.add(bucket)


def _check_chains(
    state: RunState,
    heads: Mapping[PartitionKey, PartitionVersion],
    commit: Commit,
    record: Record,
) -> None:
    """Require that each partition's chain says it was trained on exactly the buckets so far."""
    chains = {key: saved.chain for key, saved in state.heads.items()}
    for bucket in commit.buckets:
        for key in state.facts.schema.partitions_of(bucket):
            chains[key] = advance_chain(chains.get(key) or new_chain(key), commit.epoch, bucket)
    chains |= {h.key: new_chain(h.key) for h in commit.partitions if h.key not in chains}
    for key, chain in chains.items():
        if key not in heads or heads[key].chain != chain:
            raise _refused(
                record, f"partition {key} was not trained on exactly the buckets committed"
            )


def _check_edges(state: RunState, commit: Commit, record: Record) -> None:
    expected = sum(state.facts.buckets[bucket] for bucket in commit.buckets)
    if commit.edges != expected:
        raise _refused(record, f"{commit.edges:,} edges trained, its buckets have {expected:,}")


def _apply_resumed(state: RunState, resumed: Resumed, record: Record) -> RunState:
    _check_fence(state, resumed.fence, record)
    return replace(state, fence=resumed.fence)


def _check_fence(state: RunState, fence: int, record: Record) -> None:
    if fence <= state.fence:
        raise _refused(record, f"fence {fence} is not above {state.fence}")


def _apply_evaluation(state: RunState, evaluation: Evaluation, record: Record) -> RunState:
    return replace(state, evaluations=(*state.evaluations, evaluation))


def _apply_snapshot(state: RunState, named: Named, record: Record) -> RunState:
    kept = Snapshot(record.number, state.epoch, state.heads, state.relations)
    return replace(state, snapshots={**state.snapshots, named.name: kept})


def _apply_config(state: RunState, body: Reconfigured, record: Record) -> RunState:
    return replace(state, config=body.config)


def _refused(record: Record, reason: str) -> FormatError:
    return FormatError(f"log record {record.number}: {reason}")


_KINDS: dict[str, TypeAdapter[Any]] = {
    "init": TypeAdapter(Init),
    "config": TypeAdapter(Reconfigured),
    "resumed": TypeAdapter(Resumed),
    "commit": TypeAdapter(Commit),
    "evaluation": TypeAdapter(Evaluation),
    "snapshot": TypeAdapter(Named),
}

_APPLY: dict[type, Callable[[RunState, Any, Record], RunState]] = {
    Reconfigured: _apply_config,
    Resumed: _apply_resumed,
    Commit: _apply_commit,
    Evaluation: _apply_evaluation,
    Named: _apply_snapshot,
}
