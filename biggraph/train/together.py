"""Training all buckets together where all tables fit in memory.

Bucket by bucket, an entity first meets only the edges that lead into one partition, then those into
the next; each pulls it its own way, and the model ranks worse than with one partition. In memory
there is no reason to: the partitions of a type become slices of one tensor, the edges of all
buckets become one bucket's, and the graph is trained as if it had never been cut.

Knows tables and edges; nothing of schedules, files or steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch

from biggraph.schema import GraphSchema
from biggraph.storage.table import EmbeddingTable, empty
from biggraph.types import Bucket, Edges, IntArray, PartitionKey

# First row of each partition in its type's tensor.
Starts = Mapping[PartitionKey, int]


def join_tables(
    tables: Mapping[PartitionKey, EmbeddingTable],
) -> tuple[dict[str, EmbeddingTable], Starts]:
    """Make the tables of each entity type slices of one tensor, and return that as one table.

    Tables that are such slices already stay where they are; the others are copied once. Training
    the joined table changes the tables themselves.

    Args:
        tables: of all partitions of the types concerned; their `rows` and `state` are replaced by
            slices with the same values.
    """
    by_type: dict[str, list[EmbeddingTable]] = {}
    starts: dict[PartitionKey, int] = {}
    for key in sorted(tables):
        before = by_type.setdefault(key.entity_type, [])
        starts[key] = sum(len(table.rows) for table in before)
        before.append(tables[key])
    return {name: _join(parts) for name, parts in by_type.items()}, starts


def _join(parts: list[EmbeddingTable]) -> EmbeddingTable:
    whole = parts[0].rows._base
    count = sum(len(part.rows) for part in parts)
    shared = whole is not None and len(whole) == count
    if not (shared and all(part.rows._base is whole for part in parts)):
        rows = _in_one([part.rows for part in parts])
        state = _in_one([part.state for part in parts])
        start = 0
        for part in parts:
            stop = start + len(part.rows)
            part.rows, part.state = rows[start:stop], state[start:stop]
            start = stop
    whole, sums = parts[0].rows._base, parts[0].state._base
    assert whole is not None
    assert sums is not None
    return EmbeddingTable(parts[0].key, whole, sums, "")


def _in_one(tensors: list[torch.Tensor]) -> torch.Tensor:
    count = sum(len(tensor) for tensor in tensors)
    return torch.cat(tensors, out=empty((count, *tensors[0].shape[1:])))


def join_edges(schema: GraphSchema, edges: Iterable[tuple[Bucket, Edges]], starts: Starts) -> Edges:
    """Return the edges of several buckets with offsets into the joined tables.

    Args:
        schema: entity types of each relation.
        edges: of each bucket, offsets inside its partitions.
        starts: from `join_tables`.
    """
    joined = [
        Edges(
            part.lhs + _shift([r.lhs for r in schema.relations], bucket.lhs, part.rel, starts),
            part.rel,
            part.rhs + _shift([r.rhs for r in schema.relations], bucket.rhs, part.rel, starts),
            part.weight,
        )
        for bucket, part in edges
    ]
    weights = [part.weight for part in joined if part.weight is not None]
    return Edges(
        np.concatenate([part.lhs for part in joined]),
        np.concatenate([part.rel for part in joined]),
        np.concatenate([part.rhs for part in joined]),
        np.concatenate(weights) if weights else None,
    )


def _shift(types: list[str], partition: int, rel_E: IntArray, starts: Starts) -> IntArray:
    """Return for each edge the first row of its end's partition."""
    by_relation = [starts.get(PartitionKey(name, partition), 0) for name in types]
    shift: IntArray = np.array(by_relation, dtype=np.int64)[rel_E]
    return shift
