"""One thread for matrix products, since training threads are as many as there are cores.

Numba takes matrix products from the BLAS of scipy. Knows nothing of training.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import scipy.linalg.cython_blas  # noqa: F401 - loads the library whose threads are counted
import threadpoolctl


@functools.cache
def _controller() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let every matrix product of this process run in the thread that asks for it."""
    with _controller().limit(limits=1):
        yield
