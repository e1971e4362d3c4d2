"""The sections of the run file: what each key means, its default, and which values it takes.

Each section is a small frozen model. Knows nothing of files, of other sections or of running.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

OperatorName = Literal["identity", "diagonal", "translation", "complex_diagonal"]
ComparatorName = Literal["dot", "cos", "l2", "squared_l2"]
LossName = Literal["softmax", "logistic", "ranking"]
OrderName = Literal["inside_out", "outside_in", "random", "affinity", "beta", "comet"]

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_TIMES = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_size(value: object) -> int:
    """Return bytes from 4096, "4GiB" or "500 MB".

    Raises:
        ValueError: not a positive size.

    >>> parse_size("1GiB"), parse_size("2 MB"), parse_size(7)
    (1073741824, 2000000, 7)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
    if (
        not match
        or match[2].upper() not in _SIZES
        or float(match[1]) * _SIZES[match[2].upper()] < 1
    ):
        raise ValueError(f'expected a size such as "1GiB" or "500MB", found {value!r}')
    return int(float(match[1]) * _SIZES[match[2].upper()])


def parse_duration(value: object) -> float:
    """Return seconds from 30, "30s", "5min" or "1.5h".

    Raises:
        ValueError: not a duration.

    >>> parse_duration("5min"), parse_duration(2)
    (300.0, 2.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip())
    if not match or match[2] not in _TIMES:
        raise ValueError(f'expected a duration such as "30s" or "5min", found {value!r}')
    return float(match[1]) * _TIMES[match[2]]


def parse_candidates(value: object) -> Literal["all"] | int:
    """Return "all" or a number of candidates from 7, "7" or "all".

    Raises:
        ValueError: neither.

    >>> parse_candidates("all"), parse_candidates("50")
    ('all', 50)
    """
    if value == "all":
        return "all"
    if isinstance(value, bool) or not str(value).isdecimal() or int(str(value)) < 1:
        raise ValueError(f'expected "all" or a number from 1, found {value!r}')
    return int(str(value))


def parse_place(value: object) -> object:
    """Return the path of a folder as text, or an address such as "s3://bucket/prefix" as it is.

    >>> parse_place("runs/./a/"), parse_place("s3://bucket//a")
    ('runs/a', 's3://bucket//a')
    """
    if not isinstance(value, str | Path) or "://" in str(value):
        return value
    return str(Path(value))


def parse_device(value: object) -> object:
    """Return the name of a device as it is.

    Raises:
        ValueError: not the name of one.

    >>> parse_device("cuda:1")
    'cuda:1'
    """
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", str(value)):
        raise ValueError(f'expected "cpu", "cuda" or the number of a GPU as in "cuda:1", '
                         f"found {value!r}")  # fmt: skip
    return value


ByteSize = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
PlaceText = Annotated[str, BeforeValidator(parse_place)]
Candidates = Annotated[Literal["all"] | int, BeforeValidator(parse_candidates)]
DeviceName = Annotated[str, BeforeValidator(parse_device)]


class Section(BaseModel):
    """A part of the run file: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GraphSection(Section):
    """Which graph to train on."""

    path: Path = Field(strict=False, description="graph directory made by `biggraph import`")


class EntityConfig(Section):
    """Settings of one entity type, read by `biggraph import`."""

    partitions: int = Field(1, ge=1, description="slices of this entity type")


class RelationConfig(Section):
    """Settings of one relation."""

    name: str = Field(min_length=1, description="as it stands in the source files")
    lhs: str = Field("entity", description="entity type of the head (read by import)")
    rhs: str = Field("entity", description="entity type of the tail (read by import)")
    operator: OperatorName | None = Field(None, description="overrides model.operator")
    weight: float = Field(1.0, gt=0, description="multiplies the loss of this relation's edges")


class ImportSection(Section):
    """How source files become a graph; the command line's options win over it."""

    columns: list[str] | None = Field(None, description="head, relation, tail[, weight] columns")
    partitions: int = Field(1, ge=1, description="slices of entity types that do not say")
    memory: ByteSize = Field(2**30, description="budget for the importer's working memory")
    min_entity_count: int = Field(1, ge=1, description="drop entities seen in fewer edges")
    min_relation_count: int = Field(1, ge=1, description="drop relations with fewer edges")
    seed: int = Field(0, ge=0, description="seed of the assignment and of the shuffle")


class ModelSection(Section):
    """How an edge is scored."""

    operator: OperatorName = Field("complex_diagonal", description="transform of each relation")
    comparator: ComparatorName = Field("dot", description="similarity of two vectors")
    dimension: int = Field(200, ge=1, description="floats in an embedding")
    reciprocal: bool = Field(True, description="one operator per side, not one per relation")
    init_scale: float = Field(1e-3, gt=0, description="standard deviation of initial embeddings")


class LossSection(Section):
    """What training minimises."""

    name: LossName = Field("softmax", description="loss of a positive against its negatives")
    correct_sampling: bool = Field(
        True, description="softmax: weigh sampled negatives so that they stand for all entities"
    )
    margin: float = Field(0.1, ge=0, description="ranking: wanted distance in score")
    adversarial_temperature: float = Field(
        0.0, ge=0, description="logistic, ranking: weigh negatives by softmax(t * score); 0 = off"
    )


class NegativesSection(Section):
    """Which entities each positive is compared with."""

    in_batch: int = Field(250, ge=0, description="positives in a chunk, each others' negatives")
    uniform: int = Field(1000, ge=0, description="uniform negatives for each chunk and side")
    all: bool = Field(False, description="every entity of the loaded partition instead")
    reservoir: int = Field(
        20_000, ge=0, description="rows of other partitions kept in memory as candidates"
    )
    sides: Literal["both", "lhs", "rhs"] = Field("both", description="which side to corrupt")
    filter_chunk: bool = Field(False, description="mask negatives that are true in the same chunk")


class RegularizerSection(Section):
    """What keeps embeddings small or robust."""

    n3: float = Field(0.05, ge=0, description="weight of the cubed 3-norm (moduli if complex)")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of query coordinates set to 0")


class OptimizerSection(Section):
    """How rows move."""

    name: Literal["adagrad", "adagrad_row", "auto"] = Field(
        "auto", description="element-wise, row-wise, or element-wise where its state fits memory"
    )
    lr: float = Field(0.1, gt=0, description="learning rate of embeddings")
    relation_lr: float | None = Field(None, gt=0, description="of relations; default: lr")
    lr_end: float = Field(
        1.0, gt=0, le=1, description="share of both rates in the last epoch; linear until there"
    )


class TrainSection(Section):
    """The loop."""

    epochs: int = Field(10, ge=0, description="passes over all edges")
    batch_size: int = Field(1000, ge=1, description="edges of one step")
    device: DeviceName = Field(
        "cpu", description='"cuda": the GPU of this worker, one each; "cuda:1": that one'
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of the factors in matrix products; tf32: on a GPU only",
    )
    threads: int = Field(0, ge=0, description="training threads on the CPU; 0: one per core")
    step: Literal["compiled", "reference"] = Field(
        "compiled",
        description="on the CPU: compiled code, or its definition in torch: the same, much slower",
    )
    seed: int = Field(0, ge=0, description="of initial values, order and negatives")
    bucket_order: OrderName = Field(
        "inside_out", description="of an epoch; beta, comet: for a cache of several partitions"
    )
    commit_every: Duration = Field(
        300.0, description="commit after the bucket that passes this time, and each epoch"
    )
    memory: ByteSize | None = Field(None, description="budget for tables; default: half of free")
    loss_spike: float = Field(
        5.0, ge=0, description="divergence: this multiple of the untrained loss; 0: never"
    )
    retries: int = Field(
        3,
        ge=0,
        description="divergence: times to go back to the last commit at half the rate",
    )


class EvalSection(Section):
    """Evaluation during training on the validation split."""

    every: int = Field(0, ge=0, description="epochs between evaluations; 0: none")
    patience: int = Field(0, ge=0, description="evaluations without gain before stopping; 0: off")
    filtered: bool = Field(True, description="leave known true edges out of the candidates")
    candidates: Candidates = Field("all", description='"all" entities, or a number of sampled ones')
    edges: int | None = Field(None, ge=1, description="evaluate this many edges; default: all")


class CheckpointSection(Section):
    """Where the run is kept."""

    path: PlaceText = Field(
        description="run directory: log, partitions, metrics; or s3://bucket/prefix, or "
        "flight://host:port,…/run"
    )
    rows: Literal["float32", "float16"] = Field(
        "float32", description='of embeddings in files; "float16", rounded at random, halves them'
    )


class ClusterSection(Section):
    """Several workers, on this machine or on many; see docs/distributed.md."""

    workers: int = Field(1, ge=1, description="worker processes that `biggraph train` starts")
    parameter_servers: int = Field(
        1, ge=1, description="1: inside the coordinator; more: each a process with its slice of "
        "the relation parameters"
    )  # fmt: skip
    bind: str = Field("127.0.0.1", description="address that the coordinator listens on")
    port: int = Field(
        0, ge=0, le=65535, description="of the coordinator; parameter servers have the next ones; "
        "0: any that is free"
    )  # fmt: skip
    secret_file: Path | None = Field(
        None, strict=False, description="job secret, readable by its owner alone; default: "
        "the environment's BIGGRAPH_SECRET, else `secret` in the run directory"
    )  # fmt: skip
    transport: Literal["torch", "flight"] = Field(
        "torch", description='"flight" (Arrow) encrypts, for networks that you do not trust'
    )
    tls_cert: Path | None = Field(
        None, strict=False, description="flight: PEM that the coordinator shows"
    )
    tls_key: Path | None = Field(None, strict=False, description="flight: PEM, its key")
    tls_ca: Path | None = Field(
        None, strict=False, description="flight: PEM that workers trust; default: the "
        "certificate in endpoint.json in the run directory"
    )  # fmt: skip
    lease_ttl: Duration = Field(60.0, gt=0, description="silence after which a worker is given up")
    wait: Duration = Field(600.0, gt=0, description="how long a worker waits for a coordinator")
    sync_every: Duration = Field(
        1.0, gt=0, description="shortest time between two exchanges of relation parameters"
    )
