"""Elementary functions that the compiler can turn into vector instructions; about 1e-7 exact."""

from __future__ import annotations

import numpy as np

from biggraph.train.kernels.jit import piece

_F = np.float32


@piece
def exp(x):
    """Return e^x; 0 below -87. Range reduction and polynomial as in Cephes' expf (Moshier)."""
    bounded = min(max(x, _F(-87.3)), _F(88.0))
    n = np.floor(bounded * _F(1.44269504) + _F(0.5))
    f = bounded - n * _F(0.693359375) + n * _F(2.12194440e-4)
    y = _F(1.9875691500e-4)
    y = y * f + _F(1.3981999507e-3)
    y = y * f + _F(8.3334519073e-3)
    y = y * f + _F(4.1665795894e-2)
    y = y * f + _F(1.6666665459e-1)
    y = y * f + _F(5.0000001201e-1)
    y = y * f * f + f + _F(1.0)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    # A comparison with not-a-number is false, so that it goes on as what it is.
    return _F(0.0) if x < _F(-87.0) else y * power + (x - x)


@piece
def log(x):
    """Return the logarithm of a normal positive number: exponent, and 2 artanh((m - 1)/(m + 1)).

    The mantissa m lies in [0.70, 1.41), so that the series of artanh needs five terms.
    """
    bits = np.float32(x).view(np.int32)
    exponent = (bits - np.int32(0x3F333333)) >> np.int32(23)
    m = np.int32(bits - (exponent << np.int32(23))).view(np.float32)
    z = (m - _F(1.0)) / (m + _F(1.0))
    s = z * z
    y = _F(2 / 9)
    y = y * s + _F(2 / 7)
    y = y * s + _F(2 / 5)
    y = y * s + _F(2 / 3)
    y = y * s + _F(2.0)
    return _F(exponent) * _F(0.6931471805599453) + z * y


@piece
def softplus(x):
    """Return log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), the latter as 2 artanh(e / (2 + e))."""
    e = exp(-abs(x))
    z = e / (_F(2.0) + e)
    s = z * z
    y = _F(1 / 13)
    y = y * s + _F(1 / 11)
    y = y * s + _F(1 / 9)
    y = y * s + _F(1 / 7)
    y = y * s + _F(1 / 5)
    y = y * s + _F(1 / 3)
    y = y * s + _F(1.0)
    return max(x, _F(0.0)) + _F(2.0) * z * y


@piece
def sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    return _F(1.0) / (_F(1.0) + exp(-x))
