"""Lines of text: blocks of whole lines with their numbers, and the two ways to read a line.

A block is parsed at once: by compiled code where its lines are plain, else by pyarrow. Only a block
in which something is wrong is looked at line by line, to name the line or to leave it out. Knows
nothing of files or compression.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from biggraph.graph.arrow import to_numpy
from biggraph.graph.fields import count_lines, cut, to_strings
from biggraph.graph.hashing import Texts, texts_of
from biggraph.types import FloatArray, IntArray

MAX_LINE = 1 << 26
NO_COLUMN = -1


@dataclass(frozen=True, slots=True)
class Columns:
    """Names (valid UTF-8) and weights of some edges; None where there is no column."""

    lhs: Texts
    rel: Texts | None
    rhs: Texts
    weight: FloatArray | None

    def __len__(self) -> int:
        """Return the number of edges."""
        return len(self.lhs.starts)


class Block(NamedTuple):
    """Whole lines; `first_line` is the number of the first, counted from 1."""

    text: bytes
    first_line: int


class Positions(NamedTuple):
    """Where an edge's parts stand in a line, counted from 0; NO_COLUMN where there is none."""

    lhs: int
    rel: int
    rhs: int
    weight: int


def blocks(read: Callable[[int], bytes], size: int) -> Iterator[Block]:
    """Cut a stream into blocks of whole lines; a byte order mark at the start is dropped.

    Raises:
        ValueError: a line is longer than MAX_LINE bytes; the message names it.
    """
    carry, line = b"", 1
    while piece := read(size):
        if line == 1 and not carry:
            piece = piece.removeprefix(b"\xef\xbb\xbf")
        cut = piece.rfind(b"\n") + 1
        if not cut:
            carry += piece
            if len(carry) > MAX_LINE:
                raise ValueError(f"{line}: longer than {MAX_LINE >> 20} MiB; not a table of edges?")
            continue
        text, carry = b"".join((carry, memoryview(piece)[:cut])), piece[cut:]
        yield Block(text, line)
        line += count_lines(text)
    if carry:
        yield Block(carry, line)


class LineFormat(Protocol):
    """How a line says an edge."""

    def parse(self, text: bytes, *, whole: bool = False) -> Columns | None:
        """Return the edges of whole lines, or None where anything is wrong in any of them."""

    def fault(self, line: bytes) -> str | None:
        """Return what is wrong with one line, or None."""

    def is_blank(self, line: bytes) -> bool:
        """Return whether a line says nothing."""


@dataclass(frozen=True)
class Delimited:
    """Columns between tabs (no quoting) or commas (double quotes).

    Args:
        delimiter: one character.
        width: number of columns of every line.
        positions: which columns to read.
    """

    delimiter: str
    width: int
    positions: Positions

    @property
    def quoted(self) -> bool:
        """Whether fields may stand in double quotes."""
        return self.delimiter == ","

    def parse(self, text: bytes, *, whole: bool = False) -> Columns | None:
        """See LineFormat."""
        plain = self._cut(text)
        if plain is not None:
            return plain
        odd = _has_bare_return(text) or (self.quoted and _AFTER_QUOTES.search(text))
        if b"\0" in text or (odd and not whole):
            return None
        names = [str(position) for position in range(self.width)]
        used = [str(position) for position in self._used()]
        block_size = len(text) + 1 if whole else 1 << 20
        try:
            table = pacsv.read_csv(
                pa.BufferReader(text),
                pacsv.ReadOptions(column_names=names, block_size=block_size),
                pacsv.ParseOptions(
                    delimiter=self.delimiter, quote_char='"' if self.quoted else False
                ),
                pacsv.ConvertOptions(
                    column_types=dict.fromkeys(used, pa.string()), include_columns=used
                ),
            )
        except pa.ArrowInvalid:
            return None
        columns = [
            None if p == NO_COLUMN else table.column(str(p)).combine_chunks()
            for p in self.positions
        ]
        if any(_has_empty(column) for column in columns[:3] if column is not None):
            return None
        lhs, rel, rhs = (None if c is None else texts_of(c) for c in columns[:3])
        return _with_weights(lhs, rel, rhs, columns[3])

    def _used(self) -> list[int]:
        return sorted({position for position in self.positions if position != NO_COLUMN})

    def _cut(self, text: bytes) -> Columns | None:
        """Return the edges of lines in which nothing is special."""
        used = self._used()
        found = cut(text, self.delimiter, self.width, used)
        if found is None:
            return None
        lhs, rel, rhs, weight = (
            None if p == NO_COLUMN else found[used.index(p)] for p in self.positions
        )
        return _with_weights(lhs, rel, rhs, None if weight is None else to_strings(weight))

    def fields(self, line: bytes, errors: str = "replace") -> list[str]:
        """Return the fields of one line; `errors` says what becomes of bytes that are not UTF-8.

        Raises:
            ValueError: a NUL byte, or a quote that is not closed.
        """
        if b"\0" in line:
            raise ValueError("a NUL byte; is the file binary or UTF-16?")
        text = line.decode(errors=errors).rstrip("\r\n")
        if not self.quoted:
            return text.split(self.delimiter)
        try:
            return next(csv.reader([text], strict=True), [""])
        except csv.Error:
            raise ValueError(
                "a quoted field is not closed, or goes on after it; no name has line breaks"
            ) from None

    def fault(self, line: bytes) -> str | None:
        """See LineFormat."""
        try:
            fields = self.fields(line, "surrogateescape")
        except ValueError as error:
            return str(error)
        if len(fields) != self.width:
            return f"{plural(len(fields), 'column')}, expected {self.width}"
        for what, position in zip(("head", "relation", "tail"), self.positions, strict=False):
            if position != NO_COLUMN and not fields[position]:
                return f"empty {what}"
        foreign = [_foreign_byte(fields[p]) for p in self.positions if p != NO_COLUMN]
        if any(foreign):
            return f"not valid UTF-8 (byte {next(filter(None, foreign))})"
        if self.positions.weight == NO_COLUMN:
            return None
        return weight_fault(fields[self.positions.weight])

    def is_blank(self, line: bytes) -> bool:
        """See LineFormat."""
        return not line.rstrip(b"\r\n")


def _with_weights(lhs: Any, rel: Texts | None, rhs: Any, weight: pa.Array | None) -> Columns | None:
    weights = None if weight is None else to_weights(weight)
    return None if weight is not None and weights is None else Columns(lhs, rel, rhs, weights)


# A field in quotes that goes on after them; also finds some sound lines, never misses one.
_AFTER_QUOTES = re.compile(rb'(?:^|,)"(?:[^"\n]|"")*"(?![",\r\n]|\Z)', re.MULTILINE)


def _has_bare_return(text: bytes) -> bool:
    """Return whether a carriage return ends a line by itself."""
    return b"\r" in text and text.count(b"\r") != text.count(b"\r\n")


def _foreign_byte(text: str) -> str | None:
    """Return the first byte that was no UTF-8 in text decoded with "surrogateescape"."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"0x{ord(text[error.start]) - 0xDC00:02x}"
    return None


_SUBJECT = r"<[^<>\s]*>|_:\S+"
_LITERAL = r'"(?:[^"\\]|\\.)*"(?:@[A-Za-z0-9-]+|\^\^<[^<>\s]*>)?'
_TRIPLE = (
    rf"^[ \t]*(?P<lhs>{_SUBJECT})[ \t]+(?P<rel><[^<>\s]*>)[ \t]+(?P<rhs>{_SUBJECT}|{_LITERAL})"
    r"[ \t]*\.[ \t]*(?:#.*)?\r?$"
)


class NTriples:
    """RDF N-Triples: `<head> <relation> <tail> .`, comments after #.

    The brackets of IRIs are dropped; blank nodes and literals stay as written.
    """

    def parse(self, text: bytes, *, whole: bool = False) -> Columns | None:
        """See LineFormat."""
        if _has_bare_return(text):
            if not whole:
                return None
            text = text.replace(b"\r", b"\n").replace(b"\n\n", b"\n")
        lines = _string_lines(text)
        if lines is None:
            return None
        parts = pc.extract_regex(lines, _TRIPLE)
        if parts.null_count:
            return None
        columns = [pc.struct_field(parts, name) for name in ("lhs", "rel", "rhs")]
        lhs, rel, rhs = (pc.replace_substring_regex(c, "^<(.*)>$", r"\1") for c in columns)
        return Columns(texts_of(lhs), texts_of(rel), texts_of(rhs), None)

    def fault(self, line: bytes) -> str | None:
        """See LineFormat."""
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            return f"not valid UTF-8 (byte 0x{line[error.start]:02x})"
        if re.match(_TRIPLE, text):
            return None
        return f"not a triple `<head> <relation> <tail> .`: {text[:80]!r}"

    def is_blank(self, line: bytes) -> bool:
        """See LineFormat."""
        line = line.strip()
        return not line or line.startswith(b"#")


def _string_lines(text: bytes) -> pa.Array | None:
    """Return the lines as strings that share the bytes of `text`, or None where not UTF-8."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    if not text.endswith(b"\n"):
        ends = np.append(ends, len(text))
    offsets = np.append(0, ends).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(text))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return pc.utf8_rtrim(lines, "\r\n")


def sift(block: Block, lines: LineFormat) -> tuple[bytes, IntArray, list[tuple[int, str]]]:
    """Look at each line of a block.

    Returns:
        The sound lines, their line numbers, and (line number, what is wrong) of the others.
    """
    sound, numbers, faults = [], [], []
    for number, line in enumerate(block.text.splitlines(keepends=True), block.first_line):
        if lines.is_blank(line):
            continue
        fault = lines.fault(line)
        if fault:
            faults.append((number, fault))
        else:
            sound.append(line)
            numbers.append(number)
    return b"".join(sound), np.array(numbers, np.int64), faults


def to_weights(column: pa.Array) -> FloatArray | None:
    """Return strings as float32, or None where one is no finite number ≥ 0."""
    try:
        weights = to_numpy(pc.cast(pc.utf8_trim_whitespace(column), pa.float32()))
    except pa.ArrowInvalid:
        return None
    return weights if (np.isfinite(weights) & (weights >= 0)).all() else None


def weight_fault(text: str) -> str | None:
    """Return what is wrong with a weight, or None."""
    try:
        weight = pc.cast(pc.utf8_trim_whitespace(pa.scalar(text)), pa.float32()).as_py()
    except pa.ArrowInvalid:
        return f'weight "{text[:40]}" is not a number (columns says which columns to read)'
    if not math.isfinite(weight) or weight < 0:
        return f"weight {text[:40]} is not a finite number from 0 (in float32)"
    return None


def _has_empty(column: pa.Array) -> bool:
    return len(column) > 0 and pc.min(pc.binary_length(column)).as_py() == 0


def plural(count: int, word: str) -> str:
    """Return a count with its word, such as "1 column" or "2 columns"."""
    return f"{count} {word}" + ("" if count == 1 else "s")
