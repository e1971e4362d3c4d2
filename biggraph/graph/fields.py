"""Cut plain lines into fields in one pass over their bytes.

Plain means: as many fields in each line, none of those wanted empty, no quotes, nothing odd. What
is not plain is left to others. Knows nothing of files or edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from biggraph.graph.compiled import compiled
from biggraph.graph.hashing import Texts, to_texts

ODD = -1


def cut(text: bytes, delimiter: str, width: int, wanted: Sequence[int]) -> list[Texts] | None:
    """Return the wanted fields of each line, or None where a line is not plain.

    Args:
        text: whole lines; the end of the last may be missing.
        delimiter: one character of ASCII below "-".
        width: fields of each line.
        wanted: positions of fields, rising.
    """
    columns = np.full(width, -1, np.int64)
    columns[list(wanted)] = np.arange(len(wanted))
    data = np.frombuffer(text, np.uint8)
    lines = count_lines(text)
    places = np.empty((2, len(wanted), lines), np.int64)
    count, is_ascii = _cut(data, ord(delimiter), columns, places[0], places[1])
    if count == ODD or not (is_ascii or _is_utf8(text)):
        return None
    return [to_texts(data, *places[:, k, :count]) for k in range(len(wanted))]


def count_lines(text: bytes) -> int:
    """Return the number of lines, also of one without an end; faster than bytes.count."""
    ends = int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord("\n")))
    return ends + (len(text) > 0 and not text.endswith(b"\n"))


def _is_utf8(text: bytes) -> bool:
    offsets = np.array([0, len(text)], np.int64)
    whole = pa.LargeStringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(text))
    try:
        whole.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def to_strings(names: Texts) -> pa.Array:
    """Return fields as large_string."""
    offsets = np.zeros(len(names.starts) + 1, np.int64)
    np.cumsum(names.ends - names.starts, out=offsets[1:])
    data = np.empty(offsets[-1], np.uint8)
    _gather(names, offsets, data)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_string(), len(names.starts), buffers)


@compiled
def _gather(names, offsets, data):  # type: ignore[no-untyped-def]
    for i in range(len(names.starts)):
        start = names.starts[i]
        for k in range(offsets[i + 1] - offsets[i]):
            data[offsets[i] + k] = names.data[start + k]


@compiled
def _cut(data, delimiter, columns, starts, ends):  # type: ignore[no-untyped-def] # noqa: C901
    """Return the number of lines, or ODD; and whether all is ASCII."""
    line, field, begin, seen, size = 0, 0, 0, np.uint8(0), len(data)
    for i in range(size + 1):
        if i < size:
            byte = data[i]
            seen |= byte
            if byte > 44 or (byte > 34 and byte != delimiter):
                continue
        elif begin == size and field == 0:
            break
        else:
            byte = np.uint8(10)
        end = i
        if byte == 13:
            if i + 1 == size or data[i + 1] != 10:
                return ODD, True
            continue
        if byte == 10:
            end -= i > begin and data[i - 1] == 13
        elif byte != delimiter:
            if byte == 0 or (byte == 34 and delimiter == 44):
                return ODD, True
            continue
        if field == len(columns):
            return ODD, True
        column = columns[field]
        if column >= 0:
            if end == begin:
                return ODD, True
            starts[column, line], ends[column, line] = begin, end
        field += 1
        begin = i + 1
        if byte == 10:
            if field != len(columns):
                return ODD, True
            line, field = line + 1, 0
    return line, seen < 128
