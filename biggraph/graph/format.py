"""The files of a graph directory: graph.json, names in Arrow, edges in HDF5.

Writes them and reads them with suspicion: a file is checked against its digest before
anything parses it. The only module of the importer that touches HDF5. See docs/formats.md.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import h5py
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from biggraph.errors import FormatError
from biggraph.graph import disk
from biggraph.graph.workspace import replaced_path
from biggraph.types import Bucket, Edges, PartitionKey

MANIFEST = "graph.json"
VERSION = 1
MAX_MANIFEST = 1 << 28
REMEDY = "restore it from a copy or import the graph again"
ENTITY_FIELDS = {"hash_hi": pa.uint64(), "hash_lo": pa.uint64(), "degree": pa.uint32()}


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileRecord(_Record):
    """Size and SHA-256 of a file whose path follows from what it holds."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PartitionRecord(FileRecord):
    """One file of entity names."""

    count: int = Field(ge=0)


class BucketRecord(FileRecord):
    """One file of edges."""

    lhs: int = Field(ge=0)
    rhs: int = Field(ge=0)
    count: int = Field(ge=1)


class TypeRecord(_Record):
    """One entity type."""

    name: str = Field(min_length=1)
    partitions: list[PartitionRecord] = Field(min_length=1)


class RelationRecord(_Record):
    """One relation; its id is its position."""

    name: str
    lhs: str
    rhs: str
    train_edges: int = Field(ge=0)


class Manifest(_Record):
    """The content of graph.json without its checksum."""

    format: Literal["biggraph graph"] = "biggraph graph"
    version: Literal[1] = 1
    created_by: str
    fingerprint: str
    seed: int
    hash_seed: int
    weighted: bool
    entities: list[TypeRecord] = Field(min_length=1)
    relations: list[RelationRecord] = Field(min_length=1)
    splits: dict[str, list[BucketRecord]]
    options: dict[str, Any]

    def files(self) -> set[str]:
        """Return the relative paths of all files of the graph directory."""
        keys = [PartitionKey(t.name, i) for t in self.entities for i in range(len(t.partitions))]
        buckets = [(split, Bucket(r.lhs, r.rhs)) for split, rs in self.splits.items() for r in rs]
        return {MANIFEST, *map(entity_path, keys), *(edge_path(*bucket) for bucket in buckets)}


def entity_path(key: PartitionKey) -> str:
    """Return the relative path of a partition's names; the type is percent-encoded."""
    folder = quote(key.entity_type, safe=" ").replace(".", "%2E")
    return f"entities/{folder}/part-{key.index}.arrow"


def edge_path(split: str, bucket: Bucket) -> str:
    """Return the relative path of a bucket's edges."""
    return f"edges/{split}/bucket-{bucket.lhs}-{bucket.rhs}.h5"


def fingerprint(types: list[TypeRecord], relations: list[RelationRecord], splits: Any) -> str:
    """Return a digest over relations and the digests of all names and edges."""
    parts = [
        [record.model_dump() for record in types],
        [record.model_dump() for record in relations],
        {split: [r.model_dump() for r in records] for split, records in sorted(splits.items())},
    ]
    return hashlib.sha256(_canonical(parts)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write graph.json with its own checksum."""
    content = manifest.model_dump()
    content["checksum"] = hashlib.sha256(_canonical(content)).hexdigest()
    text = json.dumps(content, indent=1, ensure_ascii=False)
    disk.write(root / MANIFEST, text.encode())


def read_manifest(root: Path) -> Manifest:
    """Read and check graph.json.

    Raises:
        FormatError: missing, foreign, damaged, edited, or of another version.
    """
    path = root / MANIFEST
    if not root.exists() and replaced_path(root).exists():
        raise FormatError(
            f"{root}: an import was killed while it replaced this graph; the old one lies in "
            f"{replaced_path(root)}: rename it, or import again, which puts it back first"
        )
    if not path.is_file():
        raise FormatError(
            f"{root}: not a graph directory (no {MANIFEST}); make one by biggraph import"
        )
    if path.stat().st_size > MAX_MANIFEST:
        raise FormatError(f"{path}: larger than {MAX_MANIFEST} bytes; {REMEDY}")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error}); {REMEDY}") from None
    if not isinstance(content, dict) or content.get("format") != "biggraph graph":
        raise FormatError(f'{path}: not written by biggraph import (no format "biggraph graph")')
    if content.get("version") != VERSION:
        raise FormatError(
            f"{path}: format version {content.get('version')!r}, this biggraph reads {VERSION}; "
            "import the graph again with this version"
        )
    return _checked_manifest(path, content)


def _checked_manifest(path: Path, content: dict[str, Any]) -> Manifest:
    checksum = content.pop("checksum", None)
    if checksum != hashlib.sha256(_canonical(content)).hexdigest():
        raise FormatError(f"{path}: checksum does not match, edited by hand or damaged; {REMEDY}")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path}: {where}: {first['msg']}; {REMEDY}") from None
    found = fingerprint(manifest.entities, manifest.relations, manifest.splits)
    if manifest.fingerprint != found:
        raise FormatError(f"{path}: fingerprint does not match its content; {REMEDY}")
    return manifest


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def checked_path(root: Path, relative: str, record: FileRecord) -> Path:
    """Return the path of a file after comparing size and digest with its record.

    Raises:
        FormatError: missing, a link, outside the graph directory, or other bytes.
    """
    path = root / relative
    if path.is_symlink() or not path.is_file():
        raise FormatError(f"{path}: missing or not a regular file; {REMEDY}")
    if not path.resolve().is_relative_to(root.resolve()):
        raise FormatError(f"{path}: lies outside the graph directory; {REMEDY}")
    sha256, size = disk.digest(path)
    if size != record.size:
        raise FormatError(f"{path}: has {size} bytes, expected {record.size}; {REMEDY}")
    if sha256 != record.sha256:
        raise FormatError(f"{path}: SHA-256 does not match graph.json, damaged; {REMEDY}")
    return path


def write_entities(path: Path, batch: pa.RecordBatch) -> PartitionRecord:
    """Write a partition: name, hash_hi, hash_lo, degree; one uncompressed Arrow record batch."""
    disk.before_operation("write entities")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    sha256, size = disk.digest(path)
    return PartitionRecord(count=batch.num_rows, size=size, sha256=sha256)


def read_entities(root: Path, key: PartitionKey, record: PartitionRecord) -> pa.RecordBatch:
    """Memory-map a partition.

    Raises:
        FormatError: damaged, or not such a file.
    """
    path = checked_path(root, entity_path(key), record)
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches != 1:
                raise FormatError(f"{path}: {reader.num_record_batches} batches, expected 1")
            batch = reader.get_batch(0)
        batch.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path}: not a readable Arrow file ({error}); {REMEDY}") from None
    fields = {field.name: field.type for field in batch.schema}
    name_type = fields.pop("name", None)
    if name_type not in (pa.string(), pa.large_string()) or fields != ENTITY_FIELDS:
        raise FormatError(f"{path}: unexpected columns {batch.schema.names}; {REMEDY}")
    if batch.num_rows != record.count or any(column.null_count for column in batch.columns):
        raise FormatError(f"{path}: {batch.num_rows} names, expected {record.count}; {REMEDY}")
    return batch


class EdgeLayout(NamedTuple):
    """What a file of edges holds."""

    bucket: Bucket
    edges: int
    offset_dtype: type[np.int32] | type[np.int64]
    weighted: bool


def write_edges(path: Path, layout: EdgeLayout, pieces: Iterator[Edges]) -> BucketRecord:
    """Write a bucket from consecutive pieces that sum to `layout.edges`.

    HDF5 lays the file out in memory and plain writes do the rest: HDF5 does not survive a full
    disk.

    Raises:
        OSError: the disk refused.
    """
    bucket, dtypes = layout.bucket, _edge_dtypes(layout)
    disk.before_operation("write edges")
    structure, places = _lay_out(layout, dtypes)
    with path.open("xb") as file:
        for place, content in structure:
            file.seek(place)
            file.write(content)
        for edges in pieces:
            for name, dtype in dtypes.items():
                file.seek(places[name])
                places[name] += file.write(np.ascontiguousarray(getattr(edges, name), dtype).data)
    sha256, size = disk.digest(path)
    return BucketRecord(
        lhs=bucket.lhs, rhs=bucket.rhs, count=layout.edges, size=size, sha256=sha256
    )


def _edge_dtypes(layout: EdgeLayout) -> dict[str, np.dtype[Any]]:
    offset, rel, weight = (np.dtype(kind) for kind in (layout.offset_dtype, "<i4", "<f4"))
    dtypes = {"lhs": offset.newbyteorder("<"), "rel": rel, "rhs": offset.newbyteorder("<")}
    return dtypes | ({"weight": weight} if layout.weighted else {})


class _Structure:
    """Stands for the file while HDF5 lays it out: keeps its writes, but no room for numbers."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (self._end if whence == io.SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, content: Any) -> int:
        self.writes.append((self._at, bytes(content)))
        self._at += len(content)
        self._end = max(self._end, self._at)
        return len(content)

    def read(self, _size: int) -> bytes:
        raise OSError("a layout is only written")

    def truncate(self, size: int) -> int:
        self._end = size
        return size

    def flush(self) -> None:
        """Do nothing: all is in memory."""


def _lay_out(
    layout: EdgeLayout, dtypes: dict[str, np.dtype[Any]]
) -> tuple[list[tuple[int, bytes]], dict[str, int]]:
    """Return the HDF5 structure as (offset, bytes), and where the numbers of each column begin."""
    file, places = _Structure(), {}
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # equal edges, equal bytes
    space = h5py.h5s.create_simple((layout.edges,))
    with h5py.File(file, "w") as structure:
        structure.attrs["format_version"] = VERSION
        structure.attrs["lhs"], structure.attrs["rhs"] = layout.bucket
        structure.attrs["count"] = layout.edges
        for name, dtype in dtypes.items():
            kind = h5py.h5t.py_create(dtype)
            column = h5py.h5d.create(structure.id, name.encode(), kind, space, plan)
            places[name] = column.get_offset()
    return file.writes, places


def read_edges(root: Path, split: str, record: BucketRecord, weighted: bool) -> Edges:
    """Read the edges of one bucket.

    Raises:
        FormatError: damaged, or not such a file.
    """
    bucket = Bucket(record.lhs, record.rhs)
    path = checked_path(root, edge_path(split, bucket), record)
    names = ["lhs", "rel", "rhs"] + (["weight"] if weighted else [])
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_edge_file(file, record, names)
            columns = [_read_column(file, name, record.count) for name in names]
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise FormatError(f"{path}: not a readable edge file ({error}); {REMEDY}") from None
    return Edges(*columns)


def _check_edge_file(file: h5py.File, record: BucketRecord, names: list[str]) -> None:
    expected = {"format_version": VERSION, "lhs": record.lhs, "rhs": record.rhs}
    expected["count"] = record.count
    for name, value in expected.items():
        if file.attrs.get(name) != value:
            raise ValueError(f"attribute {name} is {file.attrs.get(name)!r}, expected {value}")
    if sorted(file.keys()) != sorted(names):
        raise ValueError(f"datasets {sorted(file.keys())}, expected {sorted(names)}")


def _read_column(file: h5py.File, name: str, count: int) -> np.ndarray:
    """Read one plain contiguous dataset; links, external and virtual storage are refused."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != (count,):
        raise ValueError(f"{name} is not a dataset of {count} values")
    allowed = {"rel": ("<i4",), "weight": ("<f4",)}.get(name, ("<i4", "<i8"))
    if dataset.dtype.str not in allowed:
        raise ValueError(f"{name} has dtype {dataset.dtype}, expected {' or '.join(allowed)}")
    layout = dataset.id.get_create_plist()
    plain = layout.get_layout() == h5py.h5d.CONTIGUOUS and layout.get_external_count() == 0
    if not plain or dataset.id.get_storage_size() != count * dataset.dtype.itemsize:
        raise ValueError(f"{name} is not stored contiguously inside the file")
    values = np.empty(count, dataset.dtype)
    dataset.read_direct(values)
    return values
