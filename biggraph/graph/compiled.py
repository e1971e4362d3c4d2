"""How functions are compiled, and where compiled code is kept between runs.

Knows nothing of what they compute.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import config

INLINED = ("hashing.py", "rows.py")  # what compiled functions of other files take from

_njit: Any = njit
_config: Any = config


def compiled(function: Any) -> Any:
    """Compile a function on its first call; later runs find it compiled.

    The interpreter lock is free while it runs.
    """
    before, _config.CACHE_DIR = _config.CACHE_DIR, _folder()
    try:
        return _njit(cache=True, nogil=True)(function)
    finally:
        _config.CACHE_DIR = before


def _folder() -> str:
    """Return a folder that belongs to the very sources that others take from.

    Numba looks only at the file of the function that it compiles, and would go on using the others
    as they once were.
    """
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    base = root or os.path.expanduser("~/.cache")
    return os.path.join(base, "biggraph", f"graph-{_DIGEST}")


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in INLINED:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


_DIGEST = _digest(Path(__file__).parent)
