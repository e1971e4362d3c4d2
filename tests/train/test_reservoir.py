"""The reservoir: rows of other partitions, as they were when last trained."""

import pytest
import torch

from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.folder import Folder
from biggraph.storage.state import InitFacts
from biggraph.storage.store import DiskStore
from biggraph.storage.table import advance_chain
from biggraph.train.reservoir import Reservoir
from biggraph.types import Bucket, PartitionKey, Side

SCHEMA = GraphSchema(
    (EntityType("many", (40, 60, 100)), EntityType("one", (7,))),
    (RelationType("r", "many", "one"),),
)
FACTS = InitFacts(SCHEMA, "fingerprint", 3, True, 0.1, 5, {Bucket(0, 0): 1})


@pytest.fixture
def store(tmp_path):
    return DiskStore(Folder(tmp_path), FACTS, {}, 1)


def key(index):
    return PartitionKey("many", index)


def train(store, index, value):
    table = store.load(key(index))
    table.rows[:] = torch.arange(len(table.rows)).unsqueeze(1) + value
    table.chain = advance_chain(table.chain, 1, Bucket(index, 0))
    return table


def test_outside_holds_the_other_partitions_by_size(store):
    reservoir = Reservoir(store, SCHEMA, 20)
    uses = [(Side.LHS, key(1)), (Side.RHS, PartitionKey("one", 0))]
    found = reservoir.outside(uses)
    assert found.keys() == {(Side.LHS, "many")}
    rows = found[Side.LHS, "many"]
    assert rows.shape == (4 + 10, 3)
    own = {tuple(row) for index in (0, 2) for row in store.load(key(index)).rows.tolist()}
    assert all(tuple(row) in own for row in rows.tolist())


def test_large_reservoirs_hold_every_row_once(store):
    rows = Reservoir(store, SCHEMA, 10_000).outside([(Side.RHS, key(0))])[Side.RHS, "many"]
    assert torch.equal(rows, torch.cat((store.load(key(1)).rows, store.load(key(2)).rows)))


def test_training_refreshes_the_sample_and_later_changes_do_not(store):
    reservoir = Reservoir(store, SCHEMA, 20)
    table = train(store, 2, 1000)
    reservoir.refresh([table])
    sample = reservoir.outside([(Side.LHS, key(1))])[Side.LHS, "many"][4:]
    assert float(sample.min()) >= 1000
    table.rows.zero_()
    again = reservoir.outside([(Side.LHS, key(1))])[Side.LHS, "many"][4:]
    assert torch.equal(sample, again)


def test_a_resumed_process_samples_the_same_rows(store, tmp_path):
    table = train(store, 2, 1000)
    before = Reservoir(store, SCHEMA, 20)
    before.refresh([table])
    saved = store.save(table)
    after = Reservoir(DiskStore(Folder(tmp_path), FACTS, {key(2): saved}, 9), SCHEMA, 20)
    uses = [(Side.LHS, key(1))]
    assert torch.equal(
        before.outside(uses)[Side.LHS, "many"], after.outside(uses)[Side.LHS, "many"]
    )


def test_none_wanted_none_kept(store):
    reservoir = Reservoir(store, SCHEMA, 0)
    reservoir.refresh([train(store, 0, 1)])
    assert reservoir.outside([(Side.LHS, key(1))]) == {}


def test_a_view_is_the_newest_version(store):
    chain, rows = store.view(key(0))
    assert torch.equal(rows, store.load(key(0)).rows)
    table = train(store, 0, 7)
    store.save(table)
    seen, rows = store.view(key(0))
    assert seen == table.chain != chain
    assert torch.equal(rows, table.rows)
