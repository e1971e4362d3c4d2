"""Partition servers alone: where files lie, what happens when servers go, and what they refuse."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from biggraph.dist import uploads
from biggraph.dist.uploads import BrokenOff, Uploads
from biggraph.errors import ConfigError, FormatError, InputError, LinkLost, StorageError
from biggraph.storage import far_folder
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.far_folder import PURPOSE, FarFolder
from biggraph.storage.flight import Caller, join, token
from biggraph.storage.folder import Folder
from biggraph.storage.opening import open_place
from biggraph.storage.run import RunDirectory, check_claimable
from tests.storage.doubles import CONFIG, facts, train
from tests.storage.far_servers import SECRET, Servers

TOKEN = token(SECRET, PURPOSE)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts so many servers."""
    monkeypatch.setenv("BIGGRAPH_SECRET", SECRET.decode())
    made = []

    def start(count):
        made.append(Servers(tmp_path, count))
        return made[-1]

    yield start
    for servers in made:
        servers.close()


def write(place, name, content=b"content"):
    with place.create(name, len(content)) as file:
        file.write(content)


# Addresses


def test_addresses():
    for address in ("flight://a:1/run", "flight://a:1,b:2/runs/a", "flight://[::1]:7,h:8/r"):
        place = open_place(f"{address}/?wait=1min")
        assert str(place) == address
        assert place.where("log/0") == f"{address}/log/0"


@pytest.mark.parametrize(
    "address",
    ["flight://", "flight://a:1", "flight://a:1/", "flight://a/run", "flight://a:1,/run",
     "flight://a:1//run", "flight://a:1/../run", "flight:/a:1/run", "http://a:1/run",
     "flight://a:1/run?replicas=2", "flight://a:1/run?replicas=x", "flight://a:1,a:1/run",
     "flight://a:0/run", "flight://a:65536/run", "flight://a:1/run?replica=1",
     "flight://a:1/run?wait=1s&wait=2s", "flight://a:1/run?wait=x"],
)  # fmt: skip
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match="flight"):
        open_place(address)


def test_secret_and_certificate_have_to_be_there(tmp_path, monkeypatch):
    monkeypatch.delenv("BIGGRAPH_SECRET", raising=False)
    with pytest.raises(ConfigError, match=r"set BIGGRAPH_SECRET, or add \?secret_file"):
        open_place("flight://127.0.0.1:9/run").exists()
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    with pytest.raises(ConfigError, match=r"192.0.2.1 is another machine; add \?tls_ca"):
        open_place(f"flight://127.0.0.1:9,192.0.2.1:9/run?secret_file={secret}").exists()


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_host_that_cannot_be_is_another_machine(monkeypatch, host):
    monkeypatch.setenv("BIGGRAPH_SECRET", SECRET.decode())
    with pytest.raises(ConfigError, match=rf"{host} is another machine; add \?tls_ca"):
        open_place(f"flight://{host}:9/run").exists()


# Where files lie


def test_partitions_go_round_and_the_rest_to_the_first_server(start):
    servers = start(3)
    place = open_place(servers.address())
    for partition in range(4):
        write(place, f"parts/user/{partition}/a")
    write(place, "relations/f1.h5")
    place.put_if_absent("log/0", b"")
    place.replace("config.json", b"")
    assert servers.files(0) == {
        "parts/user/0/a", "parts/user/3/a", "relations/f1.h5", "log/0", "config.json"
    }  # fmt: skip
    assert servers.files(1) == {"parts/user/1/a"}
    assert servers.files(2) == {"parts/user/2/a"}


def test_replicas_of_data_files_lie_on_the_next_servers(start):
    servers = start(3)
    place = open_place(servers.address(options="?replicas=2"))
    write(place, "parts/user/2/a")
    write(place, "relations/f1.h5")
    place.put_if_absent("log/0", b"")
    assert servers.files(0) == {"parts/user/2/a", "relations/f1.h5", "log/0"}
    assert servers.files(1) == {"relations/f1.h5"}
    assert servers.files(2) == {"parts/user/2/a"}
    place.remove("parts/user/2/a")
    assert servers.files(2) == set()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 4096])
def test_files_go_block_after_block(start, monkeypatch, size):
    monkeypatch.setattr(far_folder, "BLOCK", 1000)
    monkeypatch.setattr("biggraph.storage.far.BLOCK", 1000)
    monkeypatch.setattr("biggraph.dist.partition_server.BLOCK", 1000)
    place = open_place(start(1).address())
    content = np.random.default_rng(0).bytes(size)
    write(place, "parts/user/0/a", content)
    with place.open("parts/user/0/a", size) as file:
        assert file.read() == content


# Servers that go


def test_reads_go_on_with_a_replica(start):
    servers = start(2)
    place = open_place(servers.address(options="?replicas=2&wait=0.5s"))
    for partition in range(2):
        write(place, f"parts/user/{partition}/a")
    (servers.folders[0] / "runs/a/parts/user/0/a").unlink()  # lost by the first one
    assert place.map("parts/user/0/a", 7).tobytes() == b"content"
    servers.stop(1)
    assert place.map("parts/user/1/a", 7).tobytes() == b"content"
    assert place.names("parts") == ["parts/user/1/a"]
    with pytest.raises(StorageError, match=r"has not answered for 0.5 s.*partition-server"):
        place.size("parts/user/9/a")  # the other server may have it
    with pytest.raises(StorageError, match="has not answered"):
        write(place, "parts/user/0/b")
    servers.start(1)
    write(place, "parts/user/0/c")
    assert "parts/user/0/c" in servers.files(1)


def test_a_copy_of_another_size_is_passed_over_for_a_replica(start):
    servers = start(2)
    place = open_place(servers.address(options="?replicas=2"))
    write(place, "parts/user/0/a")
    copies = [folder / "runs/a/parts/user/0/a" for folder in servers.folders]
    copies[0].write_bytes(b"cut")
    with place.open("parts/user/0/a", 7) as file:
        assert file.read() == b"content"
    copies[1].unlink()
    with pytest.raises(FormatError, match="expected a file of 7 bytes, found 3"):
        place.map("parts/user/0/a", 7)


def test_a_server_that_did_not_answer_is_asked_last_for_a_while(start, monkeypatch):
    place = open_place(start(2).address(options="?replicas=2"))
    write(place, "parts/user/0/a", bytes(30))
    monkeypatch.setattr("biggraph.storage.far.BLOCK", 10)
    monkeypatch.setattr("biggraph.storage.far_folder.BLOCK", 10)
    monkeypatch.setattr("biggraph.dist.partition_server.BLOCK", 10)
    genuine, asked = Caller.call, []

    def call(caller, *rest):
        asked.append(str(caller))
        if str(caller) == str(place._folders[0]):
            raise LinkLost("frozen")
        return genuine(caller, *rest)

    monkeypatch.setattr(Caller, "call", call)
    assert place.map("parts/user/0/a", 30).tobytes() == bytes(30)
    assert asked.count(str(place._folders[0])) == 1
    monkeypatch.setattr("biggraph.storage.far._AVOID_S", 0.0)
    place._avoided[0] = 0.0
    place.map("parts/user/0/a", 30)
    assert asked.count(str(place._folders[0])) == 1 + 4  # for size and each block


def test_without_replicas_a_lost_server_is_never_taken_for_missing_files(start):
    servers = start(2)
    place = open_place(servers.address(options="?wait=0.3s"))
    place.replace("config.json", b"")
    write(place, "parts/user/1/a")
    servers.stop(1)
    for use in (
        lambda: place.names("parts"), place.top, lambda: place.size("parts/user/1/a"),
        lambda: place.read("parts/user/1/a"), lambda: place.remove("parts/user/1/a"),
    ):  # fmt: skip
        with pytest.raises(StorageError, match="has not answered"):
            use()
    assert place.names("log") == []
    assert place.exists()
    servers.stop(0)
    for use in (place.exists, lambda: place.put_if_absent("log/0", b"")):
        with pytest.raises(StorageError, match="has not answered"):
            use()


def test_a_server_that_comes_back_is_waited_for(start):
    servers = start(1)
    place = open_place(servers.address(options="?wait=20s"))
    write(place, "parts/user/0/a")
    servers.stop(0)
    timer = threading.Timer(0.5, servers.start, (0,))
    timer.start()
    assert place.read("parts/user/0/a") == b"content"
    timer.join()


def test_a_run_goes_on_when_a_server_was_killed_and_came_back(start, tmp_path):
    servers = start(2)
    address = servers.address(options="?replicas=2&wait=20s")
    with RunDirectory.create(address, CONFIG, facts()):
        pass
    servers.stop(1)
    timer = threading.Timer(1.0, servers.start, (1,))
    timer.start()
    train(address)
    timer.join()
    servers.stop(1)
    assert Checkpoint.open(address, "latest").verify() == []


class Losing:
    """A caller whose answers are lost after the server has done what was asked."""

    def __init__(self, monkeypatch, action, times):
        genuine, self.left = Caller.call, times

        def call(caller, name, body, timeout_s):
            answer = genuine(caller, name, body, timeout_s)
            if name == action and self.left:
                self.left -= 1
                raise LinkLost("lost")
            return answer

        monkeypatch.setattr(Caller, "call", call)


@pytest.mark.parametrize("action", ["put_if_absent", "begin", "write", "publish"])
def test_a_request_whose_answer_was_lost_is_done_once(start, monkeypatch, action):
    place = open_place(start(1).address())
    losing = Losing(monkeypatch, action, 1)
    assert place.put_if_absent("log/0", b"same")
    assert not place.put_if_absent("log/0", b"same")
    write(place, "parts/user/0/a")
    assert losing.left == 0
    assert place.read("parts/user/0/a") == b"content"
    with pytest.raises(FileExistsError):
        write(place, "parts/user/0/a")


class Dying:
    """A server that does what is asked and is killed before it answers, once."""

    def __init__(self, monkeypatch, servers, action):
        genuine, self.died = Caller.call, False

        def call(caller, name, body, timeout_s):
            answer = genuine(caller, name, body, timeout_s)
            if name == action and not self.died:
                self.died = True
                servers.stop(0)
                servers.start(0)
                raise LinkLost("lost")
            return answer

        monkeypatch.setattr(Caller, "call", call)


@pytest.mark.parametrize("content", [b"", b"\xff" * 25])
def test_what_a_server_did_before_it_was_killed_is_known_as_ones_own(start, monkeypatch, content):
    monkeypatch.setattr(far_folder, "BLOCK", 10)
    monkeypatch.setattr("biggraph.dist.partition_server.BLOCK", 10)
    servers = start(1)
    place = open_place(servers.address())
    for action, use in (
        ("put_if_absent", lambda: place.put_if_absent("log/0", content)),
        ("publish", lambda: write(place, "parts/user/0/a", content) is None),
    ):
        dying = Dying(monkeypatch, servers, action)
        assert use()
        assert dying.died
    assert not place.put_if_absent("log/0", content)
    with pytest.raises(FileExistsError, match="exists already"):
        write(place, "parts/user/0/a", content)


def test_what_another_writer_did_while_answers_were_lost_is_not_ones_own(start, monkeypatch):
    servers = start(1)
    place, root = open_place(servers.address()), servers.folders[0] / "runs/a"
    genuine, lost = Caller.call, []

    def call(caller, name, *rest):
        if name not in lost:
            lost.append(name)
            if name == "put_if_absent":
                Folder(root).make_folder("log")
                assert Folder(root).put_if_absent("log/0", b"other")
            if name == "publish":
                write(Folder(root), "parts/user/0/a", b"another")
            raise LinkLost("lost")
        return genuine(caller, name, *rest)

    monkeypatch.setattr(Caller, "call", call)
    assert not place.put_if_absent("log/0", b"mine!")
    with pytest.raises(FileExistsError, match="exists already"):
        write(place, "parts/user/0/a", b"content")
    assert (root / "log/0").read_bytes() == b"other"
    assert (root / "parts/user/0/a").read_bytes() == b"another"


def test_an_upload_that_the_server_forgot_begins_again(start, monkeypatch):
    servers = start(1)
    place = open_place(servers.address())
    genuine, restarted = FarFolder._call, []

    def call(folder, action, *rest):
        if action == "publish" and not restarted:
            restarted.append(True)
            servers.stop(0)
            assert servers.files(0) == set()  # what had come is gone
            servers.start(0)
        return genuine(folder, action, *rest)

    monkeypatch.setattr(FarFolder, "_call", call)
    write(place, "parts/user/0/a")
    assert servers.files(0) == {"parts/user/0/a"}
    assert place.read("parts/user/0/a") == b"content"


def test_a_long_upload_has_time_again_whenever_it_gets_on(start, monkeypatch):
    place, now, left = open_place(start(1).address()), [0.0], {5: 2, 90: 2}

    def sleep(seconds):
        now[0] += seconds

    genuine = Caller.call

    def call(caller, name, *rest):
        now[0] += 5.0  # the whole takes far longer than a server is waited for
        block = int(now[0] // 5)
        if name == "write" and (lost := next((b for b in left if b <= block and left[b]), None)):
            left[lost] -= 1
            raise LinkLost("lost")
        return genuine(caller, name, *rest)

    monkeypatch.setattr(far_folder, "BLOCK", 10)
    monkeypatch.setattr(
        "biggraph.storage.far.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    )
    monkeypatch.setattr(Caller, "call", call)
    write(place, "parts/user/0/a", bytes(1000))
    assert left == {5: 0, 90: 0}
    left[1] = 99
    with pytest.raises(StorageError, match="has not answered for 60 s"):
        write(place, "parts/user/0/b", bytes(1000))


# Uploads


def test_uploads_that_stand_still_are_given_up(tmp_path, monkeypatch):
    now = [0.0]
    found, place = Uploads(lambda: now[0]), Folder(tmp_path / "run")
    place.make_folder("")
    found.begin("a", place, "parts/a", 4)
    assert found.write("a", 0, memoryview(b"ab")) == 2
    assert found.write("a", 0, memoryview(b"ab")) == 2  # repeated
    for position, data, error in ((3, b"x", BrokenOff), (2, b"abc", StorageError)):
        with pytest.raises(error):
            found.write("a", position, memoryview(data))
    found.begin("b", place, "parts/b", 4)
    now[0] = 2 * uploads._IDLE_S
    monkeypatch.setattr(uploads, "_MOST", 1)
    found.begin("c", place, "parts/c", 4)
    with pytest.raises(BrokenOff):
        found.write("b", 0, memoryview(b"ab"))
    with pytest.raises(StorageError, match="too many"):
        found.begin("d", place, "parts/d", 4)
    with pytest.raises(BrokenOff):
        found.publish("c", 4)
    found.close()
    assert place.names("parts") == []


def test_the_last_block_may_come_again_like_every_other(tmp_path):
    found, place = Uploads(), Folder(tmp_path / "run")
    place.make_folder("")
    found.begin("a", place, "parts/a", 4)
    for _ in range(2):
        assert found.write("a", 0, memoryview(b"abcd")) == 4
    found.publish("a", 4)
    assert place.read("parts/a") == b"abcd"


# Strangers


def ask(servers, action, shown=TOKEN, data=b"", **fields):
    caller = Caller(("127.0.0.1", servers.ports[0]), shown, None)
    return caller.call(action, join(json.dumps(fields).encode(), data), 5.0)


ACTIONS = ["size", "read", "read_block", "put_if_absent", "replace", "remove", "begin", "names",
           "remove_folder"]  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_what_leads_outside_is_refused_by_the_server_and_counted(start, tmp_path, action):
    servers = start(1)
    server, root = servers.running[0], servers.folders[0]
    (tmp_path / "outside").write_text("private")
    (root / "run").mkdir()
    (root / "run" / "link").symlink_to(tmp_path)
    (root / "other").symlink_to(tmp_path)
    paths = [
        ("run", "../../outside"), ("run", "/etc/passwd"), ("run", str(tmp_path / "outside")),
        ("run", "link/outside"), ("run", "a\0b"), ("..", "outside"), ("../..", "x"), ("/", "etc"),
        ("", "outside"), (".", "outside"), ("other", "outside"), (str(tmp_path), "outside"),
    ]  # fmt: skip
    for run, name in paths:
        with pytest.raises(LinkLost, match="refused: leads outside"):
            ask(servers, action, run=run, name=name)
    assert server.refused == {"leads outside": len(paths)}
    assert (tmp_path / "outside").read_text() == "private"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "server-0"]


def test_other_garbage_is_refused_and_counted(start, monkeypatch):
    servers = start(1)
    server = servers.running[0]
    caller = Caller(("127.0.0.1", servers.ports[0]), TOKEN, None)
    for body in (b"", b"\xff" * 9, join(b"{", b""), join(b"[]", b""), join(b'{"run":1}', b"")):
        with pytest.raises(LinkLost, match="refused: not a request"):
            caller.call("read", body, 5.0)
    for number in (-1, 2**63):
        with pytest.raises(LinkLost, match="refused: not a request"):
            ask(servers, "read_block", run="run", name="a", position=number)
    for shown in ("", token(b"another secret, as long", PURPOSE), token(SECRET, "else")):
        with pytest.raises(LinkLost, match="wrong token"):
            ask(servers, "exists", shown, run="run")
    monkeypatch.setattr("biggraph.dist.partition_server.SMALL", 10)
    with pytest.raises(LinkLost, match="refused: oversized"):
        ask(servers, "replace", data=b"12345678901", run="run", name="a")
    assert server.refused == {"not a request": 7, "token": 3, "oversized": 1}
    assert servers.files(0, ".") == set()


def test_what_the_servers_disk_refuses_is_an_ordinary_error(start):
    servers = start(1)
    place = open_place(servers.address())
    with pytest.raises(StorageError, match="MB free"):
        open_place(servers.address())._folders[0]._ask(
            "begin", {"name": "parts/a", "token": "t", "size": 10**18}
        )
    place.replace("file", b"")
    with pytest.raises(StorageError, match="is a file"):
        place.put_if_absent("file/below", b"")


def test_a_folder_that_holds_something_else_is_refused(start):
    servers = start(1)
    open_place(servers.address()).replace("thesis.tex", b"")
    with pytest.raises(StorageError, match=r"holds something else \(thesis.tex\)"):
        check_claimable(servers.address())
    with pytest.raises(FormatError, match="does not exist"):
        Checkpoint.open(servers.address("none"))
