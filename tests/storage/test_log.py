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
from biggraph.storage.folder import Folder
from biggraph.storage.log import Record

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture
def place(tmp_path):
    place = Folder(tmp_path)
    place.make_folder("log")
    return place


@pytest.fixture
def filled(place):
    for number in range(12):
        log.append(place, Record(number, "note", {"value": number / 3, "text": "ü"}))
    return place


def file_of(place, number):
    return place.root / log.record_name(number)


@settings(deadline=None, max_examples=50)
@given(number=st.integers(0, 10**9), body=st.dictionaries(st.text(max_size=5), values))
def test_round_trip(number, body):
    record = Record(number, "kind", body)
    assert log.decode(log.encode(record), number, "") == record
    with pytest.raises(FormatError, match="here: damaged record"):
        log.decode(log.encode(record), number + 1, "here")


def test_replay_returns_every_record_in_order(filled, tmp_path):
    assert [r.body["value"] for r in log.replay(filled)] == [n / 3 for n in range(12)]
    assert log.replay(Folder(tmp_path / "none")) == []


def test_a_number_is_taken_once(filled):
    with pytest.raises(StorageError, match="only one process may write"):
        log.append(filled, Record(11, "note", {}))
    assert log.replay(filled)[11].body["text"] == "ü"


def test_of_many_writers_one_wins_each_number(place):
    won = []

    def write(name):
        for number in range(20):
            try:
                log.append(place, Record(number, "note", {"by": name}))
                won.append((number, name))
            except StorageError:
                pass

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == [(r.number, r.body["by"]) for r in log.replay(place)]


def test_other_files_do_not_count(filled):
    (filled.root / "log" / "00000012.0123456789ab.tmp").write_bytes(b"torn")
    (filled.root / "log" / ".nfs0001").write_bytes(b"")
    assert len(log.replay(filled)) == 12


@pytest.mark.parametrize("number", [0, 5])
def test_a_missing_record_is_named(filled, number):
    file_of(filled, number).unlink()
    with pytest.raises(FormatError, match=f"{number:08d}: missing"):
        log.replay(filled)


def test_records_that_changed_places_are_named(filled):
    shutil.copy(file_of(filled, 4), file_of(filled, 7))
    with pytest.raises(FormatError, match="00000007: damaged record"):
        log.replay(filled)


def test_every_byte_counts(filled):
    path = file_of(filled, 5)
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
            log.replay(filled)


def test_another_version_is_named(filled):
    path = file_of(filled, 5)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"version": 2}))
    with pytest.raises(FormatError, match="log version 2, this biggraph reads version 1"):
        log.replay(filled)


def test_numbers_beyond_eight_digits_keep_their_order():
    assert log.record_name(123_456_789) == "log/123456789"
