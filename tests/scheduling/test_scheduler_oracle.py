"""Any sequence of calls to the scheduler is answered as its rules say, told with plain sets."""

from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from biggraph.scheduling.orders import ORDERS
from biggraph.scheduling.scheduler import BucketScheduler, EpochDone, Grant, Wait
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.types import Bucket


def typed_graph(users, items):
    """Users know users and like items: a grid with two entity types."""
    entities = (EntityType("user", (1,) * users), EntityType("item", (1,) * items))
    relations = (RelationType("knows", "user", "user"), RelationType("likes", "user", "item"))
    schema = GraphSchema(entities, relations)
    buckets = [Bucket(i, j) for i, j in product(range(users), range(max(users, items)))]
    return buckets, schema.needs(buckets)


class Oracle:
    """The rules at the top of the scheduler, as slow and plain as they can be told."""

    def __init__(self, order, needs, affinity, trained):
        self.order, self.needs, self.affinity = order, needs, affinity
        self.trained = frozenset().union(*needs.values()) if trained is None else trained
        self.held: dict[str, frozenset] = {}  # by every owner known
        self.running: dict[str, Bucket] = {}
        self.granted: list[Bucket] = []
        self.done: list[Bucket] = []

    def pending(self):
        return [bucket for bucket in self.order if bucket not in self.granted]

    def alone(self, owner):
        return set(self.held) <= {owner}

    def keys(self):
        return frozenset().union(*map(self.needs.get, self.order))

    def joined(self):
        joined = self.trained & self.keys()
        for bucket in self.granted:
            if not joined or self.needs[bucket] & joined:
                joined |= self.needs[bucket]
        return joined

    def cost(self, bucket, owner, cached):
        needs, joined = self.needs[bucket], self.joined()
        strange, held = needs - joined, self.held.get(owner, frozenset())
        if joined >= self.keys():
            rank = 0
        elif not joined:
            rank = -len(strange)
        elif needs & joined:
            rank = 0 if strange else 1
        else:
            rank = 1 + len(strange)
        loads = (len(needs - held - cached), len(needs - held))
        if self.alone(owner):
            return rank, *loads
        wanted = {key: sum(key in self.needs[b] for b in self.pending()) for key in self.keys()}
        balance = -sum(wanted[key] for key in needs)
        scarce = max(wanted.values()) * len(self.held) >= len(self.pending())
        return (rank, balance, *loads) if scarce else (rank, *loads, balance)

    def free(self, bucket, owner):
        foreign = (held for other, held in self.held.items() if other != owner)
        return not self.needs[bucket] & frozenset().union(*foreign)

    def choose(self, owner, cached):
        free = [bucket for bucket in self.pending() if self.free(bucket, owner)]
        if self.affinity:
            free.sort(key=lambda bucket: self.cost(bucket, owner, cached))
        return free[0] if free else None

    def surplus(self, owner):
        wanted = frozenset().union(*map(self.needs.get, self.pending()))
        return frozenset() if self.alone(owner) else self.held[owner] & wanted

    def grant(self, owner, bucket):
        self.running[owner] = bucket
        self.granted.append(bucket)
        self.held[owner] = self.held.get(owner, frozenset()) | self.needs[bucket]

    def acquire(self, owner, cached):
        self.held.setdefault(owner, frozenset())
        bucket = self.choose(owner, cached)
        if bucket is not None:
            self.grant(owner, bucket)
            return Grant(bucket, self.surplus(owner) - self.needs[bucket])
        if len(self.done) < len(self.order):
            return Wait(self.surplus(owner))
        return EpochDone(frozenset() if self.alone(owner) else self.held[owner])


class Machine(RuleBasedStateMachine):
    owners = st.sampled_from(["a", "b", "c"])
    data = st.data()

    @initialize(
        shape=st.sampled_from([(1, 2), (2, 1), (3, 1), (3, 3), (4, 2), (5, 1)]),
        order=st.sampled_from(sorted(ORDERS)),
        seed=st.integers(0, 99),
        affinity=st.sampled_from([True, True, False]),
        fresh=st.sampled_from([True, True, False]),
        data=data,
    )
    def begin(self, shape, order, seed, affinity, fresh, data):
        buckets, needs = typed_graph(*shape)
        self.keys = sorted(frozenset().union(*needs.values()))
        some = st.frozensets(st.sampled_from(self.keys), max_size=1)
        trained = data.draw(some) if fresh else None
        buckets = ORDERS[order](buckets, seed)[data.draw(st.integers(0, 1)) :]
        self.scheduler = BucketScheduler(buckets, needs, affinity=affinity, trained=trained)
        self.oracle = Oracle(buckets, needs, affinity, trained)
        self.asked = {name: frozenset() for name in "abc"}

    @rule(owner=owners, data=data)
    def acquire(self, owner, data):
        if owner in self.oracle.running:
            return
        cached = data.draw(st.frozensets(st.sampled_from(self.keys), max_size=3))
        answer = self.scheduler.acquire(owner, cached)
        assert answer == self.oracle.acquire(owner, cached)
        self.asked[owner] = answer.evict

    @rule(owner=owners, data=data)
    def peek(self, owner, data):
        cached = data.draw(st.frozensets(st.sampled_from(self.keys), max_size=3))
        assert self.scheduler.peek(owner, cached) == self.oracle.choose(owner, cached)

    @rule(owner=owners)
    def give_back(self, owner):
        self.scheduler.give_back(owner, self.asked[owner])
        if self.asked[owner]:
            self.oracle.held[owner] -= self.asked[owner]
        self.asked[owner] = frozenset()

    @rule(owner=owners)
    def finish(self, owner):
        if owner in self.oracle.running:
            self.scheduler.finish(owner)
            self.oracle.done.append(self.oracle.running.pop(owner))

    @rule(owner=owners, data=data)
    def take_a_turn(self, owner, data):
        self.finish(owner)
        self.acquire(owner, data)
        self.give_back(owner)

    @rule(owner=owners, data=data)
    def lost(self, owner, data):
        done = self.oracle.done
        undone = data.draw(st.sets(st.sampled_from(done), max_size=2)) if done else set()
        self.scheduler.lost(owner, undone)
        again = undone | {self.oracle.running.pop(owner, None)}
        self.oracle.granted = [b for b in self.oracle.granted if b not in again]
        self.oracle.done = [b for b in self.oracle.done if b not in undone]
        self.oracle.held.pop(owner, None)
        self.asked[owner] = frozenset()

    @rule(owner=owners, data=data)
    def claim(self, owner, data):
        if owner in self.oracle.running or not self.oracle.order:
            return
        bucket = data.draw(st.sampled_from(self.oracle.order))
        self.oracle.held.setdefault(owner, frozenset())
        possible = bucket in self.oracle.pending() and self.oracle.free(bucket, owner)
        assert self.scheduler.claim(owner, bucket) == possible
        if possible:
            self.oracle.grant(owner, bucket)
            self.asked[owner] -= self.oracle.needs[bucket]

    @invariant()
    def the_views_agree(self):
        oracle = self.oracle
        assert self.scheduler.owners == list(oracle.held)
        for name in "abc":
            assert self.scheduler.holds(name) == oracle.held.get(name, frozenset())
            assert self.scheduler.running(name) == oracle.running.get(name)
        held = [key for keys in oracle.held.values() for key in keys]
        assert len(held) == len(set(held))
        assert self.scheduler.done == oracle.done
        assert self.scheduler.pending == len(oracle.pending())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
