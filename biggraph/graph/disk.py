"""Every change that an import makes to the file system, in one place that tests can interrupt.

Knows bytes and paths, not what they mean.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def _nothing(operation: str) -> None:
    """Let every operation pass."""


before_operation: Callable[[str], None] = _nothing  # tests put a fault here


def append(path: Path, pieces: Iterable[Any]) -> None:
    """Append buffers to a scratch file; not durable."""
    before_operation("append")
    with path.open("ab") as file:
        for piece in pieces:
            file.write(piece)


def create_folder(path: Path) -> None:
    """Make a folder and its parents."""
    before_operation("create_folder")
    path.mkdir(parents=True, exist_ok=True)


def write(path: Path, content: bytes) -> None:
    """Write a new file."""
    before_operation("write")
    with path.open("xb") as file:
        file.write(content)


def reserve(descriptor: int, size: int) -> None:
    """Take room on the disk for the first `size` bytes of a file.

    What writes to it later, HDF5 or a memory map, cannot report a full disk; this can.
    """
    before_operation("reserve")
    if size:
        os.posix_fallocate(descriptor, 0, size)


def make_tree_durable(root: Path) -> None:
    """Wait until the disk has all files and folders below a folder, and itself."""
    found = [Path(folder, name) for folder, _, names in os.walk(root) for name in [*names, "."]]
    with ThreadPoolExecutor(16) as threads:  # the file system groups what waits at the same time
        for _ in threads.map(make_durable, found):
            pass


def make_durable(path: Path) -> None:
    """Wait until the disk has a file's content or a folder's entries."""
    before_operation("sync")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder, and make the rename durable."""
    before_operation("rename")
    source.rename(target)
    make_durable(target.parent)


def move(source: Path, target: Path) -> None:
    """Rename a scratch file; not durable."""
    before_operation("move")
    source.rename(target)


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    before_operation("remove")
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it."""
    before_operation("remove_tree")
    shutil.rmtree(path)


def digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 (hex) and the size of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
