"""Calls to a server over Arrow Flight: bytes out, bytes in, with TLS, a token and exact deadlines.

One call is one Flight action. Streams are not used: a write to a stream whose other side is frozen
never returns, whatever its deadline. Knows nothing of what is called.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import flight

from biggraph.errors import ConfigError, LinkLost

TOKEN_HEADER = "x-biggraph-token"
_LENGTH_BYTES = 4

# A new client starts from scratch: it shares no connection that waits before it tries again.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]


def token(secret: bytes, purpose: str) -> str:
    """Return what a caller shows to be let in; the secret cannot be found from it.

    Args:
        secret: that server and caller share.
        purpose: what the server is for; a token is good for nothing else.
    """
    return hmac.digest(secret, f"flight {purpose}".encode(), "sha256").hex()


def read_pem(path: Path, key: str) -> bytes:
    """Return a certificate or a key.

    Args:
        path: of the file.
        key: of the run file or option that names it, for messages.

    Raises:
        ConfigError: it cannot be read, or is no PEM.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} = {path}: cannot read it: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise ConfigError(f'{key} = {path}: no PEM; expected "-----BEGIN …" in it')
    return data


def option(prefix: str, key: str) -> str:
    """Return how a key is given, in the run file or on the command line.

    >>> option("cluster.", "tls_key"), option("--", "tls_key")
    ('cluster.tls_key', '--tls-key')
    """
    return prefix + (key.replace("_", "-") if prefix == "--" else key)


def location(host: str, port: int, *, tls: bool) -> str:
    """Return an address as Flight writes it.

    >>> location("::1", 7070, tls=True)
    'grpc+tls://[::1]:7070'
    """
    written = f"[{host}]" if ":" in host else host
    return f"grpc{'+tls' if tls else ''}://{written}:{port}"


def is_loopback(bind: str) -> bool:
    """Return whether an address or host name means this machine alone.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    with suppress(ValueError):
        return ipaddress.ip_address(bind).is_loopback
    with suppress(OSError, UnicodeError):  # the latter: no name of a host at all
        found = socket.getaddrinfo(bind, None)
        return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)
    return False


def join(head: bytes, data: bytes | memoryview) -> bytes:
    """Return a body of a small head and any amount of data; `split` takes it apart.

    >>> split(join(b"head", b"data"), 10)[0]
    b'head'
    """
    return b"".join((len(head).to_bytes(_LENGTH_BYTES, "little"), head, data))


def split(body: object, limit: int) -> tuple[bytes, memoryview]:
    """Return head and data of a body.

    Args:
        body: anything with bytes.
        limit: most bytes that the head may have.

    Raises:
        ValueError: the head is longer, or longer than the body.
    """
    view = memoryview(body)  # type: ignore[arg-type]
    length = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if length > min(limit, len(view) - _LENGTH_BYTES):
        raise ValueError(f"a head of {length:,} bytes")
    end = _LENGTH_BYTES + length
    return view[_LENGTH_BYTES:end].tobytes(), view[end:]


class Caller:
    """Calls one server; connects at the first call, and anew after a lost one. For any thread.

    Args:
        address: host and port of the server.
        token: from `token`.
        certificate: PEM, of the server or of who signed it; None: without TLS.
    """

    def __init__(self, address: tuple[str, int], token: str, certificate: bytes | None) -> None:
        self.address = address
        self._token = token.encode()
        self._certificate = certificate
        self._lock = threading.Lock()
        self._client: Any = None
        self._closed = False

    def __str__(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def call(self, action: str, body: object, timeout_s: float) -> pa.Buffer:
        """Return what the server answers.

        Args:
            action: its name.
            body: anything with bytes.
            timeout_s: seconds until the call is given up.

        Raises:
            LinkLost: no answer in time, no server, or it refused the certificate or the token.
        """
        client = self._connected()
        options = flight.FlightCallOptions(
            timeout=max(0.001, timeout_s), headers=[(TOKEN_HEADER.encode(), self._token)]
        )
        try:
            (result,) = client.do_action(flight.Action(action, pa.py_buffer(body)), options)
        except flight.FlightTimedOutError as error:
            self._leave(client)
            raise LinkLost(f"{self}: no answer within {timeout_s:.3g} s") from error
        except (pa.ArrowException, KeyError, ValueError, OSError) as error:
            self._leave(client)
            raise LinkLost(f"{self}: {_reason(error)}") from error
        return result.body

    def close(self) -> None:
        """End the connection; calls after it are lost."""
        with self._lock:
            self._closed, self._client = True, None

    def _connected(self) -> Any:
        with self._lock:
            if self._closed:
                raise LinkLost(f"{self}: the link is closed")
            if self._client is None:
                tls = self._certificate is not None
                self._client = flight.FlightClient(
                    location(*self.address, tls=tls),
                    tls_root_certs=self._certificate,
                    generic_options=_OPTIONS,
                )
            return self._client

    def _leave(self, client: Any) -> None:
        """Let the next call connect anew; other calls of this client may still end well."""
        with self._lock:
            if self._client is client:
                self._client = None


def _reason(error: Exception) -> str:
    lines = str(error).partition(". gRPC client debug context")[0].splitlines() or [""]
    return lines[0].removesuffix(" Detail: Unauthenticated")[:500]
