"""The scheduler: every bucket once, no partition shared, no stall, whatever owners do."""

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler, EpochDone, Grant, Wait
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.types import Bucket, PartitionKey


def typed_graph(users, items):
    """Users know users and like items: a grid with two entity types."""
    entities = (EntityType("user", (1,) * users), EntityType("item", (1,) * items))
    relations = (RelationType("knows", "user", "user"), RelationType("likes", "user", "item"))
    schema = GraphSchema(entities, relations)
    buckets = [Bucket(i, j) for i, j in product(range(users), range(max(users, items)))]
    return buckets, schema.needs(buckets)


def grid(size):
    buckets = [Bucket(i, j) for i, j in product(range(size), repeat=2)]
    return buckets, {b: frozenset(PartitionKey("e", i) for i in b) for b in buckets}


def run_alone(scheduler, owner="a"):
    order = []
    while isinstance(answer := scheduler.acquire(owner), Grant):
        assert not answer.evict
        order.append(answer.bucket)
        scheduler.finish(owner)
    assert answer == EpochDone(frozenset())
    return order


@pytest.mark.parametrize("name", ORDERS)
def test_alone_without_affinity_the_order_is_followed_exactly(name):
    buckets, needs = typed_graph(4, 2)
    order = ORDERS[name](buckets, 7)
    assert run_alone(BucketScheduler(order, needs, affinity=False)) == order
    assert run_alone(BucketScheduler(order[5:], needs, affinity=False)) == order[5:]


def test_alone_with_affinity_each_next_bucket_is_the_cheapest():
    buckets, needs = grid(5)
    scheduler = BucketScheduler(ORDERS["random"](buckets, 1), needs, affinity=True)
    order = run_alone(scheduler)
    assert sorted(order) == buckets
    held: set[PartitionKey] = set()
    for i, bucket in enumerate(order):
        cost = len(needs[bucket] - held)
        assert cost == min(len(needs[left] - held) for left in order[i:])
        held |= needs[bucket]


@pytest.mark.parametrize("affinity", [False, True])
def test_peek_names_what_acquire_grants_next_to_a_lone_owner(affinity):
    buckets, needs = grid(4)
    scheduler = BucketScheduler(ORDERS["random"](buckets, 3), needs, affinity=affinity)
    guess = scheduler.peek("a")
    while isinstance(answer := scheduler.acquire("a"), Grant):
        assert answer.bucket == guess
        guess = scheduler.peek("a")
        scheduler.finish("a")
    assert guess is None


def test_a_second_owner_gets_what_the_first_holds_idle():
    order = [Bucket(0, 0), Bucket(1, 1), Bucket(0, 1)]
    needs = grid(2)[1]
    scheduler = BucketScheduler(order, needs, affinity=False)
    for _ in range(2):
        scheduler.acquire("a")
        scheduler.finish("a")
    assert scheduler.acquire("b") == Wait(frozenset())
    answer = scheduler.acquire("a")
    assert answer == Grant(Bucket(0, 1), frozenset())
    assert scheduler.acquire("b") == Wait(frozenset())  # "a" may be lost
    scheduler.lost("a")
    assert scheduler.acquire("b") == Grant(Bucket(0, 1), frozenset())
    scheduler.finish("b")
    assert scheduler.acquire("b") == EpochDone(frozenset())
    assert scheduler.done == order


def test_with_others_about_idle_partitions_are_asked_back():
    buckets, needs = grid(3)
    scheduler = BucketScheduler(buckets, needs, affinity=False)
    assert scheduler.acquire("a").bucket == Bucket(0, 0)
    scheduler.finish("a")
    assert scheduler.acquire("b").bucket == Bucket(1, 1)
    answer = scheduler.acquire("a")
    assert answer == Grant(Bucket(0, 2), frozenset())
    scheduler.finish("a")
    scheduler.finish("b")
    answer = scheduler.acquire("b")  # 1 is its own, 0 and 2 are held by "a"
    assert answer == Wait(frozenset({PartitionKey("e", 1)}))
    scheduler.give_back("b", answer.evict)
    answer = scheduler.acquire("a")
    assert answer == Grant(Bucket(0, 1), frozenset({PartitionKey("e", 2)}))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda s: s.acquire("a"),
        lambda s: s.finish("b"),
        lambda s: s.give_back("b", {PartitionKey("e", 0)}),
        lambda s: s.give_back("a", {PartitionKey("e", 0)}),
        lambda s: s.give_back("a", {PartitionKey("e", 9)}),
        lambda s: BucketScheduler([Bucket(0, 0)] * 2, grid(1)[1], affinity=False),
    ],
)
def test_breaking_the_protocol_is_an_error(misuse):
    buckets, needs = grid(2)
    scheduler = BucketScheduler(buckets, needs, affinity=False)
    scheduler.acquire("a")
    with pytest.raises(ValueError, match=r"gave back|finished|while it runs|needed by no|twice"):
        misuse(scheduler)


def simulate(order, needs, owners, seed, loss, affinity):
    """Let owners act in a random order, some of them dying; return what was trained by whom."""
    rng = random.Random(seed)
    scheduler = BucketScheduler(order, needs, affinity=affinity)
    running: dict[str, Bucket] = {}
    owed: dict[str, frozenset[PartitionKey]] = {}
    trained: list[tuple[str, Bucket]] = []
    ended: set[str] = set()
    names = [f"w{i}" for i in range(owners)]
    for _ in range(400 * len(order) * owners + 400):
        if len(ended) == owners:
            return scheduler, trained
        owner = rng.choice([name for name in names if name not in ended])
        if rng.random() < loss:
            scheduler.lost(owner)
            running.pop(owner, None)
            owed.pop(owner, None)
        elif owed.get(owner):
            scheduler.give_back(owner, owed.pop(owner))
        elif owner in running:
            scheduler.finish(owner)
            trained.append((owner, running.pop(owner)))
        else:
            answer = scheduler.acquire(owner)
            owed[owner] = answer.evict
            if isinstance(answer, Grant):
                busy = [key for b in running.values() for key in needs[b]]
                assert not needs[answer.bucket] & set(busy)
                running[owner] = answer.bucket
            elif isinstance(answer, EpochDone) and not answer.evict:
                ended.add(owner)
    raise AssertionError("no progress")


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    missing=st.integers(0, 3),
    owners=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    affinity=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_random_interleavings(shape, missing, owners, seed, loss, affinity):
    buckets, needs = typed_graph(*shape)
    order = ORDERS["random"](buckets, seed)[missing:]
    scheduler, trained = simulate(order, needs, owners, seed, loss, affinity)
    assert sorted(bucket for _, bucket in trained) == sorted(order)
    assert scheduler.done == [bucket for _, bucket in trained]
    again = simulate(order, needs, owners, seed, loss, affinity)
    assert again[1] == trained


def test_a_lost_bucket_comes_back_at_its_place():
    buckets, needs = grid(3)
    scheduler = BucketScheduler(buckets, needs, affinity=False)
    scheduler.acquire("a")
    scheduler.lost("a")
    assert run_alone(scheduler, "b") == buckets


@pytest.mark.parametrize("affinity", [False, True])
def test_a_large_grid_is_dealt_out(affinity):
    buckets, needs = grid(128)
    scheduler = BucketScheduler(ORDERS["affinity"](buckets, 0), needs, affinity=affinity)
    for turn in range(200):
        owner = f"w{turn % 4}"
        answer = scheduler.acquire(owner)
        assert isinstance(answer, Grant)
        scheduler.give_back(owner, answer.evict)
        scheduler.finish(owner)
    assert len(scheduler.done) == 200
