"""The score of a pair of rows as ranking takes it, and which scores tie with it.

A candidate ties with the true entity when their scores differ by no more than rounding can
explain, so that equal embeddings tie wherever they are stored: |difference| <= 1e-6 * the size of
the numbers that the score is made of (`_tolerance`). Knows a model and rows; nothing of questions.

Axes: B queries, N candidates, D dimension, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from biggraph.model.model import Model
from biggraph.types import FloatArray

PADDING = 32  # below this many rows, matrix products round differently (other code paths)
_TIE = 1e-6


def scores_of(model: Model, query_BD: Tensor, candidates_ND: Tensor) -> Tensor:
    """Return all scores, [B, N]; padded, so that each pair rounds alike in any block."""
    padded_BD, padded_ND = _pad(query_BD), _pad(candidates_ND)
    scores = model.pairwise(padded_BD, padded_ND)
    return scores[: len(query_BD), : len(candidates_ND)].contiguous()


def scores_of_pairs(model: Model, query_PD: Tensor, candidates_PD: Tensor) -> Tensor:
    """Return the score of every query with its own candidate, [P], as `scores_of` rounds it."""
    parts = [
        scores_of(model, query_PD[start : start + PADDING], candidates_PD[start : start + PADDING])
        for start in range(0, len(query_PD), PADDING)
    ]
    return torch.cat([part.diagonal() for part in parts])


def _pad(rows_ND: Tensor) -> Tensor:
    missing = PADDING - len(rows_ND)
    return torch.nn.functional.pad(rows_ND, (0, 0, 0, missing)) if missing > 0 else rows_ND


def tie_range(model: Model, query_BD: Tensor, truth_BD: Tensor) -> tuple[FloatArray, FloatArray]:
    """Return the lowest and highest score that tie with each truth, float32, shape [B] each.

    The truth is scored by the same kind of product as its competitors: on most machines equal
    rows then have equal scores to the last bit, also where a distance cancels to noise.
    """
    score_B = scores_of_pairs(model, query_BD, truth_BD)
    tolerance_B = _tolerance(model, query_BD, truth_BD)
    tolerance_B = torch.where(torch.isfinite(score_B) & tolerance_B.isfinite(), tolerance_B, 0.0)
    low: FloatArray = (score_B - tolerance_B).numpy()
    high: FloatArray = (score_B + tolerance_B).numpy()
    return low, high


def _tolerance(model: Model, query_BD: Tensor, truth_BD: Tensor) -> Tensor:
    """Return how far apart rounding can put equal scores, [B].

    For a product of vectors the size of the numbers is |q||c|, for a distance |q| + |c|, for a
    squared one |q|^2 + |c|^2; scores of the vectors with themselves and with zero give all three.
    """
    zero_BD = torch.zeros_like(query_BD)
    product_B = model.matched(query_BD, query_BD) * model.matched(truth_BD, truth_BD)
    lengths_B = model.matched(query_BD, zero_BD).abs() + model.matched(truth_BD, zero_BD).abs()
    return _TIE * (product_B.abs().sqrt() + lengths_B)
