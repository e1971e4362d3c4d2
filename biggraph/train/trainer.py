"""The training loop: epochs of buckets, commits, validation, early stopping.

Reads top-down: `run` → `_epoch` → `_bucket`. A world of one is a world: the same loop serves every
deployment, which differ only in the scheduler, store and relation parameters that it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from biggraph.errors import DivergenceError, Interrupted
from biggraph.log import MetricsLog, Reporter, duration
from biggraph.model.model import Model
from biggraph.scheduling.scheduler import BucketScheduler, Grant
from biggraph.storage.cache import PartitionCache
from biggraph.storage.run import RunDirectory
from biggraph.storage.table import EmbeddingTable, advance_chain
from biggraph.train.bucket import BucketStats, BucketTrainer
from biggraph.train.edges import EdgeReader
from biggraph.train.reservoir import Outside, Reservoir
from biggraph.train.step import Tables
from biggraph.train.together import join_tables
from biggraph.types import Bucket, Edges, PartitionKey, Side

# Given a function that is told how far it has come, (done, total).
Validate = Callable[[Callable[[int, int], None]], dict[str, Any]]
Clock = Callable[[], float]
ScheduleEpoch = Callable[[int, frozenset[Bucket]], BucketScheduler]

_OWNER = "worker-0"
_METRIC = "mrr"


@dataclass(frozen=True)
class Plan:
    """What the loop needs to know of the run file.

    Args:
        epochs: passes over all edges.
        commit_every: longest time between two commits, in seconds.
        loss_spike: multiple of the untrained loss at which the run stops.
        eval_every: epochs between validations, 0 for none.
        patience: validations without gain before stopping, 0 for never.
        together: train all buckets as one, because all tables fit in memory.
        series: how validations are done; only those done alike are compared.
    """

    epochs: int
    commit_every: float
    loss_spike: float
    eval_every: int
    patience: int
    together: bool
    series: list[Any]


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


@dataclass
class _Pending:
    """Work since the last commit."""

    since: float
    buckets: list[Bucket] = field(default_factory=list)
    edges: int = 0
    loss_sum: float = 0.0

    def stats(self) -> dict[str, Any]:
        return {"loss": self.loss_sum / max(self.edges, 1), "edges": self.edges}

    def add(self, buckets: list[Bucket], stats: BucketStats) -> None:
        self.buckets += buckets
        self.edges += stats.edges
        self.loss_sum += stats.loss * stats.edges


@dataclass(kw_only=True)
class Trainer:
    """Trains a run to its last epoch, from wherever its log stands.

    Args:
        plan: numbers of the run file.
        model: its relation parameters are those of the last commit.
        needs: partitions that each non-empty bucket locks.
        edges: edges by bucket, one bucket read ahead.
        schedule: makes an epoch's scheduler, given the buckets that are done.
        cache: holds tables.
        reservoir: rows of partitions that are not loaded.
        directory: the run's log; its state says where to go on.
        bucket_trainer: trains one bucket.
        validate: evaluates the last commit on the validation split, or None.
        metrics: JSON lines.
        reporter: progress.
        clock: seconds that only move forward.
    """

    plan: Plan
    model: Model
    needs: Mapping[Bucket, frozenset[PartitionKey]]
    edges: EdgeReader
    schedule: ScheduleEpoch
    cache: PartitionCache
    reservoir: Reservoir
    directory: RunDirectory
    bucket_trainer: BucketTrainer
    validate: Validate | None
    metrics: MetricsLog
    reporter: Reporter
    clock: Clock = time.monotonic

    def __post_init__(self) -> None:
        self._pending = _Pending(self.clock())
        self._stop_requested = False
        self._trained = 0
        self._waited = 0.0

    def stop(self) -> None:
        """Finish the bucket in training, commit and raise `Interrupted`; at once when repeated.

        A signal handler may call it: it only sets flags.
        """
        if self._stop_requested:
            self.bucket_trainer.stop()
        self._stop_requested = True

    def run(self) -> TrainResult:
        """Train what is left, and return how it ended.

        Raises:
            DivergenceError: a loss was not finite or exploded; the last commit is kept.
            Interrupted: `stop` was called; everything trained is committed.
        """
        self._validate_if_due()
        while self.directory.state.epoch < self.plan.epochs and not self._out_of_patience():
            self._check_stop()
            self._epoch(self.directory.state.epoch + 1)
            self._validate_if_due()
        epochs = self.directory.state.epoch
        best = max(self._evaluations(), key=lambda m: float(m[_METRIC]), default=None)
        return TrainResult(epochs, self._trained, best, epochs < self.plan.epochs)

    def _check_stop(self) -> None:
        if self._stop_requested:
            raise Interrupted("stopped; everything trained so far is committed")

    def _epoch(self, epoch: int) -> None:
        started = self.clock()
        done = frozenset(self.directory.state.done)
        scheduler = self.schedule(epoch, done)
        progress = _EpochProgress(self.reporter, epoch, self.plan.epochs, self.clock)
        progress.start(self.edges.count(b for b in self.needs if b not in done))
        while isinstance(grant := scheduler.acquire(_OWNER), Grant):
            self._give_back(scheduler, grant.evict)
            if self.plan.together:
                self._all_buckets(epoch, grant.bucket, scheduler, progress)
            else:
                self._bucket(epoch, grant.bucket, scheduler, progress)
                scheduler.finish(_OWNER)
            due = self.clock() - self._pending.since >= self.plan.commit_every
            if due or self._stop_requested:
                self._commit(epoch)
            if self.directory.state.epoch < epoch:
                self._check_stop()
        self._commit(epoch)
        self._report_epoch(epoch, progress.edges, self.clock() - started)

    def _all_buckets(
        self, epoch: int, first: Bucket, scheduler: BucketScheduler, progress: _EpochProgress
    ) -> None:
        """Train every bucket that is left in this epoch as one."""
        buckets = [first]
        scheduler.finish(_OWNER)
        while isinstance(grant := scheduler.acquire(_OWNER), Grant):
            buckets.append(grant.bucket)
            scheduler.finish(_OWNER)
        tables = self.cache.hold(sorted(set().union(*self.needs.values())))
        joined, starts = join_tables(tables)
        edges = self.edges.read_joined(buckets, starts)
        used = {(side, name): table for side in Side for name, table in joined.items()}
        self._train(epoch, buckets, used, {}, edges, progress)
        for bucket in buckets:
            self._advance(epoch, bucket, [tables[key] for key in sorted(self.needs[bucket])])

    def _bucket(
        self, epoch: int, bucket: Bucket, scheduler: BucketScheduler, progress: _EpochProgress
    ) -> None:
        tables = self.cache.hold(self.needs[bucket])
        edges = self.edges.read(bucket)
        following = scheduler.peek(_OWNER)
        if following is not None:
            self.edges.prefetch(following)
            self.cache.prefetch(self.needs[following])
        used = by_side(bucket, tables)
        outside = self.reservoir.outside((side, table.key) for (side, _), table in used.items())
        self._train(epoch, [bucket], used, outside, edges, progress)
        self._advance(epoch, bucket, tables.values())
        self.reservoir.refresh(tables.values())

    def _train(
        self,
        epoch: int,
        buckets: list[Bucket],
        tables: Tables,
        outside: Outside,
        edges: Edges,
        progress: _EpochProgress,
    ) -> None:
        started = self.clock()
        stats = self.bucket_trainer.train(epoch, buckets[0], tables, outside, edges, progress.batch)
        self._guard(buckets[0], stats)
        progress.bucket(stats)
        self._pending.add(buckets, stats)
        self._trained += stats.edges
        seconds = max(self.clock() - started, 1e-9)
        self.metrics.write(
            "bucket", epoch=epoch, buckets=[list(bucket) for bucket in buckets], edges=stats.edges,
            loss=stats.loss, edges_per_s=round(stats.edges / seconds, 1),
        )  # fmt: skip

    @staticmethod
    def _advance(epoch: int, bucket: Bucket, tables: Iterable[EmbeddingTable]) -> None:
        for table in tables:
            table.chain = advance_chain(table.chain, epoch, bucket)

    def _give_back(self, scheduler: BucketScheduler, keys: frozenset[PartitionKey]) -> None:
        if keys:
            self.cache.flush()
            scheduler.give_back(_OWNER, keys)

    def _guard(self, bucket: Bucket, stats: BucketStats) -> None:
        if stats.loss > self.plan.loss_spike * stats.untrained > 0:
            raise DivergenceError(
                f"bucket {bucket}: the loss rose to {stats.loss:.4g}, more than "
                f"{self.plan.loss_spike:g} times what its edges lose untrained "
                f"({stats.untrained:.4g}); the last commit is kept. Lower optimizer.lr and run "
                "again, or set train.loss_spike = 0 if this is no harm"
            )

    def _commit(self, epoch: int) -> None:
        pending, self._pending = self._pending, _Pending(self.clock())
        if not pending.buckets:
            return
        self.directory.commit(
            epoch=epoch,
            buckets=pending.buckets,
            partitions=self.cache.flush(),
            relations=self.model.arrays(),
            edges=pending.edges,
            stats=pending.stats(),
        )
        self.directory.collect_garbage()
        self.metrics.write("commit", epoch=epoch, buckets=len(pending.buckets), edges=pending.edges)

    def _report_epoch(self, epoch: int, edges: int, seconds: float) -> None:
        """Report the whole epoch as committed, and the rate of this start's part of it."""
        state, rate = self.directory.state, edges / max(seconds, 1e-9)
        commits, total = state.stats[epoch], state.edges[epoch]
        loss = sum(commit["loss"] * commit["edges"] for commit in commits) / total
        waited = self.cache.statistics.wait_s - self._waited
        self._waited += waited
        self.metrics.write(
            "epoch", epoch=epoch, edges=total, edges_per_s=round(rate, 1), loss=loss,
            seconds=round(seconds, 3), io_wait_s=round(waited, 3),
        )  # fmt: skip
        left = total / max(rate, 1e-9) * (self.plan.epochs - epoch)
        self.reporter.say(
            f"epoch {epoch}/{self.plan.epochs}  loss {loss:.4f}  {rate:,.0f} edges/s  "
            f"{seconds:.1f} s  {duration(left)} left"
        )

    def _validate_if_due(self) -> None:
        state, every = self.directory.state, self.plan.eval_every
        epoch = state.epoch
        evaluated = any(
            evaluation.epoch == epoch and evaluation.metrics["series"] == self.plan.series
            for evaluation in state.evaluations
        )
        complete = every and epoch and not state.done
        if self.validate is None or not complete or evaluated:
            return
        if epoch % every and epoch != self.plan.epochs:
            return
        earlier = max((m[_METRIC] for m in self._evaluations()), default=-1.0)
        metrics = self.validate(self._on_validation) | {"series": self.plan.series}
        # The snapshot comes first: a crash in between only repeats the evaluation.
        if metrics[_METRIC] > earlier:
            self.directory.snapshot("best")
        self.directory.record_evaluation(epoch, metrics)
        self.metrics.write("evaluation", epoch=epoch, **metrics)
        self.reporter.say(
            f"epoch {epoch}  validation mrr {metrics['mrr']:.4f}  hits@10 {metrics['hits@10']:.4f}"
        )

    def _on_validation(self, done: int, total: int) -> None:
        self._check_stop()
        self.reporter.advance("validation", done, total)

    def _evaluations(self) -> list[dict[str, Any]]:
        metrics = [evaluation.metrics for evaluation in self.directory.state.evaluations]
        return [found for found in metrics if found["series"] == self.plan.series]

    def _out_of_patience(self) -> bool:
        if not self.plan.patience:
            return False
        scores = [metrics[_METRIC] for metrics in self._evaluations()]
        if not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.plan.patience


class _EpochProgress:
    """Edges and loss of the epoch in training: exact after each bucket, roughly right within."""

    def __init__(self, reporter: Reporter, epoch: int, epochs: int, clock: Clock) -> None:
        self._reporter = reporter
        self._name = f"epoch {epoch}/{epochs}"
        self._clock = clock
        self._started = clock()
        self._total = 0
        self._loss_sum = 0.0
        self._shown = 0
        self.edges = 0

    @property
    def loss(self) -> float:
        """Mean loss of an edge in finished buckets."""
        return self._loss_sum / max(self.edges, 1)

    def start(self, total: int) -> None:
        """Begin, with the edges that are to be trained."""
        self._total = total
        self._reporter.advance(self._name, 0, total)

    def batch(self, edges: int, loss: float) -> None:
        """Show one more batch; a count that two threads lose between them is mended by `bucket`."""
        self._shown += edges
        rate = self._shown / max(self._clock() - self._started, 1e-9)
        note = f"{rate:,.0f} edges/s  loss {loss:.4f}"
        self._reporter.advance(self._name, self._shown, self._total, note)

    def bucket(self, stats: BucketStats) -> None:
        """Add a finished bucket."""
        self.edges += stats.edges
        self._loss_sum += stats.loss * stats.edges
        self._shown = self.edges


def by_side(bucket: Bucket, tables: Mapping[PartitionKey, EmbeddingTable]) -> Tables:
    """Return a bucket's tables by side and entity type, as a step finds them."""
    by_use = {}
    for key, table in tables.items():
        for side, index in ((Side.LHS, bucket.lhs), (Side.RHS, bucket.rhs)):
            if key.index == index:
                by_use[side, key.entity_type] = table
    return by_use
