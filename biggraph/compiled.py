"""Where compiled code is kept between runs.

Knows nothing of what is compiled, nor how.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core import config

_config: Any = config


def digest(sources: Iterable[Path]) -> str:
    """Return 16 digits that change with the contents of these files."""
    found = hashlib.sha256()
    for path in sources:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def folder(name: str) -> Path:
    """Return where code is kept whose name has the digest of the very sources it was made of.

    Numba looks only at the file of the function that it compiles, and would go on using others that
    it takes from as they once were.
    """
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    base = Path(root) if root else Path.home() / ".cache"
    return base / "biggraph" / name


@contextmanager
def kept_in(place: Path) -> Iterator[None]:
    """Let functions that are declared meanwhile keep their compiled code there."""
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(place)
    try:
        yield
    finally:
        _config.CACHE_DIR = before
