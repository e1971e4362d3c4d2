"""Stage three, first part: hashed edges to offsets; minimum counts; holdout.

Works through the spill files bucket by bucket. Every decision depends on the edges' content and
the seed alone: neither the order of input nor the number of partitions changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.compiled import compiled
from biggraph.graph.dictionary import entity_files, find
from biggraph.graph.hashing import mix_columns
from biggraph.graph.mapping import CODED, coded
from biggraph.graph.plan import Plan
from biggraph.graph.rows import LHS, REL, RHS, append_rows, count_rows, read_rows, rewrite
from biggraph.graph.runs import NameFiles, runs_of
from biggraph.graph.spec import SPLITS
from biggraph.graph.threads import ahead
from biggraph.types import IntArray, mix_seed

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
        dtype: of the offsets in spilled edges.
    """

    names: list[str]
    types: IntArray
    final: IntArray
    hashes: NDArray[np.uint64]
    dtype: np.dtype[Any]


class Generation:
    """What the numbers of names mean in one generation: offsets, and for a holdout hashes."""

    def __init__(self, plan: Plan, run: NameFiles, dtype: np.dtype[Any]) -> None:
        """Look up all names of a generation's run; offsets are of `dtype`."""
        numbers, hi = run.column("number"), run.column("hi")
        rows = run.begins()[:, 0].tolist()
        self.offsets = np.empty(len(numbers), dtype)
        for code, (start, stop) in enumerate(pairwise(rows)):
            if start < stop:
                found = find(entity_files(plan, code), run.hashes(start, stop))
                self.offsets[numbers[start:stop]] = found
        if len(numbers) and self.offsets.min() < 0:
            raise AssertionError("an edge's entity is not in its dictionary")
        self.hi = np.empty(len(numbers) if plan.spec.holdout else 0, np.uint64)
        if plan.spec.holdout:
            self.hi[numbers] = hi


def resolve(plan: Plan, relations: RelationTable, done: Callable[[int, int], None]) -> int:
    """Turn all numbered edges into offsets, by split and bucket; return the edges dropped.

    Train edges drawn for a holdout go to that split. Edges of dropped relations are left out.
    """
    for split in SPLITS:
        disk.create_folder(plan.folder(f"edges-{split}"))
    runs = runs_of(plan)
    files = [
        (number, split, code, path)
        for number in range(len(runs))
        for split in SPLITS
        for code, path in plan.spilled(coded(number, split))
    ]
    dropped, last, names = 0, -1, None
    for finished, (number, split, code, path) in enumerate(files, 1):
        if names is None or last != number:
            names, last = Generation(plan, runs[number], relations.dtype), number
        place = plan.folder(f"edges-{split}") / str(code)
        if _keeps_all(plan, split, relations) and not place.exists():
            rewrite(path, CODED, partial(_replace, names.offsets, relations.final))
            disk.move(path, place)
        else:
            dropped += _deal(plan, split, code, _resolved(plan, split, path, names, relations))
            disk.remove(path)
        done(finished, len(files))
    return dropped


def _keeps_all(plan: Plan, split: str, relations: RelationTable) -> bool:
    """Return whether all edges of a split stay there, in rows of the same size."""
    drawn = split == "train" and plan.spec.holdout
    return not drawn and bool((relations.final >= 0).all()) and relations.dtype == CODED


def _deal(
    plan: Plan, split: str, code: int, edges: Iterator[tuple[IntArray, IntArray | None, int]]
) -> int:
    """Append edges to the files of their splits; return how many were dropped."""
    dropped = 0
    for rows, target, unwanted in ahead(edges):
        dropped += unwanted
        for k, name in enumerate(SPLITS):
            kept = rows if target is None and name == split else rows[target == k]
            append_rows(plan.folder(f"edges-{name}") / str(code), kept)
    return dropped


def _resolved(
    plan: Plan, split: str, path: Path, names: Generation, relations: RelationTable
) -> Iterator[tuple[IntArray, IntArray | None, int]]:
    """Yield the edges of a file, their splits where some are drawn, and how many were dropped."""
    drawn = split == "train" and plan.spec.holdout
    for coded_rows in read_rows(path, CODED):
        keep = relations.final[coded_rows[:, REL]] >= 0
        rows = coded_rows if keep.all() else coded_rows[keep]
        target = _draw(plan, rows, names, relations) if drawn else None
        edges = rows.astype(relations.dtype)
        _replace(names.offsets, relations.final, edges)
        yield edges, target, len(coded_rows) - len(rows)


@compiled
def _replace(offsets, final, rows):  # type: ignore[no-untyped-def]
    """Replace the numbers of names and relations in rows by offsets and ids."""
    for i in range(len(rows)):
        rows[i, LHS] = offsets[rows[i, LHS]]
        rows[i, REL] = final[rows[i, REL]]
        rows[i, RHS] = offsets[rows[i, RHS]]


def _draw(plan: Plan, rows: IntArray, names: Generation, relations: RelationTable) -> IntArray:
    """Return the split of each train edge as a position in SPLITS; equal edges fall together."""
    target = np.zeros(len(rows), np.int8)
    rel = relations.hashes[rows[:, REL]]
    lhs, rhs = names.hi[rows[:, LHS]], names.hi[rows[:, RHS]]
    drawn = mix_columns(mix_seed(plan.spec.seed, HOLDOUT), lhs, rel, rhs) * 2.0**-64
    start = 0.0
    for name, fraction in sorted(plan.spec.holdout.items()):
        target[(drawn >= start) & (drawn < start + fraction)] = SPLITS.index(name)
        start += fraction
    return target


def ends(plan: Plan, code: int, relations: RelationTable) -> Iterator[tuple[int, int, int]]:
    """Yield (side, entity type, partition code) of all ends that edges of a bucket can have."""
    for side, part in enumerate(plan.bucket(code)):
        for kind in np.unique(relations.types[:, side]).tolist():
            if part < plan.partitions[kind]:
                yield side, kind, int(plan.first_code[kind]) + part


def count_touching(plan: Plan, split: str, column: str, relations: RelationTable) -> IntArray:
    """Add the edges of a split that touch each entity to a uint32 column of every partition.

    Returns:
        Edges of each relation.
    """
    counts = np.zeros(len(relations.names), np.int64)
    for code, path in plan.spilled(f"edges-{split}"):
        bucket, total = plan.bucket(code), count_rows(path, relations.dtype)
        found = {
            part: entity_files(plan, part).counter(column)
            for _, _, part in ends(plan, code, relations)
        }
        held = {k: np.array(v) if len(v) < total else v for k, v in found.items()}  # large pages
        for rows in read_rows(path, relations.dtype):
            counts += np.bincount(rows[:, REL], minlength=len(counts))
            for side, kind, part in ends(plan, code, relations):
                loops = side == 1 and bucket.lhs == bucket.rhs
                _count(rows, side, relations.types, kind, loops, held[part])
        for part, counter in found.items():
            if held[part] is not counter:
                counter[:] = held[part]
    return counts


@compiled
def _count(rows, side, types, kind, loops, counter):  # type: ignore[no-untyped-def]
    """Count the ends that are of one entity type; leave out ends of loops where asked."""
    for i in range(len(rows)):
        rel = rows[i, REL]
        if types[rel, side] != kind:
            continue
        if loops and rows[i, LHS] == rows[i, RHS] and types[rel, 0] == types[rel, 1]:
            continue
        counter[rows[i, 2 * side]] += np.uint32(1)


def drop_rare_entities(plan: Plan, relations: RelationTable) -> tuple[int, int]:
    """Drop entities in fewer edges than the minimum, and their edges; return how many of each."""
    for split in SPLITS:
        count_touching(plan, split, "seen", relations)
    minimum = plan.spec.min_entity_count
    entities = sum(entity_files(plan, code).drop_rare(minimum) for code, _ in plan.all_keys())
    dropped = 0
    for split in SPLITS:
        for code, rows in _taken(plan, split, relations):
            kept = rows.copy()
            for side, kind, part in ends(plan, code, relations):
                at = relations.types[rows[:, REL], side] == kind
                moved = entity_files(plan, part).column("moved")
                kept[at, 2 * side] = moved[rows[at, 2 * side]]
            keep = (kept[:, LHS] >= 0) & (kept[:, RHS] >= 0)
            dropped += int(len(keep) - keep.sum())
            append_rows(plan.folder(f"edges-{split}") / str(code), kept[keep])
    return entities, dropped


def return_needed(plan: Plan, relations: RelationTable) -> None:
    """Give edges drawn for a holdout back to train where an end or the relation has no other."""
    relation_counts = count_touching(plan, "train", "sure", relations)
    for split in sorted(plan.spec.holdout):
        for code, rows in _taken(plan, split, relations):
            needed = relation_counts[rows[:, REL]] == 0
            for side, kind, part in ends(plan, code, relations):
                at = relations.types[rows[:, REL], side] == kind
                sure = entity_files(plan, part).counter("sure")
                needed[at] |= sure[rows[at, 2 * side]] == 0
            append_rows(plan.folder(f"edges-{split}") / str(code), rows[~needed])
            append_rows(plan.folder("edges-train") / str(code), rows[needed])


def _taken(plan: Plan, split: str, relations: RelationTable) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (bucket code, edges) of a split, whose files make way for new ones."""
    old = plan.folder(f"old-{split}")
    disk.rename(plan.folder(f"edges-{split}"), old)
    disk.create_folder(plan.folder(f"edges-{split}"))
    for code, path in plan.spilled(old.name):
        for rows in read_rows(path, relations.dtype):
            yield code, rows
    disk.remove_tree(old)
