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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from biggraph.errors import FormatError, StorageError
from biggraph.storage.place import RESTORE, Place

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
        path: its name in the place of the run.
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
    place: Place,
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, int | str],
) -> FileRef:
    """Write arrays into a new file; it appears under its name complete and durable, or not at all.

    Args:
        place: of the run.
        name: of the file; folders are made.
        arrays: any shape; floats or integers.
        attributes: facts about the file as a whole.

    Raises:
        StorageError: no space, no permission, a failing disk; or the name is taken, then the file
            there is untouched.
    """
    room = sum(a.nbytes for a in arrays.values()) + _HEADER
    try:
        with place.create(name, room) as file:
            _write(file, arrays, attributes)
            digest = _digest(file)
            size = file.seek(0, os.SEEK_END)
    except FileExistsError:
        raise StorageError(
            f"{place.where(name)}: exists already; an earlier attempt to write it failed at its "
            "end, or another process writes this run; resume the run"
        ) from None
    return FileRef(name, digest, size)


def read_arrays(place: Place, ref: FileRef) -> tuple[Arrays, Attributes]:
    """Read a whole file after checking its digest.

    Raises:
        FileNotFoundError: the file is gone.
        FormatError: damaged, truncated, foreign, of another version, or not what `ref` names.
        StorageError: the place refused.
    """
    where = place.where(ref.path)
    with place.open(ref.path, ref.size) as file:
        if _digest(file) != ref.digest:
            raise _damaged(where)
        slots, attributes = _parse(file, where, ref.size)
        arrays: Arrays = {}
        for name, slot in slots.items():
            arrays[name] = np.empty(slot.shape, slot.dtype)
            file.seek(slot.offset)
            for block in _blocks(arrays[name]):
                file.readinto(block)
    return arrays, attributes


class MappedArrays:
    """A file mapped into memory: it stays readable when its name is removed.

    Nothing is read before `arrays` is first called; that checks the digest. No file stays open.

    Args:
        where: the name with its place, for messages.
        ref: what the file has to be.
        memory: the mapping, uint8 [size].
    """

    def __init__(self, where: str, ref: FileRef, memory: NDArray[np.uint8]) -> None:
        self._where, self._ref, self._memory = where, ref, memory
        self._content: tuple[Arrays, Attributes] | None = None

    @classmethod
    def open(cls, place: Place, ref: FileRef) -> MappedArrays:
        """Map a file; raises as `read_arrays`, but finds damage inside only on first use."""
        return cls(place.where(ref.path), ref, place.map(ref.path, ref.size))

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
            raise _damaged(self._where)
        slots, attributes = _parse(_MemoryFile(self._memory), self._where, self._ref.size)
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


def _damaged(where: str) -> FormatError:
    return FormatError(f"{where}: damaged: its content does not match its digest{RESTORE}")


def _digest(file: io.BufferedIOBase) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(array: NDArray[Any]) -> list[memoryview]:
    view = array.reshape(-1).view(np.uint8).data
    return [view[start : start + _BLOCK] for start in range(0, len(view), _BLOCK)]


def _write(
    file: io.BufferedIOBase, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, int | str]
) -> None:
    for name, slot in _lay_out(file, arrays, attributes).items():
        file.seek(slot.offset)
        for block in _blocks(np.ascontiguousarray(arrays[name], dtype=slot.dtype)):
            file.write(block)
    file.flush()


def _lay_out(
    file: io.BufferedIOBase, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, int | str]
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
    file: io.BufferedIOBase | _MemoryFile, where: str, file_size: int
) -> tuple[dict[str, _Slot], Attributes]:
    try:
        with h5py.File(file, "r") as hdf:
            attributes = {str(k): _plain(v) for k, v in hdf.attrs.items()}
            _check_version(attributes, where)
            return {name: _slot(hdf, name, where, file_size) for name in hdf}, attributes
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise FormatError(f"{where}: not a readable HDF5 file ({error})") from None


def _check_version(attributes: Attributes, where: str) -> None:
    if attributes.pop("format", None) != FORMAT:
        raise FormatError(f"{where}: an HDF5 file, but not written by biggraph")
    version = attributes.pop("format_version", None)
    if version != VERSION:
        raise FormatError(
            f"{where}: has format version {version}, this biggraph reads version {VERSION}; "
            "use the biggraph that wrote it"
        )


def _slot(hdf: h5py.File, name: str, where: str, file_size: int) -> _Slot:
    """Return where an array lies, refusing whatever `write_arrays` would not have written."""
    if not isinstance(hdf.get(name, getlink=True), h5py.HardLink):
        raise FormatError(f"{where}: {name} is a link to another place; refused")
    dataset = hdf[name]
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"{where}: {name} is not an array; refused")
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
        raise FormatError(f"{where}: {name} is not a plain contiguous array of numbers; refused")
    return _Slot(dtype, dataset.shape, offset)


def _plain(value: Any) -> int | str:
    return int(value) if isinstance(value, np.integer) else str(value)
