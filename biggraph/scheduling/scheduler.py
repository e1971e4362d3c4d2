"""Who trains which bucket of one epoch, as a state machine that locks partitions.

The rules:

1. An owner (a worker; any string) runs at most one bucket at a time, and every bucket is finished
   exactly once: `acquire` grants it, `finish` ends it; `lost` puts it back at its place.
2. A bucket may be granted when every partition that it needs is free or held by that owner. The
   owner then holds them, and keeps holding them after `finish`, until `give_back` or `lost`.
   So no two owners ever hold the same partition.
3. Among the buckets that may be granted, the first in the order is; with affinity, one that needs
   the fewest partitions that the owner does not hold, ties by the order.
4. Every answer says what to give back (`evict`). An owner alone keeps all that it holds: nobody
   else wants it, and its cache may hold as much as fits. As soon as another owner is known, it
   has to give back what its new bucket does not need and a bucket still pending does. A waiting
   owner gives back by the same rule, so an owner that waits never blocks another.
5. Where no bucket may be granted, the answer is `Wait` as long as one is pending or running (its
   owner may be lost), and `EpochDone` afterwards. With others about, an owner that is done gives
   back everything; alone, it keeps its tables for the next epoch.

Nothing here knows tensors, files, time or messages: an owner that waits asks again, when is not
decided here. A call that breaks the protocol is a defect of the caller and raises ValueError.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from biggraph.types import Bucket, PartitionKey

Partitions = frozenset[PartitionKey]


@dataclass(frozen=True, slots=True)
class Grant:
    """Train this bucket, after giving back `evict`."""

    bucket: Bucket
    evict: Partitions


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to train now: give back `evict` and ask again later."""

    evict: Partitions


@dataclass(frozen=True, slots=True)
class EpochDone:
    """Every bucket of the epoch is finished: give back `evict`."""

    evict: Partitions


class BucketScheduler:
    """The state of one epoch.

    Sets of partitions are integers with one bit each, so looking through the 16,384 buckets of
    a 128 × 128 grid takes a millisecond or two.

    Args:
        order: the buckets to train, in the order wanted; after a resume, those not done yet.
        needs: for each bucket the partitions that it locks.
        affinity: False: strictly the first bucket of the order that is free, so that a lone owner
            follows the order exactly; True: prefer buckets that need few partitions loaded.

    Raises:
        ValueError: a bucket occurs twice in the order.
    """

    def __init__(
        self, order: Sequence[Bucket], needs: Mapping[Bucket, Partitions], *, affinity: bool
    ) -> None:
        if len(set(order)) != len(order):
            raise ValueError("a bucket occurs twice in the order")
        keys = dict.fromkeys(key for bucket in order for key in sorted(needs[bucket]))
        self._keys = list(keys)
        self._bits = {key: 1 << i for i, key in enumerate(self._keys)}
        self._buckets = list(order)
        self._needs = [self._mask(needs[bucket]) for bucket in order]
        self._affinity = affinity
        self._pending = list(range(len(order)))  # positions in the order, ascending
        self._running: dict[str, int] = {}
        self._held: dict[str, int] = {}  # every owner known, and the partitions that it holds
        self._done: list[int] = []

    @property
    def done(self) -> list[Bucket]:
        """The finished buckets, in the order in which they were finished."""
        return [self._buckets[position] for position in self._done]

    def holds(self, owner: str) -> Partitions:
        """Return the partitions that `owner` holds."""
        return self._partitions(self._held.get(owner, 0))

    def acquire(self, owner: str) -> Grant | Wait | EpochDone:
        """Ask for a bucket to train.

        Raises:
            ValueError: the owner has not finished its last bucket.
        """
        if owner in self._running:
            raise ValueError(f"{owner} asked for a bucket while it runs one")
        self._held.setdefault(owner, 0)
        position = self._choose(owner)
        if position is not None:
            return self._grant(owner, position)
        if self._pending or self._running:
            return Wait(self._partitions(self._surplus(owner)))
        alone = len(self._held) == 1
        return EpochDone(self._partitions(0 if alone else self._held[owner]))

    def peek(self, owner: str) -> Bucket | None:
        """Return the bucket that `acquire` would grant after the present one, for prefetching.

        Other owners may change what is free, so this is a guess unless the owner is alone.
        """
        position = self._choose(owner)
        return None if position is None else self._buckets[position]

    def give_back(self, owner: str, partitions: Iterable[PartitionKey]) -> None:
        """Release partitions, after their tables were saved where the next owner finds them.

        Raises:
            ValueError: the owner does not hold them, or its running bucket needs them.
        """
        mask, held = self._mask(partitions), self._held.get(owner, 0)
        if mask & ~held:
            raise ValueError(f"{owner} gave back partitions that it does not hold")
        if owner in self._running and mask & self._needs[self._running[owner]]:
            raise ValueError(f"{owner} gave back partitions that its running bucket needs")
        self._held[owner] = held & ~mask

    def finish(self, owner: str) -> None:
        """Count the running bucket of `owner` as trained.

        Raises:
            ValueError: the owner runs none.
        """
        if owner not in self._running:
            raise ValueError(f"{owner} finished a bucket but runs none")
        self._done.append(self._running.pop(owner))

    def lost(self, owner: str) -> None:
        """Forget an owner: its bucket is pending again, what it held is free."""
        if owner in self._running:
            insort(self._pending, self._running.pop(owner))
        self._held.pop(owner, None)

    def _grant(self, owner: str, position: int) -> Grant:
        del self._pending[bisect_left(self._pending, position)]
        self._running[owner] = position
        self._held[owner] |= self._needs[position]
        surplus = self._surplus(owner) & ~self._needs[position]
        return Grant(self._buckets[position], self._partitions(surplus))

    def _choose(self, owner: str) -> int | None:
        """Return the position of the best bucket that may be granted, by rules 2 and 3."""
        needs, foreign = self._needs, self._held_by_others(owner)
        free = (position for position in self._pending if not needs[position] & foreign)
        if not self._affinity:
            return next(free, None)
        not_held = ~self._held.get(owner, 0)
        best, fewest = None, len(self._keys) + 1
        for position in free:
            loads = (needs[position] & not_held).bit_count()
            if loads < fewest:
                best, fewest = position, loads
                if not loads:
                    break
        return best

    def _surplus(self, owner: str) -> int:
        """Return what `owner` holds and others may want, by rule 4."""
        if len(self._held) == 1:
            return 0
        surplus, wanted = self._held[owner], 0
        for position in self._pending:
            wanted |= self._needs[position]
            if not surplus & ~wanted:
                break
        return surplus & wanted

    def _held_by_others(self, owner: str) -> int:
        foreign = 0
        for other, held in self._held.items():
            if other != owner:
                foreign |= held
        return foreign

    def _mask(self, keys: Iterable[PartitionKey]) -> int:
        mask = 0
        for key in keys:
            if key not in self._bits:
                raise ValueError(f"partition {key} is needed by no bucket of this epoch")
            mask |= self._bits[key]
        return mask

    def _partitions(self, mask: int) -> Partitions:
        return frozenset(self._iterate(mask))

    def _iterate(self, mask: int) -> Iterator[PartitionKey]:
        while mask:
            low = mask & -mask
            yield self._keys[low.bit_length() - 1]
            mask ^= low
