"""The gradient of the N3 norm of vectors, sum_m |x_m|^3; see `model.regularizers`."""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels.jit import piece
from biggraph.train.kernels.operators import COMPLEX

_F = np.float32


@piece
def add_n3(code, x, gradient, weight):
    """Add `weight` times the gradient of one vector's norm: 3 |x_m| x_m, moduli for ComplEx."""
    factor = _F(3.0) * weight
    if code != COMPLEX:
        for d in range(x.shape[0]):
            gradient[d] += factor * abs(x[d]) * x[d]
        return
    half = x.shape[0] // 2
    real, imag, g_real, g_imag = x[:half], x[half:], gradient[:half], gradient[half:]
    for d in range(half):
        modulus = factor * np.sqrt(real[d] * real[d] + imag[d] * imag[d])
        g_real[d] += modulus * real[d]
        g_imag[d] += modulus * imag[d]
