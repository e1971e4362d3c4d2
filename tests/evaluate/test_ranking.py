"""Block-wise ranking against loops over float64 scores."""

import numpy as np
import pytest
import torch

from biggraph.evaluate import ranking
from biggraph.evaluate.evaluate import Settings, evaluate
from biggraph.evaluate.filters import known_answers, only_truths
from biggraph.evaluate.numbering import Numbering
from biggraph.evaluate.opening import model_of
from biggraph.evaluate.queries import select_queries
from biggraph.evaluate.ranking import Ranker
from biggraph.types import PartitionKey, Side
from tests.evaluate.doubles import (
    MemoryCheckpoint,
    MemoryGraph,
    naive_ranks,
    naive_score,
    random_checkpoint,
)

PEOPLE = [f"p{i}" for i in range(23)]
FILMS = [f"f{i}" for i in range(9)]
RELATIONS = [
    ("knows", "person", "person"),
    ("likes", "person", "film"),
    ("liked_by", "film", "person"),
]


def make_graph(partitions=None, seed=0):
    generator = np.random.default_rng(seed)
    entities = {"person": PEOPLE, "film": FILMS}
    triples = {
        (
            str(generator.choice(entities[lhs])),
            name,
            str(generator.choice(entities[rhs])),
        )
        for name, lhs, rhs in (RELATIONS[i] for i in generator.integers(3, size=150))
    }
    ordered = sorted(triples)
    generator.shuffle(ordered)
    ordered = [tuple(map(str, triple)) for triple in ordered]
    splits = {"train": ordered[:-30], "valid": ordered[-30:-15], "test": ordered[-15:]}
    return MemoryGraph(entities, RELATIONS, splits, partitions), splits


def rank_all(checkpoint, graph, *, filtered=True, memory=2**28, candidates=None):
    """Return {(triple, side): (higher, tied)} from the code under test."""
    numbering = Numbering(graph.schema)
    queries = select_queries(graph, numbering, "test", None, 0)
    known = (
        known_answers(graph, queries, numbering) if filtered else only_truths(queries, numbering)
    )
    ranker = Ranker(checkpoint, model_of(checkpoint, graph), numbering, candidates, memory)
    ranks = ranker.rank(queries, known)
    found = {}
    for i in range(len(queries)):
        relation = graph.schema.relations[queries.rel[i]]
        side = Side.LHS if queries.replaces_lhs[i] else Side.RHS
        anchor = name_of(graph, numbering, relation.entity_type(side.other), queries.anchor[i])
        truth = name_of(graph, numbering, relation.entity_type(side), queries.truth[i])
        ends = (truth, anchor) if side is Side.LHS else (anchor, truth)
        triple = (ends[0], relation.name, ends[1])
        found[triple, side] = (ranks.higher[i], ranks.tied[i])
    return found


def name_of(graph, numbering, kind, number):
    partition, offset = numbering.places(kind, np.array([number]))
    return graph.parts[kind][partition[0]][offset[0]]


def oracle(checkpoint, graph, splits, filtered=True, candidates=None):
    known = {triple for edges in splits.values() for triple in edges} if filtered else set()
    return naive_ranks(
        graph,
        splits["test"],
        known,
        lambda triple, side: naive_score(checkpoint, graph, triple, side),
        candidates,
    )


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("reciprocal", [True, False])
@pytest.mark.parametrize(
    ("operator", "comparator"),
    [
        ("complex_diagonal", "dot"),
        ("translation", "l2"),
        ("diagonal", "cos"),
        ("identity", "squared_l2"),
    ],
)
def test_ranks_equal_those_of_loops(filtered, reciprocal, operator, comparator):
    graph, splits = make_graph({"person": 3, "film": 2})
    checkpoint = random_checkpoint(
        graph, operator=operator, comparator=comparator, reciprocal=reciprocal
    )
    assert rank_all(checkpoint, graph, filtered=filtered) == oracle(
        checkpoint, graph, splits, filtered
    )


def test_ranks_do_not_depend_on_the_memory_budget(monkeypatch):
    graph, splits = make_graph({"person": 3, "film": 2})
    checkpoint = random_checkpoint(graph)
    monkeypatch.setattr(ranking, "_TILE", 4)
    monkeypatch.setattr(ranking, "_PIECE", 3)
    monkeypatch.setattr(ranking, "PADDING", 2)
    seen = []
    for memory in (1, 1000, 3000, 2**20):
        checkpoint.calls.clear()
        assert rank_all(checkpoint, graph, memory=memory) == oracle(checkpoint, graph, splits)
        seen.append(max(rows for _, rows in checkpoint.calls))
    assert seen[0] == 1 < seen[-1]


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_questions_that_share_a_query_and_repeated_edges_rank_as_alone(
    monkeypatch, threads, filtered
):
    graph, splits = make_graph({"person": 3, "film": 2})
    hub = [("p0", "likes", film) for film in FILMS] + [(p, "knows", "p1") for p in PEOPLE]
    splits["test"] = [*splits["test"], *hub, *hub[:5]]
    graph = MemoryGraph({"person": PEOPLE, "film": FILMS}, RELATIONS, splits, {"person": 3})
    checkpoint = random_checkpoint(graph)
    monkeypatch.setattr(ranking, "_TILE", 3)
    monkeypatch.setattr(ranking, "_PIECE", 4)
    monkeypatch.setattr(ranking, "PADDING", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = rank_all(checkpoint, graph, filtered=filtered)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found == oracle(checkpoint, graph, splits, filtered)


def test_the_scores_of_a_query_are_computed_once(monkeypatch):
    splits = {"train": [], "test": [("p0", "likes", film) for film in FILMS]}
    graph = MemoryGraph({"person": PEOPLE, "film": FILMS}, RELATIONS, splits)
    checkpoint = random_checkpoint(graph)
    rows = []
    monkeypatch.setattr(
        ranking, "add_counts", lambda scores, _, asked, *__: rows.append((len(scores), asked))
    )
    rank_all(checkpoint, graph)
    assert sorted((queries, len(asked.query_Q)) for queries, asked in rows) == [(1, 9), (9, 9)]


def test_equal_embeddings_tie_wherever_they_are():
    graph, splits = make_graph({"person": 3, "film": 2})
    for comparator in ("dot", "cos", "l2", "squared_l2"):
        checkpoint = random_checkpoint(graph, comparator=comparator, dimension=200)
        for kind, rows in checkpoint.by_name.items():
            first = rows[PEOPLE[0] if kind == "person" else FILMS[0]]
            rows.update(dict.fromkeys(rows, first))
        expected = oracle(checkpoint, graph, splits)
        assert rank_all(checkpoint, graph) == expected
        assert any(tied > 5 for _, tied in expected.values())
        assert all(higher == 0 for higher, _ in expected.values())


@pytest.mark.parametrize("comparator", ["dot", "l2", "squared_l2"])
def test_differences_within_rounding_tie_and_larger_ones_do_not(comparator):
    graph, _ = make_graph()
    checkpoint = random_checkpoint(graph, operator="identity", comparator=comparator)
    films = checkpoint.by_name["film"]
    base = films[FILMS[0]] * 3
    for i, name in enumerate(FILMS):
        films[name] = base * np.float32(1 + (2e-7 if i % 2 else 0) + (1e-2 if i >= 6 else 0))
    found = rank_all(checkpoint, graph, filtered=False)
    ties = {
        triple: tied
        for (triple, side), (_, tied) in found.items()
        if triple[1] == "likes" and side is Side.RHS
    }
    assert ties
    for triple, tied in ties.items():
        assert tied == (5 if FILMS.index(triple[2]) < 6 else 2)


def test_nan_ranks_worst():
    graph, splits = make_graph({"person": 2})
    checkpoint = random_checkpoint(graph)
    broken = {triple[2] for triple in splits["test"][:4]}
    for kind in ("person", "film"):
        for name in broken & set(checkpoint.by_name[kind]):
            checkpoint.by_name[kind][name][:] = np.nan
    expected = oracle(checkpoint, graph, splits)
    assert rank_all(checkpoint, graph) == expected
    assert max(higher for higher, _ in expected.values()) > 15


def test_a_checkpoint_of_nothing_but_nan_has_the_worst_metrics():
    graph, splits = make_graph()
    checkpoint = random_checkpoint(graph)
    for rows in checkpoint.by_name.values():
        for row in rows.values():
            row[:] = np.nan
    result = evaluate(checkpoint, graph, Settings(filtered=False))
    people = sum(
        sum(
            graph.schema.relations[graph.schema.relation_id(r)].entity_type(s) == "person"
            for s in Side
        )
        for _, r, _ in splits["test"]
    )
    films = 2 * len(splits["test"]) - people
    assert result.metrics.mr == pytest.approx((people * 23 + films * 9) / (people + films))


def test_infinite_scores_order_as_numbers():
    graph, splits = make_graph()
    checkpoint = random_checkpoint(graph, operator="identity")
    for name in PEOPLE[:3]:
        checkpoint.by_name["person"][name][0] = np.inf
    found = rank_all(checkpoint, graph)
    assert len(found) == 2 * len(splits["test"])
    assert all(h >= 0 and t >= 0 and h + t < len(PEOPLE) for h, t in found.values())


def test_sampled_candidates_compete_alone():
    graph, splits = make_graph({"person": 3})
    checkpoint = random_checkpoint(graph)
    numbering = Numbering(graph.schema)
    candidates = {"person": np.array([0, 1, 7, 9, 20, 22]), "film": np.array([3])}
    names = {
        kind: [name_of(graph, numbering, kind, n) for n in numbers]
        for kind, numbers in candidates.items()
    }
    assert rank_all(checkpoint, graph, candidates=candidates) == oracle(
        checkpoint, graph, splits, candidates=names
    )


def test_metrics_do_not_depend_on_the_number_of_partitions():
    results = []
    for partitions in ({}, {"person": 5, "film": 2}, {"person": 2, "film": 9}):
        graph, _ = make_graph(partitions)
        checkpoint = random_checkpoint(graph, dimension=50)
        result = evaluate(checkpoint, graph, per_relation=True)
        values = result.to_dict()
        del values["seconds"], values["edges_per_s"]
        results.append(values)
    for other in results[1:]:
        assert_close(other, results[0])


def assert_close(found, expected):
    """Sums are taken in another order, so averages may differ in the last bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-13)
    else:
        assert found == expected


def test_memory_checkpoint_reads_the_same_rows_in_any_partitioning():
    graph, _ = make_graph({"person": 5})
    checkpoint = random_checkpoint(graph)
    numbering = Numbering(graph.schema)
    numbers = np.array([22, 0, 0, 7])
    rows = numbering.rows(checkpoint, "person", numbers)
    for number, row in zip(numbers, rows, strict=True):
        name = name_of(graph, numbering, "person", number)
        np.testing.assert_array_equal(row, checkpoint.by_name["person"][name])
    assert isinstance(checkpoint, MemoryCheckpoint)
    assert all(isinstance(key, PartitionKey) for key, _ in checkpoint.calls)
