"""A batch on a device whose numbers nobody can read: all is there, and no shape depends on values.

Tensors without content stand for a GPU's. Operations on tensors of two devices fail, and so does
whatever has to know a value: what remains can be recorded as a graph, without a GPU to try it on.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from biggraph.model import negatives
from biggraph.model.relations import RelationParameters
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import Chosen
from biggraph.train.recording import padded_distinct
from biggraph.train.step import train_batch, unique
from tests.train.test_device_step import CASES, World

AWAY = torch.device("meta")


class Generator:
    """Draws nothing; candidates have shapes alone."""

    device = AWAY


@pytest.fixture(autouse=True)
def nothing_is_drawn(monkeypatch):
    monkeypatch.setattr(
        negatives, "_draw", lambda count, shape, generator: torch.randint(count, shape, device=AWAY)
    )


def train_away(world, distinct):
    with FakeTensorMode():
        return train(world, distinct)


def train(world, distinct):
    sent = {}

    def send(tensor):
        """The same shape and type on the other device; always the same tensor."""
        if id(tensor) not in sent:
            sent[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=AWAY)
        return sent[id(tensor)]

    parameters = world.model.parameters
    model = world.model.with_parameters(
        RelationParameters(
            {name: send(value) for name, value in parameters.values.items()},
            {name: send(value) for name, value in parameters.sums.items()},
        )
    )
    tables = {
        use: EmbeddingTable(table.key, send(table.rows), send(table.state), "")
        for use, table in world.tables.items()
    }
    outside = {use: send(rows) for use, rows in world.far.items()}
    populations = {
        use: replace(found, share=None if found.share is None else send(found.share))
        for use, found in world.lesson.populations.items()
    }
    size = len(world.edges)
    ids = [torch.empty(size, dtype=torch.int64, device=AWAY) for _ in range(3)]
    chosen = Chosen(*ids, torch.empty(size, device=AWAY))
    batch = world.maker.make(model.groups[0], chosen, populations, Generator())
    return train_batch(model, world.settings, tables, outside, batch, distinct)


@pytest.mark.parametrize("case", [case for case in CASES if case != "known edges masked"])
def test_a_batch_stays_on_its_device_and_can_be_recorded(case):
    loss = train_away(World(**CASES[case] | {"dropout": 0.0}), padded_distinct)
    assert loss.device == AWAY


def test_distinct_rows_of_unknown_number_are_noticed():
    with pytest.raises(DynamicOutputShapeException):
        train_away(World(), unique)


def test_masks_that_depend_on_values_are_noticed():
    with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
        train_away(World(filter_chunk=True), padded_distinct)
