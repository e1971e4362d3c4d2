"""The matrix products of a chunk: of float32 numbers by BLAS, or of bfloat16 ones.

    scores = query keys^T,  d query = (d scores) keys,  d keys = (d scores)^T query

Shapes: query [P, D], keys [K, D], scores [P, K]; all float32. Knows nothing else of the step.
"""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels import bfloat16
from biggraph.train.kernels.jit import piece

_LANES = bfloat16.LANES


def memory(p: int, k: int, d: int) -> bfloat16.Pairs:
    """Return the memory that products of these shapes, and of smaller ones, need as bfloat16."""
    return bfloat16.empty(
        max(
            (p + k) * _halved(d) + _halved(d) * _padded(k),
            p * _halved(k) + (_half(k) + _half(p)) * _padded(d) + _half(p) * _padded(k),
        )
    )


@piece
def score(rough, query, keys, scores, pairs):
    """Fill the scores.

    Args:
        rough: whether factors are rounded to bfloat16.
        query: see above.
        keys: see above.
        scores: out.
        pairs: see `memory`.
    """
    if not rough:
        np.dot(query, keys.T, scores)
        return
    (p, d), k = query.shape, keys.shape[0]
    left, rest = _take(pairs, p, _halved(d))
    right, rest = _take(rest, k, _halved(d))
    turned, _ = _take(rest, _halved(d), _padded(k))
    bfloat16.across(query, left)
    bfloat16.across(keys, right)
    bfloat16.turn(right, turned)
    bfloat16.multiply((left.reshape(-1), left.shape[1], 1), turned, _half(d), scores)


@piece
def derive(rough, query, keys, slopes, query_gradient, key_gradient, pairs):
    """Fill the gradients of query and keys from that of the scores.

    Args:
        rough: see `score`.
        query: see above.
        keys: see above.
        slopes: gradient of the scores, [P, K].
        query_gradient: out, [P, D].
        key_gradient: out, [K, D].
        pairs: see `memory`.
    """
    if not rough:
        np.dot(slopes, keys, query_gradient)
        np.dot(slopes.T, query, key_gradient)
        return
    (p, d), k = query.shape, keys.shape[0]
    along, rest = _take(pairs, p, _halved(k))
    right, rest = _take(rest, _half(k), _padded(d))
    bfloat16.across(slopes, along)
    bfloat16.down(keys, right)
    bfloat16.multiply((along.reshape(-1), along.shape[1], 1), right, _half(k), query_gradient)
    standing, rest = _take(rest, _half(p), _padded(k))
    right, _ = _take(rest, _half(p), _padded(d))
    bfloat16.down(slopes, standing)
    bfloat16.down(query, right)
    factor = standing.reshape(-1), 1, standing.shape[1]
    bfloat16.multiply(factor, right, _half(p), key_gradient)


@piece
def _half(count):
    """Return how many pairs hold so many numbers."""
    return (count + 1) // 2


@piece
def _padded(count):
    return (count + _LANES - 1) // _LANES * _LANES


@piece
def _halved(count):
    return _padded(_half(count))


@piece
def _take(pairs, rows, width):
    """Return a matrix in memory of pairs, and the rest."""
    size = rows * width
    return pairs[:size].reshape(rows, width), pairs[size:]
