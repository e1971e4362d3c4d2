"""Relation parameters: base + deltas, in the order of the log, bit by bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.errors import FormatError
from biggraph.storage.folder import Folder
from biggraph.storage.relations import add_delta, read_relations, write_delta, write_relations
from biggraph.storage.state import Snapshot
from biggraph.storage.vector import flatten

FLOATS = st.floats(-1e9, 1e9, width=32)


def write_all(folder, versions):
    """Write a base and its deltas; return a state that names them."""
    place = Folder(folder)
    place.make_folder("relations")
    base = write_relations(place, 1, versions[0])
    deltas = [
        write_delta(place, n, flatten(delta).numpy()) for n, delta in enumerate(versions[1:], 2)
    ]
    return place, Snapshot(0, 0, {}, base, tuple(deltas))


def float32(*values):
    return np.array(values, np.float32)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=1, max_size=6))
def test_the_sum_is_taken_in_float32_one_delta_after_the_other(tmp_path_factory, rows):
    versions = [
        {"w": float32(row[:3]).reshape(1, 3), "optimizer.w": float32(row[3])} for row in rows
    ]
    place, snapshot = write_all(tmp_path_factory.mktemp("relations"), versions)
    expected = [np.float32(value) for value in rows[0]]
    for row in rows[1:]:
        expected = [np.float32(a + np.float32(b)) for a, b in zip(expected, row, strict=True)]
    found = read_relations(place, snapshot)
    assert found["w"].shape == (1, 3)
    assert found["w"].tobytes() == float32(*expected[:3]).tobytes()
    assert found["optimizer.w"].tobytes() == float32(expected[3]).tobytes()
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_the_order_is_that_of_the_log(tmp_path):
    base, large, small = ({"w": float32(value)} for value in (1e8, -1e8, 1))
    place, snapshot = write_all(tmp_path / "a", [base, large, small])
    assert read_relations(place, snapshot)["w"].tolist() == [1]
    place, snapshot = write_all(tmp_path / "b", [base, small, large])
    assert read_relations(place, snapshot)["w"].tolist() == [0]


def test_reading_leaves_the_files_as_they_are(tmp_path):
    place, snapshot = write_all(tmp_path, [{"w": float32(1, 2)}, {"w": float32(10, 20)}])
    for _ in range(2):
        found = read_relations(place, snapshot)
        assert found["w"].tolist() == [11, 22]
        found["w"][:] = 0


def test_before_a_commit_there_are_none(tmp_path):
    assert read_relations(Folder(tmp_path), Snapshot(0, 0, {}, None, ())) == {}


@pytest.mark.parametrize("size", [0, 1, 3])
def test_a_delta_that_does_not_fit_is_named(tmp_path, size):
    delta = {"w": np.ones(size, np.float32)}
    place, snapshot = write_all(tmp_path, [{"w": float32(1, 2)}, {"w": float32(0, 0)}, delta])
    file = tmp_path / snapshot.deltas[1].path
    with pytest.raises(FormatError, match=f"{file}: {size} relation parameters, expected 2"):
        read_relations(place, snapshot)
    arrays = {"w": float32(1, 2)}
    with pytest.raises(FormatError, match=f"here: {size} relation parameters, expected 2"):
        add_delta(arrays, delta["w"], "here")
    assert arrays["w"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": float32(1, 2)},
        {},
        {"delta": float32(1, 2), "v": float32(1)},
        {"delta": float32(1, 2).reshape(1, 2)},
        {"delta": np.array([1.0, 2.0])},
    ],
    ids=["other name", "none", "one more", "other shape", "other type"],
)
def test_a_file_that_is_no_delta_is_refused(tmp_path, arrays):
    place, snapshot = write_all(tmp_path, [{"w": float32(1, 2)}])
    ref = write_relations(place, 2, arrays)
    with pytest.raises(FormatError, match=f"{tmp_path / ref.path}: not a delta of relation"):
        read_relations(place, replace(snapshot, deltas=(ref,)))


def test_files_that_are_gone_or_damaged_are_named(tmp_path):
    place, snapshot = write_all(tmp_path, [{"w": float32(1)}, {"w": float32(2)}])
    delta = tmp_path / snapshot.deltas[0].path
    delta.write_bytes(bytes(snapshot.deltas[0].size))
    with pytest.raises(FormatError, match=f"{delta}: damaged"):
        read_relations(place, snapshot)
    delta.unlink()
    with pytest.raises(FileNotFoundError) as error:
        read_relations(place, snapshot)
    assert error.value.filename == str(delta)


def test_one_lease_writes_one_file(tmp_path):
    place, snapshot = write_all(tmp_path, [{"w": [1.0, 2.0]}])
    assert snapshot.relations.path == "relations/f000001.h5"
    assert read_relations(place, snapshot)["w"].tolist() == [1, 2]
