"""Stage three, second part: the edges of a bucket in the order of a seeded hash of their content.

That order is a pseudo-random shuffle which does not depend on the order of input. Equal edges are
numbered and hashed again, so that they do not lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.graph import disk
from biggraph.graph.ordering import (
    Keyed,
    key_rows,
    merge,
    ordered,
    ordered_file,
    take_repeats,
)
from biggraph.graph.rows import (
    LHS,
    REL,
    RHS,
    WEIGHT,
    WIDTH,
    RowSpill,
    count_rows,
    overwrite,
    read_rows,
    weights_of,
)
from biggraph.types import Edges

PIECE = 1 << 18  # edges yielded at once


def shuffled(spilled: Path, dtype: np.dtype[Any], seed: int, limit: int) -> Iterator[Edges]:
    """Yield the edges of a spill file in shuffled order, a part at a time.

    Args:
        spilled: rows of edges.
        dtype: of the rows.
        seed: of the order.
        limit: bytes of edges to hold; a larger file is cut into ranges of keys: first by the hash
            of the content, then, for edges that are not the first of their kind, by the final key.
    """
    row = WIDTH * dtype.itemsize + 8
    bits = max(0, (count_rows(spilled, dtype) * row // limit).bit_length())
    if not bits:
        edges, repeats = take_repeats(ordered_file(spilled, dtype, seed), seed)
        if len(repeats.keys):
            edges = merge(edges, ordered(repeats))
        yield from _pieces(edges.rows)
        return
    yield from _through_files(spilled, dtype, seed, bits, limit)


def _through_files(
    spilled: Path, dtype: np.dtype[Any], seed: int, bits: int, limit: int
) -> Iterator[Edges]:
    folders = [spilled.with_name(f"{spilled.name}-{name}") for name in ("firsts", "repeats")]
    for folder in folders:
        disk.create_folder(folder)
    by_content, by_key = (RowSpill(folder, limit // 4) for folder in folders)
    shift = np.uint64(64 - bits)
    for rows in read_rows(spilled, dtype):
        by_content.add(rows, (key_rows(rows, seed) >> shift).astype(np.int64))
    by_content.flush()
    for part in range(1 << bits):
        content = folders[0] / str(part)
        firsts, repeats = take_repeats(ordered_file(content, dtype, seed, bits), seed)
        overwrite(content, firsts.rows)
        if len(repeats.keys):
            by_key.add(_with_keys(repeats), (repeats.keys >> shift).astype(np.int64))
    by_key.flush()
    for part in range(1 << bits):
        content, key = (folder / str(part) for folder in folders)
        yield from _range(content, key, seed, bits, dtype)
        disk.remove(content)
        disk.remove(key)
    for folder in folders:
        disk.remove_tree(folder)


def _range(content: Path, key: Path, seed: int, bits: int, dtype: np.dtype[Any]) -> Iterator[Edges]:
    """Yield the edges of a range of final keys: first ones, which lie in order, and others."""
    width = WIDTH + 8 // dtype.itemsize
    if not count_rows(key, dtype, width):
        for rows in read_rows(content, dtype):
            yield from _pieces(rows)
        return
    firsts = np.concatenate(list(read_rows(content, dtype)) or [np.empty((0, WIDTH), dtype)])
    others = np.concatenate(list(read_rows(key, dtype, width=width)))
    keys = np.ascontiguousarray(others[:, WIDTH:]).view(np.uint64).ravel()
    repeats = ordered(Keyed(keys, np.ascontiguousarray(others[:, :WIDTH])), bits)
    yield from _pieces(merge(Keyed(key_rows(firsts, seed), firsts), repeats).rows)


def _with_keys(edges: Keyed) -> NDArray[Any]:
    """Return rows with their keys as further columns."""
    keys = edges.keys.view(edges.rows.dtype).reshape(len(edges.rows), -1)
    return np.concatenate([edges.rows, keys], axis=1)


def _pieces(rows: NDArray[Any]) -> Iterator[Edges]:
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE]
        lhs, rel, rhs = (np.ascontiguousarray(piece[:, k]) for k in (LHS, REL, RHS))
        yield Edges(lhs, rel, rhs, weights_of(piece[:, WEIGHT]))
