"""The transport of torch alone: a mailbox for requests, a pair of processes for vectors.

Encrypts nothing. Knows mailbox and pairs; nothing of what is said over them.
"""

from __future__ import annotations

import uuid
from collections import Counter

from torch import Tensor

from biggraph.dist.answering import VectorHandler
from biggraph.dist.endpoint import Endpoint
from biggraph.dist.link import Body, Handler
from biggraph.dist.mailbox import MailboxLink, MailboxServer
from biggraph.dist.messages import Identity, Reason
from biggraph.dist.pairs import PairClient, PairServer
from biggraph.dist.protocol import Connect, encode
from biggraph.errors import LinkLost


class TorchServer:
    """A mailbox and pairs in one process; made by `open`. See `transport.Server`.

    Args:
        mailbox: open.
        pairs: that meet in its store.
    """

    def __init__(self, mailbox: MailboxServer, pairs: PairServer) -> None:
        self.endpoint = mailbox.endpoint
        self._mailbox, self._pairs = mailbox, pairs

    @classmethod
    def open(
        cls,
        handler: Handler,
        exchange: VectorHandler,
        *,
        secret: bytes,
        job: str,
        term: str,
        bind: str,
        port: int,
    ) -> TorchServer:
        """Listen and answer from now on; raises as `MailboxServer.open`."""
        mailbox = MailboxServer.open(
            handler, secret=secret, job=job, term=term, bind=bind, port=port
        )
        return cls(mailbox, PairServer(exchange, secret, mailbox.endpoint))

    @property
    def refused(self) -> Counter[Reason]:
        """What did not count, by reason."""
        return self._mailbox.refused + Counter(self._pairs.refused)

    def accept(self, key: str) -> None:
        """Wait in the background for the worker that asked for a pair."""
        self._pairs.accept(key)

    def close(self) -> None:
        """Stop answering and listening."""
        self._pairs.close()
        self._mailbox.close()


class TorchLine:
    """A link, and a pair from the first exchange on. See `transport.Line`.

    Args:
        identity: of the worker.
        endpoint: of the coordinator.
    """

    def __init__(self, identity: Identity, endpoint: Endpoint) -> None:
        self._identity, self._endpoint = identity, endpoint
        self._link = MailboxLink(identity, endpoint)
        self._pair: PairClient | None = None

    def call(self, body: Body, timeout_s: float) -> Body:
        """Return the reply to a request."""
        return self._link.call(body, timeout_s)

    def exchange(self, header: Body, payload: Tensor, timeout_s: float) -> tuple[Body, Tensor]:
        """Send a vector and return the answer; after a lost exchange, over a new pair."""
        pair = self._pair or self._join(timeout_s)
        try:
            return pair.exchange(header, payload, timeout_s)
        except LinkLost:
            self._pair = None
            raise

    def close(self) -> None:
        """End the line; calls after it are lost."""
        self._link.close()
        if self._pair is not None:
            self._pair.close()

    def _join(self, timeout_s: float) -> PairClient:
        key = f"{self._identity.sender}-{uuid.uuid4().hex}"
        self._link.call(encode(Connect(key)), timeout_s)
        pair = PairClient(self._identity, self._endpoint, key)
        pair.join(timeout_s)
        self._pair = pair
        return pair
