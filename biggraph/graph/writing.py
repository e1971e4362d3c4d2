"""Stage three, last part: scratch columns and spilled edges become the files of a graph directory.

Decides nothing about edges: what is dropped or held out was decided before.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from biggraph.graph import disk
from biggraph.graph.dictionary import entity_files, offset_dtype
from biggraph.graph.format import (
    BucketRecord,
    EdgeLayout,
    Manifest,
    PartitionRecord,
    RelationRecord,
    TypeRecord,
    edge_path,
    entity_path,
    fingerprint,
    write_edges,
    write_entities,
    write_manifest,
)
from biggraph.graph.offsets import RelationTable, count_touching
from biggraph.graph.plan import Plan
from biggraph.graph.rows import count_rows
from biggraph.graph.shuffle import shuffled
from biggraph.graph.spec import SPLITS, ImportSpec
from biggraph.graph.threads import side_by_side
from biggraph.types import mix_seed

SHUFFLE = 2  # purpose of the seed


def write_graph(plan: Plan, relations: RelationTable, weighted: bool) -> Manifest:
    """Write edges, entities with their degrees, and graph.json."""
    train_edges = count_touching(plan, "train", "degree", relations)
    splits = {}
    for split in SPLITS:
        if plan.spilled(f"edges-{split}"):
            splits[split] = _write_split(plan, split, relations, weighted)
    types = [TypeRecord(name=name, partitions=_write_type(plan, name)) for name in plan.types]
    records = [
        RelationRecord(
            name=name, lhs=plan.types[lhs], rhs=plan.types[rhs], train_edges=int(train_edges[i])
        )
        for i, (name, (lhs, rhs)) in enumerate(zip(relations.names, relations.types, strict=True))
    ]
    manifest = Manifest(
        created_by=f"biggraph {_own_version()}",
        fingerprint=fingerprint(types, records, splits),
        seed=plan.spec.seed,
        hash_seed=plan.hash_seed,
        weighted=weighted,
        entities=types,
        relations=records,
        splits=splits,
        options=_options(plan.spec),
    )
    write_manifest(plan.root, manifest)
    return manifest


def _write_split(
    plan: Plan, split: str, relations: RelationTable, weighted: bool
) -> list[BucketRecord]:
    buckets = plan.spilled(f"edges-{split}")
    disk.create_folder(plan.root / "edges" / split)
    dtype = relations.dtype

    def write(item: tuple[int, Path]) -> BucketRecord:
        code, path = item
        bucket = plan.bucket(code)
        layout = EdgeLayout(bucket, count_rows(path, dtype), offset_dtype(plan).type, weighted)
        seed = mix_seed(plan.spec.seed, SHUFFLE, SPLITS.index(split), *bucket)
        pieces = shuffled(path, dtype, seed, plan.share(4))
        record = write_edges(plan.root / edge_path(split, bucket), layout, pieces)
        disk.remove(path)
        return record

    records = []
    for record in side_by_side(write, buckets):
        records.append(record)
        plan.tell(f"write {split}", len(records), len(buckets))
    return records


def _write_type(plan: Plan, entity_type: str) -> list[PartitionRecord]:
    records = []
    for code, key in plan.all_keys():
        if key.entity_type != entity_type:
            continue
        path = plan.root / entity_path(key)
        disk.create_folder(path.parent)
        records.append(write_entities(path, entity_files(plan, code).batch()))
    return records


def _own_version() -> str:
    try:
        return version("biggraph")
    except PackageNotFoundError:
        return "from source"


def _options(spec: ImportSpec) -> dict[str, Any]:
    """Return the options that shaped the graph, for graph.json."""
    return {
        "columns": None if spec.columns is None else list(spec.columns),
        "holdout": dict(spec.holdout),
        "min_entity_count": spec.min_entity_count,
        "min_relation_count": spec.min_relation_count,
        "skip_bad_lines": spec.skip_bad_lines,
    }
