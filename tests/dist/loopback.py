"""A line to the coordinator that is none: it calls the handler, and loses what it is told to."""

import json
from collections.abc import Callable

from biggraph.dist.link import Body, Handler
from biggraph.errors import LinkLost


class LoopbackLink:
    """Calls the handler directly; a test may lose, repeat or delay what passes.

    Bodies are copied through JSON as a transport does.

    Args:
        handler: of the coordinator.
        sender: name of the worker.
        incarnation: of the worker.
        fault: told the number of each call, from 0; names what happens to it: "" nothing,
            "lose request", "lose reply", "repeat" (handled twice), "delay" (handled just before
            the next call, its own reply lost).
    """

    def __init__(
        self,
        handler: Handler,
        sender: str,
        incarnation: int,
        fault: Callable[[int], str] = lambda number: "",
    ) -> None:
        self._handler = handler
        self._source = (sender, incarnation)
        self._fault = fault
        self._late: list[Body] = []
        self._calls = 0
        self._closed = False

    def call(self, body: Body, timeout_s: float) -> Body:
        """Return the reply, unless this call is to be lost; see `Link.call`."""
        if self._closed:
            raise LinkLost("the link is closed")
        late, self._late = self._late, []
        for earlier in late:
            self._handle(earlier)
        fault, self._calls = self._fault(self._calls), self._calls + 1
        if fault == "delay":
            self._late.append(body)
        if fault in ("delay", "lose request"):
            raise LinkLost(f"no reply within {timeout_s:g} s")
        reply = self._handle(body)
        if fault == "repeat":
            reply = self._handle(body)
        if fault == "lose reply":
            raise LinkLost(f"no reply within {timeout_s:g} s")
        return reply

    def _handle(self, body: Body) -> Body:
        reply: Body = json.loads(json.dumps(self._handler(*self._source, _copy(body))))
        return reply

    def close(self) -> None:
        """End the line; calls after it are lost."""
        self._closed = True


def _copy(body: Body) -> Body:
    copied: Body = json.loads(json.dumps(body))
    return copied
