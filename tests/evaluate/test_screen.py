"""Ranks with a screen are those without, whatever the embeddings are."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from biggraph.evaluate import screen
from biggraph.evaluate.counting import Asked
from biggraph.evaluate.filters import known_answers
from biggraph.evaluate.numbering import Numbering
from biggraph.evaluate.opening import model_of
from biggraph.evaluate.queries import select_queries
from biggraph.evaluate.ranking import Ranker
from biggraph.evaluate.screen import Screen
from biggraph.model.comparators import COMPARATORS
from tests.evaluate.doubles import MemoryGraph, random_checkpoint

NAMES = [f"e{i}" for i in range(300)]
_generator = np.random.default_rng(5)
TRIPLES = [
    (NAMES[a], ("of", "in")[rel], NAMES[b])
    for a, rel, b in sorted({tuple(_generator.integers((300, 2, 300))) for _ in range(1200)})
]
_generator.shuffle(TRIPLES)
TRIPLES = [tuple(map(str, triple)) for triple in TRIPLES]
GRAPH = MemoryGraph(
    {"thing": NAMES}, [("of", "thing", "thing"), ("in", "thing", "thing")],
    {"train": TRIPLES[500:], "valid": [], "test": TRIPLES[:500]}, {"thing": 2},
)  # fmt: skip


def normal(generator, shape):
    return generator.standard_normal(shape)


def aligned(generator, shape):
    """Rounding takes the most that it can, in one direction; scores differ by about as much."""
    return 1 + generator.choice([-1, 1]) * 2.0**-8 * generator.choice([0.98, 0.99, 1.01], shape)


def few_values(generator, shape):
    return generator.integers(-1, 2, shape)


def copies(generator, shape):
    rows = generator.standard_normal((4, shape[1]))[generator.integers(4, size=shape[0])]
    return rows * (1 + 3e-7 * generator.integers(-1, 2, (shape[0], 1)))


def lengths(generator, shape):
    return generator.standard_normal(shape) * np.exp(5 * generator.standard_normal((shape[0], 1)))


def magnitudes(generator, shape):
    return generator.standard_normal(shape) * np.exp(8 * generator.standard_normal(shape))


def with_zeros(generator, shape):
    return generator.standard_normal(shape) * (generator.random((shape[0], 1)) < 0.5)


def with_extremes(generator, shape):
    rows = generator.standard_normal(shape)
    rows[generator.integers(shape[0]), 0] = generator.choice([np.nan, np.inf, -np.inf, 3e38, 1e25])
    return rows


KINDS = [normal, aligned, few_values, copies, lengths, magnitudes, with_zeros, with_extremes]


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads cut a table into pieces that may be too small for a screen."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ranks(kind, comparator, dimension, scale, seed, screened):
    operator = "translation" if comparator.endswith("l2") else "identity"
    checkpoint = random_checkpoint(
        GRAPH, seed, operator=operator, comparator=comparator, dimension=dimension
    )
    generator = np.random.default_rng(seed)
    rows = kind(generator, (len(NAMES), dimension)) * scale
    with np.errstate(over="ignore"):
        checkpoint.by_name["thing"] = dict(zip(NAMES, rows.astype(np.float32), strict=True))
    numbering = Numbering(GRAPH.schema)
    queries = select_queries(GRAPH, numbering, "test", None, 0)
    ranker = Ranker(checkpoint, model_of(checkpoint, GRAPH), numbering, screened=screened)
    found = ranker.rank(queries, known_answers(GRAPH, queries, numbering))
    return found.higher.tolist(), found.tied.tolist()


@pytest.mark.parametrize("comparator", COMPARATORS)
@given(
    st.sampled_from(KINDS), st.sampled_from([1, 2, 7, 64, 200]),
    st.sampled_from([1e-42, 1e-30, 1e-18, 1e-3, 1.0, 1e4, 1e17]), st.integers(0, 1000),
)  # fmt: skip
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_ranks_are_those_without_a_screen(comparator, kind, dimension, scale, seed):
    arguments = (kind, comparator, dimension, scale, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(screen, "_OPEN", 2)  # so that it goes on where it does not pay
        found = ranks(*arguments, screened=True)
    assert found == ranks(*arguments, screened=False)


@pytest.fixture
def counted(monkeypatch):
    """Return what screens found, tile by tile: open pairs, or None."""
    found = []
    count = Screen.count

    def spy(self, *arguments):
        result = count(self, *arguments)
        found.append(None if result is None else len(result[1]))
        return result

    monkeypatch.setattr(Screen, "count", spy)
    return found


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_few_pairs_stay_open(counted, comparator):
    ranks(normal, comparator, 8, 1.0, 0, screened=True)
    pairs = 2 * 500 * len(NAMES)
    assert len(counted) > 2
    assert sum(counted) < pairs / 500


def test_a_screen_that_does_not_pay_is_given_up(counted, monkeypatch):
    monkeypatch.setattr(screen, "_PATIENCE", 3)
    ranks(few_values, "dot", 1, 0.0, 0, screened=True)
    assert set(counted) == {None}
    alone = Screen(COMPARATORS["dot"], wanted=True)
    alone._patience = 0
    assert alone.candidates(torch.ones(100, 8)) is None


@pytest.mark.parametrize(("sign", "wins"), [(1, 0), (-1, 64)])
def test_scores_of_truths_may_be_as_large_as_floats_are(sign, wins):
    alone, none = Screen(COMPARATORS["dot"], wanted=True), np.zeros(256, np.int64)
    score_Q = np.full(256, sign * np.finfo(np.float32).max, np.float32)
    asked = Asked(np.arange(256), score_Q, score_Q, none, none)
    questions = alone.questions(torch.ones(256, 8), asked)
    higher, left = alone.count(
        questions, alone.candidates(torch.ones(64, 8)), asked, np.arange(64), none[:0]
    )
    assert higher.tolist() == [wins] * 256
    assert len(left) == 0


def test_few_rows_and_unwanted_screens_prepare_nothing():
    dot = COMPARATORS["dot"]
    assert Screen(dot, wanted=True).candidates(torch.ones(63, 8)) is None
    assert Screen(dot, wanted=True).candidates(torch.ones(64, 8)) is not None
    assert Screen(dot, wanted=False).candidates(torch.ones(64, 8)) is None
