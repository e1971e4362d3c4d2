"""The wires of a simulation: a `dist.transport` that loses, repeats and delays.

As on the real wires, requests of one start of a worker that come out of order are dropped, replies
find only the call that waits for them, and a handler's error travels back as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biggraph.dist.endpoint import Endpoint
from biggraph.dist.messages import Identity
from biggraph.dist.transport import Handlers
from biggraph.errors import BigGraphError, LinkLost, RemoteError
from tests.dist.simulation.doubles import Future, Lock
from tests.dist.simulation.world import Process, Thread, world

Handle = Callable[[str, int, Any], Any]


class Network:
    """Everything between the processes; faults are set from outside."""

    def __init__(self) -> None:
        self.servers: dict[str, Waiter] = {}
        self.drop = self.twice = self.late = 0.0
        self.cuts: set[tuple[str, str]] = set()  # (process, "in" or "out")
        self.sent = self.lost = 0

    def send(self, sender: str, receiver: str, deliver: Callable[[], None]) -> None:
        """Deliver a message some time, perhaps twice, perhaps never."""
        here = world()
        self.sent += 1
        cut = (sender, "out") in self.cuts or (receiver, "in") in self.cuts
        if cut or here.rng.random() < self.drop:
            self.lost += 1
            return
        for _ in range(2 if here.rng.random() < self.twice else 1):
            delay = here.rng.expovariate(100)
            if here.rng.random() < self.late:
                delay += here.rng.expovariate(0.5)
            here.at(delay, deliver)

    def ask(self, term: str, identity: Identity, contents: Any, timeout_s: float) -> Any:
        """Return the answer to a request; raises LinkLost, or RemoteError from the handler."""
        here, answer = world(), Future()
        me, sequence = here.process.name, identity.next_sequence()
        server = self.servers.get(term)
        if server is None:
            here.sleep(min(timeout_s, 0.1))
            raise LinkLost("nobody listens there")

        def reply(value: Any) -> None:
            if not answer.done():
                answer.settle(value)

        request = (identity.sender, identity.incarnation, sequence, me, contents, reply)
        self.send(me, server.process.name, lambda: server.take(request))
        try:
            kind, value = answer.result(timeout_s)
        except TimeoutError:
            raise LinkLost("no answer came in time") from None
        if kind == "error":
            raise RemoteError(f"the coordinator could not handle a request: {value}")
        return value


class Waiter:
    """Answers requests one at a time in a thread of its process."""

    def __init__(self, network: Network, name: str, handle: Handle) -> None:
        self.process: Process = world().process
        self._network, self._handle = network, handle
        self._requests: list[tuple[Any, ...]] = []
        self._last: dict[tuple[str, int], int] = {}
        self._idle: Thread | None = None
        self._closed = False
        network.servers[name] = self
        world().spawn(self.process, self._loop, name)

    def take(self, request: tuple[Any, ...]) -> None:
        if not self.process.dead and not self._closed:
            self._requests.append(request)
            if self._idle is not None:
                world().wake(self._idle)

    def close(self) -> None:
        self._closed = True
        if self._idle is not None:
            world().wake(self._idle)

    def _loop(self) -> None:
        here = world()
        while not self._closed:
            if not self._requests:
                self._idle = here.thread
                here.wait()
                self._idle = None
                continue
            sender, incarnation, sequence, machine, contents, reply = self._requests.pop(0)
            if sequence <= self._last.get((sender, incarnation), -1):
                continue
            self._last[sender, incarnation] = sequence
            value = self._answer(sender, incarnation, contents)
            here.sleep(0.0, "reply")
            self._network.send(
                self.process.name, machine, lambda reply=reply, value=value: reply(value)
            )

    def _answer(self, sender: str, incarnation: int, contents: Any) -> tuple[str, Any]:
        try:
            return "reply", self._handle(sender, incarnation, contents)
        except BigGraphError as error:
            return "error", str(error)
        except Exception as error:  # noqa: BLE001 - the wires survive, the seed does not
            world().defect(f"a request was answered with {error!r}: {contents}", error)
            return "error", repr(error)


class ServerDouble:
    """A `transport.Server`: one thread for requests, one for vectors."""

    def __init__(
        self, network: Network, handlers: Handlers, job: str, check: Callable[[Tensor], None]
    ) -> None:
        self._check = check
        term = f"term {len(network.servers)}"
        self.endpoint = Endpoint(term=term, host="host", port=1, job=job)
        self.refused: Counter[Any] = Counter()
        self._handlers = handlers
        self._calls = Waiter(network, term, handlers.call)
        self._exchanges = Waiter(network, f"{term} vectors", self._exchange)

    def accept(self, key: str) -> None:
        pass

    def close(self) -> None:
        self._calls.close()
        self._exchanges.close()

    def _exchange(self, sender: str, incarnation: int, contents: Any) -> Any:
        answer, view = self._handlers.exchange(sender, *contents)
        self._check(view)
        return answer, view.clone()


class LineDouble:
    """A `transport.Line`."""

    def __init__(self, network: Network, endpoint: Endpoint, identity: Identity) -> None:
        self._network, self._term, self._identity = network, endpoint.term, identity
        self._lock = Lock()

    def call(self, body: Any, timeout_s: float) -> Any:
        if not self._lock.acquire(timeout=timeout_s):
            raise LinkLost("another call took too long")
        try:
            return self._network.ask(self._term, self._identity, body, timeout_s)
        finally:
            self._lock.release()

    def exchange(self, header: Any, payload: Tensor, timeout_s: float) -> Any:
        contents = (dict(header), payload.clone())
        return self._network.ask(f"{self._term} vectors", self._identity, contents, timeout_s)

    def close(self) -> None:
        pass
