"""A server of calls over Arrow Flight: checks token and TLS, then hands bytes to a function.

Knows nothing of what is called.
"""

from __future__ import annotations

import atexit
import hmac
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight

from biggraph.dist.store import listen
from biggraph.errors import ConfigError
from biggraph.storage.flight import TOKEN_HEADER, is_loopback, location, option, read_pem

_LOG = logging.getLogger(__name__)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[\w+/=\s]*-----END CERTIFICATE-----")


class Unanswered(Exception):
    """A call that is refused or no longer waited for; the caller sees that it is lost."""


@dataclass(frozen=True)
class Call:
    """One call.

    Args:
        body: what came.
        left: tells whether the caller has gone.
    """

    body: pa.Buffer
    left: Callable[[], bool]


Action = Callable[[Call], object]  # returns anything with bytes; called by many threads


@dataclass(frozen=True)
class Tls:
    """What a server shows: certificate (or chain) and its key, both PEM."""

    certificate: bytes
    key: bytes


class ActionServer(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow is untyped
    """Serves from its making on; made by `serve_actions`.

    Args:
        address: as Flight writes it.
        token: that callers have to show.
        actions: by name.
        tls: None for none.
    """

    def __init__(
        self, address: str, token: str, actions: Mapping[str, Action], tls: Tls | None
    ) -> None:
        self._actions = actions
        self._gate = _Gate(token)
        certificates = [(tls.certificate, tls.key)] if tls else None
        super().__init__(address, tls_certificates=certificates, middleware={"gate": self._gate})
        atexit.register(self.close)  # no thread may enter an interpreter that ends

    @property
    def refused(self) -> int:
        """Calls without the token."""
        return self._gate.refused

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        """Answer one call; named by Flight."""
        function = self._actions.get(action.type)
        if function is None:
            raise flight.FlightServerError("no such action")
        try:
            answer = function(Call(action.body, context.is_cancelled))
        except Unanswered as refusal:
            raise flight.FlightUnauthenticatedError(str(refusal)) from None
        except Exception:  # noqa: BLE001 - a defect must not end the server, nor be told to callers
            _LOG.exception("flight: %s failed", action.type)
            raise flight.FlightServerError("defect; see the server's messages") from None
        yield flight.Result(pa.py_buffer(answer))

    def close(self) -> None:
        """Stop listening; calls being answered are finished first."""
        atexit.unregister(self.close)
        self.shutdown()


class _Gate(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Turns away calls without the token, before any of our code sees them."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token.encode()
        self._lock = threading.Lock()
        self.refused = 0

    def start_call(self, info: Any, headers: Mapping[str, list[str]]) -> None:
        shown = headers.get(TOKEN_HEADER, [])
        if len(shown) != 1 or not hmac.compare_digest(str(shown[0]).encode(), self._token):
            with self._lock:
                self.refused += 1
            raise flight.FlightUnauthenticatedError("refused: wrong token")


def read_tls(certificate: Path | None, key: Path | None, prefix: str) -> Tls | None:
    """Return what a server shows, None where neither file is given.

    Args:
        certificate: path of a PEM.
        key: path of a PEM.
        prefix: of the keys or options that gave them, for messages.

    Raises:
        ConfigError: one is missing, cannot be read, or is something else.
    """
    names = (option(prefix, "tls_cert"), option(prefix, "tls_key"))
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError(f"{names[0]} and {names[1]}: give both or neither")
    shown = _CERTIFICATE.findall(read_pem(certificate, names[0]))
    if not shown:
        raise ConfigError(f"{names[0]} = {certificate}: no certificate in it")
    # Nothing else of that file: it may hold the key too, and what is shown is published.
    return Tls(b"\n".join(shown) + b"\n", read_pem(key, names[1]))


def serve_actions(
    actions: Mapping[str, Action],
    token: str,
    bind: str,
    port: int,
    tls: Tls | None,
    prefix: str = "cluster.",
) -> ActionServer:
    """Listen on one address and answer from now on.

    Args:
        actions: by name.
        token: that callers have to show.
        bind: address to listen on.
        port: 0 for any that is free.
        tls: required beyond loopback.
        prefix: of the keys or options that gave `bind` and `port`, for messages.

    Raises:
        ConfigError: cannot listen there, must not without TLS, or certificate and key do not fit.
    """
    if tls is None and not is_loopback(bind):
        raise ConfigError(
            f"{prefix}bind = {bind!r} lets other machines connect, and flight without TLS would "
            f"show its token to all; give a certificate and its key: {option(prefix, 'tls_cert')} "
            f"and {option(prefix, 'tls_key')}"
        )
    listen(bind, port, prefix).close()  # says better than gRPC what is wrong
    try:
        return ActionServer(location(bind or "0.0.0.0", port, tls=bool(tls)), token, actions, tls)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{prefix}bind = {bind!r}, {prefix}port = {port}: cannot listen there"
            + (", or certificate and key do not belong together" if tls else "")
            + f" ({str(error).splitlines()[0]})"
        ) from error
