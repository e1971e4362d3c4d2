"""The state of a run that another process may be writing, as its log says.

Reads; never writes. Knows records and states; nothing of files that they name.
"""

from __future__ import annotations

from biggraph.storage import log
from biggraph.storage.place import Place
from biggraph.storage.run import read_state
from biggraph.storage.state import RunState


class LogReader:
    """Reads each record once, however often it is asked for the state.

    Args:
        place: of the run.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._state: RunState | None = None
        self._last: log.Record | None = None  # the newest in the state

    def state(self) -> RunState:
        """Return the state with every record that is written by now.

        Begins again where the run itself was begun again.

        Raises:
            FormatError: the log is damaged; names the record.
            StorageError: the place refused.
        """
        state, last = self._state, self._last
        if state is None or last is None or log.read(self._place, last.number) != last:
            state = read_state(self._place)
            last = log.read(self._place, state.number - 1)
        while (record := log.read(self._place, state.number)) is not None:
            state, last = state.apply(record), record
        self._state, self._last = state, last
        return state
