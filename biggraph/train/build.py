"""From a run file to a trainer: the one place that knows how a run is deployed.

Opens the graph, creates or resumes the run directory, chooses memory and threads, and hands every
part what it uses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from biggraph.storage.run import InitFacts, RunDirectory
from biggraph.storage.store import DiskStore
from biggraph.train.batch import BatchMaker
from biggraph.train.bucket import BucketTrainer
from biggraph.train.edges import EdgeReader
from biggraph.train.step import StepSettings
from biggraph.train.trainer import Plan, Trainer, Validate
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
    model = build_model(config.model, config.relations, graph.schema)
    buckets = sorted(graph.splits.get("train", {}))
    if not buckets:
        raise ConfigError(f"{graph_path}: the train split holds no edges; import some")
    needs = graph.schema.needs(buckets)
    memory = config.train.memory or psutil.virtual_memory().available // 2
    if restart:
        RunDirectory.remove(path)
    directory = _open_directory(config, path, graph, memory)
    state = directory.state
    if state.relations is not None:
        model.load(directory.relations())
    row_wise = state.init.row_wise
    _check_memory(needs, graph.schema, config.model.dimension, row_wise, memory)
    _say_plan(reporter, config, graph, directory, memory)
    store = DiskStore(directory, init_scale=config.model.init_scale)
    size_of = _table_sizes(graph.schema, config.model.dimension, row_wise)
    cache = PartitionCache(store, capacity_bytes=memory, size_of=size_of.__getitem__)
    metrics = MetricsLog(path / "metrics.jsonl")
    metrics.repair()
    edges = EdgeReader(graph, "train")
    trainer = Trainer(
        plan=_plan(config),
        model=model,
        needs=needs,
        edges=edges,
        schedule=_scheduler_of(config, buckets, needs),
        cache=cache,
        run_directory=directory,
        bucket_trainer=_bucket_trainer(config, model),
        validate=validate if config.eval.every else None,
        metrics=metrics,
        reporter=reporter,
    )
    return Run(trainer, directory, cache, edges)
