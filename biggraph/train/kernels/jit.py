"""How kernels are compiled, and which sources their code belongs to.

Knows nothing of what they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from biggraph.compiled import digest, folder, kept_in

F = TypeVar("F", bound=Callable[..., Any])

_njit: Any = numba.njit

# Sums may be reordered and fused; not-a-number must stay what it is, for divergence to be seen.
_MATH = {"reassoc", "contract", "arcp", "nsz"}
# References to arrays are not counted: that costs more than a short row, and kernels make none.
# Numba has the option without documenting it, and refuses to compile what needs counts.
_OPTIONS = {"nogil": True, "_nrt": False, "fastmath": _MATH, "error_model": "numpy"}


def piece(function: F) -> F:
    """Compile a function that kernels call, in each place anew."""
    compiled: F = _njit(**_OPTIONS, forceinline=True)(function)
    return compiled


def view(function: F) -> F:
    """Compile a function that returns part of an array; its source stands in for each call.

    Where references are not counted, no other function may return one.
    """
    compiled: F = _njit(inline="always")(function)
    return compiled


def routine(function: F) -> F:
    """Compile a function that kernels call, once: for what is long.

    And for products by BLAS, which Numba gives only where references are counted.
    """
    compiled: F = _njit(**_OPTIONS | {"_nrt": True})(function)
    return compiled


def kernel(function: F) -> F:
    """Compile a function that Python calls, on its first call; later runs find it compiled.

    The interpreter lock is free while it runs.
    """
    with kept_in(_folder()):
        compiled: F = _njit(**_OPTIONS, cache=True)(function)
    return compiled


def kept(name: str) -> bool:
    """Tell whether a kernel of that name was compiled by an earlier run."""
    return any(_folder().glob(f"**/*.{name}-*.nbi"))


def _folder() -> Path:
    return folder(f"kernels-{_DIGEST}")


_DIGEST = digest(sorted(Path(__file__).parent.glob("*.py")))


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
