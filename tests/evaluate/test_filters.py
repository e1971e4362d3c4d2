"""Known answers and popularity counts against dictionaries filled by loops."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.evaluate import filters
from biggraph.evaluate.evaluate import Settings, _draw_candidates, evaluate_popularity
from biggraph.evaluate.filters import KeptEdges, known_answers, only_truths
from biggraph.evaluate.numbering import Numbering
from biggraph.evaluate.queries import select_queries
from biggraph.types import Side
from tests.evaluate.doubles import MemoryGraph, naive_ranks

ENTITIES = {"a": [f"a{i}" for i in range(7)], "b": [f"b{i}" for i in range(4)]}
RELATIONS = [("ab", "a", "b"), ("aa", "a", "a"), ("ba", "b", "a")]


@st.composite
def graphs(draw):
    def edge(relation):
        name, lhs, rhs = relation
        return st.tuples(
            st.sampled_from(ENTITIES[lhs]), st.just(name), st.sampled_from(ENTITIES[rhs])
        )

    edges = st.sampled_from(RELATIONS).flatmap(edge)
    splits = {
        "train": draw(st.lists(edges, max_size=25)),
        "valid": draw(st.lists(edges, max_size=5)),
        "test": draw(st.lists(edges, min_size=1, max_size=8)),
    }
    partitions = {"a": draw(st.integers(1, 3)), "b": draw(st.integers(1, 3))}
    return MemoryGraph(ENTITIES, RELATIONS, splits, partitions), splits


def number_of(graph, numbering, kind, name):
    partition, offset = graph.place[kind][name]
    return sum(graph.schema.entity_type(kind).counts[:partition]) + offset


@given(graphs(), st.integers(0, 6), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_known_answers_equal_those_of_loops(pair, start, length):
    graph, splits = pair
    numbering = Numbering(graph.schema)
    queries = select_queries(graph, numbering, "test", None, 0)
    known = known_answers(graph, queries, numbering)
    everything = {edge for edges in splits.values() for edge in edges}
    questions = np.arange(len(queries))[::-1]
    position, number = known.answers(questions, start, start + length)
    counts = known.counts(questions)
    for place, i in enumerate(questions):
        relation = graph.schema.relations[queries.rel[i]]
        side = Side.LHS if queries.replaces_lhs[i] else Side.RHS
        expected = set()
        for lhs, name, rhs in everything:
            ends = {Side.LHS: lhs, Side.RHS: rhs}
            if name != relation.name:
                continue
            kept = relation.entity_type(side.other)
            if number_of(graph, numbering, kept, ends[side.other]) == queries.anchor[i]:
                expected.add(number_of(graph, numbering, relation.entity_type(side), ends[side]))
        assert counts[place] == len(expected)
        assert queries.truth[i] in expected
        inside = sorted(x for x in expected if start <= x < start + length)
        assert number[position == place].tolist() == inside


@given(graphs())
@settings(max_examples=20, deadline=None)
def test_raw_mode_knows_only_the_truth(pair):
    graph, _ = pair
    numbering = Numbering(graph.schema)
    queries = select_queries(graph, numbering, "test", None, 0)
    position, number = only_truths(queries, numbering).answers(np.arange(len(queries)), 0, 8)
    assert position.tolist() == list(range(len(queries)))
    assert number.tolist() == queries.truth.tolist()


def test_buckets_without_anchors_are_not_read():
    edges = [("a0", "aa", "a1"), ("a1", "aa", "a0")]
    splits = {"train": [*edges, ("a2", "aa", "a5")], "test": [("a0", "aa", "a3")]}
    graph = MemoryGraph(ENTITIES, RELATIONS, splits, {"a": 7})
    numbering = Numbering(graph.schema)
    queries = select_queries(graph, numbering, "test", None, 0)
    read = []
    original = graph.edges

    def edges(split, bucket):
        read.append((split, tuple(bucket)))
        return original(split, bucket)

    graph.edges = edges
    known_answers(graph, queries, numbering)
    assert read == [("train", (0, 1)), ("test", (0, 3))]


def test_edges_that_fit_are_read_once_and_others_again(monkeypatch):
    splits = {"train": [("a0", "aa", "a1"), ("a1", "aa", "a0")], "test": [("a0", "aa", "a3")]}
    graph = MemoryGraph(ENTITIES, RELATIONS, splits)
    read = []

    def edges(split, bucket):
        read.append(split)
        return graph.edges(split, bucket)

    monkeypatch.setattr(filters, "_KEPT", 2 * 3 * 4)  # bytes of the two edges for training
    kept = KeptEdges(edges)
    numbering = Numbering(graph.schema)
    queries = select_queries(graph, numbering, "test", None, 0)
    expected = known_answers(graph, queries, numbering).codes.tolist()
    for _ in range(2):
        found = known_answers(graph, queries, numbering, kept.edges)
        assert found.codes.tolist() == expected
    assert read == ["train", "test", "test"]


@given(graphs(), st.booleans(), st.sampled_from(["all", 3]))
@settings(max_examples=60, deadline=None)
def test_popularity_equals_loops(pair, filtered, candidates):
    graph, splits = pair
    result = evaluate_popularity(graph, Settings(filtered=filtered, candidates=candidates))

    def score(triple, side):
        at = 0 if side is Side.LHS else 2
        return sum(t[1] == triple[1] and t[at] == triple[at] for t in splits["train"])

    known = {edge for edges in splits.values() for edge in edges} if filtered else set()
    pool = sampled_names(graph, candidates) if candidates != "all" else None
    expected = naive_ranks(graph, splits["test"], known, score, pool)
    ranks = [
        1 + higher + tied / 2
        for triple in splits["test"]
        for higher, tied in (expected[triple, Side.LHS], expected[triple, Side.RHS])
    ]
    assert np.isclose(result.metrics.mr, np.mean(ranks))
    assert np.isclose(result.metrics.mrr, np.mean([1 / rank for rank in ranks]))
    assert result.metrics.count == len(ranks)


def sampled_names(graph, count):
    drawn = _draw_candidates(graph.schema, Settings(candidates=count))
    numbering = Numbering(graph.schema)
    return {
        kind: [
            graph.parts[kind][p][o] for p, o in zip(*numbering.places(kind, numbers), strict=True)
        ]
        for kind, numbers in drawn.items()
    }
