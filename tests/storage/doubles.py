"""A tiny run that can be trained in milliseconds, interrupted anywhere, and resumed."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from biggraph.config import make_config
from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler, Grant
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.cache import PartitionCache
from biggraph.storage.records import Head, InitFacts, Work
from biggraph.storage.relations import write_relations
from biggraph.storage.run import RunDirectory, is_run
from biggraph.storage.store import DiskStore
from biggraph.storage.table import advance_chain
from biggraph.types import Bucket, mix_seed

SCHEMA = GraphSchema(
    (EntityType("user", (3, 2)), EntityType("a/b ü", (2,))),
    (RelationType("knows", "user", "user"), RelationType("likes", "user", "a/b ü")),
)
BUCKETS = {Bucket(0, 0): 5, Bucket(0, 1): 2, Bucket(1, 0): 3, Bucket(1, 1): 4}
DIMENSION = 4
CONFIG = make_config({"model": {"dimension": DIMENSION}, "train": {"seed": 7}})
EPOCHS = 2


class Crash(BaseException):
    """Stands for the death of the process: no code may catch it and go on."""


def facts(row_wise=False, half=False) -> InitFacts:
    buckets = dict(BUCKETS)
    return InitFacts(SCHEMA, "fingerprint", DIMENSION, row_wise, 0.1, 7, buckets, half=half)


def open_run(path: Path) -> RunDirectory:
    return RunDirectory.resume(path) if is_run(path) else RunDirectory.create(path, CONFIG, facts())


@dataclass
class LoneWorker:
    """The only worker of a run, whose lease goes on from commit to commit."""

    run: RunDirectory
    store: DiskStore

    @classmethod
    def begin(cls, run: RunDirectory) -> "LoneWorker":
        """End what an earlier start left, as its work cannot go on, and begin a lease."""
        for fence in list(run.state.leases):
            run.expire(fence, "the only worker has started again")
        run.collect_garbage()
        return cls(run, run.store(run.begin_lease("alone", run.state.number)))

    def commit(self, epoch, buckets, saved, relations, edges, stats) -> None:
        """Write the relation parameters and make everything since the last commit count."""
        file = write_relations(self.store.place, self.store.fence, relations)
        before = self.run.state.heads
        heads = tuple(
            Head(key, before[key].version if key in before else 0, version)
            for key, version in saved.items()
        )
        work = Work(epoch, tuple(buckets), heads, file, None, edges, stats)
        self.store.fence = self.run.commit(self.store.fence, work)


@contextmanager
def working(path: Path, capacity: int = 10**6) -> Iterator[tuple[LoneWorker, PartitionCache]]:
    """Begin or go on with a run as its only worker."""
    with open_run(path) as run:
        worker = LoneWorker.begin(run)
        with PartitionCache(worker.store, capacity, facts().table_bytes) as cache:
            yield worker, cache


def train(path: Path, capacity: int = 150) -> None:
    """Train from wherever the run stands to its end, as a trainer would.

    The update depends on order and on every earlier update, so work that is lost or counted
    twice changes the result.
    """
    with working(path, capacity) as (worker, cache):
        run = worker.run
        keep_best(run)
        while run.state.epoch < EPOCHS:
            train_epoch(worker, cache)
            keep_best(run)
        if len(run.state.evaluations) < EPOCHS:
            run.record_evaluation(run.state.epoch, {"mrr": 0.5})


def keep_best(run: RunDirectory) -> None:
    """The first epoch is the best."""
    state = run.state
    if state.epoch == 1 and not state.done and not state.snapshots:
        run.snapshot("best")


def train_epoch(worker: LoneWorker, cache: PartitionCache) -> None:
    run = worker.run
    epoch = run.state.epoch + 1
    relations = run.relations() or {"w": np.ones(3), "optimizer.w": np.zeros(3)}
    done = set(run.state.done)
    order = [b for b in ORDERS["random"](list(BUCKETS), epoch) if b not in done]
    scheduler = BucketScheduler(order, SCHEMA.needs(BUCKETS), affinity=False)
    pending: list[Bucket] = []
    while isinstance(grant := scheduler.acquire("w"), Grant):
        tables = cache.hold(SCHEMA.partitions_of(grant.bucket))
        if following := scheduler.peek("w"):
            cache.prefetch(SCHEMA.partitions_of(following))
        train_bucket(epoch, grant.bucket, tables, relations)
        scheduler.finish("w")
        pending.append(grant.bucket)
        if len(pending) == 3 or not scheduler.peek("w"):
            edges = sum(BUCKETS[b] for b in pending)
            worker.commit(epoch, pending, cache.flush(), relations, edges, {"loss": 1.0})
            run.collect_garbage()
            pending = []


def train_bucket(epoch, bucket, tables, relations) -> None:
    step = mix_seed(epoch, *bucket) % 97 / 97
    for table in tables.values():
        table.rows.mul_(0.9).add_(step + float(relations["w"][0]))
        table.state.add_(step)
        table.chain = advance_chain(table.chain, epoch, bucket)
    relations["w"] = relations["w"] * 0.9 + step
    relations["optimizer.w"] = relations["optimizer.w"] + 1


class Fault:
    """Fails the n-th file operation: raises `error`, or ends the process where it is an int.

    After a Crash every later operation crashes too, as a dead process does nothing more.
    """

    def __init__(self, n: int, error: BaseException | int | None, *, tear: bool = False) -> None:
        self.n, self.error, self.tear = n, error, tear
        self.count, self.hit = 0, False
        self.seen: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, operation: str, path: Path) -> None:
        with self._lock:
            self.count += 1
            self.seen.append(operation)
            if self.count != self.n and not (self.hit and isinstance(self.error, Crash)):
                return
            first, self.hit = not self.hit, True
        if first and self.tear and operation == "sync" and path.exists():
            os.truncate(path, path.stat().st_size // 2)
        if isinstance(self.error, int):
            os._exit(self.error)
        if self.error is not None:
            raise self.error
