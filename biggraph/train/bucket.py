"""Training one bucket: threads over shared rows, each taking its share of the batches.

Threads update the same tables without locks (Hogwild: Niu et al., NIPS 2011); torch releases the
interpreter lock inside its kernels. Knows tables and edges; nothing of schedules or storage.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import torch

from biggraph.errors import DivergenceError, Interrupted
from biggraph.model.model import Model
from biggraph.train.batch import Batch, BatchMaker
from biggraph.train.reservoir import Outside
from biggraph.train.step import StepSettings, Tables, train_step, untrained_loss
from biggraph.types import Bucket, Edges, mix_seed

# Generators of one (epoch, bucket) differ in this last part of their seed.
_PLAN_STREAM = -1

OnBatch = Callable[[int, float], None]


@dataclass(frozen=True)
class BucketStats:
    """What training one bucket came to.

    Args:
        edges: edges trained.
        loss: mean loss of an edge, summed over replaced sides, without regularization.
        untrained: what the same edges lose, with their weights, before anything is learned.
    """

    edges: int
    loss: float
    untrained: float


class BucketTrainer:
    """Trains buckets on a fixed number of threads.

    Args:
        model: scores edges and holds the relation parameters.
        settings: of the step.
        maker: cuts edges into batches.
        threads: worker threads, each with one core of torch.
        seed: of the run.
        totals: entities of each type in the whole graph.
    """

    def __init__(
        self,
        model: Model,
        settings: StepSettings,
        maker: BatchMaker,
        *,
        threads: int,
        seed: int,
        totals: Mapping[str, int],
    ) -> None:
        self._model = model
        self._settings, self._full = settings, settings
        self._maker = maker
        self._threads = threads
        self._seed = seed
        self._totals = totals
        self._untrained: dict[int, float] = {}  # loss of an edge of weight 1, by relation group
        self._stop = threading.Event()

    def begin(self) -> None:
        """Train again after `stop`."""
        self._stop.clear()

    def set_rate(self, rate: float) -> None:
        """Train from here on with the learning rates of the settings times `rate`."""
        full = self._full
        self._settings = replace(full, lr=full.lr * rate, relation_lr=full.relation_lr * rate)

    def stop(self) -> None:
        """Make the bucket in training end at once with `Interrupted`."""
        self._stop.set()

    def train(
        self,
        epoch: int,
        bucket: Bucket,
        tables: Tables,
        outside: Outside,
        edges: Edges,
        on_batch: OnBatch,
    ) -> BucketStats:
        """Train every edge of a bucket once.

        Args:
            epoch: number of the epoch; with the bucket it seeds order and negatives.
            bucket: to name in errors.
            tables: of the bucket's partitions; rows and state change in place.
            outside: rows of other partitions to compare with.
            edges: of the bucket.
            on_batch: called with the edges and the mean loss of each batch.

        Raises:
            DivergenceError: a loss was not finite.
            Interrupted: `stop` was called.
        """
        seeds = (self._seed, epoch, bucket.lhs, bucket.rhs)
        plan = self._maker.plan(edges, _generator(*seeds, _PLAN_STREAM))
        sizes = {
            use: (len(table.rows), self._totals[use[1]], len(outside.get(use, ())))
            for use, table in tables.items()
        }
        populations = self._maker.populations(edges, sizes)
        failed = threading.Event()

        def work(worker: int) -> BucketStats:
            torch.set_num_threads(1)
            share = plan[worker :: self._threads]
            generator = _generator(*seeds, worker)
            batches = self._maker.batches(edges, share, populations, generator)
            try:
                return self._train_share(bucket, tables, outside, batches, failed, on_batch)
            except BaseException:
                failed.set()
                raise

        caller_threads = torch.get_num_threads()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="train") as pool:
            futures = [pool.submit(work, worker) for worker in range(self._threads)]
            wait(futures, return_when=FIRST_EXCEPTION)
        # Workers set torch's default for threads to come; the caller's own ones need theirs back.
        torch.set_num_threads(caller_threads)
        done = [future.result() for future in futures]
        total = sum(share.edges for share in done)
        loss = sum(share.loss * share.edges for share in done) / max(total, 1)
        untrained = sum(share.untrained * share.edges for share in done) / max(total, 1)
        return BucketStats(total, loss, untrained)

    def _train_share(
        self,
        bucket: Bucket,
        tables: Tables,
        outside: Outside,
        batches: Iterable[Batch],
        failed: threading.Event,
        on_batch: OnBatch,
    ) -> BucketStats:
        trained, loss_sum, untrained_sum = 0, 0.0, 0.0
        for batch in batches:
            if self._stop.is_set():
                raise Interrupted("stopped; work since the last commit was given up")
            if failed.is_set():
                break
            loss = train_step(self._model, self._settings, tables, outside, batch)
            size = batch.num_edges
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"bucket {bucket}: the loss became {loss}; the last commit is kept. "
                    "Lower optimizer.lr, or raise regularizer.n3, and run again"
                )
            group = batch.group.index
            if group not in self._untrained:
                self._untrained[group] = untrained_loss(self._settings, batch)
            untrained_sum += self._untrained[group] * float(batch.weight_CP.sum())
            trained += size
            loss_sum += loss * size
            on_batch(size, loss)
        return BucketStats(trained, loss_sum / max(trained, 1), untrained_sum / max(trained, 1))


def _generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(*seed))
