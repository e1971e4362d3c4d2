"""The library's verbs: what the command line does, as functions.

Opens things by path, connects the layers below and shows progress; computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from biggraph import cluster
from biggraph.cluster import stopping_on_signals, validation
from biggraph.config import Config, load_config, make_config
from biggraph.errors import ConfigError
from biggraph.evaluate import evaluate as evaluation
from biggraph.evaluate.evaluate import Evaluation, Settings
from biggraph.evaluate.opening import graph_of
from biggraph.graph.compiled import kept
from biggraph.graph.importer import import_graph as import_sources
from biggraph.graph.spec import ImportReport, ImportSpec
from biggraph.log import Reporter
from biggraph.storage.checkpoint import Checkpoint
from biggraph.train.build import build
from biggraph.train.trainer import TrainResult

Candidates = Literal["all"] | int


def import_graph(  # noqa: PLR0913 - mirrors the command line
    sources: Any,
    out: str | Path,
    *,
    valid: Any = (),
    test: Any = (),
    holdout: Mapping[str, float] | None = None,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
    partitions: int | None = None,
    memory: int | None = None,
    seed: int | None = None,
    skip_bad_lines: bool = False,
    overwrite: bool = False,
    config: Config | str | Path | None = None,
    quiet: bool = False,
) -> ImportReport:
    """Import edges into a new graph directory.

    Args:
        sources: the train split: paths of files, folders or globs, a pyarrow Table or a pandas
            frame with columns head, relation, tail[, weight].
        out: the graph directory to make.
        valid: sources of the validation split.
        test: sources of the test split.
        holdout: fractions of the train edges to move to "valid" and "test".
        columns: names or positions of the head, relation, tail[, weight] columns.
        header: whether text files start with a header line; None: found out.
        partitions: slices of each entity type that `config` does not set.
        memory: budget in bytes for working memory.
        seed: of the assignment of entities and of the shuffle.
        skip_bad_lines: report unreadable lines instead of refusing the file.
        overwrite: replace an existing graph directory.
        config: run file with entity types, relations and filters; arguments win over it.
        quiet: show no progress.

    Raises:
        InputError: a source is missing or wrong; the message names file and line.
        ConfigError: the options do not go together.
        StorageError: `out` holds something else, or the disk refused.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    run_file = _config(config) if config is not None else make_config({})
    section = run_file.import_
    with Reporter(quiet=quiet) as reporter:
        if not kept():
            reporter.say("compiling the importer, for some seconds; later runs find it compiled")
        spec = ImportSpec(
            valid=valid,
            test=test,
            holdout=holdout or {},
            columns=columns if columns is not None else section.columns,
            header=header,
            skip_bad_lines=skip_bad_lines,
            memory=section.memory if memory is None else memory,
            entities={name: e.partitions for name, e in run_file.entities.items()},
            partitions=section.partitions if partitions is None else partitions,
            relations=[(r.name, r.lhs, r.rhs) for r in run_file.relations],
            min_entity_count=section.min_entity_count,
            min_relation_count=section.min_relation_count,
            seed=section.seed if seed is None else seed,
            overwrite=overwrite,
            on_progress=reporter.advance,
        )
        return import_sources(sources, out, spec=spec)


def train(
    config: Config | str | Path,
    overrides: Sequence[str] = (),
    *,
    restart: bool = False,
    quiet: bool = False,
) -> TrainResult:
    """Train the run that a run file describes, from where its checkpoint folder stands.

    With `cluster.workers` above 1, that many worker processes are started on this machine. In the
    main thread, SIGINT and SIGTERM finish the bucket in training, commit and raise
    `Interrupted`; a second one gives the bucket up.

    Args:
        config: run file, or a configuration made by `load_config` or `make_config`.
        overrides: dotted overrides such as "train.epochs=3", with a run file only.
        restart: remove an existing run first.
        quiet: show no progress.

    Raises:
        ConfigError: the run file is wrong or does not fit the graph or the run.
        DivergenceError: training diverged; the last commit is kept.
        Interrupted: a signal stopped it; what was trained is committed.
    """
    config = _config(config, overrides)
    with Reporter(quiet=quiet) as reporter:
        if config.cluster.workers > 1:
            return cluster.train_together(config, restart=restart, reporter=reporter)
        run = build(config, restart=restart, reporter=reporter, validate=validation(config))
        try:
            with stopping_on_signals(run.trainer.stop):
                return run.trainer.run()
        finally:
            run.close()


def evaluate(  # noqa: PLR0913 - mirrors the command line
    checkpoint: str | Path,
    *,
    split: str = "test",
    filtered: bool = True,
    candidates: Candidates = "all",
    edges: int | None = None,
    seed: int = 0,
    per_relation: bool = False,
    baseline: bool = False,
    graph: str | Path | None = None,
    snapshot: str | None = None,
    quiet: bool = False,
) -> Evaluation:
    """Rank the edges of a split among candidates, on both sides.

    Args:
        checkpoint: run directory.
        split: "valid" or "test" (or "train").
        filtered: leave known true edges out of the candidates.
        candidates: "all" entities of the right type, or that many sampled ones.
        edges: evaluate this many edges, sampled; None: all.
        seed: of both samples.
        per_relation: also report every relation.
        baseline: rank by popularity instead (how often an entity ends an edge of the relation).
        graph: graph directory, where it moved since training.
        snapshot: a kept checkpoint by name; None: the best, else the latest.
        quiet: show no progress.

    Raises:
        InputError: unknown or empty split.
        FormatError: checkpoint or graph are damaged.
    """
    opened = Checkpoint.open(checkpoint, snapshot)
    its_graph = graph_of(opened, graph)
    settings = Settings(split, filtered, candidates, edges, seed)
    if baseline:
        result = evaluation.evaluate_popularity(its_graph, settings, per_relation=per_relation)
        return replace(result, about={"scorer": "popularity"})
    with Reporter(quiet=quiet) as reporter:
        result = evaluation.evaluate(
            opened,
            its_graph,
            settings,
            per_relation=per_relation,
            on_progress=lambda done, total: reporter.advance("ranking", done, total),
        )
    about = {"scorer": "model", "checkpoint": str(opened.path), "snapshot": opened.name}
    return replace(result, about=about | {"epoch": opened.epoch})


def _config(config: Config | str | Path, overrides: Sequence[str] = ()) -> Config:
    if isinstance(config, Config):
        if overrides:
            raise ConfigError("overrides go with a run file; use make_config for values")
        return config
    return load_config(config, overrides)
