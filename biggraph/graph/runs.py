"""Between stages one and two: the names of a generation on disk, sorted by partition, then by hash.

A run has the columns of a partition's entities (see `dictionary`), besides: the number of each name
in its generation, and where each partition begins. Knows nothing of edges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.fields import to_strings
from biggraph.graph.hashing import Hashes, sort_order, texts_of, to_texts
from biggraph.graph.plan import Plan
from biggraph.types import IntArray

COLUMNS = {
    "hi": np.uint64,
    "lo": np.uint64,
    "length": np.int64,
    "text": np.uint8,
    "moved": np.int64,
    "number": np.int32,
    "begins": np.int64,
}


class NameFiles:
    """Raw columns of sorted names: hi, lo, length of each name, text of all names."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is read."""
        self.folder = folder

    def append(self, names: pa.Array, hashes: Hashes) -> None:
        """Append names; `names` is a string array."""
        texts = texts_of(names)
        text = texts.data[texts.starts[0] : texts.ends[-1]] if len(names) else texts.data[:0]
        columns: tuple[np.ndarray, ...] = (hashes.hi, hashes.lo, texts.ends - texts.starts, text)
        for name, values in zip(COLUMNS, columns, strict=False):
            self.add(name, values)

    def add(self, name: str, values: np.ndarray) -> None:
        """Append to one column."""
        disk.append(self.folder / name, [np.ascontiguousarray(values).data])

    @property
    def count(self) -> int:
        """Number of names."""
        path = self.folder / "hi"
        return path.stat().st_size // 8 if path.exists() else 0

    def column(self, name: str) -> np.ndarray:
        """Memory-map a column."""
        path, dtype = self.folder / name, COLUMNS[name]
        if not path.exists() or not path.stat().st_size:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r")

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Read a part of a column into memory."""
        dtype = np.dtype(COLUMNS[name])
        with open(f"{self.folder}/{name}", "rb", buffering=0) as file:
            return np.fromfile(file, dtype, stop - start, offset=start * dtype.itemsize)

    def search(self, start: int, stop: int, hi: int) -> int:
        """Return the first position of a range whose hash is not below `hi`; reads a few bytes."""
        with open(f"{self.folder}/hi", "rb", buffering=0) as file:
            while start < stop:
                middle = (start + stop) // 2
                file.seek(8 * middle)
                if int.from_bytes(file.read(8), "little") < hi:
                    start = middle + 1
                else:
                    stop = middle
        return start

    def hashes(self, start: int, stop: int) -> Hashes:
        """Read some hashes into memory."""
        return Hashes(self.read("hi", start, stop), self.read("lo", start, stop))

    def begins(self) -> IntArray:
        """Return where each partition begins in a run, and the last ends: [partitions + 1, 2].

        The second column is where its text begins.
        """
        begins: IntArray = self.column("begins").reshape(-1, 2)
        return begins


def runs_of(plan: Plan) -> list[NameFiles]:
    """Return the runs of all generations."""
    return [NameFiles(path) for _, path in plan.spilled("names")]


def partition(plan: Plan, types: IntArray, hi: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the partition of each entity in its type."""
    parts = plan.partitions.astype(np.uint64)
    return (hi % (parts[0] if len(parts) == 1 else parts[types])).astype(np.int64)


def write_run(
    plan: Plan, generation: int, hashes: Hashes, names: pa.Array, types: NDArray[np.int32]
) -> None:
    """Write the names of a generation, given by number."""
    run = NameFiles(plan.folder("names") / str(generation))
    disk.create_folder(run.folder)
    codes = plan.first_code[types] + partition(plan, types, hashes.hi)
    order = sort_order(hashes)
    total = int(plan.partitions.sum())
    if total > 1:
        narrow = codes[order].astype(np.uint16 if total < 1 << 16 else np.int64)  # radix sort
        order = order[np.argsort(narrow, kind="stable")]
    texts = texts_of(names)
    ordered = to_strings(to_texts(texts.data, texts.starts[order], texts.ends[order]))
    run.append(ordered, Hashes(hashes.hi[order], hashes.lo[order]))
    run.add("number", order.astype(np.int32))
    begins = np.zeros((total + 1, 2), np.int64)
    np.cumsum(np.bincount(codes, minlength=total), out=begins[1:, 0])
    begins[:, 1] = np.append(0, texts_of(ordered).ends)[begins[:, 0]]
    run.add("begins", begins)
