"""What a worker may expect of its line to the coordinator, and what every line does alike.

Knows nothing of transports or of what messages mean.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from biggraph.errors import LinkLost, RemoteError

Body = dict[str, Any]  # JSON values
Handler = Callable[[str, int, Body], Body]  # (sender, incarnation, request) -> reply


class Link(Protocol):
    """A line to the coordinator. After an error the next call tries again from scratch."""

    def call(self, body: Body, timeout_s: float) -> Body:
        """Return the reply to a request; whether a lost one was handled is not known.

        Args:
            body: JSON values.
            timeout_s: seconds until the call is given up.

        Raises:
            LinkLost: no valid reply came in time.
            RemoteError: the other side could not handle the request.
        """

    def close(self) -> None:
        """End the line; calls after it are lost."""


def call_in_turn(lock: threading.Lock, ask: Callable[[float], Body], timeout_s: float) -> Body:
    """Return the reply that `ask` gets when no other thread calls; see `Link.call`.

    Args:
        lock: one for each line.
        ask: told the seconds left; returns {"reply": ...} or {"error": ...}.
        timeout_s: seconds for the wait and the call together.

    Raises:
        LinkLost: the others took too long, or `ask` lost its call.
        RemoteError: the handler failed; its message.
    """
    deadline = time.monotonic() + timeout_s
    if not lock.acquire(timeout=timeout_s):
        raise LinkLost(f"another call took longer than {timeout_s:g} s")
    try:
        found = ask(deadline - time.monotonic())
    finally:
        lock.release()
    if "error" in found:
        raise RemoteError(f"the coordinator could not handle a request: {found['error']}")
    reply: Body = found["reply"]
    return reply
