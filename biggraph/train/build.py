"""From a run file to a trainer: the one place that knows how a run is deployed.

Opens the graph, creates or resumes the run directory, chooses memory and threads, and hands every
part what it uses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from biggraph.config import Config
from biggraph.errors import ConfigError
from biggraph.graph.graph import Graph
from biggraph.log import MetricsLog, Reporter
from biggraph.model.losses import make_loss
from biggraph.model.model import Model, build_model
from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.schema import GraphSchema
from biggraph.storage.cache import PartitionCache
from biggraph.storage.run import RunDirectory, is_run, remove_run
from biggraph.storage.state import InitFacts
from biggraph.train.batch import BatchMaker
from biggraph.train.bucket import BucketTrainer
from biggraph.train.edges import EdgeReader
from biggraph.train.reservoir import Reservoir
from biggraph.train.step import StepSettings
from biggraph.train.trainer import Plan, ScheduleEpoch, Trainer, Validate
from biggraph.types import Bucket, PartitionKey, mix_seed

_FLOAT = 4
# Keys that a resumed run may change: they decide how long and how, not what is trained.
_MAY_CHANGE = {
    "train.epochs", "train.threads", "train.commit_every", "train.memory", "train.loss_spike",
    "eval.every", "eval.patience", "eval.filtered", "eval.candidates", "eval.edges",
    "graph.path", "checkpoint.path", "import", "entities",
}  # fmt: skip


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
    _check_entities(config, graph.schema)
    model = build_model(config.model, config.relations, graph.schema, seed=config.train.seed)
    buckets = graph.splits.get("train", {})
    if not buckets:
        raise ConfigError(f"{graph_path}: the train split holds no edges; import some")
    memory = config.train.memory or psutil.virtual_memory().available // 2
    directory = _open_directory(config, path, _facts(config, graph, memory), restart=restart)
    try:
        return _assemble(config, directory, graph, model, memory, reporter, validate)
    except BaseException:
        directory.close()
        raise


def required_paths(config: Config) -> tuple[Path, Path]:
    """Return the graph's and the checkpoint's path.

    Raises:
        ConfigError: the run file lacks one of them.
    """
    if config.graph is None:
        raise ConfigError("graph.path is missing; name the graph directory in the run file")
    if config.checkpoint is None:
        raise ConfigError("checkpoint.path is missing; name a folder for the run in the run file")
    return config.graph.path, config.checkpoint.path


def _assemble(
    config: Config,
    directory: RunDirectory,
    graph: Graph,
    model: Model,
    memory: int,
    reporter: Reporter,
    validate: Validate | None,
) -> Run:
    if directory.state.relations is not None:
        model.load(directory.relations())
    facts = directory.state.facts
    sizes = {key: _table_bytes(facts, key) for key in graph.schema.partition_keys()}
    needs = graph.schema.needs(graph.splits["train"])
    _check_memory(needs, sizes, memory)
    threads = config.train.threads or len(os.sched_getaffinity(0))
    _say_plan(reporter, directory, model, sizes, memory, threads)
    cache = PartitionCache(directory.store, memory, sizes.__getitem__)
    metrics = MetricsLog(directory.path / "metrics.jsonl")
    metrics.repair()
    edges = EdgeReader(graph, "train")
    trainer = Trainer(
        plan=_plan(config),
        model=model,
        needs=needs,
        edges=edges,
        schedule=_scheduling(config, needs),
        cache=cache,
        reservoir=Reservoir(directory.store, graph.schema, config.negatives.reservoir),
        directory=directory,
        bucket_trainer=_bucket_trainer(config, model, graph.schema, threads),
        validate=validate,
        metrics=metrics,
        reporter=reporter,
    )
    return Run(trainer, directory, cache, edges)


def _open_directory(config: Config, path: Path, facts: InitFacts, *, restart: bool) -> RunDirectory:
    if restart and is_run(path):
        remove_run(path)
    if not is_run(path):
        return RunDirectory.create(path, config, facts)
    directory = RunDirectory.resume(path)
    try:
        _check_same_run(config, directory, facts)
        if config != directory.config:
            directory.reconfigure(config)
    except BaseException:
        directory.close()
        raise
    return directory


def _check_same_run(config: Config, directory: RunDirectory, facts: InitFacts) -> None:
    """Refuse to go on with a run under settings that would make it another."""
    remedy = "begin anew with --restart, or choose another checkpoint.path"
    if facts.graph != directory.state.facts.graph:
        raise ConfigError(f"{directory.path}: was trained on another graph; {remedy}")
    old, new = _flat(directory.config), _flat(config)
    for key in sorted(old.keys() | new.keys()):
        fixed = key not in _MAY_CHANGE and key.split(".")[0] not in _MAY_CHANGE
        if fixed and old.get(key) != new.get(key):
            raise ConfigError(
                f"{directory.path}: the run was begun with {key} = {old.get(key)}, "
                f"found {new.get(key)}; {remedy}"
            )


def _flat(config: Config) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, section in json.loads(config.to_json()).items():
        if isinstance(section, dict):
            flat |= {f"{name}.{key}": value for key, value in section.items()}
        else:
            flat[name] = section
    return flat


def _check_entities(config: Config, schema: GraphSchema) -> None:
    for name, entity in config.entities.items():
        partitions = schema.entity_type(name).partitions
        if "partitions" in entity.model_fields_set and entity.partitions != partitions:
            raise ConfigError(
                f"entities.{name}.partitions = {entity.partitions}: the graph was imported with "
                f"{partitions}; import it again, or change the run file"
            )


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
    whole = sum(_table_bytes(facts(False), key) for key in graph.schema.partition_keys())
    return facts(whole > memory)


def _table_bytes(facts: InitFacts, key: PartitionKey) -> int:
    count, dimension = facts.shape(key)
    return count * _FLOAT * (dimension + (1 if facts.row_wise else dimension))


def _check_memory(
    needs: Mapping[Bucket, frozenset[PartitionKey]], sizes: Mapping[PartitionKey, int], memory: int
) -> None:
    largest = max(needs, key=lambda bucket: sum(sizes[key] for key in needs[bucket]))
    wanted = sum(sizes[key] for key in needs[largest])
    if wanted > memory:
        raise ConfigError(
            f"train.memory = {memory:,} bytes: bucket {largest} needs {wanted:,} for its tables; "
            'allow more, use optimizer.name = "adagrad_row", lower model.dimension, or import '
            "with more partitions"
        )


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


def _plan(config: Config) -> Plan:
    return Plan(
        epochs=config.train.epochs,
        commit_every=config.train.commit_every,
        loss_spike=config.train.loss_spike,
        eval_every=config.eval.every,
        patience=config.eval.patience,
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
