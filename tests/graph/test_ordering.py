"""Edges in the order of hashes, beside sorting tuples."""

import resource
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.graph import ordering
from biggraph.graph.hashing import mix_columns
from biggraph.graph.ordering import Keyed, key_rows, merge, ordered, ordered_file, take_repeats
from biggraph.graph.rows import RowSpill, append_rows, count_rows, overwrite, read_rows, rewrite
from biggraph.graph.shuffle import shuffled

SEED = 7
edges = st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=60)
dtypes = pytest.mark.parametrize("dtype", [np.dtype(np.int32), np.dtype(np.int64)])


def array(rows, dtype=np.int32):
    return np.array(rows, dtype).reshape(-1, 4)


def pairs(found):
    return [(key, *row) for key, row in zip(found.keys.tolist(), found.rows.tolist(), strict=True)]


def naive_keys(rows):
    columns = (array(rows)[:, k].astype(np.int64) for k in range(3))
    return mix_columns(SEED, *columns).tolist() if rows else []


def naive_shuffle(rows):
    """Return edges in the order of their keys; those that repeat a key get one of their own."""
    keyed = sorted(zip(naive_keys(rows), rows, strict=True))
    seen, final = Counter(), []
    for key, row in keyed:
        if seen[key]:
            ordinal = np.array([seen[key]])
            final.append((int(mix_columns(SEED, np.array([key], np.uint64), ordinal)[0]), row))
        else:
            final.append((key, row))
        seen[key] += 1
    return [row for _, row in sorted(final)]


@dtypes
@settings(deadline=None)
@given(rows=edges)
def test_keys_are_those_of_mixed_columns(rows, dtype):
    assert key_rows(array(rows, dtype), SEED).tolist() == naive_keys(rows)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 2**32, 2**63, 2**64 - 1]), *[st.integers(0, 2)] * 4)
    )
)
def test_any_keys_are_sorted_with_content(rows):
    keys = np.array([row[0] for row in rows], np.uint64)
    assert pairs(ordered(Keyed(keys, array([row[1:] for row in rows])))) == sorted(rows)


@pytest.mark.parametrize("kind", ["uniform", "few", "low", "equal"])
@pytest.mark.parametrize("known", [0, 3])
def test_many_keys_are_sorted_in_parts_by_two_threads(kind, known, monkeypatch):
    monkeypatch.setattr(ordering, "PART", 64)
    monkeypatch.setattr(ordering, "ALONE", 100)
    generator = np.random.default_rng(1)
    keys = generator.integers(0, 2**64, 5000, np.uint64) >> np.uint64(known)
    if kind != "uniform":
        keys %= {"few": np.uint64(50), "low": np.uint64(1 << 20), "equal": np.uint64(1)}[kind]
    rows = generator.integers(0, 9, (5000, 4)).astype(np.int32)
    expected = sorted(pairs(Keyed(keys, rows)))
    assert pairs(ordered(Keyed(keys, rows), known)) == expected


def test_parts_too_large_for_their_places_are_sorted_by_comparisons(monkeypatch):
    monkeypatch.setattr(ordering, "LARGE", 20)
    monkeypatch.setattr(ordering, "PART", 16)
    sort, marks = ordering._sort.py_func, []

    def marked(edges, borders, known, hard):
        sort(edges, borders, known, hard)
        marks.extend(hard.tolist())

    monkeypatch.setattr(ordering, "_sort", marked)
    generator = np.random.default_rng(1)
    keys = generator.integers(0, 2**64, 90, np.uint64)
    keys[:40] = 5
    found = Keyed(keys, generator.integers(0, 9, (90, 4)).astype(np.int32))
    assert pairs(ordered(found)) == sorted(pairs(found))
    assert True in marks
    assert False in marks


@dtypes
def test_a_file_is_read_and_sorted_by_two_threads(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(ordering, "ALONE", 100)
    rows = np.random.default_rng(1).integers(0, 99, (3001, 4)).astype(dtype)
    append_rows(tmp_path / "0", rows)
    found = pairs(ordered_file(tmp_path / "0", dtype, SEED))
    expected = zip(key_rows(rows, SEED).tolist(), *rows.T.tolist(), strict=True)
    assert found == sorted(expected)
    assert pairs(ordered_file(tmp_path / "none", dtype, SEED)) == []


@settings(deadline=None)
@given(edges)
def test_repeats_get_keys_of_their_own(rows):
    found = ordered(Keyed(key_rows(array(rows), SEED), array(rows)))
    firsts, repeats = take_repeats(found, SEED)
    assert len(set(firsts.keys.tolist())) == len(firsts.keys) == len({row[:3] for row in rows})
    assert len(firsts.keys) + len(repeats.keys) == len(rows)
    assert len(set(repeats.keys.tolist())) == len(repeats.keys)
    assert sorted([*firsts.rows.tolist(), *repeats.rows.tolist()]) == sorted(map(list, rows))
    merged = merge(firsts, ordered(repeats))
    assert pairs(merged) == sorted(pairs(firsts) + pairs(repeats))


@dtypes
@pytest.mark.parametrize("limit", [1 << 30, 4000, 200])
@settings(deadline=None, max_examples=20)
@given(rows=edges)
def test_a_shuffle_is_the_same_for_any_limit(rows, limit, dtype, tmp_path_factory):
    """In memory, or through files of ranges."""
    spilled = tmp_path_factory.mktemp("shuffle") / "0"
    append_rows(spilled, array(rows, dtype))
    found = []
    for part in shuffled(spilled, dtype, SEED, limit):
        bits = part.weight.view(np.int32)
        found += zip(*(c.tolist() for c in (part.lhs, part.rel, part.rhs, bits)), strict=True)
    assert found == naive_shuffle(rows)
    assert list(spilled.parent.iterdir()) == ([spilled] if rows else [])


@dtypes
@pytest.mark.parametrize("few", [1 << 16, 2])
@settings(deadline=None, max_examples=20)
@given(batches=st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=4))
def test_rows_are_dealt_to_the_files_of_their_codes(batches, few, dtype, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    expected, number = [], 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("biggraph.graph.rows.FEW", few)
        spill = RowSpill(folder, 0)
        for codes in batches:
            rows = array([[number + i, 1, 2, 3] for i in range(len(codes))], dtype)
            expected += zip(codes, rows.tolist(), strict=True)
            number += len(codes)
            spill.add(rows, np.array(codes, np.int64))
        spill.flush()
    assert {path.name for path in folder.iterdir()} == {str(code) for code, _ in expected}
    for code in range(10):
        mine = [row for other, row in expected if other == code]
        path = folder / str(code)
        assert count_rows(path, dtype) == len(mine)
        assert [row for part in read_rows(path, dtype, 40) for row in part.tolist()] == mine
        if len(mine) >= 3:
            part = read_rows(path, dtype, start=1, stop=3)
            assert [row for piece in part for row in piece.tolist()] == mine[1:3]


@pytest.mark.parametrize("change", [overwrite, lambda path, rows: rewrite(path, rows.dtype, len)])
def test_rows_written_in_part_are_an_error(change, tmp_path):
    """The system may write fewer bytes than it was given; the rest must not be lost silently."""
    path, rows = tmp_path / "0", array([[1, 2, 3, 4]] * 9)
    append_rows(path, rows)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            change(path, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
