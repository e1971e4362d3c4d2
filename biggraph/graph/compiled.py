"""How functions are compiled, and which sources their code belongs to.

Knows nothing of what they compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numba import njit

from biggraph.compiled import digest, folder, kept_in

INLINED = ("hashing.py", "rows.py")  # what compiled functions of other files take from

_njit: Any = njit


def compiled(function: Any) -> Any:
    """Compile a function on its first call; later runs find it compiled.

    The interpreter lock is free while it runs.
    """
    with kept_in(_folder()):
        return _njit(cache=True, nogil=True)(function)


def kept() -> bool:
    """Tell whether an earlier run compiled any of them."""
    return any(_folder().glob("**/*.nbi"))


def _folder() -> Path:
    return folder(f"graph-{_DIGEST}")


def _digest(sources: Path) -> str:
    return digest(sources / name for name in INLINED)


_DIGEST = _digest(Path(__file__).parent)
