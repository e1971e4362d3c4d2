"""Requests and replies over the queues of a TCPStore, each sealed.

The server pops one queue of requests and pushes each reply to the queue of the link that asked.
Knows nothing of what requests mean.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistStoreError, QueueEmptyError, TCPStore  # type: ignore[attr-defined]

from biggraph.dist.answering import answer_call
from biggraph.dist.endpoint import Endpoint, advertised_host
from biggraph.dist.link import Body, Handler, call_in_turn
from biggraph.dist.messages import Envelope, Identity, Reason, Refused, Verifier
from biggraph.dist.store import StoreLine, connect_store, host_store
from biggraph.errors import LinkLost

_LOG = logging.getLogger(__name__)

REQUESTS = "requests"  # the queue that every link pushes to
_CONNECT_S = 10.0  # to our own store

# Of the server for a request. A push wakes one waiting client, which may be a stranger: we find
# the request then.
_WAIT_S = 2.0

# A store remembers each blocking wait of a client until that client goes, and scans these on
# every push: without fresh clients, a long run would slow down.
_USES_OF_A_CLIENT = 10_000


def _reply_queue(sender: str, incarnation: int, channel: int) -> str:
    return f"replies/{sender}/{incarnation}/{channel}"


class MailboxServer:
    """Answers requests, one at a time, in a thread of its own. Made by `open`.

    Args:
        handler: told (sender, incarnation, request), returns the reply. What it raises becomes
            an error reply.
        secret: of the job.
        endpoint: where workers reach it, and its job and term; to be published.
        store: that holds the queues.
    """

    def __init__(
        self, handler: Handler, secret: bytes, endpoint: Endpoint, store: TCPStore
    ) -> None:
        self.endpoint = endpoint
        self.handled = 0  # requests answered, those with an error reply too
        self.failed = 0  # requests for which the handler raised
        self._handler = handler
        self._secret = secret
        self._verifier = Verifier(secret, "request", endpoint.job, endpoint.term)
        self._host = store  # the store listens as long as this lives
        self._reply_queues: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mailbox", daemon=True)

    @classmethod
    def open(
        cls, handler: Handler, *, secret: bytes, job: str, term: str, bind: str, port: int
    ) -> MailboxServer:
        """Listen on one address and answer from now on.

        Args:
            handler: see the class.
            secret: of the job.
            job: id of the job.
            term: id of this start of the coordinator.
            bind: address to listen on.
            port: 0 for any that is free.

        Raises:
            ConfigError: cannot listen there.
        """
        store = host_store(bind, port)
        host = advertised_host(bind)
        endpoint = Endpoint(term=term, host=host, port=store.port, job=job)
        server = cls(handler, secret, endpoint, store)
        server._thread.start()
        # Torch ends the process badly where one of its calls still waits in a thread at exit.
        atexit.register(server.close)
        return server

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.endpoint.port

    @property
    def refused(self) -> Counter[Reason]:
        """Messages that did not count, by reason."""
        return Counter(self._verifier.refused)

    def close(self) -> None:
        """Stop answering and listening; a request being handled is finished first."""
        if self._closing.is_set():
            return
        self._closing.set()
        atexit.unregister(self.close)
        connect_store((self._host.host, self.port), _CONNECT_S).queue_push(REQUESTS, "")
        self._thread.join()
        del self._host

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                store = connect_store((self._host.host, self.port), _CONNECT_S)
                store.set_timeout(timedelta(seconds=_WAIT_S))
                for _ in range(_USES_OF_A_CLIENT):
                    self._serve_one(store)
                    if self._closing.is_set():
                        return
            except Exception:  # noqa: BLE001 - nothing that comes may end the loop
                _LOG.exception("mailbox: connects again")
                self._closing.wait(0.1)

    def _serve_one(self, store: TCPStore) -> None:
        try:
            data = store.queue_pop(REQUESTS)
        except QueueEmptyError:  # a stranger set the name as a plain key, which ends every wait
            store.delete_key(REQUESTS)
            return
        except DistStoreError:  # nothing came
            return
        if self._closing.is_set():
            return
        request = self._verifier.open(data)
        if request is None:
            return
        channel, body = request.body.get("channel"), request.body.get("body")
        if type(channel) is not int or not isinstance(body, dict):
            self._verifier.refused["types"] += 1
            return
        reply = self._reply(request, body)
        self.handled += 1
        queue = _reply_queue(request.sender, request.incarnation, channel)
        self._drop_late_replies(store, request.sender, queue)
        store.queue_push(queue, reply)

    def _reply(self, request: Envelope, body: Body) -> bytes:
        reply, succeeded = answer_call(self._handler, self._secret, request, body)
        self.failed += not succeeded
        return reply

    def _drop_late_replies(self, store: TCPStore, sender: str, queue: str) -> None:
        """Empty the queue that a sender no longer reads, so that it holds at most one reply."""
        old = self._reply_queues.get(sender)
        if old is not None and old != queue:
            with suppress(QueueEmptyError):  # a link that was given up may take them meanwhile
                while store.queue_len(old):
                    store.queue_pop(old, block=False)
        self._reply_queues[sender] = queue


class MailboxLink:
    """A link to a `MailboxServer`. Calls of several threads wait for each other.

    Connects on the first call, and again on the first call after a lost one.

    Args:
        identity: of the worker; only one link at a time may use it.
        endpoint: of the server.
    """

    def __init__(self, identity: Identity, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.ignored = 0  # replies that were late, garbage or not meant for the call
        self._identity = identity
        self._lock = threading.Lock()
        self._line: StoreLine | None = None
        self._channel = 0
        self._uses = 0
        self._closed = False

    def call(self, body: Body, timeout_s: float) -> Body:
        """Return the reply to a request; see `Link.call`.

        Raises:
            LinkLost: no valid reply came in time.
            RemoteError: the handler failed; its message.
            ValueError: the body is no JSON, or too large.
        """
        return call_in_turn(self._lock, lambda left_s: self._exchange(body, left_s), timeout_s)

    def _exchange(self, body: Body, timeout_s: float) -> Body:
        if self._closed:
            raise LinkLost("the link is closed")
        sequence = self._identity.next_sequence()
        line = self._fresh_line(sequence)
        contents = {"channel": self._channel, "body": body}
        request = self._identity.seal("request", self.endpoint.term, sequence, contents)
        try:
            return line.run(
                lambda store, deadline: self._ask(store, deadline, sequence, request), timeout_s
            )
        except LinkLost:
            self._drop_line()
            raise

    def _fresh_line(self, sequence: int) -> StoreLine:
        """Return the line in use; after a lost call, one whose late replies nobody reads."""
        self._uses += 1
        if self._uses > _USES_OF_A_CLIENT:
            self._drop_line()
        if self._line is None:
            self._line = StoreLine((self.endpoint.host, self.endpoint.port))
            self._channel, self._uses = sequence, 0
        return self._line

    def _ask(self, store: TCPStore, deadline: float, sequence: int, request: bytes) -> Body:
        """Send a request and wait for its reply; runs in the thread of the line."""
        queue = _reply_queue(self._identity.sender, self._identity.incarnation, self._channel)
        store.queue_push(REQUESTS, request)
        while True:
            store.set_timeout(timedelta(seconds=max(0.001, deadline - time.monotonic())))
            try:
                data = store.queue_pop(queue)
            except QueueEmptyError:  # as in the server
                store.delete_key(queue)
                continue
            try:
                return self._identity.open_answer("reply", self.endpoint.term, sequence, data).body
            except Refused:
                self.ignored += 1

    def _drop_line(self) -> None:
        if self._line is not None:
            self._line.abandon()
            self._line = None

    def close(self) -> None:
        """End the line, after a call in progress; calls after it are lost."""
        with self._lock:
            self._closed = True
            self._drop_line()
