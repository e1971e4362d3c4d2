"""The compiled step of one training thread: numbers rows, differentiates, moves them.

Has its own memory; tables and relation parameters are shared with other threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from biggraph.model.model import Model, RelationGroup
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import BatchMaker
from biggraph.train.kernels import comparators, losses, operators
from biggraph.train.kernels.batch import differentiate
from biggraph.train.kernels.distinct import adagrad, gather_columns, row_adagrad
from biggraph.train.kernels.room import Buffer, Numbering, RoomMaker
from biggraph.train.kernels.sampler import Sampler, nothing
from biggraph.train.kernels.task import Draw, Edges, End, Recipe
from biggraph.train.step import Lesson, StepSettings
from biggraph.types import Side

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Index = NDArray[np.int32]

_USES = ("rows", "parameters", "gradient")


@dataclass(frozen=True)
class CompiledBatch:
    """A batch with its candidates.

    Args:
        group: of its edges' relations.
        ids: of both ends, int64 [B].
        place: of each relation in the group, int64 [B].
        weight: float32 [B].
        draws: candidates of the replaced sides.
    """

    group: RelationGroup
    ids: dict[Side, Ids]
    place: Ids
    weight: Floats
    draws: dict[Side, Draw]


@dataclass(frozen=True)
class _Operator:
    """Parameters of a group's operator at one end, side by side.

    Args:
        values: float32 [R, W], each.
        sums: of Adagrad, the same shapes.
    """

    values: list[Floats]
    sums: list[Floats]

    @property
    def width(self) -> int:
        return sum(value.shape[1] for value in self.values)


class CompiledStep:
    """Trains batches of one bucket at a time; `begin` has to come first.

    Args:
        model: holds the relation parameters, which change.
        settings: loss, regularization, learning rates.
        maker: says how batches are cut and candidates drawn.
        rough: whether the factors of matrix products are rounded to bfloat16. Distances are
            differences of such products, and stay as they are.
    """

    def __init__(
        self, model: Model, settings: StepSettings, maker: BatchMaker, *, rough: bool = False
    ) -> None:
        self._model, self._settings, self._maker = model, settings, maker
        self._sampler = Sampler(maker, model.dimension, weighted=settings.corrected)
        self._not_replaced = nothing(model.dimension)
        self._comparator = comparators.CODES[type(model.comparator)]
        distance = self._comparator in (comparators.L2, comparators.SQUARED_L2)
        self._rough = rough and not distance
        self._rooms = RoomMaker(model.dimension, rough=self._rough)
        self._relations = Numbering()
        self._rows = {side: Numbering() for side in Side}
        self._buffers = {(side, use): Buffer() for side in Side for use in _USES}

    def begin(self, lesson: Lesson) -> None:
        """Train batches of this bucket from now on."""
        self._lesson, self._settings = lesson, lesson.settings
        self._sampler.begin(lesson.seed)

    def __call__(self, positions: Ids) -> float:
        """Train one batch; return its loss as `train_step` does.

        Args:
            positions: of its edges in the bucket, int64 [B]; all of one relation group.
        """
        return self.train(self.draw(positions))

    def end(self) -> None:
        """Do nothing: the tables have changed in place."""

    def draw(self, positions: Ids) -> CompiledBatch:
        """Return a batch with its candidates."""
        rel = self._lesson.edges.rel[positions].astype(np.int64)
        group = self._model.groups[int(self._model.group_of[rel[0]])]
        weight = self._model.relation_weights.numpy()[rel]
        if self._lesson.edges.weight is not None:
            weight = weight * self._lesson.edges.weight[positions]
        ids = {side: getattr(self._lesson.edges, side)[positions].astype(np.int64) for side in Side}
        draws = {
            side: self._sampler.draw(
                self._lesson.populations[group.index, side],
                self._far_rows(group, side),
                ids[side],
                self._maker.chunk_size(len(positions)),
            )
            for side in self._maker.sides
        }
        return CompiledBatch(group, ids, self._model.place_of.numpy()[rel], weight, draws)

    def train(self, batch: CompiledBatch) -> float:
        """Move the rows and relation parameters of a batch one step; return its loss."""
        size, group = len(batch.place), batch.group
        tables = {side: self._lesson.tables[side, group.entity_type(side)] for side in Side}
        place = np.empty(size, np.int32)
        self._relations.begin(size)
        self._relations.add(batch.place, place)
        operators_at = {side: self._operator(group, side) for side in Side}
        numberings = self._number(batch, tables)
        ends = {
            side: self._end(batch, side, tables[side], numberings[side], operators_at[side])
            for side in Side
        }
        draws = {side: batch.draws.get(side, self._not_replaced) for side in Side}
        recipe = self._recipe(group, size)
        loss = differentiate(
            recipe, ends[Side.LHS], ends[Side.RHS], draws[Side.LHS], draws[Side.RHS],
            Edges(place, batch.weight), self._rooms.room(recipe.chunk, draws.values()),
        )  # fmt: skip
        self._move(tables, numberings, ends, operators_at)
        return float(loss) / size

    def _far_rows(self, group: RelationGroup, side: Side) -> Floats:
        rows = self._lesson.outside.get((side, group.entity_type(side)))
        return self._not_replaced.far_rows if rows is None else rows.numpy()

    def _recipe(self, group: RelationGroup, size: int) -> Recipe:
        loss = self._settings.loss
        return Recipe(
            operator=operators.CODES[group.operator],
            comparator=self._comparator,
            rough=self._rough,
            loss=losses.CODES[type(loss)],
            reciprocal=self._model.reciprocal,
            filter_chunk=self._maker.negatives.filter_chunk,
            chunk=self._maker.chunk_size(size),
            margin=getattr(loss, "margin", 0.0),
            temperature=getattr(loss, "temperature", 0.0),
            n3=float(self._settings.n3),
            scale=1.0 / self._settings.batch_size,
        )

    def _operator(self, group: RelationGroup, end: Side) -> _Operator:
        store = self._model.parameters
        names = self._model.parameter_names(group, end).values()
        flat = [
            [kept[name].numpy().reshape(len(kept[name]), -1) for name in names]
            for kept in (store.values, store.sums)
        ]
        return _Operator(*flat)

    def _number(
        self, batch: CompiledBatch, tables: dict[Side, EmbeddingTable]
    ) -> dict[Side, tuple[Numbering, Index]]:
        """Number the distinct rows of each table; where both ends have one table, together."""
        same = tables[Side.LHS].key == tables[Side.RHS].key
        found = {}
        for sides in [tuple(Side)] if same else [(side,) for side in Side]:
            numbering = self._rows[sides[0]]
            draws = [batch.draws[side] for side in sides if side in batch.draws]
            if any(self._maker.covers(self._lesson.populations[batch.group.index, side])
                   for side in sides if side in batch.draws):  # fmt: skip
                numbering.begin_whole(len(tables[sides[0]].rows))
            else:
                numbering.begin(
                    len(sides) * len(batch.place) + sum(draw.ids.size for draw in draws)
                )
            for side in sides:
                index = np.empty(len(batch.place), np.int32)
                numbering.add(batch.ids[side], index)
                found[side] = numbering, index
            for draw in draws:
                numbering.add(draw.ids, draw.numbers)
        return found

    def _end(
        self,
        batch: CompiledBatch,
        side: Side,
        table: EmbeddingTable,
        numbered: tuple[Numbering, Index],
        operator: _Operator,
    ) -> End:
        numbering, index = numbered
        owner = Side.LHS if numbering is self._rows[Side.LHS] else Side.RHS
        used, count = self._relations.distinct, len(self._relations.distinct)
        parameters = self._buffers[side, "parameters"].rows(count, operator.width)
        column = 0
        for value in operator.values:
            gather_columns(value, used, parameters, column)
            column += value.shape[1]
        return End(
            right=side is Side.RHS,
            rows=table.rows.numpy(),
            ids=batch.ids[side],
            numbers=index,
            gradient=self._buffers[owner, "rows"].rows(
                len(numbering.distinct), self._model.dimension
            ),
            parameters=parameters,
            parameter_gradient=self._buffers[side, "gradient"].rows(count, operator.width),
        )

    def _move(
        self,
        tables: dict[Side, EmbeddingTable],
        numberings: dict[Side, tuple[Numbering, Index]],
        ends: dict[Side, End],
        operators_at: dict[Side, _Operator],
    ) -> None:
        moved = {tables[side].key: side for side in reversed(Side)}
        later = []
        for side in moved.values():
            numbering, _ = numberings[side]
            arguments = tables[side], numbering.distinct, ends[side].gradient
            if tables[side].key.entity_type in self._settings.shared:
                later.append(arguments)
            else:
                self._move_rows(*arguments)
        with self._model.parameters.lock:
            for side, operator in operators_at.items():
                self._move_operator(operator, ends[side].parameter_gradient)
            for arguments in later:
                self._move_rows(*arguments)

    def _move_rows(self, table: EmbeddingTable, ids: Ids, gradient: Floats) -> None:
        rate, state = np.float32(self._settings.lr), table.state.numpy()
        if state.ndim == 1:
            row_adagrad(table.rows.numpy(), state, ids, gradient, rate)
        else:
            adagrad(table.rows.numpy(), state, ids, gradient, 0, rate)

    def _move_operator(self, operator: _Operator, gradient: Floats) -> None:
        rate, column = np.float32(self._settings.relation_lr), 0
        for values, sums in zip(operator.values, operator.sums, strict=True):
            adagrad(values, sums, self._relations.distinct, gradient, column, rate)
            column += values.shape[1]
