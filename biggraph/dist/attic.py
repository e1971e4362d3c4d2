"""Files that the state of a run no longer names, kept until nobody can be reading them.

Knows names and times; nothing of leases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from biggraph.storage.run import RunDirectory
from biggraph.storage.state import RunState


class Attic:
    """Removes files of a run some time after they were replaced.

    Args:
        run: whose files they are.
        grace_s: seconds that a reader may need.
    """

    def __init__(self, run: RunDirectory, grace_s: float) -> None:
        self._run, self._grace_s = run, grace_s
        self._waiting: deque[tuple[float, str]] = deque()

    @property
    def names(self) -> list[str]:
        """The files that wait."""
        return [name for _, name in self._waiting]

    def put(self, names: Iterable[str], now: float) -> None:
        """Take files that were replaced."""
        self._waiting.extend((now + self._grace_s, name) for name in names)

    def empty(self, now: float, state: RunState) -> None:
        """Remove the files whose time has come, but for those that a snapshot names.

        Raises:
            StorageError: the place refused.
        """
        if not self._waiting or self._waiting[0][0] > now:
            return
        kept = {ref.path for snapshot in state.snapshots.values() for ref in snapshot.files()}
        while self._waiting and self._waiting[0][0] <= now:
            _, name = self._waiting.popleft()
            if name not in kept:
                self._run.place.remove(name)
