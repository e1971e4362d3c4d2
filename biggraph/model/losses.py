"""Losses: one number for each positive edge, from its score and the scores of its negatives.

Knows scores; nothing of entities, operators or weights. A masked negative has score `MASKED` and
takes no part in any loss, nor in its gradient.

Axes: C chunks, P positives per chunk, N negatives per positive.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

# Stands for -inf: exp, sigmoid and relu of it are exactly 0, and unlike with -inf the softmax of
# nothing but masked negatives has gradient 0 instead of NaN.
MASKED = -1e30


class Loss(ABC):
    """A loss of each positive against its negatives."""

    @abstractmethod
    def __call__(self, positive_CP: Tensor, negative_CPN: Tensor) -> Tensor:
        """Return the loss of each positive, shape [C, P]."""


class Softmax(Loss):
    """Cross-entropy of the positive among itself and its negatives.

    -s + log(exp(s) + sum_j exp(n_j)); with every entity as a negative this is the multi-class
    loss of Lacroix et al., ICML 2018, eq. 4.
    """

    def __call__(self, positive_CP: Tensor, negative_CPN: Tensor) -> Tensor:
        """Return the cross-entropy."""
        negatives_CP = torch.logsumexp(negative_CPN, dim=-1)
        return functional.softplus(negatives_CP - positive_CP)


class Logistic(Loss):
    """Binary cross-entropy: softplus(-s) + weighted mean_j softplus(n_j).

    Args:
        temperature: 0 for the plain mean over negatives; above it negatives are weighted by the
            softmax of temperature * score, treated as constant (Sun et al., ICLR 2019, eq. 5).
    """

    def __init__(self, temperature: float = 0.0) -> None:
        self.temperature = temperature

    def __call__(self, positive_CP: Tensor, negative_CPN: Tensor) -> Tensor:
        """Return the binary cross-entropy."""
        negatives = _weighted_mean(
            functional.softplus(negative_CPN), negative_CPN, self.temperature
        )
        return functional.softplus(-positive_CP) + negatives


class Ranking(Loss):
    """Margin loss: weighted mean_j max(0, margin - s + n_j) (Bordes et al., NIPS 2013, eq. 1).

    Args:
        margin: wanted distance in score between a positive and a negative.
        temperature: as in `Logistic`.
    """

    def __init__(self, margin: float = 0.1, temperature: float = 0.0) -> None:
        self.margin = margin
        self.temperature = temperature

    def __call__(self, positive_CP: Tensor, negative_CPN: Tensor) -> Tensor:
        """Return the margin loss."""
        violation_CPN = functional.relu(self.margin - positive_CP.unsqueeze(-1) + negative_CPN)
        return _weighted_mean(violation_CPN, negative_CPN, self.temperature)


def _weighted_mean(terms_CPN: Tensor, scores_CPN: Tensor, temperature: float) -> Tensor:
    """Average over unmasked negatives; 0 where every negative is masked."""
    if temperature == 0:
        count_CP = (scores_CPN.detach() != MASKED).sum(-1).clamp_min(1)
        return terms_CPN.sum(-1) / count_CP
    weight_CPN = torch.softmax(temperature * scores_CPN.detach(), dim=-1)
    return (weight_CPN * terms_CPN).sum(-1)


def make_loss(name: str, *, margin: float, temperature: float) -> Loss:
    """Return the loss of that name: softmax, logistic or ranking."""
    losses: dict[str, Loss] = {
        "softmax": Softmax(),
        "logistic": Logistic(temperature),
        "ranking": Ranking(margin, temperature),
    }
    return losses[name]
