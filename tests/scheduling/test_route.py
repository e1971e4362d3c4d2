"""The route: next uses and what comes, against a search through the plan."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from biggraph.scheduling.plans import PLANS, make_plan
from biggraph.scheduling.route import Route
from biggraph.types import PartitionKey
from tests.scheduling.test_plans import square

NEEDS = square(7)


def route_of(name, slots=3):
    return Route(lambda epoch: make_plan(name, NEEDS, slots, epoch), NEEDS)


@pytest.mark.parametrize("name", PLANS)
@given(place=st.floats(0, 0.999), epoch=st.integers(1, 4))
def test_what_comes_and_when(name, place, epoch):
    plan, route = make_plan(name, NEEDS, 3, epoch), route_of(name)
    order = [bucket for state in plan for bucket in state.buckets]
    at = int(place * len(order))
    coming = route.reach(epoch, order[at])
    i = next(i for i, state in enumerate(plan) if order[at] in state.buckets)
    assert route.state == plan[i]
    end = sum(len(state.buckets) for state in plan[: i + 2])
    wanted = [key for bucket in order[at + 1 : end] for key in sorted(NEEDS[bucket])]
    assert coming == sorted(set(wanted), key=wanted.index)
    for key in frozenset().union(*NEEDS.values()):
        later = [j for j in range(at, len(order)) if key in NEEDS[order[j]]]
        assert route.next_use(key) == min(later, default=len(order))


def test_nothing_is_needed_before_the_first_bucket():
    route = route_of("beta")
    assert {route.next_use(PartitionKey("e", i)) for i in range(7)} == {0}


def test_another_epoch_has_another_plan():
    route = route_of("comet")
    first = make_plan("comet", NEEDS, 3, 1)
    route.reach(1, first[-1].buckets[-1])
    second = make_plan("comet", NEEDS, 3, 2)
    assert route.reach(2, second[0].buckets[0])
    assert route.state == second[0]
