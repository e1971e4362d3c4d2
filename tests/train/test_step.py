"""The reference step against a naive one: loops over edges, one row at a time for Adagrad."""

import numpy as np
import pytest
import torch

from biggraph.model.losses import make_loss
from biggraph.model.model import build_model
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, NegativesSection, RelationConfig
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import BatchMaker
from biggraph.train.step import StepSettings, train_step
from biggraph.types import Edges, PartitionKey, Side
from tests import reference

D, LR, RELATION_LR, N3, UNIFORM, FULL = 4, 0.1, 0.05, 0.02, 4, 10


def make_schema(two_types):
    entities = (EntityType("a", (13,)),) + ((EntityType("b", (11,)),) if two_types else ())
    rhs = "b" if two_types else "a"
    relations = (RelationType("r0", "a", rhs), RelationType("r1", "a", rhs))
    return GraphSchema(entities, relations)


def make_tables(schema, row_wise, generator):
    tables = []
    for entity in schema.entities:
        rows = torch.randn(entity.count, D, generator=generator)
        state = torch.rand(entity.count, *([] if row_wise else [D]), generator=generator)
        tables.append(EmbeddingTable(PartitionKey(entity.name, 0), rows, state, chain=""))
    by_name = {table.key.entity_type: table for table in tables}
    relation = schema.relations[0]
    return {(Side.LHS, relation.lhs): by_name[relation.lhs],
            (Side.RHS, relation.rhs): by_name[relation.rhs]}  # fmt: skip


def is_padding(batch, side, c, n):
    in_batch = batch.candidates[side].ids_CN is not None and n < batch.place_CP.shape[1]
    return in_batch and not batch.valid_CP[c, n]


def naive_weight(batch, edges, side, c, entity, sizes):
    """How many entities one candidate stands for: 1 / its expected occurrences in the chunk."""
    count, total, outside = sizes[side, batch.group.entity_type(side)]
    scale = 1 if outside else total / count
    if batch.candidates[side].ids_CN is None:
        return scale
    share = np.mean(getattr(edges, side) == entity)
    near = UNIFORM - UNIFORM // 2 if outside else UNIFORM
    expected = (int(batch.valid_CP[c].sum()) - 1) * share + near / count
    return scale / expected


def naive_loss(model, batch, loss, vectors, parameters, edges, sizes, far_rows):
    """Sum of loss and penalty over valid edges, as float64 autograd scalars from plain formulae.

    `vectors[side][offset]` and `parameters[end][name][place]` are float64 leaves.
    """
    total = torch.zeros((), dtype=torch.float64)
    operator = batch.group.operator

    def transform(x, end, place):
        if end is Side.LHS and not model.reciprocal:
            return x
        own = {name: rows[place] for name, rows in parameters[end].items()}
        if operator == "diagonal":
            return x * own["diagonal"]
        if operator == "translation":
            return x + own["translation"]
        if operator == "complex_diagonal":
            re, im = x[: D // 2], x[D // 2 :]
            a, b = own["real"], own["imag"]
            return torch.cat((re * a - im * b, re * b + im * a))
        return x

    def cube(x):
        if operator == "complex_diagonal":
            return ((x[: D // 2] ** 2 + x[D // 2 :] ** 2) ** 1.5).sum()
        return (x.abs() ** 3).sum()

    def score(lhs, rhs):
        return {
            "Dot": lambda: lhs @ rhs,
            "Cos": lambda: lhs @ rhs / (lhs.norm() * rhs.norm()),
            "L2": lambda: -(lhs - rhs).norm(),
            "SquaredL2": lambda: -((lhs - rhs) ** 2).sum(),
        }[type(model.comparator).__name__]()

    chunks, chunk = batch.place_CP.shape
    for side, candidates in batch.candidates.items():
        for c in range(chunks):
            for p in range(chunk):
                if not batch.valid_CP[c, p]:
                    continue
                place = int(batch.place_CP[c, p])
                ends = {s: vectors[s][int(batch.ids[s][c, p])] for s in Side}
                kept = ends[side.other]
                if side in batch.keep:
                    kept = kept * batch.keep[side][c, p].double()

                def one(replacement, kept=kept, side=side, place=place):
                    if model.reciprocal:
                        query = transform(kept, side.other, place)
                        return score(query, replacement)
                    lhs, rhs = (kept, replacement) if side is Side.RHS else (replacement, kept)
                    return score(lhs, transform(rhs, Side.RHS, place))

                ids = candidates.ids_CN
                ids = range(len(vectors[side])) if ids is None else ids[c].tolist()
                true = int(batch.ids[side][c, p])
                kept_n = [
                    n for n, i in enumerate(ids) if i != true and not is_padding(batch, side, c, n)
                ]
                count, everyone, outside = sizes[side, batch.group.entity_type(side)]
                scale = everyone / count if outside and loss == "softmax" else 1
                near = [vectors[side][ids[n]] for n in kept_n]
                near = [scale * row - (scale - 1) * row.detach() for row in near]
                negatives = [one(row) for row in near]
                weights = [naive_weight(batch, edges, side, c, ids[n], sizes) for n in kept_n]
                if outside:
                    drawn = candidates.outside_CM[c % len(candidates.outside_CM)].tolist()
                    far = far_rows[side, batch.group.entity_type(side)].double()
                    negatives += [one(far[i]) for i in drawn]
                    weights += [(everyone - count) / len(drawn)] * len(drawn)
                positive = one(ends[side])
                n = torch.stack(negatives)
                if loss == "softmax":
                    own = -positive + torch.log(
                        positive.exp() + (torch.tensor(weights) * n.exp()).sum()
                    )
                elif loss == "logistic":
                    own = torch.log1p(torch.exp(-positive)) + torch.log1p(torch.exp(n)).mean()
                else:
                    own = (0.3 - positive + n).clamp_min(0).mean()
                total = total + own * batch.weight_CP[c, p].double()
                end = side.other if model.reciprocal else Side.RHS
                flat = {name: rows[place] for name, rows in parameters[end].items()}
                if operator == "complex_diagonal":
                    relation = cube(torch.cat((flat["real"], flat["imag"])))
                else:
                    relation = sum((v.abs() ** 3).sum() for v in flat.values())
                total = total + N3 * (cube(ends[Side.LHS]) + cube(ends[Side.RHS]) + relation)
    return total / FULL


CASES = [
    # operator, comparator, loss, reciprocal, two types, row-wise, all negatives, dropout, weights
    ("complex_diagonal", "dot", "softmax", True, False, False, False, 0.0, False),
    ("complex_diagonal", "dot", "softmax", True, True, True, False, 0.5, True),
    ("complex_diagonal", "dot", "softmax", False, False, False, False, 0.0, False),
    ("diagonal", "cos", "logistic", True, True, False, True, 0.0, True),
    ("diagonal", "dot", "ranking", False, True, True, True, 0.3, False),
    ("translation", "l2", "softmax", True, False, True, True, 0.0, False),
    ("translation", "squared_l2", "ranking", False, False, False, False, 0.0, True),
    ("translation", "l2", "logistic", True, True, False, False, 0.2, False),
    ("identity", "cos", "softmax", True, False, False, False, 0.0, True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(map(str, c)))
@pytest.mark.parametrize(("sides", "outside"), [("both", 0), ("lhs", 0), ("both", 9)])
def test_step_equals_the_naive_step(case, sides, outside):
    operator, comparator, loss, reciprocal, two_types, row_wise, whole, dropout, weighted = case
    generator = torch.Generator().manual_seed(11)
    schema = make_schema(two_types)
    section = ModelSection(
        operator=operator, comparator=comparator, dimension=D, reciprocal=reciprocal
    )
    model = build_model(section, [RelationConfig(name="r1", weight=1.5)], schema)
    for value in model.parameters.values.values():
        value.normal_(generator=generator)
    for value in model.parameters.sums.values():
        value.uniform_(generator=generator)
    tables = make_tables(schema, row_wise, generator)
    rng = np.random.default_rng(5)
    size = 7  # chunks of three: the last one is ragged
    edges = Edges(
        rng.integers(0, 13, size, dtype=np.int32),
        rng.integers(0, 2, size, dtype=np.int32) if reciprocal else np.zeros(size, np.int32),
        rng.integers(0, 11, size, dtype=np.int32),
        rng.random(size, dtype=np.float32) if weighted else None,
    )
    negatives = NegativesSection(in_batch=3, uniform=UNIFORM, all=whole, sides=sides)
    maker = BatchMaker(model, negatives, batch_size=size, dropout=dropout)
    far_rows = {}
    if outside:
        far_rows = {use: torch.randn(9, D, generator=generator) for use in tables}
    sizes = {use: (len(t.rows), 3 * len(t.rows), outside) for use, t in tables.items()}
    populations = maker.populations(edges, sizes)
    (batch,) = maker.batches(edges, [np.arange(size)], populations, generator)

    shared = {t.key: t.rows.double().requires_grad_() for t in tables.values()}
    vectors = {side: shared[t.key] for (side, _), t in tables.items()}
    names = {end: model.parameter_names(batch.group, end) for end in Side}
    parameters = {
        end: {own: model.parameters.values[n].double().requires_grad_() for own, n in by.items()}
        for end, by in names.items()
    }
    expected = naive_loss(model, batch, loss, vectors, parameters, edges, sizes, far_rows)
    expected.backward()
    before = {t.key: (t.rows.numpy().copy(), t.state.numpy().copy()) for t in tables.values()}
    old = {n: (v.numpy().copy(), model.parameters.sums[n].numpy().copy())
           for n, v in model.parameters.values.items()}  # fmt: skip

    settings = StepSettings(
        make_loss(loss, margin=0.3, temperature=0.0), loss == "softmax", N3, LR, RELATION_LR, FULL
    )
    train_step(model, settings, tables, far_rows, batch)

    for table in tables.values():
        rows, state = before[table.key]
        gradient = shared[table.key].grad
        gradient = np.zeros_like(rows) if gradient is None else gradient.numpy()
        for i in range(len(rows)):
            row, sums = reference.adagrad(rows[i], state[i], gradient[i], LR, row_wise=row_wise)
            np.testing.assert_allclose(table.rows[i].numpy(), row, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(table.state[i].numpy(), sums, rtol=1e-4, atol=1e-6)
    for end, by in names.items():
        for own, name in by.items():
            gradient = parameters[end][own].grad
            gradient = np.zeros_like(old[name][0]) if gradient is None else gradient.numpy()
            value, sums = reference.adagrad(*old[name], gradient, RELATION_LR, row_wise=False)
            np.testing.assert_allclose(model.parameters.values[name], value, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(model.parameters.sums[name], sums, rtol=1e-4, atol=1e-6)
