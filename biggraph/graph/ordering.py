"""Edges in the order of a uniform key, ties by content: dealt by its leading bits, then sorted.

Keys being hashes, a key's next bits say almost exactly where in its part it belongs, so that only
neighbours are compared. Correct for any keys, fast for uniform ones. Knows keys and rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from biggraph.graph.compiled import compiled
from biggraph.graph.hashing import U64, mix_columns, mixed
from biggraph.graph.rows import LHS, REL, RHS, WEIGHT, WIDTH, count_rows, read_rows
from biggraph.graph.threads import THREADS, side_by_side
from biggraph.types import IntArray

PART = 1 << 13  # rows that fit a core's cache with room to sort them
MOST = 12  # bits of the number of parts
ALONE = 1 << 17  # rows for which a second thread is not worth its start
LARGE = 1 << 30  # rows of a part that is sorted by comparisons: places in it are 32 bits
EFFORT = 64  # moves for each row, above which a part is sorted by comparisons


class Keyed(NamedTuple):
    """Edges and what orders them.

    Args:
        keys: uint64, shape [N].
        rows: int32 or int64, shape [N, 4].
    """

    keys: U64
    rows: NDArray[Any]


Source = Callable[[], Iterator[Keyed]]


def key_rows(rows: IntArray, seed: int) -> U64:
    """Return a hash of lhs, relation and rhs of each row."""
    keys = np.empty(len(rows), np.uint64)
    _key(rows, np.uint64(seed), keys)
    return keys


@compiled
def _key(rows, seed, keys):  # type: ignore[no-untyped-def]
    for i in range(len(rows)):
        state = mixed(mixed(seed, np.uint64(rows[i, LHS])), np.uint64(rows[i, REL]))
        keys[i] = mixed(state, np.uint64(rows[i, RHS]))


def ordered_file(path: Path, dtype: np.dtype[Any], seed: int, known: int = 0) -> Keyed:
    """Return the rows of a file with the hashes of their content, in order.

    Args:
        path: rows of edges.
        dtype: of the rows.
        seed: of the hashes.
        known: leading bits in which all keys agree.
    """
    total = count_rows(path, dtype)
    threads = THREADS if total > ALONE else 1
    ends = [total * k // threads for k in range(threads + 1)]

    def source(start: int, stop: int) -> Source:
        def read() -> Iterator[Keyed]:
            for rows in read_rows(path, dtype, start=start, stop=stop):
                yield Keyed(key_rows(rows, seed), rows)

        return read

    sources = [source(*piece) for piece in pairwise(ends)]
    return _ordered(total, dtype, sources, known)


def ordered(edges: Keyed, known: int = 0) -> Keyed:
    """Return edges in order; `known` leading bits of all keys agree."""
    return _ordered(len(edges.keys), edges.rows.dtype, [lambda: iter([edges])], known)


def _ordered(total: int, dtype: np.dtype[Any], sources: Sequence[Source], known: int) -> Keyed:
    bits = min((total // PART).bit_length(), MOST)
    counts = np.zeros((len(sources), 1 << bits), np.int64)

    def count(k: int) -> None:
        for edges in sources[k]():
            _count(edges.keys, known, bits, counts[k])

    list(side_by_side(count, range(len(sources))))
    ends = np.cumsum(counts.T.ravel()).reshape(-1, len(sources)).T
    starts = np.ascontiguousarray(ends - counts)
    dealt = Keyed(np.empty(total, np.uint64), np.empty((total, WIDTH), dtype))

    def deal(k: int) -> None:
        for edges in sources[k]():
            _deal(edges, known, bits, starts[k], dealt)

    list(side_by_side(deal, range(len(sources))))
    borders = np.append(0, ends[-1])
    _sort_parts(dealt, borders, known + bits)
    return dealt


def _sort_parts(edges: Keyed, borders: IntArray, known: int) -> None:
    parts = len(borders) - 1
    groups = THREADS * 4 if len(edges.keys) > ALONE else 1
    cuts = [parts * k // groups for k in range(groups + 1)]
    hard = np.zeros(parts, np.bool_)

    def sort(k: int) -> None:
        mine = borders[cuts[k] : cuts[k + 1] + 1]
        if len(mine) > 1:
            _sort(edges, mine, known, hard[cuts[k] : cuts[k + 1]])

    list(side_by_side(sort, range(groups)))
    for part in np.flatnonzero(hard):
        where = slice(borders[part], borders[part + 1])
        keys, rows = edges.keys[where], edges.rows[where]
        order = np.lexsort((*(rows[:, k] for k in (WEIGHT, RHS, REL, LHS)), keys))
        keys[:], rows[:] = keys[order], rows[order]


@compiled
def _place(key, known, bits):  # type: ignore[no-untyped-def]
    """Return the bits of a key that follow the known ones."""
    if bits == 0:
        return np.uint64(0)
    return (key << np.uint64(known)) >> np.uint64(64 - bits)


@compiled
def _count(keys, known, bits, counts):  # type: ignore[no-untyped-def]
    for key in keys:
        counts[_place(key, known, bits)] += 1


@compiled
def _deal(edges, known, bits, starts, dealt):  # type: ignore[no-untyped-def]
    for i in range(len(edges.keys)):
        part = _place(edges.keys[i], known, bits)
        at = starts[part]
        starts[part] = at + 1
        _move(edges, i, dealt, at)


@compiled
def _move(source, i, target, at):  # type: ignore[no-untyped-def]
    target.keys[at] = source.keys[i]
    for k in range(WIDTH):
        target.rows[at, k] = source.rows[i, k]


@compiled
def _sort(edges, borders, known, hard):  # type: ignore[no-untyped-def]
    """Sort each part; mark those that take too long, which are left in disorder."""
    longest = 0
    for part in range(len(hard)):
        longest = max(longest, borders[part + 1] - borders[part])
    held = Keyed(np.empty(longest, np.uint64), np.empty((longest, WIDTH), edges.rows.dtype))
    for part in range(len(hard)):
        start, stop = borders[part], borders[part + 1]
        count = stop - start
        if count >= LARGE:
            hard[part] = True
            continue
        bits = 1
        while count >> bits:
            bits += 1
        bits = min(bits, 64 - known)
        starts = np.zeros((1 << bits) + 1, np.int32)
        for i in range(start, stop):
            starts[_place(edges.keys[i], known, bits) + np.uint64(1)] += np.int32(1)
        for group in range(1 << bits):
            starts[group + 1] += starts[group]
        for i in range(start, stop):
            group = _place(edges.keys[i], known, bits)
            _move(edges, i, held, starts[group])
            starts[group] += np.int32(1)
        hard[part] = _insert(held, count, edges, start)


@compiled
def _insert(held, count, edges, start):  # type: ignore[no-untyped-def]
    """Copy rows that are almost in order to their places; return whether it took too long."""
    moves = 0
    for i in range(count):
        at = start + i
        while at > start and moves <= EFFORT * count and _is_less(held, i, edges, at - 1):
            _move(edges, at - 1, edges, at)
            at -= 1
            moves += 1
        _move(held, i, edges, at)
    return moves > EFFORT * count


@compiled
def _is_less(one, i, two, j):  # type: ignore[no-untyped-def]
    if one.keys[i] != two.keys[j]:
        return one.keys[i] < two.keys[j]
    for k in range(WIDTH):
        column = (LHS, REL, RHS, WEIGHT)[k]
        if one.rows[i, column] != two.rows[j, column]:
            return one.rows[i, column] < two.rows[j, column]
    return False


def take_repeats(edges: Keyed, seed: int) -> tuple[Keyed, Keyed]:
    """Return ordered edges without those that repeat a key, and those, with keys of their own."""
    keys, rows = edges
    repeats = np.zeros(len(keys), np.bool_)
    np.equal(keys[1:], keys[:-1], out=repeats[1:])
    if not repeats.any():
        return edges, Keyed(keys[:0], rows[:0])
    rank = np.arange(len(keys))
    ordinal = rank - np.maximum.accumulate(np.where(repeats, 0, rank))
    own = mix_columns(seed, keys[repeats], ordinal[repeats])
    return Keyed(keys[~repeats], rows[~repeats]), Keyed(own, rows[repeats])


def merge(one: Keyed, two: Keyed) -> Keyed:
    """Return ordered edges and others as one."""
    total = len(one.keys) + len(two.keys)
    merged = Keyed(np.empty(total, np.uint64), np.empty((total, WIDTH), one.rows.dtype))
    _merge(one, two, merged)
    return merged


@compiled
def _merge(one, two, merged):  # type: ignore[no-untyped-def]
    i = j = 0
    for at in range(len(merged.keys)):
        if i == len(one.keys) or (j < len(two.keys) and _is_less(two, j, one, i)):
            _move(two, j, merged, at)
            j += 1
        else:
            _move(one, i, merged, at)
            i += 1
