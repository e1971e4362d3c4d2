"""Whatever arrives at a coordinator's port, it goes on serving, and counts what it refused.

What is sent is drawn from a seed; `BIGGRAPH_FUZZ_SEED` and `BIGGRAPH_FUZZ_ROUNDS` change it.
"""

import os
import random
import socket
import struct
from collections import Counter

import pytest

from biggraph.dist.mailbox import REQUESTS, _reply_queue
from biggraph.dist.messages import MAX_BYTES, Identity
from biggraph.dist.store import connect_store

SEED = int(os.environ.get("BIGGRAPH_FUZZ_SEED", "0"))
ROUNDS = int(os.environ.get("BIGGRAPH_FUZZ_ROUNDS", "40"))
SECRET = b"a secret of the tests"

# Of the protocol of the store: the greeting of a client, and the numbers of its commands.
GREETING = b"\0" + struct.pack("<I", 0x3C85F7CE)
SET, WAIT, QUEUE_PUSH, QUEUE_POP = 1, 6, 14, 15
COMMANDS = range(22)

pytestmark = pytest.mark.multiprocess


def text(data: bytes) -> bytes:
    """Return a string as the store's protocol has it."""
    return struct.pack("<Q", len(data)) + data


class Coordinator:
    """A coordinator's process under attack, and a link of a worker that must not notice."""

    def __init__(self, processes, connect) -> None:
        _, self.endpoint = processes.coordinator()
        self._link = connect(self.endpoint, "honest")
        self._calls = 0
        self.serves()

    def serves(self) -> dict:
        """Return the answer to an honest call, which must come."""
        reply = self._link.call({"echo": self._calls}, 10.0)
        assert reply["echo"] == self._calls
        assert reply["handled"] == self._calls
        self._calls += 1
        return reply

    def send(self, data: bytes) -> None:
        """Send bytes to its port and leave."""
        with socket.create_connection((self.endpoint.host, self.endpoint.port), 5.0) as stranger:
            stranger.settimeout(0.002)
            try:
                stranger.sendall(data)
                stranger.recv(4096)
            except OSError:  # it hung up, or has nothing to say
                return

    def push(self, message: bytes) -> None:
        """Put a message where requests belong."""
        if not hasattr(self, "_store"):
            self._store = connect_store((self.endpoint.host, self.endpoint.port), 5.0)
        self._store.queue_push(REQUESTS, message)


@pytest.fixture
def coordinator(processes, connect):
    return Coordinator(processes, connect)


def command(rng: random.Random) -> bytes:
    """Return a command of the store with arguments that may or may not fit."""
    keys = [b"/" + REQUESTS.encode(), b"/" + _reply_queue("honest", 0, 0).encode(), b"/k", b""]
    sizes = [0, 1, 2, 2**17, 2**20, 2**33, 2**63, 2**64 - 1]
    drawn = [
        rng.choice([text(rng.choice(keys)), struct.pack("<Q", rng.choice(sizes)), rng.randbytes(7)])
        for _ in range(rng.randrange(4))
    ]
    return bytes([rng.choice(COMMANDS)]) + b"".join(drawn)


def test_garbage_on_the_port(coordinator):
    rng = random.Random(SEED)
    for _ in range(ROUNDS):
        for _ in range(10):
            start = rng.choice([b"", GREETING, b"GET / HTTP/1.1\r\n"])
            coordinator.send(start + rng.randbytes(rng.randrange(3000)))
        coordinator.serves()


def test_commands_of_the_store_that_make_no_sense(coordinator):
    rng = random.Random(SEED + 1)
    for _ in range(ROUNDS):
        for _ in range(10):
            commands = [command(rng) for _ in range(rng.randrange(1, 6))]
            coordinator.send(GREETING + b"".join(commands))
        coordinator.serves()


def test_a_plain_value_where_requests_belong_does_not_keep_the_server_busy(coordinator):
    """Such a value ends every wait for a request at once."""
    key = text(b"/" + REQUESTS.encode())
    coordinator.send(GREETING + bytes([SET]) + key + text(b"x"))
    coordinator.serves()
    store = connect_store((coordinator.endpoint.host, coordinator.endpoint.port), 5.0)
    assert store.num_keys() == 0


def test_garbage_in_the_queue_of_requests(coordinator):
    rng = random.Random(SEED + 2)
    for _ in range(ROUNDS):
        for _ in range(5):
            coordinator.push(rng.randbytes(rng.choice([0, 1, 31, 32, 33, 500])))
        coordinator.serves()
    assert coordinator.serves()["refused"] == {"signature": 5 * ROUNDS}


def mutate(rng: random.Random, message: bytes) -> bytes:
    """Return a message that differs in one way."""
    place = rng.randrange(len(message))
    changed = bytes([message[place] ^ rng.randrange(1, 256)])
    return rng.choice(
        [
            message[:place] + changed + message[place + 1 :],
            message[:place],
            message + rng.randbytes(rng.randrange(1, 50)),
            message[:place] + rng.randbytes(3) + message[place:],
            rng.randbytes(32) + message[32:],
        ]
    )


def test_mutated_replayed_and_foreign_messages_are_counted(coordinator):
    rng = random.Random(SEED + 3)
    endpoint, expected = coordinator.endpoint, Counter()
    identity = Identity(SECRET, "j", "rogue", 0)
    body = {"channel": 0, "body": {}}
    replayed = identity.seal("request", endpoint.term, 2**40, {})  # signed, but asks nothing
    coordinator.push(replayed)
    expected["types"] += 1
    foreign = {
        "term": identity.seal("request", "earlier", 2**41, body),
        "kind": identity.seal("reply", endpoint.term, 2**41, body),
        "job": Identity(SECRET, "i", "rogue", 0).seal("request", endpoint.term, 2**41, body),
        "signature": Identity(b"another secret .", "j", "rogue", 0).seal(
            "request", endpoint.term, 2**41, body
        ),
        "stale": replayed,
        "oversized": bytes(MAX_BYTES + 1),
    }
    for round_ in range(ROUNDS):
        for _ in range(5):
            fresh = identity.seal("request", endpoint.term, 2**41 + round_, body)
            coordinator.push(mutate(rng, fresh))
            expected["signature"] += 1
        reason = rng.choice([*foreign])
        coordinator.push(foreign[reason])
        expected[reason] += 1
        coordinator.serves()
    assert coordinator.serves()["refused"] == expected


@pytest.mark.parametrize(
    "contents",
    [{}, {"channel": 0}, {"channel": "0", "body": {}}, {"channel": True, "body": {}},
     {"channel": 0, "body": []}],
)  # fmt: skip
def test_signed_requests_of_wrong_types_are_counted(coordinator, contents):
    identity = Identity(SECRET, "j", "rogue", 0)
    coordinator.push(identity.seal("request", coordinator.endpoint.term, 0, contents))
    assert coordinator.serves()["refused"] == {"types": 1}


def test_connections_that_say_nothing_or_half_of_something(coordinator):
    address = (coordinator.endpoint.host, coordinator.endpoint.port)
    strangers = [socket.create_connection(address) for _ in range(100)]
    for n, stranger in enumerate(strangers):
        half = GREETING + bytes([QUEUE_PUSH]) + text(b"/" + REQUESTS.encode()) + text(bytes(50))
        stranger.sendall(half[: n % len(half)])
    for _ in range(5):
        coordinator.serves()
    for stranger in strangers:
        stranger.close()
    coordinator.serves()
