"""Import: source files in, a graph directory out, in three stages with bounded memory.

    1. map       read edges, hash and number both ends, spill edges by bucket, names sorted by hash
    2. entities  merge each partition's names: the rank of the hash is the offset
    3. edges     replace numbers by offsets, filter, hold out, shuffle, write each bucket

Each stage reads what the one before left on disk; see docs/data-model.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from biggraph.errors import FormatError, InputError, StorageError
from biggraph.graph import disk
from biggraph.graph.dictionary import HashCollisionError, build_dictionary, offset_dtype
from biggraph.graph.format import (
    Manifest,
    read_manifest,
)
from biggraph.graph.hashing import hash_text
from biggraph.graph.mapping import Mapper, Relations
from biggraph.graph.offsets import (
    RelationTable,
    drop_rare_entities,
    resolve,
    return_needed,
)
from biggraph.graph.plan import Plan
from biggraph.graph.readers import (
    Batch,
    Reading,
    Skipped,
    is_table,
    path_list,
    read_source,
    read_table,
)
from biggraph.graph.runs import runs_of
from biggraph.graph.sources import Source, expand, refuse_repeats
from biggraph.graph.spec import ImportReport, ImportSpec, check_spec, is_given
from biggraph.graph.threads import ahead, side_by_side
from biggraph.graph.workspace import require_space, workspace
from biggraph.graph.writing import write_graph
from biggraph.types import Bucket, mix_seed

ATTEMPTS = 5


@dataclass
class _Counts:
    """What the report says, gathered on the way."""

    skipped: Skipped
    rows: dict[str, int] = field(default_factory=dict)
    dropped_edges: int = 0
    dropped_entities: int = 0
    dropped_relations: int = 0


def import_graph(sources: Any, out: str | Path, *, spec: ImportSpec) -> ImportReport:
    """Turn edges into a graph directory.

    Args:
        sources: the train split: paths (files, folders, globs), a pyarrow Table or a pandas frame.
        out: the graph directory to make; published complete or not at all.
        spec: everything else.

    Raises:
        ConfigError: options that cannot be.
        InputError: a source is missing, damaged, or says something that is not an edge.
        StorageError: the disk is full or refuses, or `out` holds something else.
    """
    started = time.perf_counter()
    check_spec(spec)
    given = {"train": sources, "valid": spec.valid, "test": spec.test}
    inputs = {split: _inputs(item) for split, item in given.items()}
    files = [item for items in inputs.values() for item in items if isinstance(item, Source)]
    refuse_repeats(files)
    if not inputs["train"]:
        raise InputError("no sources: name at least one file of edges")
    out = Path(out).absolute()
    if spec.overwrite:
        _refuse_sources_inside(out, files)
    with workspace(out, lambda path: spec.overwrite and _is_graph(path)) as root:
        require_space(root, _space_needed(files))
        for attempt in range(ATTEMPTS):
            plan = Plan(spec, root, mix_seed(spec.seed, attempt))
            try:
                manifest, counts = _run(plan, inputs)
                break
            except HashCollisionError:
                disk.remove_tree(plan.scratch)
        else:
            raise InputError(f"{ATTEMPTS} seeds each gave two names one hash; choose another seed")
    return _report(manifest, counts, time.perf_counter() - started)


def _run(plan: Plan, inputs: dict[str, list[Any]]) -> tuple[Manifest, _Counts]:
    """Do the three stages and write graph.json."""
    counts = _Counts(Skipped(plan.spec.skip_bad_lines))
    mapper = _map(plan, inputs, counts)
    _entities(plan)
    relations = _relation_table(plan, mapper.relations, counts)
    _edges(plan, relations, counts)
    manifest = write_graph(plan, relations, mapper.weighted)
    disk.remove_tree(plan.scratch)
    disk.make_tree_durable(plan.root)
    return manifest, counts


def _map(plan: Plan, inputs: dict[str, list[Any]], counts: _Counts) -> Mapper:
    """Stage one."""
    for name in ("names", "entities"):
        disk.create_folder(plan.folder(name))
    spec = plan.spec
    how = Reading(spec.columns, spec.header, min(plan.share(128), 1 << 20), counts.skipped)
    with Mapper(plan) as mapper:
        for split, items in inputs.items():
            for edges in ahead(mapper.prepared(ahead(_batches(plan, items, how)))):
                mapper.add(split, edges)
                counts.rows[split] = counts.rows.get(split, 0) + len(edges.rows)
    if not counts.rows.get("train"):
        raise InputError("the sources of train hold no edges")
    return mapper


def _batches(plan: Plan, items: list[Any], how: Reading) -> Iterator[Batch]:
    total = sum(item.size for item in items if isinstance(item, Source))
    done = 0
    for item in items:
        if isinstance(item, Source):
            yield from read_source(item, how, lambda n: plan.tell("read", done + n, total))  # noqa: B023
            done += item.size
        else:
            yield from read_table(item, how, "table")


def _entities(plan: Plan) -> None:
    """Stage two."""
    runs = runs_of(plan)
    counts = sum(np.diff(run.begins()[:, 0]) for run in runs)
    codes = np.flatnonzero(counts).tolist()
    built = side_by_side(lambda code: build_dictionary(plan, code, runs), codes)
    for done, _ in enumerate(built, 1):
        plan.tell("entities", done, len(codes))


def _relation_table(plan: Plan, found: Relations, counts: _Counts) -> RelationTable:
    """Number the relations that have enough edges: by name, or as the schema lists them."""
    minimum = plan.spec.min_relation_count
    by_name = dict(zip(found.names, found.counts, strict=True))
    names = list(found.listed) if found.listed else sorted(by_name)
    kept = [name for name in names if by_name.get(name, 0) >= minimum or minimum == 1]
    if not kept:
        raise InputError(f"no relations left: none has {minimum} edges; lower min_relation_count")
    counts.dropped_relations = len(names) - len(kept)
    final = {name: i for i, name in enumerate(kept)}
    types = {name: i for i, name in enumerate(plan.types)}
    pairs = [found.listed.get(name, (plan.types[0],) * 2) for name in kept]
    return RelationTable(
        names=kept,
        types=np.array([[types[lhs], types[rhs]] for lhs, rhs in pairs]).reshape(-1, 2),
        final=np.array([final.get(name, -1) for name in found.names], np.int32),
        hashes=np.array([hash_text(name, plan.hash_seed) for name in found.names], np.uint64),
        dtype=offset_dtype(plan),
    )


def _edges(plan: Plan, relations: RelationTable, counts: _Counts) -> None:
    """Stage three without writing: offsets, minimum counts, holdout."""
    spec = plan.spec
    counts.dropped_edges = resolve(
        plan, relations, lambda done, total: plan.tell("edges", done, total)
    )
    if spec.min_entity_count > 1 or counts.dropped_edges:
        counts.dropped_entities, edges = drop_rare_entities(plan, relations)
        counts.dropped_edges += edges
    if spec.holdout:
        return_needed(plan, relations)
    if not plan.spilled("edges-train"):
        raise InputError(
            "no edges left to train on: the minimum counts dropped all; lower min_entity_count "
            "or min_relation_count"
        )


def _inputs(given: Any) -> list[Any]:
    """Return the sources of one split: files, or a table."""
    if not is_given(given):
        return []
    if is_table(given):
        return [given]
    return list(expand(path_list(given)))


def _is_graph(path: Path) -> bool:
    """Return whether a folder is a graph directory.

    Raises:
        StorageError: it holds something besides the graph.
    """
    try:
        manifest = read_manifest(path)
    except FormatError:
        return False
    files = {path / relative for relative in manifest.files()}
    known = files | {folder for file in files for folder in file.parents}
    for folder, folders, names in os.walk(path):
        for found in sorted(Path(folder, name) for name in (*folders, *names)):
            if found not in known:
                raise StorageError(
                    f"{path}: holds {found.relative_to(path)}, which is no part of the graph; "
                    "move it away before overwriting the graph"
                )
    return True


def _refuse_sources_inside(out: Path, files: list[Source]) -> None:
    for source in files:
        if source.path.resolve().is_relative_to(out.resolve()):
            raise InputError(
                f"{source.path}: lies inside {out}, which the import would replace; move it, or "
                "choose another name for the graph"
            )


def _space_needed(files: list[Source]) -> int:
    """Return a low estimate of the bytes on disk at the peak: spilled edges and names."""
    growth = {None: 2.0, "gzip": 6.0, "zstd": 6.0}
    return int(
        sum(
            2 * file.size if file.kind == "parquet" else growth[file.compression] * file.size
            for file in files
        )
    )


def _report(manifest: Manifest, counts: _Counts, seconds: float) -> ImportReport:
    buckets = {
        split: {Bucket(r.lhs, r.rhs): r.count for r in records}
        for split, records in manifest.splits.items()
    }
    return ImportReport(
        rows=counts.rows,
        edges={split: sum(found.values()) for split, found in buckets.items()},
        skipped=counts.skipped.first,
        skipped_count=counts.skipped.count,
        dropped_edges=counts.dropped_edges,
        dropped_entities=counts.dropped_entities,
        dropped_relations=counts.dropped_relations,
        entities={t.name: sum(p.count for p in t.partitions) for t in manifest.entities},
        relations=len(manifest.relations),
        buckets=buckets,
        seconds=seconds,
        fingerprint=manifest.fingerprint,
    )
