"""The coordinator as a service: answers what comes over the wires, and watches the clock.

One request at a time reaches the coordinator. What ends it (a full disk, another coordinator)
surfaces in `run`. Knows the coordinator, the parameter server and that there are
transports; nothing of how they do it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biggraph import errors
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.endpoint import Endpoint
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
from biggraph.dist.transport import Handlers, Server, open_server
from biggraph.errors import BigGraphError, InputError
from biggraph.sections import ClusterSection

_TICK_S = 0.2
_LONGEST_TICK_S = 2.0  # if more goes by between two looks at the clock, this process was frozen

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
        self._broken: Exception | None = None
        self._seen, self._frozen_s = clock(), 0.0
        self._server: Server | None = None

    def open(self, section: ClusterSection, secret: bytes, job: str) -> Endpoint:
        """Listen as `[cluster]` says, and return where.

        Raises:
            ConfigError: as `open_server`.
        """
        self._server = open_server(section, Handlers(self.answer, self._exchange), secret, job)
        return self._server.endpoint

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def between_requests(self, act: Callable[[], None]) -> None:
        """Do something while no request is answered, so while the log stays as it is."""
        with self._lock:
            act()

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
            assert self._server is not None
            self._server.accept(request.key)
            return encode(Done())
        with self._lock:
            owner = self._coordinator.owner(getattr(request, "fence", 0))
            if owner not in (None, sender):
                raise InputError(f"{sender} speaks as {owner}; each worker as itself")
            return encode(self._handle(request))

    @property
    def edges(self) -> int:
        """Edges trained and committed since this service began."""
        return self._coordinator.edges

    @property
    def failure(self) -> BigGraphError | None:
        """Why the run cannot go on, or None."""
        failure = self._coordinator.failure
        return None if failure is None else _error(failure)

    def run(self, stop: threading.Event, on_status: OnStatus) -> Finished | None:
        """Serve until the run is finished and every worker knows it; None if `stop` was set.

        Raises:
            BigGraphError: the run has failed, or the log cannot be written.
            Exception: a defect of the coordinator.
        """
        while not stop.wait(_TICK_S):
            with self._lock:
                self._tick()
                end, failure = self._coordinator.end, self.failure
                told = not self._coordinator.state.leases
                status = self._coordinator.status(self._now())
            if self._broken is not None:
                raise self._broken
            if failure is not None and told:
                raise failure
            if end is not None and told:
                return end
            on_status(status)
        return None

    def _now(self) -> float:
        """Return the time without those in which this process was frozen.

        Workers could not renew their leases then, so their time must not run out.
        """
        now = self._clock()
        self._frozen_s += max(0.0, now - self._seen - _LONGEST_TICK_S)
        self._seen = now
        return now - self._frozen_s

    def _tick(self) -> None:
        try:
            self._coordinator.tick(self._now())
        except Exception as error:  # noqa: BLE001 - ends the service, see `run`
            self._broken = error

    def _handle(self, request: Request) -> Any:
        if self._broken is not None:
            raise self._broken
        try:
            reply = self._coordinator.handle(request, self._now())
        except Exception as error:
            # The log has what counts; what is in memory may be half done, so another start it is.
            self._broken = error
            raise
        if isinstance(request, AskStatus) and isinstance(reply, Status):
            return Status(reply.values | {"refused": self._refused()})
        return reply

    def _refused(self) -> dict[str, int]:
        return {} if self._server is None else {str(r): n for r, n in self._server.refused.items()}

    def _exchange(
        self, sender: str, header: dict[str, Any], vector: Tensor
    ) -> tuple[dict[str, Any], Tensor]:
        return self._parameters.exchange(header, vector)


def _error(failure: Failed) -> BigGraphError:
    kind = getattr(errors, failure.kind, BigGraphError)
    error: BigGraphError = kind(failure.message)
    return error
