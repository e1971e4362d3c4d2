"""The step on a device: what `train.step` defines, with everything that a batch needs over there.

Tables and edges of a bucket are brought once; of a batch, only the positions of its edges cross
over, and its loss comes back. Tables that the next bucket needs too stay. Relation parameters are
exchanged with main memory now and then, since other workers train them too.
Candidates are drawn on the device, by a generator of its own. The device may be any of torch's,
the processor included. Knows nothing of which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.errors import ConfigError
from biggraph.model.model import Model, RelationGroup
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import Batch, BatchMaker, Chosen, Populations
from biggraph.train.recording import Record, Work, padded_distinct
from biggraph.train.reservoir import Outside
from biggraph.train.step import Lesson, StepSettings, Tables, train_batch, unique
from biggraph.train.transfers import Ferry, Loan, Residence
from biggraph.types import Edges

# Batches between two exchanges of relation parameters with main memory, from where other workers
# get them: about half a second. More where they are large: 64 KiB cross over while a batch is
# trained. Counted and not timed, so that equal runs stay equal.
_EXCHANGE_EVERY = 200
_BYTES_A_BATCH = 2**16


@dataclass(frozen=True)
class _Bucket:
    """What a bucket's batches use, on the device.

    Args:
        model: with relation parameters there.
        tables: with rows and state there.
        outside: rows of the reservoir.
        populations: with shares there.
        ends: offsets of both ends and relations, int32 [3, E].
        weight: of each edge, float32 [E], or None.
        generator: of candidates and dropout.
    """

    model: Model
    tables: Tables
    outside: Outside
    populations: Populations
    ends: Tensor
    weight: Tensor | None
    generator: torch.Generator


class DeviceStep:
    """The reference step on a device; see `Step`.

    Args:
        model: holds the relation parameters, which change now and then and at each bucket's end.
        settings: not used: those of each lesson are.
        maker: draws candidates.
        where: the device.
        precision: of the factors in matrix products: "float32", "tf32" or "bfloat16".
        record: makes the work of batches quicker to repeat, see `recording`; None to leave it.
    """

    def __init__(
        self,
        model: Model,
        settings: StepSettings,
        maker: BatchMaker,
        *,
        where: torch.device,
        precision: str = "float32",
        record: Record | None = None,
    ) -> None:
        self._model, self._maker, self._where = model, maker, where
        self._ferry = Ferry(where)
        self._residence = Residence(self._ferry)
        self._loan = Loan(model.parameters, self._ferry)
        self._products = PRODUCTS[precision]
        # Edges to be masked are as many as a chunk happens to have: no fixed shape.
        self._record = None if maker.negatives.filter_chunk else record
        self._distinct = padded_distinct if self._record else unique
        self._works: dict[tuple[int, int], Work] = {}  # recorded, by group and number of edges
        self._lesson: Lesson | None = None
        self._bucket: _Bucket | None = None

    def begin(self, lesson: Lesson) -> None:
        """Train batches of this bucket from now on.

        Raises:
            ConfigError: the device has no room for its tables.
        """
        self._forget()  # what is there may have to leave
        self._lesson = lesson
        with _room(self._where, lesson.tables):
            self._bucket = self._bring(lesson)
        self._batches = 0
        self._exchange_every = max(_EXCHANGE_EVERY, self._loan.nbytes // _BYTES_A_BATCH)

    def __call__(self, positions: NDArray[np.int64]) -> float:
        """Train one batch and return its loss.

        Raises:
            ConfigError: the device has no room for it.
        """
        lesson, _ = self._begun()
        with _room(self._where, lesson.tables):
            work, at = self._work(positions), self._ferry.bring(torch.from_numpy(positions))
            loss = float(work(at)) / len(positions)
        self._batches += 1
        if self._batches % self._exchange_every == 0:
            self._loan.exchange()
        return loss

    def end(self) -> None:
        """Copy tables to main memory, and add what relation parameters have changed by there."""
        self._residence.save()
        self._loan.give_back()
        self._forget()

    def draw(self, group: RelationGroup, at: Tensor) -> Batch:
        """Return a batch with its candidates.

        Args:
            group: of its edges' relations.
            at: positions of its edges, int64 [B], on the device.
        """
        _, bucket = self._begun()
        lhs_B, rhs_B, rel_B = bucket.ends.index_select(1, at).long()
        weight_B = self._relation_weights.index_select(0, rel_B)
        if bucket.weight is not None:
            weight_B = weight_B * bucket.weight.index_select(0, at)
        place_B = self._place_of.index_select(0, rel_B)
        chosen = Chosen(lhs_B, rhs_B, place_B, weight_B)
        return self._maker.make(group, chosen, bucket.populations, bucket.generator)

    def train(self, batch: Batch) -> Tensor:
        """Move the rows and relation parameters that a batch uses; return the sum of its losses."""
        (lesson, bucket), distinct = self._begun(), self._distinct
        with self._products(self._where):
            return train_batch(
                bucket.model, lesson.settings, bucket.tables, bucket.outside, batch, distinct
            )

    def _work(self, positions: NDArray[np.int64]) -> Work:
        """Return what trains batches like this one."""
        (lesson, bucket), model = self._begun(), self._model
        first = int(lesson.edges.rel[positions[0]])
        group = model.groups[int(model.group_of[first])]

        def work(at: Tensor) -> Tensor:
            return self.train(self.draw(group, at))

        if self._record is None:
            return work
        key = group.index, len(positions)
        if key not in self._works:
            self._works[key] = self._record(work, bucket.generator)
        return self._works[key]

    def _forget(self) -> None:
        """Let go of a bucket: what is needed no more is to be free, here and in main memory."""
        self._lesson = self._bucket = None
        self._works = {}

    def _begun(self) -> tuple[Lesson, _Bucket]:
        assert self._lesson is not None
        assert self._bucket is not None
        return self._lesson, self._bucket

    def _bring(self, lesson: Lesson) -> _Bucket:
        parameters, bring = self._loan.bring(), self._ferry.bring
        self._place_of = bring(self._model.place_of)
        self._relation_weights = bring(self._model.relation_weights)
        edges = lesson.edges
        return _Bucket(
            model=self._model.with_parameters(parameters),
            tables=self._bring_tables(lesson.tables),
            outside={use: bring(rows) for use, rows in lesson.outside.items()},
            populations={
                use: replace(found, share=None if found.share is None else bring(found.share))
                for use, found in lesson.populations.items()
            },
            ends=bring(_ends(edges)),
            weight=None if edges.weight is None else bring(torch.tensor(edges.weight)),
            generator=torch.Generator(self._where).manual_seed(lesson.seed),
        )

    def _bring_tables(self, tables: Tables) -> Tables:
        """Return tables on the device; those of shared types are among the parameters."""
        hosts = [
            host
            for table in {table.key: table for table in tables.values()}.values()
            for host in (table.rows, table.state)
        ]
        own = [host for host in hosts if self._loan.find(host) is None]
        copies = dict(zip(map(id, own), self._residence.bring(own), strict=True))

        def copy_of(host: Tensor) -> Tensor:
            shared = self._loan.find(host)
            return copies[id(host)] if shared is None else shared

        return {
            use: EmbeddingTable(table.key, copy_of(table.rows), copy_of(table.state), "")
            for use, table in tables.items()
        }


def _ends(edges: Edges) -> Tensor:
    columns = (edges.lhs, edges.rhs, edges.rel)
    ends = torch.empty(3, len(edges), dtype=torch.int32)
    for column, values in zip(ends, columns, strict=True):
        column.numpy()[:] = values
    return ends


@contextmanager
def _room(where: torch.device, tables: Tables) -> Iterator[None]:
    """Say what a device had no room for."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size = sum(table.nbytes for table in {t.key: t for t in tables.values()}.values())
        raise ConfigError(
            f"{where}: no room for tables of {size / 2**20:,.0f} MiB and their batches: "
            "import the graph with more partitions, lower train.batch_size, or set train.memory "
            f"so that fewer buckets are trained as one ({error})"
        ) from None


@contextmanager
def _tf32(where: torch.device) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# By `train.precision`: what is done while a batch is trained.
PRODUCTS: Mapping[str, Callable[[torch.device], AbstractContextManager[None]]] = {
    "float32": lambda where: nullcontext(),
    "tf32": _tf32,
    "bfloat16": lambda where: torch.autocast(where.type, torch.bfloat16, cache_enabled=False),
}
