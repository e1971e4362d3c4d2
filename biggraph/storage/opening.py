"""Which kind of place a path means, and what of a place is a local file.

`open_place` is behind every entry point that takes the path of a run.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from pathlib import Path

from biggraph.errors import InputError
from biggraph.storage.far import Far
from biggraph.storage.folder import Folder
from biggraph.storage.place import Place
from biggraph.storage.s3 import S3


def open_place(path: str | Path | Place) -> Place:
    """Return the place that a path means; touches nothing.

    Args:
        path: of a folder, or an address such as "s3://bucket/prefix" or "flight://host:port/run";
            a place is returned as it is.

    Raises:
        InputError: an address of another form.
    """
    if not isinstance(path, str | Path):
        return path
    if isinstance(path, str) and path.startswith("s3://"):
        return S3.parse(path)
    if isinstance(path, str) and path.startswith("flight://"):
        return Far.parse(path)
    if "://" in str(path) or Path(path).parts[:1] in (("s3:",), ("flight:",)):
        raise InputError(
            f'{path}: expected a folder, or text of the form "s3://bucket/prefix" or '
            '"flight://host:port,host:port/run"'
        )
    return Folder(Path(path))


def folder_of(place: Place) -> Path | None:
    """Return the path of a place that is a folder; None for any other."""
    return place.root if isinstance(place, Folder) else None


def local_copy(place: Place, name: str) -> Path:
    """Return the path of a file: itself in a folder, else a copy that lasts as long as the process.

    Raises:
        StorageError: the place refused.
    """
    if (folder := folder_of(place)) is not None:
        return folder / name
    file, path = tempfile.mkstemp(prefix="biggraph-", suffix=f"-{name}")
    atexit.register(Path(path).unlink, missing_ok=True)
    with os.fdopen(file, "wb") as copy:
        copy.write(place.read(name) if place.size(name) is not None else b"")
    return Path(path)
