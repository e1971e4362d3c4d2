"""Losses, regularizers and negatives against naive versions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.model.losses import MASKED, make_loss
from biggraph.model.negatives import (
    Population,
    all_candidates,
    mask_known_in_chunk,
    sample_candidates,
)
from biggraph.model.operators import OPERATORS
from biggraph.model.regularizers import n3
from tests import reference


@pytest.mark.parametrize("name", ["softmax", "logistic", "ranking"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@given(seed=st.integers(0, 2**16), masked=st.integers(0, 4))
@settings(max_examples=20, deadline=None)
def test_loss_matches_its_formula_over_unmasked_negatives(name, temperature, seed, masked):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn(1, 2, generator=generator)
    negative = torch.randn(1, 2, 4, generator=generator)
    negative[0, 0, :masked] = MASKED
    found = make_loss(name, margin=0.5, temperature=temperature)(positive, negative)
    for p in range(2):
        kept = [float(n) for n in negative[0, p].tolist() if n > MASKED / 2]
        expected = reference.loss(
            name, float(positive[0, p]), kept, margin=0.5,
            temperature=0.0 if name == "softmax" else temperature,
        )  # fmt: skip
        assert float(found[0, p]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["softmax", "logistic", "ranking"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gradient_at_masked_negatives_is_zero_and_finite(name, temperature):
    """Even where every negative of a positive is masked."""
    positive = torch.zeros(1, 2, requires_grad=True)
    scores = torch.randn(1, 2, 3, requires_grad=True)
    negative = scores * 1.0
    mask = torch.tensor([[[True, True, True], [False, True, False]]])
    negative.detach().masked_fill_(mask, MASKED)
    total = make_loss(name, margin=1.0, temperature=temperature)(positive, negative).sum()
    own, others = torch.autograd.grad(total, (positive, scores), allow_unused=True)
    assert torch.isfinite(total)
    assert torch.isfinite(own).all()
    assert torch.equal(others[mask], torch.zeros(4))


@pytest.mark.parametrize("name", OPERATORS)
def test_n3_matches_its_formula(name):
    x_BD = torch.randn(3, 6)
    found = n3(OPERATORS[name].magnitudes(x_BD))
    expected = [reference.n3(name, row.tolist()) for row in x_BD]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


@given(
    seed=st.integers(0, 2**16), count=st.integers(1, 12), padding=st.integers(0, 3),
    in_batch=st.booleans(), uniform=st.integers(0, 6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_exactly_the_true_entity_and_padding_are_masked(seed, count, padding, in_batch, uniform):
    if not in_batch and not uniform:
        return
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(count, (2, 4), generator=generator)
    valid = torch.ones(2, 4, dtype=torch.bool)
    if padding:
        valid[1, -padding:] = False
    population = Population(count, count, 0, torch.full((count,), 1 / count) if in_batch else None)
    drawn = sample_candidates(
        true, valid, population=population, uniform=uniform, generator=generator
    )
    assert drawn.ids_CN.shape == (2, 4 * in_batch + uniform)
    assert int(drawn.ids_CN.max()) < count
    for c in range(2):
        for p in range(4):
            for n, candidate in enumerate(drawn.ids_CN[c].tolist()):
                is_padding = in_batch and n < 4 and not valid[c, n]
                masked = candidate == int(true[c, p]) or is_padding
                assert bool(drawn.mask_CPN[c, p, n]) == masked


def test_uniform_candidates_cover_the_partition():
    true, valid = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    drawn = sample_candidates(
        true, valid, population=Population(10, 10), uniform=4000, generator=generator
    )
    shares = torch.bincount(drawn.ids_CN.flatten(), minlength=10) / 4000
    assert float((shares - 0.1).abs().max()) < 0.03


def test_all_candidates_mask_only_the_true_entity():
    drawn = all_candidates(
        torch.tensor([[2, 0]]), population=Population(4, 4), outside=9, generator=torch.Generator()
    )
    assert drawn.ids_CN is None
    assert drawn.mask_CPN.nonzero().tolist() == [[0, 0, 2], [0, 1, 0]]


@given(seed=st.integers(0, 2**16), whole=st.booleans(), padding=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_known_edges_of_the_chunk_are_masked(seed, whole, padding):
    generator = torch.Generator().manual_seed(seed)
    anchor, rel, true = (torch.randint(3, (2, 5), generator=generator) for _ in range(3))
    valid = torch.ones(2, 5, dtype=torch.bool)
    if padding:
        valid[1, -padding:] = False
        for column in (anchor, rel, true):
            column[1, -padding:] = 0
    population = Population(3, 3, 0, torch.full((3,), 1 / 3))
    drawn = (
        all_candidates(true, population=population, outside=0, generator=generator)
        if whole
        else sample_candidates(true, valid, population=population, uniform=3, generator=generator)
    )
    found = mask_known_in_chunk(drawn, anchor, rel, true, valid)
    for c in range(2):
        ids = range(3) if whole else drawn.ids_CN[c].tolist()
        size = int(valid[c].sum())
        columns = (column[c, :size].tolist() for column in (anchor, rel, true))
        edges = set(zip(*columns, strict=True))
        for p in range(size):
            for n, candidate in enumerate(ids):
                known = (int(anchor[c, p]), int(rel[c, p]), candidate) in edges
                is_padding = not whole and size <= n < 5
                assert bool(found.mask_CPN[c, p, n]) == (known or is_padding)


@pytest.mark.parametrize("chunk", [2, 3, 10])
def test_weighted_samples_estimate_the_sum_over_all_entities_without_bias(chunk):
    """The mean over many chunks of sum(weight * x) is the sum of x over the true one's rivals."""
    generator = torch.Generator().manual_seed(4)
    degrees = torch.tensor([50.0, 20.0, 5.0, 1.0, 1.0, 1.0])
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    population = Population(6, 18, 0, degrees / degrees.sum())
    chunks = 60_000
    true = torch.multinomial(degrees, chunks * chunk, replacement=True, generator=generator)
    true, valid = true.view(chunks, chunk), torch.ones(chunks, chunk, dtype=torch.bool)
    drawn = sample_candidates(true, valid, population=population, uniform=2, generator=generator)
    terms_CN = drawn.log_weight_CK.exp() * values[drawn.ids_CN]
    estimate_C = (terms_CN * ~drawn.mask_CPN[:, 0]).sum(1)
    for entity in range(6):
        mine = true[:, 0] == entity
        rivals = 3 * float(values.sum() - values[entity])
        assert float(estimate_C[mine].mean()) == pytest.approx(rivals, rel=0.06)


@pytest.mark.parametrize("whole", [True, False])
def test_candidates_from_outside_stand_for_the_other_partitions(whole):
    """Inside and outside each estimate their own sum; together the sum over the graph."""
    generator = torch.Generator().manual_seed(5)
    near, far = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.arange(8.0) + 1
    population = Population(4, 12, 8)
    true, valid = torch.zeros(20_000, 1, dtype=torch.int64), torch.ones(20_000, 1).bool()
    if whole:
        drawn = all_candidates(true, population=population, outside=5, generator=generator)
        ids_CN, outside_CM = torch.arange(4).unsqueeze(0), drawn.outside_CM
        assert outside_CM.shape == (1, 5)
    else:
        drawn = sample_candidates(
            true, valid, population=population, uniform=6, generator=generator
        )
        ids_CN, outside_CM = drawn.ids_CN, drawn.outside_CM
        assert (ids_CN.shape, outside_CM.shape) == ((20_000, 3), (20_000, 3))
    assert drawn.row_scale == 3
    values_CK = torch.cat((near[ids_CN], far[outside_CM]), dim=1)
    weighted_CK = drawn.log_weight_CK.exp() * values_CK
    inside = ids_CN.shape[1]
    assert float(weighted_CK[:, :inside].sum(1).mean()) == pytest.approx(10, rel=0.02)
    if not whole:
        assert float(weighted_CK[:, inside:].sum(1).mean()) == pytest.approx(36, rel=0.02)
