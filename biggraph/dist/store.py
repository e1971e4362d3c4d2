"""TCPStore made safe to use: it listens where it is told, and no call outlives its deadline.

TCPStore by itself listens on every interface, hangs past its timeouts when the other side is
frozen, and never reconnects. Knows nothing of messages.
"""

from __future__ import annotations

import atexit
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from biggraph.errors import ConfigError, LinkLost

T = TypeVar("T")
Address = tuple[str, int]

_BACKLOG = 1024
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


def host_store(bind: str, port: int) -> TCPStore:
    """Return a new store in this process that listens on this address alone.

    Args:
        bind: host name or address of one interface, or of all ("0.0.0.0").
        port: 0 for any that is free.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    listener = listen(bind, port)
    port = listener.getsockname()[1]
    return TCPStore(
        _ANY.get(bind, bind),
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
        master_listen_fd=listener.detach(),
    )


def listen(bind: str, port: int, prefix: str = "cluster.") -> socket.socket:
    """Return a socket that listens on this address alone.

    Args:
        bind: as in `host_store`.
        port: 0 for any that is free.
        prefix: of the keys or options that gave them, for messages.

    Raises:
        ConfigError: as `host_store`.
    """
    try:
        found = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # the latter: no name of a host at all
        raise _cannot_listen(bind, port, prefix, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _cannot_listen(bind, port, prefix, error) from error
    return listener


def _cannot_listen(bind: str, port: int, prefix: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"{prefix}bind = {bind!r}, {prefix}port = {port}: cannot listen there: "
        f"{reason}; give an address of this machine and a free port (0: any)"
    )


def connect_store(address: Address, timeout_s: float) -> TCPStore:
    """Return a new client of a store; may hang past its timeout if the other side is frozen.

    Raises:
        OSError: nothing listens there.
        RuntimeError: what listens there is no store, or ended.
    """
    # TCPStore tries again and again where nothing listens, and logs each time.
    socket.create_connection(address, timeout_s).close()
    timeout = timedelta(seconds=timeout_s)
    return TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timeout)


class StoreLine:
    """One client of a store, and the thread that waits for it so that the caller need not.

    After an error the line is of no further use: abandon it and make another.

    Args:
        address: host and port of the store.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._store: TCPStore | None = None
        self._peers: set[Address] = set()
        self._others: set[Address] = set()

    def run(self, work: Callable[[TCPStore, float], T], timeout_s: float) -> T:
        """Return `work(store, deadline)`, where the deadline is a time of `time.monotonic`.

        Raises:
            LinkLost: the store cannot be reached, or did not answer in time.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="store line", daemon=True)
            self._thread.start()
            atexit.register(self.abandon)  # torch must not be waiting in a thread at exit
        deadline = time.monotonic() + timeout_s
        outcome: Future[T] = Future()
        self._work.put(lambda: _settle(outcome, lambda: work(self._connected(deadline), deadline)))
        try:
            return outcome.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            reason = f"no answer within {timeout_s:.3g} s"
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
        host, port = self._address
        raise LinkLost(f"{host}:{port}: {reason}")

    def _loop(self) -> None:
        while work := self._work.get():
            work()
        self._store = None

    def _connected(self, deadline: float) -> TCPStore:
        if self._store is None:
            self._peers = _resolve(self._address)
            self._others = set(_connections(self._peers))
            self._store = connect_store(self._address, max(0.001, deadline - time.monotonic()))
        return self._store

    def abandon(self) -> None:
        """End the line, also if its thread hangs: its connection is cut, which wakes it.

        Connections of other lines to the same store that were made since are cut too; their next
        call is lost, which callers must expect in any case.
        """
        if self._thread is None:
            return
        atexit.unregister(self.abandon)
        self._work.put(None)
        self._thread.join(0.05)
        if self._thread.is_alive():
            for own, descriptor in _connections(self._peers).items():
                if own not in self._others:
                    _cut(descriptor)
            self._thread.join(1.0)


def _settle(outcome: Future[T], work: Callable[[], T]) -> None:
    try:
        outcome.set_result(work())
    except Exception as error:  # noqa: BLE001 - the caller raises it
        outcome.set_exception(error)


def _resolve(address: Address) -> set[Address]:
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    return {_plain(entry[4]) for entry in found}


def _connections(peers: set[Address]) -> dict[Address, int]:
    """Return this process's connections to these addresses: own end to file descriptor."""
    ends = {int(name): _ends(int(name)) for name in os.listdir("/dev/fd")}
    return {end[0]: descriptor for descriptor, end in ends.items() if end and end[1] in peers}


def _ends(descriptor: int) -> tuple[Address, Address] | None:
    """Return the own and the other end of a connection; None for anything else."""
    with suppress(OSError), _opened(descriptor) as connection:
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            return _plain(connection.getsockname()), _plain(connection.getpeername())
    return None


def _opened(descriptor: int) -> socket.socket:
    """Return the socket of a descriptor, as a copy that the caller closes."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _plain(address: tuple[object, ...]) -> Address:
    return str(address[0]).removeprefix("::ffff:"), int(str(address[1]))


def _cut(descriptor: int) -> None:
    with suppress(OSError), _opened(descriptor) as connection:
        connection.shutdown(socket.SHUT_RDWR)
