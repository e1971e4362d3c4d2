"""How coordinator and workers reach each other: the one place that chooses, by `[cluster]`.

Knows both transports by their `Server` and `Line`; nothing of what is said over them.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple, Protocol

from torch import Tensor

from biggraph.dist.answering import VectorHandler
from biggraph.dist.endpoint import Endpoint, new_id
from biggraph.dist.flight_line import FlightLine
from biggraph.dist.flight_mailbox import FlightServer
from biggraph.dist.flight_server import read_tls
from biggraph.dist.link import Body, Handler
from biggraph.dist.messages import Identity, Reason
from biggraph.dist.torch_transport import TorchLine, TorchServer
from biggraph.errors import ConfigError
from biggraph.sections import ClusterSection
from biggraph.storage.flight import is_loopback, read_pem


class Server(Protocol):
    """Answers workers from its opening on."""

    @property
    def endpoint(self) -> Endpoint:
        """Where workers reach it, to be published."""
        ...

    @property
    def refused(self) -> Counter[Reason]:
        """What did not count, by reason."""
        ...

    def accept(self, key: str) -> None:
        """Wait for the worker that asked for a connection of its own, where there are such."""
        ...

    def close(self) -> None:
        """Stop answering and listening."""
        ...


class Line(Protocol):
    """One worker's way to one start of a coordinator. An error ends no line: call again."""

    def call(self, body: Body, timeout_s: float) -> Body:
        """Return the reply to a request; see `Link.call`. For several threads."""
        ...

    def exchange(self, header: Body, payload: Tensor, timeout_s: float) -> tuple[Body, Tensor]:
        """Send a vector and return the answer; for one thread at a time.

        Args:
            header: JSON values, a few kilobytes at most.
            payload: float32 [n].
            timeout_s: seconds until the exchange is given up.

        Returns:
            header: of the answer.
            payload: float32 [m], overwritten by the next exchange.

        Raises:
            LinkLost: no valid answer in time.
            RemoteError: the handler failed.
        """
        ...

    def close(self) -> None:
        """End the line; calls after it are lost."""
        ...


class Handlers(NamedTuple):
    """What a server does with requests, one at a time, and with vectors, many at a time."""

    call: Handler
    exchange: VectorHandler


def open_server(section: ClusterSection, handlers: Handlers, secret: bytes, job: str) -> Server:
    """Listen as `[cluster]` says, in a new term.

    Args:
        section: of the run file.
        handlers: what is done with what comes.
        secret: of the job.
        job: id of the job.

    Raises:
        ConfigError: cannot listen there, or TLS is incomplete, missing or out of place.
    """
    _check_tls_has_a_use(section)
    term, bind, port = new_id(), section.bind, section.port
    if section.transport == "torch":
        return TorchServer.open(*handlers, secret=secret, job=job, term=term, bind=bind, port=port)
    server = FlightServer(*handlers, secret, job, term)
    server.open(bind, port, read_tls(section.tls_cert, section.tls_key, "cluster."))
    return server


def open_line(section: ClusterSection, endpoint: Endpoint, identity: Identity) -> Line:
    """Return a line to a coordinator; connects at its first use.

    Raises:
        ConfigError: the coordinator speaks otherwise than `[cluster]` says.
    """
    _check_tls_has_a_use(section)
    if endpoint.transport != section.transport:
        raise ConfigError(
            f'cluster.transport = "{section.transport}", but the coordinator of this run speaks '
            f'"{endpoint.transport}"; give coordinator and workers the same'
        )
    if endpoint.transport == "torch":
        return TorchLine(identity, endpoint)
    own = section.tls_ca and read_pem(section.tls_ca, "cluster.tls_ca")
    certificate = own or (endpoint.certificate and endpoint.certificate.encode()) or None
    if certificate is None and not is_loopback(endpoint.host):
        raise ConfigError(
            f"{endpoint.host}: the coordinator has published no certificate; give it "
            "cluster.tls_cert and cluster.tls_key, or the workers cluster.tls_ca"
        )
    return FlightLine(identity, endpoint, certificate)


def _check_tls_has_a_use(section: ClusterSection) -> None:
    for key in ("tls_cert", "tls_key", "tls_ca"):
        if section.transport == "torch" and getattr(section, key) is not None:
            raise ConfigError(
                f'cluster.{key}: transport "torch" encrypts nothing; set cluster.transport = '
                '"flight", or leave the key out'
            )
