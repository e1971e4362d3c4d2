"""What the records of a log hold: one frozen class for each kind, to and from values of JSON.

Knows shapes and types, not what a record means for a run (`state.RunState.apply` does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer, TypeAdapter, ValidationError

from biggraph.errors import FormatError
from biggraph.schema import GraphSchema
from biggraph.storage.files import FileRef
from biggraph.storage.log import Record
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
        shared: entity types whose only partition several workers train at the same time; their
            tables are kept with the relation parameters.
        half: embeddings are float16 in files; in memory they are float32.
    """

    schema: GraphSchema
    graph: str
    dimension: Natural
    row_wise: bool
    init_scale: float
    seed: int
    buckets: BucketEdges
    shared: tuple[str, ...] = ()
    half: bool = False

    def shape(self, key: PartitionKey) -> tuple[int, int]:
        """Return (count, D) of a partition's rows."""
        return self.schema.count(key), self.dimension

    def table_bytes(self, key: PartitionKey) -> int:
        """Return the bytes of a partition's rows and optimizer state in memory."""
        count, dimension = self.shape(key)
        return count * 4 * (dimension + (1 if self.row_wise else dimension))

    def file_bytes(self, key: PartitionKey) -> int:
        """Return the bytes of a partition's rows and optimizer state in a file."""
        count, dimension = self.shape(key)
        return self.table_bytes(key) - (2 * count * dimension if self.half else 0)

    def locked(self, bucket: Bucket) -> frozenset[PartitionKey]:
        """Return the partitions that a worker has for itself while it trains a bucket."""
        keys = self.schema.partitions_of(bucket)
        return frozenset(key for key in keys if key.entity_type not in self.shared)

    def shared_keys(self) -> tuple[PartitionKey, ...]:
        """Return the partition of each shared entity type."""
        return tuple(PartitionKey(name, 0) for name in self.shared)


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
    """Record kind "config": the run goes on with another configuration.

    Args:
        config: as JSON.
        rate: multiplies its learning rates.
    """

    config: str
    rate: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, slots=True)
class Resumed:
    """Record kind "resumed": another process writes the log, with fences above this one."""

    fence: Natural


@dataclass(frozen=True, slots=True)
class Lease:
    """Record kind "lease": a worker begins to work under this fence; an earlier lease of it ends.

    Args:
        fence: above every fence before.
        worker: its name.
        incarnation: which start of that worker, rising.
    """

    fence: Natural
    worker: str
    incarnation: Natural


@dataclass(frozen=True, slots=True)
class Expired:
    """Record kind "expired": a lease ends, and what was done under it never happened.

    Args:
        fence: of the lease.
        reason: in words.
        rate: what the learning rates are multiplied with from here on.
    """

    fence: Natural
    reason: str
    rate: Annotated[float, Field(gt=0, le=1)] = 1.0


@dataclass(frozen=True, slots=True)
class Based:
    """Record kind "relations": a file of the relation parameters with every delta so far."""

    fence: Natural
    relations: FileRef


@dataclass(frozen=True, slots=True)
class Work:
    """Buckets that were trained, and what came of them.

    Args:
        epoch: from 1.
        buckets: in training order.
        partitions: every partition that they changed.
        relations: the relation parameters as they are now, or None.
        delta: what is to be added to the relation parameters, or None.
        edges: in these buckets.
        stats: values of JSON.
    """

    epoch: Natural
    buckets: tuple[Bucket, ...]
    partitions: tuple[Head, ...]
    relations: FileRef | None
    delta: FileRef | None
    edges: Natural
    stats: dict[str, Any]

    def files(self) -> list[FileRef]:
        """Return every file of this work."""
        parameters = [ref for ref in (self.relations, self.delta) if ref is not None]
        return parameters + [head.saved.file for head in self.partitions]


@dataclass(frozen=True, slots=True)
class Commit:
    """Record kind "commit": this work counts; its lease ends, its worker goes on under `next`."""

    fence: Natural
    next: Natural
    work: Work


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Record kind "evaluation": metrics after so many epochs."""

    epoch: Natural
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Named:
    """Record kind "snapshot": the present state is kept under a name; the name may move."""

    name: str


def load_body(record: Record) -> Any:
    """Return the body of a record as the class of its kind.

    Raises:
        FormatError: unknown kind or malformed body; names the record.
    """
    if record.kind not in _KINDS:
        raise refused(record, f'unknown kind "{record.kind}"; use the biggraph that wrote it')
    try:
        return _KINDS[record.kind].validate_python(record.body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise refused(record, f"malformed {record.kind}: {where}: {first['msg']}") from None


def dump_body(kind: str, body: object) -> dict[str, Any]:
    """Return the body of a record as values of JSON."""
    dumped: dict[str, Any] = _KINDS[kind].dump_python(body, mode="json")
    return dumped


def refused(record: Record, reason: str) -> FormatError:
    """Return the error that says why a record cannot be true."""
    return FormatError(f"log record {record.number}: {reason}")


_KINDS: dict[str, TypeAdapter[Any]] = {
    "init": TypeAdapter(Init),
    "config": TypeAdapter(Reconfigured),
    "resumed": TypeAdapter(Resumed),
    "lease": TypeAdapter(Lease),
    "expired": TypeAdapter(Expired),
    "relations": TypeAdapter(Based),
    "commit": TypeAdapter(Commit),
    "evaluation": TypeAdapter(Evaluation),
    "snapshot": TypeAdapter(Named),
}
