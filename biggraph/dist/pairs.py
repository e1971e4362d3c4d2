"""Vectors asked for and answered between two processes: one pair for each worker and service.

The death of a process ends its own pairs and no others. Knows nothing of what is exchanged.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from biggraph.dist import frames
from biggraph.dist.answering import VectorHandler, answer_exchange
from biggraph.dist.endpoint import Endpoint, address_towards
from biggraph.dist.frames import Pair
from biggraph.dist.link import Body
from biggraph.dist.messages import Identity, Reason, Refused, Verifier
from biggraph.dist.store import StoreLine, connect_store
from biggraph.errors import LinkLost, RemoteError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairLimits:
    """What a pair puts up with.

    Args:
        floats: most that a payload may hold.
        join_s: seconds for the other side to come.
        idle_s: seconds between two exchanges, after which a server gives the pair up.
        exchange_s: seconds for the other side to send or take a payload that it announced.
    """

    floats: int = 2**28
    join_s: float = 30.0
    idle_s: float = 600.0
    exchange_s: float = 60.0


class PairServer:
    """Serves pairs, each in a thread of its own. Does nothing until `accept`.

    Args:
        handler: see `VectorHandler`. What it raises becomes an error for the client.
        secret: of the job.
        endpoint: of the mailbox in this process, whose store pairs meet in.
        limits: what a pair puts up with.
    """

    def __init__(
        self,
        handler: VectorHandler,
        secret: bytes,
        endpoint: Endpoint,
        limits: PairLimits = PairLimits(),
    ) -> None:
        self.refused: Counter[Reason] = Counter()  # frames and payloads, by reason
        self._handler = handler
        self._secret = secret
        self._endpoint = endpoint
        self._limits = limits
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._closing = False

    def accept(self, key: str) -> None:
        """Wait in the background for the client of a pair, then serve it until either ends.

        Asking again for a pair that lives does nothing.

        Args:
            key: never used before for another pair.
        """
        with self._lock:
            if self._closing or key in self._threads:
                return
            thread = threading.Thread(
                target=self._serve, args=(key,), name=f"pair {key}", daemon=True
            )
            atexit.unregister(self.close)
            atexit.register(self.close)  # torch must not be woken in a thread at exit
            self._threads[key] = thread
            thread.start()

    def keys(self) -> list[str]:
        """Return the pairs that live, those that still wait for their client too."""
        with self._lock:
            return sorted(self._threads)

    def close(self, grace_s: float = 2.0) -> None:
        """Accept no more pairs, and wait a little for the clients of the others to go.

        A thread whose client stays is left behind: gloo cannot be woken.
        """
        atexit.unregister(self.close)
        with self._lock:
            self._closing = True
            threads = list(self._threads.values())
        deadline = time.monotonic() + grace_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _serve(self, key: str) -> None:
        try:
            self._serve_pair(key)
        except Refused as refusal:
            _LOG.warning("pair %s: closed: refused: %s", key, refusal.reason)
            with self._lock:
                self.refused[refusal.reason] += 1
        except (OSError, RuntimeError) as error:  # gloo raises when the other side goes
            _LOG.info("pair %s: ended: %s", key, str(error).partition("\n")[0])
        finally:
            with self._lock:
                del self._threads[key]

    def _serve_pair(self, key: str) -> None:
        limits, endpoint = self._limits, self._endpoint
        store = connect_store((endpoint.host, endpoint.port), limits.join_s)
        pair = frames.join(store, key, frames.SERVER, endpoint.host, limits.join_s)
        verifier = Verifier(self._secret, "exchange", endpoint.job, endpoint.term)
        met = False
        while not self._closing:
            message = pair.receive_message(time.monotonic() + limits.idle_s)
            if not met:
                frames.forget_addresses(store, key)
                met = True
            request = verifier.check(message)
            found = frames.announced(request.body, key, limits.floats)
            payload = pair.receive_payload(found, time.monotonic() + limits.exchange_s)
            reply, payload = answer_exchange(
                self._handler, self._secret, request, found.header, payload
            )
            pair.send(reply, payload, time.monotonic() + limits.exchange_s)


class PairClient:
    """A worker's side of a pair. For one thread at a time; of no further use after an error.

    Args:
        identity: of the worker.
        endpoint: of the mailbox whose process accepts the pair.
        key: that the server was asked to accept; never used before.
        floats: most that an answer may hold.
    """

    def __init__(
        self, identity: Identity, endpoint: Endpoint, key: str, floats: int = PairLimits.floats
    ) -> None:
        self._identity = identity
        self._endpoint = endpoint
        self._key = key
        self._floats = floats
        self._pair: Pair | None = None

    def join(self, timeout_s: float) -> None:
        """Meet the server, which must have been asked to accept.

        Raises:
            LinkLost: it did not come in time.
        """
        endpoint = self._endpoint
        host = address_towards(endpoint.host, endpoint.port)
        line = StoreLine((endpoint.host, endpoint.port))
        try:
            self._pair = line.run(
                lambda store, _: frames.join(store, self._key, frames.CLIENT, host, timeout_s),
                timeout_s,
            )
        finally:
            line.abandon()

    def exchange(self, header: Body, payload: Tensor, timeout_s: float) -> tuple[Body, Tensor]:
        """Send a vector and return the server's answer.

        Args:
            header: JSON values, a few kilobytes at most.
            payload: float32 [n].
            timeout_s: seconds for the whole exchange.

        Returns:
            header: of the answer.
            payload: float32 [m], overwritten by the next exchange.

        Raises:
            LinkLost: the server did not answer in time, or something forged came; the pair is
                closed.
            RemoteError: the handler failed; the pair goes on.
        """
        if self._pair is None:
            raise LinkLost(f"pair {self._key}: not joined, or closed")
        try:
            body, received = self._exchange(
                self._pair, header, frames.checked(payload), time.monotonic() + timeout_s
            )
        except Refused as refusal:
            self.close()
            raise LinkLost(f"pair {self._key}: refused an answer: {refusal.reason}") from None
        except RuntimeError as error:  # gloo's
            self.close()
            reason = str(error).partition("\n")[0]
            raise LinkLost(f"pair {self._key}: {reason}") from error
        if "error" in body:
            raise RemoteError(f"the coordinator could not handle an exchange: {body['error']}")
        return body["header"], received

    def _exchange(
        self, pair: Pair, header: Body, payload: Tensor, deadline: float
    ) -> tuple[Body, Tensor]:
        identity, term, sequence = (
            self._identity,
            self._endpoint.term,
            self._identity.next_sequence(),
        )
        body = frames.announce(self._key, header, payload)
        pair.send(
            frames.fitting(identity.seal("exchange", term, sequence, body)), payload, deadline
        )
        message = pair.receive_message(deadline)
        reply = identity.open_answer("answer", term, sequence, message)
        found = frames.announced(reply.body, self._key, self._floats)
        return reply.body, pair.receive_payload(found, deadline)

    def close(self) -> None:
        """Leave; the server's side ends at once."""
        self._pair = None
