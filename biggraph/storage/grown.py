"""Sequences that grow without copying, for states that follow one another.

Knows nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T", bound=Hashable)


class Grown(Sequence[T], Generic[T]):
    """An immutable sequence; longer ones share its items, so that n additions cost O(n).

    >>> short = Grown().plus("ab")
    >>> long = short.plus("c")
    >>> list(short), list(long), "c" in short, "c" in long
    (['a', 'b'], ['a', 'b', 'c'], False, True)
    """

    def __init__(self) -> None:
        self._items: list[T] = []
        self._places: dict[T, int] = {}  # of the first of equal ones
        self._length = 0

    def plus(self, items: Iterable[T]) -> Grown[T]:
        """Return this sequence with more items behind it."""
        longer: Grown[T] = Grown()
        if self._length == len(self._items):
            longer._items, longer._places = self._items, self._places
        else:  # another one grew from this already
            longer._append(self)
        longer._append(items)
        longer._length = len(longer._items)
        return longer

    def _append(self, items: Iterable[T]) -> None:
        for item in items:
            self._places.setdefault(item, len(self._items))
            self._items.append(item)

    def __contains__(self, item: object) -> bool:
        return self._places.get(item, self._length) < self._length  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[T]:
        return iter(self._items[: self._length])

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[: self._length][index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]
