"""What coordinator and workers alike derive from a run file and its graph.

Reads only. Knows configuration and graph; nothing of runs, workers or training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import psutil

from biggraph.config import Config
from biggraph.graph.graph import Graph
from biggraph.model.model import Model, build_model
from biggraph.scheduling.plans import State, choose_slots, make_plan
from biggraph.sections import GraphSection
from biggraph.storage.records import InitFacts
from biggraph.train.checks import (
    check_graph,
    check_memory,
    check_place,
    fingerprint,
    required_paths,
)
from biggraph.train.shared import choose_shared
from biggraph.types import Bucket, PartitionKey, mix_seed


@dataclass(frozen=True)
class Ground:
    """A run file and the graph that it names, which fit each other.

    Args:
        config: the run file, with an absolute graph path.
        graph: that it names.
        needs: partitions that each non-empty bucket locks.
        shared: entity types that workers of the run share.
        fingerprint: of graph and run file.
        memory: budget of one worker for tables, in bytes.
        threads: of one worker.
    """

    config: Config
    graph: Graph
    needs: Mapping[Bucket, frozenset[PartitionKey]]
    fingerprint: str
    memory: int
    threads: int
    shared: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Ground:
        """Open the graph, and refuse a run file that does not fit it.

        Args:
            config: with graph and checkpoint paths.

        Raises:
            ConfigError: the run file does not fit the graph.
            FormatError: the graph is damaged.
        """
        graph_path, path = required_paths(config)
        graph = Graph.open(graph_path)
        check_graph(config, graph)
        check_place(path, graph_path)
        # Readers elsewhere can follow an absolute path only.
        anchored = config.model_copy(update={"graph": GraphSection(path=graph.path.resolve())})
        share = config.cluster.workers  # of this machine
        return cls(
            anchored,
            graph,
            graph.schema.needs(graph.splits["train"]),
            fingerprint(config, graph.fingerprint),
            config.train.memory or psutil.virtual_memory().available // 2 // share,
            config.train.threads or max(1, _cores() // share),
        )

    def model(self) -> Model:
        """Return the model with its initial relation parameters."""
        config = self.config
        seed = config.train.seed
        return build_model(config.model, config.relations, self.graph.schema, seed=seed)

    def facts(self, *, sharing: bool) -> InitFacts:
        """Return what never changes during a new run.

        Args:
            sharing: several workers may train at the same time.
        """
        facts = self._facts()
        if not sharing:
            return facts
        return replace(facts, shared=choose_shared(facts.schema, self.table_sizes(facts)))

    def _facts(self) -> InitFacts:
        checkpoint = self.config.checkpoint
        half = checkpoint is not None and checkpoint.rows == "float16"

        def facts(row_wise: bool) -> InitFacts:
            return InitFacts(
                schema=self.graph.schema,
                graph=self.graph.fingerprint,
                dimension=self.config.model.dimension,
                row_wise=row_wise,
                init_scale=self.config.model.init_scale,
                seed=self.config.train.seed,
                buckets=dict(self.graph.splits["train"]),
                half=half,
            )

        if self.config.optimizer.name != "auto":
            return facts(self.config.optimizer.name == "adagrad_row")
        # Element-wise state ranks better on small graphs; row-wise halves memory and traffic.
        whole = sum(self.table_sizes(facts(False)).values())
        return facts(whole > self.memory)

    def table_sizes(self, facts: InitFacts) -> dict[PartitionKey, int]:
        """Return the bytes of each partition's table."""
        return {key: facts.table_bytes(key) for key in self.graph.schema.partition_keys()}

    def check_memory(self, facts: InitFacts) -> None:
        """Refuse a budget too small for the largest bucket, as `checks.check_memory` does."""
        needs = {bucket: facts.locked(bucket) for bucket in self.needs}
        sizes = self.table_sizes(facts)
        check_memory(needs, sizes, self.memory, sum(sizes[key] for key in facts.shared_keys()))


def ground_of(ground: Ground, facts: InitFacts) -> Ground:
    """Return a ground with what a run's facts say of it."""
    if not facts.shared:
        return ground
    needs = {bucket: facts.locked(bucket) for bucket in ground.needs}
    return replace(ground, needs=needs, shared=facts.shared)


def plans_of(ground: Ground, facts: InitFacts) -> Callable[[int], list[State]]:
    """Return what makes the plan of an epoch, from 1, for a cache of one worker's budget.

    Args:
        ground: run file and graph.
        facts: of the run.
    """
    train, needs, sizes = ground.config.train, ground.needs, ground.table_sizes(facts)
    capacity = ground.memory - sum(sizes[key] for key in facts.shared_keys())
    slots = choose_slots(train.bucket_order, needs, sizes, capacity)
    return lambda epoch: make_plan(train.bucket_order, needs, slots, mix_seed(train.seed, epoch))


def _cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
