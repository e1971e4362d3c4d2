"""Work of a fixed shape that a GPU is told once and repeats: CUDA graphs.

Telling a GPU to do a batch's work, operation by operation, takes the processor longer than the work
takes the GPU. A graph is told as a whole. It can hold nothing that the processor has to wait for,
so that numbers of rows must not depend on values. Knows nothing of tables or training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# From positions of edges to the sum of their losses, both on the device.
Work = Callable[[Tensor], Tensor]
# Makes of some work, which draws from a generator, one that does the same.
Record = Callable[[Work, torch.Generator], Work]

_WARM_UP = 3  # times that work is done before it is recorded, so that libraries are set up


class Recording:
    """Does the same as some work, from its fourth time on by a CUDA graph.

    What is returned holds until the next call. The work has to find all its tensors but the
    positions where they were before.

    Args:
        work: always given as many positions.
        generator: that it draws from.
    """

    def __init__(self, work: Work, generator: torch.Generator) -> None:
        self._work, self._generator = work, generator
        self._times = 0

    def __call__(self, positions: Tensor) -> Tensor:
        """Do the work."""
        if self._times == 0:
            self._positions = torch.empty_like(positions)
        self._positions.copy_(positions)
        self._times += 1
        with torch.cuda.device(positions.device):
            if self._times <= _WARM_UP:
                return self._aside()
            if self._times == _WARM_UP + 1:
                self._record()
            self._graph.replay()
        return self._result

    def _aside(self) -> Tensor:
        """Do the work on a stream of its own, as it will be recorded."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            result = self._work(self._positions)
        here.wait_stream(aside)
        return result

    def _record(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._generator)
        with torch.cuda.graph(self._graph):
            self._result = self._work(self._positions)


def padded_distinct(ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ones of some ids, filled up to as many as they are, and their places.

    As `step.unique`, but of a shape that does not depend on values: behind the U distinct ids
    stands the least one again, to which no place points.

    >>> padded_distinct(torch.tensor([7, 5, 7]))
    (tensor([5, 7, 5]), tensor([1, 0, 1]))
    """
    sorted_T, order_T = ids_T.sort()
    new_T = torch.ones_like(sorted_T)
    new_T[1:] = sorted_T[1:] != sorted_T[:-1]
    number_T = new_T.cumsum(0) - 1
    distinct_T = sorted_T[:1].repeat(len(sorted_T)).scatter_(0, number_T, sorted_T)
    return distinct_T, torch.empty_like(order_T).scatter_(0, order_T, number_T)
