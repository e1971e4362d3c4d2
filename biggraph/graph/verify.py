"""Check a whole graph directory: every digest, count, index, hash and degree.

Reads through `Graph` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import FormatError
from biggraph.graph.hashing import add_counts, hash_names
from biggraph.types import Bucket, Edges, PartitionKey

if TYPE_CHECKING:
    from biggraph.graph.graph import Graph

Degrees = dict[PartitionKey, NDArray[np.uint32]]


def verify_graph(graph: Graph) -> list[str]:
    """Return the problems found; edges are checked only where all names are sound."""
    problems = [problem for key in graph.schema.partition_keys() for problem in _names(graph, key)]
    return problems or list(_edges(graph))


def _names(graph: Graph, key: PartitionKey) -> Iterator[str]:
    """Check that a partition's names belong to it and are sorted by their hashes."""
    try:
        names = graph.names(key)
    except FormatError as error:
        yield str(error)
        return
    hi, lo = graph.hashes(key)
    salts = np.full(len(names), graph.salt(key.entity_type), np.uint64)
    expected = hash_names(names, salts)
    if not (np.array_equal(expected.hi, hi) and np.array_equal(expected.lo, lo)):
        yield f"{graph.path}: hashes of {key} differ from its names"
    partitions = graph.schema.entity_type(key.entity_type).partitions
    if (hi % np.uint64(partitions) != key.index).any():
        yield f"{graph.path}: {key} has entities of another partition"
    rising = (hi[1:] > hi[:-1]) | ((hi[1:] == hi[:-1]) & (lo[1:] > lo[:-1]))
    if not rising.all():
        yield f"{graph.path}: {key} is not sorted by hash"


def _edges(graph: Graph) -> Iterator[str]:
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


def _count_ends(graph: Graph, degrees: Degrees, bucket: Bucket, edges: Edges) -> None:
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
