"""The log: numbered records, each a complete file of JSON with a checksum.

A record is created put-if-absent under its number, so of two writers one wins, and what a record
says happened is all that ever happened. Knows nothing of what records mean.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from biggraph.errors import FormatError, StorageError
from biggraph.storage.place import RESTORE, Place

VERSION = 1
FOLDER = "log"


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the log.

    Args:
        number: position, from 0 without gaps.
        kind: what happened.
        body: facts; values of JSON only.
    """

    number: int
    kind: str
    body: dict[str, Any]


def record_name(number: int) -> str:
    """Return the name of the record of that number.

    >>> record_name(42)
    'log/00000042'
    """
    return f"{FOLDER}/{number:08d}"


def append(place: Place, record: Record) -> None:
    """Write a record durably.

    Raises:
        StorageError: the number is taken, so another process writes this log; or the place
            refused. The record may or may not be there then: only a replay tells.
    """
    if not place.put_if_absent(record_name(record.number), encode(record)):
        raise _taken(place, record.number)


def require_free(place: Place, number: int) -> None:
    """Refuse a number that is taken, before anybody writes it; raises StorageError as `append`."""
    if place.size(record_name(number)) is not None:
        raise _taken(place, number)


@contextmanager
def reading_files(place: Place, number: int) -> Iterator[None]:
    """Tell a file that is lost from one that another writer has removed as it went on with the run.

    Args:
        place: of the run.
        number: of the first record that was not read.

    Raises:
        StorageError: another process has written that record.
        FormatError: a file is missing, or whatever else the block found wrong.
    """
    try:
        yield
    except (FileNotFoundError, FormatError) as error:
        require_free(place, number)
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{error.filename}: missing{RESTORE}") from None


def _taken(place: Place, number: int) -> StorageError:
    return StorageError(
        f"{place.where(record_name(number))}: another process has written this record; only one "
        "process may write a run"
    )


def begin_anew(place: Place, later: Sequence[str], first: Record) -> None:
    """Put another record in the place of the first, after removing the later ones, last to first.

    At every moment the place holds a log, so this can be interrupted.

    Raises:
        StorageError: the place refused.
    """
    for name in reversed(later):
        place.remove(name)
    place.replace(record_name(first.number), encode(first))


def replay(place: Place) -> list[Record]:
    """Return every record, in order; files with other names do not count.

    Raises:
        FormatError: a record is missing, damaged or of another version; names it.
        StorageError: the place refused.
    """
    names = [n for n in place.names(FOLDER) if re.fullmatch(rf"{FOLDER}/\d{{8,}}", n)]
    records = []
    for number, name in enumerate(sorted(names, key=lambda n: int(n.rpartition("/")[2]))):
        where = place.where(record_name(number))
        if name != record_name(number):
            raise FormatError(f"{where}: missing, though later records exist{RESTORE}")
        records.append(decode(place.read(name), number, where))
    return records


def read(place: Place, number: int) -> Record | None:
    """Return the record of that number, None where it is not written yet; raises as `replay`."""
    name = record_name(number)
    try:
        return decode(place.read(name), number, place.where(name))
    except FileNotFoundError:
        return None


def encode(record: Record) -> bytes:
    """Return the bytes of a record: one line of JSON with sorted keys."""
    content = {"version": VERSION, "number": record.number, "kind": record.kind}
    content["body"] = record.body
    checksum = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content | {"checksum": checksum}) + b"\n"


def decode(data: bytes, number: int, where: str) -> Record:
    """Return the record in `data`, which has to be exactly what `encode` wrote.

    Args:
        data: content of a file.
        number: that the record has to have.
        where: names the file in errors.

    Raises:
        FormatError: damaged or of another version.
    """
    damaged = f"{where}: damaged record{RESTORE}"
    try:
        content = json.loads(data)
        version = content["version"]
        record = Record(number, content["kind"], content["body"])
        sound = version != VERSION or encode(record) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(damaged) from None
    if not sound:
        raise FormatError(damaged)
    if version != VERSION:
        raise FormatError(
            f"{where}: log version {version!r}, this biggraph reads version {VERSION}; "
            "use the biggraph that wrote it"
        )
    return record


def _canonical(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()
