"""The parameter server: what all workers together have made of the relation parameters.

It keeps the committed parameters and, for each live lease, the *cumulative* delta since that lease
began. A worker sees committed + the deltas of all other leases. A push that is lost or repeated
does no harm, since the next one carries everything; a commit adds a delta for good, in the order of
the log; a lost lease takes its delta with it. So relation parameters, with their optimizer state,
count exactly once, and nothing here has to survive: base + committed deltas are in storage.

Adagrad's state is a sum, so the states of several workers add up like the values do. Knows vectors
and leases; nothing of relations, sockets or buckets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from biggraph.errors import FormatError
from biggraph.storage.files import Arrays, FileRef
from biggraph.storage.place import files_of_a_commit
from biggraph.storage.records import Work
from biggraph.storage.relations import delta_of
from biggraph.storage.run import RunDirectory
from biggraph.storage.vector import flatten, unflatten


class Sums:
    """A committed vector and what live leases have added to it; safe to use from several threads.

    Args:
        committed: float32 [n]; never changed, only replaced.
    """

    def __init__(self, committed: Tensor) -> None:
        self.committed = committed
        self._deltas: dict[int, Tensor | None] = {}  # None: nothing pushed yet
        self._lock = threading.Lock()
        self.exchanges = 0

    @property
    def fences(self) -> frozenset[int]:
        """Fences of the live leases."""
        with self._lock:
            return frozenset(self._deltas)

    def follow(self, committed: Tensor, fences: Iterable[int]) -> None:
        """Take over what the log says: the committed vector, and which leases live, in one step.

        The deltas of leases that live on stay; those of others are forgotten.
        """
        with self._lock:
            self.committed = committed
            self._deltas = {fence: self._deltas.get(fence) for fence in sorted(fences)}

    def exchange(self, header: dict[str, Any], delta: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Take a lease's cumulative delta, and return everything but that.

        Args:
            header: {"fence": of the lease, "committed": whether to return nobody's delta}.
            delta: float32 [n], or empty to look only.

        Returns:
            header: {"live": whether the lease is; if not, its delta was not taken}.
            view: committed + deltas of all other leases, float32 [n].

        Raises:
            FormatError: a vector of another size, or not finite.
        """
        fence, size = header.get("fence"), self.committed.numel()
        if delta.numel() not in (0, size):
            raise FormatError(f"{delta.numel():,} relation parameters, expected {size:,}")
        if not bool(torch.isfinite(delta).all()):
            raise FormatError("relation parameters that are not finite; others will not have them")
        with self._lock:
            self.exchanges += 1
            live = isinstance(fence, int) and fence in self._deltas
            if isinstance(fence, int) and live and delta.numel():
                self._deltas[fence] = delta.clone()
            view = self.committed.clone()
            if header.get("committed"):
                return {"live": live}, view
            for other in sorted(self._deltas.keys() - {fence}):
                if (pushed := self._deltas[other]) is not None:
                    view += pushed
        return {"live": live}, view


class Parameters(Protocol):
    """Sums up what leases do to the relation parameters; see `ParameterServer`."""

    def begin(self, fence: int) -> None:
        """Take what a new lease does from now on."""
        ...

    def check(self, work: Work) -> Any:
        """Read what a commit brings; raises as `ParameterServer.check`."""
        ...

    def commit(self, fence: int, following: int, delta: Any) -> None:
        """Count the delta of a lease, for ever; the worker goes on under the lease `following`."""
        ...

    def drop(self, fence: int) -> None:
        """Forget the delta of a lease."""
        ...

    def rebase(self, run: RunDirectory) -> None:
        """Write the parameters with all their deltas as the new base."""
        ...


class ParameterServer:
    """The parameter server inside the coordinator, which tells it what counts.

    Args:
        arrays: the committed parameters, values and optimizer state.
        read: reads a file of a commit.
    """

    def __init__(self, arrays: Arrays, read: Callable[[FileRef], Arrays]) -> None:
        zero = np.float32(0)
        self._forms = {name: np.broadcast_to(zero, array.shape) for name, array in arrays.items()}
        self._read = read
        self._sums = Sums(flatten(arrays))

    @property
    def exchanges(self) -> int:
        """Exchanges so far."""
        return self._sums.exchanges

    def exchange(self, header: dict[str, Any], delta: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Take a lease's cumulative delta, and return everything but that; see `Sums.exchange`."""
        return self._sums.exchange(header, delta)

    def arrays(self) -> Arrays:
        """Return a copy of the committed parameters."""
        return unflatten(self._sums.committed.clone(), self._forms)

    def begin(self, fence: int) -> None:
        """Take deltas of a lease from now on."""
        self._sums.follow(self._sums.committed, self._sums.fences | {fence})

    def check(self, work: Work) -> Tensor:
        """Return the delta of a commit [n].

        Raises:
            CommitUnreadable: its file cannot be read.
            FormatError: there is none, its file is damaged, of another size or not finite.
        """
        if work.delta is None or work.relations is not None:
            raise FormatError("a commit among several workers brings a delta, and nothing else")
        path = work.delta.path
        try:
            with files_of_a_commit():
                delta = torch.from_numpy(delta_of(self._read(work.delta), path))
        except FileNotFoundError:
            raise FormatError(f"{path}: missing") from None
        if delta.shape != self._sums.committed.shape:
            raise FormatError(f"{path}: not the relation parameters of this run")
        if not bool(torch.isfinite(delta).all()):
            raise FormatError(f"{path}: not finite")
        return delta

    def commit(self, fence: int, following: int, delta: Tensor) -> None:
        """Count a lease's delta for good; its worker goes on under another lease."""
        committed = self._sums.committed + delta
        self._sums.follow(committed, self._sums.fences - {fence} | {following})

    def drop(self, fence: int) -> None:
        """Forget a lease."""
        self._sums.follow(self._sums.committed, self._sums.fences - {fence})

    def rebase(self, run: RunDirectory) -> None:
        """Write the committed parameters as the new base; raises StorageError."""
        run.rebase(self.arrays())
