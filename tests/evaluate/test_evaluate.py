"""The protocol: splits, subsets, sampled candidates, per-relation metrics, JSON."""

import json

import numpy as np
import pytest

from biggraph.errors import InputError
from biggraph.evaluate.evaluate import Settings, _draw_candidates, evaluate, evaluate_popularity
from biggraph.evaluate.numbering import Numbering
from biggraph.evaluate.queries import select_queries
from biggraph.types import Side
from tests.evaluate.doubles import random_checkpoint
from tests.evaluate.test_ranking import make_graph, oracle


def realistic(expected, relation=None):
    return [
        1 + h + t / 2 for (triple, _), (h, t) in expected.items() if relation in (None, triple[1])
    ]


def test_metrics_overall_by_side_and_by_relation():
    graph, splits = make_graph({"person": 3})
    checkpoint = random_checkpoint(graph)
    result = evaluate(checkpoint, graph, per_relation=True)
    expected = oracle(checkpoint, graph, splits)
    assert result.metrics.mr == pytest.approx(np.mean(realistic(expected)))
    assert result.edges == len(splits["test"])
    for name, metrics in result.relations.items():
        assert metrics.mr == pytest.approx(np.mean(realistic(expected, name)))
    assert set(result.relations) == {triple[1] for triple in splits["test"]}
    heads = {key: value for key, value in expected.items() if key[1] is Side.LHS}
    assert result.metrics.sides[Side.LHS].mr == pytest.approx(np.mean(realistic(heads)))


def test_to_dict_is_json_with_the_agreed_keys():
    graph, _ = make_graph()
    values = evaluate(random_checkpoint(graph), graph, per_relation=True).to_dict()
    assert json.loads(json.dumps(values)) == values
    agreed = {"split", "filtered", "mrr", "mr", "hits@1", "hits@3", "hits@10", "count", "sides"}
    assert agreed | {"candidates", "edges", "seed", "seconds", "edges_per_s", "relations"} == set(
        values
    )


def test_progress_ends_at_the_total():
    graph, _ = make_graph({"person": 3, "film": 2})
    seen = []
    evaluate(random_checkpoint(graph), graph, on_progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len({total for _, total in seen}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(split="tset"), 'no split "tset"; did you mean "test"'),
        (Settings(split="empty"), "has no edges"),
        (Settings(edges=0), "edges = 0"),
        (Settings(candidates=0), "candidates = 0"),
        (Settings(candidates="some"), 'candidates = "some"'),
    ],
)
def test_bad_settings_are_refused(settings, message):
    graph, _ = make_graph()
    graph.splits["empty"] = {}
    with pytest.raises(InputError, match=message):
        evaluate(random_checkpoint(graph), graph, settings)
    with pytest.raises(InputError, match=message):
        evaluate_popularity(graph, settings)


def test_a_subset_of_edges_is_seeded_and_without_replacement():
    graph, splits = make_graph({"person": 3, "film": 2})
    numbering = Numbering(graph.schema)

    def chosen(count, seed):
        queries = select_queries(graph, numbering, "test", count, seed)
        half = len(queries) // 2
        return list(
            zip(queries.anchor[:half], queries.rel[:half], queries.truth[:half], strict=True)
        )

    everything = chosen(None, 0)
    assert len(set(everything)) == len(splits["test"])
    assert chosen(7, 1) == chosen(7, 1)
    assert chosen(7, 1) != chosen(7, 2)
    assert len(set(chosen(7, 1))) == 7
    assert set(chosen(7, 1)) < set(everything)
    assert chosen(10**6, 1) == everything


def test_candidates_are_drawn_by_seed_and_type():
    graph, _ = make_graph()
    first = _draw_candidates(graph.schema, Settings(candidates=5, seed=1))
    again = _draw_candidates(make_graph({"person": 4})[0].schema, Settings(candidates=5, seed=1))
    assert {k: v.tolist() for k, v in first.items()} == {k: v.tolist() for k, v in again.items()}
    assert all(len(set(v.tolist())) == 5 for v in first.values())
    many = _draw_candidates(graph.schema, Settings(candidates=100))
    assert many["film"].tolist() == list(range(9))


def test_as_many_candidates_as_entities_is_the_full_ranking():
    graph, _ = make_graph({"person": 3, "film": 2})
    checkpoint = random_checkpoint(graph)
    sampled = evaluate(checkpoint, graph, Settings(candidates=23)).metrics
    assert sampled == evaluate(checkpoint, graph).metrics
