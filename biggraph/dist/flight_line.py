"""A worker's line to a coordinator over Arrow Flight.

Knows nothing of what is said over it.
"""

from __future__ import annotations

import threading

from torch import Tensor

from biggraph.dist import frames
from biggraph.dist.endpoint import Endpoint
from biggraph.dist.flight_mailbox import (
    CALL,
    EXCHANGE,
    VECTOR,
    join_vector,
    purpose,
    split_vector,
    vector_of,
)
from biggraph.dist.link import Body, call_in_turn
from biggraph.dist.messages import Identity, Refused
from biggraph.errors import LinkLost, RemoteError
from biggraph.storage.flight import Caller, token


class FlightLine:
    """Calls and exchanges over one connection; anew after a lost one. See `transport.Line`.

    Args:
        identity: of the worker; only one line at a time may use it.
        endpoint: of the coordinator.
        certificate: PEM, of the coordinator or of who signed it; None: without TLS.
    """

    def __init__(self, identity: Identity, endpoint: Endpoint, certificate: bytes | None) -> None:
        self.endpoint = endpoint
        self.ignored = 0  # answers that were garbage or not meant for the call
        self._identity = identity
        self._lock = threading.Lock()
        shown = token(identity.secret, purpose(endpoint.job))
        self._caller = Caller((endpoint.host, endpoint.port), shown, certificate)

    def call(self, body: Body, timeout_s: float) -> Body:
        """Return the reply to a request; threads wait for each other.

        Raises:
            LinkLost: no valid reply came in time.
            RemoteError: the handler failed; its message.
            ValueError: the body is no JSON, or too large.
        """
        return call_in_turn(self._lock, lambda left_s: self._call(body, left_s), timeout_s)

    def exchange(self, header: Body, payload: Tensor, timeout_s: float) -> tuple[Body, Tensor]:
        """Send a vector and return the answer; for one thread at a time.

        Raises:
            LinkLost: no valid answer came in time.
            RemoteError: the handler failed; its message.
            ValueError: the payload is no float32 vector, or the header is too large.
        """
        vector = frames.checked(payload)
        term, sequence = self.endpoint.term, self._identity.next_sequence()
        body = frames.announce(VECTOR, header, vector)
        message = frames.fitting(self._identity.seal("exchange", term, sequence, body))
        answer = self._caller.call(EXCHANGE, join_vector(message, vector), timeout_s)
        try:
            message, data = split_vector(answer)
            reply = self._identity.open_answer("answer", term, sequence, message)
            found, received = vector_of(reply, data)
        except Refused as refusal:
            raise self._forged(refusal) from None
        if "error" in reply.body:
            raise RemoteError(
                f"the coordinator could not handle an exchange: {reply.body['error']}"
            )
        return found.header, received

    def close(self) -> None:
        """End the line; calls after it are lost."""
        self._caller.close()

    def _call(self, body: Body, timeout_s: float) -> Body:
        term, sequence = self.endpoint.term, self._identity.next_sequence()
        request = self._identity.seal("request", term, sequence, {"body": body})
        answer = self._caller.call(CALL, request, timeout_s)
        try:
            return self._identity.open_answer("reply", term, sequence, answer.to_pybytes()).body
        except Refused as refusal:
            raise self._forged(refusal) from None

    def _forged(self, refusal: Refused) -> LinkLost:
        self.ignored += 1
        return LinkLost(f"{self._caller}: refused an answer: {refusal.reason}")
