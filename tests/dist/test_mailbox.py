import logging
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from biggraph.dist import mailbox, store
from biggraph.dist.endpoint import Endpoint
from biggraph.dist.mailbox import MailboxLink, MailboxServer
from biggraph.dist.messages import Identity
from biggraph.dist.store import connect_store
from biggraph.errors import ConfigError, InputError, LinkLost, RemoteError
from tests.dist.loopback import LoopbackLink

SECRET = b"a secret of the tests"


@pytest.fixture
def serve():
    """Return a function that starts a server in this process; it is closed with the test."""
    servers = []

    def start(handler, **options) -> MailboxServer:
        options = {"secret": SECRET, "job": "j", "term": "t", "bind": "127.0.0.1", **options}
        servers.append(MailboxServer.open(handler, **{"port": 0, **options}))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def echo(sender, incarnation, body):
    return {"from": [sender, incarnation], "body": body}


def listening(pid: int) -> set[str]:
    """Return the local addresses, in hexadecimal, that a process listens on."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as file:
            rows = [line.split() for line in file.readlines()[1:]]
        found |= {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}
    return found


def only_loopback(pid: int) -> bool:
    addresses = {address.partition(":")[0] for address in listening(pid)}
    return addresses == {"0100007F"}


def test_a_request_is_answered(serve, connect):
    link = connect(serve(echo).endpoint, "w-1")
    body = {"text": "ü\n", "numbers": [1, 2.5, None, True], "deep": {"er": {}}}
    for _ in range(3):
        assert link.call(body, 5.0) == {"from": ["w-1", 0], "body": body}


def test_several_links_at_once_each_get_their_own_replies(serve, connect):
    server = serve(echo)
    links = [connect(server.endpoint, f"w{i}") for i in range(4)]

    def work(i):
        return [links[i % 4].call({"i": i, "n": n}, 10.0) for n in range(20)]

    with ThreadPoolExecutor(8) as pool:  # two threads share each link
        for i, replies in enumerate(pool.map(work, range(8))):
            expected = [{"i": i, "n": n} for n in range(20)]
            assert [reply["body"] for reply in replies] == expected
    assert server.handled == 160


@pytest.mark.parametrize(
    ("error", "named"),
    [(KeyError("gone"), "KeyError: 'gone'"), (InputError("no such thing"), ": no such thing")],
)
def test_what_the_handler_raises_reaches_the_caller(serve, connect, caplog, error, named):
    def fail(sender, incarnation, body):
        if body:
            raise error
        return {}

    server = serve(fail)
    link = connect(server.endpoint)
    with caplog.at_level(logging.CRITICAL), pytest.raises(RemoteError, match=named):
        link.call({"fail": 1}, 5.0)
    assert link.call({}, 5.0) == {}
    assert (server.handled, server.failed) == (2, 1)


@pytest.mark.parametrize("reply", [{"a": {1}}, {"a": "x" * 2**23}])
def test_a_reply_that_cannot_be_sent_is_an_error_of_the_handler(serve, connect, caplog, reply):
    link = connect(serve(lambda *request: reply if request[2] else {}).endpoint)
    with caplog.at_level(logging.CRITICAL), pytest.raises(RemoteError, match="ValueError"):
        link.call({"a": 1}, 5.0)
    assert link.call({}, 5.0) == {}


def test_a_request_that_cannot_be_sent_is_a_defect_of_the_caller(serve, connect):
    link = connect(serve(echo).endpoint)
    with pytest.raises(ValueError, match="limit"):
        link.call({"a": "x" * 2**23}, 5.0)
    assert link.call({}, 5.0)["body"] == {}


def test_another_secret_job_or_term_gets_no_answer(serve, connect):
    server = serve(echo)
    stranger = connect(server.endpoint, "s", b"another secret, as long")
    late = connect(server.endpoint.model_copy(update={"term": "earlier"}), "l")
    for link in (stranger, late):
        with pytest.raises(LinkLost, match=r"no answer|timeout"):
            link.call({}, 0.3)
    assert connect(server.endpoint).call({"a": 1}, 5.0)["body"] == {"a": 1}
    assert server.refused == {"signature": 1, "term": 1}


def test_a_late_reply_is_not_taken_for_another(serve, connect):
    """The first reply comes while the second call waits, and later ones find no trace of it."""
    asked, go_on = threading.Event(), threading.Event()

    def slow_once(sender, incarnation, body):
        if body["n"] == 0:
            asked.set()
            go_on.wait(10.0)
        return body

    server = serve(slow_once)
    link = connect(server.endpoint)
    with pytest.raises(LinkLost):
        link.call({"n": 0}, 0.3)
    assert asked.is_set()
    threading.Timer(0.2, go_on.set).start()
    assert [link.call({"n": n}, 5.0) for n in (1, 2)] == [{"n": 1}, {"n": 2}]
    client = connect_store((server.endpoint.host, server.port), 5.0)
    queues = [mailbox._reply_queue("w", 0, channel) for channel in range(5)]
    assert [client.queue_len(queue) for queue in queues] == [0] * 5


def test_forged_and_old_replies_are_ignored(serve, connect):
    identity = Identity(SECRET, "j", "w", 0)
    forged = [b"", b"garbage", identity.seal("reply", "t", 0, {"reply": {"n": "old"}})]

    def forge(sender, incarnation, body):
        client = connect_store((server.endpoint.host, server.port), 5.0)
        for data in forged if body["n"] == 1 else []:
            client.queue_push(mailbox._reply_queue("w", 0, 0), data)
        return body

    server = serve(forge)
    link = connect(server.endpoint)
    assert [link.call({"n": n}, 5.0) for n in range(3)] == [{"n": n} for n in range(3)]
    assert link.ignored == 3


def test_clients_of_the_store_are_replaced_now_and_then(serve, connect, monkeypatch):
    monkeypatch.setattr(mailbox, "_USES_OF_A_CLIENT", 3)
    link = connect(serve(echo).endpoint)
    assert [link.call({"n": n}, 5.0)["body"]["n"] for n in range(20)] == list(range(20))


def test_a_waiting_call_gives_up_when_its_own_time_is_over(serve, connect):
    go_on = threading.Event()
    server = serve(lambda *request: {"waited": go_on.wait(10.0)})
    link = connect(server.endpoint)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(link.call, {}, 5.0)
        while not link._lock.locked():
            time.sleep(0.01)
        with pytest.raises(LinkLost, match="another call"):
            link.call({}, 0.1)
        go_on.set()
        assert first.result() == {"waited": True}


def test_nothing_listens_after_close(serve, connect):
    server = MailboxServer.open(
        echo, secret=SECRET, job="j", term="t", bind="127.0.0.1", port=0
    )  # fmt: skip
    link = connect(server.endpoint)
    link.call({}, 5.0)
    server.close()
    for _ in range(2):
        with pytest.raises(LinkLost, match=f"127.0.0.1:{server.port}: "):
            link.call({}, 2.0)
    link.close()
    with pytest.raises(LinkLost, match="closed"):
        link.call({}, 2.0)


def test_a_port_that_is_taken_or_an_address_of_another_machine_is_refused():
    options = {"secret": SECRET, "job": "j", "term": "t"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cluster.port = {port}: cannot listen.*in use"):
            MailboxServer.open(echo, bind="127.0.0.1", port=port, **options)
    with pytest.raises(ConfigError, match=r"cluster.bind = '192.0.2.1'"):
        MailboxServer.open(echo, bind="192.0.2.1", port=0, **options)
    with pytest.raises(ConfigError, match=r"cluster.bind = 'no such host'"):
        MailboxServer.open(echo, bind="no such host", port=0, **options)
    with pytest.raises(ConfigError, match=r"cluster.bind = 'a..b'.*label empty"):
        MailboxServer.open(echo, bind="a..b", port=0, **options)


@pytest.mark.multiprocess
def test_by_default_nothing_listens_beyond_this_machine(processes, connect):
    pid, endpoint = processes.coordinator()
    connect(endpoint).call({}, 5.0)
    assert only_loopback(pid)
    assert f"0100007F:{endpoint.port:04X}" in listening(pid)


@pytest.mark.multiprocess
def test_a_killed_server_is_noticed_and_another_on_another_port_serves(processes, connect):
    pid, endpoint = processes.coordinator("first")
    link = connect(endpoint)
    link.call({}, 5.0)
    os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(LinkLost):
            link.call({}, 30.0)  # returns at once: the connection is gone
    _, again = processes.coordinator("second")
    assert connect(again).call({"echo": 1}, 5.0)["echo"] == 1


@pytest.mark.multiprocess
def test_the_same_link_goes_on_with_a_server_on_the_same_port(processes, connect):
    pid, endpoint = processes.coordinator()
    link = connect(endpoint)
    link.call({}, 5.0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LinkLost):
        link.call({}, 5.0)
    processes.coordinator(port=endpoint.port)
    assert link.call({"echo": 1}, 5.0)["echo"] == 1


@pytest.mark.multiprocess
def test_a_frozen_server_costs_each_call_its_deadline_and_nothing_else(processes, connect):
    pid, endpoint = processes.coordinator()
    link = connect(endpoint)
    link.call({}, 5.0)
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    os.kill(pid, signal.SIGSTOP)
    for n in range(4):
        with pytest.raises(LinkLost):
            link.call({"echo": n}, 0.2)
    assert threading.active_count() <= threads
    assert len(os.listdir("/dev/fd")) <= descriptors
    os.kill(pid, signal.SIGCONT)
    assert [link.call({"echo": n}, 5.0)["echo"] for n in (7, 8)] == [7, 8]


@pytest.mark.multiprocess
def test_a_server_that_is_frozen_from_the_start(processes, connect):
    pid, endpoint = processes.coordinator()
    os.kill(pid, signal.SIGSTOP)
    link = connect(endpoint)
    with pytest.raises(LinkLost, match="no answer within"):
        link.call({}, 0.2)
    os.kill(pid, signal.SIGCONT)
    assert link.call({"echo": 1}, 5.0)["echo"] == 1


@pytest.mark.multiprocess
def test_a_killed_worker_does_not_disturb_the_others(processes, connect):
    _, endpoint = processes.coordinator()
    victim = processes.worker(endpoint, "victim")
    link = connect(endpoint)
    before = link.call({"echo": 1}, 5.0)["handled"]
    os.kill(victim, signal.SIGKILL)
    assert link.call({"echo": 2}, 5.0)["handled"] == before + 1


def test_abandoning_a_line_leaves_other_connections_alone(serve, connect):
    server = serve(echo)
    other = connect(server.endpoint, "other")
    other.call({}, 5.0)
    line = store.StoreLine((server.endpoint.host, server.port))
    with pytest.raises(LinkLost):
        line.run(lambda client, deadline: client.queue_pop("nothing"), 0.2)
    line.abandon()
    uses = other._uses
    other.call({}, 5.0)
    assert other._uses == uses + 1


def test_nothing_is_looked_up_before_the_first_call():
    endpoint = Endpoint(term="t", host="no such host", port=1, job="j")
    link = MailboxLink(Identity(SECRET, "j", "w", 0), endpoint)
    with pytest.raises(LinkLost, match="no such host:1"):
        link.call({}, 5.0)


@pytest.mark.parametrize(
    ("fault", "handled", "lost"),
    [("", [0, 1], []), ("lose request", [1], [0]), ("lose reply", [0, 1], [0]),
     ("repeat", [0, 0, 1], []), ("delay", [0, 1], [0])],
)  # fmt: skip
def test_the_double_can_lose_repeat_and_delay(fault, handled, lost):
    seen = []

    def handler(sender, incarnation, body):
        seen.append(body["n"])
        return {"n": body["n"]}

    link = LoopbackLink(handler, "w", 1, lambda number: fault if number == 0 else "")
    for n in (0, 1):
        if n in lost:
            with pytest.raises(LinkLost):
                link.call({"n": n}, 1.0)
        else:
            assert link.call({"n": n}, 1.0) == {"n": n}
    assert seen == handled
    link.close()
    with pytest.raises(LinkLost):
        link.call({}, 1.0)


def test_the_double_copies_what_passes():
    link = LoopbackLink(lambda sender, incarnation, body: body, "w", 1)
    body = {"a": [1]}
    reply = link.call(body, 1.0)
    reply["a"].append(2)
    assert body == {"a": [1]}
    with pytest.raises(TypeError):
        link.call({"a": {1}}, 1.0)
