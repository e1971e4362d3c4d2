"""Files that clients are sending to a partition server, block after block.

A client that goes leaves its upload, which is given up after a while. Knows places; nothing of
how blocks come.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager

from biggraph.errors import StorageError
from biggraph.storage.place import Place

_IDLE_S = 600.0
_MOST = 256  # uploads at once
_REMEMBERED = 10_000  # tokens of requests that have succeeded
_SYNC_BYTES = 1 << 26  # so that the last step does not take long


class BrokenOff(Exception):
    """The server does not know the upload, or not so far: the client has to begin it again."""


class _Upload:
    """One file that is being written.

    Args:
        writing: what publishes the file at its end.
        file: that it yielded.
        room: most bytes that may come.
    """

    def __init__(
        self, writing: AbstractContextManager[io.BufferedIOBase], file: io.BufferedIOBase, room: int
    ) -> None:
        self.lock = threading.Lock()
        self.position = 0
        self.last_s = 0.0
        self.ended = False
        self._writing, self._file, self._room = writing, file, room
        self._synced = 0

    def write(self, position: int, data: memoryview) -> None:
        """Write the next block; one that came before is not written again."""
        if position > self.position:
            raise BrokenOff("blocks are missing")
        if position < self.position:
            return
        if self.position + len(data) > self._room:
            raise StorageError("more bytes come than were announced")
        self._file.write(data)
        self.position += len(data)
        if self.position - self._synced >= _SYNC_BYTES:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._synced = self.position

    def publish(self) -> None:
        """Give the file its name, durably."""
        self.ended = True
        self._writing.__exit__(None, None, None)

    def give_up(self, error: BaseException) -> None:
        """Remove what has come; raises what the place makes of the error, if it does."""
        if not self.ended:
            self.ended = True
            self._writing.__exit__(type(error), error, error.__traceback__)


class Uploads:
    """Uploads of all clients, each known by its token. Safe to use from several threads.

    Args:
        clock: seconds that only move forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, _Upload] = {}
        self.done = Done()

    def begin(self, token: str, place: Place, name: str, size: int) -> int:
        """Return how many bytes of an upload have come; all, if it is published.

        Raises:
            StorageError: no room, or too many uploads.
        """
        with self._lock:
            if token in self.done:
                return size
            upload = self._open.get(token)
            if upload is None:
                self._give_up_idle()
                if len(self._open) >= _MOST:
                    raise StorageError("too many files come at once; try again later")
                writing = place.create(name, size)
                upload = self._open[token] = _Upload(writing, writing.__enter__(), size)
            upload.last_s = self._clock()
        with upload.lock:
            return upload.position

    def write(self, token: str, position: int, data: memoryview) -> int:
        """Write a block, and return how many bytes have come; raises BrokenOff."""
        upload = self._find(token)
        with upload.lock:
            self._or_give_up(token, upload, lambda: upload.write(position, data))
            return upload.position

    def publish(self, token: str, size: int) -> None:
        """Give a complete file its name.

        Raises:
            FileExistsError: the name is taken.
            BrokenOff: it is not complete.
        """
        if token in self.done:
            return
        upload = self._find(token)
        with upload.lock:
            if token in self.done:  # while this request waited
                return
            if upload.position != size:
                raise BrokenOff("blocks are missing")
            self._or_give_up(token, upload, upload.publish)
            self.done.add(token)
            self._open.pop(token, None)

    def close(self) -> None:
        """Give up what is not complete."""
        with self._lock:
            for upload in self._open.values():
                upload.give_up(BrokenOff("the server ends"))
            self._open.clear()

    def _find(self, token: str) -> _Upload:
        with self._lock:
            upload = self._open.get(token)
            if upload is None or upload.ended:
                raise BrokenOff("no such upload")
            upload.last_s = self._clock()
            return upload

    def _or_give_up(self, token: str, upload: _Upload, step: Callable[[], None]) -> None:
        try:
            step()
        except BrokenOff:
            raise
        except BaseException as error:
            self._open.pop(token, None)
            upload.give_up(error)
            raise

    def _give_up_idle(self) -> None:
        oldest = self._clock() - _IDLE_S
        for token, upload in list(self._open.items()):
            if upload.last_s < oldest and not upload.lock.locked():
                del self._open[token]
                upload.give_up(BrokenOff("idle"))


class Done:
    """Tokens of the latest requests that have succeeded, so that a repeated one is known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, token: str) -> bool:
        with self._lock:
            return token in self._tokens

    def add(self, token: str) -> None:
        """Remember a request; the oldest is forgotten where there are too many."""
        with self._lock:
            self._tokens[token] = None
            if len(self._tokens) > _REMEMBERED:
                self._tokens.popitem(last=False)
