"""A parameter server of its own as a service: it exchanges vectors, and follows the log.

Knows the follower and that there are transports; nothing of how they do it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from biggraph.dist.endpoint import Endpoint
from biggraph.dist.follower import Follower
from biggraph.dist.protocol import Connect, Done, decode_request, encode
from biggraph.dist.transport import Handlers, Server, open_server
from biggraph.errors import InputError
from biggraph.sections import ClusterSection
from biggraph.storage.state import RunState

_LOOK_S = 0.1  # between two looks at the log


class ParameterService:
    """Serves one slice to workers elsewhere.

    Args:
        follower: of the slice.
    """

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._server: Server | None = None

    def open(self, section: ClusterSection, secret: bytes, job: str) -> Endpoint:
        """Listen as `[cluster]` says, and return where.

        Raises:
            ConfigError: as `open_server`.
        """
        self._server = open_server(section, Handlers(self.answer, self._exchange), secret, job)
        return self._server.endpoint

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    def answer(self, sender: str, incarnation: int, body: dict[str, Any]) -> dict[str, Any]:
        """Accept a pair; nothing else is answered here.

        Raises:
            FormatError: not a request.
            InputError: another request, or one in the name of another worker.
        """
        request = decode_request(body)
        if not isinstance(request, Connect) or not request.key.startswith(f"{sender}-"):
            raise InputError(f"{sender} asks a parameter server for something else than its pair")
        assert self._server is not None
        self._server.accept(request.key)
        return encode(Done())

    def run(self, stop: threading.Event, ended: Callable[[RunState], bool]) -> bool:
        """Serve until the log says that the run has ended, or `stop` is set; return which.

        Raises:
            FormatError: the log or a file that it names is damaged.
            StorageError: the place refused.
        """
        while not ended(self._follower.state):
            if stop.wait(_LOOK_S):
                return False
            self._follower.catch_up()
        return True

    def _exchange(
        self, sender: str, header: dict[str, Any], vector: Tensor
    ) -> tuple[dict[str, Any], Tensor]:
        return self._follower.exchange(header, vector)
