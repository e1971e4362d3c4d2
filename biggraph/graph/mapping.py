"""Stage one: batches of edges to hashes, spilled by bucket; their names, spilled by partition.

Independent of the order of batches. Knows nothing of offsets.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from biggraph.errors import InputError, did_you_mean
from biggraph.graph.hashing import Hashes, RecentNames, hash_names
from biggraph.graph.plan import Plan
from biggraph.graph.readers import Batch
from biggraph.graph.spec import DEFAULT_RELATION, DEFAULT_TYPE
from biggraph.graph.spill import Spill, select, to_rows
from biggraph.types import IntArray

NAME_SCHEMA = pa.schema({"hi": pa.uint64(), "lo": pa.uint64(), "name": pa.large_string()})
HASHED_SCHEMA = pa.schema(
    {
        **{f"{side}_{lane}": pa.uint64() for side in ("lhs", "rhs") for lane in ("hi", "lo")},
        "rel": pa.int32(),
        "weight": pa.float32(),
    }
)


@dataclass
class Relations:
    """Relations in order of appearance; the position is a provisional code.

    Args:
        listed: name → (lhs type, rhs type) of the relations allowed; empty: any.
        names: relation names by code.
        counts: edges of each relation, all splits.
    """

    listed: dict[str, tuple[str, str]]
    names: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)

    def encode(self, batch: Batch) -> IntArray:
        """Return the code of each edge's relation, int32, and count them.

        Raises:
            InputError: a relation that is not listed.
        """
        count = len(batch.columns.lhs)
        if batch.columns.rel is None:
            only = next(iter(self.listed)) if len(self.listed) == 1 else DEFAULT_RELATION
            found, index = [only], np.zeros(count, np.int32)
        else:
            encoded = batch.columns.rel.dictionary_encode()
            found = encoded.dictionary.to_pylist()
            index = encoded.indices.to_numpy()
        seen = np.bincount(index, minlength=len(found))
        codes = np.empty(len(found), np.int32)
        for k, name in enumerate(found):
            if name not in self._codes:
                if self.listed and name not in self.listed:
                    raise self._unlisted(name, batch.place(int(np.argmax(index == k))))
                self._add(name)
            codes[k] = self._codes[name]
            self.counts[codes[k]] += int(seen[k])
        return codes[index]

    def _unlisted(self, name: str, place: str) -> InputError:
        remedy = did_you_mean(name, self.listed)
        return InputError(f'{place}: relation "{name}" is not among [[relations]]{remedy}')

    def _add(self, name: str) -> None:
        self._codes[name] = len(self.names)
        self.names.append(name)
        self.counts.append(0)

    def types(self, code: int) -> tuple[str, str]:
        """Return the entity types of a relation."""
        return self.listed.get(self.names[code], (DEFAULT_TYPE, DEFAULT_TYPE))


class Mapper:
    """Takes batches of edges; use as a context, the end of which writes what is still held."""

    def __init__(self, plan: Plan) -> None:
        """Map edges into the scratch folders of `plan`, which exist."""
        self._plan = plan
        listed = {name: (lhs, rhs) for name, lhs, rhs in plan.spec.relations}
        self.relations = Relations(listed)
        self.weighted = False
        self._type_pairs: list[tuple[int, int]] = []
        self._recent = RecentNames(1 << max(8, min(19, (plan.spec.memory >> 12).bit_length())))
        self._names = Spill(plan.folder("names"), plan.share(64))
        self._edges: dict[str, Spill] = {}
        self._threads = ThreadPoolExecutor(2)

    def __enter__(self) -> Mapper:
        """Return the mapper."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is still held, unless there was an error."""
        self._threads.shutdown()
        if kind is None:
            self._names.flush()
            for spill in self._edges.values():
                spill.flush()

    def add(self, split: str, batch: Batch) -> None:
        """Hash and spill the edges of a batch."""
        columns = batch.columns
        if not len(columns.lhs):
            return
        rel = self.relations.encode(batch)
        both = zip((columns.lhs, columns.rhs), self._types(rel), strict=True)
        lhs, rhs = self._threads.map(lambda side: _hash_side(self._plan, *side), both)
        self._spill_names((lhs, rhs))
        self.weighted |= columns.weight is not None
        weight = columns.weight
        if weight is None:
            weight = np.ones(len(rel), np.float32)
        rows = to_rows([*lhs.hashes, *rhs.hashes, rel, weight], HASHED_SCHEMA)
        if split not in self._edges:
            self._edges[split] = Spill(self._plan.folder(f"hashed-{split}"), self._plan.share(48))
        self._edges[split].add(rows, lhs.partition * self._plan.grid + rhs.partition)

    def _spill_names(self, sides: tuple[_HashedSide, _HashedSide]) -> None:
        """Spill the names that were not seen lately, by partition."""
        new = [np.zeros(len(side.names), np.bool_) for side in sides]

        def mark(shard: int) -> None:
            for side, mask in zip(sides, new, strict=True):
                self._recent.mark_new(shard, side.names, side.types, side.hashes, mask)

        list(self._threads.map(mark, range(RecentNames.SHARDS)))
        for side, mask in zip(sides, new, strict=True):
            rows = select(to_rows([*side.hashes, side.names], NAME_SCHEMA), mask)
            codes = (self._plan.first_code[side.types] + side.partition)[mask]
            if rows.num_rows:
                self._names.add(rows, codes)

    def _types(self, rel: IntArray) -> IntArray:
        """Return the entity types of both ends of edges with provisional codes, shape [2, E]."""
        index = self._plan.types.index
        for code in range(len(self._type_pairs), len(self.relations.names)):
            lhs, rhs = self.relations.types(code)
            self._type_pairs.append((index(lhs), index(rhs)))
        return np.array(self._type_pairs).T[:, rel]


class _HashedSide(NamedTuple):
    """One end of some edges: names, their entity types, hashes and partitions in their type."""

    names: pa.Array
    types: IntArray
    hashes: Hashes
    partition: IntArray


def _hash_side(plan: Plan, names: pa.Array, types: IntArray) -> _HashedSide:
    names = names.cast(pa.large_string())
    hashes = hash_names(names, plan.salts[types])
    partition = (hashes.hi % plan.partitions.astype(np.uint64)[types]).astype(np.int64)
    return _HashedSide(names, types, hashes, partition)
