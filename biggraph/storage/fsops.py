"""Every file operation of the storage layer, one named function each.

What the file system refuses becomes a StorageError that says what, where and what to do. Tests
watch the operations with `observed` and make the n-th one fail or end the process. Knows nothing
of what the files hold.

A file under its final name is complete and durable, and is never written again: `publish` writes
a temporary file beside it, syncs it, links it to the final name (which fails where the name is
taken), and syncs the folder.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from biggraph.errors import StorageError

TEMPORARY = ".tmp"  # ending of names that never count
TEMPORARY_NAME = r"\.[0-9a-f]{12}\.tmp"  # what follows the final name, as a regular expression
PROBE_NAME = r"probe-[0-9a-f]{12}\.tmp"
_ATTEMPTS = 3
_CLEANED = "another process has cleaned up here"

Observer = Callable[[str, Path], None]  # told the operation and its path before it happens

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a folder on a larger disk",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "it is mounted read-only; choose another folder",
    errno.EACCES: "check its permissions, or choose another folder",
    errno.EPERM: "check its permissions, or choose another folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "the device reports errors; check the disk, then resume",
}

_observer: Observer | None = None


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Call `observer` before every operation inside; what it raises happens there (for tests)."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


@contextmanager
def operation(name: str, path: Path) -> Iterator[None]:
    """Name the enclosed file operation, and say clearly what the file system refused.

    Raises:
        StorageError: for every OSError but a missing or an existing file, which the caller knows.
    """
    try:
        if _observer is not None:
            _observer(name, path)
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "see the operating system's message")
        raise StorageError(f"{path}: cannot {name}: {reason}; {remedy}") from error


@contextmanager
def publish(path: Path) -> Iterator[io.BufferedRandom]:
    """Write a new file: yields it under a temporary name, and publishes it when the block ends.

    On an error nothing is left; a killed process leaves a file whose name ends in `TEMPORARY`.

    Raises:
        FileExistsError: another file has that name; it is untouched.
        StorageError: the file system refused.
    """
    temporary = _temporary(path)
    try:
        with operation("write", temporary), temporary.open("xb+") as file:
            yield file
            sync(file, temporary)
        with operation("link", path):
            _link(temporary, path)
    except Exception:
        with suppress(OSError):
            temporary.unlink()
        raise
    unlink(temporary)
    sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileNotFoundError:
        raise StorageError(f"{temporary}: gone before it had its final name; {_CLEANED}") from None
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise StorageError(
                f"{path.parent}: this file system has no hard links, which keep two writers "
                "apart; choose a folder on another one"
            ) from error
        raise


def put_if_absent(path: Path, data: bytes) -> bool:
    """Publish a file with this content, unless the name is taken: a compare-and-swap in storage.

    Returns:
        False where the name was taken; the file there is untouched.

    Raises:
        StorageError: the file system refused.
    """
    try:
        with publish(path) as file:
            file.write(data)
    except FileExistsError:
        return False
    return True


def replace(path: Path, data: bytes) -> None:
    """Put this content under the name, in one step, whether or not the name was taken.

    Raises:
        StorageError: the file system refused.
    """
    # Another process that starts here may clean up what is being written, but not every time.
    if not any(_replaced(path, data) for _ in range(_ATTEMPTS)):
        raise StorageError(f"{path}: its temporary file is gone each time; {_CLEANED}")
    sync_folder(path.parent)


def _replaced(path: Path, data: bytes) -> bool:
    """Tell whether it could be replaced before somebody else removed the temporary file."""
    temporary = _temporary(path)
    try:
        with operation("write", temporary), temporary.open("xb") as file:
            file.write(data)
            sync(file, temporary)
        with operation("rename", path), suppress(FileNotFoundError):
            os.replace(temporary, path)
            return True
    except Exception:
        with suppress(OSError):
            temporary.unlink()
        raise
    return False


def sync(file: IO[bytes], path: Path) -> None:
    """Make the content of an open file durable."""
    with operation("sync", path):
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with operation("sync folder", folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and the missing ones above it, durably.

    Raises:
        StorageError: a file has that name, or the file system refused.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with operation("make folder", folder):
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():
                raise StorageError(f"{folder}: is a file; give the path of a folder") from None
    sync_folder(folder.parent)


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading.

    Raises:
        FileNotFoundError: no such file.
        StorageError: the file system refused.
    """
    with operation("read", path):
        return path.open("rb")


def read_file(path: Path) -> bytes:
    """Return the content of a file; raises as `open_file`."""
    with open_file(path) as file, operation("read", path):
        return file.read()


def map_file(file: io.BufferedReader | io.BufferedRandom, size: int) -> NDArray[np.uint8]:
    """Return an open file mapped read-only, uint8 [size]; its descriptor can be closed.

    Python's own mmap would keep a descriptor for each of many files.

    Raises:
        OSError: it cannot be mapped.
    """
    name = f"/dev/fd/{file.fileno()}"  # by its descriptor: its name may be gone by now
    try:
        memory: NDArray[np.uint8] = torch.from_file(name, False, size, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise OSError(0, str(error)) from None
    memory.flags.writeable = False
    return memory


def list_files(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted; none where there is no such folder.

    Raises:
        StorageError: a folder cannot be read.
    """
    with operation("list", folder):
        walk = os.walk(folder, onerror=_refuse_unreadable)
        found = [Path(top) / name for top, _, names in walk for name in names]
    return sorted(found)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    with operation("list", folder):
        return sorted(os.listdir(folder))


def unlink(path: Path) -> None:
    """Remove a file, if it is there."""
    with operation("remove", path):
        path.unlink(missing_ok=True)


def remove_empty_folders(folder: Path) -> None:
    """Remove a folder and those below it, as far as they hold no file."""
    with operation("remove folder", folder):
        for top, _, _ in os.walk(folder, topdown=False, onerror=_refuse_unreadable):
            if not os.listdir(top):
                os.rmdir(top)


def require_space(folder: Path, size: int) -> None:
    """Refuse to start a write that cannot fit.

    Raises:
        StorageError: fewer than `size` bytes are free; names both numbers.
    """
    with operation("look for space", folder):
        free = shutil.disk_usage(folder).free
    if free < size:
        raise StorageError(
            f"{folder}: {size / 1e6:,.1f} MB to write, {free / 1e6:,.1f} MB free; "
            f"{_REMEDIES[errno.ENOSPC]}"
        )


def check_put_if_absent(folder: Path) -> None:
    """Find out whether the file system lets exactly one of two writers have a name.

    Raises:
        StorageError: it does not (no hard links, as on some network and FAT file systems).
    """
    # Another process that starts here may clean up a probe, but not every time.
    if not any(_gives_name_once(folder) for _ in range(_ATTEMPTS)):
        raise StorageError(
            f"{folder}: this file system lets two writers have the same name, so a run is "
            "not safe on it; choose another folder"
        )


def _gives_name_once(folder: Path) -> bool:
    probe = folder / f"probe-{uuid.uuid4().hex[:12]}{TEMPORARY}"
    try:
        put_if_absent(probe, b"first")
        return not put_if_absent(probe, b"second") and read_file(probe) == b"first"
    except FileNotFoundError:
        return False
    finally:
        unlink(probe)
