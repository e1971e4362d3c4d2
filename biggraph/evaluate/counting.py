"""How many candidates of a block score higher than each question's truth, in compiled code.

One pass over a block of scores while it is in the cache; or over rough scores, and exact products
where they leave doubt. Knows scores and the places of known answers; nothing of models, entities'
types or files.

Axes: B queries, Q questions (several may share a query), N candidates, D dimension, K known
answers, P pairs of a question and a candidate.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from biggraph.evaluate.numbering import Numbers
from biggraph.types import FloatArray, IntArray

_AGAIN = 4  # a float32 product of one pair costs so much less than what an open one does


class Asked(NamedTuple):
    """Questions about the rows of a tile of scores.

    Args:
        query_Q: row of each question's scores, int64, shape [Q].
        low_Q: lowest score that ties with the truth, float32, shape [Q].
        high_Q: highest such score, float32, shape [Q].
        first_Q: position of the first answer known to each question, int64, shape [Q].
        stop_Q: position after its last one, int64, shape [Q].
    """

    query_Q: Numbers
    low_Q: FloatArray
    high_Q: FloatArray
    first_Q: Numbers
    stop_Q: Numbers


class Products(NamedTuple):
    """Rough scores of a tile, and what better ones are made of: a product plus a bias.

    Args:
        rough_BN: bfloat16 products of queries and candidates, bits as uint16, shape [B, N].
        query_BD: queries, float32, shape [B, D].
        rows_ND: candidates, float32, shape [N, D].
        bias_N: added to each candidate's products, float32, shape [N].
        share_N: of the width of doubt that each candidate has, float32, shape [N].
    """

    rough_BN: NDArray[np.uint16]
    query_BD: FloatArray
    rows_ND: FloatArray
    bias_N: FloatArray
    share_N: FloatArray


class Doubt(NamedTuple):
    """Between which sums of product and bias the comparison with the truth is open, shape [Q] each.

    Args:
        width_Q: a candidate's share of it is added on both sides of the next two, float32.
        rough_low_Q: a rough sum below surely loses, float32.
        rough_high_Q: a rough sum above surely wins, float32.
        low_Q: a float32 sum below surely loses, float64.
        high_Q: a float32 sum above surely wins, float64.
    """

    width_Q: FloatArray
    rough_low_Q: FloatArray
    rough_high_Q: FloatArray
    low_Q: NDArray[np.float64]
    high_Q: NDArray[np.float64]


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def add_counts(
    scores_BN: FloatArray, numbers_N: Numbers, asked: Asked, answers_K: Numbers, counts_Q2: IntArray
) -> None:
    """Add the candidates that beat each truth, and those that tie with it, to `counts_Q2`.

    Args:
        scores_BN: of every query with every candidate, float32, shape [B, N].
        numbers_N: of the candidates, ascending.
        asked: the questions.
        answers_K: numbers of known answers, ascending from `first_Q` to `stop_Q`.
        counts_Q2: higher and tied so far, int64, shape [Q, 2].

    All are counted, then known answers are taken off again: they may be others for each question.
    A truth whose score is not a number, or minus infinity, loses to all but minus infinity.
    """
    for q in range(asked.query_Q.shape[0]):
        row, low, high = asked.query_Q[q], asked.low_Q[q], asked.high_Q[q]
        lost = not high > -np.inf
        if lost:
            above, from_low = _not_minus_infinity(scores_BN, row), 0
        else:
            above, from_low = _above(scores_BN, row, low, high)
        first, stop = _known_here(asked, q, numbers_N, answers_K)
        for k in range(first, stop):
            column = _column(numbers_N, answers_K[k])
            if column >= 0:
                score = scores_BN[row, column]
                above -= score != -np.inf if lost else score > high
                from_low -= not lost and score >= low
        counts_Q2[q, 0] += above
        if not lost:
            counts_Q2[q, 1] += from_low - above


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _above(scores_BN: FloatArray, row: int, low: float, high: float) -> tuple[int, int]:
    above, from_low = 0, 0
    for j in range(scores_BN.shape[1]):  # seven times the speed of iterating over the row
        above += scores_BN[row, j] > high
        from_low += scores_BN[row, j] >= low
    return above, from_low


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _not_minus_infinity(scores_BN: FloatArray, row: int) -> int:
    found = 0
    for j in range(scores_BN.shape[1]):
        found += scores_BN[row, j] != -np.inf
    return found


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _known_here(asked: Asked, q: int, numbers_N: Numbers, answers_K: Numbers) -> tuple[int, int]:
    """Return where a question's answers begin and end, of those from first to last number."""
    start, stop = asked.first_Q[q], asked.stop_Q[q]
    known = answers_K[start:stop]
    first = np.searchsorted(known, numbers_N[0])
    return start + first, start + np.searchsorted(known, numbers_N[-1], side="right")


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _column(numbers_N: Numbers, number: int) -> int:
    """Return where a number from the first to the last stands, or -1."""
    column = number - numbers_N[0]
    if numbers_N[-1] - numbers_N[0] + 1 != numbers_N.shape[0]:
        column = np.searchsorted(numbers_N, number)
    return column if numbers_N[column] == number else -1


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def screened_counts(
    products: Products,
    doubt: Doubt,
    asked: Asked,
    numbers_N: Numbers,
    answers_K: Numbers,
    higher_Q: IntArray,
    open_P2: IntArray,
) -> int:
    """Count the candidates that surely beat each truth, and list those that are open.

    Args:
        products: rough scores, and what better ones are made of.
        doubt: which of them leave the comparison open.
        asked: the questions, whose known answers are left out.
        numbers_N: of the candidates, ascending.
        answers_K: numbers of known answers, ascending from `first_Q` to `stop_Q`.
        higher_Q: int64, shape [Q]; those that surely win are added.
        open_P2: room for question and column of each open pair, int64, shape [P, 2].

    Returns:
        How many pairs float32 products left open, or -1 where these or those before them were more
        than there is room for: P open ones, and `_AGAIN` times as many to look at again.
    """
    count = numbers_N.shape[0]
    bits_N = np.empty(count, np.uint32)
    rough_N = bits_N.view(np.float32)
    words_W = np.zeros((count + 7) // 8, np.uint64)
    marks_N = words_W.view(np.uint8)
    columns_N = np.empty(len(marks_N), np.int64)
    sums_N = np.empty(count, np.float32)
    last, again, found = -1, 0, 0
    for q in range(asked.query_Q.shape[0]):
        row = asked.query_Q[q]
        if row != last:
            _widen(products.rough_BN, row, products.bias_N, bits_N, rough_N)
            last = row
        rough_high, width = doubt.rough_high_Q[q], doubt.width_Q[q]
        above = _above_all(rough_N, rough_high, width, products.share_N)
        _mark(rough_N, doubt.rough_low_Q[q], rough_high, width, products.share_N, marks_N)
        first, stop = _known_here(asked, q, numbers_N, answers_K)
        for k in range(first, stop):
            column = _column(numbers_N, answers_K[k])
            if column >= 0:
                above -= rough_N[column] > rough_high + width * products.share_N[column]
                marks_N[column] = 0
        marked = _gather(words_W, marks_N, columns_N)
        again += marked
        if again > _AGAIN * open_P2.shape[0]:
            return -1
        _sums(products, row, columns_N[:marked], sums_N)
        low, high = doubt.low_Q[q], doubt.high_Q[q]
        for i in range(marked):
            above += sums_N[i] > high
            if (sums_N[i] >= low) & (sums_N[i] <= high):  # both: one branch, seldom taken
                if found == open_P2.shape[0]:
                    return -1
                open_P2[found, 0], open_P2[found, 1] = q, columns_N[i]
                found += 1
        higher_Q[q] += above
    return found


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _widen(
    rough_BN: NDArray[np.uint16], row: int, bias_N: FloatArray, bits_N: IntArray, wide_N: FloatArray
) -> None:
    """Write the values of bfloat16 bits, plus biases, to `wide_N`, a view of `bits_N`."""
    for j in range(bits_N.shape[0]):
        bits_N[j] = np.uint32(rough_BN[row, j]) << np.uint32(16)
    for j in range(bits_N.shape[0]):
        wide_N[j] += bias_N[j]


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _above_all(rough_N: FloatArray, high: float, width: float, share_N: FloatArray) -> int:
    above = 0
    for j in range(rough_N.shape[0]):
        above += rough_N[j] > high + width * share_N[j]
    return above


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _mark(
    rough_N: FloatArray,
    low: float,
    high: float,
    width: float,
    share_N: FloatArray,
    marks_N: NDArray[np.uint8],
) -> None:
    for j in range(rough_N.shape[0]):
        more = width * share_N[j]
        marks_N[j] = (rough_N[j] >= low - more) & (rough_N[j] <= high + more)


@numba.njit(nogil=True, cache=True)  # type: ignore[misc, untyped-decorator, unused-ignore]
def _gather(words_W: NDArray[np.uint64], marks_N: NDArray[np.uint8], columns_N: Numbers) -> int:
    """Write where marks are 1 to `columns_N`, eight at a time; return how many they are."""
    found = 0
    for w in range(words_W.shape[0]):
        if words_W[w] != 0:
            for j in range(8 * w, 8 * w + 8):  # without branches
                columns_N[found] = j
                found += marks_N[j]
    return found


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})  # type: ignore[misc, untyped-decorator, unused-ignore]
def _sums(products: Products, row: int, columns_P: Numbers, sums_P: FloatArray) -> None:
    """Write product plus bias of a query and some candidates, in any order (the bound's)."""
    query_BD, rows_ND, bias_N = products.query_BD, products.rows_ND, products.bias_N
    for i in range(columns_P.shape[0]):
        j, total = columns_P[i], np.float32(0)
        for d in range(query_BD.shape[1]):
            total += query_BD[row, d] * rows_ND[j, d]
        sums_P[i] = total + bias_N[j]
