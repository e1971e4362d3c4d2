"""The compiled step against the reference step: the same batch, the same rows afterwards."""

import copy
from dataclasses import dataclass, replace

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.model.comparators import COMPARATORS
from biggraph.model.losses import make_loss
from biggraph.model.model import build_model
from biggraph.model.negatives import Candidates, mask_known_in_chunk
from biggraph.model.operators import OPERATORS
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, NegativesSection, RelationConfig
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import Batch, BatchMaker
from biggraph.train.bucket import BucketTrainer
from biggraph.train.kernels import batch, distinct, draws, jit, losses, mathematics, vectors
from biggraph.train.kernels.compiling import compile_all
from biggraph.train.kernels.room import Numbering
from biggraph.train.kernels.step import CompiledStep
from biggraph.train.step import Lesson, ReferenceStep, StepSettings, train_step
from biggraph.types import Bucket, Edges, PartitionKey, Side


@dataclass(frozen=True)
class Case:
    operator: str = "complex_diagonal"
    comparator: str = "dot"
    loss: str = "softmax"
    temperature: float = 0.0
    reciprocal: bool = True
    two_types: bool = False
    row_wise: bool = False
    weighted: bool = False
    corrected: bool = True
    filter_chunk: bool = False
    sides: str = "both"
    everything: bool = False
    in_batch: int = 3
    uniform: int = 4
    outside: int = 0
    dropout: float = 0.0
    n3: float = 0.02
    dimension: int = 6
    entities: int = 23
    size: int = 8
    seed: int = 0


class World:
    """A model, tables, edges and the two steps."""

    def __init__(self, case: Case):
        self.case = case
        generator = torch.Generator().manual_seed(case.seed)
        rng = np.random.default_rng(case.seed)
        rhs = "b" if case.two_types else "a"
        types = [EntityType("a", (case.entities,))]
        types += [EntityType("b", (case.entities - 5,))] if case.two_types else []
        relations = (RelationType("r0", "a", rhs), RelationType("r1", "a", rhs))
        section = ModelSection(
            operator=case.operator, comparator=case.comparator, dimension=case.dimension,
            reciprocal=case.reciprocal,
        )  # fmt: skip
        self.model = build_model(
            section, [RelationConfig(name="r1", weight=1.5)], GraphSchema(tuple(types), relations)
        )
        for value in self.model.parameters.values.values():
            value.normal_(generator=generator)
        for value in self.model.parameters.sums.values():
            value.uniform_(generator=generator)
        self.tables = self.make_tables(types, rhs, generator)
        self.edges = self.make_edges(rng, rhs)
        negatives = NegativesSection(
            in_batch=case.in_batch, uniform=case.uniform, all=case.everything, sides=case.sides,
            filter_chunk=case.filter_chunk,
        )  # fmt: skip
        self.maker = BatchMaker(self.model, negatives, batch_size=case.size, dropout=case.dropout)
        self.far = {}
        if case.outside:
            self.far = {
                use: torch.randn(case.outside, case.dimension, generator=generator)
                for use in self.tables
            }
        sizes = {u: (len(t.rows), 3 * len(t.rows), case.outside) for u, t in self.tables.items()}
        self.populations = self.maker.populations(self.edges, sizes)
        self.settings = StepSettings(
            make_loss(case.loss, margin=0.3, temperature=case.temperature),
            case.loss == "softmax" and case.corrected, case.n3, 0.1, 0.05, case.size + 1,
        )  # fmt: skip

    def make_tables(self, types, rhs, generator):
        tables = {}
        for kind in types:
            shape = (kind.count, self.case.dimension)
            rows = torch.randn(shape, generator=generator)
            state = torch.rand(shape[:1] if self.case.row_wise else shape, generator=generator)
            tables[kind.name] = EmbeddingTable(PartitionKey(kind.name, 0), rows, state, chain="")
        return {(Side.LHS, "a"): tables["a"], (Side.RHS, rhs): tables[rhs]}

    def make_edges(self, rng, rhs):
        case, count = self.case, len(self.tables[Side.RHS, rhs].rows)
        few = max(2, min(case.entities, 5))  # so that entities come more than once
        lhs = rng.integers(0, few if case.seed % 2 else case.entities, case.size, dtype=np.int32)
        return Edges(
            lhs,
            rng.integers(0, 2 if case.reciprocal else 1, case.size, dtype=np.int32),
            rng.integers(0, count, case.size, dtype=np.int32),
            rng.random(case.size, dtype=np.float32) if case.weighted else None,
        )

    def compiled(self, *, rough=False):
        step = CompiledStep(self.model, self.settings, self.maker, rough=rough)
        settings, seed = self.settings, self.case.seed
        step.begin(Lesson(settings, self.tables, self.far, self.edges, self.populations, seed))
        return step

    def as_reference(self, compiled):
        """Return the reference's form of a compiled batch."""
        case, size = self.case, len(compiled.place)
        chunk = self.maker.chunk_size(size)
        chunks = -(-size // chunk)

        def padded(values, fill=0):
            values = torch.as_tensor(np.ascontiguousarray(values))
            room = torch.full((chunks * chunk, *values.shape[1:]), fill, dtype=values.dtype)
            room[:size] = values
            return room.view(chunks, chunk, *values.shape[1:])

        ids = {side: padded(compiled.ids[side]) for side in Side}
        place, valid = padded(compiled.place), padded(np.ones(size, bool), False)
        candidates, keep = {}, {}
        for side, draw in compiled.draws.items():
            whole = self.maker.covers(self.populations[compiled.group.index, side])
            found = self.candidates(draw, ids[side], valid, whole)
            if case.filter_chunk:
                found = mask_known_in_chunk(found, ids[side.other], place, ids[side], valid)
            candidates[side] = found
            if len(draw.keep):
                keep[side] = padded(draw.keep)
        weight = padded(compiled.weight)
        return Batch(compiled.group, ids, place, weight, valid, candidates, keep)

    def candidates(self, draw, true_CP, valid_CP, whole):
        chunks, chunk = true_CP.shape
        drawn = torch.from_numpy(draw.ids)
        far = torch.from_numpy(draw.far) if draw.far.shape[1] else None
        m = draw.far.shape[1]
        if whole:
            mask = torch.arange(drawn.shape[1]) == true_CP.unsqueeze(2)
            weights = torch.from_numpy(draw.log_weight)
            weights = weights if len(weights) else torch.zeros(1, drawn.shape[1] + m)
            return Candidates(None, mask, far, weights, draw.row_scale)
        mask = drawn.unsqueeze(1) == true_CP.unsqueeze(2)
        own = chunk if draw.own else 0
        if own:
            drawn = torch.cat((true_CP, drawn), 1)
            same = (true_CP.unsqueeze(1) == true_CP.unsqueeze(2)) | ~valid_CP.unsqueeze(1)
            mask = torch.cat((same, mask), 2)
        weights = torch.zeros(chunks, drawn.shape[1] + m)
        for c in range(chunks if len(draw.log_weight) else 0):
            here = int(valid_CP[c].sum()) if own else 0
            behind = drawn.shape[1] + m - own
            row = torch.from_numpy(draw.log_weight[c])
            weights[c, :here], weights[c, own:] = row[:here], row[here : here + behind]
        return Candidates(drawn, mask, far, weights, draw.row_scale)


def assert_same(case):
    if case.comparator == "l2" and case.operator == "identity":
        # An entity at distance 0 of itself, as |a|^2 + |a|^2 - 2aa, is a root of mere rounding.
        case = replace(case, two_types=True)
    world = World(case)
    other = copy.copy(world)
    tables = {id(t): copy.deepcopy(t) for t in world.tables.values()}
    other.tables = {use: tables[id(t)] for use, t in world.tables.items()}
    values, sums = world.model.parameters.values, world.model.parameters.sums
    before = copy.deepcopy((values, sums))
    step = world.compiled()
    compiled = step.draw(np.arange(case.size))
    batch = world.as_reference(compiled)
    found = step.train(compiled)
    trained = copy.deepcopy((values, sums))
    for store, old in zip((values, sums), before, strict=True):
        for name, value in store.items():
            value.copy_(old[name])
    wanted = train_step(world.model, world.settings, other.tables, world.far, batch)
    # A small loss with a margin is a difference of distances near 10, that float32 knows to 1e-6.
    margin = case.loss == "ranking" and case.comparator == "l2"
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6 if margin else None)
    for use, table in world.tables.items():
        torch.testing.assert_close(table.rows, other.tables[use].rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(table.state, other.tables[use].state, rtol=1e-4, atol=1e-5)
    for store, here in zip((values, sums), trained, strict=True):
        for name, value in store.items():
            torch.testing.assert_close(here[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize("loss", ["softmax", "logistic", "ranking"])
@pytest.mark.parametrize("comparator", sorted(COMPARATORS))
@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_every_combination_does_what_the_reference_does(operator, comparator, loss, reciprocal):
    assert_same(Case(operator, comparator, loss, reciprocal=reciprocal))


@pytest.mark.parametrize("comparator", ["dot", "cos", "l2"])
def test_own_candidates_beside_outside_ones_count_once(comparator):
    """Rows get another gradient than the operator's parameters there."""
    assert_same(Case(comparator=comparator, reciprocal=False, in_batch=3, uniform=2, outside=3))


CASES = st.builds(
    Case,
    operator=st.sampled_from(sorted(OPERATORS)),
    comparator=st.sampled_from(sorted(COMPARATORS)),
    loss=st.sampled_from(["softmax", "logistic", "ranking"]),
    temperature=st.sampled_from([0.0, 0.5, 2.0]),
    reciprocal=st.booleans(),
    two_types=st.booleans(),
    row_wise=st.booleans(),
    weighted=st.booleans(),
    corrected=st.booleans(),
    filter_chunk=st.booleans(),
    sides=st.sampled_from(["both", "lhs", "rhs"]),
    everything=st.booleans(),
    in_batch=st.integers(0, 9),
    uniform=st.integers(1, 40),
    outside=st.sampled_from([0, 3, 17]),
    dropout=st.sampled_from([0.0, 0.4]),
    n3=st.sampled_from([0.0, 0.1]),
    dimension=st.sampled_from([2, 4, 6, 20, 34]),
    entities=st.integers(8, 60),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_any_batch_does_what_the_reference_does(case):
    assert_same(case)


def losses_of_epochs(make_step, edges, epochs):
    """Return each epoch's loss of a small model with 200 entities."""
    schema = GraphSchema((EntityType("e", (200,)),), (RelationType("r", "e", "e"),))
    model = build_model(ModelSection(dimension=20), [], schema)
    negatives = NegativesSection(in_batch=20, uniform=20)
    maker = BatchMaker(model, negatives, batch_size=100, dropout=0)
    rows = torch.randn(200, 20, generator=torch.Generator().manual_seed(0)) * 1e-3
    table = EmbeddingTable(PartitionKey("e", 0), rows, torch.zeros(200, 20), "")
    loss = make_loss("softmax", margin=0.1, temperature=0.0)
    trainer = BucketTrainer(
        model, StepSettings(loss, True, 0.0, 0.1, 0.1, 100), maker, threads=1, seed=0,
        totals={"e": 200}, make_step=make_step,
    )  # fmt: skip
    tables = {(side, "e"): table for side in Side}
    return [
        trainer.train(epoch, Bucket(0, 0), tables, {}, edges, lambda *_: None).loss
        for epoch in range(epochs)
    ]


def test_epochs_lose_what_those_of_the_reference_lose():
    """Other candidates of the same distribution; the first epoch is as much chance as training."""
    rng = np.random.default_rng(3)
    group, lhs = rng.integers(0, 10, 200), rng.integers(0, 200, 6000, dtype=np.int32)
    rhs = [rng.choice(np.flatnonzero(group == (group[i] + 1) % 10)) for i in lhs]
    edges = Edges(lhs, np.zeros(6000, np.int32), np.array(rhs, np.int32))
    compiled = losses_of_epochs(CompiledStep, edges, 3)
    reference = losses_of_epochs(ReferenceStep, edges, 3)
    assert compiled[0] > 1.2 * compiled[2]
    assert compiled[1:] == pytest.approx(reference[1:], rel=0.01)


@pytest.mark.parametrize(
    ("function", "exact", "low", "high"),
    [
        (mathematics.exp, np.exp, -86.9, 80.0),
        (mathematics.log, np.log, 1e-9, 1e4),
        (mathematics.softplus, lambda x: np.logaddexp(0, x), -80.0, 80.0),
        (mathematics.sigmoid, lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0),
    ],
)
def test_functions_are_exact_to_single_precision(function, exact, low, high):
    @numba.njit
    def over(values):
        out = np.empty_like(values)
        for i in range(len(values)):
            out[i] = function(values[i])
        return out

    values = np.linspace(low, high, 20_001).astype(np.float32)
    np.testing.assert_allclose(over(values), exact(values.astype(np.float64)), rtol=5e-7, atol=2e-7)


def test_what_is_not_a_number_stays_so():
    @numba.njit
    def of(value):
        return mathematics.exp(value), mathematics.softplus(value), mathematics.sigmoid(value)

    assert np.isnan(of(np.float32("nan"))).all()


@pytest.mark.parametrize("place", [0, 7, 19])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("loss", sorted(losses.CODES.values()))
def test_a_candidate_that_is_not_a_number_makes_the_loss_none(loss, temperature, place):
    @numba.njit
    def differentiate(negatives):
        some = np.float32(0.5), negatives, np.float32(0.1), np.float32(temperature), np.float32(1)
        return losses.differentiate(loss, *some)

    negatives = np.linspace(-1, 1, 20, dtype=np.float32)
    assert np.isfinite(differentiate(negatives.copy())).all()
    negatives[place] = np.nan
    assert np.isnan(differentiate(negatives)[0])


def test_the_largest_of_a_row_of_any_length():
    @numba.njit
    def largest(row):
        return vectors.largest(row)

    rng = np.random.default_rng(0)
    for n in range(1, 70):
        memory = np.full(n + 40, np.inf, np.float32)  # what lies around must not count
        row = memory[20 : 20 + n]
        for place in (0, n // 2, n - 1):
            row[:] = -rng.random(n, dtype=np.float32)
            row[place] = 0.5
            assert largest(row) == 0.5
        row[:] = -np.inf
        assert largest(row) == -np.inf
    assert largest(np.empty(0, np.float32)) == -np.inf


def test_ids_are_numbered_by_first_appearance():
    numbering = Numbering()
    for size in (10, 3, 500, 40):
        ids = np.random.default_rng(size).integers(0, 2**31 - 1, size) // (size * 10**6)
        numbering.begin(size + 2)
        index, more = np.empty(size, np.int32), np.empty(2, np.int32)
        numbering.add(ids, index)
        numbering.add(ids[[0, size - 1]], more)
        assert (numbering.distinct[index] == ids).all()
        assert list(dict.fromkeys(ids.tolist())) == numbering.distinct.tolist()
        assert more.tolist() == [0, index[-1]]


def test_compiled_code_is_kept_by_the_digest_of_all_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not jit.kept("double")

    @jit.kernel
    def double(x):
        return 2 * x

    assert double(21) == 42
    assert jit.kept("double")
    assert next(iter((tmp_path / "biggraph").iterdir())).name.startswith("kernels-")
    monkeypatch.setattr(jit, "_DIGEST", "other sources")
    assert not jit.kept("double")


def test_all_kernels_can_be_compiled_ahead():
    compile_all()
    for kernel in (batch.differentiate, distinct.number, distinct.adagrad, distinct.row_adagrad,
                   draws.draw_ids, draws.draw_kept, draws.weigh):  # fmt: skip
        assert kernel.signatures
        assert jit.kept(kernel.__name__)
