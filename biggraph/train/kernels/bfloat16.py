"""Matrix products of bfloat16 numbers, summed in float32.

A bfloat16 is the upper half of a float32: its range, eight bits of precision. Two of them side by
side, a *pair*, fill 32 bits, and AVX-512 has an instruction that multiplies sixteen pairs by
sixteen others and adds both products of each to a float32 (VDPBF16PS, Intel Architecture
Instruction Set Extensions Reference, 319433-040): twice the products of float32 in one
instruction. Processors without it get the same numbers from float32 instructions, at their rate.

    a x b = sum over k of a[i, k] b[k, j], the k in pairs

so that the left factor holds pairs along its rows, and the right one down its columns. Knows
nothing of what the matrices are. Pairs are uint32, their first number in the lower half. Widths of
matrices of pairs are multiples of 16 and their memory begins at a cache line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from biggraph.train.kernels.jit import piece, routine
from biggraph.train.kernels.vectors import (
    FLOATS,
    INT,
    INTS,
    LANES,
    Matrix,
    call,
    first_lanes,
    load_some,
    spread,
)

Pairs = NDArray[np.uint32]

ROWS, _VECTORS = 5, 5  # of a tile: 25 of 32 registers hold its sums


class _BFloat(ir.Type):  # type: ignore[misc]
    """What llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return 16  # all are equal


_HALF = ir.IntType(16)
_HALVES, _DOUBLED = ir.VectorType(_HALF, LANES), ir.VectorType(_HALF, 2 * LANES)
_BFLOATS, _FACTORS = ir.VectorType(_BFloat(), LANES), ir.VectorType(_BFloat(), 2 * LANES)


def empty(size: int) -> Pairs:
    """Return memory for pairs that begins at a cache line."""
    room = np.empty(size + LANES, np.uint32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + size]


@piece
def across(x, out):
    """out[i, j] = pair x[i, 2j], x[i, 2j + 1]; what is missing is 0.

    Args:
        x: float32 [m, n].
        out: [m, n / 2, padded].
    """
    for i in range(x.shape[0]):
        for j in range(0, out.shape[1], LANES):
            a, b = 2 * j, 2 * j + LANES
            _pack_in_order(x, (i, a, x.shape[1] - a), (i, b, x.shape[1] - b), out, (i, j))


@piece
def down(x, out):
    """out[i, j] = pair x[2i, j], x[2i + 1, j]; what is missing is 0.

    Args:
        x: float32 [m, n].
        out: [m / 2, n padded].
    """
    for i in range(out.shape[0]):
        other = min(2 * i + 1, x.shape[0] - 1)
        for j in range(0, out.shape[1], LANES):
            left = x.shape[1] - j
            _pack_in_turns(x, (2 * i, j, left), (other, j, left * (other % 2)), out, (i, j))


@piece
def turn(x, out):
    """out[j, i] = x[i, j].

    Args:
        x: pairs [m, n padded].
        out: pairs [n padded, m padded]; columns from m on mean nothing.
    """
    for i in range(0, x.shape[0], LANES):
        for j in range(0, x.shape[1], LANES):
            _turn_block(x, i, j, out)


@routine
def multiply(left, b, pairs, out):
    """out[i, j] = sum over k of both products of pairs a[i row + k step] and b[k, j].

    Args:
        left: a, pairs, flat; the distance `row` of those of neighbouring i; the distance `step` of
            those of neighbouring k.
        b: pairs [at least `pairs`, n padded].
        pairs: how many k.
        out: float32 [m, n].
    """
    m, n = out.shape
    vectors = -(-n // LANES)
    tiles, first = -(-vectors // _VECTORS), 0
    for t in range(tiles):
        count = (vectors - first) // (tiles - t)
        for i in range(0, m, ROWS):
            if count == 5:
                _tile5(left, b, pairs, out, (i, first * LANES))
            elif count == 4:
                _tile4(left, b, pairs, out, (i, first * LANES))
            elif count == 3:
                _tile3(left, b, pairs, out, (i, first * LANES))
            elif count == 2:
                _tile2(left, b, pairs, out, (i, first * LANES))
            else:
                _tile1(left, b, pairs, out, (i, first * LANES))
        first += count


def _round(context: Any, builder: Any, floats: Any) -> Any:
    """Return the bits of floats rounded to bfloat16, to even where two are as near.

    Only where there are instructions for it: elsewhere compilers call functions for that type
    which nobody brings.
    """
    if _has_instruction(context):
        return builder.bitcast(builder.fptrunc(floats, _BFLOATS), _HALVES)
    one, shift, most, quiet = (ir.Constant(INTS, [n] * LANES) for n in (1, 16, 0x7FFF, 0x400000))
    bits = builder.bitcast(floats, INTS)
    odd = builder.and_(builder.lshr(bits, shift), one)
    rounded = builder.add(builder.add(bits, most), odd)
    is_nan = builder.fcmp_unordered("uno", floats, floats)
    bits = builder.select(is_nan, builder.or_(bits, quiet), rounded)
    return builder.trunc(builder.lshr(bits, shift), _HALVES)


def _packer(order: list[int]) -> Any:
    """Return what rounds two vectors of a matrix and puts them into one of pairs.

    It takes x, row and column and valid numbers of either vector, and a place in out.
    """

    def pack(typing_context: Any, x: Any, first: Any, second: Any, out: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            source = Matrix(context, builder, signature.args[0], arguments[0])
            target = Matrix(context, builder, signature.args[3], arguments[3])
            halves = []
            for i, j, count in (cgutils.unpack_tuple(builder, part) for part in arguments[1:3]):
                some = load_some(builder, source.at(i, j, FLOATS), count)
                halves.append(_round(context, builder, some))
            both = builder.shuffle_vector(*halves, ir.Constant(ir.VectorType(INT, 32), order))
            row, column = cgutils.unpack_tuple(builder, arguments[4])
            builder.store(both, target.at(row, column, _DOUBLED), align=64)
            return context.get_dummy_value()

        return types.void(x, first, second, out, place), generate

    return intrinsic(pack)


_pack_in_order = _packer(list(range(32)))
_pack_in_turns = _packer([lane + half for lane in range(LANES) for half in (0, LANES)])


def _turn(typing_context: Any, x: Any, i: Any, j: Any, out: Any) -> Any:
    """Put the block of 16 x 16 pairs at x[i, j] into out[j, i], turned.

    Four times, vectors at a distance of 8, 4, 2 and 1 exchange halves of that width.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, i, j, out = arguments
        source = Matrix(context, builder, signature.args[0], x)
        target = Matrix(context, builder, signature.args[3], out)
        last = builder.sub(source.size[0], ir.Constant(i.type, 1))
        rows = []
        for r in range(LANES):
            row = builder.add(i, ir.Constant(i.type, r))
            row = builder.select(builder.icmp_signed("<", row, last), row, last)
            rows.append(builder.load(source.at(row, j, INTS), align=64))
        for width in (8, 4, 2, 1):
            low = [lane if not lane & width else lane - width + LANES for lane in range(LANES)]
            high = [lane + width if not lane & width else lane + LANES for lane in range(LANES)]
            for r in (r for r in range(LANES) if not r & width):
                pair = rows[r], rows[r + width]
                rows[r], rows[r + width] = (
                    builder.shuffle_vector(*pair, ir.Constant(INTS, order)) for order in (low, high)
                )
        for r, row in enumerate(rows):
            place = builder.add(j, ir.Constant(j.type, r))
            builder.store(row, target.at(place, i, INTS), align=64)
        return context.get_dummy_value()

    return types.void(x, types.intp, types.intp, out), generate


_turn_block: Any = intrinsic(_turn)


def _has_instruction(context: Any) -> bool:
    """Tell whether the processor that is compiled for has it, and the compiler knows its types."""
    features = context.codegen().magic_tuple()[2]
    return llvmlite.binding.llvm_version_info >= (17,) and "+avx512bf16" in features


def _add_products(context: Any, builder: Any, sums: Any, a: Any, b: Any) -> Any:
    """Return sums + both products of each of 16 pairs."""
    if _has_instruction(context):
        a, b = (builder.bitcast(factor, _FACTORS) for factor in (a, b))
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, sums, a, b)
    half, upper = (ir.Constant(INTS, [bits] * LANES) for bits in (16, 0xFFFF0000))
    for of in (lambda pairs: builder.shl(pairs, half), lambda pairs: builder.and_(pairs, upper)):
        floats = (builder.bitcast(of(factor), FLOATS) for factor in (a, b))
        sums = call(builder, "llvm.fmuladd.v16f32", FLOATS, *floats, sums)
    return sums


def _tile(vectors: int) -> Any:
    """Return what computes five rows of so many vectors of `multiply`'s product, at out[i, j].

    Below the last row it repeats that row; beyond the last column it writes nothing.
    """

    def tile(typing_context: Any, left: Any, b: Any, pairs: Any, out: Any, place: Any) -> Any:
        return types.void(left, b, types.intp, out, place), _generator(vectors)

    return intrinsic(tile)


def _generator(vectors: int) -> Callable[..., Any]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, b, pairs, out, place = arguments
        left, row, step = cgutils.unpack_tuple(builder, left)
        i, j = cgutils.unpack_tuple(builder, place)
        left = Matrix(context, builder, signature.args[0][0], left)
        right = Matrix(context, builder, signature.args[1], b)
        product = Matrix(context, builder, signature.args[3], out)
        zeros, whole = ir.Constant(FLOATS, [0.0] * LANES), i.type
        last = builder.sub(product.size[0], ir.Constant(whole, 1))
        rows = [builder.add(i, ir.Constant(whole, r)) for r in range(ROWS)]
        rows = [builder.select(builder.icmp_signed("<", r, last), r, last) for r in rows]
        columns = [builder.add(j, ir.Constant(whole, LANES * v)) for v in range(vectors)]
        sums = [[cgutils.alloca_once(builder, FLOATS) for _ in columns] for _ in rows]
        for place in (place for line in sums for place in line):
            builder.store(zeros, place)
        with cgutils.for_range(builder, pairs) as loop:
            k = loop.index
            factors = [builder.load(right.at(k, column, INTS), align=64) for column in columns]
            for r, line in zip(rows, sums, strict=True):
                place = builder.add(builder.mul(r, row), builder.mul(k, step))
                pair = builder.load(builder.gep(left.data, [place]))
                pair = spread(builder, pair, INTS)
                for factor, place in zip(factors, line, strict=True):
                    total = _add_products(context, builder, builder.load(place), pair, factor)
                    builder.store(total, place)
        for r, line in zip(rows, sums, strict=True):
            for column, place in zip(columns, line, strict=True):
                mask = first_lanes(builder, builder.sub(product.size[1], column))
                call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), builder.load(place),
                     product.at(r, column, FLOATS), ir.Constant(INT, 4), mask)  # fmt: skip
        return context.get_dummy_value()

    return generate


_tile1, _tile2, _tile3, _tile4, _tile5 = (_tile(vectors) for vectors in range(1, _VECTORS + 1))
