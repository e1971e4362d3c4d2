"""The best candidates of many questions against sorting all scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.evaluate import top
from biggraph.evaluate.numbering import Numbering
from biggraph.evaluate.top import Search
from biggraph.model.comparators import COMPARATORS
from biggraph.schema import EntityType, GraphSchema

VALUES = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0, np.nan])


class Rows:
    """A table in partitions."""

    def __init__(self, table, schema):
        self.table, self.numbering = table, Numbering(schema)

    def shape(self, key):
        return len(self.table), self.table.shape[1]

    def rows(self, key, offsets):
        first = int(self.numbering.numbers("e", np.array([key.index]), np.array([0]))[0])
        if isinstance(offsets, slice):
            offsets = np.arange(offsets.start, offsets.stop)
        return self.table[first + offsets]


def search_of(table, partitions, comparator):
    counts = tuple(len(part) for part in np.array_split(table, partitions))
    schema = GraphSchema((EntityType("e", counts),), ())
    comparator = COMPARATORS[comparator]
    return Search(Rows(table, schema), Numbering(schema), "e", comparator, comparator.prepare)


@st.composite
def questions(draw):
    """Return a table with ties and gaps, queries, what each leaves out, and k."""
    count = draw(st.integers(1, 17))
    rows = st.lists(st.lists(VALUES, min_size=2, max_size=2), min_size=count, max_size=count)
    table = np.array(draw(rows), np.float32)
    some = st.lists(st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=2, max_size=2), min_size=1)
    query = np.array(draw(some), np.float32)
    out = st.sets(st.integers(0, count - 1)).map(sorted)
    without = [np.array(draw(out), np.int64) for _ in query]
    return table, query, without, draw(st.integers(1, 20)), draw(st.integers(1, 3))


@given(questions())
@settings(max_examples=200, deadline=None)
def test_the_best_are_those_of_sorting(question):
    table, query, without, k, partitions = question
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top, "_QUERIES", 3)
        patch.setattr(top, "_PIECE", 4)
        patch.setattr(top, "_MEMORY", 50)
        search = search_of(table, min(partitions, len(table)), "dot")
        found = search.best(torch.from_numpy(query), without, k)
    for row, out, (numbers, scores) in zip(query, without, found, strict=True):
        every = table @ row
        names = [n for n in range(len(table)) if n not in out and not np.isnan(every[n])]
        names.sort(key=lambda n: (-every[n], n))
        assert numbers.tolist() == names[:k]
        assert scores.tolist() == every[names[:k]].tolist()


@pytest.mark.parametrize("comparator", sorted(COMPARATORS))
def test_scores_are_those_of_single_pairs(comparator):
    table = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    search = search_of(table, 2, comparator)
    query = search.prepare(torch.from_numpy(table[:600]))
    nothing = [np.empty(0, np.int64)] * len(query)
    found = search.best(query, nothing, 7)
    for i in (0, 511, 512, 599):
        every = search.comparator.matched(query[i], search.prepare(torch.from_numpy(table)))
        expected = np.lexsort((np.arange(len(table)), -every.numpy()))[:7]
        assert found[i][0].tolist() == expected.tolist()
        np.testing.assert_allclose(found[i][1], every.numpy()[expected], rtol=1e-5, atol=1e-6)
