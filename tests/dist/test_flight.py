"""Flight alone: certificates, tokens, and what strangers send."""

import random
import socket

import pyarrow as pa
import pytest
import torch
from pyarrow import flight

from biggraph.dist import flight_mailbox
from biggraph.dist.endpoint import Endpoint
from biggraph.dist.flight_server import read_tls
from biggraph.dist.messages import Identity
from biggraph.dist.partition_server import PartitionServer
from biggraph.dist.transport import Handlers, open_line, open_server
from biggraph.errors import ConfigError, LinkLost, StorageError
from biggraph.sections import ClusterSection
from biggraph.storage.flight import Caller, token
from biggraph.storage.opening import open_place

SECRET = b"a secret of the tests"
TOKEN = token(SECRET, flight_mailbox.purpose("j"))


@pytest.fixture
def serve():
    servers = []

    def start(exchange=lambda sender, header, payload: (header, payload * 2), **keys):
        section = ClusterSection(transport="flight", **keys)
        handlers = Handlers(lambda sender, incarnation, body: body, exchange)
        servers.append(open_server(section, handlers, SECRET, "j"))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def line_to(endpoint: Endpoint, secret=SECRET, **keys):
    section = ClusterSection(transport="flight", **keys)
    return open_line(section, endpoint, Identity(secret, "j", "w", 0))


# TLS


def test_workers_trust_the_certificate_that_the_coordinator_published(serve, pem):
    server = serve(tls_cert=pem["a.pem"], tls_key=pem["a.key"])
    assert server.endpoint.certificate == pem["a.pem"].read_text()
    line = line_to(server.endpoint)
    assert line.call({"n": 1}, 5.0) == {"n": 1}
    assert line.exchange({}, torch.ones(9), 5.0)[1].tolist() == [2.0] * 9


def test_a_key_in_the_file_of_the_certificate_is_not_published(serve, pem, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"# caf\xe9\n" + pem["a.key"].read_bytes() + pem["a.pem"].read_bytes())
    server = serve(tls_cert=both, tls_key=both)
    assert server.endpoint.certificate == pem["a.pem"].read_text()
    assert line_to(server.endpoint).call({"n": 1}, 5.0) == {"n": 1}
    with pytest.raises(ConfigError, match=r"cluster.tls_cert = .*a.key: no certificate in it"):
        serve(tls_cert=pem["a.key"], tls_key=pem["a.key"])


@pytest.mark.parametrize("trusted", ["ca.pem", "c.pem"])
def test_workers_may_trust_who_signed_it_or_itself(serve, pem, trusted):
    server = serve(tls_cert=pem["c.pem"], tls_key=pem["c.key"])
    unpublished = server.endpoint.model_copy(update={"certificate": None})
    assert line_to(unpublished, tls_ca=pem[trusted]).call({"n": 1}, 5.0) == {"n": 1}


def test_a_server_that_cannot_be_trusted_is_not_talked_to(serve, pem):
    seen = []
    server = serve(lambda *exchange: seen.append(exchange), tls_cert=pem["a.pem"],
                   tls_key=pem["a.key"])  # fmt: skip
    with pytest.raises(LinkLost, match=r"[Hh]andshake|certificate"):
        line_to(server.endpoint, tls_ca=pem["b.pem"]).call({}, 5.0)
    elsewhere = server.endpoint.model_copy(update={"host": "localhost"})  # not in the certificate
    with pytest.raises(LinkLost):
        line_to(elsewhere).call({}, 5.0)
    plain = server.endpoint.model_copy(update={"certificate": None})
    with pytest.raises(LinkLost):
        line_to(plain).call({}, 5.0)
    without = serve().endpoint.model_copy(update={"certificate": pem["a.pem"].read_text()})
    with pytest.raises(LinkLost):
        line_to(without).call({}, 5.0)
    assert seen == []


def test_beyond_loopback_nothing_goes_without_tls(pem):
    with pytest.raises(ConfigError, match=r"cluster.bind = '0.0.0.0'.*cluster.tls_cert"):
        open_server(
            ClusterSection(transport="flight", bind="0.0.0.0"), Handlers(None, None), SECRET, "j"
        )
    endpoint = Endpoint(term="t", host="192.0.2.1", port=9, job="j", transport="flight")
    with pytest.raises(ConfigError, match=r"192.0.2.1: .*no certificate; .*cluster.tls_ca"):
        line_to(endpoint)
    line_to(endpoint, tls_ca=pem["a.pem"])


def test_incomplete_missing_and_foreign_files_are_named(serve, pem, tmp_path):
    with pytest.raises(ConfigError, match="give both or neither"):
        serve(tls_cert=pem["a.pem"])
    with pytest.raises(ConfigError, match=r"cluster.tls_key = .*none: cannot read it"):
        serve(tls_cert=pem["a.pem"], tls_key=tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ConfigError, match=r"cluster.tls_cert = .*text: no PEM"):
        serve(tls_cert=tmp_path / "text", tls_key=pem["a.key"])
    with pytest.raises(ConfigError, match="do not belong together"):
        serve(tls_cert=pem["a.pem"], tls_key=pem["b.key"])
    with pytest.raises(ConfigError, match=r"cluster.tls_ca = .*text: no PEM"):
        line_to(serve().endpoint, tls_ca=tmp_path / "text")


def test_partition_servers_show_certificates_too(pem, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGGRAPH_SECRET", SECRET.decode())
    servers = [PartitionServer(tmp_path / name) for name in "ab"]
    with pytest.raises(ConfigError, match=r"--bind = '0.0.0.0'.*--tls-cert and --tls-key"):
        servers[0].open(SECRET, "0.0.0.0", 0, None)
    ports = [
        server.open(SECRET, "127.0.0.1", 0, read_tls(pem[f"{n}.pem"], pem[f"{n}.key"], "--"))
        for server, n in zip(servers, "ab", strict=True)
    ]
    both = tmp_path / "both.pem"
    both.write_bytes(pem["a.pem"].read_bytes() + pem["b.pem"].read_bytes())
    address = f"flight://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/run?wait=0s&tls_ca="
    place = open_place(address + str(both))
    place.check_put_if_absent()
    with place.create("parts/user/1/a", 1) as file:
        file.write(b"a")
    assert place.map("parts/user/1/a", 1).tobytes() == b"a"
    with pytest.raises(StorageError, match="has not answered"):
        open_place(address + str(pem["a.pem"])).read("parts/user/1/a")
    for server in servers:
        server.close()


# Strangers


def test_replays_are_refused_and_counted(serve):
    server = serve()
    identity = Identity(SECRET, "j", "w", 0)
    address = (server.endpoint.host, server.endpoint.port)
    caller, term = Caller(address, TOKEN, None), server.endpoint.term
    request = identity.seal("request", term, 3, {"body": {}})
    empty = flight_mailbox.frames.announce("vector", {}, torch.empty(0))
    exchange = flight_mailbox.join_vector(identity.seal("exchange", term, 3, empty), torch.empty(0))
    for action, body in (("call", request), ("exchange", exchange)):
        caller.call(action, body, 5.0)
        with pytest.raises(LinkLost, match="refused"):
            caller.call(action, body, 5.0)
        with pytest.raises(LinkLost, match="refused"):  # one kind cannot stand for another
            caller.call({"call": "exchange", "exchange": "call"}[action], body, 5.0)
    assert server.refused["stale"] == 2
    assert server.refused.total() == 4


def test_a_vector_that_was_changed_on_the_way_is_refused(serve):
    server = serve()
    identity = Identity(SECRET, "j", "w", 0)
    caller = Caller((server.endpoint.host, server.endpoint.port), TOKEN, None)
    vector = torch.arange(4.0)
    for sequence, sent in enumerate((torch.arange(1.0, 5.0), torch.arange(3.0), torch.empty(0))):
        body = flight_mailbox.frames.announce("vector", {}, vector)
        message = identity.seal("exchange", server.endpoint.term, sequence, body)
        with pytest.raises(LinkLost, match="refused: digest"):
            caller.call("exchange", flight_mailbox.join_vector(message, sent), 5.0)
    assert server.refused == {"digest": 3}


def test_a_forged_answer_is_refused(serve, monkeypatch):
    line = line_to(serve().endpoint)
    genuine = Caller.call
    forged = iter([b"", b"garbage", Identity(SECRET, "j", "w", 0).seal("reply", "t", 0, {})])
    monkeypatch.setattr(Caller, "call", lambda *call: pa.py_buffer(next(forged)))
    for _ in range(3):
        with pytest.raises(LinkLost, match="refused an answer"):
            line.call({}, 5.0)
    assert line.ignored == 3
    monkeypatch.setattr(Caller, "call", genuine)
    assert line.call({"n": 1}, 5.0) == {"n": 1}


def test_garbage_does_no_harm_and_is_counted(serve):
    server = serve()
    host, port = server.endpoint.host, server.endpoint.port
    source = random.Random(0)
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", *(source.randbytes(n) for n in (1, 64, 9999))):
        with socket.create_connection((host, port)) as stranger:
            stranger.sendall(data)
    for shown in ("", "0" * 64, token(SECRET, "coordinator of another job")):
        with pytest.raises(LinkLost, match="wrong token"):
            Caller((host, port), shown, None).call("call", b"", 5.0)
    assert server.refused == {"signature": 3}
    caller = Caller((host, port), TOKEN, None)
    bodies = [b"", b"\xff" * 8, b"\x00\x20\x00\x00" + bytes(9000), *map(source.randbytes, (7, 999))]
    for action in ("call", "exchange"):
        for body in bodies:
            with pytest.raises(LinkLost, match="refused"):
                caller.call(action, body, 5.0)
    assert server.refused.total() == 3 + 2 * len(bodies)
    with pytest.raises(LinkLost, match="no such action"):
        caller.call("shutdown", b"", 5.0)
    assert line_to(server.endpoint).call({"n": 1}, 5.0) == {"n": 1}


def test_other_methods_of_flight_are_closed(serve):
    server = serve()
    client = flight.FlightClient(f"grpc://127.0.0.1:{server.endpoint.port}")
    headers = [(b"x-biggraph-token", TOKEN.encode())]
    for options in (flight.FlightCallOptions(), flight.FlightCallOptions(headers=headers)):
        with pytest.raises((pa.ArrowException, NotImplementedError)):
            list(client.list_flights(options=options))
        with pytest.raises((pa.ArrowException, NotImplementedError)):
            client.do_get(flight.Ticket(b"x"), options).read_all()
    client.close()
