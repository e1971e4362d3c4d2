"""Hash names, look hashes up, mix numbers.

Works on names as bytes and numpy columns; knows nothing of files, partitions or splits. Every
kernel releases the interpreter lock.
"""

from __future__ import annotations

import gc
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from biggraph.graph.compiled import compiled
from biggraph.types import IntArray

U64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]


class Hashes(NamedTuple):
    """128-bit hashes as two columns of uint64; ordered by (hi, lo)."""

    hi: U64
    lo: U64


class Texts(NamedTuple):
    """Names as bytes: name i is data[starts[i]:ends[i]]. Compiled code takes it as it is.

    Args:
        data: uint8; holds all names, and may hold more.
        starts: int64, shape [N].
        ends: int64, shape [N].
    """

    data: Bytes
    starts: IntArray
    ends: IntArray

    def filter(self, keep: NDArray[np.bool_]) -> Texts:
        """Return the names of a mask."""
        return to_texts(self.data, self.starts[keep], self.ends[keep])


def to_texts(data: Bytes, starts: IntArray, ends: IntArray) -> Texts:
    """Return names over the same memory, read-only: one kind of array, one compiled function."""
    views = data.view(), starts.view(), ends.view()
    for view in views:
        view.flags.writeable = False
    return Texts(*views)


def texts_of(names: pa.Array) -> Texts:
    """Return views of the buffers of a string or large_string array without nulls."""
    dtype: np.dtype[Any] = np.dtype("<i8" if pa.types.is_large_string(names.type) else "<i4")
    _, offsets, data = names.buffers()
    if len(names) == 0 or offsets is None:
        return to_texts(np.empty(0, np.uint8), *np.empty((2, 0), np.int64))
    view = np.frombuffer(offsets, dtype, len(names) + 1, names.offset * dtype.itemsize)
    view = view.astype(np.int64, copy=False)
    return to_texts(np.frombuffer(data or b"", np.uint8), view[:-1], view[1:])


def hash_names(names: Texts, salts: U64) -> Hashes:
    """Hash each name with MurmurHash3_x64_128 (Appleby, public domain), seeded by its salt.

    Args:
        names: shape [N].
        salts: uint64, shape [N]; both lanes start from it (equal to the published function for
            salts below 2^32).
    """
    count = len(names.starts)
    hashes = Hashes(np.empty(count, np.uint64), np.empty(count, np.uint64))
    _murmur(names, salts, hashes.hi, hashes.lo)
    return hashes


def hash_text(text: str, salt: int) -> int:
    """Return the high lane of one text's hash."""
    data = np.frombuffer(text.encode(), np.uint8)
    names = to_texts(data, np.zeros(1, np.int64), np.array([len(data)]))
    hashes = hash_names(names, np.array([salt], np.uint64))
    return int(hashes.hi[0])


def start_compiled_code() -> None:
    """Let Numba set itself up, in half the time that it takes with the garbage collector awake.

    Its thousands of new objects make the collector look again and again at those of all packages,
    and leave nothing to collect.
    """
    awake = gc.isenabled()
    gc.disable()
    try:
        hash_text("", 0)
    finally:
        if awake:
            gc.enable()


def type_salt(entity_type: str, hash_seed: int) -> int:
    """Return the salt of one entity type's names; equal names of two types differ."""
    return hash_text(entity_type, hash_seed)


@compiled
def _finish(value):  # type: ignore[no-untyped-def]
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> np.uint64(33)
    return value


@compiled
def _rotate(value, bits):  # type: ignore[no-untyped-def]
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@intrinsic
def _word_at(_context, data, at):  # type: ignore[no-untyped-def]
    """Return the eight bytes of a uint8 array from a position on, little end first."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = make_array(signature.args[0])(context, builder, arguments[0])  # type: ignore[no-untyped-call]
        place = builder.gep(array.data, [arguments[1]])
        loaded = builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()))
        loaded.align = 1
        return loaded

    return types.uint64(data, at), generate


@compiled
def load_bytes(data, start, count):  # type: ignore[no-untyped-def]
    """Return up to eight of `count` bytes as a number, the first the lowest."""
    if start + 8 <= len(data):
        word: Any = _word_at(data, np.int64(start))  # type: ignore[call-arg]
        if count >= 8:
            return word
        return word & ((np.uint64(1) << np.uint64(8 * count)) - np.uint64(1))
    value = np.uint64(0)
    for k in range(min(count, 8)):
        value |= np.uint64(data[start + k]) << np.uint64(8 * k)
    return value


@compiled
def _murmur(names, salts, out_hi, out_lo):  # type: ignore[no-untyped-def]
    c1, c2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
    data, starts, ends = names
    for i in range(len(salts)):
        start, end = starts[i], ends[i]
        h1 = h2 = salts[i]
        at = start
        while end - at >= 16:
            k1, k2 = load_bytes(data, at, 8), load_bytes(data, at + 8, 8)
            h1 ^= _rotate(k1 * c1, 31) * c2
            h1 = (_rotate(h1, 27) + h2) * np.uint64(5) + np.uint64(0x52DCE729)
            h2 ^= _rotate(k2 * c2, 33) * c1
            h2 = (_rotate(h2, 31) + h1) * np.uint64(5) + np.uint64(0x38495AB5)
            at += 16
        rest = end - at
        if rest > 8:
            h2 ^= _rotate(load_bytes(data, at + 8, rest - 8) * c2, 33) * c1
        if rest > 0:
            h1 ^= _rotate(load_bytes(data, at, rest) * c1, 31) * c2
        length = np.uint64(end - start)
        h1 ^= length
        h2 ^= length
        h1 += h2
        h2 += h1
        h1, h2 = _finish(h1), _finish(h2)
        h1 += h2
        h2 += h1
        out_hi[i], out_lo[i] = h1, h2


def has_collision(names: Texts, hashes: Hashes, order: IntArray) -> bool:
    """Return whether two names differ though their hashes are equal.

    Args:
        names: as many as `hashes`.
        hashes: of the names.
        order: positions that sort the hashes.
    """
    return bool(_has_collision(names, hashes, order))


@compiled
def _has_collision(names, hashes, order):  # type: ignore[no-untyped-def]
    (data, starts, ends), (hi, lo) = names, hashes
    for i in range(len(order) - 1):
        one, two = order[i], order[i + 1]
        if hi[one] != hi[two] or lo[one] != lo[two]:
            continue
        a, b = starts[one], starts[two]
        length = ends[one] - a
        if ends[two] - b != length:
            return True
        for k in range(length):
            if data[a + k] != data[b + k]:
                return True
    return False


def sort_order(hashes: Hashes, kind: Literal["quicksort", "stable"] = "quicksort") -> IntArray:
    """Return the positions that sort hashes by (hi, lo); "stable" suits a few sorted runs."""
    order: IntArray = np.argsort(hashes.hi, kind=kind)
    hi, lo = hashes.hi[order], hashes.lo[order]
    if not ((hi[1:] == hi[:-1]) & (lo[1:] != lo[:-1])).any():
        return order
    return np.lexsort((hashes.lo, hashes.hi))  # never seen with the real hash


def mix_columns(seed: int, *columns: Any) -> U64:
    """Return one pseudo-random uint64 per row from integer columns of equal length.

    Rows with equal values get equal results; the order of columns matters.
    """
    state = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        _mix_in(state, column.view(np.uint64) if column.itemsize == 8 else column.astype(np.uint64))
    return state


@compiled
def mixed(state, value):  # type: ignore[no-untyped-def]
    """Return a state with one more number mixed in; all uint64."""
    return _finish((state + np.uint64(0x9E3779B97F4A7C15)) ^ _finish(value))


@compiled
def _mix_in(state, column):  # type: ignore[no-untyped-def]
    for i in range(len(state)):
        state[i] = mixed(state[i], column[i])


@compiled
def add_counts(counts, positions):  # type: ignore[no-untyped-def]
    """Add one to `counts` (uint32) at each of `positions`, repeats included."""
    for position in positions:
        counts[position] += np.uint32(1)
