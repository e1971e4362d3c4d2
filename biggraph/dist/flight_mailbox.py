"""Requests and vectors over Arrow Flight, each sealed as in the mailbox and the pairs.

An exchange is a sealed message that announces a vector, and the vector. Knows nothing of what
requests mean.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from biggraph.dist import frames
from biggraph.dist.answering import VectorHandler, answer_call, answer_exchange
from biggraph.dist.endpoint import Endpoint, advertised_host
from biggraph.dist.flight_server import ActionServer, Call, Tls, Unanswered, serve_actions
from biggraph.dist.link import Handler
from biggraph.dist.messages import Envelope, Reason, Refused, Verifier
from biggraph.storage.flight import join, split, token

CALL, EXCHANGE = "call", "exchange"  # actions
VECTOR = "vector"  # the key that exchanges announce: pairs have one each, here all share one

FLOATS = 2**28  # most that a vector may hold


def purpose(job: str) -> str:
    """Return what the token of a job's coordinator is for."""
    return f"coordinator {job}"


def join_vector(message: bytes, vector: Tensor) -> bytes:
    """Return the body of an exchange, or of its answer."""
    return join(message, vector.numpy().data.cast("B"))


def split_vector(body: pa.Buffer) -> tuple[bytes, memoryview]:
    """Return the sealed message of a body, and the bytes behind it.

    Raises:
        Refused: the message is longer than the body, or than it may be.
    """
    try:
        return split(body, frames.FRAME_BYTES)
    except ValueError:
        raise Refused("oversized") from None


def vector_of(envelope: Envelope, data: memoryview) -> tuple[frames.Announced, Tensor]:
    """Return what a verified message announces, and its vector, float32 [n].

    Raises:
        Refused: the data is not what was announced.
    """
    found = frames.announced(envelope.body, VECTOR, FLOATS)
    if len(data) != 4 * found.floats or hashlib.sha256(data).hexdigest() != found.digest:
        raise Refused("digest")
    return found, torch.from_numpy(np.frombuffer(data, np.float32).copy())


class FlightServer:
    """Answers requests one at a time, exchanges side by side. See `transport.Server`.

    Args:
        handler: told (sender, incarnation, request), returns the reply.
        exchange: see `VectorHandler`.
        secret: of the job.
        job: id of the job.
        term: id of this start of the coordinator.
    """

    def __init__(
        self, handler: Handler, exchange: VectorHandler, secret: bytes, job: str, term: str
    ) -> None:
        self._handler, self._exchange = handler, exchange
        self._secret, self._job, self._term = secret, job, term
        self._requests = Verifier(secret, "request", job, term)
        self._vectors = Verifier(secret, "exchange", job, term)
        self._turn = threading.Lock()  # one request at a time
        self._lock = threading.Lock()  # of the vectors' verifier
        self._actions: ActionServer | None = None
        self._endpoint: Endpoint | None = None
        self.handled = 0  # requests answered, those with an error reply too
        self.failed = 0  # requests for which the handler raised

    def open(self, bind: str, port: int, tls: Tls | None) -> None:
        """Listen on one address and answer from now on.

        Args:
            bind: address to listen on.
            port: 0 for any that is free.
            tls: required beyond loopback.

        Raises:
            ConfigError: as `serve_actions`.
        """
        actions = {CALL: self._answer_call, EXCHANGE: self._answer_exchange}
        shown = token(self._secret, purpose(self._job))
        self._actions = serve_actions(actions, shown, bind, port, tls)
        self._endpoint = Endpoint(
            term=self._term,
            host=advertised_host(bind),
            port=self._actions.port,
            job=self._job,
            transport="flight",
            certificate=tls.certificate.decode() if tls else None,
        )

    @property
    def endpoint(self) -> Endpoint:
        """Where workers reach it, once it is open."""
        assert self._endpoint is not None
        return self._endpoint

    @property
    def refused(self) -> Counter[Reason]:
        """What did not count, by reason; a wrong token counts as a wrong signature."""
        found = Counter(self._requests.refused) + Counter(self._vectors.refused)
        if self._actions is not None and self._actions.refused:
            found["signature"] += self._actions.refused
        return found

    def accept(self, key: str) -> None:
        """Do nothing: vectors need no connection of their own."""

    def close(self) -> None:
        """Stop answering and listening; calls being answered are finished first."""
        if self._actions is not None:
            self._actions.close()

    def _answer_call(self, call: Call) -> bytes:
        with self._turn:
            if call.left():
                raise Unanswered("too late")
            request = self._requests.open(call.body.to_pybytes())
            if request is None:
                raise Unanswered("refused")
            body = request.body.get("body")
            if not isinstance(body, dict):
                self._requests.refused["types"] += 1
                raise Unanswered("refused: types")
            reply, succeeded = answer_call(self._handler, self._secret, request, body)
            self.handled += 1
            self.failed += not succeeded
            return reply

    def _answer_exchange(self, call: Call) -> bytes:
        try:
            message, data = split_vector(call.body)
            with self._lock:
                request = self._vectors.check(message)
            found, vector = vector_of(request, data)
        except Refused as refusal:
            with self._lock:
                self._vectors.refused[refusal.reason] += 1
            raise Unanswered(f"refused: {refusal.reason}") from None
        return join_vector(
            *answer_exchange(self._exchange, self._secret, request, found.header, vector)
        )
