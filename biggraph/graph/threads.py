"""Two ways to use a second core: make the next item ahead of time, do tasks side by side.

The work releases the interpreter lock: pyarrow, Numba kernels, hashing, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

THREADS = 2  # tasks at once; each holds its own share of the memory budget
T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, none of which is None, while a thread makes the next one."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(next, items, None)
        while (item := future.result()) is not None:
            future = thread.submit(next, items, None)
            yield item


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the result for each item in order; after an error no further task starts."""
    threads = ThreadPoolExecutor(THREADS)
    try:
        yield from threads.map(function, items)
    finally:
        threads.shutdown(cancel_futures=True)
