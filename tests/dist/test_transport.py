"""What both transports promise, and how `[cluster]` chooses one of them."""

import logging
import os
import signal
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from biggraph.dist.messages import Identity
from biggraph.dist.protocol import Connect, decode_request
from biggraph.dist.transport import Handlers, open_line, open_server
from biggraph.errors import ConfigError, InputError, LinkLost, RemoteError
from biggraph.sections import ClusterSection

SECRET = b"a secret of the tests"
TRANSPORTS = ["torch", "flight"]


def echo(sender, incarnation, body):
    return {"from": [sender, incarnation], "body": body}


def double(sender, header, payload):
    return {**header, "from": sender}, payload * 2


@pytest.fixture(params=TRANSPORTS)
def section(request):
    return ClusterSection(transport=request.param)


@pytest.fixture
def serve(section):
    """Return a function that starts a server of this transport; it is closed with the test."""
    servers = []

    def start(call=echo, exchange=double, section=section):
        def handle(sender, incarnation, body):
            if body.get("kind") == "Connect":  # as `Service` does
                request = decode_request(body)
                assert isinstance(request, Connect)
                servers[-1].accept(request.key)
                return {}
            return call(sender, incarnation, body)

        servers.append(open_server(section, Handlers(handle, exchange), SECRET, "j"))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def dial(section):
    """Return a function that makes a line to an endpoint; it is closed with the test."""
    lines = []

    def make(endpoint, sender="w", secret=SECRET, section=section):
        lines.append(open_line(section, endpoint, Identity(secret, "j", sender, 0)))
        return lines[-1]

    yield make
    for line in lines:
        line.close()


def test_requests_are_answered(serve, dial):
    line = dial(serve().endpoint, "w-1")
    body = {"text": "ü\n", "numbers": [1, 2.5, None, True], "deep": {"er": {}}}
    for _ in range(3):
        assert line.call(body, 5.0) == {"from": ["w-1", 0], "body": body}


def test_vectors_of_any_size_come_back(serve, dial):
    line = dial(serve().endpoint)
    for n in (5, 0, 1000, 1, 300_000):
        payload = torch.randn(n)
        header, answer = line.exchange({"n": n}, payload, 5.0)
        assert header == {"n": n, "from": "w"}
        assert torch.equal(answer, payload * 2)
    with pytest.raises(ValueError, match="float32 vector"):
        line.exchange({}, torch.ones(3, dtype=torch.float64), 5.0)


def test_requests_and_vectors_of_several_workers_do_not_mix(serve, dial):
    server = serve()
    lines = [dial(server.endpoint, f"w{i}") for i in range(3)]

    def call(i):
        return [lines[i].call({"n": n}, 10.0)["body"]["n"] for n in range(20)]

    def exchange(i):
        return [lines[i].exchange({"n": n}, torch.ones(9), 10.0)[0]["n"] for n in range(10)]

    with ThreadPoolExecutor(6) as pool:
        calls, exchanges = pool.map(call, range(3)), pool.map(exchange, range(3))
        assert list(calls) == [list(range(20))] * 3
        assert list(exchanges) == [list(range(10))] * 3


def test_requests_come_one_at_a_time_exchanges_side_by_side(serve, dial):
    inside, both = [], threading.Barrier(2, timeout=10.0)

    def handle(*request):
        inside.append(1)
        count = len(inside)
        threading.Event().wait(0.05)
        inside.pop()
        return {"inside": count}

    server = serve(handle, lambda *exchange: ({"n": both.wait()}, exchange[2]))
    lines = [dial(server.endpoint, f"w{i}") for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda line: line.call({}, 10.0)["inside"], lines)) == [1, 1]
        met = pool.map(lambda line: line.exchange({}, torch.ones(1), 10.0)[0]["n"], lines)
        assert sorted(met) == [0, 1]


@pytest.mark.parametrize(
    ("error", "named"),
    [(KeyError("gone"), "KeyError: 'gone'"), (InputError("no such thing"), ": no such thing")],
)
def test_what_a_handler_raises_reaches_the_caller(serve, dial, caplog, error, named):
    def fail(sender, second, third):
        body = second if isinstance(second, dict) else third
        if body.get("fail"):
            raise error
        return (body, third) if body is second else body

    line = dial(serve(fail, fail).endpoint)
    with caplog.at_level(logging.CRITICAL):
        with pytest.raises(RemoteError, match=named):
            line.call({"fail": 1}, 5.0)
        with pytest.raises(RemoteError, match=named):
            line.exchange({"fail": 1}, torch.ones(1), 5.0)
    assert line.call({}, 5.0) == {}
    assert line.exchange({}, torch.ones(1), 5.0)[1].tolist() == [1.0]


def test_what_cannot_be_sent_is_an_error(serve, dial, caplog):
    line = dial(serve(lambda *request: {"a": "x" * request[2]["n"]}).endpoint)
    with pytest.raises(ValueError, match="limit"):
        line.call({"a": "x" * 2**23}, 5.0)
    with pytest.raises(ValueError, match="limit"):
        line.exchange({"a": "x" * 2**14}, torch.ones(1), 5.0)
    with caplog.at_level(logging.CRITICAL), pytest.raises(RemoteError, match="ValueError"):
        line.call({"n": 2**23}, 5.0)
    assert line.call({"n": 1}, 5.0) == {"a": "x"}


def test_another_secret_or_term_gets_no_answer(serve, dial):
    server = serve()
    stranger = dial(server.endpoint, "s", b"another secret, as long")
    late = dial(server.endpoint.model_copy(update={"term": "earlier"}), "l")
    for line in (stranger, late):
        with pytest.raises(LinkLost):
            line.call({}, 0.3)
    assert dial(server.endpoint).call({"a": 1}, 5.0)["body"] == {"a": 1}
    assert server.refused == {"signature": 1, "term": 1}


def test_more_may_be_refused_while_somebody_counts(serve, section):
    class Growing(Counter):
        def items(self):
            for number, item in enumerate(super().items()):
                self[f"reason {number}"] = 1  # by another thread
                yield item

    server = serve()
    vectors = server._vectors if section.transport == "flight" else server._pairs
    vectors.refused = Growing(stale=2)
    assert server.refused == {"stale": 2}


def test_a_late_reply_is_not_taken_for_another(serve, dial):
    asked, go_on = threading.Event(), threading.Event()

    def slow_once(sender, incarnation, body):
        if body["n"] == 0:
            asked.set()
            go_on.wait(10.0)
        return body

    line = dial(serve(slow_once).endpoint)
    with pytest.raises(LinkLost, match=r"no answer within 0.3 s|[Tt]ime"):
        line.call({"n": 0}, 0.3)
    assert asked.wait(5.0)
    threading.Timer(0.1, go_on.set).start()
    assert [line.call({"n": n}, 5.0) for n in (1, 2)] == [{"n": 1}, {"n": 2}]


def test_after_close_every_call_is_lost(serve, dial):
    server = serve()
    line = dial(server.endpoint)
    line.call({}, 5.0)
    server.close()
    for _ in range(2):
        with pytest.raises(LinkLost, match=f"127.0.0.1:{server.endpoint.port}: "):
            line.call({}, 2.0)
    line.close()
    with pytest.raises(LinkLost, match="closed"):
        line.call({}, 2.0)


def test_a_port_that_is_taken_or_an_address_of_another_machine_is_refused(section):
    def open_at(**keys):
        open_server(section.model_copy(update=keys), Handlers(echo, double), SECRET, "j")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cluster.port = {port}: cannot listen.*in use"):
            open_at(port=port)
    with pytest.raises(ConfigError, match=r"cluster.bind = '192.0.2.1'"):
        open_at(bind="192.0.2.1")


@pytest.mark.multiprocess
def test_a_frozen_server_costs_the_deadline_and_no_more(section, processes, dial):
    pid, endpoint = processes.offer(section.transport)
    line = dial(endpoint)
    line.call({}, 5.0)
    if section.transport == "flight":  # the pairs' own tests say so for torch
        line.exchange({}, torch.ones(1), 5.0)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LinkLost, match=r"no answer within 0.3 s|[Tt]ime"):
        line.call({"n": 1}, 0.3)
    if section.transport == "flight":
        with pytest.raises(LinkLost, match=r"no answer within 0.3 s"):
            line.exchange({}, torch.ones(2**22), 0.3)
    os.kill(pid, signal.SIGCONT)
    assert line.call({"n": 2}, 10.0) == {"n": 2}


@pytest.mark.multiprocess
def test_a_line_outlives_a_server_that_comes_back_on_its_port(section, processes, dial):
    pid, endpoint = processes.offer(section.transport)
    line = dial(endpoint)
    line.call({}, 5.0)
    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        with pytest.raises(LinkLost):
            line.call({}, 30.0)  # returns at once: the connection is gone
    _, again = processes.offer(section.transport, endpoint.port)
    assert dial(again, "v").call({"n": 1}, 5.0) == {"n": 1}
    with pytest.raises(LinkLost):  # it is another term
        line.call({}, 0.3)


@pytest.mark.multiprocess
def test_nothing_listens_beyond_this_machine(section, processes, dial):
    from psutil import CONN_LISTEN, Process

    pid, endpoint = processes.offer(section.transport)
    dial(endpoint).call({}, 5.0)
    found = Process(pid).net_connections("tcp")
    addresses = {entry.laddr.ip for entry in found if entry.status == CONN_LISTEN}
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert endpoint.port in {entry.laddr.port for entry in found if entry.status == CONN_LISTEN}


# Choosing


def test_coordinator_and_workers_have_to_speak_the_same(serve, section):
    other = "flight" if section.transport == "torch" else "torch"
    with pytest.raises(ConfigError, match=f'transport = "{other}".*speaks "{section.transport}"'):
        open_line(ClusterSection(transport=other), serve().endpoint, Identity(SECRET, "j", "w", 0))


@pytest.mark.parametrize("key", ["tls_cert", "tls_key", "tls_ca"])
def test_tls_without_flight_is_refused(key, tmp_path):
    with pytest.raises(ConfigError, match=rf"cluster.{key}.*encrypts nothing"):
        open_server(
            ClusterSection(**{key: tmp_path / "x.pem"}), Handlers(echo, double), SECRET, "j"
        )
