"""Relation parameters: operator parameters of every relation, with their optimizer state.

The in-process form of the "relation parameters" seam. Knows names and tensors; nothing of how
operators use them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.errors import FormatError

_SUMS = "optimizer."


@dataclass
class RelationParameters:
    """Values and Adagrad sums, by name; the first axis is the relation's place in its group.

    Args:
        values: float32 tensors, shape [relations in the group, ...]; and the tables of entity types
            that workers share, [count, D].
        sums: sums of squared gradients, same names and shapes; or one number a row.
        lock: held while values change, so that no thread's change is lost.
    """

    values: dict[str, Tensor]
    sums: dict[str, Tensor] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            self.sums.setdefault(name, torch.zeros_like(value))

    def add(self, name: str, values: Tensor, sums: Tensor) -> None:
        """Keep another tensor with its Adagrad sums, which may be one number a row."""
        self.values[name], self.sums[name] = values, sums

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return everything that a commit must keep; the arrays share memory with the tensors."""
        arrays = {name: value.numpy() for name, value in self.values.items()}
        return arrays | {_SUMS + name: value.numpy() for name, value in self.sums.items()}

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy in what `arrays` returned; optimizer state that is absent stays as it is.

        Raises:
            FormatError: a parameter is missing or has another shape.
        """
        for name, value in self.values.items():
            array = arrays.get(name)
            if array is None or array.shape != tuple(value.shape):
                found = "nothing" if array is None else f"shape {list(array.shape)}"
                raise FormatError(
                    f"relation parameter {name}: expected shape {list(value.shape)}, "
                    f"found {found}; the checkpoint was made with another model or graph"
                )
            value.copy_(torch.from_numpy(array))
            if _SUMS + name in arrays:
                self.sums[name].copy_(torch.from_numpy(arrays[_SUMS + name]))
