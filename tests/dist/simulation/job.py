"""A job so small that training takes microseconds, and so touchy that nothing can be lost unseen.

What a bucket does to its tables depends on epoch, bucket, all tables of it and the order of the
buckets; what it does to the relation parameters are small whole numbers, whose sums are exact in
any order. Virtual time passes in every step, so tables are torn while a bucket is in training.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from biggraph.config import Config, make_config
from biggraph.errors import DivergenceError, Interrupted
from biggraph.model.relations import RelationParameters
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage import files
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.records import InitFacts
from biggraph.storage.table import EmbeddingTable
from biggraph.train.bucket import BucketStats
from biggraph.types import Bucket, PartitionKey
from tests.dist.simulation.doubles import Lock
from tests.dist.simulation.world import world

Rows = np.ndarray
RELATIONS = 3  # numbers in the relation parameters


class Sorted(frozenset[PartitionKey]):
    """A set whose order does not depend on how Python hashes text."""

    def __iter__(self) -> Iterator[PartitionKey]:
        return iter(sorted(super().__iter__()))


@dataclass
class Job:
    """What is trained in one simulation.

    Args:
        facts: of the run.
        config: of the run.
        steps: of a bucket.
        step_s: how long one takes, at most.
        ttl: of leases, in seconds.
        memory: of a worker, in bytes.
        trainings: what was trained, under which fence, in order.
        divergences: how many of the next buckets end in NaN.
        acknowledged: fences of commits of which a worker has heard.
        steps_made: steps of all buckets, those given up included.
    """

    facts: InitFacts
    config: Config
    steps: int
    step_s: float
    ttl: float
    memory: int
    trainings: list[tuple[int, int, Bucket]] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    divergences: int = 0
    steps_made: int = 0

    @classmethod
    def of(cls, rng: random.Random) -> Job:
        """Draw a job."""
        partitions, dimension = rng.choice([2, 3, 3, 4]), 2
        entities = [EntityType("user", (2,) * partitions)]
        relations = [RelationType("knows", "user", "user")]
        if rng.random() < 0.4:
            entities.append(EntityType("item", (1,) * rng.randint(1, 2)))
            relations.append(RelationType("likes", "user", "item"))
        schema = GraphSchema(tuple(entities), tuple(relations))
        grid = [Bucket(i, j) for i in range(partitions) for j in range(partitions)]
        chosen = sorted(rng.sample(grid, rng.randint(min(4, len(grid)), min(9, len(grid)))))
        row_wise, ttl = rng.random() < 0.5, rng.choice([4.0, 6.0, 10.0])
        facts = InitFacts(
            schema, "graph", dimension, row_wise, 0.1, rng.randrange(100),
            {bucket: rng.randint(1, 20) for bucket in chosen},
        )  # fmt: skip
        config = make_config(
            {
                "model": {"dimension": dimension},
                "graph": {"path": "graph"},
                "checkpoint": {"path": "disk"},
                "negatives": {"reservoir": rng.choice([0, 2])},
                "train": {
                    "epochs": rng.randint(1, 4),
                    "commit_every": rng.choice(["0.001s", "3s", "1h"]),
                    "bucket_order": rng.choice(["affinity", "inside_out", "random"]),
                    "retries": 30,
                },
                "eval": {"every": rng.choice([0, 1, 2])},
                "cluster": {
                    "lease_ttl": f"{ttl:g}s", "wait": "60s", "sync_every": "1s",
                    "parameter_servers": rng.choice([1, 1, 1, 2]),
                },
            }
        )  # fmt: skip
        job = cls(facts, config, rng.randint(1, 3), rng.choice([0.1, 0.5, 2.0]), ttl, 0)
        sizes = [job.size_of(key) for key in schema.partition_keys()]
        biggest = max(sum(job.size_of(key) for key in keys) for keys in job.needs.values())
        job.memory = rng.choice([biggest, sum(sizes), biggest + max(sizes)])
        return job

    @property
    def needs(self) -> dict[Bucket, frozenset[PartitionKey]]:
        """The partitions of each bucket."""
        schema = self.facts.schema
        return {bucket: Sorted(schema.partitions_of(bucket)) for bucket in self.facts.buckets}

    def size_of(self, key: PartitionKey) -> int:
        """Bytes of a table."""
        return self.facts.table_bytes(key)

    # What follows is a `train.ground.Ground`.

    @property
    def graph(self) -> Job:
        return self

    @property
    def schema(self) -> GraphSchema:
        return self.facts.schema

    @property
    def splits(self) -> dict[str, dict[Bucket, int]]:
        return {"train": dict(self.facts.buckets)}

    fingerprint, threads = "the same graph and run file", 1

    def table_sizes(self, facts: InitFacts) -> dict[PartitionKey, int]:
        return {key: self.size_of(key) for key in facts.schema.partition_keys()}

    def edges(self, split: str, bucket: Bucket) -> int:
        world().sleep(0.01, "edges")
        return self.facts.buckets[bucket]

    def model(self) -> Model:
        return Model()


class Model:
    """Relation parameters and nothing else."""

    def __init__(self) -> None:
        values = {"operator": torch.zeros(RELATIONS)}
        self.parameters = RelationParameters(values, lock=Lock())  # type: ignore[arg-type]

    def arrays(self) -> dict[str, Rows]:
        return self.parameters.arrays()


def train_tables(tables: Mapping[PartitionKey, tuple[Rows, Rows]], seed: tuple[int, ...]) -> None:
    """Change rows and state of a bucket's tables, in place."""
    number = np.float32(sum((i + 2) ** 2 * part for i, part in enumerate(seed)) % 97)
    total = np.float32(0)
    for key in sorted(tables):
        total = total + tables[key][0].sum(dtype=np.float32)
    for key in sorted(tables):
        rows, state = tables[key]
        rows *= np.float32(0.7)
        rows += total * np.float32(0.01) + number / np.float32(97)
        state += np.abs(rows if state.ndim == 2 else rows[:, 0])


def relation_change(epoch: int, bucket: Bucket) -> Rows:
    """Return what one step of a bucket adds to the relation parameters, whole numbers [n]."""
    return np.array([1, epoch + 3 * bucket.lhs, bucket.rhs - bucket.lhs], np.float32)


class ToyTrainer:
    """Trains buckets of a job; stands for `train.bucket.BucketTrainer`."""

    def __init__(self, job: Job, model: Model) -> None:
        self._job, self._model = job, model
        self.session: Any = None
        self.watch: Any = None
        self._stopped = False

    def begin(self) -> None:
        self._stopped = False

    def set_rate(self, rate: float) -> None:
        pass

    def stop(self) -> None:
        self._stopped = True

    def train(
        self, epoch: int, bucket: Bucket, tables: Any, outside: Any, edges: int, on_batch: Any
    ) -> BucketStats:
        here, job, parameters = world(), self._job, self._model.parameters
        used: dict[PartitionKey, EmbeddingTable] = {table.key: table for table in tables.values()}
        arrays = {key: (table.rows.numpy(), table.state.numpy()) for key, table in used.items()}
        fence = self.session.fence
        self.watch.trains(self.session, bucket)
        for step in range(job.steps):
            here.sleep(here.rng.random() * job.step_s, "train")
            if self._stopped:
                raise Interrupted("stopped")
            train_tables(arrays, (epoch, *bucket, step))
            job.steps_made += 1
            with parameters.lock:
                parameters.values["operator"] += torch.from_numpy(relation_change(epoch, bucket))
                parameters.sums["operator"] += 1
            on_batch(edges // job.steps, 1.0)
        if job.divergences:
            job.divergences -= 1
            raise DivergenceError(f"bucket {bucket}: the loss became nan")
        assert fence == self.session.fence, "a lease went on while its bucket was in training"
        job.trainings.append((fence, epoch, bucket))
        return BucketStats(edges, 1.0, 1.0)


def score(tables: Mapping[PartitionKey, Rows], relations: Mapping[str, Rows]) -> float:
    """Return a number that is another for other rows or other relation parameters."""
    parts = [tables[key] for key in sorted(tables)] + [relations[key] for key in sorted(relations)]
    return float(sum(np.float64(part).sum() * (i + 1) for i, part in enumerate(parts)))


def validation(job: Job, disk: Any) -> Callable[[Any], dict[str, Any]]:
    """Return what evaluates the last commit, reading all of it."""

    def validate(on_progress: Any) -> dict[str, Any]:
        checkpoint = Checkpoint.open(disk, "latest")
        tables = {}
        for key in job.schema.partition_keys():
            tables[key] = checkpoint.rows(key, slice(None))
            on_progress(len(tables), 10)
            world().sleep(0.05, "validate")
        return {"mrr": score(tables, checkpoint.relations()), "hits@10": 0.0}

    return validate


def write_plain(file: Any, arrays: Mapping[str, Rows], attributes: Mapping[str, Any]) -> None:
    """Write arrays behind a line of JSON; stands for `files._write`, a hundred times faster.

    A number that no other file has stands for threads that train without locks: the same work,
    done twice, does not give the same bytes.
    """
    forms = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
    file.write(json.dumps([forms, dict(attributes), world().rng.getrandbits(32)]).encode() + b"\n")
    for array in arrays.values():
        file.write(np.ascontiguousarray(array).tobytes())


def parse_plain(file: Any, where: str, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return where arrays lie in a file of `write_plain`; stands for `files._parse`."""
    file.seek(0)
    line = file.readline()
    forms, attributes, _ = json.loads(line)
    slots, offset = {}, len(line)
    for name, (kind, shape) in forms.items():
        slots[name] = files._Slot(np.dtype(kind), tuple(shape), offset)
        offset += int(np.prod(shape)) * np.dtype(kind).itemsize
    assert offset == size
    return slots, attributes
