"""Which kind of place a path means: the one function behind every entry point that takes a path."""

from __future__ import annotations

from pathlib import Path

from biggraph.storage.folder import Folder
from biggraph.storage.place import Place


def open_place(path: str | Path | Place) -> Place:
    """Return the place that a path means; touches nothing. A place is returned as it is."""
    return Folder(Path(path)) if isinstance(path, str | Path) else path
