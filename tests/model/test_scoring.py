"""Operators and comparators against their formulae."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.errors import ConfigError, FormatError
from biggraph.model.comparators import COMPARATORS
from biggraph.model.model import build_model
from biggraph.model.operators import OPERATORS
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, RelationConfig
from biggraph.types import Side
from tests import reference


def random_parameters(name, dimension, generator):
    return {
        key: value[0]
        for key, value in OPERATORS[name].initial(1, dimension, 1.0, generator).items()
    }


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_matches_its_formula(name):
    generator = torch.Generator().manual_seed(1)
    x_ND = torch.randn(5, 6, generator=generator)
    rows = [random_parameters(name, 6, generator) for _ in range(5)]
    stacked = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    found = OPERATORS[name].apply(x_ND, stacked)
    for i in range(5):
        parameters = {key: value.numpy() for key, value in rows[i].items()}
        expected = reference.apply_operator(name, x_ND[i].numpy(), parameters)
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_factors_start_small_and_shifts_at_zero():
    generator = torch.Generator().manual_seed(0)
    for name in ("diagonal", "complex_diagonal"):
        for value in OPERATORS[name].initial(50, 40, 1e-3, generator).values():
            assert float(value.std()) == pytest.approx(1e-3, rel=0.1)
    (shift,) = OPERATORS["translation"].initial(5, 4, 1e-3, generator).values()
    assert torch.equal(shift, torch.zeros(5, 4))


def test_equal_seeds_give_equal_parameters():
    a, b, c = (build_model(ModelSection(), [], SCHEMA, seed=s).arrays() for s in (1, 1, 2))
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name])
    assert not np.array_equal(a["0.lhs.real"], c["0.lhs.real"])


@pytest.mark.parametrize("name", COMPARATORS)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_comparator_matches_its_formula(name, seed):
    generator = torch.Generator().manual_seed(seed)
    a_CPD = torch.randn(2, 3, 4, generator=generator)
    b_CND = torch.randn(2, 5, 4, generator=generator)
    comparator = COMPARATORS[name]
    a, b = comparator.prepare(a_CPD), comparator.prepare(b_CND)
    pairs = comparator.pairwise(a, b)
    own = comparator.matched(a, b[:, :3])
    for c in range(2):
        for p in range(3):
            expected = [reference.compare(name, a_CPD[c, p], b_CND[c, n]) for n in range(5)]
            np.testing.assert_allclose(pairs[c, p], expected, rtol=1e-4, atol=2e-4)
            np.testing.assert_allclose(own[c, p], expected[p], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COMPARATORS)
def test_comparator_is_finite_at_zero(name):
    """The cosine of a zero vector is 0, not NaN, and so is every gradient."""
    zero = torch.zeros(2, 4, requires_grad=True)
    comparator = COMPARATORS[name]
    prepared = comparator.prepare(zero)
    total = (
        comparator.matched(prepared, prepared).sum() + comparator.pairwise(prepared, prepared).sum()
    )
    (gradient,) = torch.autograd.grad(total, zero)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()


SCHEMA = GraphSchema(
    (EntityType("person", (4,)), EntityType("city", (3, 2))),
    (
        RelationType("knows", "person", "person"),
        RelationType("lives_in", "person", "city"),
        RelationType("likes", "person", "person"),
        RelationType("twin_of", "city", "city"),
    ),
)


def test_relations_with_same_types_and_operator_share_a_group():
    section = ModelSection(dimension=4, operator="diagonal")
    configs = [RelationConfig(name="twin_of", operator="translation", weight=2.0)]
    model = build_model(section, configs, SCHEMA)
    assert [g.relations for g in model.groups] == [(0, 2), (1,), (3,)]
    assert [g.operator for g in model.groups] == ["diagonal", "diagonal", "translation"]
    assert model.relation_weights.tolist() == [1, 1, 1, 2]
    assert model.place_of.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("comparator", COMPARATORS)
def test_query_and_candidates_score_as_defined(reciprocal, side, comparator):
    """Replacing a side scores (op_lhs(lhs), rhs), (lhs, op_rhs(rhs)) or the classic one."""
    section = ModelSection(
        dimension=4, operator="complex_diagonal", comparator=comparator, reciprocal=reciprocal
    )
    model = build_model(section, [], SCHEMA)
    generator = torch.Generator().manual_seed(3)
    for value in model.parameters.values.values():
        value.normal_(generator=generator)
    rel = 2
    group = model.groups[int(model.group_of[rel])]
    place = int(model.place_of[rel])
    lhs, rhs = torch.randn(2, 1, 4, generator=generator)
    anchor, true = (lhs, rhs) if side is Side.RHS else (rhs, lhs)
    query = model.query(group, side, anchor, torch.tensor([rel]))
    found = model.pairwise(query, model.candidates(group, side, true))
    end = side.other if reciprocal else Side.RHS
    names = model.parameter_names(group, end)
    own = {key: model.parameters.values[name][place].numpy() for key, name in names.items()}
    ends = {Side.LHS: lhs[0].numpy(), Side.RHS: rhs[0].numpy()}
    ends[end] = reference.apply_operator("complex_diagonal", ends[end], own)
    expected = reference.compare(comparator, ends[Side.LHS], ends[Side.RHS])
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=2e-4)


def test_unknown_relation_in_the_run_file_is_refused():
    with pytest.raises(ConfigError, match='no relation "lives_inn"; did you mean "lives_in"'):
        build_model(ModelSection(), [RelationConfig(name="lives_inn")], SCHEMA)


def test_parameters_round_trip_and_refuse_other_shapes():
    model = build_model(ModelSection(dimension=4), [], SCHEMA)
    for value in [*model.parameters.values.values(), *model.parameters.sums.values()]:
        value.normal_()
    other = build_model(ModelSection(dimension=4), [], SCHEMA)
    other.load({name: array.copy() for name, array in model.arrays().items()})
    for name, array in model.arrays().items():
        np.testing.assert_array_equal(other.arrays()[name], array)
    smaller = build_model(ModelSection(dimension=2), [], SCHEMA)
    with pytest.raises(FormatError, match="expected shape"):
        smaller.load(model.arrays())
