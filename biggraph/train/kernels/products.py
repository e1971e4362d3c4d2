"""The matrix products of a chunk: of float32 numbers by BLAS, or of bfloat16 ones.

    scores = query keys^T,  d query = (d scores) keys,  d keys = (d scores)^T query

Shapes: query [P, D], keys [K, D], scores [P, K]; all float32. Queries come in blocks, whose scores
become gradients while they are in cache. Knows nothing else of the step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from biggraph.train.kernels import bfloat16
from biggraph.train.kernels.jit import piece, routine, view
from biggraph.train.kernels.vectors import LANES

_TILES = 2 * bfloat16.ROWS
_CACHED = 32768  # scores that the second cache holds beside their factors


class Packed(NamedTuple):
    """Memory for bfloat16 factors, flat; [0] where products are of float32.

    Args:
        query: a block's, pairs along rows; room for all, since with fewer keys a block has more.
        keys: pairs along rows.
        turned: of `keys`, turned.
        keys_down: pairs down columns.
        slopes: a block's, as `query`.
        slopes_down: of all, pairs down columns.
        query_down: of all, pairs down columns.
    """

    query: bfloat16.Pairs
    keys: bfloat16.Pairs
    turned: bfloat16.Pairs
    keys_down: bfloat16.Pairs
    slopes: bfloat16.Pairs
    slopes_down: bfloat16.Pairs
    query_down: bfloat16.Pairs


def memory(p: int, k: int, d: int) -> Packed:
    """Return the memory that products of these shapes, and of smaller ones, need as bfloat16."""
    # The pieces below say the same of these numbers; called from here they would be compiled.
    half_p, half_k, half_d = ((n + 1) // 2 for n in (p, k, d))
    wide_k, wide_d, wide_half_k, wide_half_d = (
        -(-n // LANES) * LANES for n in (k, d, half_k, half_d)
    )
    return Packed(
        query=bfloat16.empty(p * wide_half_d),
        keys=bfloat16.empty(k * wide_half_d),
        turned=bfloat16.empty(wide_half_d * wide_k),
        keys_down=bfloat16.empty(half_k * wide_d),
        slopes=bfloat16.empty(p * wide_half_k),
        slopes_down=bfloat16.empty(half_p * wide_k),
        query_down=bfloat16.empty(half_p * wide_d),
    )


@piece
def block(rough, p, k):
    """Return how many queries to take at a time.

    BLAS is best with all. Else so many that their scores stay in cache and that each is worth
    reading the keys again: an even number, for pairs, and a multiple of the rows of a tile.
    """
    return max(_CACHED // (max(k, 1) * _TILES) * _TILES, _TILES) if rough else p


@view
def scores_of(flat, rows, k):
    """Return memory for the scores of so many queries, [rows, k], at the start of a flat one."""
    return flat[: rows * k].reshape(rows, k)


@piece
def take_keys(rough, keys, packed):
    """Keep the keys, [K, D], for `score` and `derive_query`."""
    if not rough:
        return
    k, d = keys.shape
    along = _shaped(packed.keys, k, _halved(d))
    bfloat16.across(keys, along)
    bfloat16.turn(along, _shaped(packed.turned, _halved(d), _padded(k)))
    bfloat16.down(keys, _shaped(packed.keys_down, _half(k), _padded(d)))


@piece
def score(rough, query, keys, scores, packed):
    """Fill the scores of a block of queries.

    Args:
        rough: whether factors are rounded to bfloat16.
        query: the block's, [rows, D].
        keys: see `take_keys`.
        scores: out, [rows, K].
        packed: see `Packed`.
    """
    if not rough:
        _multiply(query, keys.T, scores)
        return
    turned = _shaped(packed.turned, _halved(keys.shape[1]), _padded(keys.shape[0]))
    _multiply_rounded(query, packed.query, turned, scores)


@piece
def derive_query(rough, begin, slopes, keys, query_gradient, packed):
    """Fill the gradient of a block of queries, and keep that of the scores for `derive_keys`.

    Args:
        rough: see `score`.
        begin: the first query of the block; even, as those of `block` are.
        slopes: gradient of the block's scores, [rows, K].
        keys: see `take_keys`.
        query_gradient: out, [rows, D].
        packed: see `Packed`.
    """
    if not rough:
        _multiply(slopes, keys, query_gradient)
        return
    rows, k = slopes.shape
    right = _shaped(packed.keys_down, _half(k), _padded(keys.shape[1]))
    _multiply_rounded(slopes, packed.slopes, right, query_gradient)
    kept = packed.slopes_down[begin // 2 * _padded(k) :]
    bfloat16.down(slopes, _shaped(kept, _half(rows), _padded(k)))


@piece
def derive_keys(rough, slopes, query, key_gradient, packed):
    """Fill the gradient of the keys.

    Args:
        rough: see `score`.
        slopes: gradient of all scores, [P, K]; not used where rough.
        query: all queries, [P, D].
        key_gradient: out, [K, D].
        packed: see `Packed`.
    """
    if not rough:
        _multiply(slopes.T, query, key_gradient)
        return
    (p, d), k = query.shape, key_gradient.shape[0]
    left = _shaped(packed.slopes_down, _half(p), _padded(k))
    right = _shaped(packed.query_down, _half(p), _padded(d))
    bfloat16.down(query, right)
    bfloat16.multiply((left.reshape(-1), 1, left.shape[1]), right, _half(p), key_gradient)


@routine
def _multiply(a, b, out):
    np.dot(a, b, out)


@piece
def _multiply_rounded(x, memory, right, out):
    """Fill out = x right, with x rounded into memory; right holds pairs down columns."""
    left = _shaped(memory, x.shape[0], _halved(x.shape[1]))
    bfloat16.across(x, left)
    bfloat16.multiply((left.reshape(-1), left.shape[1], 1), right, _half(x.shape[1]), out)


@piece
def _half(count):
    """Return how many pairs hold so many numbers."""
    return (count + 1) // 2


@piece
def _padded(count):
    return (count + LANES - 1) // LANES * LANES


@piece
def _halved(count):
    return _padded(_half(count))


@view
def _shaped(memory, rows, width):
    return memory[: rows * width].reshape(rows, width)
