"""Training one bucket: threads over shared rows, each taking its share of the batches.

Threads update the same tables without locks (Hogwild: Niu et al., NIPS 2011); torch releases the
interpreter lock inside its kernels. Knows tables and edges; nothing of schedules or storage.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from biggraph.errors import DivergenceError, Interrupted
from biggraph.model.model import Model
from biggraph.train.batch import BatchMaker, Populations
from biggraph.train.kernels.blas import one_thread
from biggraph.train.reservoir import Outside
from biggraph.train.step import Lesson, ReferenceStep, Step, StepSettings, Tables, untrained_loss
from biggraph.types import Bucket, Edges, mix_seed

# Generators of one (epoch, bucket) differ in this last part of their seed.
_PLAN_STREAM = -1

OnBatch = Callable[[int, float], None]
MakeStep = Callable[[Model, StepSettings, BatchMaker], Step]


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
        threads: worker threads, each with one core.
        seed: of the run.
        totals: entities of each type in the whole graph.
        make_step: makes the step of a thread, see `step.Step`.
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
        make_step: MakeStep = ReferenceStep,
    ) -> None:
        self._model = model
        self._settings, self._full = settings, settings
        self._maker = maker
        self._threads = threads
        self._seed = seed
        self._totals = totals
        self._steps = [make_step(model, settings, maker) for _ in range(threads)]
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

        def work(worker: int) -> tuple[int, float]:
            torch.set_num_threads(1)
            step, share = self._steps[worker], plan[worker :: self._threads]
            seed = mix_seed(*seeds, worker)
            step.begin(Lesson(self._settings, tables, outside, edges, populations, seed))
            try:
                result = self._train_share(bucket, step, share, failed, on_batch)
                step.end()
                return result
            except BaseException:
                failed.set()
                raise

        caller_threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="train")
        with one_thread(), pool:
            futures = [pool.submit(work, worker) for worker in range(self._threads)]
            wait(futures, return_when=FIRST_EXCEPTION)
        # Workers set torch's default for threads to come; the caller's own ones need theirs back.
        torch.set_num_threads(caller_threads)
        done = [future.result() for future in futures]
        total = sum(trained for trained, _ in done)
        loss = sum(loss for _, loss in done) / max(total, 1)
        untrained = self._untrained_loss(edges, plan, populations, _generator(*seeds, _PLAN_STREAM))
        return BucketStats(total, loss, untrained)

    def _train_share(
        self,
        bucket: Bucket,
        step: Step,
        share: list[NDArray[np.int64]],
        failed: threading.Event,
        on_batch: OnBatch,
    ) -> tuple[int, float]:
        """Train batches; return their edges and the sum of their losses."""
        trained, loss_sum = 0, 0.0
        for positions in share:
            if self._stop.is_set():
                raise Interrupted("stopped; work since the last commit was given up")
            if failed.is_set():
                break
            loss = step(positions)
            if not math.isfinite(loss):
                raise DivergenceError(
                    f"bucket {bucket}: the loss became {loss}; the last commit is kept. "
                    "Lower optimizer.lr, or raise regularizer.n3, and run again"
                )
            trained += len(positions)
            loss_sum += loss * len(positions)
            on_batch(len(positions), loss)
        return trained, loss_sum

    def _untrained_loss(
        self,
        edges: Edges,
        plan: list[NDArray[np.int64]],
        populations: Populations,
        generator: torch.Generator,
    ) -> float:
        """Return what an edge loses on average before anything is learned.

        One batch of each relation group stands for all of its batches.
        """
        groups = self._model.group_of.numpy()[edges.rel]
        weights = self._model.relation_weights.numpy()[edges.rel]
        if edges.weight is not None:
            weights = weights * edges.weight
        for group in set(np.flatnonzero(np.bincount(groups)).tolist()) - self._untrained.keys():
            positions = next(found for found in plan if groups[found[0]] == group)
            (batch,) = self._maker.batches(edges, [positions], populations, generator)
            self._untrained[group] = untrained_loss(self._settings, batch)
        sums = np.bincount(groups, weights=weights)
        total = sum(self._untrained[g] * sums[g] for g in np.flatnonzero(sums).tolist())
        return float(total) / max(len(edges), 1)


def _generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix_seed(*seed))
