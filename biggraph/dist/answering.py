"""From a verified request to a signed answer, whatever its handler does.

Knows nothing of transports.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from biggraph.dist import frames
from biggraph.dist.link import Body, Handler
from biggraph.dist.messages import Envelope, answer
from biggraph.errors import BigGraphError

_LOG = logging.getLogger(__name__)

# (sender, header, payload) -> (header, payload); the payload that it is given is overwritten by
# the next exchange of the sender. Called by several threads at the same time.
VectorHandler = Callable[[str, Body, Tensor], tuple[Body, Tensor]]


def answer_call(
    handler: Handler, secret: bytes, request: Envelope, body: Body
) -> tuple[bytes, bool]:
    """Return the sealed reply, or a sealed error and False where the handler raised."""
    try:
        reply = handler(request.sender, request.incarnation, body)
        return answer(secret, request, "reply", {"reply": reply}), True
    except Exception as error:  # noqa: BLE001 - a defect must not end the server
        _report(error, "a request", request.sender)
        return answer(secret, request, "reply", {"error": _describe(error)[:2000]}), False


def answer_exchange(
    handler: VectorHandler, secret: bytes, request: Envelope, header: Body, payload: Tensor
) -> tuple[bytes, Tensor]:
    """Return the sealed answer, an error where the handler raised, and the vector behind it."""
    key = request.body["key"]
    try:
        header, payload = handler(request.sender, header, payload)
        body = frames.announce(key, header, frames.checked(payload))
        return frames.fitting(answer(secret, request, "answer", body)), payload.detach()
    except Exception as error:  # noqa: BLE001 - a defect must not end the server
        _report(error, "an exchange", request.sender)
        nothing = torch.empty(0)
        body = {**frames.announce(key, {}, nothing), "error": _describe(error)[:500]}
        return frames.fitting(answer(secret, request, "answer", body)), nothing


def _report(error: Exception, what: str, sender: str) -> None:
    """Say what failed; where it is no defect, who asked or who runs the service says it."""
    expected = isinstance(error, BigGraphError)
    _LOG.log(
        logging.INFO if expected else logging.ERROR,
        "%s of %s failed: %s", what, sender, error, exc_info=None if expected else error,
    )  # fmt: skip


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, BigGraphError) else f"{type(error).__name__}: {error}"
