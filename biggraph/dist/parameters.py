"""Who keeps the relation parameters: the worker itself, or a parameter server for all workers.

Knows parameters and files; nothing of leases, buckets or sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from biggraph.model.relations import RelationParameters
from biggraph.storage.files import Arrays, FileRef
from biggraph.storage.relations import write_relations
from biggraph.storage.store import DiskStore


class Keeper(Protocol):
    """Keeps the relation parameters of one worker in step with those of the run."""

    def begin(self, fence: int) -> None:
        """Set the parameters to those of the run, under a new lease."""
        ...

    def save(self, store: DiskStore) -> tuple[FileRef | None, FileRef | None]:
        """Write what a commit needs: the parameters as they are, or what is to be added to them."""
        ...

    def committed(self, fence: int) -> None:
        """What was saved counts; the lease goes on with this fence."""
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

    def begin(self, fence: int) -> None:
        """Set the parameters to those of the last commit; raises FormatError if damaged."""
        self._parameters.load(self._committed() or self._initial)

    def save(self, store: DiskStore) -> tuple[FileRef | None, FileRef | None]:
        """Write all parameters; raises StorageError where the file system refuses."""
        return write_relations(store.place, store.fence, self._parameters.arrays()), None

    def committed(self, fence: int) -> None:
        """Do nothing: the parameters in use are those of the run."""
