"""What workers and the coordinator say to each other: one frozen class for each message.

Every request may be repeated: the coordinator answers a repeated one as it did the first time.
Knows nothing of how messages travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from biggraph.errors import FormatError
from biggraph.storage.records import Natural, PartitionVersion, Work
from biggraph.types import Bucket, PartitionKey

Heads = tuple[tuple[PartitionKey, PartitionVersion], ...]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a worker has under its lease.

    Args:
        epoch: of the buckets.
        trained: buckets trained since the last commit, in order.
        running: the bucket in training, or None.
        held: partitions that no other worker may have.
    """

    epoch: Natural = 0
    trained: tuple[Bucket, ...] = ()
    running: Bucket | None = None
    held: tuple[PartitionKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker begins, or begins again: what it did under an earlier lease never happened.

    Args:
        worker: its name.
        incarnation: rises with every start and every new beginning of this worker.
        run: fingerprint of its graph and configuration, see `run_fingerprint`.
    """

    worker: Annotated[str, Field(min_length=1, max_length=200)]
    incarnation: Natural
    run: str


@dataclass(frozen=True, slots=True)
class Acquire:
    """A worker asks what to do next.

    Args:
        fence: of its lease.
        holding: what it has; a bucket that was running and is among the trained ones is finished.
        cached: partitions that it does not hold but has in memory as of the last commit.
        known: number of log records whose heads it knows.
    """

    fence: Natural
    holding: Holding
    cached: tuple[PartitionKey, ...] = ()
    known: Natural = 0


@dataclass(frozen=True, slots=True)
class Renew:
    """A worker is alive.

    Args:
        fence: of its lease.
        holding: what it has.
        edges: trained in the running bucket so far.
    """

    fence: Natural
    holding: Holding
    edges: Natural = 0


@dataclass(frozen=True, slots=True)
class GiveBack:
    """A worker lets others have partitions; their tables are committed or never changed."""

    fence: Natural
    released: tuple[PartitionKey, ...]


@dataclass(frozen=True, slots=True)
class Submit:
    """A worker asks that its work count.

    Args:
        worker: its name.
        fence: of its lease.
        holding: what it has: the work's buckets, and the one that it was granted since.
        work: everything since the last commit.
        released: partitions that it gives back with it.
    """

    worker: str
    fence: Natural
    holding: Holding
    work: Work
    released: tuple[PartitionKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A worker has evaluated the state after an epoch."""

    fence: Natural
    epoch: Natural
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Diverged:
    """A worker's training has diverged; it forgets what is not committed.

    Args:
        fence: of its lease.
        reason: in words.
        rate: what multiplied its learning rates.
    """

    fence: Natural
    reason: str
    rate: float


@dataclass(frozen=True, slots=True)
class Release:
    """A worker ends; what it has not committed is to be trained by others."""

    fence: Natural


@dataclass(frozen=True, slots=True)
class Connect:
    """A worker wants a pair with the parameter server, under a key that was never used."""

    key: Annotated[str, Field(min_length=1, max_length=300)]


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Somebody asks how the run stands."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The worker has a lease.

    Args:
        fence: of the lease.
        ttl_s: seconds of silence after which it is taken back.
        rate: multiplies the learning rates of the run file.
        heads: newest version of every partition that was ever trained.
        known: number of log records that these heads follow from.
    """

    fence: int
    ttl_s: float
    rate: float
    heads: Heads
    known: int


@dataclass(frozen=True, slots=True)
class Grant:
    """Train this bucket, after committing and giving back `evict`.

    Args:
        epoch: from 1.
        bucket: to train.
        evict: partitions that others want.
        heads: newest versions of partitions that others have changed since `Acquire.known`.
        known: number of log records that these heads follow from.
        upcoming: probably the next one.
        rate: multiplies the learning rates of the run file from here on.
        edges_done: edges of this epoch committed so far.
    """

    epoch: int
    bucket: Bucket
    evict: tuple[PartitionKey, ...]
    heads: Heads
    known: int
    upcoming: Bucket | None
    rate: float
    edges_done: int


@dataclass(frozen=True, slots=True)
class Validate:
    """Evaluate the last commit."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now: commit what is not committed, give back `evict`, ask again later."""

    evict: tuple[PartitionKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is at its end.

    Args:
        epochs: complete epochs.
        best: metrics of the best validation, or None without validation.
        stopped_early: whether patience ran out.
    """

    epochs: int
    best: dict[str, Any] | None
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class Committed:
    """The work counts; the worker goes on under the lease `next`."""

    next: int


@dataclass(frozen=True, slots=True)
class Done:
    """Understood."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker has no such lease: what it did since its last commit never happened."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The run cannot go on; the worker ends with this message.

    Args:
        kind: name of a class of `biggraph.errors`.
        message: for people.
    """

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Status:
    """How the run stands: values of JSON, see docs/distributed.md."""

    values: dict[str, Any]


Request = (
    Hello
    | Acquire
    | GiveBack
    | Renew
    | Submit
    | Evaluated
    | Diverged
    | Release
    | Connect
    | AskStatus
)
Reply = Welcome | Grant | Validate | Wait | Finished | Committed | Done | Lost | Failed | Status

_REQUESTS = {c.__name__: c for c in Request.__args__}
_REPLIES = {c.__name__: c for c in Reply.__args__}
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (*_REQUESTS.values(), *_REPLIES.values())
}


def encode(message: Request | Reply) -> dict[str, Any]:
    """Return a message as values of JSON."""
    body: dict[str, Any] = _ADAPTERS[type(message)].dump_python(message, mode="json")
    return {"kind": type(message).__name__, "body": body}


def decode_request(values: dict[str, Any]) -> Request:
    """Return the request that `encode` wrote.

    Raises:
        FormatError: it is none.
    """
    request: Request = _decode(values, _REQUESTS)
    return request


def decode_reply(values: dict[str, Any]) -> Reply:
    """Return the reply that `encode` wrote; raises as `decode_request`."""
    reply: Reply = _decode(values, _REPLIES)
    return reply


def _decode(values: dict[str, Any], kinds: dict[str, Any]) -> Any:
    kind = kinds.get(str(values.get("kind")))
    if kind is None:
        raise FormatError(f"a message of unknown kind {values.get('kind')!r}")
    try:
        return _ADAPTERS[kind].validate_python(values.get("body"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FormatError(f"malformed message {kind.__name__}: {where}: {first['msg']}") from None
