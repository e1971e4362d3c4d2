"""Stage three, first part: hashed edges to offsets; minimum counts; holdout.

Works through the spill files bucket by bucket. Every decision depends on the edges' content and
the seed alone: neither the order of input nor the number of partitions changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.dictionary import Dictionary, entity_files
from biggraph.graph.hashing import Hashes, add_counts, mix_columns
from biggraph.graph.mapping import HASHED_SCHEMA
from biggraph.graph.plan import Plan
from biggraph.graph.spec import SPLITS
from biggraph.graph.spill import Spill, numbers, read_spill, select, to_rows
from biggraph.types import IntArray, mix_seed

EDGE_SCHEMA = pa.schema(
    {"lhs": pa.int64(), "rel": pa.int32(), "rhs": pa.int64(), "weight": pa.float32()}
)
HOLDOUT = 1  # purpose of the seed
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class RelationTable:
    """Relations as stage three needs them.

    Args:
        names: relation names by final id.
        types: entity types (positions in the plan) of lhs and rhs by final id, shape [R, 2].
        final: final id by provisional code, -1 where dropped, int32.
        hashes: hash of the name by provisional code, uint64.
    """

    names: list[str]
    types: IntArray
    final: IntArray
    hashes: NDArray[np.uint64]


def resolve(
    plan: Plan, relations: RelationTable, done: Callable[[int], None], dictionary: Dictionary
) -> int:
    """Turn all hashed edges into offsets, by split and bucket; return the edges dropped.

    Train edges drawn for a holdout go to that split. Edges of dropped relations are left out.
    """
    dropped, finished, spills = 0, 0, _edge_spills(plan, "edges", 48)
    for split in SPLITS:
        for code, path in plan.spilled(f"hashed-{split}"):
            for rows in read_spill(path, HASHED_SCHEMA, plan.share(32)):
                keep = relations.final[numbers(rows, "rel")] >= 0
                dropped += int(len(keep) - keep.sum())
                rows = select(rows, keep)
                edges = _to_offsets(plan, code, rows, relations, dictionary)
                target = _draw(plan, split, rows, relations)
                for k, name in enumerate(SPLITS):
                    _add(spills[name], code, edges, target == k)
            disk.remove(path)
            finished += 1
            done(finished)
    _flush(spills)
    return dropped


def _to_offsets(
    plan: Plan, code: int, rows: pa.RecordBatch, relations: RelationTable, dictionary: Dictionary
) -> pa.RecordBatch:
    rel = relations.final[numbers(rows, "rel")]
    out = {"lhs": np.empty(len(rel), np.int64), "rhs": np.empty(len(rel), np.int64)}
    for side, partition, at in ends(plan, code, rel, relations):
        wanted = Hashes(numbers(rows, f"{side}_hi")[at], numbers(rows, f"{side}_lo")[at])
        out[side][at] = dictionary.find(partition, wanted)
    if len(rel) and min(out["lhs"].min(), out["rhs"].min()) < 0:
        raise AssertionError("an edge's entity is not in its dictionary")
    return _edge_batch(out["lhs"], rel, out["rhs"], rows.column("weight"))


def _edge_batch(*columns: np.ndarray | pa.Array) -> pa.RecordBatch:
    return to_rows(columns, EDGE_SCHEMA)


def ends(
    plan: Plan, code: int, rel: IntArray, relations: RelationTable
) -> Iterator[tuple[str, int, IntArray | slice]]:
    """Yield (side, partition code, rows) so that each end of each edge of a bucket occurs once."""
    for side, name in enumerate(("lhs", "rhs")):
        types = relations.types[rel, side] if len(plan.types) > 1 else np.zeros(1, np.int64)
        present = np.flatnonzero(np.bincount(types))
        for entity_type in present:
            at = slice(None) if len(present) == 1 else np.flatnonzero(types == entity_type)
            yield name, int(plan.first_code[entity_type]) + plan.bucket(code)[side], at


def _draw(plan: Plan, split: str, rows: pa.RecordBatch, relations: RelationTable) -> IntArray:
    """Return the split of each edge as a position in SPLITS; equal edges fall together."""
    target = np.full(rows.num_rows, SPLITS.index(split), np.int8)
    if split != "train" or not plan.spec.holdout:
        return target
    rel = relations.hashes[numbers(rows, "rel")]
    lhs, rhs = numbers(rows, "lhs_hi"), numbers(rows, "rhs_hi")
    drawn = mix_columns(mix_seed(plan.spec.seed, HOLDOUT), lhs, rel, rhs) * 2.0**-64
    start = 0.0
    for name, fraction in sorted(plan.spec.holdout.items()):
        target[(drawn >= start) & (drawn < start + fraction)] = SPLITS.index(name)
        start += fraction
    return target


def count_touching(plan: Plan, split: str, column: str, relations: RelationTable) -> IntArray:
    """Add the edges of a split that touch each entity to a uint32 column of every partition.

    Returns:
        Edges of each relation.
    """
    counts = np.zeros(len(relations.names), np.int64)
    for code, path in plan.spilled(f"edges-{split}"):
        for edges in read_spill(path, EDGE_SCHEMA, plan.share(16)):
            rel = numbers(edges, "rel")
            counts += np.bincount(rel, minlength=len(counts))
            loop = _loops(plan, code, edges, relations)
            for side, partition, at in ends(plan, code, rel, relations):
                offsets = numbers(edges, side)[at]
                offsets = offsets if side == "lhs" else offsets[~loop[at]]
                add_counts(entity_files(plan, partition).counter(column), offsets)
    return counts


def _loops(plan: Plan, code: int, edges: pa.RecordBatch, relations: RelationTable) -> Mask:
    """Return a mask of the edges from an entity to itself."""
    bucket = plan.bucket(code)
    types = relations.types[numbers(edges, "rel")]
    same: Mask = numbers(edges, "lhs") == numbers(edges, "rhs")
    same &= (types[:, 0] == types[:, 1]) & (bucket.lhs == bucket.rhs)
    return same


def drop_rare_entities(plan: Plan, relations: RelationTable) -> tuple[int, int]:
    """Drop entities in fewer edges than the minimum, and their edges; return how many of each."""
    for split in SPLITS:
        count_touching(plan, split, "seen", relations)
    minimum = plan.spec.min_entity_count
    entities = sum(entity_files(plan, code).drop_rare(minimum) for code, _ in plan.all_keys())
    dropped = 0
    for split in SPLITS:
        spills = _edge_spills(plan, "kept", 32)
        for code, path in plan.spilled(f"edges-{split}"):
            for edges in read_spill(path, EDGE_SCHEMA, plan.share(16)):
                rel = numbers(edges, "rel")
                new = {"lhs": np.empty(len(rel), np.int64), "rhs": np.empty(len(rel), np.int64)}
                for side, partition, at in ends(plan, code, rel, relations):
                    moved = entity_files(plan, partition).column("moved")
                    new[side][at] = moved[numbers(edges, side)[at]]
                keep = (new["lhs"] >= 0) & (new["rhs"] >= 0)
                dropped += int(len(keep) - keep.sum())
                edges = _edge_batch(new["lhs"], rel, new["rhs"], edges.column("weight"))
                _add(spills[split], code, edges, keep)
        _flush(spills)
        _replace(plan, split)
    return entities, dropped


def return_needed(plan: Plan, relations: RelationTable) -> None:
    """Give edges drawn for a holdout back to train where an end or the relation has no other."""
    relation_counts = count_touching(plan, "train", "sure", relations)
    for split in sorted(plan.spec.holdout):
        spills = _edge_spills(plan, "kept", 48)
        train = Spill(plan.folder("edges-train"), plan.share(48))
        for code, path in plan.spilled(f"edges-{split}"):
            for edges in read_spill(path, EDGE_SCHEMA, plan.share(16)):
                rel = numbers(edges, "rel")
                needed = relation_counts[rel] == 0
                for side, partition, at in ends(plan, code, rel, relations):
                    sure = entity_files(plan, partition).counter("sure")
                    needed[at] |= sure[numbers(edges, side)[at]] == 0
                _add(spills[split], code, edges, ~needed)
                _add(train, code, edges, needed)
        train.flush()
        _flush(spills)
        _replace(plan, split)


def _edge_spills(plan: Plan, stem: str, divisor: int) -> dict[str, Spill]:
    for split in SPLITS:
        disk.create_folder(plan.folder(f"{stem}-{split}"))
    return {split: Spill(plan.folder(f"{stem}-{split}"), plan.share(divisor)) for split in SPLITS}


def _add(spill: Spill, code: int, edges: pa.RecordBatch, keep: Mask) -> None:
    kept = select(edges, keep)
    if kept.num_rows:
        spill.add(kept, np.full(kept.num_rows, code, np.int64))


def _flush(spills: dict[str, Spill]) -> None:
    for spill in spills.values():
        spill.flush()


def _replace(plan: Plan, split: str) -> None:
    """Let the edges of "kept" take the place of "edges"."""
    disk.remove_tree(plan.folder(f"edges-{split}"))
    disk.rename(plan.folder(f"kept-{split}"), plan.folder(f"edges-{split}"))
