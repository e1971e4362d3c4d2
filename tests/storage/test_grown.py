"""Grown sequences against tuples: whatever grows from what, in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from biggraph.storage.grown import Grown

STEPS = st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 5), max_size=3)), max_size=20)


@given(STEPS)
def test_each_keeps_its_items_whatever_grows_from_it(steps: list[tuple[int, list[int]]]) -> None:
    found, expected = [Grown[int]()], [()]
    for origin, items in steps:
        origin %= len(found)
        found.append(found[origin].plus(items))
        expected.append((*expected[origin], *items))
        for grown, plain in zip(found, expected, strict=True):
            assert grown == plain
            assert len(grown) == len(plain)
            assert list(grown) == list(plain)
            assert [i in grown for i in range(6)] == [i in plain for i in range(6)]
            assert tuple(grown[:2]) == plain[:2]


def test_growing_from_the_longest_shares_the_items() -> None:
    short = Grown[int]().plus(range(3))
    assert short.plus([3])._items is short._items
