"""A run in a folder of a file system: `Place` by the operations of `fsops`.

Knows paths and links; nothing of what files hold.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import FormatError, StorageError
from biggraph.storage import fsops
from biggraph.storage.lock import RunLock
from biggraph.storage.place import check_inside, wrong_size


class Folder:
    """A folder; see `Place` for the methods.

    Args:
        root: its path.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def where(self, name: str) -> str:
        """Return the path of a name, for messages."""
        return str(self.root / name)

    def exists(self) -> bool:
        """Tell whether the folder is there.

        Raises:
            StorageError: a file has its name or that of a folder above it, or it cannot be read.
        """
        with fsops.operation("read", self.root):
            upward = (self.root, *self.root.absolute().parents)
            existing = next(path for path in upward if path.exists())
        if not existing.is_dir():
            raise StorageError(f"{existing}: is a file; give the path of a folder")
        return existing == self.root

    def check_put_if_absent(self) -> None:
        """Refuse a file system without hard links, or one where two writers get one name."""
        fsops.check_put_if_absent(self.root)

    def lock(self) -> Callable[[], None]:
        """Lock the folder until the function returned is called, or the process ends."""
        return RunLock.acquire(self.root).release

    def make_folder(self, name: str) -> None:
        """Create a folder and the missing ones above it, durably."""
        fsops.make_folder(self.root / name)

    def remove_folder(self, name: str) -> None:
        """Remove a folder and those below it, as far as they hold no file."""
        fsops.remove_empty_folders(self.root / name)

    @contextmanager
    def create(self, name: str, room: int) -> Iterator[io.BufferedIOBase]:
        """Write a new file, see `Place.create` and `fsops.publish`."""
        path = self._locate(name)
        fsops.make_folder(path.parent)
        fsops.require_space(path.parent, room)
        with fsops.publish(path) as file:
            yield file

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a file, unless the name is taken; its folder has to be there."""
        return fsops.put_if_absent(self._path(name), data)

    def replace(self, name: str, data: bytes) -> None:
        """Put this content under the name; its folder has to be there."""
        fsops.replace(self._path(name), data)

    @contextmanager
    def open(self, name: str, size: int) -> Iterator[io.BufferedIOBase]:
        """Open a file for reading; also refuses what is not a plain file."""
        path = self._locate(name)
        with _open_sized(path, size) as file, fsops.operation("read", path):
            yield file

    def map(self, name: str, size: int) -> NDArray[np.uint8]:
        """Map a file into memory; no descriptor stays open."""
        path = self._locate(name)
        with _open_sized(path, size) as file, fsops.operation("map", path):
            return fsops.map_file(file, size)

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return fsops.read_file(self._path(name))

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, or None where there is none."""
        path = self._path(name)
        with fsops.operation("read", path):
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def names(self, folder: str) -> list[str]:
        """Return the name of every file below a folder, sorted."""
        found = fsops.list_files(self.root / folder)
        return [path.relative_to(self.root).as_posix() for path in found]

    def top(self) -> list[str]:
        """Return what lies directly in the folder; folders in it end with a slash."""
        names = fsops.list_names(self.root)
        return [f"{name}/" if (self.root / name).is_dir() else name for name in names]

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        fsops.unlink(self._path(name))

    def _path(self, name: str) -> Path:
        check_inside(self, name)
        return self.root / name

    def _locate(self, name: str) -> Path:
        """Return the path of a name, which no symbolic link may lead outside."""
        path = self._path(name)
        if not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise FormatError(f"{path}: leads outside the run directory through a symbolic link")
        return path


def _open_sized(path: Path, size: int) -> io.BufferedReader:
    file = fsops.open_file(path)
    status = os.fstat(file.fileno())
    if path.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_size != size:
        file.close()
        raise wrong_size(str(path), size, status.st_size)
    return file
