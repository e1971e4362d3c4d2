"""Named arrays in immutable HDF5 files, each known by the digest of its bytes.

HDF5 lays the file out (contiguous, no filter, readable by any HDF5 tool); the numbers themselves
are moved by plain reads and writes at the offsets that it gives. So a full disk is an ordinary
error, several threads read at once, and HDF5 never parses a byte that was not checked against the
digest. Knows nothing of partitions, versions or logs.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from biggraph.errors import FormatError, StorageError
from biggraph.storage import fsops

FORMAT = "biggraph arrays"
VERSION = 1

Arrays = dict[str, NDArray[Any]]
Attributes = dict[str, int | str]
_BLOCK = 1 << 26  # bytes moved by one call
_HEADER = 1 << 16  # more than HDF5 needs besides the numbers, for the check of free space


@dataclass(frozen=True, slots=True)
class FileRef:
    """An immutable file of a run.

    Args:
        path: relative to the run directory, with forward slashes.
        digest: SHA-256 of the file's bytes, hexadecimal.
        size: bytes.
    """

    path: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where the numbers of one array lie in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


def write_arrays(
    root: Path,
    relative: str,
    arrays: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, int | str],
) -> FileRef:
    """Write arrays into a new file; it appears under its name complete and durable, or not at all.

    Args:
        root: the run directory.
        relative: name of the file below it; folders are made.
        arrays: any shape; floats or integers.
        attributes: facts about the file as a whole.

    Raises:
        StorageError: no space, no permission, a failing disk; or the name is taken, then the file
            there is untouched.
    """
    path = locate(root, relative)
    fsops.make_folder(path.parent)
    fsops.require_space(path.parent, sum(a.nbytes for a in arrays.values()) + _HEADER)
    try:
        with fsops.publish(path) as file:
            _write(file, arrays, attributes)
            digest = _digest(file)
            size = file.seek(0, os.SEEK_END)
    except FileExistsError:
        raise StorageError(
            f"{path}: exists already; an earlier attempt to write it failed at its end, or "
            "another process writes this run; resume the run"
        ) from None
    return FileRef(relative, digest, size)


def read_arrays(root: Path, ref: FileRef) -> tuple[Arrays, Attributes]:
    """Read a whole file after checking its digest.

    Raises:
        FileNotFoundError: the file is gone.
        FormatError: damaged, truncated, foreign, of another version, or not what `ref` names.
        StorageError: the file system refused.
    """
    with open_checked(root, ref) as file:
        slots, attributes = _parse(file, root / ref.path, ref.size)
        arrays: Arrays = {}
        for name, slot in slots.items():
            arrays[name] = np.empty(slot.shape, slot.dtype)
            file.seek(slot.offset)
            with fsops.operation("read", root / ref.path):
                for block in _blocks(arrays[name]):
                    file.readinto(block)
    return arrays, attributes


def open_checked(root: Path, ref: FileRef) -> io.BufferedReader:
    """Open a file whose bytes are what `ref` says; raises as `read_arrays`."""
    path = locate(root, ref.path)
    file = _open_sized(path, ref)
    try:
        with fsops.operation("read", path):
            digest = _digest(file)
        if digest != ref.digest:
            raise FormatError(f"{path}: damaged: its content does not match its digest{_RESTORE}")
    except BaseException:
        file.close()
        raise
    return file


class MappedArrays:
    """A file mapped into memory: it stays readable when its name is removed.

    Nothing is read before `arrays` is first called; that checks the digest. No file stays open.

    Args:
        path: for messages.
        ref: what the file has to be.
        memory: the mapping, uint8 [size].
    """

    def __init__(self, path: Path, ref: FileRef, memory: NDArray[np.uint8]) -> None:
        self._path, self._ref, self._memory = path, ref, memory
        self._content: tuple[Arrays, Attributes] | None = None

    @classmethod
    def open(cls, root: Path, ref: FileRef) -> MappedArrays:
        """Map a file; raises as `read_arrays`, but finds damage inside only on first use."""
        path = locate(root, ref.path)
        with _open_sized(path, ref) as file, fsops.operation("map", path):
            return cls(path, ref, _map(file, ref.size))

    def arrays(self) -> tuple[Arrays, Attributes]:
        """Return read-only views of the arrays, and the attributes.

        Raises:
            FormatError: as `read_arrays`.
        """
        if self._content is None:
            self._content = self._parse()
        return self._content

    def _parse(self) -> tuple[Arrays, Attributes]:
        if hashlib.sha256(self._memory.data).hexdigest() != self._ref.digest:
            raise FormatError(
                f"{self._path}: damaged: its content does not match its digest{_RESTORE}"
            )
        slots, attributes = _parse(_MemoryFile(self._memory), self._path, self._ref.size)
        arrays: Arrays = {}
        for name, slot in slots.items():
            flat = np.frombuffer(self._memory, slot.dtype, math.prod(slot.shape), slot.offset)
            arrays[name] = flat.reshape(slot.shape)
        return arrays, attributes


class _MemoryFile(io.RawIOBase):
    """Memory that HDF5 reads like a file, without a copy of the whole."""

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self._memory, self._position = memory, 0

    def readinto(self, buffer: Any) -> int:
        found = self._memory[self._position : self._position + len(buffer)].data
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._memory)}
        self._position = start[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position


def locate(root: Path, relative: str) -> Path:
    """Return the path of a file of a run, which must lie inside the run directory.

    Raises:
        FormatError: absolute, with "..", or led outside by a symbolic link.
    """
    parts = PurePosixPath(relative).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in relative:
        raise FormatError(f"{root}: file name {relative!r} leads outside the run directory")
    path = root.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise FormatError(f"{path}: leads outside the run directory through a symbolic link")
    return path


_RESTORE = "; restore it from a copy, or begin the run anew"


def _open_sized(path: Path, ref: FileRef) -> io.BufferedReader:
    file = fsops.open_file(path)
    status = os.fstat(file.fileno())
    if path.is_symlink() or not stat.S_ISREG(status.st_mode) or status.st_size != ref.size:
        file.close()
        raise FormatError(
            f"{path}: expected a file of {ref.size:,} bytes, found {status.st_size:,}{_RESTORE}"
        )
    return file


def _map(file: io.BufferedReader, size: int) -> NDArray[np.uint8]:
    """Map an open file. Python's own mmap would keep a descriptor for each of many files."""
    name = f"/dev/fd/{file.fileno()}"  # by its descriptor: its name may be gone by now
    try:
        memory: NDArray[np.uint8] = torch.from_file(name, False, size, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise OSError(0, str(error)) from None
    memory.flags.writeable = False
    return memory


def _digest(file: io.BufferedReader | io.BufferedRandom) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(array: NDArray[Any]) -> list[memoryview]:
    view = array.reshape(-1).view(np.uint8).data
    return [view[start : start + _BLOCK] for start in range(0, len(view), _BLOCK)]


def _write(
    file: io.BufferedRandom, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, int | str]
) -> None:
    for name, slot in _lay_out(file, arrays, attributes).items():
        file.seek(slot.offset)
        for block in _blocks(np.ascontiguousarray(arrays[name], dtype=slot.dtype)):
            file.write(block)
    file.flush()


def _lay_out(
    file: io.BufferedRandom, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, int | str]
) -> dict[str, _Slot]:
    """Write the HDF5 structure with room for the numbers; return where they belong."""
    slots = {}
    with h5py.File(file, "w") as hdf:
        hdf.attrs.update({"format": FORMAT, "format_version": VERSION, **attributes})
        for name, array in arrays.items():
            plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plan.set_layout(h5py.h5d.CONTIGUOUS)
            plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            dtype = array.dtype.newbyteorder("<")
            space = h5py.h5s.create_simple(array.shape)
            kind = h5py.h5t.py_create(dtype)
            dataset = h5py.h5d.create(hdf.id, name.encode(), kind, space, plan)
            slots[name] = _Slot(dtype, array.shape, dataset.get_offset() or 0)
    return slots


def _parse(
    file: io.BufferedReader | _MemoryFile, path: Path, file_size: int
) -> tuple[dict[str, _Slot], Attributes]:
    try:
        with h5py.File(file, "r") as hdf:
            attributes = {str(k): _plain(v) for k, v in hdf.attrs.items()}
            _check_version(attributes, path)
            return {name: _slot(hdf, name, path, file_size) for name in hdf}, attributes
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise FormatError(f"{path}: not a readable HDF5 file ({error})") from None


def _check_version(attributes: Attributes, path: Path) -> None:
    if attributes.pop("format", None) != FORMAT:
        raise FormatError(f"{path}: an HDF5 file, but not written by biggraph")
    version = attributes.pop("format_version", None)
    if version != VERSION:
        raise FormatError(
            f"{path}: has format version {version}, this biggraph reads version {VERSION}; "
            "use the biggraph that wrote it"
        )


def _slot(hdf: h5py.File, name: str, path: Path, file_size: int) -> _Slot:
    """Return where an array lies, refusing whatever `write_arrays` would not have written."""
    if not isinstance(hdf.get(name, getlink=True), h5py.HardLink):
        raise FormatError(f"{path}: {name} is a link to another place; refused")
    dataset = hdf[name]
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"{path}: {name} is not an array; refused")
    plan, dtype = dataset.id.get_create_plist(), dataset.dtype
    size = math.prod(dataset.shape or ()) * dtype.itemsize
    offset = (dataset.id.get_offset() or 0) if size else 0
    plain = (
        plan.get_external_count() == 0
        and plan.get_layout() == h5py.h5d.CONTIGUOUS
        and plan.get_nfilters() == 0
        and dtype.kind in "fiu"
        and dtype.newbyteorder("<") == dtype
        and dataset.shape is not None
        and dataset.id.get_storage_size() == size
        and offset + size <= file_size
    )
    if not plain:
        raise FormatError(f"{path}: {name} is not a plain contiguous array of numbers; refused")
    return _Slot(dtype, dataset.shape, offset)


def _plain(value: Any) -> int | str:
    return int(value) if isinstance(value, np.integer) else str(value)
