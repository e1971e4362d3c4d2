"""Losses of a positive and their derivatives; see `model.losses` for the formulae.

The scores of the negatives become the gradient in place.
"""

from __future__ import annotations

import numpy as np

from biggraph.model import losses as model
from biggraph.train.kernels.jit import piece
from biggraph.train.kernels.mathematics import exp, sigmoid, softplus
from biggraph.train.kernels.vectors import largest

SOFTMAX, LOGISTIC, RANKING = range(3)

CODES = {model.Softmax: SOFTMAX, model.Logistic: LOGISTIC, model.Ranking: RANKING}

_F = np.float32
MASKED = _F(model.MASKED)


@piece
def differentiate(code, positive, negatives, margin, temperature, weight):
    """Return the loss of one positive, and `weight` times its derivative by the positive's score.

    Args:
        code: of the loss.
        positive: score of the true entity.
        negatives: scores [K], MASKED where they do not count; out, `weight` times the derivatives
            of the loss by them.
        margin: of the ranking loss.
        temperature: of adversarial weights.
        weight: of the positive.
    """
    if code == SOFTMAX:
        return _softmax(positive, negatives, weight)
    if temperature == _F(0.0):
        share = _F(1.0) / max(_count(negatives), _F(1.0))
        if code == LOGISTIC:
            return _logistic(positive, negatives, share, weight)
        return _ranking(positive, negatives, margin, share, weight)
    if code == LOGISTIC:
        return _adversarial_logistic(positive, negatives, temperature, weight)
    return _adversarial_ranking(positive, negatives, margin, temperature, weight)


@piece
def _softmax(positive, negatives, weight):
    """-s + log(e^s + sum_j e^n_j) = softplus(log sum_j e^n_j - s)."""
    top, whole = largest(negatives), _F(0.0)
    for k in range(negatives.shape[0]):
        power = exp(negatives[k] - top)
        negatives[k] = power
        whole += power
    behind = top + np.log(whole) - positive
    change = weight * sigmoid(behind)
    if top <= _F(0.5) * MASKED:  # nothing but masked ones
        behind, change = MASKED, _F(0.0)
    factor = change / whole
    for k in range(negatives.shape[0]):
        negatives[k] *= factor
    return softplus(behind), -change


@piece
def _count(negatives):
    count = _F(0.0)
    for value in negatives:
        count += _F(0.0) if value == MASKED else _F(1.0)
    return count


@piece
def _logistic(positive, negatives, share, weight):
    """softplus(-s) + share * sum_j softplus(n_j)."""
    total, factor = _F(0.0), share * weight
    for k in range(negatives.shape[0]):
        value = negatives[k]
        total += softplus(value)
        negatives[k] = factor * sigmoid(value)
    return softplus(-positive) + share * total, -weight * sigmoid(-positive)


@piece
def _ranking(positive, negatives, margin, share, weight):
    """Margin loss: share * sum_j max(0, margin - s + n_j)."""
    total, slopes, factor = _F(0.0), _F(0.0), share * weight
    for k in range(negatives.shape[0]):
        violation = margin - positive + negatives[k]
        slope = factor if violation > _F(0.0) else _F(0.0)
        total += max(violation, _F(0.0))
        slopes += slope
        negatives[k] = slope
    return share * total, -slopes


@piece
def _adversarial(negatives, temperature):
    """Return the largest score and the sum of e^(temperature (n_j - largest))."""
    top, total = largest(negatives), _F(0.0)
    for value in negatives:
        total += exp(temperature * (value - top))
    return top, total


@piece
def _adversarial_logistic(positive, negatives, temperature, weight):
    top, whole = _adversarial(negatives, temperature)
    total = _F(0.0)
    for k in range(negatives.shape[0]):
        value = negatives[k]
        share = exp(temperature * (value - top)) / whole
        total += share * softplus(value)
        negatives[k] = weight * share * sigmoid(value)
    return softplus(-positive) + total, -weight * sigmoid(-positive)


@piece
def _adversarial_ranking(positive, negatives, margin, temperature, weight):
    top, whole = _adversarial(negatives, temperature)
    total, slopes = _F(0.0), _F(0.0)
    for k in range(negatives.shape[0]):
        violation = margin - positive + negatives[k]
        share = exp(temperature * (negatives[k] - top)) / whole
        slope = weight * share if violation > _F(0.0) else _F(0.0)
        total += share * max(violation, _F(0.0))
        slopes += slope
        negatives[k] = slope
    return total, -slopes
