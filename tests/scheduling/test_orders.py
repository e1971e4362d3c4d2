"""Orders: permutations of any set of buckets, reproducible, and as close together as they say."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biggraph.scheduling.orders import ORDERS
from biggraph.types import Bucket

index = st.integers(0, 9)
any_buckets = st.sets(st.builds(Bucket, index, index), max_size=60)


def grid(rows, columns):
    return [Bucket(i, j) for i, j in product(range(rows), range(columns))]


def loads(order):
    """Partitions loaded when only those of the present bucket are kept."""
    steps = zip([(), *order], order, strict=False)
    return sum(len(set(bucket) - set(before)) for before, bucket in steps)


@pytest.mark.parametrize("name", ORDERS)
@given(buckets=any_buckets, seed=st.integers(0, 2**63 - 1))
def test_an_order_is_a_permutation_that_depends_on_set_and_seed_only(name, buckets, seed):
    order = ORDERS[name](list(buckets), seed)
    assert sorted(order) == sorted(buckets)
    assert order == ORDERS[name](sorted(buckets, reverse=True), seed)


@pytest.mark.parametrize("name", ORDERS)
def test_seeds_give_different_orders(name):
    assert len({tuple(ORDERS[name](grid(4, 4), seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 7), (8, 8)])
def test_layers_follow_each_other(shape):
    layers = [min(bucket) for bucket in ORDERS["inside_out"](grid(*shape), 1)]
    assert layers == sorted(layers, reverse=True)
    layers = [min(bucket) for bucket in ORDERS["outside_in"](grid(*shape), 1)]
    assert layers == sorted(layers)


@pytest.mark.parametrize("name", ["inside_out", "outside_in", "affinity"])
def test_transposes_are_neighbors(name):
    order = ORDERS[name](grid(6, 6), 3)
    place = {bucket: i for i, bucket in enumerate(order)}
    assert all(abs(place[b] - place[Bucket(b.rhs, b.lhs)]) <= 1 for b in order)


@pytest.mark.parametrize("seed", range(5))
def test_inside_out_meets_a_trained_partition_in_every_bucket_after_the_first(seed):
    first, *others = ORDERS["inside_out"](grid(7, 7), seed)
    trained = set(first)
    for bucket in others:
        assert trained & set(bucket)
        trained |= set(bucket)


@pytest.mark.parametrize("seed", range(5))
def test_affinity_loads_less_than_random(seed):
    buckets = grid(8, 8)
    affinity, shuffled = (loads(ORDERS[name](buckets, seed)) for name in ("affinity", "random"))
    assert affinity <= 45 < shuffled  # 36 pairs, one new partition each, and a few fresh starts


@given(buckets=any_buckets, seed=st.integers(0, 99))
def test_affinity_jumps_only_where_nothing_touches(buckets, seed):
    order = ORDERS["affinity"](list(buckets), seed)
    for i, (bucket, after) in enumerate(pairwise(order), 1):
        if not set(bucket) & set(after):
            assert all(not set(bucket) & set(left) for left in order[i:])
