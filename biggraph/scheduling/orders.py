"""Orders in which the buckets of an epoch are trained.

An order is a function of the buckets and a seed alone: the same set of buckets and the same seed
give the same order on any machine. Knows nothing of who trains them or of entity types.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from biggraph.types import Bucket

Order = Callable[[Sequence[Bucket], int], list[Bucket]]


def random_order(buckets: Sequence[Bucket], seed: int) -> list[Bucket]:
    """Return the buckets in a random order: the most partition loads, the least correlation."""
    order = sorted(buckets)
    random.Random(seed).shuffle(order)
    return order


def inside_out(buckets: Sequence[Bucket], seed: int) -> list[Bucket]:
    """Return the buckets from the last corner of the grid outwards.

    The layer of a bucket is its lower index; layers follow each other from the highest, and the
    bucket on the diagonal ends its layer. So in a full square grid every bucket after the first
    has a partition that was trained before. The layers are those of the default order of
    PyTorch-BigGraph (Lerer et al., "PyTorch-BigGraph: a large-scale graph embedding system",
    SysML 2019, section 4.1).
    """
    return _layers(buckets, seed, outermost_first=False)


def outside_in(buckets: Sequence[Bucket], seed: int) -> list[Bucket]:
    """Return the layers of `inside_out` in the opposite order."""
    return _layers(buckets, seed, outermost_first=True)


def affinity(buckets: Sequence[Bucket], seed: int) -> list[Bucket]:
    """Return a greedy walk in which a bucket shares a partition with the one before it.

    Next comes the transpose; else a random bucket of the same row or column or with one of the
    two indices on the other side; else, where nothing shares an index, a random one.
    """
    left = dict.fromkeys(random_order(buckets, seed))
    touching: dict[int, list[Bucket]] = {}
    for bucket in left:
        for index in sorted(set(bucket)):
            touching.setdefault(index, []).append(bucket)
    order: list[Bucket] = []
    while left:
        near = _neighbor(order[-1], left, touching) if order else None
        order.append(next(iter(left)) if near is None else near)
        del left[order[-1]]
    return order


def _neighbor(
    bucket: Bucket, left: dict[Bucket, None], touching: dict[int, list[Bucket]]
) -> Bucket | None:
    """Return a bucket of `left` that shares an index, the transpose first; None if none does."""
    transpose = Bucket(bucket.rhs, bucket.lhs)
    if transpose in left:
        return transpose
    for index in bucket:
        candidates = touching[index]
        while candidates and candidates[-1] not in left:
            candidates.pop()
        if candidates:
            return candidates[-1]
    return None


def _layers(buckets: Sequence[Bucket], seed: int, *, outermost_first: bool) -> list[Bucket]:
    layers: dict[int, list[Bucket]] = {}
    for bucket in random_order(buckets, seed):
        layers.setdefault(min(bucket), []).append(bucket)
    indices = sorted(layers, reverse=not outermost_first)
    return [bucket for index in indices for bucket in _arrange(layers[index])]


def _arrange(layer: Iterable[Bucket]) -> Iterator[Bucket]:
    """Put transposes side by side and the bucket on the diagonal last."""
    pairs: dict[frozenset[int], list[Bucket]] = {}
    for bucket in layer:
        pairs.setdefault(frozenset(bucket), []).append(bucket)
    for pair in sorted(pairs.values(), key=lambda pair: pair[0].lhs == pair[0].rhs):
        yield from pair


ORDERS: dict[str, Order] = {
    "random": random_order,
    "inside_out": inside_out,
    "outside_in": outside_in,
    "affinity": affinity,
}
