"""Which files of a run directory are the run's own; others beside them are never touched.

Knows the names that the storage layer gives, not what the files hold.
"""

from __future__ import annotations

import re
from pathlib import Path

from biggraph.storage import fsops

CONFIG = "config.json"
METRICS = "metrics.jsonl"
FOLDERS = ("log", "parts", "relations")
FILE_NAME = re.compile(r"(?:v(\d+)-)?f(\d+)\.h5")  # version and fence of a data file

_TEMPORARY = fsops.TEMPORARY_NAME
_DATA = r"(?:parts/[^/]+/\d+/v\d+-|relations/)f\d+\.h5"
_RECORD = r"log/\d{8,}"
_DATA_FILES = re.compile(f"{_DATA}(?:{_TEMPORARY})?")
_RECORDS = re.compile(f"{_RECORD}(?:{_TEMPORARY})?")
_TEMPORARIES = re.compile(
    rf"(?:{_DATA}|{_RECORD}|config\.json|{fsops.PROBE_NAME}){_TEMPORARY}|{fsops.PROBE_NAME}"
)


def data_files(path: Path) -> list[Path]:
    """Return the files of partitions and relation parameters, unfinished ones included."""
    return _select(path, _below(path, "parts", "relations"), _DATA_FILES)


def highest_fence(path: Path) -> int:
    """Return the highest fence in the name of a data file; 0 where there is none."""
    matches = (FILE_NAME.fullmatch(file.name) for file in data_files(path))
    return max((int(match[2]) for match in matches if match), default=0)


def records(path: Path) -> list[Path]:
    """Return the records of the log, unfinished ones included, in order."""
    return _select(path, _below(path, "log"), _RECORDS)


def temporaries(path: Path) -> list[Path]:
    """Return every file that was being written when a process ended."""
    return _select(path, all_files(path), _TEMPORARIES)


def all_files(path: Path) -> list[Path]:
    """Return everything in a folder but the folders of a run, and every file in those."""
    top = [path / name for name in fsops.list_names(path)]
    return [p for p in top if p.name not in FOLDERS or not p.is_dir()] + _below(path, *FOLDERS)


def _below(path: Path, *folders: str) -> list[Path]:
    present = [path / name for name in folders if (path / name).is_dir()]
    return [file for folder in present for file in fsops.list_files(folder)]


def _select(path: Path, files: list[Path], pattern: re.Pattern[str]) -> list[Path]:
    return [f for f in files if pattern.fullmatch(f.relative_to(path).as_posix())]
