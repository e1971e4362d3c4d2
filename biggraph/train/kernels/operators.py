"""Operators and their derivatives over blocks of rows; see `model.operators` for the formulae.

Shapes: x, out [P, D]; parameters [distinct relations, W] with the operator's tensors side by side;
place int32 [P], row of the parameters for each row of x.
"""

from __future__ import annotations

from biggraph.train.kernels.jit import piece

IDENTITY, DIAGONAL, TRANSLATION, COMPLEX = range(4)

CODES = {
    "identity": IDENTITY,
    "diagonal": DIAGONAL,
    "translation": TRANSLATION,
    "complex_diagonal": COMPLEX,
}


@piece
def apply(code, x, parameters, place, out):
    """Fill out = operator(x)."""
    if code == DIAGONAL:
        for p in range(x.shape[0]):
            row = parameters[place[p]]
            for d in range(x.shape[1]):
                out[p, d] = x[p, d] * row[d]
    elif code == TRANSLATION:
        for p in range(x.shape[0]):
            row = parameters[place[p]]
            for d in range(x.shape[1]):
                out[p, d] = x[p, d] + row[d]
    elif code == COMPLEX:
        _complex_apply(x, parameters, place, out)
    else:
        for p in range(x.shape[0]):
            for d in range(x.shape[1]):
                out[p, d] = x[p, d]


@piece
def derive(code, x, parameters, place, gradient, parameter_gradient):
    """gradient: in, of the operator's output; out, of x. Adds to that of the parameters."""
    if code == DIAGONAL:
        for p in range(x.shape[0]):
            row, sums = parameters[place[p]], parameter_gradient[place[p]]
            for d in range(x.shape[1]):
                sums[d] += gradient[p, d] * x[p, d]
                gradient[p, d] *= row[d]
    elif code == TRANSLATION:
        for p in range(x.shape[0]):
            sums = parameter_gradient[place[p]]
            for d in range(x.shape[1]):
                sums[d] += gradient[p, d]
    elif code == COMPLEX:
        _complex_derive(x, parameters, place, gradient, parameter_gradient)


@piece
def _complex_apply(x, parameters, place, out):
    half = x.shape[1] // 2
    for p in range(x.shape[0]):
        row = parameters[place[p]]
        real, imag, a, b = x[p, :half], x[p, half:], row[:half], row[half:]
        out_real, out_imag = out[p, :half], out[p, half:]
        for d in range(half):
            out_real[d] = real[d] * a[d] - imag[d] * b[d]
            out_imag[d] = real[d] * b[d] + imag[d] * a[d]


@piece
def _complex_derive(x, parameters, place, gradient, parameter_gradient):
    half = x.shape[1] // 2
    for p in range(x.shape[0]):
        row, sums = parameters[place[p]], parameter_gradient[place[p]]
        real, imag, a, b = x[p, :half], x[p, half:], row[:half], row[half:]
        g_real, g_imag = gradient[p, :half], gradient[p, half:]
        sum_a, sum_b = sums[:half], sums[half:]
        for d in range(half):
            u, v = g_real[d], g_imag[d]
            sum_a[d] += u * real[d] + v * imag[d]
            sum_b[d] += v * real[d] - u * imag[d]
            g_real[d] = u * a[d] + v * b[d]
            g_imag[d] = v * a[d] - u * b[d]
