"""Random candidates of a batch, and how many entities of the graph each stands for.

The same distribution as `model.negatives`, from a generator of its own.
"""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels.jit import kernel, piece
from biggraph.train.kernels.mathematics import log

_F = np.float32


@piece
def _next(state):
    """Return 64 random bits: splitmix64 (Steele, Lea and Flood, OOPSLA 2014, fig. 15)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@piece
def _below(state, count):
    """Return a random int64 in [0, count), count below 2^31."""
    return np.int64(((_next(state) >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@kernel
def draw_ids(state, count, out):
    """Fill int64 [C, N] with ids below `count`, with replacement; state uint64 [1] moves on."""
    flat = out.reshape(-1)
    for i in range(flat.shape[0]):
        flat[i] = _below(state, count)


@kernel
def draw_kept(state, share, out):
    """Fill float32 [B, D] with 1 / share, with probability share, or 0."""
    limit, value = np.uint64(share * 4294967296.0), _F(1.0 / share)
    flat = out.reshape(-1)
    for i in range(flat.shape[0]):
        flat[i] = value if _next(state) >> np.uint64(32) < limit else _F(0.0)


@kernel
def weigh(true, chunk, ids, share, near, logarithms, out):
    """Fill the logarithm of how many entities each candidate stands for.

    See `model.negatives.sample_candidates`: 1 / (expected occurrences in the chunk).

    Args:
        true: int64 [B], candidates of their own chunk where there are shares.
        chunk: positives of a whole chunk.
        ids: int64 [C, N], uniform candidates.
        share: float32 [count], of the bucket's edges that end in each entity; or [0].
        near: expected uniform occurrences of an entity.
        logarithms: what is added for candidates of the partition, and that of those from outside.
        out: float32 [C, chunk + N + M]: own, uniform, from outside; own ones of a ragged chunk
            leave no gap.
    """
    scale, far = _F(logarithms[0]), _F(logarithms[1])
    for c in range(ids.shape[0]):
        start, stop = c * chunk, min((c + 1) * chunk, true.shape[0])
        own = stop - start if share.shape[0] else 0
        row, others = out[c, : own + ids.shape[1]], _F(stop - start - 1)
        row[own:] = _F(near)
        if share.shape[0]:
            for p in range(own):
                row[p] = others * share[true[start + p]] + _F(near)
            for n in range(ids.shape[1]):
                row[own + n] += others * share[ids[c, n]]
        for k in range(row.shape[0]):
            row[k] = scale - log(max(row[k], _F(1e-9)))
        out[c, row.shape[0] :] = far
