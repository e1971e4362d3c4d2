"""Which candidates surely beat a truth, from bfloat16 products: most need no float32 score.

Decides nothing that is in doubt: who asks scores those pairs as without a screen, so ranks are the
same to the last bit. Knows comparators and bounds on rounding; nothing of tables or groups.

A score exceeds that of a truth where a product plus a bias of the candidate, q.c + b, exceeds a
threshold t: for dot and cos that is the score itself, and -|q - c|^2 > x is the same as
q.c - |c|^2 / 2 > (x + |q|^2) / 2. Three steps, each for the pairs that the one before left open:
products of rows rounded to bfloat16, q' and c'; products in float32; by who asks, the score. They
differ by at most

    |q.c - q'.c'| <= |q - q'| |c| + |q'| |c - c'|     Cauchy-Schwarz, with the true residuals
    (D + 8) 2^-24 |q| |c|      a float32 sum of D products, in any order (Higham, Accuracy and
                               Stability of Numerical Algorithms, 2002, sec. 3.1)
    2^-8 |s|                   the bfloat16 that a sum s is rounded to; at t, |s| <= |t| + |b|
    D 2^-125 (1 + |q| + |c|)   numbers below 2^-126, which bfloat16 products may take for 0

where the largest |c|, |c - c'| and |b| of a block of candidates stand for all of them. Rows that
are not finite, or whose products could overflow, are not screened.

Axes: B queries, Q questions, N candidates, D dimension, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biggraph.evaluate.counting import Asked, Doubt, Products, screened_counts
from biggraph.evaluate.numbering import Numbers
from biggraph.model.comparators import L2, Comparator, Cos, Dot, SquaredL2
from biggraph.types import FloatArray, IntArray

Doubles = NDArray[np.float64]

_QUERIES, _CANDIDATES = 256, 64  # fewer in a tile do not make up for preparing the others
_LARGEST = 2.0**60  # length of a row; squares of sums of such are finite
_UNIT = 2.0**-24  # relative rounding of float32
_OUTPUT = 1.05 * 2.0**-8  # that of bfloat16, and of the few float32 sums that follow
_TINY = 2.0**-125
_EPSILON = 1e-12  # what distances add under the root
_OPEN = 128  # one pair in so many may stay open: with more, float32 products of all are faster
_PATIENCE = 4  # tiles that did not pay, less those since then that did: then it ends


@dataclass(frozen=True)
class Rough:
    """Queries or candidates in bfloat16, with what that took away.

    Args:
        exact_ND: the rows, float32.
        rounded_ND: the same in bfloat16.
        length_N: |x| of each row, shape [N].
        residual_N: |x - x'|.
    """

    exact_ND: Tensor
    rounded_ND: Tensor
    length_N: Doubles
    residual_N: Doubles

    @classmethod
    def of(cls, exact_ND: Tensor) -> Rough | None:
        """Round rows; None where they are too large for a bound."""
        length_N = _lengths(exact_ND)
        if not length_N.max() <= _LARGEST:  # nor is what is not a number
            return None
        rounded_ND = exact_ND.bfloat16()
        return cls(exact_ND, rounded_ND, length_N, _lengths(exact_ND - rounded_ND))


@dataclass(frozen=True)
class Question:
    """Queries of a tile and, for each of its questions, the thresholds that its truth sets.

    Args:
        rough: the queries.
        length_Q: length of each question's query.
        residual_Q: of its residual.
        low_Q: from this sum of product and bias on, a candidate ties.
        high_Q: above it, it wins.
    """

    rough: Rough
    length_Q: Doubles
    residual_Q: Doubles
    low_Q: Doubles
    high_Q: Doubles


@dataclass(frozen=True)
class Candidates:
    """Candidates of a block.

    Args:
        rough: the candidates.
        bias_N: b of each, float32.
        share_N: of the greatest |c| and |c - c'| in the block that each has at most, float32.
        length: the greatest |c|.
        residual: the greatest |c - c'|.
    """

    rough: Rough
    bias_N: FloatArray
    share_N: FloatArray
    length: float
    residual: float


class Screen:
    """Screens the tiles of one ranking, for as long as that pays.

    Args:
        comparator: of queries and candidates.
        wanted: None: where this processor has fast bfloat16 products.
    """

    def __init__(self, comparator: Comparator, wanted: bool | None = None) -> None:
        self._kind = type(comparator)
        wanted = _is_fast() if wanted is None else wanted
        # Threads share this; a lost update costs nothing.
        self._patience = _PATIENCE if wanted and self._kind in _THRESHOLDS else 0

    def questions(self, query_BD: Tensor, asked: Asked) -> Question | None:
        """Prepare queries and what is asked of them; None where they cannot be screened."""
        if self._patience <= 0 or len(query_BD) < _QUERIES:
            return None
        if not (np.isfinite(asked.low_Q) & np.isfinite(asked.high_Q)).all():
            return None
        rough = Rough.of(query_BD)
        if rough is None:
            return None
        length_Q, residual_Q = rough.length_N[asked.query_Q], rough.residual_N[asked.query_Q]
        threshold = _THRESHOLDS[self._kind]
        low_Q, high_Q = (
            threshold(score_Q.astype(np.float64), length_Q**2)
            for score_Q in (asked.low_Q, asked.high_Q)
        )
        return Question(rough, length_Q, residual_Q, low_Q, high_Q)

    def candidates(self, ready_ND: Tensor) -> Candidates | None:
        """Prepare candidates; None where they cannot be screened."""
        enough = self._patience > 0 and len(ready_ND) >= _CANDIDATES
        rough = Rough.of(ready_ND) if enough else None
        if rough is None:
            return None
        bias_N = np.zeros(len(ready_ND), np.float32)
        if self._kind in _DISTANCES:
            bias_N[:] = -(rough.length_N**2) / 2
        length, residual = float(rough.length_N.max()), float(rough.residual_N.max())
        share_N = np.maximum(
            rough.length_N / max(length, _TINY), rough.residual_N / max(residual, _TINY)
        )
        return Candidates(rough, bias_N, (1.001 * share_N).astype(np.float32), length, residual)

    def count(
        self,
        questions: Question,
        candidates: Candidates,
        asked: Asked,
        numbers_N: Numbers,
        answers_K: Numbers,
    ) -> tuple[IntArray, IntArray] | None:
        """Count for each question those that surely win, and list the pairs that are open.

        Returns:
            int64 [Q], and question and column of each open pair, int64 [P, 2]; known answers are
            in neither. None where too many are open, or were before.
        """
        if self._patience <= 0:
            return None
        rough_BN = torch.mm(questions.rough.rounded_ND, candidates.rough.rounded_ND.T)
        products = Products(
            rough_BN.view(torch.uint16).numpy(), questions.rough.exact_ND.numpy(),
            candidates.rough.exact_ND.numpy(), candidates.bias_N, candidates.share_N,
        )  # fmt: skip
        higher_Q = np.zeros(len(asked.query_Q), np.int64)
        open_P2 = np.empty((rough_BN.numel() // _OPEN, 2), np.int64)
        doubt = self._doubt(questions, candidates)
        found = screened_counts(products, doubt, asked, numbers_N, answers_K, higher_Q, open_P2)
        self._patience = min(_PATIENCE, self._patience + (1 if found >= 0 else -1))
        return (higher_Q, open_P2[:found]) if found >= 0 else None

    def _doubt(self, questions: Question, candidates: Candidates) -> Doubt:
        """Return the sums between which a rough product, and a float32 one, leave a pair open."""
        dimension = candidates.rough.exact_ND.shape[1]
        length, residual = candidates.length, candidates.residual
        low_Q, high_Q, length_Q = questions.low_Q, questions.high_Q, questions.length_Q
        size_Q = np.maximum(np.abs(low_Q), np.abs(high_Q))
        sums_Q = (dimension + 8) * _UNIT * length_Q * length
        tiny_Q = dimension * _TINY * (1 + length_Q + length)
        score_Q, bias = sums_Q, 0.0
        if self._kind in _DISTANCES:
            score_Q = (dimension + 8) * _UNIT * ((length_Q + length) ** 2 + size_Q) + _EPSILON
            bias = length**2 / 2
        exact_Q = 1.01 * (score_Q + sums_Q + tiny_Q)
        width_Q = questions.residual_Q * length + (length_Q + questions.residual_Q) * residual
        rough_Q = exact_Q + 2 * sums_Q + _OUTPUT * (size_Q + width_Q + 2 * exact_Q + bias)
        with np.errstate(over="ignore"):  # infinity is a bound too
            rough_low_Q = (low_Q - rough_Q).astype(np.float32)
            rough_high_Q = (high_Q + rough_Q).astype(np.float32)
        return Doubt(
            width_Q.astype(np.float32), rough_low_Q, rough_high_Q, low_Q - exact_Q, high_Q + exact_Q
        )


def _lengths(rows_ND: Tensor) -> Doubles:
    lengths: Doubles = torch.linalg.vector_norm(rows_ND, dim=1, dtype=torch.float64).numpy()
    return lengths


def _of_product(score_Q: Doubles, _: Doubles) -> Doubles:
    return score_Q


def _of_squared(score_Q: Doubles, square_Q: Doubles) -> Doubles:
    return (score_Q + square_Q) / 2


def _of_distance(score_Q: Doubles, square_Q: Doubles) -> Doubles:
    return _of_squared(score_Q * np.abs(score_Q), square_Q)  # positive ones stay out of reach


# Thresholds for the product plus bias, of scores and the squared lengths of the queries.
_THRESHOLDS = {Dot: _of_product, Cos: _of_product, SquaredL2: _of_squared, L2: _of_distance}
_DISTANCES = (SquaredL2, L2)


def _is_fast() -> bool:
    """Return whether this processor has instructions for bfloat16 products."""
    asked: bool = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # private: may go
    return asked
