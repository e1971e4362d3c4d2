"""Many workers: nobody idles without need, tables are reused, the first epoch grows together."""

import heapq
import random
from itertools import product

import pytest

from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler, EpochDone, Grant, Wait
from biggraph.types import Bucket, PartitionKey


def grid(size):
    buckets = [Bucket(i, j) for i, j in product(range(size), repeat=2)]
    return buckets, {bucket: keys(*bucket) for bucket in buckets}


def keys(*indices):
    return frozenset(PartitionKey("e", i) for i in indices)


def scheduler_of(order, *, affinity=True, trained=None):
    return BucketScheduler(order, grid(16)[1], affinity=affinity, trained=trained)


def work(scheduler, workers, jitter=0.0, seed=0):
    """Let workers train buckets of one unit of time each; return who trained what from when on."""
    rng, names = random.Random(seed), [f"w{i}" for i in range(workers)]
    events = [(0.0, i, name) for i, name in enumerate(names)]
    waiting: set[str] = set()
    trained = []
    while events:
        now, _, name = heapq.heappop(events)
        if scheduler.running(name):
            scheduler.finish(name)
        answer = scheduler.acquire(name)
        scheduler.give_back(name, answer.evict)
        if isinstance(answer, Grant):
            seconds = 1 + jitter * rng.uniform(-1, 1)
            trained.append((now, now + seconds, answer.bucket))
            heapq.heappush(events, (now + seconds, len(trained) + workers, name))
        elif isinstance(answer, Wait):
            waiting.add(name)
        if answer.evict:  # whoever waits asks again
            for place, other in enumerate(sorted(waiting - {name})):
                heapq.heappush(events, (now, place, other))
            waiting &= {name}
    return trained


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("jitter", [0.0, 0.3])
@pytest.mark.parametrize(("size", "workers", "least"), [(8, 2, 0.97), (16, 4, 0.97), (16, 8, 0.82)])
def test_workers_are_busy(order, jitter, size, workers, least):
    buckets, needs = grid(size)
    busy = []
    for seed in range(3):
        scheduler = BucketScheduler(ORDERS[order](buckets, seed), needs, affinity=True)
        trained = work(scheduler, workers, jitter, seed)
        assert sorted(bucket for *_, bucket in trained) == buckets
        seconds = sum(end - begin for begin, end, _ in trained)
        busy.append(seconds / workers / max(end for _, end, _ in trained))
    assert sum(busy) / len(busy) >= least


@pytest.mark.parametrize("order", ["inside_out", "random"])
def test_more_workers_than_partitions_do_no_harm(order):
    buckets, needs = grid(6)
    scheduler = BucketScheduler(ORDERS[order](buckets, 0), needs, affinity=True)
    trained = work(scheduler, 9, jitter=0.3)
    assert sorted(bucket for *_, bucket in trained) == buckets
    assert max(end for _, end, _ in trained) < 24  # 36 alone, 11 bound by each partition's turns


def test_balance_keeps_the_tail_short():
    """In the layers of inside_out, what is left at the end needs the same few partitions."""
    buckets, needs = grid(16)
    order = ORDERS["inside_out"](buckets, 0)
    ends = {}
    for affinity in (False, True):
        trained = work(BucketScheduler(order, needs, affinity=affinity), 4)
        ends[affinity] = max(end for _, end, _ in trained)
    assert ends[True] <= 66 < 70 < ends[False]  # 64 is the least possible


def test_tables_in_memory_are_preferred():
    order = [Bucket(5, 6), Bucket(2, 5), Bucket(2, 3), Bucket(0, 1)]
    cached = keys(2, 3)
    assert scheduler_of(order).acquire("a").bucket == Bucket(5, 6)
    assert scheduler_of(order).acquire("a", cached).bucket == Bucket(2, 3)
    assert scheduler_of(order).peek("a", cached) == Bucket(2, 3)
    assert scheduler_of(order, affinity=False).acquire("a", cached).bucket == Bucket(5, 6)
    assert scheduler_of(order[:2]).acquire("a", cached).bucket == Bucket(2, 5)


def test_held_is_preferred_to_cached():
    scheduler = scheduler_of([Bucket(0, 1), Bucket(2, 3), Bucket(2, 1)])
    scheduler.acquire("a")
    scheduler.finish("a")
    assert scheduler.acquire("a", keys(0, 1, 2, 3)).bucket == Bucket(2, 1)


def test_a_cached_partition_that_another_holds_is_not_granted():
    scheduler = scheduler_of([Bucket(0, 1), Bucket(2, 3)])
    scheduler.acquire("a")
    assert scheduler.acquire("b", keys(0, 1)).bucket == Bucket(2, 3)


def strangers(scheduler, workers, trained):
    """Return the buckets that met no partition tied to the first bucket or to `trained`."""
    joined, met_none = set(trained), []
    for *_, bucket in work(scheduler, workers, jitter=0.1):
        if joined and not joined & keys(*bucket):
            met_none.append(bucket)
        else:
            joined |= keys(*bucket)
    return met_none


@pytest.mark.parametrize("order", ORDERS)
def test_a_fresh_run_grows_from_its_first_bucket(order):
    buckets = ORDERS[order](grid(16)[0], 1)
    assert strangers(scheduler_of(buckets, trained=frozenset()), 1, ()) == []
    met_none = strangers(scheduler_of(buckets, trained=frozenset()), 4, ())
    assert 3 <= len(met_none) <= 12  # every worker but the first begins apart, nobody waits
    assert all(bucket.lhs == bucket.rhs for bucket in met_none)  # and alters one table only
    assert len(strangers(scheduler_of(buckets), 4, ())) > 2 * len(met_none)


def test_new_partitions_are_trained_against_old_ones_first():
    buckets = ORDERS["random"](grid(16)[0], 1)
    old = keys(*range(8))
    assert strangers(scheduler_of(buckets, trained=old), 4, old) == []
    scheduler = scheduler_of(buckets, trained=old)
    first = [bucket for *_, bucket in work(scheduler, 1)][:8]
    assert all(len(old & keys(*bucket)) == 1 for bucket in first[:1])
    assert keys(*(index for bucket in first for index in bucket)) >= keys(*range(8, 16))


def test_alignment_makes_nobody_wait():
    scheduler = scheduler_of(ORDERS["inside_out"](grid(16)[0], 0), trained=frozenset())
    answers = [scheduler.acquire(f"w{i}") for i in range(15)]
    assert all(isinstance(answer, Grant) for answer in answers)


def test_a_new_scheduler_learns_what_is_being_trained():
    """A coordinator that starts again grants nothing that its workers still train."""
    scheduler = scheduler_of(grid(4)[0])
    assert scheduler.claim("a", Bucket(1, 2))
    scheduler.finish("a")
    assert scheduler.claim("a", Bucket(2, 1))
    assert scheduler.holds("a") == keys(1, 2)
    assert not scheduler.claim("b", Bucket(1, 3))  # of another owner
    assert not scheduler.claim("b", Bucket(2, 1))  # not pending
    assert not scheduler.claim("b", Bucket(9, 9))  # not of this epoch
    assert scheduler.claim("b", Bucket(0, 3))
    assert (scheduler.pending, scheduler.owners) == (13, ["a", "b"])
    with pytest.raises(ValueError, match="while it runs one"):
        scheduler.claim("b", Bucket(3, 3))


def test_what_a_lost_owner_had_not_committed_is_trained_again():
    order = [Bucket(0, 1), Bucket(1, 0), Bucket(0, 0)]
    scheduler = scheduler_of(order, affinity=False)
    for _ in range(2):
        scheduler.acquire("a")
        scheduler.finish("a")
    scheduler.acquire("a")
    with pytest.raises(ValueError, match="not finished"):
        scheduler.lost("a", [Bucket(0, 0)])
    scheduler.lost("a", [Bucket(1, 0)])
    assert (scheduler.done, scheduler.pending, scheduler.owners) == ([Bucket(0, 1)], 2, [])
    assert scheduler.acquire("b").bucket == Bucket(1, 0)
    scheduler.finish("b")
    assert scheduler.acquire("b").bucket == Bucket(0, 0)
    scheduler.finish("b")
    assert scheduler.acquire("b") == EpochDone(frozenset())


def test_a_lost_first_bucket_leaves_nothing_to_join():
    order = [Bucket(0, 1), Bucket(2, 2), Bucket(2, 3)]
    scheduler = scheduler_of(order, trained=frozenset())
    assert scheduler.acquire("a").bucket == Bucket(0, 1)
    scheduler.lost("a")
    assert scheduler.acquire("b").bucket == Bucket(0, 1)  # again as many partitions as possible


def test_views_of_an_unknown_owner_are_empty():
    scheduler = scheduler_of(grid(2)[0])
    assert (scheduler.running("x"), scheduler.holds("x"), scheduler.owners) == (None, keys(), [])
    assert scheduler.peek("x") == Bucket(0, 0)
    assert scheduler.owners == []
