"""Check a whole graph directory: every digest, count, index, hash and degree.

Reads through `Graph` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.errors import FormatError
from biggraph.graph.hashing import Hashes, add_counts, hash_names, texts_of
from biggraph.schema import GraphSchema
from biggraph.types import Bucket, Edges, PartitionKey

Degrees = dict[PartitionKey, NDArray[np.uint32]]


class Readable(Protocol):
    """What verification reads of a `Graph`."""

    @property
    def path(self) -> Path:
        """Where the graph lies."""

    @property
    def schema(self) -> GraphSchema:
        """Entity types and relations."""

    @property
    def splits(self) -> Mapping[str, Mapping[Bucket, int]]:
        """Edges of each non-empty bucket of each split."""

    @property
    def relation_counts(self) -> tuple[int, ...]:
        """Train edges of each relation."""

    def names(self, key: PartitionKey) -> pa.Array:
        """Return the names of a partition."""

    def hashes(self, key: PartitionKey) -> Hashes:
        """Return the hashes of its names."""

    def salt(self, entity_type: str) -> int:
        """Return where the hashes of a type start."""

    def degrees(self, key: PartitionKey) -> NDArray[np.uint32]:
        """Return the train edges that touch each entity."""

    def edges(self, split: str, bucket: Bucket) -> Edges:
        """Return the edges of a bucket."""


def verify_graph(graph: Readable) -> list[str]:
    """Return the problems found; edges are checked only where all names are sound."""
    problems = [problem for key in graph.schema.partition_keys() for problem in _names(graph, key)]
    return problems or list(_edges(graph))


def _names(graph: Readable, key: PartitionKey) -> Iterator[str]:
    """Check that a partition's names belong to it and are sorted by their hashes."""
    try:
        names = graph.names(key)
    except FormatError as error:
        yield str(error)
        return
    hi, lo = graph.hashes(key)
    salts = np.full(len(names), graph.salt(key.entity_type), np.uint64)
    expected = hash_names(texts_of(names), salts)
    if not (np.array_equal(expected.hi, hi) and np.array_equal(expected.lo, lo)):
        yield f"{graph.path}: hashes of {key} differ from its names"
    partitions = graph.schema.entity_type(key.entity_type).partitions
    if (hi % np.uint64(partitions) != key.index).any():
        yield f"{graph.path}: {key} has entities of another partition"
    rising = (hi[1:] > hi[:-1]) | ((hi[1:] == hi[:-1]) & (lo[1:] > lo[:-1]))
    if not rising.all():
        yield f"{graph.path}: {key} is not sorted by hash"


def _edges(graph: Readable) -> Iterator[str]:
    """Check every bucket, then degrees and relation counts against the train edges."""
    schema = graph.schema
    degrees = {key: np.zeros(schema.count(key), np.uint32) for key in schema.partition_keys()}
    relations = np.zeros(len(schema.relations), np.int64)
    sound = True
    for split, bucket in [(split, b) for split, found in graph.splits.items() for b in found]:
        try:
            edges = graph.edges(split, bucket)
        except FormatError as error:
            yield str(error)
            sound = False
            continue
        if split == "train":
            relations += np.bincount(edges.rel, minlength=len(relations))
            _count_ends(graph, degrees, bucket, edges)
    if not sound:
        return
    for key, counted in degrees.items():
        if not np.array_equal(counted, graph.degrees(key)):
            yield f"{graph.path}: degrees of {key} differ from its train edges"
    if tuple(relations.tolist()) != graph.relation_counts:
        yield f"{graph.path}: edges per relation differ from graph.json"


def _count_ends(graph: Readable, degrees: Degrees, bucket: Bucket, edges: Edges) -> None:
    """Count the edges that touch each entity, relations of the same types together."""
    pairs = [(relation.lhs, relation.rhs) for relation in graph.schema.relations]
    kinds = {pair: k for k, pair in enumerate(dict.fromkeys(pairs))}
    kind = np.array([kinds[pair] for pair in pairs])[edges.rel]
    for (lhs_type, rhs_type), k in kinds.items():
        part = edges.take(kind == k)
        lhs, rhs = PartitionKey(lhs_type, bucket.lhs), PartitionKey(rhs_type, bucket.rhs)
        if not len(part):
            continue
        add_counts(degrees[lhs], part.lhs)
        add_counts(degrees[rhs], part.rhs if lhs != rhs else part.rhs[part.lhs != part.rhs])
