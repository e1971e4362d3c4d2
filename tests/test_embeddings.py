"""Vectors, scores, neighbors and predictions against loops; names that are wrong or shared."""

import numpy as np
import pytest

from biggraph.embeddings import Embeddings, Neighbor
from biggraph.errors import InputError
from biggraph.evaluate import top
from biggraph.evaluate.opening import model_of
from biggraph.types import Side
from tests.evaluate.doubles import MemoryGraph, naive_score, random_checkpoint
from tests.evaluate.test_ranking import FILMS, PEOPLE, make_graph


def open_double(graph, **model):
    checkpoint = random_checkpoint(graph, **model)
    return Embeddings(checkpoint, graph, model_of(checkpoint, graph))


@pytest.fixture(params=[2**20, 1], ids=["one block", "single rows"])
def opened(request, monkeypatch):
    monkeypatch.setattr(top, "_MEMORY", request.param)
    graph, splits = make_graph({"person": 3, "film": 2})
    return open_double(graph, reciprocal=False, operator="translation", comparator="l2"), splits


def test_vectors_by_name(opened):
    emb, _ = opened
    rows = emb.checkpoint.by_name
    np.testing.assert_array_equal(emb["p7"], rows["person"]["p7"])
    np.testing.assert_array_equal(
        emb.vectors(["f1", "p3", "f1"]),
        [rows["film"]["f1"], rows["person"]["p3"], rows["film"]["f1"]],
    )
    assert emb.vectors([]).shape == (0, 8)
    assert emb["p7"].dtype == np.float32
    assert "p7" in emb
    assert "p99" not in emb
    assert 7 not in emb


def test_scores_compare_tails(opened):
    emb, splits = opened
    edges = splits["train"][:20]
    expected = [naive_score(emb.checkpoint, emb.graph, edge, Side.RHS) for edge in edges]
    np.testing.assert_allclose(emb.scores(edges), expected, rtol=1e-5)
    assert emb.score(*edges[3]) == pytest.approx(expected[3], rel=1e-5)
    assert emb.scores([]).shape == (0,)


@pytest.mark.parametrize(
    ("metric", "similarity"),
    [
        ("cos", lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        ("dot", lambda a, b: a @ b),
        ("l2", lambda a, b: -np.linalg.norm(a - b)),
    ],
)
def test_neighbors_equal_those_of_loops(opened, metric, similarity):
    emb, _ = opened
    rows = emb.checkpoint.by_name["person"]
    expected = sorted(
        ((float(similarity(rows["p4"], rows[name])), name) for name in PEOPLE if name != "p4"),
        reverse=True,
    )
    found = emb.neighbors("p4", 5, metric=metric)
    assert [neighbor.name for neighbor in found] == [name for _, name in expected[:5]]
    assert [n.score for n in found] == pytest.approx([s for s, _ in expected[:5]], rel=1e-4)
    assert all(isinstance(n, Neighbor) and n.entity_type == "person" for n in found)
    assert len(emb.neighbors("p4", 1000)) == len(PEOPLE) - 1


@pytest.mark.parametrize("exclude_known", [True, False])
@pytest.mark.parametrize("side", list(Side))
def test_predictions_equal_those_of_loops(opened, side, exclude_known):
    emb, splits = opened
    known = {edge for edges in splits.values() for edge in edges}
    head, relation, tail = next(edge for edge in splits["train"] if edge[1] == "likes")
    given = {"tail": tail} if side is Side.LHS else {"head": head}
    pool = PEOPLE if side is Side.LHS else FILMS
    expected = []
    for name in pool:
        edge = (name, relation, tail) if side is Side.LHS else (head, relation, name)
        if not (exclude_known and edge in known):
            value = naive_score(emb.checkpoint, emb.graph, edge, side)
            expected.append((value, name, edge in known))
    expected.sort(reverse=True)
    found = emb.predict(relation=relation, k=6, exclude_known=exclude_known, **given)
    assert [(p.name, p.known) for p in found] == [(n, k) for _, n, k in expected[:6]]
    assert [p.score for p in found] == pytest.approx([v for v, _, _ in expected[:6]], rel=1e-5)
    assert exclude_known or any(known for _, _, known in expected)


def test_many_questions_at_once_are_answered_as_one_by_one(opened):
    emb, _ = opened
    names = ["p4", "f1", "p0", "p4"]
    one_by_one = [emb.neighbors(name, 5) for name in names]
    assert [[n.name for n in some] for some in emb.neighbors_of(names, 5)] == [
        [n.name for n in some] for some in one_by_one
    ]
    for exclude_known in (True, False):
        for relation, heads in (("likes", PEOPLE), ("knows", PEOPLE[:4])):
            settings = {"relation": relation, "k": 6, "exclude_known": exclude_known}
            together = emb.predictions(heads=heads, **settings)
            for head, found in zip(heads, together, strict=True):
                alone = emb.predict(head=head, **settings)
                assert [(p.name, p.known) for p in found] == [(p.name, p.known) for p in alone]
    assert emb.neighbors_of([]) == emb.predictions(relation="likes", tails=[]) == []


def test_rows_that_are_not_numbers_come_nowhere(opened):
    emb, _ = opened
    for name in ("p1", "p2", "p3"):  # one in each partition
        emb.checkpoint.by_name["person"][name][:] = np.nan
    (best,) = emb.neighbors("p0", 1)
    assert best.name not in ("p1", "p2", "p3")
    assert len(emb.neighbors("p0", 100)) == len(PEOPLE) - 4


def test_shared_names_need_a_type():
    entities = {"city": ["Paris", "Rome", "city:Rome"], "person": ["Paris", "Ada"]}
    relations = [("lives_in", "person", "city")]
    graph = MemoryGraph(entities, relations, {"train": [("Ada", "lives_in", "Rome")]})
    emb = open_double(graph)
    rows = emb.checkpoint.by_name
    with pytest.raises(InputError, match='types "city" and "person"; write "city:Paris"'):
        emb["Paris"]
    np.testing.assert_array_equal(emb["person:Paris"], rows["person"]["Paris"])
    np.testing.assert_array_equal(emb.vector("Paris", "city"), rows["city"]["Paris"])
    np.testing.assert_array_equal(emb["city:Rome"], rows["city"]["city:Rome"])  # as written
    assert emb.neighbors("Paris", entity_type="person")[0].name == "Ada"
    assert emb.predict(relation="lives_in", head="Paris")[0].known is False
    assert emb.predict(relation="lives_in", head="person:Ada", exclude_known=True)
    with pytest.raises(InputError, match=r'no entity "Adda" of type "person".*did you mean "Ada"'):
        emb["person:Adda"]
    with pytest.raises(InputError, match='no entity "Rome" of type "person"'):
        emb.vector("Rome", "person")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e["p77"], 'no entity "p77" .*did you mean'),
        (lambda e: e.vector("p1", "persn"), 'unknown entity type "persn"; did you mean "person"'),
        (lambda e: e.score("p1", "lieks", "f1"), 'unknown relation "lieks"; did you mean "likes"'),
        (lambda e: e.score("p1", "likes", "p1"), 'no entity "p1" of type "film"'),
        (lambda e: e.neighbors("p1", 0), "k = 0"),
        (lambda e: e.neighbors("p1", 2.5), "k = 2.5"),
        (
            lambda e: e.neighbors("p1", metric="cosine"),
            'unknown metric "cosine"; did you mean "cos"',
        ),
        (lambda e: e.predict(relation="likes", head="p1", k=-1), "k = -1"),
        (lambda e: e.predict(relation="likes"), "either head or tail"),
        (lambda e: e.predict(relation="likes", head="p1", tail="f1"), "either head or tail"),
        (lambda e: e.predict(relation="liks", head="p1"), "unknown relation"),
        (lambda e: e.predict(relation="likes", head="f1"), 'no entity "f1" of type "person"'),
    ],
)
def test_mistakes_are_named(call, message):
    graph, _ = make_graph()
    with pytest.raises(InputError, match=message):
        call(open_double(graph))
