"""Memory of one training thread that lives from batch to batch, so that none is asked for in one.

Everything grows to the largest batch that came; what was in it is lost then.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from biggraph.train.kernels import products
from biggraph.train.kernels.distinct import number
from biggraph.train.kernels.task import Draw, Room

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Index = NDArray[np.int32]


class Numbering:
    """Numbers the distinct ids of one table in one batch, from 0."""

    def __init__(self) -> None:
        self._entries, self._slots = np.zeros(2, np.int64), np.zeros(2, np.int32)
        self._distinct = np.empty(1, np.int64)
        self._stamp, self._count, self._whole = 0, 0, False

    @property
    def distinct(self) -> Ids:
        """The ids by number, int64 [U]."""
        return self._distinct[: self._count]

    def begin(self, most: int) -> None:
        """Forget all ids; at most so many come now."""
        if self._whole or len(self._distinct) < most:
            size = 1 << (4 * most - 1).bit_length()
            self._entries, self._slots = np.zeros(size, np.int64), np.zeros(size, np.int32)
            self._distinct, self._stamp, self._whole = np.empty(most, np.int64), 0, False
        self._stamp, self._count = self._stamp % (2**31 - 1) + 1, 0
        if self._stamp == 1:
            self._entries[:] = 0

    def begin_whole(self, count: int) -> None:
        """Forget all ids; every id below `count` has itself for its number."""
        if not self._whole or self._count != count:
            self._distinct, self._count, self._whole = np.arange(count), count, True

    def add(self, ids: Ids, index: Index) -> None:
        """Fill `index` with the numbers of ids; the same shapes."""
        if self._whole:
            index[...] = ids
            return
        self._count = number(
            ids.reshape(-1), index.reshape(-1), self._entries, self._slots, self._stamp,
            self._distinct, self._count,
        )  # fmt: skip


class Buffer:
    """Rows of one width that may become more."""

    def __init__(self) -> None:
        self._rows = np.empty((0, 0), np.float32)

    def rows(self, count: int, width: int) -> Floats:
        """Return `count` rows of memory; what is in them means nothing."""
        if self._rows.shape[1] != width or len(self._rows) < count:
            self._rows = np.empty((count + count // 4, width), np.float32)
        return self._rows[:count]


class RoomMaker:
    """Makes the room for chunks.

    Args:
        dimension: D.
        rough: whether products are of bfloat16.
    """

    def __init__(self, dimension: int, *, rough: bool) -> None:
        self._dimension, self._rough = dimension, rough
        self._shape = (0, 0)
        self._room: Room | None = None

    def room(self, positives: int, draws: Iterable[Draw]) -> Room:
        """Return room for chunks of so many positives with these candidates."""
        keys = positives + max(draw.ids.shape[1] + draw.far.shape[1] for draw in draws)
        if self._room is None or positives > self._shape[0] or keys > self._shape[1]:
            self._shape = (max(positives, self._shape[0]), max(keys, self._shape[1]))
            self._room = self._make(*self._shape)
        return self._room

    def _make(self, p: int, k: int) -> Room:
        def floats(*shape: int) -> Floats:
            return np.empty(shape, np.float32)

        d = self._dimension
        return Room(
            anchor=floats(p, d),
            query=floats(p, d),
            query_gradient=floats(p, d),
            query_lengths=floats(p),
            query_sums=floats(p),
            positive=floats(p),
            positive_slope=floats(p),
            keys_before=floats(k, d),
            keys=floats(k, d),
            key_gradient=floats(k, d),
            key_lengths=floats(k),
            key_sums=floats(k),
            scores=floats(p * k),
            slopes=floats(k),
            first_place=np.zeros(k, np.int32),
            packed=products.memory(p, k, d) if self._rough else products.memory(0, 0, 0),
        )
