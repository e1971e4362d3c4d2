"""Stage three, second part: the edges of a bucket in the order of a seeded hash of their content.

That order is a pseudo-random shuffle which does not depend on the order of input. Equal edges are
numbered and hashed again, so that they do not lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.hashing import mix_columns
from biggraph.graph.offsets import EDGE_SCHEMA
from biggraph.graph.spill import Spill, numbers, read_spill, to_arrow, to_rows
from biggraph.types import Edges, IntArray

KEYED_SCHEMA = EDGE_SCHEMA.insert(0, pa.field("key", pa.uint64()))


def shuffled(spilled: Path, seed: int, limit: int) -> Iterator[Edges]:
    """Yield the edges of a spill file in shuffled order, a part at a time.

    Args:
        spilled: rows of EDGE_SCHEMA.
        seed: of the order.
        limit: bytes of edges to hold; a larger file is cut into ranges of keys, twice: by the
            hash of the content to number equal edges, then by the final key to sort.
    """
    bits = max(0, (spilled.stat().st_size // limit).bit_length())
    if not bits:
        for edges in read_spill(spilled, EDGE_SCHEMA):
            yield _sorted(_spread_equal(_keyed(edges, seed), seed))
        return
    first = (_keyed(edges, seed) for edges in read_spill(spilled, EDGE_SCHEMA, limit))
    by_content = _ranges(first, spilled.with_name(f"{spilled.name}-content"), bits, limit)
    spread = (_spread_equal(edges, seed) for edges in by_content)
    for part in _ranges(spread, spilled.with_name(f"{spilled.name}-keys"), bits, limit):
        yield _sorted(part)


def _ranges(
    edges: Iterator[pa.RecordBatch], folder: Path, bits: int, limit: int
) -> Iterator[pa.RecordBatch]:
    """Yield keyed edges in rising ranges of keys, through files in `folder`."""
    disk.create_folder(folder)
    spill = Spill(folder, limit)
    for rows in edges:
        spill.add(rows, (numbers(rows, "key") >> np.uint64(64 - bits)).astype(np.int64))
    spill.flush()
    for part in range(1 << bits):
        yield from read_spill(folder / str(part), KEYED_SCHEMA)
        disk.remove(folder / str(part))
    disk.remove_tree(folder)


def _keyed(edges: pa.RecordBatch, seed: int) -> pa.RecordBatch:
    key = mix_columns(seed, *(numbers(edges, name) for name in ("lhs", "rel", "rhs")))
    return to_rows([key, *edges.columns], KEYED_SCHEMA)


def _order(edges: pa.RecordBatch) -> tuple[IntArray, NDArray[np.bool_]]:
    """Return the order by (key, content) and, in that order, which keys repeat the one before."""
    key = numbers(edges, "key")
    order = np.argsort(key)
    repeats = np.zeros(len(key), np.bool_)
    np.equal(key[order][1:], key[order][:-1], out=repeats[1:])
    tied = repeats.copy()
    tied[:-1] |= repeats[1:]
    at = order[tied]
    columns = [numbers(edges, name)[at] for name in ("weight", "rhs", "rel", "lhs", "key")]
    order[tied] = at[np.lexsort(columns)]
    return order, repeats


def _spread_equal(edges: pa.RecordBatch, seed: int) -> pa.RecordBatch:
    """Give each edge after the first of equal keys a key of its own."""
    order, repeats = _order(edges)
    if not repeats.any():
        return edges
    rank = np.arange(len(order))
    ordinal = rank - np.maximum.accumulate(np.where(repeats, 0, rank))
    at = order[repeats]
    key = numbers(edges, "key").copy()
    key[at] = mix_columns(seed, key[at], ordinal[repeats])
    return edges.set_column(0, KEYED_SCHEMA.field(0), to_arrow(key))


def _sorted(edges: pa.RecordBatch) -> Edges:
    order, _ = _order(edges)
    return Edges(*(numbers(edges, name)[order] for name in ("lhs", "rel", "rhs", "weight")))
