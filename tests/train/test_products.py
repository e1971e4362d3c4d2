"""Products of bfloat16 numbers, beside torch's rounding and NumPy's products."""

import os
import subprocess
import sys
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from biggraph.train.kernels import bfloat16, products
from biggraph.train.kernels.vectors import LANES
from tests.train.test_kernels import CASES, Case, World


def rounded(x):
    return torch.from_numpy(x).bfloat16().double().numpy()


def floats(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


@numba.njit
def multiply_all(query, keys, slopes, results, packed):
    """Fill scores and gradients as a chunk does, with `slopes` for the derivatives of the loss."""
    scores, query_gradient, key_gradient = results
    p, k = scores.shape
    products.take_keys(True, keys, packed)
    rows = products.block(True, p, k)
    flat = np.full(rows * k, np.nan, np.float32)
    for begin in range(0, p, rows):
        end = min(begin + rows, p)
        here = products.scores_of(flat, end - begin, k)
        products.score(True, query[begin:end], keys, here, packed)
        scores[begin:end] = here
        here[:] = slopes[begin:end]
        products.derive_query(True, begin, here, keys, query_gradient[begin:end], packed)
    products.derive_keys(True, slopes, query, key_gradient, packed)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 70), st.integers(1, 180), st.integers(1, 90), st.integers(0, 99))
@example(61, 700, 33, 0)  # blocks of 40 and 21
@example(25, 1640, 5, 0)  # of 10, 10 and 5
def test_products_of_any_shape_are_those_of_rounded_factors(p, k, d, seed):
    rng = np.random.default_rng(seed)
    query, keys, slopes = floats(rng, p, d), floats(rng, k, d), floats(rng, p, k)
    packed = products.memory(p, k, d)
    for pairs in packed:
        pairs[:] = 0xFFFFFFFF  # not a number: nothing of what was there may be used
    results = tuple(np.full(shape, np.nan, np.float32) for shape in ((p, k), (p, d), (k, d)))
    multiply_all(query, keys, slopes, results, packed)
    q, key, s = rounded(query), rounded(keys), rounded(slopes)
    for found, wanted in zip(results, (q @ key.T, s @ key, s.T @ q), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_processors_without_the_instruction_compute_the_same(monkeypatch):
    monkeypatch.setattr(bfloat16, "_has_instruction", lambda _: False)
    multiply = numba.njit(bfloat16.multiply.py_func)
    rng = np.random.default_rng(0)
    for m, n, pairs in ((1, 1, 1), (4, 16, 3), (13, 100, 9), (50, 130, 8), (6, 33, 40)):
        left, right = floats(rng, m, 2 * pairs), floats(rng, 2 * pairs, n)
        bits = [torch.from_numpy(x).bfloat16().view(torch.int16).numpy() for x in (left, right)]
        a, wide = bits[0].view(np.uint32), -(-n // LANES) * LANES
        b = bfloat16.empty(pairs * wide).reshape(pairs, wide)
        b[:, :n] = np.stack((bits[1][::2], bits[1][1::2]), 2).view(np.uint32)[:, :, 0]
        out = np.empty((m, n), np.float32)
        multiply((a.reshape(-1), pairs, 1), b, pairs, out)
        np.testing.assert_allclose(out, rounded(left) @ rounded(right), atol=1e-4)


def test_processors_without_the_instruction_round_the_same(monkeypatch):
    monkeypatch.setattr(bfloat16, "_has_instruction", lambda _: False)
    across = numba.njit(bfloat16.across.py_func)
    bits = np.random.default_rng(0).integers(2**32, size=4096, dtype=np.uint32)
    bits[:2048] = bits[:2048] & 0xFFFF0000 | np.tile([0x7FFF, 0x8000, 0x8001, 0], 512)
    x = np.concatenate((bits, [0x7FFFFFFF, 0xFF800001, 0x7F800000, 0x7F7FFFFF] * 8)).astype("<u4")
    x = x.view(np.float32).reshape(-1, 32)
    out = bfloat16.empty(x.size // 2).reshape(-1, 16)
    across(x, out)
    found = torch.from_numpy(out.view(np.int16)).view(torch.bfloat16)
    torch.testing.assert_close(
        found, torch.from_numpy(x).bfloat16(), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.multiprocess
def test_any_processor_can_compile_rounding():
    program = """
import numpy as np
from biggraph.train.kernels import bfloat16
out = bfloat16.empty(16).reshape(1, 16)
bfloat16.across(np.ones((1, 20), np.float32), out)
assert out.view(np.uint16).tolist() == [[0x3F80] * 20 + [0] * 12]
"""
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    subprocess.run([sys.executable, "-c", program], env=os.environ | environment, check=True)


def test_what_is_not_a_number_or_infinite_stays_so():
    query, keys, scores = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32), np.empty((3, 2))
    query[1, 2], keys[1, 0] = np.nan, -np.inf
    scores = scores.astype(np.float32)
    slopes, gradients = np.ones((3, 2), np.float32), (np.empty((3, 4)), np.empty((2, 4)))
    gradients = tuple(x.astype(np.float32) for x in gradients)
    multiply_all(query, keys, slopes, (scores, *gradients), products.memory(3, 2, 4))
    assert scores[:, 0].tolist()[::2] == [4, 4]
    assert np.isnan(scores[1]).all()
    assert scores[0, 1] == scores[2, 1] == -np.inf


def assert_goes_along(case):
    """The step of rounded factors goes where that of exact ones goes."""
    rows, losses, before = {}, {}, {}
    for rough in (False, True):
        world = World(case)
        before = {use: table.rows.clone() for use, table in world.tables.items()}
        losses[rough] = world.compiled(rough=rough)(np.arange(case.size))
        rows[rough] = {use: table.rows for use, table in world.tables.items()}
    assert losses[True] == pytest.approx(losses[False], rel=0.02, abs=1e-3)
    for use, start in before.items():
        moved = (rows[False][use] - start).norm()
        assert (rows[True][use] - rows[False][use]).norm() <= 0.03 * moved
    return rows


@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize("comparator", ["dot", "cos"])
@pytest.mark.parametrize("uniform", [7, 40])
def test_a_step_goes_where_that_of_exact_products_goes(comparator, reciprocal, uniform):
    case = Case(comparator=comparator, reciprocal=reciprocal, in_batch=5, uniform=uniform,
                dimension=34, size=23, outside=3)  # fmt: skip
    rows = assert_goes_along(case)
    assert all((rows[True][use] != rows[False][use]).any() for use in rows[True])


def test_a_step_of_several_blocks_goes_where_that_of_exact_products_goes():
    assert products.block.py_func(True, 45, 945) == 30
    assert_goes_along(Case(in_batch=45, uniform=900, size=70, dimension=34))


@settings(max_examples=100, deadline=None)
@given(CASES, st.sampled_from(["dot", "cos"]), st.sampled_from(["softmax", "logistic"]))
def test_any_step_goes_where_that_of_exact_products_goes(case, comparator, loss):
    """Losses without a hinge, which rounding can put on either side."""
    assert_goes_along(replace(case, comparator=comparator, loss=loss))


def test_distances_stay_exact():
    case = Case(comparator="l2", operator="translation", dimension=8)
    found = []
    for rough in (False, True):
        world = World(replace(case, two_types=True))
        found.append((world.compiled(rough=rough)(np.arange(case.size)), world.tables))
    assert found[0][0] == found[1][0]
    for use, table in found[0][1].items():
        assert torch.equal(table.rows, found[1][1][use].rows)
