"""Distinct names get numbers, in order of appearance, through a hash table in memory.

Compares entity types and whole names, so that two names with equal hashes get two numbers: they
meet when the names of a partition are sorted. Knows nothing of files or partitions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.graph.compiled import compiled
from biggraph.graph.hashing import U64, Texts, load_bytes
from biggraph.types import IntArray

HEADER = 2  # words before a name's text: its number and type, its length
MOST = 8 << 32  # bytes that a table may have: slots tell places of words in 32 bits
TILE = 64  # names looked up at once, so that their places in memory are fetched side by side


class Named(NamedTuple):
    """One end of some edges.

    Args:
        names: shape [N].
        types: entity type of each, int32, shape [N].
        hashes: first 64 bits of each, seeded by its type, shape [N].
    """

    names: Texts
    types: NDArray[np.int32]
    hashes: U64


class _Arrays(NamedTuple):
    """The table as compiled code takes it.

    Args:
        slots: first half of a hash and place of the record in `words`, 0 where empty; the hash's
            first bits say where to look first.
        words: records from 1 on: number and type, length, text in whole words.
        used: names, and words including the first; int64, shape [2].
    """

    slots: U64
    words: U64
    used: NDArray[np.int64]


class NameTable:
    """Numbers names from 0; the same name and type, the same number."""

    def __init__(self) -> None:
        """Begin without names."""
        slots, words = np.zeros(1 << 10, np.uint64), np.empty(1, np.uint64)
        self._arrays = _Arrays(slots, words, np.array([0, 1]))

    @property
    def count(self) -> int:
        """Number of names."""
        return int(self._arrays.used[0])

    def size_with(self, ends: tuple[Named, ...]) -> int:
        """Return the bytes needed if all names of some edges were new."""
        slots, words = self._needed(ends)
        return 8 * (slots + words)

    def _needed(self, ends: tuple[Named, ...]) -> tuple[int, int]:
        """Return slots and words needed: more slots than names, half again as many as there are."""
        count = sum(len(end.types) for end in ends)
        text = sum(int(names.ends.sum() - names.starts.sum()) for names, _, _ in ends)
        names, words = self._arrays.used.tolist()
        slots = 1 << max(names + count, names + names // 2).bit_length()
        slots = max(slots, len(self._arrays.slots))
        return slots, words + (HEADER + 1) * count + text // 8

    def number(self, end: Named, out: IntArray) -> None:
        """Write the number of each name to `out`, int32, shape [N]."""
        self._make_room(end)
        _number(end, self._arrays, out)

    def _make_room(self, end: Named) -> None:
        """Have room for the case that all names are new."""
        count, words = self._needed((end,))
        held = self._arrays
        slots = held.slots
        if len(slots) < count:
            slots = np.empty(count, np.uint64)
            slots.fill(0)  # np.zeros takes small pages
            _fill(held.slots, slots)
        self._arrays = _Arrays(slots, _longer(held.words, words), held.used)

    def names(self, first: int = 0) -> tuple[pa.Array, NDArray[np.int32]]:
        """Return the names from a number on, as large_string, and their types."""
        count = self.count - first
        offsets, types = np.zeros(count + 1, np.int64), np.empty(count, np.int32)
        at = _measure(self._arrays, first, offsets, types)
        data = np.empty(offsets[-1], np.uint8)
        _unpack(self._arrays, at, offsets, data)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.large_string(), count, buffers), types


def _longer(values: U64, length: int) -> U64:
    """Return an array at least so long that begins with the values."""
    if len(values) >= length:
        return values
    longer = np.empty(max(length, len(values) * 3 // 2), np.uint64)
    longer[: len(values)] = values
    return longer


@compiled
def _number(end, table, out):  # type: ignore[no-untyped-def]
    (data, starts, ends), types, hi = end
    slots, words, shift = table.slots, table.words, _shift(table.slots)
    mask, low = np.uint64(len(slots) - 1), np.uint64(0xFFFFFFFF)
    fetched = np.uint64(0)
    for first in range(0, len(out), TILE):
        last = min(first + TILE, len(out))
        for i in range(first, last):
            fetched |= words[slots[hi[i] >> shift] & low]
        for i in range(first, last):
            at, tag = hi[i] >> shift, hi[i] & ~low
            start, length = starts[i], ends[i] - starts[i]
            while slots[at]:
                record = slots[at] & low
                if slots[at] & ~low == tag and words[record + np.uint64(1)] == np.uint64(length):
                    head, place, k = words[record], record + np.uint64(HEADER), 0
                    if head >> np.uint64(32) == np.uint64(types[i]):
                        while k < length and words[place] == load_bytes(
                            data, start + k, length - k
                        ):
                            place += np.uint64(1)
                            k += 8
                        if k >= length:
                            out[i] = np.int64(head & low)
                            break
                at = (at + np.uint64(1)) & mask
            else:
                out[i] = table.used[0]
                slots[at] = tag | np.uint64(table.used[1])
                _add(data, start, length, np.uint64(types[i]) << np.uint64(32), table)
    return fetched


@compiled
def _add(data, start, length, kind, table):  # type: ignore[no-untyped-def]
    number, place = table.used
    table.words[place] = kind | np.uint64(number)
    table.words[place + 1] = np.uint64(length)
    place += HEADER
    for k in range(0, length, 8):
        table.words[place] = load_bytes(data, start + k, length - k)
        place += 1
    table.used[0], table.used[1] = number + 1, place


@compiled
def _length(words, record):  # type: ignore[no-untyped-def]
    return np.uint64(HEADER) + ((words[record + np.uint64(1)] + np.uint64(7)) >> np.uint64(3))


@compiled
def _shift(slots):  # type: ignore[no-untyped-def]
    """Return by how many bits to shift a hash to get a slot."""
    bits = 0
    while len(slots) >> bits > 1:
        bits += 1
    return np.uint64(64 - bits)


@compiled
def _fill(old, slots):  # type: ignore[no-untyped-def]
    """Put all names into empty slots."""
    mask, shift = np.uint64(len(slots) - 1), _shift(slots)
    for slot in old:
        if slot:
            at = slot >> shift
            while slots[at]:
                at = (at + np.uint64(1)) & mask
            slots[at] = slot


@compiled
def _measure(table, first, offsets, types):  # type: ignore[no-untyped-def]
    """Write types, and where texts begin in a row; return where the first record is."""
    record, begin = np.uint64(1), np.uint64(1)
    for number in range(table.used[0]):
        if number == first:
            begin = record
        if number >= first:
            k = number - first
            types[k] = np.int32(table.words[record] >> np.uint64(32))
            offsets[k + 1] = offsets[k] + np.int64(table.words[record + np.uint64(1)])
        record += _length(table.words, record)
    return begin


@compiled
def _unpack(table, record, offsets, data):  # type: ignore[no-untyped-def]
    for k in range(len(offsets) - 1):
        place = record + np.uint64(HEADER)
        for j in range(offsets[k + 1] - offsets[k]):
            word = table.words[place + np.uint64(j >> 3)]
            data[offsets[k] + j] = np.uint8(word >> np.uint64(8 * (j & 7)))
        record += _length(table.words, record)
