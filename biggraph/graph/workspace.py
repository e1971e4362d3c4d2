"""The folder in which a graph directory grows until it is complete and takes its name.

A killed import leaves only hidden siblings of the name; the next import of that name removes them.
Knows nothing of graphs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from biggraph.errors import StorageError
from biggraph.graph import disk


@contextmanager
def workspace(out: Path, is_replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty folder beside `out`; publish it as `out` at the end, or remove it on error.

    Args:
        out: the final name.
        is_replaceable: whether what exists under that name may be replaced.

    Raises:
        StorageError: the name is taken, another import is writing it, or the disk refused.
    """
    folder = out.parent / f".{out.name}.importing"
    try:
        disk.create_folder(out.parent)
        with _locked(out):
            _recover(out)
            _refuse_taken(out, is_replaceable)
            if folder.exists():
                disk.remove_tree(folder)
            try:
                disk.create_folder(folder)
                yield folder
                _refuse_taken(out, is_replaceable)  # it may have come into being meanwhile
                _publish(folder, out)
            finally:
                _discard(folder)
    except OSError as error:
        raise StorageError(_explain(out, error)) from error


def replaced_path(out: Path) -> Path:
    """Return where the old graph lies while a new one takes its name."""
    return out.parent / f".{out.name}.replaced"


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _recover(out: Path) -> None:
    """Undo or finish a replacement that was interrupted."""
    replaced = replaced_path(out)
    if replaced.exists() and not out.exists():
        disk.rename(replaced, out)
    elif replaced.exists():
        disk.remove_tree(replaced)


def _refuse_taken(out: Path, is_replaceable: Callable[[Path], bool]) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink() and (not any(out.iterdir()) or is_replaceable(out)):
        return
    raise StorageError(
        f"{out}: exists and is not empty; choose another name (a graph may be overwritten)"
    )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other imports of the same name out; the lock's file is removed at the end."""
    path = out.parent / f".{out.name}.lock"
    descriptor = _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path) -> int:
    """Open and lock a file that still has its name, whatever others remove meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise StorageError(f"{path}: another import is writing this graph") from None
        os.close(descriptor)


def _publish(folder: Path, out: Path) -> None:
    replaced = replaced_path(out)
    if out.exists() and any(out.iterdir()):
        disk.rename(out, replaced)
    disk.rename(folder, out)
    if replaced.exists():
        disk.remove_tree(replaced)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start where the disk cannot hold the work.

    Raises:
        StorageError: says how much is needed and free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: the import needs about {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB "
            "are free; free some space or import to another disk"
        )


def _explain(out: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{out}: no space left on the disk; what was written is removed, free some space"
    return f"{out}: the import could not write ({error.strerror or error}); nothing was left behind"
