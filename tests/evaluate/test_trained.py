"""Evaluation and questions on a real graph directory and a real run, against loops."""

import numpy as np
import pytest

from biggraph import api
from biggraph.embeddings import Embeddings
from biggraph.errors import InputError
from biggraph.types import Side
from tests.evaluate.doubles import MemoryCheckpoint, MemoryGraph, naive_ranks, naive_score
from tests.evaluate.trained import ENTITIES, RELATIONS, make_run, make_splits


@pytest.fixture(scope="module", params=[True, False], ids=["reciprocal", "one operator"])
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("trained"), reciprocal=request.param)


@pytest.fixture
def double(run):
    """Return the run's embeddings in memory, in one partition a type."""
    emb = Embeddings.open(run)
    splits = make_splits()
    graph = MemoryGraph(ENTITIES, RELATIONS, splits)
    rows = {
        kind: dict(zip(names, emb.vectors(names, kind), strict=True))
        for kind, names in ENTITIES.items()
    }
    model = emb.checkpoint.config.model.model_dump()
    return MemoryCheckpoint(graph, rows, emb.checkpoint.relations(), **model), graph, splits


@pytest.mark.parametrize("filtered", [True, False])
def test_evaluation_of_a_run_equals_loops(run, double, filtered):
    checkpoint, graph, splits = double
    known = {edge for edges in splits.values() for edge in edges} if filtered else set()

    def score(triple, side):
        return naive_score(checkpoint, graph, triple, side)

    expected = naive_ranks(graph, splits["test"], known, score)
    ranks = np.array([1 + higher + tied / 2 for higher, tied in expected.values()])
    metrics = api.evaluate(run, filtered=filtered, quiet=True).metrics
    assert metrics.mr == pytest.approx(ranks.mean())
    assert metrics.mrr == pytest.approx((1 / ranks).mean())
    assert metrics.count == len(ranks)


def test_questions_to_a_run_equal_loops(run, double):
    checkpoint, graph, splits = double
    emb = Embeddings.open(run)
    known = {edge for edges in splits.values() for edge in edges}
    expected = sorted(
        (
            (naive_score(checkpoint, graph, ("p0", "likes", film), Side.RHS), film)
            for film in ENTITIES["film"]
        ),
        reverse=True,
    )
    found = emb.predict(relation="likes", head="p0", k=99, exclude_known=False)
    assert [p.name for p in found] == [film for _, film in expected]
    assert [p.known for p in found] == [("p0", "likes", p.name) in known for p in found]
    assert emb.score("p0", "likes", expected[0][1]) == pytest.approx(expected[0][0], rel=1e-4)
    with pytest.raises(InputError, match=r"p3.*person.*film|p3.*film.*person"):
        emb["p3"]


def test_a_graph_that_moved_or_changed_is_named(run, tmp_path):
    folder = run.parent / "graph"
    moved = folder.rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(InputError, match=r"no longer at .*pass --graph"):
            Embeddings.open(run)
        assert "p0" in Embeddings.open(run, graph=moved)
        api.import_graph(moved_edges(), tmp_path / "other", quiet=True)
        with pytest.raises(InputError, match="not the graph that"):
            Embeddings.open(run, graph=tmp_path / "other")
    finally:
        moved.rename(folder)


def moved_edges():
    from tests.evaluate.trained import table

    return table([("a", "r", "b"), ("b", "r", "c")])
