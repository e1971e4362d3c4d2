"""Who keeps the relation parameters: the worker itself, or a parameter server for all workers.

Knows parameters and files; nothing of leases, buckets or sockets.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from biggraph.errors import BigGraphError, DivergenceError, RemoteError
from biggraph.model.relations import RelationParameters
from biggraph.storage.files import Arrays, FileRef
from biggraph.storage.relations import write_delta, write_relations
from biggraph.storage.store import DiskStore
from biggraph.storage.vector import cut, flatten, set_to


class Keeper(Protocol):
    """Keeps the relation parameters of one worker in step with those of the run."""

    bytes_written: int  # into files so far
    bytes_exchanged: int  # with the parameter server so far, both ways

    def begin(self, fence: int) -> None:
        """Set the parameters to those of the run, under a new lease."""
        ...

    def save(self, store: DiskStore) -> tuple[FileRef | None, FileRef | None]:
        """Write what a commit needs: the parameters as they are, or what is to be added to them."""
        ...

    def committed(self, fence: int) -> None:
        """What was saved counts; the lease goes on with this fence."""
        ...

    def end(self) -> None:
        """The run is finished: set the parameters to those of the run."""
        ...


class OwnParameters:
    """The parameters of a run with one worker: nobody else changes them.

    Args:
        parameters: in use; those of a run that has committed nothing.
        committed: reads the last commit's, {} before the first.
    """

    def __init__(self, parameters: RelationParameters, committed: Callable[[], Arrays]) -> None:
        self._parameters, self._committed = parameters, committed
        self._initial = {name: array.copy() for name, array in parameters.arrays().items()}
        self.bytes_written = self.bytes_exchanged = 0

    def begin(self, fence: int) -> None:
        """Set the parameters to those of the last commit; raises FormatError if damaged."""
        self._parameters.load(self._committed() or self._initial)

    def save(self, store: DiskStore) -> tuple[FileRef | None, FileRef | None]:
        """Write all parameters; raises StorageError where the file system refuses."""
        arrays = self._parameters.arrays()
        self.bytes_written += sum(array.nbytes for array in arrays.values())
        return write_relations(store.place, store.fence, arrays), None

    def committed(self, fence: int) -> None:
        """Do nothing: the parameters in use are those of the run."""

    def end(self) -> None:
        """Do nothing, as in `committed`."""


class Exchange(Protocol):
    """Sends a header and a vector to the parameter server, and returns its answer."""

    def __call__(
        self, header: dict[str, Any], vector: Tensor, *, patient: bool
    ) -> tuple[dict[str, Any], Tensor]:
        """Try until it succeeds if `patient`, else once; raises LinkLost."""
        ...


class SharedParameters:
    """One worker's copy of parameters that parameter servers keep for several workers.

    The copy is `reference` + what this worker did since its lease began; `reference` is the
    servers' view without that. An exchange replaces the reference, and adds the difference to the
    copy in use rather than replacing it, so that steps taken meanwhile are not lost. Each server
    has a slice of all this; one that does not answer leaves its slice as it is.

    Args:
        parameters: in use by the training threads.
        servers: exchanges with each parameter server, in the order of their slices.
        every_s: seconds between two exchanges in the background.
    """

    def __init__(
        self, parameters: RelationParameters, servers: Sequence[Exchange], every_s: float
    ) -> None:
        self._parameters, self._every_s = parameters, every_s
        self._arrays = parameters.arrays()
        self._turn = threading.Lock()  # one exchange, save or begin at a time
        self._reference = flatten(self._arrays)
        size, count = len(self._reference), len(servers)
        self._servers = [(cut(size, index, count), call) for index, call in enumerate(servers)]
        self._saved: Tensor | None = None  # the copy as it was saved, until that counts
        self._fence = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.lost = 0  # exchanges that did not come about
        self.bytes_written = self.bytes_exchanged = 0

    def start(self) -> None:
        """Exchange in the background from now on."""
        self._thread = threading.Thread(target=self._loop, name="parameters", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop exchanging."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def begin(self, fence: int) -> None:
        """Set the copy to the servers' view; raises LinkLost."""
        with self._turn:
            self._fence, self._saved = fence, None
            self._pull()

    def exchange(self) -> None:
        """Push what this worker did, pull what others did, as far as servers answer."""
        with self._turn:
            if self._saved is not None or not self._fence:
                return  # between save and commit, the copy is both the worker's and the run's
            with self._parameters.lock:
                delta = flatten(self._arrays) - self._reference
            if not bool(torch.isfinite(delta).all()):
                return  # what diverged here is not for others; the commit will refuse it
            view = self._reference.clone()
            for part, call in self._servers:
                try:
                    live, found = self._ask(call, part, delta[part], patient=False)
                except BigGraphError:
                    self.lost += 1  # the next one carries everything
                    continue
                if live:
                    view[part] = found
            with self._parameters.lock:
                # Not `copy += view - reference`: its rounding would drift, and Adagrad's sums that
                # this worker never touched could sink below zero when others' deltas go.
                own = flatten(self._arrays) - self._reference
                set_to(self._arrays, view + own)
            self._reference = view

    def save(self, store: DiskStore) -> tuple[FileRef | None, FileRef | None]:
        """Write what this worker did since its lease began.

        Raises:
            DivergenceError: it is not finite.
            StorageError: the file system refused.
        """
        with self._turn:
            self._saved = flatten(self._arrays)
            delta = self._saved - self._reference
            if not bool(torch.isfinite(delta).all()):
                raise DivergenceError("relation parameters are not finite; the last commit is kept")
            self.bytes_written += delta.nbytes
            return None, write_delta(store.place, store.fence, delta.numpy())

    def committed(self, fence: int) -> None:
        """What was saved is part of the run now, so it is part of the reference."""
        with self._turn:
            assert self._saved is not None
            self._reference, self._saved, self._fence = self._saved, None, fence

    def end(self) -> None:
        """Set the copy to what is committed; raises LinkLost."""
        with self._turn:
            self._pull(committed=True)

    def _pull(self, *, committed: bool = False) -> None:
        views = []
        for part, call in self._servers:
            _, view = self._ask(call, part, torch.empty(0), patient=True, committed=committed)
            views.append(view.clone())
        self._reference = torch.cat(views)
        with self._parameters.lock:
            set_to(self._arrays, self._reference)

    def _ask(
        self, call: Exchange, part: slice, delta: Tensor, *, patient: bool, committed: bool = False
    ) -> tuple[bool, Tensor]:
        """Exchange one slice; return whether the lease is known there, and the view."""
        header = {"fence": self._fence, "fresh": patient, "committed": committed}
        answer, view = call(header, delta, patient=patient)
        self.bytes_exchanged += delta.nbytes + view.nbytes
        if len(view) != len(self._reference[part]):
            raise RemoteError(
                f"a parameter server keeps {len(view):,} numbers where this worker expected "
                f"{len(self._reference[part]):,}; give all the same cluster.parameter_servers"
            )
        return bool(answer.get("live")), view

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            self.exchange()
