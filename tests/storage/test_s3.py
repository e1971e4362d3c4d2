"""A bucket alone, against a real server: one writer wins, whatever the network does.

What it has in common with other places is in test_places.py.
"""

import errno
import sys
import tempfile

import numpy as np
import pytest

from biggraph.errors import FormatError, InputError, StorageError
from biggraph.storage import s3, s3_client
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.opening import open_place
from biggraph.storage.run import RunDirectory, check_claimable, is_run, read_state
from tests.storage.doubles import CONFIG, facts, train
from tests.storage.s3_server import busy, conflict, make_bucket, refusal, reset, serve

MIB = 1 << 20


@pytest.fixture(scope="module")
def store():
    with serve() as store:
        yield store


@pytest.fixture
def address(store, monkeypatch):
    return f"s3://{make_bucket(store, monkeypatch)}/runs/a"


@pytest.fixture
def place(address):
    return open_place(address)


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr(s3, "_PAUSES_S", (0.0, 0.0))


# Names


def test_addresses():
    for address in ("s3://bucket", "s3://bucket/a", "s3://my.bucket-1/a/b c"):
        assert str(open_place(address)) == str(open_place(address + "/")) == address
    assert open_place("s3://bucket").where("log/0") == "s3://bucket/log/0"
    assert open_place("s3://bucket/a").where("log/0") == "s3://bucket/a/log/0"


@pytest.mark.parametrize("address", ["s3://", "s3:///a", "s3://b//a", "s3://b/a/../c", "gs://b/a"])
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match="s3://bucket/prefix"):
        open_place(address)


def test_places_with_a_common_beginning_are_apart(place, address):
    open_place(f"{address}b").replace("config", b"")
    assert not place.exists()
    assert place.top() == []


# One writer wins


@pytest.mark.parametrize("size", [9, 6 * MIB])
def test_a_taken_name_stays_and_large_files_go_in_parts(place, store, monkeypatch, size):
    monkeypatch.setattr(s3, "PART", 5 * MIB)
    monkeypatch.setattr(s3_client, "PART", 5 * MIB)
    content = np.random.default_rng(0).bytes(size)
    with place.create("parts/a", size) as file:
        file.write(content)
    store.seen.clear()
    with pytest.raises(FileExistsError), place.create("parts/a", size) as file:
        file.write(bytes(size))
    assert ("POST" in store.seen) == (size > 5 * MIB)
    assert place.map("parts/a", size).tobytes() == content


def test_a_sound_store_passes_the_start_up_check_and_nothing_is_left(place):
    place.check_put_if_absent()
    assert place.top() == []


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_store_that_ignores_the_condition_is_refused(place, store, monkeypatch, method):
    def ignore(environ):
        if environ["REQUEST_METHOD"] == method:
            environ.pop("HTTP_IF_NONE_MATCH", None)

    monkeypatch.setattr(store, "fault", ignore)
    with pytest.raises(StorageError, match=r"two writers have the same name.*choose another"):
        RunDirectory.create(place, CONFIG, facts())
    assert place.top() == []


def test_a_store_without_the_condition_is_refused(place, store):
    with (
        store.failing("PUT", 99, refusal("501 Not Implemented", "NotImplemented")),
        pytest.raises(StorageError, match=r"conditional writes .*choose another store"),
    ):
        place.check_put_if_absent()


# What the network does


@pytest.mark.parametrize(
    "answer", [busy, reset, refusal("500 Oh", "InternalError")], ids=["busy", "reset", "broken"]
)
def test_passing_errors_are_tried_again(place, store, answer):
    with store.failing("PUT", 1, answer):
        assert place.put_if_absent("a", b"a")
    with store.failing("GET", 1, answer):
        assert place.read("a") == b"a"
    with store.failing("HEAD", 1, answer):
        assert place.map("a", 1).tobytes() == b"a"


@pytest.mark.parametrize("answer", [busy, reset], ids=["busy", "reset"])
def test_a_write_whose_answer_was_lost_is_known_as_ones_own(place, store, answer):
    with store.failing("PUT", 1, store.after(answer)):
        assert place.put_if_absent("a", b"same")
    with store.failing("PUT", 1, answer):
        assert not place.put_if_absent("a", b"same")  # by another call, as by another writer
    with store.failing("PUT", 1, store.after(answer)), place.create("b", 1) as file:
        file.write(b"b")
    assert place.read("b") == b"b"


def test_parts_put_together_without_an_answer_are_ones_own(place, store, monkeypatch):
    monkeypatch.setattr(s3, "PART", 0)

    def lose(environ, start_response):
        answer = store.after(busy) if "uploadId" in environ["QUERY_STRING"] else store.app
        return answer(environ, start_response)

    with store.failing("POST", 2, lose), place.create("a", 1) as file:
        file.write(b"a")
    assert place.read("a") == b"a"


@pytest.mark.usefixtures("no_waiting")
def test_a_conflict_is_asked_again_a_bounded_number_of_times(place, store):
    with store.failing("PUT", 2, conflict):
        assert place.put_if_absent("a", b"a")
    with (
        store.failing("PUT", 99, conflict),
        pytest.raises(StorageError, match="another process writes this run"),
    ):
        place.put_if_absent("b", b"b")


def test_a_store_that_stays_busy_is_an_ordinary_error(place, store, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for method, use in (
        ("PUT", lambda: place.put_if_absent("a", b"")),
        ("HEAD", lambda: place.size("a")),
        ("GET", lambda: place.read("a")),
        ("GET", lambda: place.names("log")),
        ("DELETE", lambda: place.remove("a")),
    ):
        with store.failing(method, 99, busy), pytest.raises(StorageError, match="then resume"):
            use()


def test_what_the_user_can_mend_is_said(store, address, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"none-such/a: cannot list: .*create the bucket"):
        check_claimable("s3://none-such/a")
    with (
        store.failing("GET", 9, refusal("403 Forbidden", "AccessDenied")),
        pytest.raises(StorageError, match="check the credentials"),
    ):
        check_claimable(address)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    for use in (check_claimable, read_state, Checkpoint.open):
        with pytest.raises(StorageError, match=r"s3://.*check the network and the endpoint"):
            use(address)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    with pytest.raises(StorageError, match="Invalid endpoint"):
        is_run(address)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no credentials; check"):
        is_run(address)


def test_without_boto3_the_extra_is_named(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    with pytest.raises(StorageError, match=r"pip install 'biggraph\[s3\]'"):
        is_run(address)


def test_a_full_local_disk_is_an_ordinary_error(place, monkeypatch, tmp_path):
    place.replace("a", b"a")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(StorageError, match=f"{tmp_path}: .* MB to write"):
        place.create("b", 10**18).__enter__()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageError, match=f"{tmp_path}: cannot write: No space"):
        place.map("a", 1)


# Runs


def test_the_place_of_a_run_is_taken(address):
    train(address)
    assert open_place(address).top() == ["config.json", "log/", "parts/", "relations/"]
    with pytest.raises(StorageError, match="holds a run already"):
        RunDirectory.create(address, CONFIG, facts())
    RunDirectory.recreate(address, CONFIG, facts()).close()
    assert open_place(address).top() == ["config.json", "log/"]


def test_the_later_writer_goes_on_and_the_earlier_one_stops(address):
    with RunDirectory.create(address, CONFIG, facts()) as old, RunDirectory.resume(address) as new:
        with pytest.raises(StorageError, match="another process has written this record"):
            old.snapshot("mine")
        new.snapshot("kept")
    assert "kept" in read_state(address).snapshots


def test_a_prefix_that_holds_something_else_is_refused(place, address):
    place.replace("thesis.tex", b"")
    for use in (check_claimable, lambda a: RunDirectory.create(a, CONFIG, facts())):
        with pytest.raises(StorageError, match=r"holds something else \(thesis.tex\)"):
            use(address)
    with pytest.raises(FormatError, match="is not a run"):
        Checkpoint.open(address)
    with pytest.raises(FormatError, match="does not exist"):
        Checkpoint.open(f"{address}/none")
