"""One replaced side of one chunk: scores, loss and all gradients.

    query = prepare(operator(anchor * keep))      [P, D]
    keys  = prepare(operator(own, drawn, far))    [K, D], true ones first
    score = comparator(query, keys[first:])       a matrix product for each block of queries
    loss  -> d score                              in place, positive by positive
    d query = d score . keys                      for each block
    d keys = d score^T . query                    of all, and back through the rest

Where the chunk's own entities are candidates `first` is 0, else P. A block is what stays in cache,
or all, see `products.block`.
"""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels import comparators, losses, operators, products
from biggraph.train.kernels.distinct import gather, scatter
from biggraph.train.kernels.jit import piece, view
from biggraph.train.kernels.task import Task

_F = np.float32


@piece
def train_side(recipe, chunk, anchor, own, draw, edges, room):
    """Add the gradients of one replaced side of a chunk; return the sum of its weighted losses.

    Args: of these names in `Task`.
    """
    start = chunk * recipe.chunk
    stop = min(start + recipe.chunk, edges.place.shape[0])
    task = Task(recipe, chunk, start, stop, anchor, own, draw, edges, room)
    p_count, first = stop - start, 0 if draw.own else stop - start
    k_count = p_count + draw.ids.shape[1] + draw.far.shape[1]
    query, keys = room.query[:p_count], room.keys[:k_count]
    _load_queries(task, query)
    _load_keys(task, keys)
    products.take_keys(recipe.rough, keys[first:], room.packed)
    room.key_sums[:k_count] = _F(0.0)
    total, rows = 0.0, products.block(recipe.rough, p_count, k_count - first)
    for begin in range(0, p_count, rows):
        end = min(begin + rows, p_count)
        scores = products.scores_of(room.scores, end - begin, k_count - first)
        products.score(recipe.rough, query[begin:end], keys[first:], scores, room.packed)
        for p in range(begin, end):
            total += _differentiate(task, p, query, keys, scores[p - begin])
        gradient = room.query_gradient[begin:end]
        products.derive_query(recipe.rough, begin, scores, keys[first:], gradient, room.packed)
    scores = products.scores_of(room.scores, p_count, k_count - first)
    products.derive_keys(recipe.rough, scores, query, room.key_gradient[first:k_count], room.packed)
    _finish_candidates(task, keys)
    if not _is_joined(task):
        _finish_true(task, query, keys)
    _finish_queries(task, query)
    return total / recipe.scale


@piece
def _is_joined(task):
    """Tell whether scores of true entities have their place among those of candidates.

    They are masked there until their derivatives are known. Where only candidates are scaled, and
    for distances, they stay masked: short ones, as |a|^2 + |b|^2 - 2ab, would be all rounding.
    """
    product = comparators.is_product(task.recipe.comparator)
    return task.draw.own and product and task.draw.row_scale == 1.0


@piece
def _anchor_operator(task):
    both = task.recipe.reciprocal or task.anchor.right
    return task.recipe.operator if both else operators.IDENTITY


@piece
def _key_operator(task):
    right = task.own.right and not task.recipe.reciprocal
    return task.recipe.operator if right else operators.IDENTITY


@view
def _row_of(table, chunk):
    """Return a chunk's row of a table that may be the same for all chunks."""
    return table[chunk if table.shape[0] > 1 else 0]


@piece
def _load_queries(task, query):
    anchor, keep, room, start = task.anchor, task.draw.keep, task.room, task.start
    x = room.anchor[: query.shape[0]]
    gather(anchor.rows, anchor.ids[start : task.stop], x)
    if keep.shape[0]:
        for p in range(x.shape[0]):
            for d in range(x.shape[1]):
                x[p, d] *= keep[start + p, d]
    place = task.edges.place[start : task.stop]
    operators.apply(_anchor_operator(task), x, anchor.parameters, place, query)
    comparators.prepare(task.recipe.comparator, query, room.query_lengths)


@piece
def _load_keys(task, keys):
    """Fill keys with true entities, drawn ones, and those from outside."""
    own, draw, room, p_count = task.own, task.draw, task.room, task.stop - task.start
    drawn = _row_of(draw.ids, task.chunk)
    code = _key_operator(task)
    x = keys if code == operators.IDENTITY else room.keys_before[: keys.shape[0]]
    gather(own.rows, own.ids[task.start : task.stop], x[:p_count])
    gather(own.rows, drawn, x[p_count : p_count + drawn.shape[0]])
    gather(draw.far_rows, _row_of(draw.far, task.chunk), x[p_count + drawn.shape[0] :])
    if code != operators.IDENTITY:
        operators.apply(code, x, own.parameters, room.first_place, keys)
    comparators.prepare(task.recipe.comparator, keys, room.key_lengths)


@piece
def _differentiate(task, p, query, keys, row):
    """Turn products of the query of positive p into derivatives; return the loss, weighted.

    Everything is done while the row is in the first cache.

    Args:
        task: see `Task`.
        p: number of the positive in the chunk.
        query: all of the chunk, [P, D].
        keys: see `_load_keys`, [K, D].
        row: in, products; out, derivatives of the loss by them, [candidates].
    """
    recipe, draw, room = task.recipe, task.draw, task.room
    code, first = recipe.comparator, keys.shape[0] - row.shape[0]
    lengths, sums = room.key_lengths[first : keys.shape[0]], room.key_sums[first : keys.shape[0]]
    slopes = room.slopes[: row.shape[0]]
    if draw.own and comparators.is_product(code):
        positive = row[p]
    else:
        positive = comparators.matched(code, query[p], keys[p])
    comparators.finish(code, row, room.query_lengths[p], lengths, slopes)
    _weigh(task, p, row)
    if recipe.filter_chunk:
        _mask_known(task, task.start + p, row)
    weight = task.edges.weight[task.start + p] * _F(recipe.scale)
    loss, slope = losses.differentiate(
        recipe.loss, positive, row, _F(recipe.margin), _F(recipe.temperature), weight
    )
    room.positive[p], room.positive_slope[p] = positive, slope
    room.query_sums[p] = comparators.unfinish(code, row, slopes, sums)
    if _is_joined(task):
        row[p] = slope
    return loss * weight


@piece
def _weigh(task, p, row):
    """Add the candidates' weights, and mask those that are the true entity.

    Numbers stand for ids: more of them fit a vector.
    """
    draw, numbers = task.draw, task.own.numbers[task.start : task.stop]
    drawn, true = _row_of(draw.numbers, task.chunk), numbers[p]
    near = numbers.shape[0] if draw.own else 0
    if draw.log_weight.shape[0]:
        weight = _row_of(draw.log_weight, task.chunk)
        for k in range(row.shape[0]):
            row[k] += weight[k]
    for k in range(near):
        row[k] = losses.MASKED if numbers[k] == true else row[k]
    behind = row[near : near + drawn.shape[0]]
    for n in range(drawn.shape[0]):
        behind[n] = losses.MASKED if drawn[n] == true else behind[n]


@piece
def _mask_known(task, b, row):
    """Mask what another edge than b with the same anchor and relation makes true."""
    anchor, place, ids, start = task.anchor.ids, task.edges.place, task.own.ids, task.start
    drawn = _row_of(task.draw.ids, task.chunk)
    near = task.stop - start if task.draw.own else 0
    for other in range(start, task.stop):
        if b == other or anchor[b] != anchor[other] or place[b] != place[other]:
            continue
        for k in range(near):
            if ids[start + k] == ids[other]:
                row[k] = losses.MASKED
        for n in range(drawn.shape[0]):
            if drawn[n] == ids[other]:
                row[near + n] = losses.MASKED


@piece
def _finish_candidates(task, keys):
    """From the gradient of the dot products to that of rows, as candidates, and of the operator.

    What reaches rows as candidates is multiplied by a scale, but not what reaches the operator.
    """
    draw, own, room, p_count = task.draw, task.own, task.room, task.stop - task.start
    first, near = 0 if draw.own else p_count, keys.shape[0] - draw.far.shape[1]
    gradient = room.key_gradient[: keys.shape[0]]
    comparators.add_lengths(
        task.recipe.comparator, keys[first:], room.key_sums[first:], gradient[first:]
    )
    _unmap_keys(task, first, keys, gradient)
    scale = _F(draw.row_scale)
    if scale != _F(1.0):
        for k in range(first, near):
            for d in range(gradient.shape[1]):
                gradient[k, d] *= scale
    if draw.own:
        scatter(gradient[:p_count], own.numbers[task.start : task.stop], own.gradient)
    scatter(gradient[p_count:near], _row_of(draw.numbers, task.chunk), own.gradient)


@piece
def _finish_true(task, query, keys):
    """Add the gradients of the scores of true entities, of queries too."""
    own, room, p_count = task.own, task.room, query.shape[0]
    gradient = room.key_gradient[:p_count]
    gradient[:] = _F(0.0)
    for p in range(p_count):
        comparators.unmatched(
            task.recipe.comparator, query[p], keys[p], room.positive[p], room.positive_slope[p],
            room.query_gradient[p], gradient[p],
        )  # fmt: skip
    _unmap_keys(task, 0, keys[:p_count], gradient)
    scatter(gradient, own.numbers[task.start : task.stop], own.gradient)


@piece
def _unmap_keys(task, first, keys, gradient):
    """From the gradient of prepared keys, from the first, to that of rows and of the operator."""
    own, room, stop = task.own, task.room, keys.shape[0]
    lengths, before = room.key_lengths[first:stop], room.keys_before[first:stop]
    comparators.unprepare(task.recipe.comparator, keys[first:], lengths, gradient[first:])
    operators.derive(
        _key_operator(task), before, own.parameters, room.first_place, gradient[first:],
        own.parameter_gradient,
    )  # fmt: skip


@piece
def _finish_queries(task, query):
    anchor, keep, room, start = task.anchor, task.draw.keep, task.room, task.start
    x, gradient = room.anchor[: query.shape[0]], room.query_gradient[: query.shape[0]]
    comparators.add_lengths(task.recipe.comparator, query, room.query_sums, gradient)
    comparators.unprepare(task.recipe.comparator, query, room.query_lengths, gradient)
    operators.derive(
        _anchor_operator(task), x, anchor.parameters, task.edges.place[start:], gradient,
        anchor.parameter_gradient,
    )  # fmt: skip
    if keep.shape[0]:
        for p in range(x.shape[0]):
            for d in range(x.shape[1]):
                gradient[p, d] *= keep[start + p, d]
    scatter(gradient, anchor.numbers[start : task.stop], anchor.gradient)
