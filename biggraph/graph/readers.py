"""Sources to batches of edges: names as bytes, weights as float32, and where each row is.

pyarrow parses; every refusal names file and line or row. Knows nothing of hashes or partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from biggraph.errors import InputError
from biggraph.graph.arrow import to_numpy
from biggraph.graph.columns import begins_with_header, choose_columns
from biggraph.graph.fields import count_lines
from biggraph.graph.hashing import texts_of, to_texts
from biggraph.graph.lines import (
    NO_COLUMN,
    Block,
    Columns,
    Delimited,
    LineFormat,
    NTriples,
    Positions,
    blocks,
    plural,
    sift,
)
from biggraph.graph.sources import Source, open_text
from biggraph.types import FloatArray, IntArray


class Batch(NamedTuple):
    """Some edges and where they were read.

    Args:
        columns: names and weights.
        label: file name, or "table".
        lines: line or row number of each edge, from 1.
    """

    columns: Columns
    label: str
    lines: IntArray

    def place(self, row: int) -> str:
        """Return "file:line" of one edge."""
        return f"{self.label}:{self.lines[row]}"


@dataclass
class Skipped:
    """Lines that could not be read: refused, or counted where the user allowed it."""

    allowed: bool
    count: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, label: str, line: int, reason: str) -> None:
        """Record one line.

        Raises:
            InputError: skipping is not allowed.
        """
        if not self.allowed:
            raise InputError(f"{label}:{line}: {reason} (skip_bad_lines leaves such lines out)")
        self.count += 1
        if len(self.first) < 100:
            self.first.append((label, line, reason))


@dataclass(frozen=True)
class Reading:
    """How to read: which columns, whether a header, how many bytes at once."""

    columns: Sequence[str] | None
    header: bool | None
    size: int
    skipped: Skipped
    widths: dict[int, str] = field(default_factory=dict)

    def agree(self, label: str, positions: Positions) -> None:
        """Refuse a file that says its edges by another number of columns than the one before.

        Raises:
            InputError: names both files.
        """
        width = len(_used(positions))
        for other, before in self.widths.items():
            if other != width:
                raise InputError(
                    f"{label}: read as {plural(width, 'column')}, but {before} as {other}; "
                    "say by columns which to read, or import one of them alone"
                )
        self.widths.setdefault(width, label)


def read_source(source: Source, how: Reading, at: Callable[[int], None]) -> Iterator[Batch]:
    """Yield the edges of one file; `at` is told how many of its bytes are done.

    Raises:
        InputError: the file is damaged or says something that is not an edge.
    """
    if source.kind == "parquet":
        yield from _read_parquet(source, how, at)
    else:
        yield from _read_text(source, how, at)


def read_table(table: Any, how: Reading, label: str) -> Iterator[Batch]:
    """Yield the edges of a pyarrow Table or pandas frame.

    Raises:
        InputError: a column is missing, or a value is not a name or a weight.
    """
    if not isinstance(table, pa.Table):
        table = _from_frame(table, label)
    positions = choose_columns(how.columns, table.schema.names, label, named=True)
    row = 1
    for batch in table.select(_used(positions)).to_batches(max_chunksize=how.size // 16 + 1):
        yield _from_rows(batch, positions, (label, row), how.skipped)
        row += batch.num_rows


def _from_frame(frame: Any, label: str) -> pa.Table:
    """Return a pandas frame as a Table; names its first column that mixes types."""
    for position, name in enumerate(frame.columns):
        try:
            pa.Array.from_pandas(frame.iloc[:, position])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f'{label}: column "{name}" mixes types ({error}); make its values all strings'
            ) from None
    return pa.Table.from_pandas(frame, preserve_index=False)


def _read_text(source: Source, how: Reading, at: Callable[[int], None]) -> Iterator[Batch]:
    label, lines, done = str(source.path), None, 0
    with open_text(source) as read:
        for block in _blocks(read, how.size, label):
            if lines is None and not block.text.strip():
                continue
            if lines is None:
                lines, block = _start(source, how, block)
            yield _from_lines(block, lines, label, how.skipped)
            done += len(block.text)
            at(min(done, source.size))
    if lines is None:
        raise InputError(f"{label}: empty file")


def _blocks(read: Callable[[int], bytes], size: int, label: str) -> Iterator[Block]:
    try:
        yield from blocks(read, size)
    except ValueError as error:
        raise InputError(f"{label}:{error}") from None


def _from_lines(block: Block, lines: LineFormat, label: str, skipped: Skipped) -> Batch:
    count = count_lines(block.text)
    columns = lines.parse(block.text)
    if columns is not None and len(columns) == count:
        return Batch(columns, label, np.arange(block.first_line, block.first_line + count))
    text, numbers, faults = sift(block, lines)
    for line, reason in faults:
        skipped.add(label, line, reason)
    columns = lines.parse(text, whole=True) if text else _no_edges()
    if columns is None or len(columns) != len(numbers):
        end = block.first_line + count - 1
        raise InputError(f"{label}:{block.first_line}: cannot read the lines up to line {end}")
    return Batch(columns, label, numbers)


def _no_edges() -> Columns:
    none = to_texts(np.empty(0, np.uint8), *np.empty((2, 0), np.int64))
    return Columns(none, none, none, None)


def _start(source: Source, how: Reading, block: Block) -> tuple[LineFormat, Block]:
    """Decide the layout from the first line; return the block without a header line."""
    if source.kind == "ntriples":
        if how.columns is not None:
            raise InputError(
                f"{source.path}: N-Triples have no columns to choose; leave columns out"
            )
        return NTriples(), block
    label, delimiter = str(source.path), "," if source.kind == "csv" else "\t"
    first = Delimited(delimiter, 0, Positions(0, 0, 0, 0))
    lines = block.text.splitlines(keepends=True)
    filled = [i for i, line in enumerate(lines) if not first.is_blank(line)][:2]
    places = [f"{label}:{block.first_line + i}" for i in filled]
    try:
        fields = first.fields(lines[filled[0]])
    except ValueError as error:
        raise InputError(f"{places[0]}: {error}") from None
    has_header = how.header
    if has_header is None:
        has_header = begins_with_header(how.columns, fields, places[0])
    positions = choose_columns(how.columns, fields, places[0], named=has_header)
    if len(filled) == 2:
        _refuse_other_width(first, lines[filled[1]], len(fields), places)
    how.agree(label, positions)
    if has_header:
        text = b"".join(lines[filled[0] + 1 :])
        block = Block(text, block.first_line + filled[0] + 1)
    return Delimited(delimiter, len(fields), positions), block


def _refuse_other_width(lines: Delimited, second: bytes, width: int, places: list[str]) -> None:
    """Refuse a file whose first line cannot tell how many columns there are."""
    try:
        found = len(lines.fields(second))
    except ValueError:
        return  # reported, or skipped, as any other line
    if found != width:
        raise InputError(
            f"{places[1]}: {plural(found, 'column')}, expected {width} as in {places[0]}; "
            "make the first two lines agree"
        )


def _used(positions: Positions) -> list[int]:
    return sorted({position for position in positions if position != NO_COLUMN})


def _read_parquet(source: Source, how: Reading, at: Callable[[int], None]) -> Iterator[Batch]:
    label, row = str(source.path), 1
    with _explained(label, row):
        file = pq.ParquetFile(source.path, pre_buffer=False, buffer_size=1 << 20)
        columns, total = file.schema_arrow.names, max(file.metadata.num_rows, 1)
    positions = choose_columns(how.columns, columns, label, named=True)
    how.agree(label, positions)
    names = [columns[position] for position in _used(positions)]
    batches = file.iter_batches(batch_size=how.size // 16 + 1, columns=names)
    while True:
        with _explained(label, row):
            batch = next(batches, None)
        if batch is None:
            return
        yield _from_rows(batch, positions, (label, row), how.skipped)
        row += batch.num_rows
        at(source.size * (row - 1) // total)


@contextmanager
def _explained(label: str, row: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{label}: damaged Parquet file near row {row} ({error})") from None


def _from_rows(
    batch: pa.RecordBatch, positions: Positions, start: tuple[str, int], skipped: Skipped
) -> Batch:
    label, first_row = start
    used = _used(positions)
    *columns, weight = (
        None if position == NO_COLUMN else batch.column(used.index(position))
        for position in positions
    )
    lines = np.arange(first_row, first_row + batch.num_rows)
    bad = np.zeros(batch.num_rows, np.bool_)
    names = dict(zip(("head", "relation", "tail"), columns, strict=True))
    names = {what: None if c is None else _as_names(c, what, start) for what, c in names.items()}
    reasons = {what: _missing(column) for what, column in names.items() if column is not None}
    weights = None if weight is None else _as_weights(weight, label)
    if weights is not None:
        reasons["weight"] = ~(np.isfinite(weights) & (weights >= 0))
    for what, faults in reasons.items():
        for row in np.flatnonzero(faults & ~bad):
            text = "is not a finite number from 0" if what == "weight" else "is missing or empty"
            skipped.add(label, int(lines[row]), f"{what} {text}")
        bad |= faults
    texts: list[Any] = [None if column is None else texts_of(column) for column in names.values()]
    if bad.any():
        texts = [None if names is None else names.filter(~bad) for names in texts]
        weights, lines = None if weights is None else weights[~bad], lines[~bad]
    lhs, rel, rhs = texts
    return Batch(Columns(lhs, rel, rhs, weights), label, lines)


def _missing(column: pa.Array) -> NDArray[np.bool_]:
    """Return a mask of the nulls and empty names."""
    texts = texts_of(column)
    missing: NDArray[np.bool_] = texts.starts == texts.ends
    return missing | _nulls(column)


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    return to_numpy(pc.cast(column.is_null(), pa.uint8())).view(np.bool_)


def _as_names(column: pa.Array, what: str, start: tuple[str, int]) -> pa.Array:
    """Return a column as strings: integers in decimal, bytes as UTF-8.

    Raises:
        InputError: another type, or not UTF-8; names the row.
    """
    label, first_row = start
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_integer(kind):
        return pc.cast(column, pa.string())
    textual = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    if not any(test(kind) for test in (*textual, *binary, pa.types.is_fixed_size_binary)):
        raise InputError(f"{label}: {what} column has type {kind}; names are strings or integers")
    column = column.cast(pa.large_binary())
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        row = first_row + next(i for i, name in enumerate(column) if not _is_utf8(name.as_py()))
        raise InputError(f"{label}:{row}: {what} is not valid UTF-8") from None


def _is_utf8(name: bytes | None) -> bool:
    try:
        (name or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _as_weights(column: pa.Array, label: str) -> FloatArray:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise InputError(f"{label}: weight column has type {column.type}; expected numbers")
    wide = np.where(_nulls(column), np.nan, to_numpy(pc.cast(column, pa.float64(), safe=False)))
    with np.errstate(over="ignore", invalid="ignore"):
        return wide.astype(np.float32)


def is_table(given: Any) -> bool:
    """Return whether sources are a table in memory rather than paths."""
    return isinstance(given, pa.Table) or hasattr(given, "iloc")


def path_list(given: Any) -> list[str | Path]:
    """Return paths given alone or in a sequence as a list."""
    return [given] if isinstance(given, (str, Path)) else list(given)
