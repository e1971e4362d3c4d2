"""Read a graph directory: schema, edges of a bucket, names, lookups, verification.

Opens only graph.json at first; other files are checked against their digests when they are read.
Knows nothing of how a graph is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from biggraph.errors import FormatError, InputError, did_you_mean
from biggraph.graph.arrow import to_numpy
from biggraph.graph.format import (
    BucketRecord,
    Manifest,
    PartitionRecord,
    read_edges,
    read_entities,
    read_manifest,
)
from biggraph.graph.hashing import Hashes, hash_names, texts_of, type_salt
from biggraph.graph.spec import SPLITS
from biggraph.graph.verify import verify_graph
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.types import Bucket, Edges, PartitionKey, Side

SUGGEST_SCAN = 1 << 20  # names looked at for a suggestion, per partition


@dataclass(frozen=True)
class Graph:
    """A graph directory.

    Args:
        path: where it lies.
        schema: entity types with the entities of each partition, and relations.
        fingerprint: identifies the content; equal for equal input, seed and partitions.
        splits: split → non-empty bucket → number of edges.
        relation_counts: train edges of each relation.
        weighted: whether edges have weights.
    """

    path: Path
    schema: GraphSchema
    fingerprint: str
    splits: Mapping[str, Mapping[Bucket, int]]
    relation_counts: tuple[int, ...]
    weighted: bool
    _manifest: Manifest = field(repr=False)
    _entities: dict[PartitionKey, pa.RecordBatch] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Graph:
        """Read graph.json.

        Raises:
            FormatError: no graph directory, damaged, edited, or of another version.
        """
        manifest = read_manifest(Path(path))
        try:
            schema = _schema(manifest)
            _check_buckets(schema, manifest)
        except ValueError as error:
            raise FormatError(f"{path}/graph.json: {error}") from None
        splits = {
            split: {Bucket(r.lhs, r.rhs): r.count for r in records}
            for split, records in manifest.splits.items()
        }
        counts = tuple(relation.train_edges for relation in manifest.relations)
        facts = (manifest.fingerprint, splits, counts, manifest.weighted)
        return cls(Path(path), schema, *facts, manifest)

    def edges(self, split: str, bucket: Bucket) -> Edges:
        """Read the edges of a bucket after checking the file's digest.

        Returns an empty `Edges` where the bucket has no file.

        Raises:
            InputError: no such split.
            FormatError: the file is missing, damaged, or refers to entities that do not exist.
        """
        if split not in SPLITS:
            raise InputError(f'{self.path}: no split "{split}"{did_you_mean(split, SPLITS)}')
        record = self._bucket_records(split).get(Bucket(*bucket))
        if record is None:
            none = np.zeros(0, np.int32)
            return Edges(none, none, none, np.zeros(0, np.float32) if self.weighted else None)
        edges = read_edges(self.path, split, record, self.weighted)
        problem = self._out_of_range(edges, Bucket(*bucket))
        if problem:
            raise FormatError(f"{self.path}: {split} bucket {Bucket(*bucket)}: {problem}")
        return edges

    def names(self, key: PartitionKey) -> pa.Array:
        """Return the names of a partition, memory-mapped; position = offset."""
        return self._partition(key).column("name")

    def degrees(self, key: PartitionKey) -> NDArray[np.uint32]:
        """Return the train edges that touch each entity of a partition, memory-mapped."""
        return self._column(key, "degree")

    def hashes(self, key: PartitionKey) -> Hashes:
        """Return the hashes of a partition's names, sorted, memory-mapped."""
        return Hashes(self._column(key, "hash_hi"), self._column(key, "hash_lo"))

    def salt(self, entity_type: str) -> int:
        """Return the salt of the hashes of an entity type's names."""
        return type_salt(entity_type, self._manifest.hash_seed)

    def locate(
        self, entity_type: str, names: Sequence[str]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return partition and offset of each name; -1 where the name is unknown.

        Raises:
            InputError: no such entity type.
        """
        parts = self.schema.entity_type(entity_type).partitions
        wanted = pa.array(names, pa.string())
        salts = np.full(len(wanted), self.salt(entity_type), np.uint64)
        hashes = hash_names(texts_of(wanted), salts)
        partition = (hashes.hi % np.uint64(parts)).astype(np.int32)
        offset = np.full(len(wanted), -1, np.int64)
        for index in np.unique(partition):
            rows = np.flatnonzero(partition == index)
            part = Hashes(hashes.hi[rows], hashes.lo[rows])
            key = PartitionKey(entity_type, int(index))
            offset[rows] = self._search(key, part, wanted.take(pa.array(rows)))
        partition[offset < 0] = -1
        return partition, offset

    def find(self, name: str) -> list[tuple[PartitionKey, int]]:
        """Return every place of an entity of that name: one for each type that has it."""
        places = []
        for entity in self.schema.entities:
            partition, offset = self.locate(entity.name, [name])
            if offset[0] >= 0:
                places.append((PartitionKey(entity.name, int(partition[0])), int(offset[0])))
        return places

    def suggest(self, entity_type: str | None, name: str) -> list[str]:
        """Return a few existing names close to `name`, looking at a bounded number of names."""
        keys = [k for k in self.schema.partition_keys() if entity_type in (None, k.entity_type)]
        prefix, found = name.casefold()[:3], set()
        for key in keys:
            names = self.names(key)
            names = names.slice(0, SUGGEST_SCAN // len(keys))
            lengths = pc.utf8_length(names)
            near = pc.and_(
                pc.less_equal(lengths, len(name) + 3), pc.greater_equal(lengths, len(name) - 3)
            )
            alike = pc.match_substring(names, prefix, ignore_case=True)
            found |= set(names.filter(pc.and_(near, alike)).slice(0, 1000).to_pylist())
        folded: dict[str, str] = {}
        for candidate in sorted(found):
            folded.setdefault(candidate.casefold(), candidate)
        close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)
        return [folded[match] for match in close]

    def verify(self) -> list[str]:
        """Check every digest, count, index, hash and degree; return the problems found."""
        return verify_graph(self)

    def _bucket_records(self, split: str) -> dict[Bucket, BucketRecord]:
        return {Bucket(r.lhs, r.rhs): r for r in self._manifest.splits.get(split, [])}

    def _partition(self, key: PartitionKey) -> pa.RecordBatch:
        key = PartitionKey(*key)
        if key not in self._entities:
            self._entities[key] = read_entities(self.path, key, self._record(key))
        return self._entities[key]

    def _record(self, key: PartitionKey) -> PartitionRecord:
        self.schema.entity_type(key.entity_type)
        types = {record.name: record.partitions for record in self._manifest.entities}
        return types[key.entity_type][key.index]

    def _column(self, key: PartitionKey, name: str) -> NDArray[Any]:
        return to_numpy(self._partition(key).column(name))

    def _search(self, key: PartitionKey, wanted: Hashes, names: pa.Array) -> NDArray[np.int64]:
        hi, lo = self.hashes(key)
        offset = np.full(len(names), -1, np.int64)
        start = np.searchsorted(hi, wanted.hi)
        end = np.searchsorted(hi, wanted.hi, side="right")
        for i in np.flatnonzero(end > start):
            k = int(start[i] + np.searchsorted(lo[start[i] : end[i]], wanted.lo[i]))
            if k < end[i] and self.names(key)[k].as_py() == names[int(i)].as_py():
                offset[i] = k
        return offset

    def _limits(self, side: Side, partition: int) -> NDArray[np.int64]:
        types = [self.schema.entity_type(r.entity_type(side)) for r in self.schema.relations]
        counts = [t.counts[partition] if partition < t.partitions else 0 for t in types]
        return np.array(counts, np.int64)

    def _out_of_range(self, edges: Edges, bucket: Bucket) -> str | None:
        if edges.rel.min() < 0 or edges.rel.max() >= len(self.schema.relations):
            return "a relation id is out of range"
        for side, partition in ((Side.LHS, bucket.lhs), (Side.RHS, bucket.rhs)):
            offsets = getattr(edges, side)
            if offsets.min() < 0 or (offsets >= self._limits(side, partition)[edges.rel]).any():
                return f"an {side} offset is out of range"
        if edges.weight is not None and not (np.isfinite(edges.weight) & (edges.weight >= 0)).all():
            return "a weight is negative or not finite"
        return None


def _schema(manifest: Manifest) -> GraphSchema:
    types = tuple(
        EntityType(record.name, tuple(part.count for part in record.partitions))
        for record in manifest.entities
    )
    names = {t.name for t in types}
    for relation in manifest.relations:
        if not {relation.lhs, relation.rhs} <= names:
            raise ValueError(f'relation "{relation.name}" joins an unknown entity type')
    relations = tuple(RelationType(r.name, r.lhs, r.rhs) for r in manifest.relations)
    if len(names) < len(types) or len({r.name for r in relations}) < len(relations):
        raise ValueError("an entity type or relation is listed twice")
    return GraphSchema(types, relations)


def _check_buckets(schema: GraphSchema, manifest: Manifest) -> None:
    for split, records in manifest.splits.items():
        if split not in SPLITS:
            raise ValueError(f'unknown split "{split}"')
        buckets = {Bucket(record.lhs, record.rhs) for record in records}
        if len(buckets) < len(records):
            raise ValueError(f"a bucket of {split} is listed twice")
        for bucket in buckets:
            if not schema.partitions_of(bucket):
                raise ValueError(f"{split} bucket {bucket} lies outside the grid")
