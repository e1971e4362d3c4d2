"""What the gradients of one replaced side of one chunk are computed from, and in.

Knows shapes, and nothing of how.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biggraph.train.kernels.products import Packed

Floats = NDArray[np.float32]


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
        row_scale: factor of the gradient of rows as candidates, but not of those from outside.
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
        keys_before: before the operator, [K, D].
        keys: [K, D].
        key_gradient: [K, D].
        key_lengths: [K].
        key_sums: [K].
        scores: flat, [P * K].
        slopes: [K], see `comparators.finish`.
        first_place: int32 [K], zeros.
        packed: see `products.memory`.
    """

    anchor: Floats
    query: Floats
    query_gradient: Floats
    query_lengths: Floats
    query_sums: Floats
    positive: Floats
    positive_slope: Floats
    keys_before: Floats
    keys: Floats
    key_gradient: Floats
    key_lengths: Floats
    key_sums: Floats
    scores: Floats
    slopes: Floats
    first_place: NDArray[np.int32]
    packed: Packed


class Task(NamedTuple):
    """What `train_side` is given, for its parts.

    Args:
        recipe: see `Recipe`.
        chunk: its number.
        start: its first edge of the batch.
        stop: behind its last edge.
        anchor: the end that stays.
        own: the end that is replaced.
        draw: candidates for it.
        edges: of the batch.
        room: see `Room`.
    """

    recipe: Recipe
    chunk: int
    start: int
    stop: int
    anchor: End
    own: End
    draw: Draw
    edges: Edges
    room: Room
