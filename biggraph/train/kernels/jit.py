"""How kernels are compiled, and where compiled code is kept between runs.

Knows nothing of what they compute.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core import config as numba_config
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])

_njit: Any = numba.njit
_config: Any = numba_config

# Sums may be reordered and fused; not-a-number must stay what it is, for divergence to be seen.
_MATH = {"reassoc", "contract", "arcp", "nsz"}


def piece(function: F) -> F:
    """Compile a function that kernels call, in each place anew."""
    options = {"nogil": True, "fastmath": _MATH, "error_model": "numpy", "forceinline": True}
    compiled: F = _njit(**options)(function)
    return compiled


def routine(function: F) -> F:
    """Compile a function that kernels call, once: for what is long, and works for long."""
    compiled: F = _njit(nogil=True, fastmath=_MATH, error_model="numpy")(function)
    return compiled


def kernel(function: F) -> F:
    """Compile a function that Python calls, on its first call; later runs find it compiled.

    The interpreter lock is free while it runs.
    """
    before, _config.CACHE_DIR = _config.CACHE_DIR, str(_folder())
    try:
        options = {"nogil": True, "cache": True, "fastmath": _MATH, "error_model": "numpy"}
        compiled: F = _njit(**options)(function)
    finally:
        _config.CACHE_DIR = before
    return compiled


def kept(name: str) -> bool:
    """Tell whether a kernel of that name was compiled by an earlier run."""
    return any(_folder().glob(f"**/*.{name}-*.nbi"))


def _folder() -> Path:
    """Return a folder that belongs to these very sources.

    Numba looks only at the file of the function that it compiles, and would go on using the others
    as they once were.
    """
    root = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    base = Path(root) if root else Path.home() / ".cache"
    return base / "biggraph" / f"kernels-{_DIGEST}"


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_DIGEST = _digest()


def _prefetch(typing_context: Any, array: Any, position: Any) -> Any:
    """Ask for the cache line of an element, by its place in memory order; never fails."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(found.data, [arguments[1]])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read_kept_data = [ir.Constant(number, n) for n in (0, 3, 1)]
        builder.call(called, [builder.bitcast(pointer, byte), *read_kept_data])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
