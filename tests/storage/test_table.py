"""Tables: initial values follow from the seed, chains from the order of training."""

import itertools

import pytest
import torch

from biggraph.errors import DivergenceError
from biggraph.storage.table import advance_chain, check_finite, new_chain, new_table
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
