"""The coordinator as a worker far away sees it: calls that survive its death and its moves.

A call that gets no answer is sent again, to wherever the endpoint says by then; requests may be
repeated. Knows how to reach the coordinator; nothing of what is said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from biggraph.dist.endpoint import Endpoint
from biggraph.dist.messages import Identity
from biggraph.dist.protocol import Reply, Request, decode_reply, encode
from biggraph.dist.transport import Line
from biggraph.errors import LinkLost, RemoteError

_PAUSE_S = 0.2  # between two attempts
_LOOK_S = 2.0  # between two looks whether the run is finished
_HASTE_S = 5.0  # for whoever has been asked to end


@dataclass(frozen=True)
class Patience:
    """How long a worker waits.

    Args:
        answer_s: for an answer, before it asks again.
        coordinator_s: for any coordinator, before it gives up.
        whom: it waits for: the command that starts one.
        over: tells whether the run is finished, so that nobody will answer any more.
    """

    answer_s: float = 10.0
    coordinator_s: float = 600.0
    whom: str = "coordinator"
    over: Callable[[], bool] = lambda: False


class RunOver(LinkLost):
    """Nobody answers, and nobody has to: the run is finished."""


class RemoteCoordinator:
    """Calls to the coordinator of a run. Safe to use from several threads.

    Args:
        find: reads where the coordinator is, None where none has started yet.
        connect: returns a line to it, for this worker.
        secret: of the job.
        worker: name of this worker.
        incarnation: rises with every start of a worker of this name.
        patience: how long to wait.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        find: Callable[[], Endpoint | None],
        connect: Callable[[Endpoint, Identity], Line],
        secret: bytes,
        worker: str,
        incarnation: int,
        patience: Patience = Patience(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._find, self._connect, self._secret = find, connect, secret
        self._worker, self._incarnation = worker, incarnation
        self._patience, self._sleep = patience, sleep
        self._wait_s = patience.coordinator_s
        self._lock = threading.Lock()
        self._line: tuple[Endpoint, Line] | None = None
        self.attempts = 0

    def __call__(self, request: Request) -> Reply:
        """Return the answer to a request, however often it has to be sent.

        Raises:
            RunOver: no coordinator answers, and the run is finished.
            LinkLost: no coordinator has answered for too long.
        """
        body = encode(request)
        return decode_reply(self._patiently(lambda: self._call(body)))

    def exchange(
        self, header: dict[str, Any], vector: Tensor, *, patient: bool
    ) -> tuple[dict[str, Any], Tensor]:
        """Exchange vectors with the parameter server; by one thread at a time.

        Args:
            header: JSON values.
            vector: float32 [n].
            patient: try until it succeeds, not once.

        Raises:
            LinkLost: the only attempt failed, or as in a call.
        """
        if not patient:
            return self._exchange(header, vector)
        answer: tuple[dict[str, Any], Tensor] = self._patiently(
            lambda: self._exchange(header, vector)
        )
        return answer

    def hurry(self) -> None:
        """Wait for nobody longer than a few seconds from now on. A signal handler may call it."""
        self._wait_s = min(self._wait_s, _HASTE_S)

    def close(self) -> None:
        """End the lines."""
        with self._lock:
            self._drop()

    def _patiently(self, attempt: Callable[[], Any]) -> Any:
        start = looked = time.monotonic()
        while True:
            try:
                return attempt()
            except (LinkLost, RemoteError) as error:
                self.attempts += 1
                now = time.monotonic()
                if now - looked > _LOOK_S:
                    self._check_over(error)
                    looked = now
                if now - start > self._wait_s:
                    self._check_over(error)
                    raise self._given_up(error) from error
            self._sleep(_PAUSE_S)

    def _check_over(self, error: Exception) -> None:
        if self._patience.over():
            raise RunOver(f"the run is finished, and its {self._patience.whom} gone") from error

    def _given_up(self, error: Exception) -> LinkLost:
        whom = self._patience.whom
        return LinkLost(
            f"no {whom} has answered for {self._wait_s:g} s ({error}); start one with "
            f"`biggraph {whom}` and this worker again"
        )

    def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        endpoint, line = self._reach()
        try:
            return line.call(body, self._patience.answer_s)
        except LinkLost:
            self._leave(endpoint)
            raise

    def _exchange(self, header: dict[str, Any], vector: Tensor) -> tuple[dict[str, Any], Tensor]:
        endpoint, line = self._reach()
        try:
            return line.exchange(header, vector, self._patience.answer_s)
        except LinkLost:
            self._leave(endpoint)
            raise

    def _reach(self) -> tuple[Endpoint, Line]:
        """Return the line to the coordinator, a new one if it has moved."""
        with self._lock:
            if self._line is None:
                endpoint = self._find()
                if endpoint is None:
                    raise LinkLost(f"no {self._patience.whom} has started yet")
                identity = Identity(self._secret, endpoint.job, self._worker, self._incarnation)
                self._line = (endpoint, self._connect(endpoint, identity))
            return self._line

    def _leave(self, endpoint: Endpoint) -> None:
        """Give up a line on which nobody answers, if the coordinator may be elsewhere by now."""
        found = self._find()
        with self._lock:
            if self._line is not None and self._line[0] == endpoint and found != endpoint:
                self._drop()

    def _drop(self) -> None:
        if self._line is not None:
            self._line[1].close()
        self._line = None
