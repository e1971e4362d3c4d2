"""One batch: all chunks and sides, then the penalty of its rows and parameters."""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels.chunk import train_side
from biggraph.train.kernels.jit import kernel, piece
from biggraph.train.kernels.penalty import add_n3

_F = np.float32


@kernel
def differentiate(recipe, left, right, left_draw, right_draw, edges, room):
    """Fill the gradients of both ends' distinct rows and of the operators' parameters.

    Args:
        recipe: see `task.Recipe`.
        left: the left ends, see `task.End`.
        right: the right ends; the gradients may be the same memory as those of the left ends.
        left_draw: candidates where left ends are replaced, see `task.Draw`.
        right_draw: the same for right ends.
        edges: see `task.Edges`.
        room: see `task.Room`.

    Returns:
        The sum of weighted losses over edges and replaced sides, without the penalty.
    """
    left.gradient[:] = _F(0.0)
    if right.gradient.ctypes.data != left.gradient.ctypes.data:
        right.gradient[:] = _F(0.0)
    for end in (left, right):
        end.parameter_gradient[:] = _F(0.0)
    total = 0.0
    # One call for both sides: what is called is compiled in place, and it is most of the code.
    for step in range(2 * -(-edges.place.shape[0] // recipe.chunk)):
        anchor, own, draw = (right, left, left_draw) if step % 2 else (left, right, right_draw)
        if draw.replaced:
            total += train_side(recipe, step // 2, anchor, own, draw, edges, room)
    if recipe.n3 > 0:
        sides = int(left_draw.replaced) + int(right_draw.replaced)
        for end, other, draw in ((left, right, left_draw), (right, left, right_draw)):
            _penalize_rows(recipe, end, sides)
            if draw.replaced:
                _penalize_parameters(recipe, other if recipe.reciprocal else right, edges)
    return total


@piece
def _penalize_rows(recipe, end, sides):
    weight = _F(recipe.n3 * recipe.scale * sides)
    for b in range(end.ids.shape[0]):
        row, gradient = end.rows[end.ids[b]], end.gradient[end.numbers[b]]
        add_n3(recipe.operator, row, gradient, weight)


@piece
def _penalize_parameters(recipe, end, edges):
    weight = _F(recipe.n3 * recipe.scale)
    for b in range(edges.place.shape[0]):
        place = edges.place[b]
        add_n3(recipe.operator, end.parameters[place], end.parameter_gradient[place], weight)
