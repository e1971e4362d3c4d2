import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from biggraph.evaluate.metrics import summarize
from biggraph.types import Side

RANKS = st.lists(
    st.tuples(st.integers(2, 60).map(lambda halves: halves / 2), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(RANKS)
def test_metrics_are_means_over_ranks(pairs):
    ranks = np.array([rank for rank, _ in pairs])
    replaces_lhs = np.array([side for _, side in pairs])
    metrics = summarize(ranks, replaces_lhs)
    parts = {
        None: [rank for rank, _ in pairs],
        Side.LHS: [rank for rank, side in pairs if side],
        Side.RHS: [rank for rank, side in pairs if not side],
    }
    for side, expected in parts.items():
        found = metrics if side is None else metrics.sides[side]
        assert found.count == len(expected)
        if expected:
            assert found.mrr == pytest.approx(sum(1 / r for r in expected) / len(expected))
            assert found.mr == pytest.approx(sum(expected) / len(expected))
            for k, share in ((1, found.hits_at_1), (3, found.hits_at_3), (10, found.hits_at_10)):
                assert share == pytest.approx(sum(r <= k for r in expected) / len(expected))
        else:
            assert math.isnan(found.mrr)


def test_to_dict_has_the_agreed_keys():
    values = summarize(np.array([1.0, 2.5]), np.array([True, False])).to_dict()
    assert set(values) == {"mrr", "mr", "hits@1", "hits@3", "hits@10", "count", "sides"}
    assert values["sides"]["lhs"]["mrr"] == 1.0
    assert values["sides"]["rhs"]["mrr"] == 0.4
    assert json.loads(json.dumps(values)) == values
