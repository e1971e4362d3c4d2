"""Which files of a place are the run's own; others beside them are never touched.

Knows the names that the storage layer gives, not what the files hold.
"""

from __future__ import annotations

import re

from biggraph.storage import fsops, log
from biggraph.storage.place import Place

CONFIG = "config.json"
METRICS = "metrics.jsonl"
FOLDERS = (log.FOLDER, "parts", "relations")
_FENCE = re.compile(r"(?:v\d+-)?f(\d+)\.h5(?:\.|$)")

_TEMPORARY = fsops.TEMPORARY_NAME
_DATA = r"(?:parts/[^/]+/\d+/v\d+-|relations/)f\d+\.h5"
_RECORD = r"log/\d{8,}"
_DATA_FILES = re.compile(f"{_DATA}(?:{_TEMPORARY})?")
_RECORDS = re.compile(f"{_RECORD}(?:{_TEMPORARY})?")
_ENDPOINT = r"endpoint(?:-parameters-\d+)?\.json"
_REPLACED = rf"config\.json|secret|{_ENDPOINT}|{fsops.PROBE_NAME}"
_TEMPORARIES = re.compile(rf"(?:{_DATA}|{_RECORD}|{_REPLACED}){_TEMPORARY}|{fsops.PROBE_NAME}")
# Not the secret, nor where parameter servers listen: those may live on, and follow the new run.
_TOLD = re.compile(r"endpoint\.json|metrics(?:-[\w.~%-]+)?\.jsonl", re.ASCII)


def data_files(place: Place) -> list[str]:
    """Return the files of partitions and relation parameters, unfinished ones included."""
    return _select(_below(place, "parts", "relations"), _DATA_FILES)


def fence_of(name: str) -> int | None:
    """Return the fence in the name of a data file, an unfinished one too; None without one.

    >>> fence_of("parts/user/3/v000042-f000017.h5"), fence_of("config.json")
    (17, None)
    """
    match = _FENCE.match(base_name(name))
    return None if match is None else int(match[1])


def highest_fence(place: Place) -> int:
    """Return the highest fence in the name of a data file; 0 where there is none."""
    return max((fence_of(name) or 0 for name in data_files(place)), default=0)


def records(place: Place) -> list[str]:
    """Return the records of the log, unfinished ones included, in order."""
    return _select(_below(place, log.FOLDER), _RECORDS)


def temporaries(place: Place) -> list[str]:
    """Return every file that was being written when a process ended."""
    return _select(all_files(place), _TEMPORARIES)


def told(place: Place) -> list[str]:
    """Return where the coordinator said that it listens, and what every process told of itself."""
    return _select(place.top(), _TOLD)


def all_files(place: Place) -> list[str]:
    """Return everything in a place but the folders of a run, and every file in those."""
    own = {f"{folder}/" for folder in FOLDERS}
    top = [name.removesuffix("/") for name in place.top() if name not in own]
    return top + _below(place, *FOLDERS)


def base_name(name: str) -> str:
    """Return the last part of a name.

    >>> base_name("parts/user/3/v000042-f000017.h5")
    'v000042-f000017.h5'
    """
    return name.rpartition("/")[2]


def _below(place: Place, *folders: str) -> list[str]:
    return [name for folder in folders for name in place.names(folder)]


def _select(names: list[str], pattern: re.Pattern[str]) -> list[str]:
    return [name for name in names if pattern.fullmatch(name)]
