"""Counts of higher and tied candidates in a block of scores, against loops."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.evaluate.counting import Asked, add_counts

LIMIT = 12
SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 0.50001, 2.0, np.inf, np.nan])


@st.composite
def blocks(draw):
    """Return scores, the candidates' numbers, and (query, truth's score, width, known) each."""
    numbers = draw(st.sets(st.integers(0, LIMIT - 1), min_size=1))
    if draw(st.booleans()):
        numbers = range(min(numbers), max(numbers) + 1)
    numbers = np.array(sorted(numbers))
    row = st.lists(SCORES, min_size=len(numbers), max_size=len(numbers))
    scores = np.array(draw(st.lists(row, min_size=1, max_size=3)), dtype=np.float32)
    question = st.tuples(
        st.integers(0, len(scores) - 1), SCORES, st.sampled_from([0.0, 1e-4]),
        st.sets(st.integers(0, LIMIT - 1)),
    )  # fmt: skip
    return scores, numbers, draw(st.lists(question, min_size=1, max_size=6))


@given(blocks())
@settings(max_examples=300, deadline=None)
def test_counting_agrees_with_loops(block):
    scores, numbers, questions = block
    query, truth, width, known = zip(*questions, strict=True)
    truth, width = (np.array(values, dtype=np.float32) for values in (truth, width))
    stop = np.cumsum([len(some) for some in known])
    asked = Asked(
        np.array(query), truth - width, truth + width, stop - [len(some) for some in known], stop
    )
    answers = np.array([number for some in known for number in sorted(some)], dtype=np.int64)
    counts = np.full((len(query), 2), 100)
    add_counts(scores, numbers, asked, answers, counts)
    for i, (row, _, _, without) in enumerate(questions):
        competing = [x for x, n in zip(scores[row], numbers, strict=True) if n not in without]
        low, high = asked.low_Q[i], asked.high_Q[i]
        if np.isnan(high) or high == -np.inf:
            expected = [sum(x != -np.inf for x in competing), 0]
        else:
            expected = [sum(x > high for x in competing), sum(low <= x <= high for x in competing)]
        assert (counts[i] - 100).tolist() == expected
