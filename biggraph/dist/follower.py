"""A parameter server of its own: one slice of the parameters, kept in step with the log.

All it knows comes from storage: the log says which leases live and what is committed, base and
delta files hold the numbers. So it may be killed and started again at any time, and nobody has to
tell it anything. It sees the log a little late: a lease that it has not seen yet is answered like
one that has ended, and that lease's next push carries everything. Knows the log and vectors;
nothing of sockets, workers or buckets.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from biggraph.dist.parameter_server import Sums
from biggraph.errors import FormatError
from biggraph.storage.files import FileRef, read_arrays
from biggraph.storage.place import RESTORE, Place
from biggraph.storage.reading import LogReader
from biggraph.storage.relations import delta_of
from biggraph.storage.state import RunState
from biggraph.storage.vector import cut, flatten

_ATTEMPTS = 20


class Follower:
    """Serves slice `index` of `count`. Safe to use from several threads; reads, never writes.

    Args:
        place: of the run.
        index: of the slice, from 0.
        count: of slices.
    """

    def __init__(self, place: Place, index: int, count: int) -> None:
        self._place, self._index, self._count = place, index, count
        self._lock = threading.Lock()  # one catches up at a time
        self._log = LogReader(place)
        self._state: RunState | None = None
        self._folded: tuple[FileRef, ...] = ()  # base and deltas that the sums hold
        self._size = 0  # of all slices
        self._sums = Sums(torch.empty(0))

    @property
    def state(self) -> RunState:
        """What the log said when it was last read; `catch_up` has to come first."""
        assert self._state is not None
        return self._state

    @property
    def committed(self) -> Tensor:
        """The committed parameters of this slice."""
        return self._sums.committed

    def catch_up(self) -> None:
        """Take over every record that was written up to now.

        Raises:
            FormatError: the log or a file that it names is damaged.
            StorageError: the place refused.
        """
        with self._lock:
            for _ in range(_ATTEMPTS):
                try:
                    self._state = self._log.state()
                    self._fold()
                    return
                except FileNotFoundError as error:
                    missing = error.filename  # a later record has made it garbage
            raise FormatError(f"{missing}: missing{RESTORE}")

    def exchange(self, header: dict[str, Any], delta: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Exchange as `Sums.exchange`.

        Args:
            header: {"fence": of the lease, "fresh": whether to read the log up to its end first}.
            delta: float32 [n of this slice], or empty.

        Raises:
            FormatError: a vector of another size, or as `catch_up`.
            StorageError: as `catch_up`.
        """
        if header.get("fresh"):
            self.catch_up()
        return self._sums.exchange(header, delta)

    def _fold(self) -> None:
        """Sum up what is committed, in the order of the log; raises FileNotFoundError."""
        state = self.state
        wanted, held = state.present.parameter_files(), self._folded
        committed = self._sums.committed
        if wanted[: len(held)] != held:
            held, committed = (), torch.empty(0)
        for ref in wanted[len(held) :]:
            part = self._slice(ref, base=ref == wanted[0])
            committed = committed + part if committed.numel() else part
        self._sums.follow(committed, state.leases)
        self._folded = wanted

    def _slice(self, ref: FileRef, *, base: bool) -> Tensor:
        arrays, where = read_arrays(self._place, ref)[0], self._place.where(ref.path)
        whole = flatten(arrays) if base else torch.from_numpy(delta_of(arrays, where))
        if base:
            self._size = len(whole)
        if len(whole) != self._size:
            raise FormatError(f"{where}: not the parameters of this run")
        return whole[cut(self._size, self._index, self._count)].clone()
