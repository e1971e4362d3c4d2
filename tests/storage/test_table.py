"""Tables: initial values follow from the seed, chains from the order of training."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.errors import DivergenceError
from biggraph.storage.table import (
    EmbeddingTable,
    advance_chain,
    check_finite,
    halve,
    new_chain,
    new_table,
)
from biggraph.types import Bucket, PartitionKey

KEY = PartitionKey("user", 1)


def test_a_new_table_follows_from_its_seed():
    table, same, other = (new_table(KEY, (500, 8), False, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(table.rows, same.rows)
    assert not torch.equal(table.rows, other.rows)
    assert table.rows.dtype == table.state.dtype == torch.float32
    assert abs(table.rows.mean()) < 0.05
    assert abs(table.rows.std() - 0.5) < 0.05
    assert table.state.shape == (500, 8)
    assert not table.state.any()
    assert table.nbytes == 2 * 500 * 8 * 4


def test_row_wise_state_is_one_float_a_row():
    table = new_table(KEY, (3, 8), True, 0.5, 1)
    assert table.state.shape == (3,)
    assert table.nbytes == 3 * 9 * 4


def test_a_table_may_be_empty():
    check_finite(new_table(KEY, (0, 8), False, 0.5, 1))


def test_chains_tell_sequences_apart():
    steps = [(1, Bucket(0, 0)), (1, Bucket(0, 1)), (2, Bucket(0, 0)), (1, Bucket(1, 0))]
    seen = {new_chain(KEY), new_chain(PartitionKey("user", 0))}
    for length in range(1, 5):
        for sequence in itertools.permutations(steps, length):
            chain = new_chain(KEY)
            for epoch, bucket in sequence:
                chain = advance_chain(chain, epoch, bucket)
            seen.add(chain)
    assert len(seen) == 2 + 4 + 12 + 24 + 24


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["rows", "state"])
def test_values_that_are_not_finite_are_named(value, part):
    table = new_table(KEY, (3, 2), False, 0.5, 1)
    check_finite(table)
    getattr(table, part)[2, 1] = value
    with pytest.raises(DivergenceError, match=r"partition user/1: .* not finite"):
        check_finite(table)


# float16


def table_of(values):
    rows = torch.tensor(values).reshape(-1, 1)
    return EmbeddingTable(KEY, rows, torch.zeros(len(rows)), new_chain(KEY))


@settings(deadline=None)
@given(st.lists(st.floats(-65504, 65504, width=32, allow_subnormal=False), min_size=1, max_size=20))
def test_halves_are_neighbours_of_the_values(values):
    halves = halve(table_of(values)).numpy().ravel()
    assert halves.dtype == np.float16
    for value, half in zip(np.float32(values), halves, strict=True):
        near = np.float16(value)
        with np.errstate(over="ignore"):
            other = np.nextafter(near, np.float16(np.inf if near < value else -np.inf))
        assert half == near if near == value else half in (near, other)


@pytest.mark.parametrize("value", [1.0003, -0.7001, 3e-5, 2.3e-7, -1e-8, 1000.3, 2047.9])
def test_halves_have_the_mean_of_the_values(value):
    """10,000 draws: within 5 standard errors of the value."""
    halves = halve(table_of([value] * 10_000)).double()
    near = sorted(set(halves.ravel().tolist()))
    assert len(near) == 2
    share = (value - near[0]) / (near[1] - near[0])
    error = (share * (1 - share) / 10_000) ** 0.5
    assert abs(float((halves == near[1]).double().mean()) - share) < 5 * error + 1e-4


def test_halves_follow_from_the_chain():
    table, other = table_of([0.1] * 50), table_of([0.1] * 50)
    assert torch.equal(halve(table), halve(other))
    other.chain = advance_chain(other.chain, 1, Bucket(0, 0))
    assert not torch.equal(halve(table), halve(other))


@pytest.mark.parametrize("value", [65505.0, -7e4])
def test_what_no_half_can_hold_is_refused(value):
    with pytest.raises(DivergenceError, match=r"beyond 65504.*checkpoint.rows"):
        halve(table_of([1.0, value]))
