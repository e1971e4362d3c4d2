"""Vectors of sixteen float32 numbers in compiled code, where the compiler finds none by itself.

Builds LLVM code; the sizes of arrays need not be multiples of sixteen. Processors with shorter
vectors take several instructions for one.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

LANES = 16

INT, FLOAT = ir.IntType(32), ir.FloatType()
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)


class Matrix:
    """Places in an array of two dimensions, or one, that compiled code was given."""

    def __init__(self, context: Any, builder: Any, array_type: Any, value: Any) -> None:
        if array_type.layout != "C":
            raise NumbaTypeError(f"{array_type}: compiled code expects neighbours side by side")
        self.builder = builder
        array = context.make_array(array_type)(context, builder, value)
        self.data, self.size = array.data, cgutils.unpack_tuple(builder, array.shape)

    def at(self, i: Any, j: Any, kind: Any) -> Any:
        """Return the address of an element, as of a `kind`."""
        place = self.builder.add(self.builder.mul(i, self.size[-1]), j)
        return self.builder.bitcast(self.builder.gep(self.data, [place]), kind.as_pointer())


def first_lanes(builder: Any, count: Any) -> Any:
    """Return a mask of the first `count` lanes."""
    numbers = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, spread(builder, builder.trunc(count, INT), INTS))


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """Return a vector whose lanes are all `value`."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT, 0))
    return builder.shuffle_vector(one, one, ir.Constant(INTS, [0] * LANES))


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Return what a function that LLVM knows by name gives for these arguments."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def load_some(builder: Any, address: Any, count: Any, rest: float = 0.0) -> Any:
    """Return the first `count` of 16 floats; in the other lanes `rest`."""
    four, others = ir.Constant(INT, 4), ir.Constant(FLOATS, [rest] * LANES)
    name = "llvm.masked.load.v16f32.p0"
    return call(builder, name, FLOATS, address, four, first_lanes(builder, count), others)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _largest(typing_context: Any, row: Any) -> Any:
    """Return the largest number of a row; which one where some are not-a-number is not said.

    -inf for an empty row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = Matrix(context, builder, signature.args[0], arguments[0])
        zero = ir.Constant(source.size[0].type, 0)
        lanes = ir.Constant(zero.type, LANES)
        whole = builder.sdiv(source.size[0], lanes)
        found = cgutils.alloca_once(builder, FLOATS)
        done = builder.mul(whole, lanes)
        last = load_some(
            builder, source.at(zero, done, FLOATS), builder.sub(source.size[0], done), -math.inf
        )
        builder.store(last, found)
        with cgutils.for_range(builder, whole) as loop:
            place = source.at(zero, builder.mul(loop.index, lanes), FLOATS)
            some = builder.load(place, align=4)
            builder.store(_larger(builder, builder.load(found), some), found)
        found = builder.load(found)
        for width in (8, 4, 2, 1):
            order = [lane ^ width for lane in range(LANES)]
            other = builder.shuffle_vector(found, found, ir.Constant(INTS, order))
            found = _larger(builder, found, other)
        return builder.extract_element(found, ir.Constant(INT, 0))

    return types.float32(row), generate


largest: Any = intrinsic(_largest)
