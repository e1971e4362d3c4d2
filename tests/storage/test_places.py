"""What every kind of place promises: a folder, a bucket, partition servers."""

import threading

import pytest

from biggraph.errors import FormatError
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.opening import open_place
from biggraph.storage.run import RunDirectory, read_state
from tests.storage.doubles import CONFIG, SCHEMA, facts, train
from tests.storage.far_servers import SECRET, Servers
from tests.storage.s3_server import make_bucket, serve


@pytest.fixture(scope="module")
def store():
    with serve() as store:
        yield store


@pytest.fixture(params=["folder", "bucket", "server", "servers"])
def address(request, tmp_path, monkeypatch):
    if request.param == "folder":
        yield str(tmp_path / "run")
    elif request.param == "bucket":
        yield f"s3://{make_bucket(request.getfixturevalue('store'), monkeypatch)}/runs/a"
    else:
        monkeypatch.setenv("BIGGRAPH_SECRET", SECRET.decode())
        alone = request.param == "server"
        servers = Servers(tmp_path, 1 if alone else 3)
        yield servers.address(options="" if alone else "?replicas=2&wait=5")
        servers.close()


@pytest.fixture
def place(address):
    place = open_place(address)
    for name in ("", "log"):
        place.make_folder(name)
    return place


def test_what_was_written_is_found(place, address):
    assert place.put_if_absent("log/0", b"zero")
    for partition in range(4):
        with place.create(f"parts/user/{partition}/a", 9) as file:
            file.write(b"embedding")
    place.replace("config", b"first")
    place.replace("config", b"{}")
    assert place.exists()
    assert place.top() == ["config", "log/", "parts/"]
    assert place.names("parts") == [f"parts/user/{partition}/a" for partition in range(4)]
    assert place.names("none") == place.names("config") == []
    assert [place.size(name) for name in ("log/0", "log", "log/1")] == [4, None, None]
    assert place.read("config") == b"{}"
    assert place.where("config") == f"{address.partition('?')[0]}/config"
    mapped = place.map("parts/user/1/a", 9)
    for partition in range(4):
        with place.open(f"parts/user/{partition}/a", 9) as file:
            assert file.read() == b"embedding"
        for _ in range(2):
            place.remove(f"parts/user/{partition}/a")
    assert place.names("parts") == []
    place.remove_folder("parts")
    assert place.top() == ["config", "log/"]
    assert mapped.tobytes() == b"embedding"
    assert not mapped.flags.writeable


def test_missing_and_wrong_files(place):
    place.replace("config", b"{}")
    for use in (lambda n: place.open(n, 2).__enter__(), lambda n: place.map(n, 2), place.read):
        with pytest.raises(FileNotFoundError) as caught:
            use("none")
        assert caught.value.filename == place.where("none")
    for use in (lambda: place.open("config", 3).__enter__(), lambda: place.map("config", 3)):
        with pytest.raises(FormatError, match="config: expected a file of 3 bytes, found 2"):
            use()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_names_that_lead_outside_are_refused(place, name):
    uses = [
        lambda: place.create(name, 1).__enter__(), lambda: place.open(name, 1).__enter__(),
        lambda: place.put_if_absent(name, b""), lambda: place.replace(name, b""),
        lambda: place.map(name, 1), lambda: place.read(name), lambda: place.size(name),
        lambda: place.remove(name),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(FormatError, match="outside the run directory"):
            use()


def test_a_taken_name_stays(place):
    for content in (b"first", b"other"):
        if content == b"other":
            with pytest.raises(FileExistsError), place.create("parts/user/1/a", 5) as file:
                file.write(content)
        else:
            with place.create("parts/user/1/a", 5) as file:
                file.write(content)
        assert place.put_if_absent("log/0", content) == (content == b"first")
    assert place.read("parts/user/1/a") == place.read("log/0") == b"first"
    assert place.names("parts") == ["parts/user/1/a"]


def test_a_block_that_fails_publishes_nothing(place):
    def write():
        with place.create("parts/user/1/a", 1) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert place.names("parts") == []


def test_of_two_writers_one_wins_each_name_even_with_equal_content(place, address):
    won, start = [], threading.Barrier(2)

    def write(own):
        for number in range(15):
            start.wait()
            if own.put_if_absent(f"log/{number}", b"same"):
                won.append(number)

    threads = [threading.Thread(target=write, args=(open_place(address),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(15))


def contents(path):
    checkpoint = Checkpoint.open(path, "latest")
    assert checkpoint.verify() == []
    rows = {key: checkpoint.rows(key, slice(None)).tobytes() for key in SCHEMA.partition_keys()}
    return rows, {name: array.tobytes() for name, array in checkpoint.relations().items()}


def test_a_run_ends_as_in_a_folder_and_leaves_no_other_file(address, tmp_path):
    train(address)
    train(address)  # resumes, and finds nothing to do
    train(tmp_path / "other")
    assert contents(address) == contents(tmp_path / "other")
    place = open_place(address)
    named = {ref.path for ref in read_state(address).files()}
    assert {n for f in ("parts", "relations") for n in place.names(f)} == named
    RunDirectory.recreate(address, CONFIG, facts()).close()
    assert read_state(address).epoch == 0
    assert not {n for f in ("parts", "relations") for n in place.names(f)}
