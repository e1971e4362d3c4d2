"""The lock of a run directory: one process writes, any number read.

Advisory and released by the system when its holder ends, however it ends. Where the file system
has no locks, the log alone decides (see `log.append`): the second writer then takes over, and the
first one stops at its next record.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from biggraph.errors import StorageError
from biggraph.storage import fsops

NAME = "lock"


class RunLock:
    """Held from `acquire` to `release`.

    Args:
        file: the locked file.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    @classmethod
    def acquire(cls, folder: Path) -> RunLock:
        """Lock a run directory.

        Raises:
            StorageError: another process holds it (named, where it says), or the file system
                refused.
        """
        path = folder / NAME
        with fsops.operation("lock", path):
            file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise StorageError(
                f"{folder}: {holder} is writing this run; wait for it to end, or choose "
                "another checkpoint.path"
            ) from None
        except OSError:
            pass  # a file system without locks
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return cls(file)

    def release(self) -> None:
        """Let others write the run."""
        self._file.close()


def is_own(content: bytes) -> bool:
    """Tell whether this is the content of a file that `RunLock.acquire` left behind."""
    return content[:8] in (b"", b"process ")
