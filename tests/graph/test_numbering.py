"""Names numbered in order of appearance, beside a dict."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.graph.hashing import hash_names, texts_of
from biggraph.graph.numbering import Named, NameTable

batches = st.lists(
    st.lists(st.tuples(st.text(max_size=20), st.integers(0, 2)), max_size=30), max_size=6
)


def named(pairs, mask=2**64 - 1):
    """Return names with types, their hashes cut down to the bits of a mask."""
    names = texts_of(pa.array([text for text, _ in pairs], pa.string()))
    types = np.array([kind for _, kind in pairs], np.int32)
    hashes = hash_names(names, types.astype(np.uint64)).hi
    return Named(names, types, hashes & np.uint64(mask))


def numbered(table, pairs, mask=2**64 - 1):
    out = np.full((len(pairs), 4), -1, np.int32)
    table.number(named(pairs, mask), out[:, 2])
    assert (out[:, [0, 1, 3]] == -1).all()
    return out[:, 2].tolist()


@settings(deadline=None)
@given(batches, st.sampled_from([0, 3, 3 << 62, 2**64 - 1]))
def test_numbers_are_those_of_a_dict(batches, mask):
    """Also where hashes cannot tell names apart."""
    table, expected = NameTable(), {}
    for pairs in batches:
        first = table.count
        want = [expected.setdefault(pair, len(expected)) for pair in pairs]
        assert numbered(table, pairs, mask) == want
        names, types = table.names(first)
        new = list(expected)[first:]
        assert list(zip(names.to_pylist(), types.tolist(), strict=True)) == new
    assert table.count == len(expected)


def test_a_table_grows_and_forgets_nothing():
    table = NameTable()
    for start in range(0, 9000, 700):
        pairs = [(f"name {i}", 0) for i in range(start, start + 900)]
        assert numbered(table, pairs) == list(range(start, start + 900))
    assert numbered(table, [("name 5", 0), ("x", 0)]) == [5, table.count - 1]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 16, 17, 100_000])
def test_names_that_differ_in_a_byte_are_two(length):
    texts = ["x" * length, "x" * length + "y", "x" * max(0, length - 1) + "z", "x" * length + "\0"]
    assert numbered(NameTable(), [(text, 0) for text in texts] * 2, 0) == [0, 1, 2, 3] * 2


def test_the_size_counts_all_names_as_new():
    table = NameTable()
    end = named([("x" * 100, 0)] * 50)
    assert table.size_with((end, end)) >= 2 * 50 * 100
    table.number(end, np.empty(50, np.int32))
    assert table.size_with((end,)) >= 51 * 100
