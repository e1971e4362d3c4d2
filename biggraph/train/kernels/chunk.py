"""One replaced side of one chunk: scores, loss and all gradients, in blocks that stay in cache.

    query = prepare(operator(anchor * keep))      [P, D]
    keys  = prepare(operator(own, drawn, far))    [K, D], true ones first
    score = comparator(query, keys[first:])       one matrix product
    loss  -> d score                              in place
    d query = d score . keys, d keys = d score^T . query, and back through the rest

Where the chunk's own entities are candidates `first` is 0, else P.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biggraph.train.kernels import comparators, losses, operators, products
from biggraph.train.kernels.distinct import gather, scatter
from biggraph.train.kernels.jit import piece

Floats = NDArray[np.float32]

_F = np.float32


class Recipe(NamedTuple):
    """What is computed; codes as in the modules of the pieces.

    Args:
        operator: of the relation group.
        comparator: of the model.
        rough: whether the factors of matrix products are rounded to bfloat16.
        loss: of each positive.
        reciprocal: one operator a side, applied to the anchor; else one, on the right.
        filter_chunk: mask what other edges of the chunk make true.
        chunk: positives of a whole chunk.
        margin: of the ranking loss.
        temperature: of adversarial weights.
        n3: weight of the N3 regularizer.
        scale: 1 / nominal batch size.
    """

    operator: int
    comparator: int
    rough: bool
    loss: int
    reciprocal: bool
    filter_chunk: bool
    chunk: int
    margin: float
    temperature: float
    n3: float
    scale: float


class End(NamedTuple):
    """One end of a batch's edges.

    Args:
        right: whether it is the right-hand one.
        rows: of its table, float32 [count, D].
        ids: int64 [B].
        numbers: int32 [B], of each id among the distinct rows.
        gradient: of the distinct rows, float32 [U, D].
        parameters: of the operator at this end, float32 [distinct relations, W].
        parameter_gradient: the same shape.
    """

    right: bool
    rows: Floats
    ids: NDArray[np.int64]
    numbers: NDArray[np.int32]
    gradient: Floats
    parameters: Floats
    parameter_gradient: Floats


class Draw(NamedTuple):
    """Candidates of one replaced side.

    Args:
        replaced: whether the side is replaced at all.
        own: whether the chunk's own entities are candidates.
        ids: int64 [C, N], or [1, N] where equal for all chunks.
        numbers: int32, of the ids among the distinct rows.
        far_rows: rows of the reservoir, float32 [S, D].
        far: int64 [C, M], rows of the reservoir; or [1, M].
        log_weight: float32 [C, candidates], or [0, 0] where losses do not use it.
        row_scale: factor of the gradient of drawn rows.
        keep: dropout factors of the anchors, float32 [B, D], or [0, 0].
    """

    replaced: bool
    own: bool
    ids: NDArray[np.int64]
    numbers: NDArray[np.int32]
    far_rows: Floats
    far: NDArray[np.int64]
    log_weight: Floats
    row_scale: float
    keep: Floats


class Edges(NamedTuple):
    """What else the edges of a batch have.

    Args:
        place: int32 [B], rows of the operators' parameters.
        weight: float32 [B].
    """

    place: NDArray[np.int32]
    weight: Floats


class Room(NamedTuple):
    """Memory of one thread, for the largest chunk; what is in it means nothing between chunks.

    Args:
        anchor: [P, D].
        query: [P, D].
        query_gradient: [P, D].
        query_lengths: [P], see `comparators.prepare`.
        query_sums: [P], see `comparators.unfinish`.
        positive: [P], scores of the true entities.
        positive_slope: [P], derivatives by them.
        weight: [P], of the chunk's edges, times `Recipe.scale`.
        keys_before: before the operator, [K, D].
        keys: [K, D].
        key_gradient: [K, D].
        key_lengths: [K].
        key_sums: [K].
        scores: flat, [P * K].
        slopes: flat, [P * K], see `comparators.finish`; may be `scores` where it is not used.
        first_place: int32 [K], zeros.
        pairs: see `products.memory`; [0] where products are of float32.
    """

    anchor: Floats
    query: Floats
    query_gradient: Floats
    query_lengths: Floats
    query_sums: Floats
    positive: Floats
    positive_slope: Floats
    weight: Floats
    keys_before: Floats
    keys: Floats
    key_gradient: Floats
    key_lengths: Floats
    key_sums: Floats
    scores: Floats
    slopes: Floats
    first_place: NDArray[np.int32]
    pairs: NDArray[np.uint32]


@piece
def train_side(recipe, chunk, anchor, own, draw, edges, room):
    """Add the gradients of one replaced side of a chunk; return the sum of its weighted losses.

    Args:
        recipe: see `Recipe`.
        chunk: its number.
        anchor: the end that stays.
        own: the end that is replaced.
        draw: candidates for it.
        edges: of the batch.
        room: see `Room`.
    """
    start = chunk * recipe.chunk
    stop = min(start + recipe.chunk, edges.place.shape[0])
    p_count, first = stop - start, 0 if draw.own else stop - start
    k_count = p_count + draw.ids.shape[1] + draw.far.shape[1]
    size = p_count * (k_count - first)
    scores = room.scores[:size].reshape(p_count, k_count - first)
    slopes = room.slopes[:size].reshape(p_count, k_count - first)
    query, keys = room.query[:p_count], room.keys[:k_count]

    _load_queries(recipe, start, anchor, draw, edges, query, room)
    _load_keys(recipe, chunk, own, draw, start, keys, room)
    products.score(recipe.rough, query, keys[first:], scores, room.pairs)
    comparators.finish(
        recipe.comparator, scores, room.query_lengths, room.key_lengths[first:], slopes
    )
    _score_true(recipe, draw.own, keys, scores, room)
    _weigh(chunk, start, own, draw, scores)
    if recipe.filter_chunk:
        _mask_known(start, anchor, own, draw, edges, chunk, scores)
    weight = room.weight[:p_count]
    for p in range(p_count):
        weight[p] = edges.weight[start + p] * _F(recipe.scale)
    total = losses.differentiate(
        recipe.loss, room.positive, scores, weight, _F(recipe.margin), _F(recipe.temperature),
        room.positive_slope,
    )  # fmt: skip
    comparators.unfinish(
        recipe.comparator, scores, slopes, room.query_sums, room.key_sums[first:k_count]
    )
    # The scale is for rows alone: the operator's parameters get their gradient without it.
    twice = draw.row_scale != 1.0 and _key_operator(recipe, own) != operators.IDENTITY
    kept = own.parameter_gradient
    for last in range(0 if twice else 1, 2):
        if last and twice:
            kept = own.parameter_gradient.copy()
        _propagate(recipe, draw.row_scale if last else 1.0, query, keys, draw, scores, room)
        _unmap_keys(recipe, own, keys, room)
    if twice:
        own.parameter_gradient[:] = kept
    _finish_queries(recipe, start, anchor, draw, edges, query, room)
    _scatter_keys(chunk, start, own, draw, p_count, room)
    return total / recipe.scale


@piece
def _anchor_operator(recipe, anchor):
    return recipe.operator if recipe.reciprocal or anchor.right else operators.IDENTITY


@piece
def _key_operator(recipe, own):
    return recipe.operator if own.right and not recipe.reciprocal else operators.IDENTITY


@piece
def _row_of(table, chunk):
    """Return a chunk's row of a table that may be the same for all chunks."""
    return table[chunk if table.shape[0] > 1 else 0]


@piece
def _load_queries(recipe, start, anchor, draw, edges, query, room):
    stop = start + query.shape[0]
    x = room.anchor[: query.shape[0]]
    gather(anchor.rows, anchor.ids[start:stop], x)
    if draw.keep.shape[0]:
        for p in range(x.shape[0]):
            for d in range(x.shape[1]):
                x[p, d] *= draw.keep[start + p, d]
    code = _anchor_operator(recipe, anchor)
    operators.apply(code, x, anchor.parameters, edges.place[start:stop], query)
    comparators.prepare(recipe.comparator, query, room.query_lengths)


@piece
def _load_keys(recipe, chunk, own, draw, start, keys, room):
    """Fill keys with true entities, drawn ones, and those from outside."""
    drawn = _row_of(draw.ids, chunk)
    p_count = keys.shape[0] - draw.ids.shape[1] - draw.far.shape[1]
    code = _key_operator(recipe, own)
    x = keys if code == operators.IDENTITY else room.keys_before[: keys.shape[0]]
    gather(own.rows, own.ids[start : start + p_count], x[:p_count])
    gather(own.rows, drawn, x[p_count : p_count + drawn.shape[0]])
    gather(draw.far_rows, _row_of(draw.far, chunk), x[p_count + drawn.shape[0] :])
    if code != operators.IDENTITY:
        operators.apply(code, x, own.parameters, room.first_place, keys)
    comparators.prepare(recipe.comparator, keys, room.key_lengths)


@piece
def _weigh(chunk, start, own, draw, scores):
    """Add the candidates' weights, and mask those that are the true entity.

    Numbers stand for ids: more of them fit a vector.
    """
    p_count, drawn = scores.shape[0], _row_of(draw.numbers, chunk)
    near = p_count if draw.own else 0
    for p in range(p_count):
        row, true = scores[p], own.numbers[start + p]
        if draw.log_weight.shape[0]:
            weight = _row_of(draw.log_weight, chunk)
            for k in range(row.shape[0]):
                row[k] += weight[k]
        for k in range(near):
            row[k] = losses.MASKED if own.numbers[start + k] == true else row[k]
        behind = row[near : near + drawn.shape[0]]
        for n in range(drawn.shape[0]):
            behind[n] = losses.MASKED if drawn[n] == true else behind[n]


@piece
def _mask_known(start, anchor, own, draw, edges, chunk, scores):
    """Mask what another edge with the same anchor and relation makes true."""
    p_count, drawn = scores.shape[0], _row_of(draw.ids, chunk)
    near = p_count if draw.own else 0
    for p in range(start, start + p_count):
        row = scores[p - start]
        for q in range(start, start + p_count):
            if p == q or anchor.ids[p] != anchor.ids[q] or edges.place[p] != edges.place[q]:
                continue
            for k in range(near):
                if own.ids[start + k] == own.ids[q]:
                    row[k] = losses.MASKED
            for n in range(drawn.shape[0]):
                if drawn[n] == own.ids[q]:
                    row[near + n] = losses.MASKED


@piece
def _score_true(recipe, own, keys, scores, room):
    """Fill the scores of the true entities, which are among all scores where they are candidates.

    Distances are taken anew: short ones, as |a|^2 + |b|^2 - 2ab, would be all rounding.
    """
    for p in range(scores.shape[0]):
        if own and comparators.is_product(recipe.comparator):
            room.positive[p] = scores[p, p]
        else:
            room.positive[p] = comparators.matched(recipe.comparator, room.query[p], keys[p])


@piece
def _propagate(recipe, scale, query, keys, draw, scores, room):
    """From the gradient of the dot products to those of queries and keys, as prepared.

    What reaches keys as candidates is multiplied by `scale`.
    """
    p_count, k_count = query.shape[0], keys.shape[0]
    first = 0 if draw.own else p_count
    dquery, dkeys = room.query_gradient[:p_count], room.key_gradient[:k_count]
    # The score of the true entity has its place among those of candidates, masked until here;
    # where only candidates are scaled, it stays masked.
    placed = draw.own and comparators.is_product(recipe.comparator)
    joined = placed and scale == 1.0
    for p in range(p_count if placed else 0):
        scores[p, p] = room.positive_slope[p] if joined else _F(0.0)
    products.derive(recipe.rough, query, keys[first:], scores, dquery, dkeys[first:], room.pairs)
    dkeys[:first] = _F(0.0)
    comparators.add_lengths(recipe.comparator, query, room.query_sums, dquery)
    comparators.add_lengths(recipe.comparator, keys[first:], room.key_sums[first:], dkeys[first:])
    if scale != 1.0:
        dkeys[: k_count - draw.far.shape[1]] *= _F(scale)
    for p in range(0 if joined else p_count):
        comparators.unmatched(
            recipe.comparator, query[p], keys[p], room.positive[p], room.positive_slope[p],
            dquery[p], dkeys[p],
        )  # fmt: skip


@piece
def _finish_queries(recipe, start, anchor, draw, edges, query, room):
    p_count = query.shape[0]
    x, gradient = room.anchor[:p_count], room.query_gradient[:p_count]
    comparators.unprepare(recipe.comparator, query, room.query_lengths, gradient)
    operators.derive(
        _anchor_operator(recipe, anchor), x, anchor.parameters, edges.place[start:], gradient,
        anchor.parameter_gradient,
    )  # fmt: skip
    if draw.keep.shape[0]:
        for p in range(p_count):
            for d in range(x.shape[1]):
                gradient[p, d] *= draw.keep[start + p, d]
    scatter(gradient, anchor.numbers[start : start + p_count], anchor.gradient)


@piece
def _unmap_keys(recipe, own, keys, room):
    """From the gradient of prepared keys to that of rows and of the operator's parameters."""
    gradient = room.key_gradient[: keys.shape[0]]
    comparators.unprepare(recipe.comparator, keys, room.key_lengths, gradient)
    operators.derive(
        _key_operator(recipe, own), room.keys_before[: keys.shape[0]], own.parameters,
        room.first_place, gradient, own.parameter_gradient,
    )  # fmt: skip


@piece
def _scatter_keys(chunk, start, own, draw, p_count, room):
    drawn = _row_of(draw.numbers, chunk)
    gradient = room.key_gradient[: p_count + drawn.shape[0]]
    scatter(gradient[:p_count], own.numbers[start : start + p_count], own.gradient)
    scatter(gradient[p_count:], drawn, own.gradient)
