"""Which kind of place a path means: the one function behind every entry point that takes a path."""

from __future__ import annotations

from pathlib import Path

from biggraph.errors import InputError
from biggraph.storage.folder import Folder
from biggraph.storage.place import Place
from biggraph.storage.s3 import S3


def open_place(path: str | Path | Place) -> Place:
    """Return the place that a path means; touches nothing.

    Args:
        path: of a folder, or an address such as "s3://bucket/prefix"; a place is returned as it is.

    Raises:
        InputError: an address of another form.
    """
    if not isinstance(path, str | Path):
        return path
    if isinstance(path, str) and path.startswith("s3://"):
        return S3.parse(path)
    if "://" in str(path) or Path(path).parts[:1] == ("s3:",):
        raise InputError(f'{path}: expected a folder, or text of the form "s3://bucket/prefix"')
    return Folder(Path(path))
