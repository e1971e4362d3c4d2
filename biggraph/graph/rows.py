"""Rows of four integers, sorted into numbered files on disk through a bounded buffer.

A row is an edge: lhs, relation, rhs, and the bits of its weight; a file holds nothing else. Knows
nothing of what the integers mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.compiled import compiled
from biggraph.types import IntArray

WIDTH = 4
LHS, REL, RHS, WEIGHT = range(WIDTH)
PIECE = 1 << 21  # bytes read at once: they stay in the cache
FEW = 1 << 16  # files among which rows are dealt by counting


class RowSpill:
    """Appends rows to the file of their code; `flush` at the end.

    Args:
        folder: an existing folder; rows with code c go to `folder / str(c)`.
        limit: bytes to hold in memory before writing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Hold rows for files in `folder`."""
        self._folder, self._limit = folder, max(limit, 1 << 16)
        self._held: list[tuple[IntArray, IntArray]] = []
        self._bytes = 0

    def add(self, rows: IntArray, codes: IntArray) -> None:
        """Add rows; row i goes to file codes[i], a number from 0 (int64)."""
        self._held.append((rows, codes))
        self._bytes += rows.nbytes + codes.nbytes
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        held, self._held, self._bytes = self._held, [], 0
        codes = np.concatenate([np.empty(0, np.int64), *(codes for _, codes in held)])
        if not len(codes):
            return
        found = np.arange(codes.max() + 1)
        if len(found) > FEW:
            found, codes = np.unique(codes, return_inverse=True)
        ends = np.cumsum(np.bincount(codes, minlength=len(found)))
        dealt = np.empty((len(codes), held[0][0].shape[1]), held[0][0].dtype)
        starts = np.append(0, ends[:-1])
        at = 0
        for rows, _ in held:
            _deal(rows, codes[at : at + len(rows)], starts, dealt)
            at += len(rows)
        for code, start, end in zip(found, np.append(0, ends[:-1]), ends, strict=True):
            append_rows(self._folder / str(code), dealt[start:end])


def append_rows(path: Path, rows: IntArray) -> None:
    """Append rows to a scratch file; none: do nothing."""
    if len(rows):
        disk.append(path, [np.ascontiguousarray(rows).data])


@compiled
def _deal(rows, codes, starts, dealt):  # type: ignore[no-untyped-def]
    """Put each row where its code's rows stand, and move that place on."""
    for i in range(len(rows)):
        at = starts[codes[i]]
        starts[codes[i]] = at + 1
        for k in range(rows.shape[1]):
            dealt[at, k] = rows[i, k]


def count_rows(path: Path, dtype: np.dtype[Any], width: int = WIDTH) -> int:
    """Return the number of rows in a file; 0 where there is none."""
    return path.stat().st_size // (width * dtype.itemsize) if path.exists() else 0


def read_rows(
    path: Path,
    dtype: np.dtype[Any],
    size: int = PIECE,
    *,
    start: int = 0,
    stop: int | None = None,
    width: int = WIDTH,
) -> Iterator[NDArray[Any]]:
    """Yield rows `start` to `stop` of a file, about `size` bytes at once; shape [N, width].

    A file that was never written has no rows and yields nothing.
    """
    stop = count_rows(path, dtype, width) if stop is None else stop
    if start >= stop:
        return
    step, row = max(1, size // (width * dtype.itemsize)), width * dtype.itemsize
    with path.open("rb", buffering=0) as file:
        file.seek(start * row)
        for first in range(start, stop, step):
            count = min(step, stop - first)
            yield np.fromfile(file, dtype, count * width).reshape(count, width)


def rewrite(path: Path, dtype: np.dtype[Any], change: Callable[[NDArray[Any]], None]) -> None:
    """Change the rows of a file in place, piece by piece: nothing new is written to the disk."""
    disk.before_operation("rewrite")
    with path.open("r+b") as file:  # buffered: it goes on where the system wrote only a part
        for rows in read_rows(path, dtype):
            change(rows)
            file.write(rows.data)


def overwrite(path: Path, rows: IntArray) -> None:
    """Replace the rows of a file, if there is one, by no more than it has."""
    disk.before_operation("overwrite")
    if path.exists():
        with path.open("r+b") as file:  # buffered, too: one write takes 2 GiB at most
            file.write(rows.data)
            file.truncate()


def weights_of(bits: IntArray) -> NDArray[np.float32]:
    """Return weights from a column of their bits."""
    return bits.astype(np.int32).view(np.float32)
