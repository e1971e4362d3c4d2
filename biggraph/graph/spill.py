"""Rows sorted into numbered files on disk through a bounded buffer, and read back in pieces.

A file is a sequence of Arrow record batches, each preceded by its bytes and rows. Knows nothing of
what the rows mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from biggraph.graph import disk
from biggraph.graph.arrow import to_arrow
from biggraph.types import IntArray

MESSAGE = 8 << 20  # bytes in one record batch on disk, at most


class Spill:
    """Appends rows to the file of their code; `flush` at the end.

    Args:
        folder: an existing folder; rows with code c go to `folder / str(c)`.
        limit: bytes to hold in memory before writing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Hold rows for files in `folder`."""
        self._folder, self._limit = folder, max(limit, 1 << 16)
        self._batches: list[pa.RecordBatch] = []
        self._codes: list[IntArray] = []
        self._held = 0

    def add(self, batch: pa.RecordBatch, codes: IntArray) -> None:
        """Add rows; row i goes to file codes[i]."""
        self._batches.append(batch)
        self._codes.append(codes)
        self._held += batch.nbytes + codes.nbytes
        if self._held >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if not self._batches:
            return
        codes = np.concatenate(self._codes)
        rows = _concat(self._batches)
        self._batches, self._codes, self._held = [], [], 0
        if codes.min() != codes.max():
            narrow = codes.astype(np.uint16) if codes.max() < 1 << 16 else codes  # radix sort
            order = np.argsort(narrow, kind="stable")
            codes, rows = codes[order], rows.take(to_arrow(order))
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        for start, end in zip(starts, np.append(starts[1:], len(codes)), strict=True):
            disk.append(self._folder / str(codes[start]), _messages(rows.slice(start, end - start)))


def _messages(rows: pa.RecordBatch) -> Iterator[pa.Buffer | bytes]:
    step = max(1, rows.num_rows * MESSAGE // max(rows.nbytes, 1))
    for start in range(0, rows.num_rows, step):
        message = rows.slice(start, step).serialize()
        yield message.size.to_bytes(8, "little") + min(step, rows.num_rows - start).to_bytes(
            8, "little"
        )
        yield message


def _concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def read_spill(path: Path, schema: pa.Schema, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one file in batches of about `limit` bytes; None: all in one.

    A file that was never written has no rows and yields nothing.
    """
    if not path.exists():
        return
    held: list[pa.RecordBatch] = []
    with pa.OSFile(str(path)) as file:
        while header := file.read(16):
            message = file.read_buffer(int.from_bytes(header[:8], "little"))
            held.append(pa.ipc.read_record_batch(message, schema))
            if limit is not None and sum(batch.nbytes for batch in held) >= limit:
                yield _concat(held)
                held = []
    if held:
        yield _concat(held)
