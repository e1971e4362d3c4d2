"""Where the files of a run are: what every kind of place promises, be it a folder or a bucket.

A name is relative, with forward slashes. It appears by `create`, `put_if_absent` or `replace` and
by nothing else, at once with its whole content, and stays when the machine stops the moment after
the call. All methods may be called from several threads. Knows nothing of what files hold, nor of
any particular kind of place.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import FormatError, StorageError

RESTORE = "; restore it from a copy, or begin the run anew"


class Place(Protocol):
    """The files of one run.

    Every method raises StorageError where the place refuses, with what, where and a remedy, and
    FormatError for a name that leads outside.
    """

    def __str__(self) -> str:
        """Return the place as a user would write it."""
        ...

    def where(self, name: str) -> str:
        """Return a name with its place, for messages."""
        ...

    def exists(self) -> bool:
        """Tell whether the place is there; refuses one that cannot be, such as below a file."""
        ...

    def check_put_if_absent(self) -> None:
        """Find out whether exactly one of two writers gets a name; refuse the place if not."""
        ...

    def lock(self) -> Callable[[], None]:
        """Keep other writers away, where that is possible; returns what lets them in again.

        Raises:
            StorageError: another process writes here.
        """
        ...

    def make_folder(self, name: str) -> None:
        """Make room for names below `name` ("": the place itself), where folders are things."""
        ...

    def remove_folder(self, name: str) -> None:
        """Remove a folder and those below it as far as they hold no file, where they are things."""
        ...

    def create(self, name: str, room: int) -> AbstractContextManager[io.BufferedIOBase]:
        """Write a new file: yields it empty, to write and to read, publishes it at the block's end.

        Nothing appears if the block fails.

        Args:
            name: of the file; folders are made.
            room: bytes that there has to be space for.

        Raises:
            FileExistsError: the name is taken; the file there is untouched.
        """
        ...

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a file with this content, unless the name is taken: a compare-and-swap.

        Returns:
            False where the name was taken; the file there is untouched.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Put this content under the name, in one step, whether or not the name was taken."""
        ...

    def open(self, name: str, size: int) -> AbstractContextManager[io.BufferedIOBase]:
        """Open a file that has to have `size` bytes for reading.

        Raises:
            FileNotFoundError: no such file; `filename` is its name with its place.
            FormatError: a file of another size, or no plain file.
        """
        ...

    def map(self, name: str, size: int) -> NDArray[np.uint8]:
        """Return the content of a file, read-only [size]; it outlives the name.

        Raises:
            FileNotFoundError: as `open`.
            FormatError: as `open`.
        """
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            FileNotFoundError: as `open`.
        """
        ...

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, or None where there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the name of every file below a folder, sorted."""
        ...

    def top(self) -> list[str]:
        """Return what lies directly in the place, sorted; folders end with a slash."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


def check_inside(place: Place, name: str) -> None:
    """Refuse a name that is not relative or climbs out.

    Raises:
        FormatError: absolute, empty, or with "..".
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise FormatError(f"{place}: file name {name!r} leads outside the run directory")


def require_file(place: Place, name: str, size: int) -> None:
    """Refuse a place where a file is missing, or has another size than the log says.

    Raises:
        FormatError: it is so.
    """
    found = place.size(name)
    if found is None:
        raise FormatError(f"{place.where(name)}: missing{RESTORE}")
    if found != size:
        raise wrong_size(place.where(name), size, found)


class CommitUnreadable(StorageError):
    """A file that a commit names cannot be read; that says nothing of the log."""


@contextmanager
def files_of_a_commit() -> Iterator[None]:
    """Tell apart what a place refuses inside; raises CommitUnreadable for it."""
    try:
        yield
    except StorageError as error:
        raise CommitUnreadable(str(error)) from error


def wrong_size(where: str, expected: int, found: int) -> FormatError:
    """Return the error for a file of another size than the log says."""
    return FormatError(f"{where}: expected a file of {expected:,} bytes, found {found:,}{RESTORE}")
