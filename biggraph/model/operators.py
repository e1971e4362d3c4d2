"""Operators: how a relation transforms an entity's vector.

Knows vectors and parameters; nothing of relations' ids, tables, losses or training.

Factors start as small random numbers, shifts at zero. At the identity map an entity would be its
own best match, and sampled negatives, which hardly ever hold the entity itself, would not correct
that (WN18RR, ComplEx, 10 epochs: filtered MRR .17 from the identity, .45 from small factors).

Axes: N vectors, R relations, D dimension. Parameters carry the same leading axes as the vectors
that they transform, or axes that broadcast against them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


class Operator(ABC):
    """A parametrised map from R^D to R^D."""

    @abstractmethod
    def initial(
        self, count: int, dimension: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the parameters with which training begins.

        Args:
            count: R, relations that have this operator.
            dimension: D, floats in an embedding.
            scale: standard deviation of random numbers.
            generator: their source.

        Returns:
            float32 tensors by parameter name, shapes [R, ...] of the operator's own choice.
        """

    @abstractmethod
    def apply(self, rows_ND: Tensor, parameters: Parameters) -> Tensor:
        """Return the transformed vectors, shape [..., D]."""

    def magnitudes(self, rows_ND: Tensor) -> Tensor:
        """Return the absolute values that a norm of the vectors is made of, shape [..., M]."""
        return rows_ND.abs()

    def parameter_magnitudes(self, parameters: Parameters) -> Tensor | None:
        """Return the same for the parameters, shape [..., M], or None where there are none."""
        flat = [value.abs().flatten(1) for value in parameters.values()]
        return torch.cat(flat, dim=1) if flat else None


class Identity(Operator):
    """x. Ignores the relation."""

    def initial(
        self, count: int, dimension: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return no parameters."""
        return {}

    def apply(self, rows_ND: Tensor, parameters: Parameters) -> Tensor:
        """Return the vectors as they are."""
        return rows_ND


class Diagonal(Operator):
    """d * x. With dot: DistMult (Yang et al., ICLR 2015, eq. 6)."""

    def initial(
        self, count: int, dimension: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return random factors, shape [R, D]."""
        return {"diagonal": torch.randn(count, dimension, generator=generator) * scale}

    def apply(self, rows_ND: Tensor, parameters: Parameters) -> Tensor:
        """Return the element-wise product."""
        return rows_ND * parameters["diagonal"]


class Translation(Operator):
    """x + t. With l2: TransE (Bordes et al., NIPS 2013, eq. 1)."""

    def initial(
        self, count: int, dimension: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return zeros, shape [R, D]."""
        return {"translation": torch.zeros(count, dimension)}

    def apply(self, rows_ND: Tensor, parameters: Parameters) -> Tensor:
        """Return the sum."""
        return rows_ND + parameters["translation"]


class ComplexDiagonal(Operator):
    """(a + bi) * x in C^(D/2). With dot: ComplEx (Trouillon et al., ICML 2016, eq. 9).

    The first half of a vector holds the real parts, the second half the imaginary ones, so that
    the dot product of two vectors in R^D is the real part of their Hermitian product.
    """

    def initial(
        self, count: int, dimension: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return random real and imaginary parts, shape [R, D/2] each."""
        real, imag = torch.randn(2, count, dimension // 2, generator=generator) * scale
        return {"real": real, "imag": imag}

    def apply(self, rows_ND: Tensor, parameters: Parameters) -> Tensor:
        """Return the complex product, real parts first."""
        real, imag = rows_ND.chunk(2, dim=-1)
        a, b = parameters["real"], parameters["imag"]
        return torch.cat((real * a - imag * b, real * b + imag * a), dim=-1)

    def magnitudes(self, rows_ND: Tensor) -> Tensor:
        """Return the moduli, shape [..., D/2] (Lacroix et al., ICML 2018, sec. 5)."""
        real, imag = rows_ND.chunk(2, dim=-1)
        return _modulus(real, imag)

    def parameter_magnitudes(self, parameters: Parameters) -> Tensor:
        """Return the moduli of the coefficients, shape [..., D/2]."""
        return _modulus(parameters["real"], parameters["imag"])


def _modulus(real: Tensor, imag: Tensor) -> Tensor:
    # The offset keeps the gradient of the root finite at zero.
    return torch.sqrt(real * real + imag * imag + 1e-30)


OPERATORS: dict[str, Operator] = {
    "identity": Identity(),
    "diagonal": Diagonal(),
    "translation": Translation(),
    "complex_diagonal": ComplexDiagonal(),
}
