"""Results in words: what a graph, a run, an import or an evaluation came to.

Reads and formats; changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from biggraph.config import Config
from biggraph.errors import InputError
from biggraph.evaluate.evaluate import Evaluation
from biggraph.evaluate.metrics import Metrics
from biggraph.graph.graph import Graph
from biggraph.graph.spec import ImportReport
from biggraph.log import align
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.opening import open_place
from biggraph.storage.run import read_state, require_run
from biggraph.storage.state import RunState
from biggraph.train.trainer import TrainResult

_SHOWN = ("mrr", "mr", "hits@1", "hits@3", "hits@10")
_LONGEST_LIST = 20


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a graph directory or a run directory holds.

    Raises:
        InputError: it is neither.
        FormatError: it is damaged.
    """
    if _is_graph(path):
        return _graph_values(Graph.open(path))
    place = open_place(path)
    if not place.exists():
        raise InputError(f"{path}: does not exist")
    require_run(place)
    return _run_values(str(place), read_state(place))  # reads no table


def verify(path: str | Path) -> list[str]:
    """Return the problems found by checking everything; empty where all is sound."""
    if _is_graph(path):
        return Graph.open(path).verify()
    return Checkpoint.open(path, "latest").verify()


def import_values(report: ImportReport) -> dict[str, Any]:
    """Return an import's report as plain values."""
    values = asdict(report) | {"rows_per_s": report.rows_per_s}
    values["buckets"] = {split: len(found) for split, found in report.buckets.items()}
    return values


def import_text(report: ImportReport) -> str:
    """Return an import's report in words."""
    lines = [f"{name}: {count:,} entities" for name, count in sorted(report.entities.items())]
    lines.append(f"{report.relations:,} relations")
    lines += [
        f"{split}: {count:,} edges in {len(report.buckets.get(split, {})):,} buckets"
        for split, count in report.edges.items()
    ]
    dropped = report.dropped_edges, report.dropped_entities, report.dropped_relations
    if any(dropped):
        lines.append(
            "dropped by minimum counts: {:,} edges, {:,} entities, {:,} relations".format(*dropped)
        )
    if report.skipped_count:
        lines.append(f"skipped {report.skipped_count:,} lines, such as:")
        lines += [f"  {file}:{line}: {why}" for file, line, why in report.skipped[:10]]
    rows = sum(report.rows.values())
    lines.append(f"{rows:,} rows in {report.seconds:.1f} s ({report.rows_per_s:,.0f} rows/s)")
    return "\n".join(lines)


def train_text(result: TrainResult) -> str:
    """Return in words how a run ended."""
    lines = [f"{result.epochs} epochs done, {result.edges:,} edges trained now"]
    if result.stopped_early:
        lines.append("stopped early: validation no longer improved")
    if result.best:
        shown = ", ".join(f"{name} {result.best[name]:.4f}" for name in _SHOWN)
        lines.append(f"best validation: {shown}")
    return "\n".join(lines)


def evaluation_text(result: Evaluation) -> str:
    """Return an evaluation as a table: both sides, each side, each relation."""
    settings = result.settings
    kind = "filtered" if settings.filtered else "raw"
    candidates = (
        "all entities" if settings.candidates == "all" else f"{settings.candidates:,} candidates"
    )
    rows = [_row("both sides", result.metrics)]
    rows += [_row(f"replacing {side}", m) for side, m in result.metrics.sides.items()]
    rows += [_row(name, metrics) for name, metrics in result.relations.items()]
    table = align(rows, header=["", *_SHOWN, "ranks"])
    return (
        f"{_subject(result.about)}{settings.split}: {result.edges:,} edges, {kind}, {candidates}, "
        f"ties ranked midway\n"
        f"{table}\n{result.seconds:.1f} s ({result.edges_per_s:,.0f} edges/s)"
    )


def rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return mappings with equal keys as an aligned table."""
    if not rows:
        return "nothing found"
    return align([list(row.values()) for row in rows], header=list(rows[0]))


def values_text(values: Mapping[str, Any], indent: str = "") -> str:
    """Return nested plain values as indented lines, long lists cut."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{key}:", values_text(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            cut = value[:_LONGEST_LIST]
            lines.append(f"{indent}{key} ({len(value):,}):")
            lines += [indent + "  " + line for line in rows_text(cut).splitlines()]
            if len(value) > len(cut):
                lines.append(f"{indent}  … {len(value) - len(cut):,} more (--json lists all)")
        else:
            shown = f"{value:,}" if isinstance(value, int) and value > 9999 else value
            lines.append(f"{indent}{key}: {shown}")
    return "\n".join(line for line in lines if line)


def _subject(about: Mapping[str, Any]) -> str:
    if about.get("scorer") == "popularity":
        return "popularity baseline  "
    if "snapshot" in about:
        return f"{about['checkpoint']}, {about['snapshot']} (epoch {about['epoch']})  "
    return ""


def _row(name: str, metrics: Metrics) -> list[object]:
    values = metrics.to_dict()
    return [name, *(float(values[key]) for key in _SHOWN), int(values["count"])]


def _is_graph(path: str | Path) -> bool:
    return (Path(path) / "graph.json").exists()


def _graph_values(graph: Graph) -> dict[str, Any]:
    schema = graph.schema
    return {
        "graph": str(graph.path),
        "fingerprint": graph.fingerprint,
        "entities": [
            {"type": e.name, "count": e.count, "partitions": e.partitions} for e in schema.entities
        ],
        "relations": [
            {"name": r.name, "lhs": r.lhs, "rhs": r.rhs, "train_edges": count}
            for r, count in zip(schema.relations, graph.relation_counts, strict=True)
        ],
        "splits": [
            {"split": split, "edges": sum(buckets.values()), "buckets": len(buckets)}
            for split, buckets in graph.splits.items()
        ],
    }


def _run_values(path: str, state: RunState) -> dict[str, Any]:
    config = Config.from_json(state.config, f"{path}: log")
    return {
        "run": path,
        "graph": str(config.graph.path) if config.graph else "",
        "model": config.model.model_dump(),
        "optimizer": "adagrad_row" if state.facts.row_wise else "adagrad",
        "shared_entity_types": list(state.facts.shared),
        "epochs_done": state.epoch,
        "epochs_wanted": config.train.epochs,
        "buckets_done_in_this_epoch": len(state.done),
        "edges_trained": sum(state.edges.values()),
        "commits": sum(len(commits) for commits in state.stats.values()),
        "snapshots": [
            {"name": name, "epoch": kept.epoch} for name, kept in state.snapshots.items()
        ],
        "evaluations": [
            {"epoch": e.epoch, "mrr": float(e.metrics["mrr"]), "hits@10": e.metrics["hits@10"]}
            for e in state.evaluations
        ],
    }
