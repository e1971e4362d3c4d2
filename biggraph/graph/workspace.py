"""The folder in which a graph directory grows until it is complete and takes its name.

A killed import leaves only this hidden sibling; the next import of the same name removes it. Knows
nothing of graphs.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from biggraph.errors import StorageError
from biggraph.graph import disk

LOCK = ".biggraph-import"


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
    replaced = out.parent / f".{out.name}.replaced"
    try:
        disk.create_folder(out.parent)
        _recover(out, replaced)
        _refuse_taken(out, is_replaceable)
        with _locked(folder):
            try:
                yield folder
                disk.remove(folder / LOCK)
                _publish(folder, out, replaced)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise StorageError(_explain(out, error)) from error


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _recover(out: Path, replaced: Path) -> None:
    """Undo or finish a replacement that was interrupted."""
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
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, emptying what a killed import left in it."""
    disk.create_folder(folder)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{folder}: another import is writing this graph") from None
        for path in folder.iterdir():
            if path.is_dir():
                disk.remove_tree(path)
            elif path.name != LOCK:
                disk.remove(path)
        yield


def _publish(folder: Path, out: Path, replaced: Path) -> None:
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
