"""The device step against the reference step: on the processor, and on a GPU where there is one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from biggraph.errors import ConfigError
from biggraph.model.losses import make_loss
from biggraph.model.model import build_model
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, NegativesSection, RelationConfig
from biggraph.storage.table import EmbeddingTable
from biggraph.train import device_step
from biggraph.train.batch import Batch, BatchMaker
from biggraph.train.bucket import BucketTrainer
from biggraph.train.device_step import DeviceStep
from biggraph.train.recording import Recording, padded_distinct
from biggraph.train.step import Lesson, ReferenceStep, StepSettings
from biggraph.types import Bucket, Edges, PartitionKey, Side

D, A, B = 6, 23, 17
CPU = torch.device("cpu")


def on_gpu():
    if not torch.cuda.device_count():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def where(request):
    return CPU if request.param == "cpu" else on_gpu()


class World:
    """A model, tables and edges: the same for the same arguments."""

    def __init__(
        self, operator="complex_diagonal", comparator="dot", loss="softmax", *, reciprocal=True,
        row_wise=False, weighted=False, outside=0, dropout=0.0, two_types=False, size=20,
        batch_size=20, relation_types=2, shared=(), temperature=0.0, **negatives,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        rng = np.random.default_rng(3)
        rhs = "b" if two_types else "a"
        counts = {"a": A, "b": B}
        types = tuple(EntityType(name, (counts[name],)) for name in sorted({"a", rhs}))
        relations = tuple(RelationType(f"r{i}", "a", rhs) for i in range(relation_types))
        section = ModelSection(
            operator=operator, comparator=comparator, dimension=D, reciprocal=reciprocal
        )
        schema = GraphSchema(types, relations)
        self.model = build_model(section, [RelationConfig(name="r1", weight=1.5)], schema)
        for value in self.model.parameters.values.values():
            value.normal_(generator=generator)
        for value in self.model.parameters.sums.values():
            value.uniform_(generator=generator)
        tables = {}
        for kind in types:
            rows = torch.randn(kind.count, D, generator=generator)
            shape = (kind.count,) if row_wise else (kind.count, D)
            state = torch.rand(shape, generator=generator)
            tables[kind.name] = EmbeddingTable(PartitionKey(kind.name, 0), rows, state, "")
            if kind.name in shared:
                self.model.parameters.add(f"table.{kind.name}", rows, state)
        self.tables = {(Side.LHS, "a"): tables["a"], (Side.RHS, rhs): tables[rhs]}
        self.edges = Edges(
            rng.integers(0, 9, size, dtype=np.int32),  # so that entities come more than once
            rng.integers(0, relation_types, size, dtype=np.int32),
            rng.integers(0, counts[rhs], size, dtype=np.int32),
            rng.random(size, dtype=np.float32) if weighted else None,
        )
        negatives = {"in_batch": 6, "uniform": 5} | negatives
        self.maker = BatchMaker(
            self.model, NegativesSection(**negatives), batch_size=batch_size, dropout=dropout
        )
        self.far = {
            use: torch.randn(outside, D, generator=generator) for use in self.tables if outside
        }
        sizes = {u: (len(t.rows), 3 * len(t.rows), outside) for u, t in self.tables.items()}
        self.settings = StepSettings(
            make_loss(loss, margin=0.3, temperature=temperature), loss == "softmax", 0.02, 0.1,
            0.05, batch_size, frozenset(shared),
        )  # fmt: skip
        self.lesson = Lesson(
            self.settings, self.tables, self.far, self.edges,
            self.maker.populations(self.edges, sizes), 7,
        )  # fmt: skip

    def reference(self):
        step = ReferenceStep(self.model, self.settings, self.maker)
        step.begin(self.lesson)
        return step

    def device(self, where, **options):
        step = DeviceStep(self.model, self.settings, self.maker, where=where, **options)
        step.begin(self.lesson)
        return step

    def batch(self, positions):
        """A batch with the draws of the reference step."""
        generator = torch.Generator().manual_seed(7)
        populations = self.lesson.populations
        (batch,) = self.maker.batches(self.edges, [positions], populations, generator)
        return batch

    def numbers(self):
        """Every number that training may change, by name."""
        found = {}
        for (side, name), table in self.tables.items():
            found[f"{side} {name} rows"], found[f"{side} {name} state"] = table.rows, table.state
        for name, value in self.model.parameters.values.items():
            found[name], found[f"{name} sums"] = value, self.model.parameters.sums[name]
        return copy.deepcopy(found)


def moved(batch: Batch, where: torch.device) -> Batch:
    """The same batch on a device."""

    def send(value):
        return value.to(where) if isinstance(value, torch.Tensor) else value

    candidates = {
        side: replace(drawn, **{name: send(value) for name, value in vars(drawn).items()})
        for side, drawn in batch.candidates.items()
    }
    ids = {side: send(value) for side, value in batch.ids.items()}
    keep = {side: send(value) for side, value in batch.keep.items()}
    alone = {name: send(getattr(batch, name)) for name in ("place_CP", "weight_CP", "valid_CP")}
    return replace(batch, ids=ids, keep=keep, candidates=candidates, **alone)


def assert_close(found, wanted, rtol=1e-4, atol=1e-5):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=name)


CASES = {
    "complex": {},
    "known edges masked": {"filter_chunk": True},
    "weights and dropout": {"weighted": True, "dropout": 0.4, "two_types": True},
    "row-wise": {"row_wise": True, "outside": 9},
    "ragged last chunk": {"size": 17, "in_batch": 5},
    "batch of one": {"size": 1},
    "many duplicates": {"uniform": 22, "in_batch": 0},
    "everything": {"all": True, "outside": 9, "weighted": True},
    "one side": {"sides": "lhs", "outside": 4},
    "not reciprocal": {"reciprocal": False, "operator": "translation", "comparator": "squared_l2",
                       "loss": "ranking"},
    "cos": {"operator": "diagonal", "comparator": "cos", "loss": "logistic", "temperature": 1.0},
    "l2": {"operator": "translation", "comparator": "l2", "loss": "ranking", "two_types": True},
    "identity": {"operator": "identity", "comparator": "cos", "two_types": True},
    "shared type": {"two_types": True, "shared": ("b",)},
}  # fmt: skip


def repeated(work, generator):
    """Stands for a recording: the same work, always on one tensor of positions."""
    kept = []

    def again(positions):
        kept[:] = kept or [torch.empty_like(positions)]
        return work(kept[0].copy_(positions))

    return again


@pytest.mark.parametrize("record", [None, repeated], ids=["", "recorded"])
@pytest.mark.parametrize("case", CASES)
def test_given_the_same_draws_it_is_the_reference_step(case, where, record):
    ours, wanted = World(**CASES[case]), World(**CASES[case])
    before = ours.numbers()
    group = ours.model.group_of[ours.edges.rel.astype(np.int64)].numpy()
    positions = np.flatnonzero(group == group[0])  # without reciprocal relations, one relation
    loss = wanted.reference()(positions)
    step = ours.device(where, record=record)
    found = float(step.train(moved(ours.batch(positions), where))) / len(positions)
    assert_close(ours.numbers(), before, 0, 0)  # in main memory nothing changes
    step.end()
    assert found == pytest.approx(loss, rel=1e-4)
    assert_close(ours.numbers(), wanted.numbers())
    changed = [n for n, v in wanted.numbers().items() if not torch.equal(v, before[n])]
    assert any("rows" in name for name in changed)
    assert any("state" in name for name in changed)


@pytest.mark.parametrize("record", [None, repeated], ids=["", "recorded"])
def test_on_the_processor_it_draws_what_the_reference_step_draws(record):
    ours, wanted = World(outside=9, dropout=0.2), World(outside=9, dropout=0.2)
    step, reference = ours.device(CPU, record=record), wanted.reference()
    for start in range(0, 20, 7):
        positions = np.arange(start, min(start + 7, 20))
        assert step(positions) == pytest.approx(reference(positions), rel=1e-5)
    step.end()
    assert_close(ours.numbers(), wanted.numbers(), rtol=1e-5, atol=1e-6)


def test_its_own_draws_have_the_reference_distribution(where):
    """Each entity, near and far, is drawn as often as others; in-batch ones are the chunk's own."""
    world = World(outside=9, uniform=8, in_batch=5)
    step = world.device(where)
    near, far = torch.zeros(A), torch.zeros(9)
    for _ in range(300):
        batch = step.draw(world.model.groups[0], torch.arange(20, device=where))
        for side, drawn in batch.candidates.items():
            wanted = world.batch(np.arange(20)).candidates[side]
            assert drawn.ids_CN.shape == wanted.ids_CN.shape
            assert drawn.ids_CN.device.type == where.type
            assert torch.equal(drawn.ids_CN[:, :5], batch.ids[side])
            own_CN = drawn.ids_CN.unsqueeze(1) == batch.ids[side].unsqueeze(2)
            assert bool((drawn.mask_CPN | ~own_CN).all())
            near += torch.bincount(drawn.ids_CN[:, 5:].flatten().cpu(), minlength=A)
            far += torch.bincount(drawn.outside_CM.flatten().cpu(), minlength=9)
    for counts in (near, far):
        expected = counts.sum() / len(counts)
        # Chi-square over degrees of freedom: mean 1, deviation sqrt(2 / freedom) <= 0.5.
        spread = float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))
        assert 0.1 < spread < 3.5


def test_equal_seeds_draw_alike_and_others_do_not(where):
    world = World()
    drawn = []
    for seed in (7, 7, 8):
        step = world.device(where)
        step.begin(replace(world.lesson, seed=seed))
        batch = step.draw(world.model.groups[0], torch.arange(20, device=where))
        drawn.append(batch.candidates[Side.RHS].ids_CN)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_rougher_products_change_a_step_little(precision, where):
    before = torch.get_float32_matmul_precision()
    ours, wanted = World(), World()
    found = ours.device(where, precision=precision)
    loss = float(found.train(moved(ours.batch(np.arange(20)), where))) / 20
    found.end()
    assert loss == pytest.approx(wanted.reference()(np.arange(20)), rel=0.05)
    assert_close(ours.numbers(), wanted.numbers(), rtol=0.1, atol=0.05)
    assert torch.get_float32_matmul_precision() == before


def test_what_other_workers_change_meanwhile_is_kept(where):
    ours, wanted = World(), World()
    before = ours.numbers()
    wanted.reference()(np.arange(20))
    step = ours.device(where)
    step.train(moved(ours.batch(np.arange(20)), where))
    for value in ours.model.parameters.values.values():
        value.add_(2.0)  # as an exchange with the parameter server does
    step.end()
    for name, value in ours.model.parameters.values.items():
        torch.testing.assert_close(value, wanted.model.parameters.values[name] + 2.0)
        assert not torch.equal(value, before[name] + 2.0)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [case for case in CASES if case != "known edges masked"])
def test_a_recording_does_what_was_recorded(case):
    """Twenty times the same batch, so that recorded and repeated steps have to agree."""
    where, options = on_gpu(), CASES[case] | {"uniform": 0, "in_batch": 8, "dropout": 0.0}
    options |= {"outside": 0} if "outside" in options else {}
    ours, wanted = World(**options), World(**options)
    group = ours.model.group_of[ours.edges.rel.astype(np.int64)].numpy()
    positions = np.flatnonzero(group == group[0])
    step, plain = ours.device(where, record=Recording), wanted.device(where)
    for _ in range(20):  # nothing is drawn: in-batch candidates alone
        assert step(positions) == pytest.approx(plain(positions), rel=1e-3)
    step.end()
    plain.end()
    assert_close(ours.numbers(), wanted.numbers(), rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_a_recording_draws_anew_each_time():
    where, world = on_gpu(), World(uniform=50, in_batch=0)
    step = world.device(where, record=Recording)
    assert len({step(np.arange(20)) for _ in range(20)}) == 20


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_distinct_ids_are_filled_up_to_a_fixed_number(ids):
    distinct, places = padded_distinct(torch.tensor(ids))
    assert len(distinct) == len(ids)
    assert distinct[places].tolist() == ids
    count = len(set(ids))
    assert distinct[:count].tolist() == sorted(set(ids))
    assert int(places.max()) == count - 1


def test_relation_parameters_are_exchanged_within_a_bucket(where, monkeypatch):
    monkeypatch.setattr(device_step, "_EXCHANGE_EVERY", 2)
    world = World()
    before, step = world.numbers(), world.device(where)
    changes = []
    for _ in range(4):
        step(np.arange(20))
        changes.append(any(not torch.equal(world.model.parameters.values[name], before[name])
                           for name in world.model.parameters.values))  # fmt: skip
        before = world.numbers()
    assert changes == [False, True, False, True]


def trainer_of(world, where):
    def make_step(model, settings, maker):
        return DeviceStep(model, settings, maker, where=where)

    return BucketTrainer(
        world.model, world.settings, world.maker, threads=1, seed=1, totals={"a": A},
        make_step=make_step,
    )  # fmt: skip


def test_a_bucket_trains_on_a_device_and_learns(where):
    world = World(size=200, batch_size=20)
    trainer, losses, seen = trainer_of(world, where), [], []
    for epoch in range(1, 16):
        tables = world.tables
        stats = trainer.train(
            epoch, Bucket(0, 0), tables, {}, world.edges, lambda *a: seen.append(a)
        )
        assert stats.edges == 200
        losses.append(stats.loss)
    assert sum(edges for edges, _ in seen) == 15 * 200
    assert losses[-1] < 0.8 * losses[0]


def test_a_device_without_room_is_told_with_a_remedy(monkeypatch):
    world = World()
    step = world.device(CPU)

    def full(*arguments):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(device_step, "train_batch", full)
    with pytest.raises(ConfigError, match=r"cpu: no room for tables of 0 MiB.*more partitions"):
        step(np.arange(20))
