"""Stage two: the names of one partition, sorted in each generation, become its entities.

The offset of an entity is its rank among the hashes. Works on one partition at a time, in ranges of
hashes that fit the memory; results are raw columns on disk that later stages map or read in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.arrow import to_arrow
from biggraph.graph.compiled import compiled
from biggraph.graph.fields import to_strings
from biggraph.graph.hashing import Hashes, Texts, has_collision, sort_order, to_texts
from biggraph.graph.plan import Plan
from biggraph.graph.runs import NameFiles
from biggraph.types import IntArray

ROWS = 1 << 20  # entities handled at once


class HashCollisionError(Exception):
    """Two names of one type have the same 128-bit hash; another seed is needed."""


class EntityFiles(NameFiles):
    """Raw columns of one partition: of its names in order of their offsets, and counts of edges."""

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


def entity_files(plan: Plan, code: int) -> EntityFiles:
    """Return the raw columns of a partition."""
    return EntityFiles(plan.folder("entities") / str(code))


def offset_dtype(plan: Plan) -> np.dtype[Any]:
    """Return int32, or int64 where a partition has more entities than that can say."""
    largest = max(entity_files(plan, code).count for code, _ in plan.all_keys())
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)


def build_dictionary(plan: Plan, code: int, runs: list[NameFiles]) -> None:
    """Turn a partition's names in all generations into its entities.

    Raises:
        HashCollisionError: two names share a hash.
    """
    files = entity_files(plan, code)
    disk.create_folder(files.folder)
    for names, hashes in _ranges(runs, code, plan.share(8)):
        order = sort_order(hashes, kind="stable")
        if has_collision(names, hashes, order):
            raise HashCollisionError
        hashes = Hashes(hashes.hi[order], hashes.lo[order])
        first = np.ones(len(order), np.bool_)
        first[1:] = (hashes.hi[1:] != hashes.hi[:-1]) | (hashes.lo[1:] != hashes.lo[:-1])
        texts = to_texts(names.data, names.starts[order[first]], names.ends[order[first]])
        files.append(to_strings(texts), Hashes(hashes.hi[first], hashes.lo[first]))


def _ranges(runs: list[NameFiles], code: int, limit: int) -> Iterator[tuple[Texts, Hashes]]:
    """Yield the names of a partition in rising ranges of hashes of about `limit` bytes."""
    begins = [run.begins()[code : code + 2] for run in runs]
    size = sum(int(24 * (rows[1] - rows[0]) + text[1] - text[0]) for rows, text in _columns(begins))
    bits = max(0, (size // limit).bit_length())
    at = [begin[0].copy() for begin in begins]
    for part in range(1, (1 << bits) + 1):
        pieces = []
        for run, begin, place in zip(runs, begins, at, strict=True):
            stop = int(begin[1, 0])
            if part < 1 << bits:
                stop = run.search(int(place[0]), stop, part << (64 - bits))
            if stop > place[0]:
                pieces.append(_take(run, place, stop))
        if pieces:
            yield _joined(pieces)


def _columns(begins: list[IntArray]) -> Iterator[tuple[IntArray, IntArray]]:
    for begin in begins:
        yield begin[:, 0], begin[:, 1]


def _take(run: NameFiles, place: IntArray, stop: int) -> tuple[Hashes, IntArray, NDArray[Any]]:
    """Return hashes, lengths and text of names up to `stop`, and move the place there."""
    start, begin = place.tolist()
    lengths = run.read("length", start, stop)
    end = begin + int(lengths.sum())
    place[:] = stop, end
    return run.hashes(start, stop), lengths, run.read("text", begin, end)


def _joined(pieces: list[tuple[Hashes, IntArray, NDArray[Any]]]) -> tuple[Texts, Hashes]:
    hashes, lengths, texts = zip(*pieces, strict=True)
    ends = np.cumsum(np.concatenate(lengths))
    names = to_texts(np.concatenate(texts), ends - np.concatenate(lengths), ends)
    return names, Hashes(*(np.concatenate(lanes) for lanes in zip(*hashes, strict=True)))


def find(files: NameFiles, wanted: Hashes) -> NDArray[np.int64]:
    """Return the rank of each hash among those of some files; -1 where absent.

    Args:
        files: sorted by hash.
        wanted: sorted too, shape [N].
    """
    out = np.full(len(wanted.hi), -1, np.int64)
    count = files.count
    for start in range(0, count, ROWS):
        present = files.hashes(start, min(start + ROWS, count))
        first = np.searchsorted(wanted.hi, present.hi[0])
        last = np.searchsorted(wanted.hi, present.hi[-1], side="right")
        some = Hashes(wanted.hi[first:last], wanted.lo[first:last])
        _match(present, some, start, out[first:last])
    return out


@compiled
def _match(present, wanted, first, out):  # type: ignore[no-untyped-def]
    k = 0
    for i in range(len(out)):
        hi, lo = wanted.hi[i], wanted.lo[i]
        while k < len(present.hi) and (
            present.hi[k] < hi or (present.hi[k] == hi and present.lo[k] < lo)
        ):
            k += 1
        if k < len(present.hi) and present.hi[k] == hi and present.lo[k] == lo:
            out[i] = first + k
