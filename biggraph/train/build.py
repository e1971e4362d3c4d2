"""From a run file to what runs it: the one place that knows how a run is deployed.

Creates or resumes the run and hands every part what it uses. A world of one is a coordinator and a
worker in one process, which call each other directly.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial

import torch

from biggraph.config import Config
from biggraph.dist.board import Schedule
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.course import Plan
from biggraph.dist.parameter_server import Parameters
from biggraph.dist.parameters import Keeper, OwnParameters
from biggraph.dist.session import Session
from biggraph.dist.status import Chronicle
from biggraph.log import MetricsLog, Reporter
from biggraph.model.losses import make_loss
from biggraph.model.model import Model
from biggraph.scheduling.plans import State, capacity_of_cache, swaps
from biggraph.scheduling.route import Route
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.storage.cache import PartitionCache
from biggraph.storage.metrics import keep_metrics
from biggraph.storage.opening import open_place
from biggraph.storage.place import Place
from biggraph.storage.records import InitFacts
from biggraph.storage.run import RunDirectory, check_claimable, is_run, read_state
from biggraph.storage.state import RunState
from biggraph.storage.store import DiskStore
from biggraph.train.batch import BatchMaker
from biggraph.train.bucket import BucketTrainer, MakeStep
from biggraph.train.care import Care
from biggraph.train.checks import check_cpu_precision, check_same_run, fingerprint, required_paths
from biggraph.train.device_step import DeviceStep
from biggraph.train.devices import describe_gpu, find_device, room_for_tables
from biggraph.train.edges import EdgeReader
from biggraph.train.ground import Ground, ground_of, plans_of
from biggraph.train.kernels.batch import differentiate
from biggraph.train.kernels.jit import kept
from biggraph.train.kernels.step import CompiledStep
from biggraph.train.progress import Progress
from biggraph.train.reservoir import Reservoir
from biggraph.train.shared import add_shared, shared_tables
from biggraph.train.step import ReferenceStep, StepSettings
from biggraph.train.trainer import Trainer, Validation

_ALONE = "alone"  # name of the worker in a world of one


@dataclass
class Run:
    """An opened run of one worker, and what has to be closed after it."""

    trainer: Trainer
    directory: RunDirectory

    def close(self) -> None:
        """Stop background threads and release the run's lock."""
        self.trainer.close()
        self.directory.close()


def build(config: Config, *, restart: bool, reporter: Reporter, validate: Validation | None) -> Run:
    """Open or create the run that a run file describes, for one worker in this process.

    Args:
        config: with graph and checkpoint paths.
        restart: remove an existing run first.
        reporter: where progress goes.
        validate: evaluates the last commit; None without validation.

    Raises:
        ConfigError: the run file does not fit the graph, the memory or the run it would resume, or
            names a GPU that is not there.
        StorageError: the checkpoint folder holds something else, or another process trains in it.
        FormatError: graph or run are damaged.
    """
    gpu = gpu_of(config)
    ground = Ground.of(config)
    model = ground.model()
    directory = open_run(ground, restart=restart, sharing=False)
    try:
        facts = directory.state.facts
        ground = ground_of(ground, facts)
        add_shared(model.parameters, facts)
        metrics = open_metrics(ground, directory.state)
        sizes = ground.table_sizes(facts)
        budget = f"budget {ground.memory / 2**20:,.0f} MiB"
        room = min(ground.memory, room_for_tables(gpu)) if gpu else ground.memory
        together = len(ground.needs) > 1 and sum(sizes.values()) <= room
        plan_of = plans_of(ground, facts)
        means = [budget, describe_gpu(gpu) if gpu else f"{ground.threads} threads"]
        say_plan(reporter, directory.state, ground, *means, *_way(config, plan_of(1), together))
        say_compiling(reporter, config)
        coordinator = build_coordinator(ground, directory, metrics, reporter)
        coordinator.expire_all("the only worker has started again")
        session = Session(
            lambda request: coordinator.handle(request, time.monotonic()),
            _ALONE,
            time.time_ns(),
            ground.fingerprint,
            ground.needs,
        )
        route = Route(plan_of, ground.needs)
        trainer = build_trainer(
            ground,
            WorkerParts(model, facts, directory.place, metrics, reporter, route),
            session,
            OwnParameters(model.parameters, directory.relations),
            validate,
            together=together,
        )
    except BaseException:
        directory.close()
        raise
    return Run(trainer, directory)


def open_run(ground: Ground, *, restart: bool, sharing: bool = True) -> RunDirectory:
    """Create, resume or begin anew the run of a run file, after checking that it can be.

    Args:
        ground: run file and graph.
        restart: remove an existing run first.
        sharing: several workers will train a run that is begun now.

    Raises:
        ConfigError: the run file does not fit the memory or the run it would resume.
        StorageError: the place holds something else, or another process writes the run.
        FormatError: the run is damaged.
    """
    config = ground.config
    _, path = required_paths(config)
    check_claimable(path)
    before = read_state(path) if is_run(path) and not restart else None
    if before:
        check_same_run(path, config, ground.graph.fingerprint, before)
    facts = before.facts if before else ground.facts(sharing=sharing)
    ground.check_memory(facts)
    # Nothing was written or removed up to here.
    if not is_run(path):
        return RunDirectory.create(path, config, facts)
    if restart:
        return RunDirectory.recreate(path, config, facts)
    directory = RunDirectory.resume(path)
    if config != directory.config:
        if fingerprint(directory.config, facts.graph) != ground.fingerprint:
            for fence in tuple(directory.state.leases):  # workers have to read the run file again
                directory.expire(fence, "the run file has changed")
        directory.reconfigure(config, rate=_rate_after(directory, config))
    return directory


def _rate_after(directory: RunDirectory, config: Config) -> float:
    """Return what the learning rates are multiplied with: 1 again where the user set new ones."""
    same = directory.config.optimizer == config.optimizer
    return directory.state.rate if same else 1.0


def open_metrics(ground: Ground, state: RunState) -> MetricsLog:
    """Return the metrics of a run, with a line that says where this start begins."""
    _, path = required_paths(ground.config)
    metrics = keep_metrics(open_place(path))
    metrics.write("start", epoch=state.epoch, buckets_done=len(state.done))
    return metrics


def build_coordinator(
    ground: Ground,
    directory: RunDirectory,
    metrics: MetricsLog,
    reporter: Reporter,
    *,
    ttl: float = math.inf,
    parameters: Parameters | None = None,
) -> Coordinator:
    """Return the coordinator of a run.

    Args:
        ground: run file and graph.
        directory: of the run.
        metrics: what happens is written there.
        reporter: and said there.
        ttl: seconds of silence after which a worker loses its lease; infinite for a world of one,
            whose only worker follows the order strictly.
        parameters: shared by several workers; None in a world of one.
    """
    config = ground.config
    plan = Plan.of(config)
    return Coordinator(
        directory,
        plan,
        _schedule(ground, directory.state.facts, alone=parameters is None),
        fingerprint=ground.fingerprint,
        ttl=ttl,
        parameters=parameters,
        chronicle=Chronicle(metrics, reporter, plan.epochs),
    )


def _schedule(ground: Ground, facts: InitFacts, *, alone: bool) -> Schedule:
    plan_of, needs = plans_of(ground, facts), ground.needs

    def schedule(state: RunState) -> BucketScheduler:
        # The whole epoch is planned before what is done is left out, so that a resumed run
        # follows the order of an uninterrupted one.
        plan, done = plan_of(state.epoch + 1), set(state.done)
        left = [bucket for stay in plan for bucket in stay.buckets if bucket not in done]
        trained = None if alone or state.epoch else frozenset(state.heads)
        return BucketScheduler(left, needs, affinity=not alone, trained=trained)

    return schedule


@dataclass(frozen=True)
class WorkerParts:
    """What a worker's parts share.

    Args:
        model: scores edges.
        facts: of the run.
        place: of the run's files.
        metrics: JSON lines of this worker.
        reporter: shows its progress.
        route: the way through its plans, where it follows them alone.
    """

    model: Model
    facts: InitFacts
    place: Place
    metrics: MetricsLog
    reporter: Reporter
    route: Route | None = None


def build_trainer(
    ground: Ground,
    parts: WorkerParts,
    session: Session,
    keeper: Keeper,
    validate: Validation | None,
    *,
    together: bool,
) -> Trainer:
    """Return the training loop of one worker.

    Args:
        ground: run file and graph.
        parts: of this worker.
        session: speaks to the coordinator.
        keeper: keeps the relation parameters.
        validate: evaluates the last commit; None without validation.
        together: train all buckets as one.
    """
    config = ground.config
    store = DiskStore(parts.place, parts.facts, {}, 0)
    sizes = ground.table_sizes(parts.facts)
    shared = shared_tables(parts.model.parameters, parts.facts)
    capacity = ground.memory - sum(table.nbytes for table in shared.values())
    route = parts.route
    next_use = route.next_use if route else None
    mixed = route is not None and not together and config.train.bucket_order == "comet"
    return Trainer(
        care=Care(
            commit_every=config.train.commit_every,
            loss_spike=config.train.loss_spike,
            together=together,
            mixed=mixed,
            epochs=config.train.epochs,
            lr_end=config.optimizer.lr_end,
        ),
        session=session,
        keeper=keeper,
        needs=ground.needs,
        route=route,
        edges=EdgeReader(ground.graph, "train"),
        store=store,
        cache=PartitionCache(
            store, capacity_of_cache(capacity, copies=mixed), sizes.__getitem__, next_use
        ),
        shared=shared,
        reservoir=Reservoir(store, ground.graph.schema, config.negatives.reservoir),
        bucket_trainer=_bucket_trainer(ground, parts.model),
        validate=validate,
        metrics=parts.metrics,
        progress=Progress(parts.reporter, config.train.epochs, sum(parts.facts.buckets.values())),
    )


def say_plan(reporter: Reporter, state: RunState, ground: Ground, *means: str) -> None:
    """Say what is trained, how large it is, and where the run goes on.

    Args:
        reporter: told.
        state: of the run.
        ground: run file and graph.
        means: what the only worker trains it with; of several, each has its own.
    """
    facts = state.facts
    optimizer = "row-wise" if facts.row_wise else "element-wise"
    table_bytes = sum(ground.table_sizes(facts).values())
    reporter.say(
        f"{facts.schema.num_entities:,} entities in {len(facts.schema.partition_keys())} "
        f"partitions, {len(facts.schema.relations):,} relations, "
        f"{sum(facts.buckets.values()):,} edges in {len(facts.buckets)} buckets"
    )
    tables = f"tables {table_bytes / 2**20:,.0f} MiB ({optimizer} Adagrad)"
    reporter.say(", ".join((tables, *means)))
    if state.epoch or state.done:
        reporter.say(f"going on after epoch {state.epoch} and {len(state.done)} buckets")


def say_compiling(reporter: Reporter, config: Config) -> None:
    """Say so where this machine's first training takes a minute before it begins."""
    if config.train.step == "compiled" and not gpu_of(config) and not kept(differentiate.__name__):
        reporter.say("compiling the training step, for a minute; later runs find it compiled")


def _way(config: Config, plan: list[State], together: bool) -> list[str]:
    """Say in which order buckets are trained, and what that costs, where they are not as one."""
    if together or len(plan) < 2:
        return []
    first = len(plan[0].loaded)
    loads = first + swaps(plan)
    return [f"{config.train.bucket_order}: {first} at a time, {loads} loads an epoch"]


def _bucket_trainer(ground: Ground, model: Model) -> BucketTrainer:
    config = ground.config
    loss = make_loss(
        config.loss.name,
        margin=config.loss.margin,
        temperature=config.loss.adversarial_temperature,
    )
    lr = config.optimizer.lr
    settings = StepSettings(
        loss=loss,
        corrected=config.loss.name == "softmax" and config.loss.correct_sampling,
        n3=config.regularizer.n3,
        lr=lr,
        relation_lr=config.optimizer.relation_lr or lr,
        batch_size=config.train.batch_size,
        shared=frozenset(ground.shared),
    )
    totals = {entity.name: entity.count for entity in ground.graph.schema.entities}
    maker = BatchMaker(
        model,
        config.negatives,
        batch_size=config.train.batch_size,
        dropout=config.regularizer.dropout,
    )
    gpu = gpu_of(config)
    return BucketTrainer(
        model,
        settings,
        maker,
        threads=1 if gpu else ground.threads,
        seed=config.train.seed,
        totals=totals,
        make_step=_make_step(config, gpu),
    )


def gpu_of(config: Config) -> torch.device | None:
    """Return the GPU that this process trains on, if the run file says so.

    Raises:
        ConfigError: it is not there, or the CPU cannot compute as the run file says.
    """
    where = find_device(config.train.device)
    if where.type != "cpu":
        return where
    check_cpu_precision(config)
    return None


def _make_step(config: Config, gpu: torch.device | None) -> MakeStep:
    if gpu:
        return partial(DeviceStep, where=gpu, precision=config.train.precision)
    if config.train.step == "reference":
        return ReferenceStep
    return partial(CompiledStep, rough=config.train.precision == "bfloat16")
