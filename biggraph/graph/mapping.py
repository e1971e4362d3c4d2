"""Stage one: batches of edges to numbered names, spilled by bucket; and the names, sorted.

Names are numbered within a generation, which ends when its table is full: an edge then needs a few
bytes, and a name is looked up on disk once. Knows nothing of offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import InputError, did_you_mean
from biggraph.graph import disk, numbering
from biggraph.graph.hashing import Texts, hash_names, start_compiled_code, texts_of, to_texts
from biggraph.graph.numbering import Named, NameTable
from biggraph.graph.plan import Plan
from biggraph.graph.readers import Batch
from biggraph.graph.rows import LHS, REL, RHS, WEIGHT, WIDTH, RowSpill, append_rows
from biggraph.graph.runs import partition, write_run
from biggraph.graph.spec import DEFAULT_RELATION, DEFAULT_TYPE
from biggraph.types import IntArray

CODED = np.dtype(np.int32)  # of spilled edges: names as their numbers, relations as their codes


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
    _table: NameTable = field(default_factory=NameTable)

    def encode(self, batch: Batch) -> IntArray:
        """Return the code of each edge's relation, int32, and count them.

        Raises:
            InputError: a relation that is not listed.
        """
        count = len(batch.columns)
        texts = self._only(count) if batch.columns.rel is None else batch.columns.rel
        codes, none = np.empty(count, np.int32), np.zeros(count, np.int32)
        hashes = hash_names(texts, none.astype(np.uint64))
        self._table.number(Named(texts, none, hashes.hi), codes)
        if self._table.count > len(self.names):
            for name in self._table.names(len(self.names))[0].to_pylist():
                if self.listed and name not in self.listed:
                    raise self._unlisted(
                        name, batch.place(int(np.argmax(codes == len(self.names))))
                    )
                self.names.append(name)
                self.counts.append(0)
        for code, seen in enumerate(np.bincount(codes).tolist()):
            self.counts[code] += seen
        return codes

    def _only(self, count: int) -> Texts:
        """Return the relation of edges that say none, once for each."""
        name = next(iter(self.listed)) if len(self.listed) == 1 else DEFAULT_RELATION
        data = np.frombuffer(name.encode(), np.uint8)
        return to_texts(data, np.zeros(count, np.int64), np.full(count, len(data)))

    def _unlisted(self, name: str, place: str) -> InputError:
        remedy = did_you_mean(name, self.listed)
        return InputError(f'{place}: relation "{name}" is not among [[relations]]{remedy}')

    def types(self, code: int) -> tuple[str, str]:
        """Return the entity types of a relation."""
        return self.listed.get(self.names[code], (DEFAULT_TYPE, DEFAULT_TYPE))


class Prepared(NamedTuple):
    """Edges whose names are hashed.

    Args:
        rows: int32, shape [N, 4]: relation codes and weights are there, numbers of names are not.
        lhs: heads.
        rhs: tails.
    """

    rows: NDArray[np.int32]
    lhs: Named
    rhs: Named


class Mapper:
    """Takes batches of edges; use as a context, the end of which writes what is still held.

    `prepared` may run in a thread of its own.
    """

    def __init__(self, plan: Plan) -> None:
        """Map edges into the scratch folders of `plan`, which exist."""
        self._plan = plan
        listed = {name: (lhs, rhs) for name, lhs, rhs in plan.spec.relations}
        self.relations = Relations(listed)
        self.weighted = False
        self.generations = 0
        self._type_pairs: list[tuple[int, int]] = []
        self._table = NameTable()
        self._edges: dict[str, RowSpill] = {}

    def __enter__(self) -> Mapper:
        """Return the mapper."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is still held, unless there was an error."""
        if kind is None:
            self._end_generation()

    def prepared(self, batches: Iterable[Batch]) -> Iterator[Prepared]:
        """Hash the names of batches of edges."""
        start_compiled_code()
        for batch in batches:
            columns = batch.columns
            rows = np.empty((len(columns), WIDTH), np.int32)
            rows[:, REL] = self.relations.encode(batch)
            types = self._types(rows[:, REL])
            both = zip((columns.lhs, columns.rhs), types, strict=True)
            lhs, rhs = (Named(n, t, hash_names(n, self._plan.salts[t]).hi) for n, t in both)
            weight, ones = columns.weight, np.ones(1, np.float32)
            rows[:, WEIGHT] = (ones if weight is None else weight).view(np.int32)
            self.weighted |= weight is not None and len(columns) > 0
            yield Prepared(rows, lhs, rhs)

    def add(self, split: str, edges: Prepared) -> None:
        """Number the names of edges, and spill the edges by bucket."""
        rows, lhs, rhs = edges
        limit = min(self._plan.share(4), numbering.MOST)
        if self._table.count and self._table.size_with((lhs, rhs)) > limit:
            self._end_generation()
        self._table.number(lhs, rows[:, LHS])
        self._table.number(rhs, rows[:, RHS])
        if split not in self._edges:
            folder = self._plan.folder(coded(self.generations, split))
            disk.create_folder(folder)
            self._edges[split] = RowSpill(folder, self._plan.share(16))
        if self._plan.grid == 1:
            append_rows(self._plan.folder(coded(self.generations, split)) / "0", rows)
        else:
            lhs_part, rhs_part = (partition(self._plan, *end[1:]) for end in (lhs, rhs))
            self._edges[split].add(rows, lhs_part * self._plan.grid + rhs_part)

    def _end_generation(self) -> None:
        """Write what the numbers mean, and the names by partition; begin a new table."""
        for spill in self._edges.values():
            spill.flush()
        table, self._table, self._edges = self._table, NameTable(), {}
        names, types = table.names()
        del table  # its memory is needed to sort
        hashes = hash_names(texts_of(names), self._plan.salts[types])
        write_run(self._plan, self.generations, hashes, names, types)
        self.generations += 1

    def _types(self, rel: IntArray) -> NDArray[np.int32]:
        """Return the entity types of both ends of edges with provisional codes, shape [2, E]."""
        if len(self._plan.types) == 1:
            return np.zeros((2, len(rel)), np.int32)
        index = self._plan.types.index
        for code in range(len(self._type_pairs), len(self.relations.names)):
            lhs, rhs = self.relations.types(code)
            self._type_pairs.append((index(lhs), index(rhs)))
        pairs = np.array(self._type_pairs, np.int32).reshape(-1, 2)  # none before the first edge
        return np.ascontiguousarray(pairs.T[:, rel])


def coded(generation: int, split: str) -> str:
    """Return the folder of the edges whose names are numbered in one generation."""
    return f"coded-{generation}-{split}"
