"""Which distinct rows a batch uses, and moving them: gather, sum of gradients, Adagrad.

Gradients of equal rows are summed before one update, as in `train.step`.
"""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels.jit import kernel, piece, prefetch

_F = np.float32
_EPSILON = _F(1e-10)
_LINE = 16  # floats of a cache line
_AHEAD = 4  # rows asked for before they are used


@kernel
def number(ids, index, entries, slots, stamp, distinct, count):
    """Number ids in the order of their first appearance.

    Args:
        ids: int64 [n], below 2^31.
        index: int32 [n], out: the number of each id.
        entries: int64 [power of two, at least twice the distinct ids], a hash table.
        slots: int32 [as entries]: the number of an entry.
        stamp: entries of other stamps are empty.
        distinct: int64, out: the id of each number.
        count: distinct ids already numbered under this stamp.

    Returns:
        distinct ids now.
    """
    mask, mark = np.int64(entries.shape[0] - 1), np.int64(stamp) << np.int64(32)
    for i in range(ids.shape[0]):
        wanted = mark | ids[i]
        place = (ids[i] * np.int64(-7046029254386353131) >> np.int64(20)) & mask
        while entries[place] != wanted:
            if entries[place] >> np.int64(32) != stamp:
                entries[place], slots[place] = wanted, count
                distinct[count] = ids[i]
                count += 1
                break
            place = (place + 1) & mask
        index[i] = slots[place]
    return count


@piece
def fetch(rows, i):
    """Ask for a row [D] of a table."""
    width = rows.shape[1]
    for start in range(0, width, _LINE):
        prefetch(rows, i * width + start)


@piece
def gather(rows, ids, out):
    """out[i] = rows[ids[i]]."""
    n = ids.shape[0]
    for i in range(min(_AHEAD, n)):
        fetch(rows, ids[i])
    for i in range(n):
        if i + _AHEAD < n:
            fetch(rows, ids[i + _AHEAD])
        source = rows[ids[i]]
        for d in range(rows.shape[1]):
            out[i, d] = source[d]


@piece
def scatter(gradient, index, sums):
    """sums[index[i]] += gradient[i]."""
    n = index.shape[0]
    for i in range(min(_AHEAD, n)):
        fetch(sums, index[i])
    for i in range(n):
        if i + _AHEAD < n:
            fetch(sums, index[i + _AHEAD])
        total = sums[index[i]]
        for d in range(gradient.shape[1]):
            total[d] += gradient[i, d]


@kernel
def gather_columns(values, ids, out, column):
    """out[i, column : column + W] = values[ids[i]]; values [R, W]."""
    for i in range(ids.shape[0]):
        for d in range(values.shape[1]):
            out[i, column + d] = values[ids[i], d]


@kernel
def adagrad(values, state, ids, gradient, column, rate):
    """Adagrad with a sum for each number: state += g^2, values -= rate g / sqrt(state).

    Args:
        values: float32 [R, W].
        state: float32 [R, W].
        ids: int64 [U], distinct.
        gradient: float32 [U, at least column + W].
        column: of the gradient, where this parameter's begins.
        rate: learning rate, float32.
    """
    n, width = ids.shape[0], values.shape[1]
    for u in range(n):
        if u + _AHEAD < n:
            fetch(values, ids[u + _AHEAD])
            fetch(state, ids[u + _AHEAD])
        row, sums, g = values[ids[u]], state[ids[u]], gradient[u, column : column + width]
        for d in range(width):
            sums[d] += g[d] * g[d]
            row[d] -= rate * g[d] / (np.sqrt(sums[d]) + _EPSILON)


@kernel
def row_adagrad(values, state, ids, gradient, rate):
    """Adagrad with a sum for each row: state += mean(g^2); shapes as `adagrad`, state [R]."""
    n, width = ids.shape[0], values.shape[1]
    for u in range(n):
        if u + _AHEAD < n:
            fetch(values, ids[u + _AHEAD])
            prefetch(state, ids[u + _AHEAD])
        row, g, squares = values[ids[u]], gradient[u], _F(0.0)
        for d in range(width):
            squares += g[d] * g[d]
        state[ids[u]] += squares / _F(width)
        scale = rate / (np.sqrt(state[ids[u]]) + _EPSILON)
        for d in range(width):
            row[d] -= scale * g[d]
