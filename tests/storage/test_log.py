"""The log: what was appended is replayed; anything else is refused by name."""

import json
import random
import shutil
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.errors import FormatError, StorageError
from biggraph.storage import log
from biggraph.storage.log import Record

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        log.append(tmp_path, Record(number, "note", {"value": number / 3, "text": "ü"}))
    return tmp_path


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0, 10**9), body=st.dictionaries(st.text(max_size=5), values))
def test_round_trip(tmp_path_factory, number, body):
    record = Record(number, "kind", body)
    path = log.record_path(tmp_path_factory.getbasetemp(), number)
    assert log.decode(log.encode(record), path) == record


def test_replay_returns_every_record_in_order(folder):
    assert [r.body["value"] for r in log.replay(folder)] == [n / 3 for n in range(12)]
    assert log.replay(folder / "none") == []


def test_a_number_is_taken_once(folder):
    with pytest.raises(StorageError, match="only one process may write"):
        log.append(folder, Record(11, "note", {}))
    assert log.replay(folder)[11].body["text"] == "ü"


def test_of_many_writers_one_wins_each_number(tmp_path):
    won = []

    def write(name):
        for number in range(20):
            try:
                log.append(tmp_path, Record(number, "note", {"by": name}))
                won.append((number, name))
            except StorageError:
                pass

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [(r.number, r.body["by"]) for r in log.replay(tmp_path)]


def test_other_files_do_not_count(folder):
    (folder / "00000012.0123456789ab.tmp").write_bytes(b"torn")
    (folder / ".nfs0001").write_bytes(b"")
    assert len(log.replay(folder)) == 12


@pytest.mark.parametrize("number", [0, 5])
def test_a_missing_record_is_named(folder, number):
    log.record_path(folder, number).unlink()
    with pytest.raises(FormatError, match=f"{number:08d}: missing"):
        log.replay(folder)


def test_records_that_changed_places_are_named(folder):
    shutil.copy(log.record_path(folder, 4), log.record_path(folder, 7))
    with pytest.raises(FormatError, match="00000007: damaged record"):
        log.replay(folder)


def test_every_byte_counts(folder):
    path = log.record_path(folder, 5)
    sound, rng = path.read_bytes(), random.Random(0)
    mutants = [sound[:n] for n in range(0, len(sound), 7)] + [sound + b" ", b"[]", b"{}", b"1"]
    mutants += [b"[" * 100_000, b"\xff" + sound, sound.replace(b",", b", ", 1)]
    for _ in range(200):
        data = bytearray(sound)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        mutants.append(bytes(data))
    for data in mutants:
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"00000005: (damaged record|log version)"):
            log.replay(folder)


def test_another_version_is_named(folder):
    path = log.record_path(folder, 5)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"version": 2}))
    with pytest.raises(FormatError, match="log version 2, this biggraph reads version 1"):
        log.replay(folder)


def test_numbers_beyond_eight_digits_keep_their_order(tmp_path):
    assert log.record_path(tmp_path, 123_456_789).name == "123456789"
