"""Comparators and their derivatives; see `model.comparators` for the formulae.

All rest on the matrix of dot products of prepared rows, queries [P, D] with keys [K, D], of which
one row, of one query, is finished at a time.
"""

from __future__ import annotations

import numpy as np

from biggraph.model import comparators as model
from biggraph.train.kernels.jit import piece

DOT, COS, SQUARED_L2, L2 = range(4)

CODES = {model.Dot: DOT, model.Cos: COS, model.SquaredL2: SQUARED_L2, model.L2: L2}

_F = np.float32
_EPSILON = _F(1e-12)


@piece
def is_product(code):
    """Tell whether scores are dot products of prepared rows, and nothing else."""
    return code in (DOT, COS)


@piece
def _squares(row):
    total = _F(0.0)
    for value in row:
        total += value * value
    return total


@piece
def _product(a, b):
    total = _F(0.0)
    for d in range(a.shape[0]):
        total += a[d] * b[d]
    return total


@piece
def _distance(a, b):
    total = _F(0.0)
    for d in range(a.shape[0]):
        total += (a[d] - b[d]) * (a[d] - b[d])
    return total


@piece
def prepare(code, rows, lengths):
    """Bring rows into the form that is compared, in place.

    lengths [rows]: for cos 1 / |row|, for distances |row|^2; not used for dot.
    """
    if code == DOT:
        return
    for p in range(rows.shape[0]):
        row = rows[p]
        squares = _squares(row)
        lengths[p] = squares
        if code == COS:
            scale = _F(1.0) / np.sqrt(squares + _EPSILON)
            lengths[p] = scale
            for d in range(row.shape[0]):
                row[d] *= scale


@piece
def unprepare(code, rows, lengths, gradient):
    """gradient: in, of prepared rows; out, of the rows before: (g - x (x.g)) / |row| for cos."""
    if code != COS:
        return
    for p in range(rows.shape[0]):
        row, g = rows[p], gradient[p]
        along = _product(row, g)
        for d in range(row.shape[0]):
            g[d] = lengths[p] * (g[d] - row[d] * along)


@piece
def matched(code, query, key):
    """Return the similarity of one query with one key."""
    if code == SQUARED_L2:
        return -_distance(query, key)
    if code == L2:
        return -np.sqrt(_distance(query, key) + _EPSILON)
    return _product(query, key)


@piece
def unmatched(code, query, key, score, slope, query_gradient, key_gradient):
    """Add the gradient of `matched`, whose result was `score`, times `slope`."""
    if is_product(code):
        for d in range(query.shape[0]):
            query_gradient[d] += slope * key[d]
            key_gradient[d] += slope * query[d]
        return
    factor = _F(-2.0) * slope if code == SQUARED_L2 else slope / score
    for d in range(query.shape[0]):
        change = factor * (query[d] - key[d])
        query_gradient[d] += change
        key_gradient[d] -= change


@piece
def finish(code, row, query_length, key_lengths, slopes):
    """Turn the dot products of one query into scores, in place.

    slopes [K]: out, of the score by the squared distance; for distances.
    """
    if code == SQUARED_L2:
        for k in range(row.shape[0]):
            square = query_length + key_lengths[k] - _F(2.0) * row[k]
            row[k] = -max(square, _F(0.0))
            slopes[k] = _F(-1.0) if square >= _F(0.0) else _F(0.0)
    elif code == L2:
        for k in range(row.shape[0]):
            square = query_length + key_lengths[k] - _F(2.0) * row[k]
            distance = np.sqrt(max(square, _F(0.0)) + _EPSILON)
            row[k] = -distance
            slopes[k] = _F(-0.5) / distance if square >= _F(0.0) else _F(0.0)


@piece
def unfinish(code, gradient, slopes, sums):
    """Gradient [K]: in, of the scores of one query; out, of dot products. Return its sum.

    sums [K]: what is summed by key, for `add_lengths`, as the result is to be by query.

    |q - k|^2 = |q|^2 + |k|^2 - 2 qk, so a gradient g of the square is -2 g of the product, and each
    length gets twice the sum of its g times its vector.
    """
    total = _F(0.0)
    if is_product(code):
        return total
    for k in range(gradient.shape[0]):
        g = gradient[k] * slopes[k]
        total += g
        sums[k] += g
        gradient[k] = _F(-2.0) * g
    return total


@piece
def add_lengths(code, rows, sums, gradient):
    """Add to the gradient of rows what comes from their lengths, see `unfinish`."""
    if is_product(code):
        return
    for p in range(rows.shape[0]):
        factor, row, g = _F(2.0) * sums[p], rows[p], gradient[p]
        for d in range(row.shape[0]):
            g[d] += factor * row[d]
