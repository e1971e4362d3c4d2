"""Candidates of batches for the compiled step, from one generator.

Decides like `train.batch` and `model.negatives` how many there are and from where; `draws` makes
the numbers. Knows offsets; nothing of rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from biggraph.model.negatives import Population, far_count
from biggraph.train.batch import BatchMaker
from biggraph.train.kernels.draws import draw_ids, draw_kept, weigh
from biggraph.train.kernels.task import Draw

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

_NO_FLOATS = np.empty((0, 0), np.float32)
_NO_SHARE = np.empty(0, np.float32)


class Sampler:
    """Draws candidates.

    Args:
        maker: says how.
        dimension: D.
        weighted: whether losses use the candidates' weights, see `StepSettings.corrected`.
    """

    def __init__(self, maker: BatchMaker, dimension: int, *, weighted: bool) -> None:
        self._maker, self._dimension, self._weighted = maker, dimension, weighted
        self._state = np.zeros(1, np.uint64)

    def begin(self, seed: int) -> None:
        """Begin the generator anew."""
        self._state[0] = seed % 2**64

    def draw(self, population: Population, far_rows: Floats, true: Ids, chunk: int) -> Draw:
        """Return candidates for every chunk of a batch; `numbers` is only made, not filled.

        Args:
            population: of the replaced side.
            far_rows: of the reservoir, float32 [S, D].
            true: ids of the replaced ends, int64 [B].
            chunk: positives of a whole chunk.
        """
        if self._maker.covers(population):
            return self._whole(population, far_rows, len(true))
        chunks = -(-len(true) // chunk)
        wanted = self._maker.negatives.uniform
        m = far_count(population, wanted)
        ids, far = np.empty((chunks, wanted - m), np.int64), np.empty((chunks, m), np.int64)
        draw_ids(self._state, population.count, ids)
        if m:
            draw_ids(self._state, population.outside, far)
        share = _NO_SHARE if population.share is None else population.share.numpy()
        weights = _NO_FLOATS
        if self._weighted:
            own = chunk if len(share) else 0
            weights = np.empty((chunks, own + wanted), np.float32)
            near = (wanted - m) / population.count
            weigh(true, chunk, ids, share, near, _logarithms(population, m), weights)
        return self._complete(population, bool(len(share)), ids, far_rows, far, weights, len(true))

    def _whole(self, population: Population, far_rows: Floats, size: int) -> Draw:
        """Return every entity of the partition, and rows from outside, the same for all chunks."""
        negatives = self._maker.negatives
        wanted = population.outside if negatives.all else negatives.uniform
        m = min(population.outside, wanted)
        far = np.arange(m, dtype=np.int64)[np.newaxis]
        if m < population.outside:
            draw_ids(self._state, population.outside, far)
        ids, weights = np.arange(population.count, dtype=np.int64)[np.newaxis], _NO_FLOATS
        if self._weighted:
            near, outside = _logarithms(population, m)
            weights = np.full((1, population.count + m), near, np.float32)
            weights[:, population.count :] = outside
        return self._complete(population, False, ids, far_rows, far, weights, size)

    def _complete(
        self, population: Population, own: bool, ids: Ids, far_rows: Floats, far: Ids,
        weights: Floats, size: int,
    ) -> Draw:  # fmt: skip
        keep, share = _NO_FLOATS, 1 - self._maker.dropout
        if share < 1:
            keep = np.empty((size, self._dimension), np.float32)
            draw_kept(self._state, share, keep)
        scaled = self._weighted and far.shape[1] > 0
        return Draw(
            replaced=True,
            own=own,
            ids=ids,
            numbers=np.empty(ids.shape, np.int32),
            far_rows=far_rows,
            far=far,
            log_weight=weights,
            row_scale=float(population.scale) if scaled else 1.0,
            keep=keep,
        )


def nothing(dimension: int) -> Draw:
    """Return what stands for a side that is not replaced."""
    none = np.empty((1, 0), np.int64)
    rows = np.empty((0, dimension), np.float32)
    return Draw(False, False, none, none.astype(np.int32), rows, none, _NO_FLOATS, 1.0, _NO_FLOATS)


def _logarithms(population: Population, far: int) -> tuple[float, float]:
    """Return what is added to the weights of drawn candidates, and the weight of those outside."""
    if not far:
        return math.log(population.scale), 0.0
    return 0.0, math.log((population.total - population.count) / far)
