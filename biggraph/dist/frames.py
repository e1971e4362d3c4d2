"""One side of a gloo group of two: sealed messages, each with a vector, sent with deadlines.

A frame of fixed size carries the message, which holds the length and the digest of the vector
that follows. gloo neither encrypts nor authenticates, and ends the process where more comes than
was asked for: frames tell forgeries, but only people one trusts may reach its ports.
"""

from __future__ import annotations

import functools
import hashlib
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    ProcessGroupGloo,
    TCPStore,
)

from biggraph.dist.link import Body
from biggraph.dist.messages import Refused

FRAME_BYTES = 8192  # both sides must agree on it
SERVER, CLIENT = 0, 1  # ranks

_LENGTH_BYTES = 4
_FRAME, _PAYLOAD = 0, 1  # tags


@dataclass(frozen=True)
class Announced:
    """What a message says of itself and of the payload behind it.

    Args:
        header: JSON values.
        floats: of the payload.
        digest: of the payload, SHA-256 in hexadecimal.
    """

    header: Body
    floats: int
    digest: str


def announce(key: str, header: Body, payload: Tensor) -> dict[str, Any]:
    """Return the body of a message of the pair `key` that goes before this payload."""
    sizes = {"key": key, "floats": payload.numel(), "digest": _digest(payload)}
    return {**sizes, "header": header}


def announced(body: dict[str, Any], key: str, limit: int) -> Announced:
    """Return what the body of a verified message announces.

    Raises:
        Refused: it belongs to another pair, or its payload has more than `limit` floats.
    """
    floats, header, digest = body.get("floats"), body.get("header"), body.get("digest")
    if type(floats) is not int or not isinstance(header, dict) or not isinstance(digest, str):
        raise Refused("types")
    if body.get("key") != key:
        raise Refused("kind")
    if not 0 <= floats <= limit:
        raise Refused("oversized")
    return Announced(header, floats, digest)


def fitting(message: bytes) -> bytes:
    """Return a message that fits a frame.

    Raises:
        ValueError: it does not.
    """
    limit = FRAME_BYTES - _LENGTH_BYTES
    if len(message) > limit:
        raise ValueError(f"a message of {len(message)} bytes with its header; the limit is {limit}")
    return message


def checked(payload: Tensor) -> Tensor:
    """Return a payload that can be sent.

    Raises:
        ValueError: it is no float32 vector in main memory.
    """
    fits = payload.dtype == torch.float32 and payload.dim() == 1 and payload.is_contiguous()
    if not fits or not payload.is_cpu:
        raise ValueError(
            "a payload must be a contiguous float32 vector in main memory, found "
            f"{payload.dtype} {tuple(payload.shape)} on {payload.device}"
        )
    return payload.detach()


def join(store: TCPStore, key: str, rank: int, host: str, timeout_s: float) -> Pair:
    """Return one side of a new pair; it listens on the interface of `host` alone.

    Args:
        store: client of the store that both sides meet in.
        key: of the pair.
        rank: SERVER or CLIENT.
        host: name or address of this machine.
        timeout_s: seconds for the other side to come.

    Raises:
        RuntimeError: it did not come.
    """
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [_device(host)]
    options._timeout = timedelta(seconds=timeout_s)
    options._threads = 1
    return Pair(ProcessGroupGloo(PrefixStore(key, store), rank, 2, options), 1 - rank)


@functools.cache
def _device(host: str) -> Any:
    """Return what listens for all pairs of this process; its thread wakes 100 times a second."""
    return ProcessGroupGloo.create_device(hostname=host)


def forget_addresses(store: TCPStore, key: str) -> None:
    """Remove from the store what the two sides left there to find each other."""
    for rank in (SERVER, CLIENT):
        PrefixStore(key, store).delete_key(f"0/{rank}")


class Pair:
    """One side of a group of two. Of no further use after an error.

    Every deadline is a time of `time.monotonic`; where it passes, or the other side goes, gloo
    raises a RuntimeError.

    Args:
        group: joined by both.
        peer: rank of the other side.
    """

    def __init__(self, group: Any, peer: int) -> None:
        self._group = group
        self._peer = peer
        self._outgoing = torch.zeros(FRAME_BYTES, dtype=torch.uint8)
        self._incoming = torch.zeros(FRAME_BYTES, dtype=torch.uint8)
        self._payload = torch.empty(0)

    def send(self, message: bytes, payload: Tensor, deadline: float) -> None:
        """Send a message that fits a frame, and the payload that it announces."""
        framed = bytearray(len(message).to_bytes(_LENGTH_BYTES, "little") + message)
        self._outgoing.zero_()
        self._outgoing[: len(framed)] = torch.frombuffer(framed, dtype=torch.uint8)
        self._group.send([self._outgoing], self._peer, _FRAME).wait(_left(deadline))
        if payload.numel():
            self._group.send([payload], self._peer, _PAYLOAD).wait(_left(deadline))

    def receive_message(self, deadline: float) -> bytes:
        """Return the next message, not yet verified."""
        self._group.recv([self._incoming], self._peer, _FRAME).wait(_left(deadline))
        frame = self._incoming.numpy().tobytes()
        length = int.from_bytes(frame[:_LENGTH_BYTES], "little")
        return frame[_LENGTH_BYTES : _LENGTH_BYTES + length]

    def receive_payload(self, announced: Announced, deadline: float) -> Tensor:
        """Return the payload that a verified message announced; the next one overwrites it.

        Raises:
            Refused: its digest is another.
        """
        if self._payload.numel() < announced.floats:
            self._payload = torch.empty(announced.floats)
        payload = self._payload[: announced.floats]
        if announced.floats:
            self._group.recv([payload], self._peer, _PAYLOAD).wait(_left(deadline))
        if _digest(payload) != announced.digest:
            raise Refused("digest")
        return payload


def _digest(payload: Tensor) -> str:
    return hashlib.sha256(payload.numpy().data.cast("B")).hexdigest()


def _left(deadline: float) -> timedelta:
    return timedelta(seconds=max(0.001, deadline - time.monotonic()))
