"""The reference training step: what one batch does to rows and relation parameters.

This is the definition. Gathered rows are the leaves of autograd, not tables, so there are no
sparse gradients and no optimizer objects; duplicates inside a batch are gathered once, so their
gradients are summed before one Adagrad update. It holds the package's only backward pass.

Axes: U distinct rows of a table, C chunks, P positives per chunk, K = N + M candidates of which N
in the loaded partition and M from outside, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.model.losses import MASKED, Loss
from biggraph.model.model import Model
from biggraph.model.regularizers import n3
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import Batch, BatchMaker, Populations
from biggraph.train.reservoir import Outside
from biggraph.types import Bucket, Edges, PartitionKey, Side

_ADAGRAD_EPSILON = 1e-10

Tables = Mapping[tuple[Side, str], EmbeddingTable]
Distinct = Callable[[Tensor], tuple[Tensor, Tensor]]  # see `unique`


def by_side(bucket: Bucket, tables: Mapping[PartitionKey, EmbeddingTable]) -> Tables:
    """Return a bucket's tables by side and entity type, as a step finds them."""
    by_use = {}
    for key, table in tables.items():
        for side, index in ((Side.LHS, bucket.lhs), (Side.RHS, bucket.rhs)):
            if key.index == index:
                by_use[side, key.entity_type] = table
    return by_use


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know of the run file.

    Args:
        loss: of each positive against its negatives.
        corrected: weigh sampled negatives so that they stand for all entities; for losses that
            sum over negatives (softmax).
        n3: weight of the N3 regularizer.
        lr: learning rate of rows.
        relation_lr: learning rate of relation parameters.
        shared: entity types whose rows other processes change too.
        batch_size: edges of a full batch. Every batch is divided by it, not by its own size: the
            few edges of a bucket's or a small group's last batch would else count many times over,
            and Adagrad would never forget their gradients.
    """

    loss: Loss
    corrected: bool
    n3: float
    lr: float
    relation_lr: float
    batch_size: int
    shared: frozenset[str] = frozenset()


class _Leaf:
    """Distinct rows of one tensor that a batch uses, with their gradient."""

    def __init__(self, values: Tensor, sums: Tensor, ids: Tensor | None) -> None:
        self.values, self.sums, self.ids = values, sums, ids
        rows = values if ids is None else values.index_select(0, ids)
        # `.data`, not detach(): another thread may change the tensor before the backward pass
        # (Hogwild), which autograd would refuse if it noticed.
        self.rows = rows.data.requires_grad_()

    def adagrad_(self, lr: float) -> None:
        """Move the rows: sums += g^2, values -= lr * g / sqrt(sums) (Duchi et al., JMLR 2011).

        Row-wise where `sums` has one number a row: sums += mean(g^2).
        """
        gradient_UD = self.rows.grad
        if gradient_UD is None:
            return
        row_wise = self.sums.dim() < self.values.dim()
        squares = gradient_UD.square()
        squares = squares.flatten(1).mean(1) if row_wise else squares
        # Without ids the leaf is the tensor itself.
        if self.ids is None:
            sums = self.sums.add_(squares)
        else:
            sums = self.sums.index_add_(0, self.ids, squares).index_select(0, self.ids)
        scale = sums.sqrt().add_(_ADAGRAD_EPSILON)
        scale = scale.view(-1, *[1] * (self.values.dim() - 1)) if row_wise else scale
        step_UD = gradient_UD.div_(scale)
        if self.ids is None:
            self.values.add_(step_UD, alpha=-lr)
        else:
            self.values.index_add_(0, self.ids, step_UD, alpha=-lr)


class _Rows:
    """The rows of one batch: a leaf for each table in use, and where each user finds its rows."""

    def __init__(self, tables: Tables, outside: Outside, batch: Batch, distinct: Distinct) -> None:
        self._distinct = distinct
        self._candidates = batch.candidates
        self._outside = {
            side: outside[side, batch.group.entity_type(side)]
            for side in batch.candidates
            if (side, batch.group.entity_type(side)) in outside
        }
        self._leaves: dict[PartitionKey, _Leaf] = {}
        self._index: dict[tuple[Side, str], Tensor | None] = {}
        wanted: dict[PartitionKey, list[tuple[tuple[Side, str], Tensor | None]]] = {}
        for side in Side:
            table = tables[side, batch.group.entity_type(side)]
            uses = wanted.setdefault(table.key, [])
            uses.append(((side, "own"), batch.ids[side]))
            if side in batch.candidates:
                uses.append(((side, "candidates"), batch.candidates[side].ids_CN))
        by_key = {table.key: table for table in tables.values()}
        self._key: dict[Side, PartitionKey] = {
            side: tables[side, batch.group.entity_type(side)].key for side in Side
        }
        for key, uses in wanted.items():
            self._leaves[key] = self._gather(by_key[key], uses)

    def _gather(
        self, table: EmbeddingTable, uses: list[tuple[tuple[Side, str], Tensor | None]]
    ) -> _Leaf:
        if any(ids is None for _, ids in uses):
            self._index.update(uses)
            return _Leaf(table.rows, table.state, None)
        flat = torch.cat([ids.flatten() for _, ids in uses if ids is not None])
        distinct_U, inverse = self._distinct(flat)
        sizes = [ids.numel() for _, ids in uses if ids is not None]
        for (use, ids), index in zip(uses, torch.split(inverse, sizes), strict=True):
            assert ids is not None
            self._index[use] = index.view(ids.shape)
        return _Leaf(table.rows, table.state, distinct_U)

    def own(self, side: Side) -> Tensor:
        """Return the rows of one end of every edge, [C, P, D]."""
        return self._select(side, "own")

    def candidates(self, side: Side, *, scaled: bool) -> Tensor:
        """Return the rows of a side's candidates, [C, K, D]: N of the partition, M from outside.

        Rows from outside get no gradient; those of the partition, if `scaled`, get theirs times
        `row_scale`.
        """
        near_CND, drawn = self._select(side, "candidates"), self._candidates[side]
        if drawn.outside_CM is None:
            return near_CND
        far_MD = self._outside[side].index_select(0, drawn.outside_CM.flatten())
        far_CMD = far_MD.view(*drawn.outside_CM.shape, -1)
        if scaled:
            scale = drawn.row_scale
            near_CND.register_hook(lambda g_CND: g_CND * scale)  # type: ignore[no-untyped-call]
        return torch.cat((near_CND.expand(len(far_CMD), -1, -1), far_CMD), dim=1)

    def _select(self, side: Side, use: str) -> Tensor:
        rows_UD = self._leaves[self._key[side]].rows
        index = self._index[side, use]
        if index is None:
            return rows_UD.unsqueeze(0)
        return rows_UD.index_select(0, index.flatten()).view(*index.shape, -1)

    def adagrad_(self, lr: float, types: Callable[[str], bool]) -> None:
        """Move every row that the batch used, of the entity types for which `types` is true."""
        for key, leaf in self._leaves.items():
            if types(key.entity_type):
                leaf.adagrad_(lr)


class _Relations:
    """The relation parameters of one batch, one row an edge, by the end that they transform."""

    def __init__(self, model: Model, batch: Batch, find_distinct: Distinct) -> None:
        distinct, inverse = find_distinct(batch.place_CP.flatten())
        self._leaves: dict[Side, dict[str, _Leaf]] = {}
        self._inverse = inverse.view_as(batch.place_CP)
        store = model.parameters
        for end in Side:
            names = model.parameter_names(batch.group, end)
            self._leaves[end] = {
                own: _Leaf(store.values[name], store.sums[name], distinct)
                for own, name in names.items()
            }

    def of(self, end: Side) -> dict[str, Tensor]:
        """Return parameters by their own names, [C, P, ...]."""
        return {name: leaf.rows[self._inverse] for name, leaf in self._leaves[end].items()}

    def adagrad_(self, lr: float) -> None:
        """Move every parameter that the batch used."""
        for leaves in self._leaves.values():
            for leaf in leaves.values():
                leaf.adagrad_(lr)


def train_step(
    model: Model, settings: StepSettings, tables: Tables, outside: Outside, batch: Batch
) -> float:
    """Score one batch and move its rows and relation parameters one Adagrad step.

    Args:
        model: holds the relation parameters, which change.
        settings: loss, regularization, learning rates.
        tables: by (side, entity type) of the bucket; rows and state change.
        outside: rows of the reservoir [S, D], by (side, entity type); they do not change.
        batch: edges, negatives and masks.

    Returns:
        The loss: mean of the edges' weighted losses, summed over replaced sides, without
        regularization.
    """
    return float(train_batch(model, settings, tables, outside, batch)) / batch.num_edges


def unique(ids_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ones of some ids, [U], and where among them each id is, [T]."""
    distinct_U, inverse_T = torch.unique(ids_T, return_inverse=True)
    return distinct_U, inverse_T


def train_batch(
    model: Model,
    settings: StepSettings,
    tables: Tables,
    outside: Outside,
    batch: Batch,
    distinct: Distinct = unique,
) -> Tensor:
    """As `train_step`, with all tensors on one device; return the sum of losses, on that device.

    `distinct` finds the distinct rows of a batch, as `unique` does. It may fill up with ids that
    are there already, to which no place points: they get no gradient.
    """
    rows, relations = _Rows(tables, outside, batch, distinct), _Relations(model, batch, distinct)
    loss, penalty = batch_loss(model, settings, batch, rows, relations)
    total = (loss + penalty) / settings.batch_size
    torch.autograd.backward(total)
    shared = settings.shared.__contains__
    rows.adagrad_(settings.lr, lambda name: not shared(name))
    with model.parameters.lock:
        relations.adagrad_(settings.relation_lr)
        rows.adagrad_(settings.lr, shared)
    return loss.detach()


def batch_loss(
    model: Model, settings: StepSettings, batch: Batch, rows: _Rows, relations: _Relations
) -> tuple[Tensor, Tensor]:
    """Return the loss and the penalty of a batch, each summed over edges and replaced sides."""
    zero = torch.zeros(())
    loss, penalty = zero, zero
    parameters = {end: relations.of(end) for end in Side}
    for side in batch.candidates:
        own_CPD, anchor_CPD = rows.own(side), rows.own(side.other)
        if side in batch.keep:
            anchor_CPD = anchor_CPD * batch.keep[side]
        query_CPD = model.query_with(batch.group, side, anchor_CPD, parameters[side.other])
        true_CPD = model.candidates_with(batch.group, side, own_CPD, parameters[side])
        # Without reciprocal relations a group is one relation, whose parameters serve all rows.
        shared = {name: value[:1, :1] for name, value in parameters[side].items()}
        drawn_CKD = rows.candidates(side, scaled=settings.corrected)
        candidates_CKD = model.candidates_with(batch.group, side, drawn_CKD, shared)
        positive_CP = model.matched(query_CPD, true_CPD)
        negative_CPK = model.pairwise(query_CPD, candidates_CKD).float()
        loss = loss + _side_loss(settings, batch, side, positive_CP, negative_CPK)
    if settings.n3:
        penalty = settings.n3 * _penalty(model, batch, rows, parameters)
    return loss, penalty


def _side_loss(
    settings: StepSettings, batch: Batch, side: Side, positive_CP: Tensor, negative_CPK: Tensor
) -> Tensor:
    """Return the weighted loss of one replaced side, summed over edges, from all scores."""
    candidates = batch.candidates[side]
    if settings.corrected:
        negative_CPK = negative_CPK + candidates.log_weight_CK.unsqueeze(1)
    # Every loss has gradient 0 at MASKED, so that filling behind autograd's back is exact.
    inside = candidates.mask_CPN.shape[2]
    negative_CPK.detach()[..., :inside].masked_fill_(candidates.mask_CPN, MASKED)
    return (settings.loss(positive_CP, negative_CPK) * batch.weight_CP).sum()


def untrained_loss(settings: StepSettings, batch: Batch) -> float:
    """Return the loss of an edge of weight 1 if all scores were equal: nothing is learned yet.

    0 where no edge of the batch has weight.
    """
    weight = float(batch.weight_CP.sum())
    loss = 0.0
    for side, candidates in batch.candidates.items():
        inside, outside_CM = candidates.mask_CPN.shape[2], candidates.outside_CM
        count = inside + (0 if outside_CM is None else outside_CM.shape[1])
        zero_CP = torch.zeros(batch.weight_CP.shape)
        zero_CPK = torch.zeros(*batch.weight_CP.shape, count)
        loss += float(_side_loss(settings, batch, side, zero_CP, zero_CPK))
    return loss / weight if weight else 0.0


def _penalty(
    model: Model, batch: Batch, rows: _Rows, parameters: Mapping[Side, dict[str, Tensor]]
) -> Tensor:
    """Return the summed N3 norm of both ends and the operator of every edge and replaced side."""
    operator = model.operator(batch.group)
    ends = [n3(operator.magnitudes(rows.own(end))) for end in Side]
    penalty_CP = (ends[0] + ends[1]) * len(batch.candidates)
    for side in batch.candidates:
        end = side.other if model.reciprocal else Side.RHS
        flat = {name: value.flatten(0, 1) for name, value in parameters[end].items()}
        magnitudes_BM = operator.parameter_magnitudes(flat) if flat else None
        if magnitudes_BM is not None:
            penalty_CP = penalty_CP + n3(magnitudes_BM).view_as(penalty_CP)
    return (penalty_CP * batch.valid_CP).sum()


@dataclass(frozen=True)
class Lesson:
    """What a thread needs to train batches of one bucket.

    Args:
        settings: with the learning rates of now.
        tables: by (side, entity type) of the bucket; rows and state change in place.
        outside: rows of the reservoir, by (side, entity type).
        edges: of the bucket.
        populations: from `BatchMaker.populations`.
        seed: of candidates and dropout.
    """

    settings: StepSettings
    tables: Tables
    outside: Outside
    edges: Edges
    populations: Populations
    seed: int


class Step(Protocol):
    """What a training thread does with one batch after another."""

    def begin(self, lesson: Lesson) -> None:
        """Train batches of this bucket from now on."""

    def __call__(self, positions: NDArray[np.int64]) -> float:
        """Train one batch and return its loss, see `train_step`.

        Args:
            positions: of its edges in the bucket, int64 [B]; all of one relation group.
        """

    def end(self) -> None:
        """Leave in the lesson's tables what its batches came to. None follow until `begin`."""


class ReferenceStep:
    """The step that is the definition; see `Step`.

    Args:
        model: holds the relation parameters, which change.
        settings: not used: those of each lesson are.
        maker: draws candidates.
    """

    def __init__(self, model: Model, settings: StepSettings, maker: BatchMaker) -> None:
        self._model, self._maker = model, maker

    def begin(self, lesson: Lesson) -> None:
        """Train batches of this bucket from now on."""
        self._lesson = lesson
        self._generator = torch.Generator().manual_seed(lesson.seed)

    def __call__(self, positions: NDArray[np.int64]) -> float:
        """Train one batch and return its loss."""
        given = self._lesson
        (batch,) = self._maker.batches(given.edges, [positions], given.populations, self._generator)
        return train_step(self._model, given.settings, given.tables, given.outside, batch)

    def end(self) -> None:
        """Do nothing: the tables have changed in place."""
