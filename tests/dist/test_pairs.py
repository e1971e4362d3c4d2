import logging
import os
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch

from biggraph.dist import frames
from biggraph.dist.endpoint import Endpoint
from biggraph.dist.messages import Identity, Refused
from biggraph.dist.pairs import PairClient, PairLimits, PairServer
from biggraph.dist.store import connect_store, host_store
from biggraph.errors import InputError, LinkLost, RemoteError

SECRET = b"a secret of the tests"
LIMITS = PairLimits(floats=1000, join_s=5.0, idle_s=20.0, exchange_s=5.0)


@pytest.fixture(scope="module")
def endpoint():
    store = host_store("127.0.0.1", 0)
    yield Endpoint(term="t", host="127.0.0.1", port=store.port, job="j")
    del store


@pytest.fixture
def meet(endpoint):
    """Return a function that makes a server and a client that has joined it."""
    made = []

    def start(handler, *, secret=SECRET, term="t", limits=LIMITS) -> tuple[PairServer, PairClient]:
        key = f"{os.urandom(4).hex()}"
        server = PairServer(handler, SECRET, endpoint, limits)
        server.accept(key)
        theirs = endpoint.model_copy(update={"term": term})
        client = PairClient(Identity(secret, "j", "w", 0), theirs, key)
        client.join(5.0)
        made.append((server, client))
        return server, client

    yield start
    for server, client in made:
        client.close()
        server.close()
        assert server.keys() == []


def double(sender, header, payload):
    return {**header, "from": sender}, payload * 2


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_vectors_of_any_size_come_back(meet):
    _, client = meet(double)
    for n in (5, 0, 1000, 1, 999):
        payload = torch.randn(n)
        header, answer = client.exchange({"n": n}, payload, 5.0)
        assert header == {"n": n, "from": "w"}
        assert torch.equal(answer, payload * 2)


def test_an_answer_may_have_another_size(meet):
    _, client = meet(lambda sender, header, payload: ({}, torch.ones(7)))
    for n in (0, 3):
        assert torch.equal(client.exchange({}, torch.ones(n), 5.0)[1], torch.ones(7))


def test_the_memory_of_an_answer_is_used_again(meet):
    _, client = meet(double)
    _, first = client.exchange({}, torch.ones(4), 5.0)
    _, second = client.exchange({}, torch.full((3,), 5.0), 5.0)
    assert first.tolist() == [10.0, 10.0, 10.0, 2.0]
    assert second.data_ptr() == first.data_ptr()


def test_the_store_forgets_how_the_two_met(meet, endpoint):
    _, client = meet(double)
    client.exchange({}, torch.ones(1), 5.0)
    store = connect_store((endpoint.host, endpoint.port), 5.0)
    assert store.num_keys() == 0


@pytest.mark.parametrize(
    ("error", "named"), [(ValueError("ü" * 3000), "ValueError"), (InputError("no"), ": no$")]
)
def test_what_the_handler_raises_reaches_the_client_and_the_pair_goes_on(
    meet, caplog, error, named
):
    def fail(sender, header, payload):
        if header:
            raise error
        return {}, payload

    _, client = meet(fail)
    with caplog.at_level(logging.CRITICAL), pytest.raises(RemoteError, match=named):
        client.exchange({"fail": 1}, torch.ones(2), 5.0)
    assert client.exchange({}, torch.ones(2), 5.0)[1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("answer", [torch.ones(2, 2), torch.ones(3, dtype=torch.float64)])
def test_an_answer_that_cannot_be_sent_is_an_error_of_the_handler(meet, caplog, answer):
    _, client = meet(lambda sender, header, payload: ({}, answer))
    with caplog.at_level(logging.CRITICAL), pytest.raises(RemoteError, match="float32 vector"):
        client.exchange({}, torch.ones(2), 5.0)


@pytest.mark.parametrize(
    ("header", "payload", "named"),
    [
        ({}, torch.ones(2, 2), "float32 vector"),
        ({}, torch.ones(2, dtype=torch.int32), "int32"),
        ({}, torch.ones(4)[::2], "contiguous"),
        ({"a": "x" * frames.FRAME_BYTES}, torch.ones(1), "limit"),
        ({"a": {1}}, torch.ones(1), "JSON"),
    ],
)
def test_what_cannot_be_sent_is_a_defect_of_the_caller(meet, header, payload, named):
    _, client = meet(double)
    with pytest.raises(ValueError, match=named):
        client.exchange(header, payload, 5.0)
    assert client.exchange({}, torch.ones(1), 5.0)[1].tolist() == [2.0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"secret": b"another secret, as long"}, "signature"), ({"term": "earlier"}, "term")],
)
def test_strangers_are_refused_and_their_pair_is_closed(meet, options, reason):
    server, client = meet(double, **options)
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(3), 5.0)
    wait_until(lambda: server.keys() == [])
    assert server.refused == {reason: 1}
    with pytest.raises(LinkLost, match="closed"):
        client.exchange({}, torch.ones(3), 5.0)


def test_a_payload_beyond_the_limit_is_refused_before_memory_is_taken(meet):
    server, client = meet(double)
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(1001), 5.0)
    wait_until(lambda: server.refused == {"oversized": 1})


def test_a_changed_payload_closes_the_pair(meet, monkeypatch):
    server, client = meet(double)
    announce = frames.announce

    def forge(key, header, payload):
        return announce(key, header, payload + 1)

    monkeypatch.setattr(frames, "announce", forge)
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(3), 5.0)
    wait_until(lambda: server.refused == {"digest": 1})


def test_a_message_of_another_pair_is_refused():
    body = frames.announce("one", {}, torch.ones(1))
    assert frames.announced(body, "one", 1).floats == 1
    with pytest.raises(Refused, match="kind"):
        frames.announced(body, "two", 1)


@pytest.mark.parametrize(
    "changes",
    [{"floats": True}, {"floats": "1"}, {"header": []}, {"digest": None}, {"floats": 1.0}],
)
def test_a_message_of_wrong_types_is_refused(changes):
    with pytest.raises(Refused, match="types"):
        frames.announced({**frames.announce("k", {}, torch.ones(1)), **changes}, "k", 1)


def test_a_negative_length_is_refused():
    with pytest.raises(Refused, match="oversized"):
        frames.announced({**frames.announce("k", {}, torch.ones(1)), "floats": -1}, "k", 1)


def test_a_repeated_exchange_is_refused(meet, monkeypatch):
    server, client = meet(double)
    client.exchange({}, torch.ones(3), 5.0)
    monkeypatch.setattr(client._identity, "next_sequence", lambda: 0)
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(3), 5.0)
    wait_until(lambda: server.refused == {"stale": 1})


def test_asking_twice_for_a_pair_makes_one(endpoint):
    server = PairServer(double, SECRET, endpoint, LIMITS)
    server.accept("twice")
    server.accept("twice")
    client = PairClient(Identity(SECRET, "j", "w", 0), endpoint, "twice")
    client.join(5.0)
    server.accept("twice")
    assert client.exchange({}, torch.ones(1), 5.0)[1].tolist() == [2.0]
    client.close()
    server.close()
    server.accept("later")
    assert server.keys() == []


def test_a_server_may_be_closed_while_it_accepts(endpoint, monkeypatch):
    server = PairServer(double, SECRET, endpoint, PairLimits(join_s=0.3))
    genuine, closing = threading.Thread.start, []

    def start(thread):
        if thread.name == "pair late":
            closing.append(pool.submit(server.close))
            wait(closing, 0.2)
        genuine(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with ThreadPoolExecutor(1) as pool:
        server.accept("late")
    closing[0].result()
    assert server.keys() == []


def test_a_client_that_nobody_accepts_gives_up(endpoint):
    client = PairClient(Identity(SECRET, "j", "w", 0), endpoint, "alone")
    with pytest.raises(LinkLost):
        client.join(0.3)
    with pytest.raises(LinkLost, match="not joined"):
        client.exchange({}, torch.ones(1), 1.0)


def test_a_server_whose_client_never_comes_gives_up(endpoint):
    server = PairServer(double, SECRET, endpoint, PairLimits(join_s=0.3))
    server.accept("nobody")
    wait_until(lambda: server.keys() == [])


def test_a_silent_pair_is_given_up(meet):
    server, client = meet(double, limits=PairLimits(join_s=5.0, idle_s=0.3))
    wait_until(lambda: server.keys() == [])
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(1), 5.0)


def test_a_slow_answer_costs_the_deadline_and_the_pair(meet):
    go_on = threading.Event()
    server, client = meet(lambda sender, header, payload: ({"w": go_on.wait(10.0)}, payload))
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(1), 0.2)
    go_on.set()
    wait_until(lambda: server.keys() == [])


def test_pairs_do_not_wait_for_each_other(endpoint):
    both = threading.Barrier(2, timeout=10.0)
    server = PairServer(lambda *exchange: ({"n": both.wait()}, exchange[2]), SECRET, endpoint)
    clients = [PairClient(Identity(SECRET, "j", w, 0), endpoint, w) for w in "vw"]

    def work(client):
        server.accept(client._key)
        client.join(5.0)
        header, _ = client.exchange({}, torch.ones(1), 5.0)
        client.close()
        return header["n"]

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(work, clients)) == [0, 1]
    server.close()


@pytest.mark.multiprocess
def test_a_killed_server_is_noticed_at_once(processes, connect):
    pid, endpoint = processes.coordinator()
    client = join(connect(endpoint), endpoint, "w")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(LinkLost):
        client.exchange({}, torch.ones(1), 300.0)


@pytest.mark.multiprocess
def test_a_frozen_server_costs_the_deadline(processes, connect):
    pid, endpoint = processes.coordinator()
    link = connect(endpoint)
    client = join(link, endpoint, "w")
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LinkLost, match=r"[Tt]imed out"):
        client.exchange({}, torch.ones(2**22), 0.3)
    os.kill(pid, signal.SIGCONT)
    again = join(link, endpoint, "w again")
    assert again.exchange({}, torch.ones(1), 5.0)[1].tolist() == [2.0]


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_lost_worker_ends_its_own_pair_alone(processes, connect, name):
    """A killed one at once; a frozen one when its next exchange is overdue."""
    _, endpoint = processes.coordinator()
    victim = processes.worker(endpoint, "victim")
    link = connect(endpoint)
    client = join(link, endpoint, "w")
    assert link.call({}, 5.0)["pairs"] == ["victim", "w"]
    os.kill(victim, getattr(signal, name))
    left = ["w"] if name == "SIGKILL" else ["victim", "w"]
    wait_until(lambda: link.call({}, 5.0)["pairs"] == left)
    payload = torch.arange(2.0**20)
    assert torch.equal(client.exchange({}, payload, 10.0)[1], payload * 2)
    processes.worker(endpoint, "newcomer")
    assert link.call({}, 5.0)["pairs"] == sorted([*left, "newcomer"])


@pytest.mark.multiprocess
def test_pairs_listen_on_this_machine_alone(processes, connect):
    from psutil import CONN_LISTEN, Process

    pid, endpoint = processes.coordinator()
    worker = processes.worker(endpoint, "w")
    for process in (pid, worker):
        found = Process(process).net_connections("tcp")
        addresses = {entry.laddr.ip for entry in found if entry.status == CONN_LISTEN}
        assert addresses == {"127.0.0.1"}


@pytest.mark.multiprocess
def test_a_process_that_closes_nothing_still_ends_as_it_meant_to(processes):
    assert processes.leaver() == 3


@pytest.mark.multiprocess
def test_a_pair_that_breaks_while_its_server_ends_does_not_abort_it(processes, connect):
    server, endpoint = processes.coordinator()
    worker = processes.worker(endpoint, "victim")
    os.kill(worker, signal.SIGSTOP)
    connect(endpoint).call({"end": worker}, 5.0)
    assert processes.reap(server) == 3


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_vector_of_hundreds_of_megabytes(processes, connect):
    _, endpoint = processes.coordinator()
    client = join(connect(endpoint), endpoint, "w")
    payload = torch.arange(75_000_000, dtype=torch.float32)
    assert torch.equal(client.exchange({}, payload, 60.0)[1], payload * 2)


def join(link, endpoint, key) -> PairClient:
    link.call({"accept": key}, 5.0)
    client = PairClient(Identity(SECRET, "j", key, 0), endpoint, key)
    client.join(5.0)
    return client


def test_garbage_on_the_port_of_a_pair_does_no_harm(meet):
    """gloo listens on a port of its own for each pair."""
    from psutil import CONN_LISTEN, Process

    _, client = meet(double)
    found = Process().net_connections("tcp")
    ports = [entry.laddr.port for entry in found if entry.status == CONN_LISTEN]
    assert len(ports) >= 2
    for port in ports:
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(8), random.Random(0).randbytes(4096)):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(data)
    assert client.exchange({}, torch.ones(1), 5.0)[1].tolist() == [2.0]
