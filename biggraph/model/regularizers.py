"""Regularizers: a penalty on the rows and parameters that a batch used.

Knows magnitudes; nothing of where they come from.

Axes: B edges, M magnitudes of one vector.
"""

from __future__ import annotations

from torch import Tensor


def n3(magnitudes_BM: Tensor) -> Tensor:
    """Return the cubed nuclear 3-norm of each vector, sum_m |x_m|^3, shape [B].

    Lacroix, Usunier and Obozinski, "Canonical tensor decomposition for knowledge base
    completion", ICML 2018, eq. 5; complex vectors enter with their moduli.
    """
    return (magnitudes_BM * magnitudes_BM * magnitudes_BM).sum(-1)
