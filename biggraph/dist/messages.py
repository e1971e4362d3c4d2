"""Signed envelopes: JSON that only holders of the job secret can make, and none can replay.

A sealed message is an HMAC-SHA256 (32 bytes) followed by the JSON that it covers, so nothing is
parsed before its signature holds. Pure functions and counters: knows no clock, no socket, and
not what a body means.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

VERSION = 1
MAX_BYTES = 4 * 2**20  # of one sealed message
MAX_DEPTH = 32  # of containers in containers, in the whole envelope
MAX_NAME = 200  # printable ASCII characters of a kind, job, term or sender

_SIGNATURE_BYTES = hashlib.sha256().digest_size
_NAMES = ("kind", "job", "term", "sender")
_NUMBERS = ("incarnation", "sequence")

Reason = Literal[
    "oversized",
    "signature",
    "not JSON",
    "too deep",
    "types",
    "version",
    "kind",
    "job",
    "term",
    "sender",
    "stale",
    "digest",
]


class Refused(Exception):
    """A message that does not count.

    Args:
        reason: what is wrong with it, for counting.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Envelope:
    """What a message says about itself, and its body.

    Args:
        kind: of message; one kind cannot stand for another.
        job: id of the job.
        term: id of the coordinator's start.
        sender: who asks; a reply repeats that of its request.
        incarnation: of the sender, from 0.
        sequence: from 0; rises with each message of a sender in its incarnation and term.
        body: JSON values.
    """

    kind: str
    job: str
    term: str
    sender: str
    incarnation: int
    sequence: int
    body: dict[str, Any]


def seal(secret: bytes, envelope: Envelope) -> bytes:
    """Return the bytes of a message.

    Raises:
        ValueError: the body holds something that is no JSON, is too deep or too large.
    """
    if not _has_right_types(vars(envelope)):
        raise ValueError(
            f"names must be short and printable ASCII, numbers not negative: {envelope}"
        )
    fields = {"version": VERSION, **vars(envelope)}
    try:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the body of a message cannot be written as JSON: {error}") from error
    data = text.encode()
    if len(data) + _SIGNATURE_BYTES > MAX_BYTES:
        raise ValueError(f"a message of {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    if _is_deeper(fields, MAX_DEPTH):
        raise ValueError(f"the body of a message is nested deeper than {MAX_DEPTH}")
    return _sign(secret, data) + data


def unseal(secret: bytes, data: bytes) -> Envelope:
    """Return the message that `seal` made.

    Raises:
        Refused: it is too large, its signature does not hold, or it is no envelope.
    """
    if len(data) > MAX_BYTES:
        raise Refused("oversized")
    signature, text = data[:_SIGNATURE_BYTES], data[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _sign(secret, text)):
        raise Refused("signature")
    fields = _parse(text)
    if fields.pop("version", None) != VERSION:
        raise Refused("version")
    if not _has_right_types(fields):
        raise Refused("types")
    return Envelope(**fields)


def _sign(secret: bytes, data: bytes) -> bytes:
    return hmac.digest(secret, data, "sha256")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise Refused("too deep") from None
    except ValueError:
        raise Refused("not JSON") from None
    if _is_deeper(fields, MAX_DEPTH):
        raise Refused("too deep")
    if not isinstance(fields, dict):
        raise Refused("types")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _is_deeper(value: object, limit: int) -> bool:
    """Return whether containers are nested deeper than `limit`, without recursion."""
    level = [value]
    for _ in range(limit + 1):
        inner = [part for part in level if isinstance(part, dict | list | tuple)]
        if not inner:
            return False
        level = [
            part
            for container in inner
            for part in (container.values() if isinstance(container, dict) else container)
        ]
    return True


def _has_right_types(fields: dict[str, Any]) -> bool:
    if set(fields) != {*_NAMES, *_NUMBERS, "body"} or not isinstance(fields["body"], dict):
        return False
    names, numbers = [fields[key] for key in _NAMES], [fields[key] for key in _NUMBERS]
    return all(_is_name(name) for name in names) and all(
        type(number) is int and 0 <= number < 2**63 for number in numbers
    )


def _is_name(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_NAME
        and value.isascii()
        and value.isprintable()
    )


class Identity:
    """Who sends: seals each message under a sequence number that no other message has.

    One link at a time may use an identity, since the receiver refuses what comes out of order.
    Safe to use from several threads.

    Args:
        secret: of the job.
        job: id of the job.
        sender: name, at most `MAX_NAME` characters.
        incarnation: of the sender; larger after each of its starts.
    """

    def __init__(self, secret: bytes, job: str, sender: str, incarnation: int) -> None:
        self.secret = secret
        self.job = job
        self.sender = sender
        self.incarnation = incarnation
        self._sequence = itertools.count()

    def next_sequence(self) -> int:
        """Return a number larger than all before."""
        return next(self._sequence)

    def seal(self, kind: str, term: str, sequence: int, body: dict[str, Any]) -> bytes:
        """Return a sealed message of this sender.

        Raises:
            ValueError: as `seal`.
        """
        envelope = Envelope(kind, self.job, term, self.sender, self.incarnation, sequence, body)
        return seal(self.secret, envelope)

    def open_answer(self, kind: str, term: str, sequence: int, data: bytes) -> Envelope:
        """Return the answer to this sender's message of that number.

        Raises:
            Refused: it is none.
        """
        found = unseal(self.secret, data)
        expected = {"kind": kind, "job": self.job, "term": term, "sender": self.sender}
        _require(found, expected)
        if (found.incarnation, found.sequence) != (self.incarnation, sequence):
            raise Refused("stale")
        return found


def answer(secret: bytes, request: Envelope, kind: str, body: dict[str, Any]) -> bytes:
    """Return a sealed message that quotes the request it answers.

    Raises:
        ValueError: as `seal`.
    """
    return seal(secret, replace(request, kind=kind, body=body))


def _require(envelope: Envelope, expected: dict[str, str]) -> None:
    for field in _NAMES:
        if field in expected and getattr(envelope, field) != expected[field]:
            raise Refused(field)  # type: ignore[arg-type]  # each is a Reason


class Verifier:
    """Opens messages of one kind, job and term, each once and in order; counts the others.

    For one thread.

    Args:
        secret: of the job.
        kind: of message that is expected.
        job: id of the job.
        term: id of the coordinator's start.
    """

    def __init__(self, secret: bytes, kind: str, job: str, term: str) -> None:
        self._secret = secret
        self._expected = {"kind": kind, "job": job, "term": term}
        self._last: dict[tuple[str, int], int] = {}
        self.refused: Counter[Reason] = Counter()

    def open(self, data: bytes) -> Envelope | None:
        """Return the message, or None where it was refused and counted in `refused`."""
        try:
            return self.check(data)
        except Refused as refusal:
            self.refused[refusal.reason] += 1
            return None

    def check(self, data: bytes) -> Envelope:
        """Return the message.

        Raises:
            Refused: it does not count; `refused` is left as it is.
        """
        envelope = unseal(self._secret, data)
        _require(envelope, self._expected)
        source = (envelope.sender, envelope.incarnation)
        if envelope.sequence <= self._last.get(source, -1):
            raise Refused("stale")
        self._last[source] = envelope.sequence
        return envelope
