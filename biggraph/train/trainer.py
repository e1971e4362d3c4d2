"""The training loop of a worker: ask what to do, do it, commit.

Reads top-down: `run` → `_work` → `_bucket`. The same loop serves every deployment: what to do comes
from the session, tables from the store, and the relation parameters' keeper knows who shares them.
Knows nothing of epochs to come, of other workers or of the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from biggraph.dist.parameters import Keeper
from biggraph.dist.protocol import Finished, Grant, Validate, Wait
from biggraph.dist.session import LeaseLostError, Session, Task
from biggraph.errors import DivergenceError, FormatError, Interrupted, LinkLost, StorageError
from biggraph.log import MetricsLog
from biggraph.scheduling.route import Route
from biggraph.storage.cache import PartitionCache
from biggraph.storage.records import Head, Work
from biggraph.storage.store import DiskStore
from biggraph.storage.table import EmbeddingTable, advance_chain
from biggraph.train.bucket import BucketStats, BucketTrainer
from biggraph.train.care import Care
from biggraph.train.edges import EdgeReader
from biggraph.train.pending import Pending
from biggraph.train.progress import Progress
from biggraph.train.reservoir import Outside, Reservoir
from biggraph.train.step import Tables, by_side
from biggraph.train.together import join_tables
from biggraph.types import Bucket, Edges, PartitionKey, Side

# Given a function that is told how far it has come, (done, total).
Validation = Callable[[Callable[[int, int], None]], dict[str, Any]]
Clock = Callable[[], float]
Partitions = frozenset[PartitionKey]

_IDLE_S = 0.02  # between the first two questions of a worker that has to wait, doubled each time
_STUMBLES = 3  # over files that are not there, between two commits
_LONGEST_IDLE_S = 0.25


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Args:
        epochs: complete epochs, those of earlier starts included.
        edges: edges trained by this start.
        best: metrics of the best validation, or None without validation.
        stopped_early: whether patience ran out.
    """

    epochs: int
    edges: int
    best: dict[str, Any] | None
    stopped_early: bool


@dataclass(kw_only=True)
class Trainer:
    """Trains what the coordinator grants, until the run is finished.

    Args:
        care: numbers of the run file.
        session: speaks to the coordinator.
        keeper: keeps the relation parameters.
        needs: partitions that each non-empty bucket locks.
        route: the way through the plans that a lone worker follows; None among others.
        edges: edges by bucket, one bucket read ahead.
        store: files of this worker's tables.
        cache: holds tables.
        shared: tables that other workers train at the same time.
        reservoir: rows of partitions that are not loaded.
        bucket_trainer: trains one bucket.
        validate: evaluates the last commit on the validation split, or None.
        metrics: JSON lines.
        progress: shown to people.
        clock: seconds that only move forward.
        sleep: waits so many seconds.
    """

    care: Care
    session: Session
    keeper: Keeper
    needs: Mapping[Bucket, Partitions]
    route: Route | None
    edges: EdgeReader
    store: DiskStore
    cache: PartitionCache
    shared: Mapping[PartitionKey, EmbeddingTable]
    reservoir: Reservoir
    bucket_trainer: BucketTrainer
    validate: Validation | None
    metrics: MetricsLog
    progress: Progress
    clock: Clock = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self._pending = Pending(self.clock(), self._traffic())
        self._stop_requested = self._abandoned = False
        self.trained = 0  # edges, by this start
        self._stumbled = 0  # how often since the last commit
        self._outdated: set[PartitionKey] = set()  # changed by others since this epoch began

    def stop(self) -> None:
        """Finish the bucket in training, commit and raise `Interrupted`; at once when repeated.

        A signal handler may call it: it only sets flags.
        """
        if self._stop_requested:
            self.bucket_trainer.stop()
        self._stop_requested = True

    def abandon(self) -> None:
        """Give up the bucket in training and begin again: the lease has ended. From any thread."""
        self._abandoned = True
        self.bucket_trainer.stop()

    def close(self) -> None:
        """Stop background threads."""
        self.edges.close()
        self.cache.close()

    def run(self) -> TrainResult:
        """Train whatever this worker is granted, and return how the run ended.

        Raises:
            DivergenceError: losses were not finite or exploded, at lower rates too.
            Interrupted: `stop` was called; everything trained is committed.
            BigGraphError: storage or coordinator refused.
        """
        finished = None
        while finished is None:
            try:
                self._begin()
                finished = self._work()
            except LeaseLostError as lost:
                self.metrics.write("lease_lost", reason=str(lost))
            except DivergenceError as error:
                self._diverged(error)
            except Exception as error:  # noqa: BLE001 - others may have the lease at once
                self._leave(error)
        self.keeper.end()
        self.session.release()
        return TrainResult(finished.epochs, self.trained, finished.best, finished.stopped_early)

    def _diverged(self, error: DivergenceError) -> None:
        """Report a divergence; go on from the last commit at a lower rate if that is allowed.

        Raises:
            DivergenceError: it is not, or another worker has found so.
        """
        try:
            if not self.session.failed:
                self.session.diverged(str(error))
        except LeaseLostError as lost:
            self.metrics.write("lease_lost", reason=str(lost))
            return
        except DivergenceError:
            pass
        self._leave(error)

    def _begin(self) -> None:
        """Get a lease and forget what was done under an earlier one."""
        self._abandoned = False
        if self._stop_requested:
            raise Interrupted("stopped; everything trained so far is committed")
        self.session.begin()
        self.bucket_trainer.begin()
        self.cache.forget()
        self.reservoir.forget()
        self.store.begin(self.session.heads, self.session.fence)
        self.keeper.begin(self.session.fence)
        self._pending = Pending(self.clock(), self._traffic())

    def _leave(self, error: Exception) -> None:
        """Let others have the lease at once after an error, unless it came of losing the lease.

        Raises:
            Exception: the error, where the lease is still this worker's.
        """
        storage = isinstance(error, FormatError | StorageError)
        if self._abandoned and isinstance(error, Interrupted):
            return
        if isinstance(error, LinkLost):
            raise error  # nobody is there to take the lease back
        try:
            if storage:
                self.session.renew(0)
        except LeaseLostError:
            return  # its files were cleaned up under it
        except Exception:  # noqa: BLE001 - the first error is the one to report
            pass
        with suppress(Exception):
            self.session.release()
        # A coordinator that started again may have removed what others had just replaced.
        self._stumbled += 1
        alone, missing = self.session.ttl_s == math.inf, isinstance(error, FormatError)
        if alone or not missing or self._stumbled > _STUMBLES:
            raise error

    def _work(self) -> Finished:
        idle_s = _IDLE_S
        while True:
            task = self._ask()
            if isinstance(task, Finished):
                return task
            if isinstance(task, Grant):
                self._granted(task)
            elif isinstance(task, Validate):
                self._validate(task.epoch)
            elif self._pending.buckets:
                self._commit(task.evict)
            else:
                self._give_back(task.evict)
                self.sleep(idle_s)
            idle_s = min(2 * idle_s, _LONGEST_IDLE_S) if isinstance(task, Wait) else _IDLE_S
            if self._stop_requested:
                return self._stop()

    def _ask(self) -> Task:
        """Ask what to do next, and forget the tables that others have changed."""
        heads = self.session.heads
        cached = [
            key
            for key, chain in self.cache.chains().items()
            if key in heads and heads[key].chain == chain
        ]
        task, changed = self.session.acquire(cached)
        if changed:
            self.cache.forget(changed)
            self._outdated |= changed
            self.store.follow({key: self.session.heads[key] for key in changed})
        return task

    def _stop(self) -> Finished:
        self._commit(())
        task = self._ask()
        if isinstance(task, Finished):
            return task
        raise Interrupted("stopped; everything trained so far is committed")

    def _granted(self, grant: Grant) -> None:
        if self.care.together or self.care.mixed:
            self._buckets(grant)
        else:
            self._bucket(grant)
        if self.clock() - self._pending.since >= self.care.commit_every:
            self._commit(())

    def _make_room(self, grant: Grant) -> None:
        """Let others have what they wait for."""
        if grant.evict:
            self.cache.prefetch(self.needs[grant.bucket])
            if self._pending.buckets:
                self._commit(grant.evict)
            else:
                self._give_back(grant.evict)

    def _note_epoch(self, grant: Grant) -> None:
        self.bucket_trainer.set_rate(grant.rate * self.care.rate(grant.epoch))
        if self.progress.begin(grant.epoch, grant.edges_done):
            # Once an epoch: to sample what others train after each of their commits would mean
            # reading all that they write.
            self.reservoir.forget(self._outdated)
            self._outdated = set()

    def _bucket(self, grant: Grant) -> None:
        bucket, epoch = grant.bucket, grant.epoch
        self._make_room(grant)
        self._note_epoch(grant)
        coming: Iterable[PartitionKey] = self.needs[grant.upcoming or bucket]
        if self.route is not None:  # before anything has to leave memory
            coming = self.route.reach(epoch, bucket)
        tables = self.cache.hold(self.needs[bucket])
        edges = self.edges.read(bucket)
        if grant.upcoming is not None:
            self.edges.prefetch(grant.upcoming)
            self.cache.prefetch(coming)
        used = by_side(bucket, {**tables, **self.shared})
        outside = self.reservoir.outside((side, table.key) for (side, _), table in used.items())
        self._train(epoch, [bucket], used, outside, edges)
        _advance(epoch, bucket, tables.values())
        self.reservoir.refresh(tables.values())
        self.session.finish([bucket])

    def _buckets(self, first: Grant) -> None:
        """Train several buckets as one: all that are left, or those of a state of the plan."""
        epoch, route = first.epoch, self.route if self.care.mixed else None
        self._note_epoch(first)
        coming = route.reach(epoch, first.bucket) if route else ()
        buckets = self._take(first, route.state.buckets if route else None)
        tables = self.cache.hold(sorted(set().union(*(self.needs[b] for b in buckets))))
        joined, starts = join_tables(tables)
        edges = self.edges.read_joined(buckets, starts)
        self.cache.prefetch(coming)
        joined |= {key.entity_type: table for key, table in self.shared.items()}
        used = {(side, name): table for side in Side for name, table in joined.items()}
        outside = self.reservoir.outside((side, key) for side in Side for key in tables)
        self._train(epoch, buckets, used, outside, edges)
        for bucket in buckets:
            _advance(epoch, bucket, [tables[key] for key in sorted(self.needs[bucket])])
        self.reservoir.refresh(tables.values())

    def _take(self, first: Grant, wanted: Iterable[Bucket] | None) -> list[Bucket]:
        """Ask for buckets until the next one is not among those wanted; None: all are."""
        left, buckets = None if wanted is None else set(wanted), list[Bucket]()
        task: Task = first
        while isinstance(task, Grant) and (left is None or task.bucket in left):
            buckets.append(task.bucket)
            self.session.finish([task.bucket])
            task = self._ask()
        return buckets

    def _train(
        self, epoch: int, buckets: list[Bucket], tables: Tables, outside: Outside, edges: Edges
    ) -> None:
        started, trainer = self.clock(), self.bucket_trainer
        stats = trainer.train(epoch, buckets[0], tables, outside, edges, self.progress.batch)
        self._guard(buckets[0], stats)
        self.progress.finish(stats.edges)
        self._pending.add(epoch, buckets, stats)
        self.trained += stats.edges
        seconds = max(self.clock() - started, 1e-9)
        self.metrics.write(
            "bucket", epoch=epoch, buckets=[list(bucket) for bucket in buckets], edges=stats.edges,
            loss=stats.loss, edges_per_s=round(stats.edges / seconds, 1),
        )  # fmt: skip

    def _guard(self, bucket: Bucket, stats: BucketStats) -> None:
        if stats.loss > self.care.loss_spike * stats.untrained > 0:
            raise DivergenceError(
                f"bucket {bucket}: the loss rose to {stats.loss:.4g}, more than "
                f"{self.care.loss_spike:g} times what its edges lose untrained "
                f"({stats.untrained:.4g}); the last commit is kept. Lower optimizer.lr and run "
                "again, or set train.loss_spike = 0 if this is no harm"
            )

    def _give_back(self, keys: Iterable[PartitionKey]) -> None:
        if keys := tuple(keys):
            self.session.give_back(keys)

    def _commit(self, released: Iterable[PartitionKey]) -> None:
        if not self._pending.buckets:
            return
        pending, heads = self._pending, self.session.heads
        saved = self.cache.flush()
        relations, delta = self.keeper.save(self.store)
        traffic = self._traffic()
        work = Work(
            epoch=pending.epoch,
            buckets=tuple(pending.buckets),
            partitions=tuple(
                Head(key, heads[key].version if key in heads else 0, version)
                for key, version in saved.items()
            ),
            relations=relations,
            delta=delta,
            edges=pending.edges,
            stats=pending.stats(traffic),
        )
        self.session.commit(work, released)
        self.store.fence, self._stumbled = self.session.fence, 0
        self.keeper.committed(self.session.fence)
        self._pending = Pending(self.clock(), traffic)

    def _traffic(self) -> dict[str, float]:
        """Return what this worker has moved so far, see docs/distributed.md."""
        counted = self.cache.statistics
        return {
            "io_wait_s": counted.wait_s,
            "bytes_read": counted.bytes_loaded,
            "bytes_written": counted.bytes_saved + self.keeper.bytes_written,
            "bytes_exchanged": self.keeper.bytes_exchanged,
        }

    def _validate(self, epoch: int) -> None:
        assert self.validate is not None
        self.session.evaluated(epoch, self.validate(self._on_validation))

    def _on_validation(self, done: int, total: int) -> None:
        if self._stop_requested:
            raise Interrupted("stopped; everything trained so far is committed")
        self.progress.validation(done, total)


def _advance(epoch: int, bucket: Bucket, tables: Iterable[EmbeddingTable]) -> None:
    for table in tables:
        table.chain = advance_chain(table.chain, epoch, bucket)
