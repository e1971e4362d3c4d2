"""The log: numbered records, each a complete file of JSON with a checksum.

A record is created put-if-absent under its number, so of two writers one wins, and what a record
says happened is all that ever happened. Knows nothing of what records mean.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biggraph.errors import FormatError, StorageError
from biggraph.storage import fsops

VERSION = 1


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


def record_path(folder: Path, number: int) -> Path:
    """Return the path of the record of that number."""
    return folder / f"{number:08d}"


def append(folder: Path, record: Record) -> None:
    """Write a record durably.

    Raises:
        StorageError: the number is taken, so another process writes this log; or the file system
            refused. The record may or may not be there then: only a replay tells.
    """
    path = record_path(folder, record.number)
    if not fsops.put_if_absent(path, encode(record)):
        raise StorageError(
            f"{path}: another process has written this record; only one process may write a run"
        )


def begin_anew(folder: Path, later: Sequence[Path], first: Record) -> None:
    """Put another record in the place of the first, after removing the later ones, last to first.

    At every moment the folder holds a log, so this can be interrupted.

    Raises:
        StorageError: the file system refused.
    """
    for path in reversed(later):
        fsops.unlink(path)
    fsops.replace(record_path(folder, first.number), encode(first))


def replay(folder: Path) -> list[Record]:
    """Return every record, in order; files with other names do not count.

    Raises:
        FormatError: a record is missing, damaged or of another version; names it.
        StorageError: the file system refused.
    """
    files = [p for p in fsops.list_files(folder) if p.parent == folder]
    paths = [p for p in files if re.fullmatch(r"\d{8,}", p.name)]
    records = []
    for number, path in enumerate(sorted(paths, key=lambda p: int(p.name))):
        if path != record_path(folder, number):
            raise FormatError(
                f"{record_path(folder, number)}: missing, though later records exist; "
                "restore it from a copy, or begin the run anew"
            )
        records.append(decode(fsops.read_file(path), path))
    return records


def encode(record: Record) -> bytes:
    """Return the bytes of a record: one line of JSON with sorted keys."""
    content = {"version": VERSION, "number": record.number, "kind": record.kind}
    content["body"] = record.body
    checksum = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical(content | {"checksum": checksum}) + b"\n"


def decode(data: bytes, path: Path) -> Record:
    """Return the record in `data`, which has to be exactly what `encode` wrote.

    Raises:
        FormatError: damaged or of another version; names `path`.
    """
    damaged = f"{path}: damaged record; restore it from a copy, or begin the run anew"
    try:
        content = json.loads(data)
        version, number = content["version"], content["number"]
        record = Record(number, content["kind"], content["body"])
        sound = version != VERSION or (
            encode(record) == data and record_path(path.parent, number) == path
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(damaged) from None
    if not sound:
        raise FormatError(damaged)
    if version != VERSION:
        raise FormatError(
            f"{path}: log version {version!r}, this biggraph reads version {VERSION}; "
            "use the biggraph that wrote it"
        )
    return record


def _canonical(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()
