"""From a run file to a trainer: the one place that knows how a run is deployed.

Opens the graph, creates or resumes the run directory, chooses memory and threads, and hands every
part what it uses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from biggraph.config import Config
from biggraph.graph.graph import Graph
from biggraph.log import MetricsLog, Reporter
from biggraph.model.losses import make_loss
from biggraph.model.model import Model, build_model
from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.schema import GraphSchema
from biggraph.sections import GraphSection
from biggraph.storage.cache import PartitionCache
from biggraph.storage.run import RunDirectory, check_claimable, is_run, read_state
from biggraph.storage.state import InitFacts
from biggraph.train.batch import BatchMaker
from biggraph.train.bucket import BucketTrainer
from biggraph.train.checks import (
    check_graph,
    check_memory,
    check_place,
    check_same_run,
    required_paths,
    table_bytes,
)
from biggraph.train.edges import EdgeReader
from biggraph.train.reservoir import Reservoir
from biggraph.train.step import StepSettings
from biggraph.train.trainer import Plan, ScheduleEpoch, Trainer, Validate
from biggraph.types import Bucket, PartitionKey, mix_seed


@dataclass
class Run:
    """An opened run: the trainer and what has to be closed after it."""

    trainer: Trainer
    directory: RunDirectory
    cache: PartitionCache
    edges: EdgeReader

    def close(self) -> None:
        """Stop background threads and release the run's lock."""
        self.edges.close()
        self.cache.close()
        self.directory.close()


def build(
    config: Config,
    *,
    restart: bool,
    reporter: Reporter,
    validate: Validate | None,
) -> Run:
    """Open or create the run that a run file describes.

    Args:
        config: with graph and checkpoint paths.
        restart: remove an existing run first.
        reporter: where progress goes.
        validate: evaluates the last commit; None without validation.

    Raises:
        ConfigError: the run file does not fit the graph, the memory or the run it would resume.
        StorageError: the checkpoint folder holds something else, or another process trains in it.
        FormatError: graph or run are damaged.
    """
    graph_path, path = required_paths(config)
    graph = Graph.open(graph_path)
    check_graph(config, graph)
    check_place(path, graph_path)
    check_claimable(path)
    model = build_model(config.model, config.relations, graph.schema, seed=config.train.seed)
    memory = config.train.memory or psutil.virtual_memory().available // 2
    before = read_state(path) if is_run(path) and not restart else None
    if before:
        check_same_run(path, config, graph.fingerprint, before)
    facts = before.facts if before else _facts(config, graph, memory)
    sizes = {key: table_bytes(facts, key) for key in graph.schema.partition_keys()}
    check_memory(graph.schema.needs(graph.splits["train"]), sizes, memory)
    # Nothing was written or removed up to here.
    directory = _open_directory(_anchored(config, graph), path, facts, restart=restart)
    try:
        return _assemble(config, directory, graph, model, memory, reporter, validate)
    except BaseException:
        directory.close()
        raise


def _anchored(config: Config, graph: Graph) -> Config:
    """Return the run file with an absolute graph path, which readers elsewhere can follow."""
    section = GraphSection(path=graph.path.resolve())
    return config.model_copy(update={"graph": section})


def _open_directory(config: Config, path: Path, facts: InitFacts, *, restart: bool) -> RunDirectory:
    if not is_run(path):
        return RunDirectory.create(path, config, facts)
    if restart:
        return RunDirectory.recreate(path, config, facts)
    directory = RunDirectory.resume(path)
    if config != directory.config:
        directory.reconfigure(config)
    return directory


def _assemble(
    config: Config,
    directory: RunDirectory,
    graph: Graph,
    model: Model,
    memory: int,
    reporter: Reporter,
    validate: Validate | None,
) -> Run:
    state = directory.state
    if state.relations is not None:
        model.load(directory.relations())
    sizes = {key: table_bytes(state.facts, key) for key in graph.schema.partition_keys()}
    needs = graph.schema.needs(graph.splits["train"])
    threads = config.train.threads or _cores()
    _say_plan(reporter, directory, model, sizes, memory, threads)
    cache = PartitionCache(directory.store, memory, sizes.__getitem__)
    metrics = MetricsLog(Path(directory.place.where("metrics.jsonl")))
    metrics.repair()
    metrics.write("start", epoch=state.epoch, buckets_done=len(state.done))
    edges = EdgeReader(graph, "train")
    trainer = Trainer(
        plan=_plan(config, together=len(needs) > 1 and sum(sizes.values()) <= memory),
        model=model,
        needs=needs,
        edges=edges,
        schedule=_scheduling(config, needs),
        cache=cache,
        reservoir=Reservoir(directory.store, graph.schema, config.negatives.reservoir),
        directory=directory,
        bucket_trainer=_bucket_trainer(config, model, graph.schema, threads),
        validate=validate if config.eval.every else None,
        metrics=metrics,
        reporter=reporter,
    )
    return Run(trainer, directory, cache, edges)


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _facts(config: Config, graph: Graph, memory: int) -> InitFacts:
    def facts(row_wise: bool) -> InitFacts:
        return InitFacts(
            schema=graph.schema,
            graph=graph.fingerprint,
            dimension=config.model.dimension,
            row_wise=row_wise,
            init_scale=config.model.init_scale,
            seed=config.train.seed,
            buckets=dict(graph.splits["train"]),
        )

    if config.optimizer.name != "auto":
        return facts(config.optimizer.name == "adagrad_row")
    # Element-wise state ranks better on small graphs; row-wise halves memory and traffic.
    whole = sum(table_bytes(facts(False), key) for key in graph.schema.partition_keys())
    return facts(whole > memory)


def _say_plan(
    reporter: Reporter,
    directory: RunDirectory,
    model: Model,
    sizes: Mapping[PartitionKey, int],
    memory: int,
    threads: int,
) -> None:
    state = directory.state
    optimizer = "row-wise" if state.facts.row_wise else "element-wise"
    reporter.say(
        f"{state.facts.schema.num_entities:,} entities in {len(sizes)} partitions, "
        f"{len(state.facts.schema.relations):,} relations in {len(model.groups)} groups, "
        f"{sum(state.facts.buckets.values()):,} edges in {len(state.facts.buckets)} buckets"
    )
    reporter.say(
        f"tables {sum(sizes.values()) / 2**20:,.0f} MiB ({optimizer} Adagrad), "
        f"budget {memory / 2**20:,.0f} MiB, {threads} threads"
    )
    if state.epoch or state.done:
        reporter.say(f"going on after epoch {state.epoch} and {len(state.done)} buckets")


def _plan(config: Config, *, together: bool) -> Plan:
    return Plan(
        epochs=config.train.epochs,
        commit_every=config.train.commit_every,
        loss_spike=config.train.loss_spike,
        eval_every=config.eval.every,
        patience=config.eval.patience,
        together=together,
        series=[config.eval.filtered, config.eval.candidates, config.eval.edges],
    )


def _scheduling(config: Config, needs: Mapping[Bucket, frozenset[PartitionKey]]) -> ScheduleEpoch:
    order_of = ORDERS[config.train.bucket_order]
    seed = config.train.seed

    def schedule(epoch: int, done: frozenset[Bucket]) -> BucketScheduler:
        # The whole epoch is ordered before what is done is left out, so that a resumed run
        # follows the order of an uninterrupted one.
        order = order_of(sorted(needs), mix_seed(seed, epoch))
        left = [bucket for bucket in order if bucket not in done]
        return BucketScheduler(left, needs, affinity=False)

    return schedule


def _bucket_trainer(
    config: Config, model: Model, schema: GraphSchema, threads: int
) -> BucketTrainer:
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
    )
    totals = {entity.name: entity.count for entity in schema.entities}
    maker = BatchMaker(
        model,
        config.negatives,
        batch_size=config.train.batch_size,
        dropout=config.regularizer.dropout,
    )
    return BucketTrainer(
        model, settings, maker, threads=threads, seed=config.train.seed, totals=totals
    )
