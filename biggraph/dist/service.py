"""The coordinator as a service: answers what comes over the wires, and watches the clock.

One request at a time reaches the coordinator. What ends it (a full disk, another coordinator)
surfaces in `run`. Knows the coordinator, the parameter server and the transports; nothing of how
they do it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biggraph import errors
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.endpoint import Endpoint, new_id
from biggraph.dist.mailbox import MailboxServer
from biggraph.dist.pairs import PairServer
from biggraph.dist.parameter_server import ParameterServer
from biggraph.dist.protocol import (
    AskStatus,
    Connect,
    Done,
    Failed,
    Finished,
    Hello,
    Request,
    Status,
    Submit,
    decode_request,
    encode,
)
from biggraph.errors import BigGraphError, InputError, StorageError

_TICK_S = 0.2

OnStatus = Callable[[dict[str, Any]], None]


class Service:
    """Serves one coordinator to workers elsewhere. Made by `open`.

    Args:
        coordinator: started.
        parameters: the parameter server.
        clock: seconds that only move forward.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        parameters: ParameterServer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._coordinator, self._parameters, self._clock = coordinator, parameters, clock
        self._lock = threading.Lock()
        self._broken: BigGraphError | None = None
        self._mailbox: MailboxServer | None = None
        self._pairs: PairServer | None = None

    def open(self, secret: bytes, job: str, bind: str, port: int) -> Endpoint:
        """Listen, and return where.

        Raises:
            StorageError: the address is taken or is not this machine's.
        """
        self._mailbox = MailboxServer.open(
            self.answer, secret=secret, job=job, term=new_id(), bind=bind, port=port
        )
        self._pairs = PairServer(self._exchange, secret, self._mailbox.endpoint)
        return self._mailbox.endpoint

    def close(self) -> None:
        """Stop listening."""
        if self._pairs is not None:
            self._pairs.close()
        if self._mailbox is not None:
            self._mailbox.close()

    def answer(self, sender: str, incarnation: int, body: dict[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Args:
            sender: who signed it.
            incarnation: of the sender.
            body: from `protocol.encode`.

        Raises:
            FormatError: not a request.
            InputError: a request in the name of another worker.
            StorageError: the coordinator cannot go on.
        """
        request = decode_request(body)
        if isinstance(request, Hello | Submit) and request.worker != sender:
            raise InputError(f"{sender} speaks as {request.worker}; each worker as itself")
        if isinstance(request, Connect):
            if not request.key.startswith(f"{sender}-"):
                raise InputError(f"{sender} asks for the pair of another worker")
            assert self._pairs is not None
            self._pairs.accept(request.key)
            return encode(Done())
        with self._lock:
            return encode(self._handle(request))

    @property
    def edges(self) -> int:
        """Edges trained and committed since this service began."""
        return self._coordinator.edges

    def run(self, stop: threading.Event, on_status: OnStatus) -> Finished | None:
        """Serve until the run is finished and every worker knows it; None if `stop` was set.

        Raises:
            BigGraphError: the run has failed, or the log cannot be written.
        """
        while not stop.wait(_TICK_S):
            with self._lock:
                self._tick()
                end, failure = self._coordinator.end, self._coordinator.failure
                told = not self._coordinator.state.leases
                status = self._coordinator.status(self._clock())
            if self._broken is not None:
                raise self._broken
            if failure is not None and told:
                raise _error(failure)
            if end is not None and told:
                return end
            on_status(status)
        return None

    def _tick(self) -> None:
        try:
            self._coordinator.tick(self._clock())
        except StorageError as error:
            self._broken = error

    def _handle(self, request: Request) -> Any:
        if self._broken is not None:
            raise self._broken
        try:
            reply = self._coordinator.handle(request, self._clock())
        except StorageError as error:
            self._broken = error
            raise
        if isinstance(request, AskStatus) and isinstance(reply, Status):
            return Status(reply.values | {"refused": self._refused()})
        return reply

    def _refused(self) -> dict[str, int]:
        refused: Counter[str] = Counter()
        for source in (self._mailbox, self._pairs):
            if source is not None:
                refused.update({str(reason): n for reason, n in source.refused.items()})
        return dict(refused)

    def _exchange(
        self, sender: str, header: dict[str, Any], vector: Tensor
    ) -> tuple[dict[str, Any], Tensor]:
        return self._parameters.exchange(header, vector)


def _error(failure: Failed) -> BigGraphError:
    kind = getattr(errors, failure.kind, BigGraphError)
    error: BigGraphError = kind(failure.message)
    return error
