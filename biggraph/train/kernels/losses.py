"""Losses and their derivatives over a block of positives; see `model.losses` for the formulae.

The scores of the negatives become the gradient in place.
"""

from __future__ import annotations

import numpy as np

from biggraph.model import losses as model
from biggraph.train.kernels.jit import piece
from biggraph.train.kernels.mathematics import exp, largest, sigmoid, softplus

SOFTMAX, LOGISTIC, RANKING = range(3)

CODES = {model.Softmax: SOFTMAX, model.Logistic: LOGISTIC, model.Ranking: RANKING}

_F = np.float32
MASKED = _F(model.MASKED)


@piece
def differentiate(code, positive, scores, weight, margin, temperature, slope):
    """Return the sum of weighted losses, in units of the loss.

    Args:
        code: of the loss.
        positive: scores of the true entities, [P].
        scores: of the negatives, [P, K], MASKED where they do not count; out, `weight` times the
            derivatives of the losses by them.
        weight: [P].
        margin: of the ranking loss.
        temperature: of adversarial weights.
        slope: out, `weight` times the derivatives by the true entities' scores, [P].
    """
    if code == SOFTMAX:
        return _softmax(positive, scores, weight, slope)
    total = 0.0
    for p in range(scores.shape[0]):
        loss, slope[p] = _one(code, positive[p], scores[p], margin, temperature, weight[p])
        total += loss * weight[p]
    return total


@piece
def _softmax(positive, scores, weight, slope):
    """-s + log(e^s + sum_j e^n_j) = softplus(log sum_j e^n_j - s).

    Exponentials are taken of the block as a whole: rows are too short for long vectors.
    """
    tops = slope
    for p in range(scores.shape[0]):
        row, top = scores[p], largest(scores[p])
        tops[p] = top
        for k in range(row.shape[0]):
            row[k] -= top
    flat = scores.reshape(-1)
    for i in range(flat.shape[0]):
        flat[i] = exp(flat[i])
    total = 0.0
    for p in range(scores.shape[0]):
        row, whole = scores[p], _F(0.0)
        for k in range(row.shape[0]):
            whole += row[k]
        behind = tops[p] + np.log(whole) - positive[p]
        change = weight[p] * sigmoid(behind)
        if tops[p] <= _F(0.5) * MASKED:  # nothing but masked ones
            behind, change = MASKED, _F(0.0)
        factor = change / whole
        for k in range(row.shape[0]):
            row[k] *= factor
        slope[p] = -change
        total += softplus(behind) * weight[p]
    return total


@piece
def _one(code, positive, negatives, margin, temperature, weight):
    """Return the loss of one positive and `weight` times its derivative by the positive's score."""
    if temperature == _F(0.0):
        share = _F(1.0) / max(_count(negatives), _F(1.0))
        if code == LOGISTIC:
            return _logistic(positive, negatives, share, weight)
        return _ranking(positive, negatives, margin, share, weight)
    if code == LOGISTIC:
        return _adversarial_logistic(positive, negatives, temperature, weight)
    return _adversarial_ranking(positive, negatives, margin, temperature, weight)


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
