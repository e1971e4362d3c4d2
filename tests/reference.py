"""Naive versions of everything that the package does cleverly: loops, plain Python, float64.

Each is written from its formula alone; tests compare the package with these.
"""

from __future__ import annotations

import math

import numpy as np


def apply_operator(name, x, parameters):
    """Transform one vector."""
    x = np.asarray(x, dtype=np.float64)
    if name == "identity":
        return x
    if name == "diagonal":
        return np.array([a * b for a, b in zip(x, parameters["diagonal"], strict=True)])
    if name == "translation":
        return np.array([a + b for a, b in zip(x, parameters["translation"], strict=True)])
    half = len(x) // 2
    numbers = [complex(x[i], x[half + i]) for i in range(half)]
    factors = [complex(a, b) for a, b in zip(parameters["real"], parameters["imag"], strict=True)]
    product = [a * b for a, b in zip(numbers, factors, strict=True)]
    return np.array([z.real for z in product] + [z.imag for z in product])


def compare(name, a, b):
    """Return the similarity of two vectors."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if name == "dot":
        return float(sum(x * y for x, y in zip(a, b, strict=True)))
    if name == "cos":
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        return compare("dot", a, b) / lengths if lengths else 0.0
    squared = float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return -squared if name == "squared_l2" else -math.sqrt(squared)


def loss(name, positive, negatives, *, margin=0.1, temperature=0.0):
    """Return the loss of one positive; `negatives` holds no masked ones."""
    if name == "softmax":
        return -positive + math.log(sum(math.exp(s) for s in [positive, *negatives]))
    if not negatives:
        return math.log(1 + math.exp(-positive)) if name == "logistic" else 0.0
    if temperature:
        raw = [math.exp(temperature * n) for n in negatives]
        weights = [r / sum(raw) for r in raw]
    else:
        weights = [1 / len(negatives)] * len(negatives)
    if name == "logistic":
        own = math.log(1 + math.exp(-positive))
        return own + sum(
            w * math.log(1 + math.exp(n)) for w, n in zip(weights, negatives, strict=True)
        )
    return sum(w * max(0.0, margin - positive + n) for w, n in zip(weights, negatives, strict=True))


def n3(operator, vector):
    """Return the cubed 3-norm; moduli for complex vectors."""
    if operator == "complex_diagonal":
        half = len(vector) // 2
        return sum(abs(complex(vector[i], vector[half + i])) ** 3 for i in range(half))
    return sum(abs(x) ** 3 for x in vector)


def adagrad(values, sums, gradient, lr, *, row_wise):
    """Return one row's new values and sums."""
    values, gradient = np.asarray(values, np.float64), np.asarray(gradient, np.float64)
    added = np.mean(gradient**2) if row_wise else gradient**2
    sums = sums + added
    return values - lr * gradient / (np.sqrt(sums) + 1e-10), sums
