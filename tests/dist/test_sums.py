"""What the parameter server sums up, and what a worker makes of it."""

import numpy as np
import pytest
import torch

from biggraph.dist.parameter_server import ParameterServer, Sums
from biggraph.dist.parameters import SharedParameters
from biggraph.errors import FormatError
from biggraph.model.relations import RelationParameters


def vector(*values):
    return torch.tensor(values, dtype=torch.float32)


@pytest.fixture
def server():
    server = ParameterServer({"w": np.zeros(2, np.float32)}, lambda ref: {})
    for fence in (1, 2):
        server.begin(fence)
    return server


def view(server, fence):
    return server.exchange({"fence": fence}, torch.empty(0))[1].tolist()


def test_everybody_sees_what_the_others_did(server):
    server.exchange({"fence": 1}, vector(1, 2))
    assert view(server, 2) == [1, 2]
    assert view(server, 1) == [0, 0]


def test_a_cumulative_delta_replaces_the_last_one(server):
    for delta in (vector(1, 2), vector(1, 2), vector(3, 4)):
        server.exchange({"fence": 1}, delta)
    assert view(server, 2) == [3, 4]


def test_a_lost_lease_takes_its_delta_along(server):
    server.exchange({"fence": 1}, vector(1, 2))
    server.drop(1)
    assert view(server, 2) == [0, 0]
    answer, _ = server.exchange({"fence": 1}, vector(5, 5))  # it does not know yet
    assert not answer["live"]
    assert view(server, 2) == [0, 0]


def test_a_commit_counts_what_it_brings_and_not_what_was_pushed(server):
    server.exchange({"fence": 1}, vector(9, 9))
    server.commit(1, 3, torch.ones(2))
    assert view(server, 2) == [1, 1]
    assert view(server, 3) == [1, 1]
    assert server.exchange({"fence": 3}, vector(0, 0))[0]["live"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_nobody(server, bad):
    server.exchange({"fence": 1}, vector(1, 1))
    with pytest.raises(FormatError, match="not finite"):
        server.exchange({"fence": 1}, vector(bad, 1))
    assert view(server, 2) == [1, 1]


def worker(sums, fence, size):
    """Return a worker's parameters, and their copy of the server's."""
    sums.follow(sums.committed, sums.fences | {fence})
    parameters = RelationParameters({"w": torch.zeros(size)})

    def exchange(header, delta, *, patient):
        return sums.exchange(header, delta)

    shared = SharedParameters(parameters, [exchange], 1.0)
    shared.begin(fence)
    return parameters, shared


def test_a_worker_that_diverged_keeps_it_to_itself():
    sums = Sums(torch.zeros(4))
    mine, shared = worker(sums, 1, 2)
    others, theirs = worker(sums, 2, 2)
    mine.values["w"][0] = float("nan")
    shared.exchange()
    theirs.exchange()
    assert torch.isfinite(others.values["w"]).all()


def test_sums_of_squares_that_a_worker_never_touched_do_not_sink_below_zero():
    """Others' deltas come and go; what is left of them must be exactly nothing."""
    size, generator = 2_000, torch.Generator().manual_seed(0)
    sums = Sums(torch.zeros(2 * size))
    idle, shared = worker(sums, 1, size)
    for fence in (2, 3, 4):
        sums.follow(sums.committed, sums.fences | {fence})
    scale = torch.logspace(-8, 3, 2 * size)
    for _ in range(20):
        for fence in (2, 3, 4):
            sums.exchange({"fence": fence}, scale * torch.rand(2 * size, generator=generator))
        shared.exchange()
    sums.follow(sums.committed, {1})
    shared.exchange()
    assert idle.sums["w"].min() == 0
    assert idle.sums["w"].max() == 0


def test_what_a_worker_does_between_two_exchanges_is_not_lost():
    sums = Sums(torch.zeros(2))
    mine, shared = worker(sums, 1, 1)
    others, theirs = worker(sums, 2, 1)
    for step in range(1, 4):
        mine.values["w"] += 1
        others.values["w"] += 10
        shared.exchange()
        theirs.exchange()
        shared.exchange()
        assert mine.values["w"].item() == others.values["w"].item() == 11 * step
