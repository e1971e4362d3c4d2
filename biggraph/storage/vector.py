"""Named float32 arrays as one flat vector and back, in the order of their names.

Knows nothing of what the arrays are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.storage.files import Arrays


def flatten(arrays: Mapping[str, NDArray[np.float32]]) -> Tensor:
    """Return a copy of all arrays as one vector [n]."""
    parts = [arrays[name].reshape(-1) for name in sorted(arrays)]
    return torch.from_numpy(np.concatenate(parts, dtype=np.float32))


def cut(size: int, index: int, count: int) -> slice:
    """Return where slice `index` of `count` lies in a vector of that size.

    >>> [cut(7, index, 3) for index in range(3)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(size * index // count, size * (index + 1) // count)


def unflatten(vector: Tensor, like: Mapping[str, NDArray[np.float32]]) -> Arrays:
    """Return views of a vector with the names and shapes of `like`."""
    return dict(_slices(vector.numpy(), like))


def set_to(arrays: Mapping[str, NDArray[np.float32]], vector: Tensor) -> None:
    """Set arrays to a vector, in place."""
    for name, part in _slices(vector.numpy(), arrays):
        arrays[name][...] = part


def add(arrays: Mapping[str, NDArray[np.float32]], vector: NDArray[np.float32]) -> None:
    """Add a vector to arrays, in place."""
    for name, part in _slices(vector, arrays):
        arrays[name] += part


def _slices(
    flat: NDArray[np.float32], like: Mapping[str, NDArray[np.float32]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    start = 0
    for name in sorted(like):
        stop = start + like[name].size
        yield name, flat[start:stop].reshape(like[name].shape)
        start = stop
