"""Stage two: the spilled names of one partition become its entities, sorted by hash.

The offset of an entity is its rank. Works on one partition at a time, in ranges of hashes that fit
the memory; results are raw columns on disk that later stages map or read in blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.arrow import numbers, to_arrow
from biggraph.graph.hashing import (
    Hashes,
    HashIndex,
    has_collision,
    sort_order,
    texts_of,
)
from biggraph.graph.mapping import NAME_SCHEMA
from biggraph.graph.plan import Plan
from biggraph.graph.spill import Spill, read_spill
from biggraph.types import IntArray

ROWS = 1 << 20  # entities handled at once
COLUMNS = {
    "hi": np.uint64,
    "lo": np.uint64,
    "length": np.int64,
    "text": np.uint8,
    "moved": np.int64,
}


class HashCollisionError(Exception):
    """Two names of one type have the same 128-bit hash; another seed is needed."""


class EntityFiles:
    """Raw columns of one partition: hi, lo, length of each name, text of all names."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is read."""
        self.folder = folder

    def append(self, names: pa.Array, hashes: Hashes) -> None:
        """Append entities; `names` is a string array without offset."""
        texts = texts_of(names)
        lengths = texts.ends - texts.starts
        text = texts.data[texts.starts[0] : texts.ends[-1]] if len(names) else texts.data[:0]
        for name, values in zip(COLUMNS, (hashes.hi, hashes.lo, lengths, text), strict=False):
            disk.append(self.folder / name, [np.ascontiguousarray(values).data])

    @property
    def count(self) -> int:
        """Number of entities."""
        path = self.folder / "hi"
        return path.stat().st_size // 8 if path.exists() else 0

    def column(self, name: str) -> np.ndarray:
        """Memory-map a column."""
        path, dtype = self.folder / name, COLUMNS[name]
        if not path.exists() or not path.stat().st_size:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r")

    def counter(self, name: str) -> NDArray[np.uint32]:
        """Memory-map a column of counts for reading and writing; zero at first."""
        path = self.folder / name
        if not self.count:
            return np.zeros(0, np.uint32)
        if not path.exists():
            with path.open("xb") as file:
                disk.reserve(file.fileno(), 4 * self.count)
        return np.memmap(path, np.uint32, "r+")

    def batch(self) -> pa.RecordBatch:
        """Return name, hash_hi, hash_lo and degree as one batch over memory-mapped columns."""
        ends = np.append(0, np.cumsum(self.column("length")))
        small = ends[-1] <= np.iinfo(np.int32).max
        kind, offset = (pa.string(), np.int32) if small else (pa.large_string(), np.int64)
        buffers = [None, pa.py_buffer(ends.astype(offset)), pa.py_buffer(self.column("text"))]
        names = pa.Array.from_buffers(kind, self.count, buffers)
        columns = [self.column("hi"), self.column("lo"), self.counter("degree")]
        fields = ["name", "hash_hi", "hash_lo", "degree"]
        return pa.RecordBatch.from_arrays([names, *map(to_arrow, columns)], fields)

    def drop_rare(self, minimum: int) -> int:
        """Drop the entities seen in fewer edges than `minimum`; return how many.

        Column "moved" then holds the new offset of each old one (int64), -1 where dropped.
        """
        kept = EntityFiles(self.folder.with_name(f"{self.folder.name}-kept"))
        disk.create_folder(kept.folder)
        before, seen, lengths = self.count, self.counter("seen"), self.column("length")
        total = at = 0
        for start in range(0, before, ROWS):
            rows = slice(start, start + ROWS)
            keep, length = seen[rows] >= minimum, lengths[rows]
            text = self.column("text")[at : at + length.sum()]
            moved = np.where(keep, total + np.cumsum(keep) - 1, -1)
            columns = {"hi": self.column("hi")[rows][keep], "lo": self.column("lo")[rows][keep]}
            columns |= {"length": length[keep], "text": text[np.repeat(keep, length)]}
            for name, values in (columns | {"moved": moved}).items():
                disk.append(kept.folder / name, [values.data])
            total, at = total + int(keep.sum()), at + int(length.sum())
        if before:
            disk.remove_tree(self.folder)
            disk.rename(kept.folder, self.folder)
        return before - total

    def hashes(self, start: int, stop: int) -> Hashes:
        """Read some hashes into memory."""
        lanes = []
        for name in ("hi", "lo"):
            with (self.folder / name).open("rb") as file:
                lanes.append(np.fromfile(file, np.uint64, stop - start, offset=8 * start))
        return Hashes(*lanes)


def entity_files(plan: Plan, code: int) -> EntityFiles:
    """Return the raw columns of a partition."""
    return EntityFiles(plan.folder("entities") / str(code))


def offset_dtype(plan: Plan) -> np.dtype[Any]:
    """Return int32, or int64 where a partition has more entities than that can say."""
    largest = max(entity_files(plan, code).count for code, _ in plan.all_keys())
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def build_dictionary(plan: Plan, code: int, spilled: Path) -> None:
    """Turn a partition's spilled names into its entities.

    Raises:
        HashCollisionError: two names share a hash.
    """
    files = entity_files(plan, code)
    disk.create_folder(files.folder)
    for rows in _ranges(plan, spilled):
        hashes = Hashes(numbers(rows, "hi"), numbers(rows, "lo"))
        order = sort_order(hashes)
        if has_collision(rows.column("name"), hashes, order):
            raise HashCollisionError
        hashes = Hashes(hashes.hi[order], hashes.lo[order])
        first = np.ones(len(order), np.bool_)
        first[1:] = (hashes.hi[1:] != hashes.hi[:-1]) | (hashes.lo[1:] != hashes.lo[:-1])
        names = rows.column("name").take(to_arrow(order[first]))
        files.append(names, Hashes(hashes.hi[first], hashes.lo[first]))
    disk.remove(spilled)


def _ranges(plan: Plan, spilled: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a spill in rising ranges of hashes, each within the memory share."""
    limit = plan.share(24)
    bits = max(0, (spilled.stat().st_size // limit).bit_length())
    if not bits:
        yield from read_spill(spilled, NAME_SCHEMA)
        return
    folder = spilled.with_name(f"{spilled.name}-ranges")
    disk.create_folder(folder)
    spill = Spill(folder, limit)
    for rows in read_spill(spilled, NAME_SCHEMA, limit):
        spill.add(rows, (numbers(rows, "hi") >> np.uint64(64 - bits)).astype(np.int64))
    spill.flush()
    for part in range(1 << bits):
        yield from read_spill(folder / str(part), NAME_SCHEMA)
        disk.remove(folder / str(part))
    disk.remove_tree(folder)


class Dictionary:
    """Finds offsets by hash, holding recently used partitions in memory up to a limit."""

    def __init__(self, plan: Plan, limit: int) -> None:
        """Hold at most about `limit` bytes."""
        self._plan, self._limit = plan, limit
        self._block = max(limit // 4 // 32, 1024)
        self._held: OrderedDict[tuple[int, int], HashIndex] = OrderedDict()

    def find(self, code: int, wanted: Hashes) -> IntArray:
        """Return the offset of each hash in a partition, int64; -1 where absent."""
        out = np.full(len(wanted.hi), -1, np.int64)
        for start in range(0, entity_files(self._plan, code).count, self._block):
            self._index(code, start).find(wanted, out)
        return out

    def _index(self, code: int, start: int) -> HashIndex:
        key = (code, start)
        if key not in self._held:
            files = entity_files(self._plan, code)
            stop = min(start + self._block, files.count)
            while (
                self._held and sum(index.nbytes for index in self._held.values()) > self._limit // 2
            ):
                self._held.popitem(last=False)
            self._held[key] = HashIndex(files.hashes(start, stop), start)
        self._held.move_to_end(key)
        return self._held[key]
