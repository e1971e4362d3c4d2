"""Unnamed local files in which a file of a place far away is written or read.

TMPDIR says on which disk.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from biggraph.storage import fsops


@contextmanager
def scratch(room: int) -> Iterator[io.BufferedRandom]:
    """Yield an unnamed file.

    Args:
        room: bytes that there has to be space for.

    Raises:
        StorageError: the file system refused.
    """
    folder = Path(tempfile.gettempdir())
    fsops.require_space(folder, room)
    with fsops.operation("write", folder), tempfile.TemporaryFile() as file:
        yield file


def length(file: io.BufferedRandom) -> int:
    """Return the bytes of a file, and go to its end."""
    return file.seek(0, os.SEEK_END)
