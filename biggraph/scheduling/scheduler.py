"""Who trains which bucket of one epoch, as a state machine that locks partitions.

The rules:

1. An owner (a worker; any string) runs at most one bucket at a time, and every bucket is finished
   exactly once: `acquire` grants it, `finish` ends it; `lost` puts it back at its place.
2. A bucket may be granted when every partition that it needs is free or held by that owner. The
   owner then holds them, and keeps holding them after `finish`, until `give_back` or `lost`.
   So no two owners ever hold the same partition.
3. Among the buckets that may be granted, the first in the order is; with affinity, the best by
   these criteria in turn, ties by the order:
   a. while partitions are untrained (`trained`): it joins an untrained partition to trained ones;
      else it needs trained ones only; else it needs as few partitions as possible;
   b. it needs the fewest partitions that the owner has to load: neither holds nor has cached;
   c. it needs the fewest partitions that the owner does not hold;
   d. with other owners about: the most pending buckets need its partitions. This comes before
      b and c while one partition is needed by more buckets than an owner's share of those
      pending: that partition's turn-taking would end the epoch, not the loads.
4. Every answer says what to give back (`evict`). An owner alone keeps all that it holds: nobody
   else wants it, and its cache may hold as much as fits. As soon as another owner is known, it
   has to give back what its new bucket does not need and a bucket still pending does. A waiting
   owner gives back by the same rule, so an owner that waits never blocks another.
5. Where no bucket may be granted, the answer is `Wait` as long as one is pending or running (its
   owner may be lost), and `EpochDone` afterwards. With others about, an owner that is done gives
   back everything; alone, it keeps its tables for the next epoch.

Nobody waits because of rule 3: it only chooses among buckets that may be granted.

Nothing here knows tensors, files, time or messages: an owner that waits asks again, when is not
decided here. A call that breaks the protocol is a defect of the caller and raises ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.types import Bucket, PartitionKey

Partitions = frozenset[PartitionKey]

_FREE = -1  # holder of a partition that nobody holds
_STRANGER = -2  # number of an owner that is not known yet, so holds nothing


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

    Arrays over partitions end in one entry that stands for none: it fills up the columns of
    buckets that need fewer partitions than others, is always free and never counts.

    Args:
        order: the buckets to train, in the order wanted; after a resume, those not done yet.
        needs: for each bucket the partitions that it locks.
        affinity: False: strictly the first bucket of the order that is free, so that a lone owner
            follows the order exactly; True: the best bucket by rule 3.
        trained: the partitions trained before this epoch; None: all, rule 3a is off.

    Raises:
        ValueError: a bucket occurs twice in the order.
    """

    def __init__(
        self,
        order: Sequence[Bucket],
        needs: Mapping[Bucket, Partitions],
        *,
        affinity: bool,
        trained: Partitions | None = None,
    ) -> None:
        self._buckets = list(order)
        self._position = {bucket: i for i, bucket in enumerate(order)}
        if len(self._position) != len(order):
            raise ValueError("a bucket occurs twice in the order")
        self._keys = sorted(frozenset().union(*(needs[bucket] for bucket in order)))
        self._index = {key: i for i, key in enumerate(self._keys)}
        self._needs = self._columns(needs)
        self._affinity = affinity
        self._pending = np.ones(len(order), bool)
        # Pending buckets that need each partition.
        self._wanted = np.bincount(self._needs.ravel(), minlength=len(self._keys) + 1)
        self._wanted[-1] = 0
        self._holder: NDArray[np.int64] = np.full(len(self._keys) + 1, _FREE, np.int64)
        self._numbers: dict[str, int] = {}  # every owner known, as `_holder` writes it
        self._next_number = 0
        self._running: dict[str, int] = {}
        self._granted: dict[int, None] = {}  # running and done, in the order of the grants
        self._done: dict[int, None] = {}
        self._trained = self._flags(self._keys if trained is None else trained & set(self._keys))
        self._joined = self._trained.copy()

    @property
    def done(self) -> list[Bucket]:
        """The finished buckets, in the order in which they were finished."""
        return [self._buckets[position] for position in self._done]

    @property
    def pending(self) -> int:
        """How many buckets are neither finished nor running."""
        return len(self._buckets) - len(self._granted)

    @property
    def owners(self) -> list[str]:
        """The owners known, in the order in which they came."""
        return list(self._numbers)

    def running(self, owner: str) -> Bucket | None:
        """Return the bucket that `owner` runs."""
        position = self._running.get(owner)
        return None if position is None else self._buckets[position]

    def holds(self, owner: str) -> Partitions:
        """Return the partitions that `owner` holds."""
        return self._partitions(self._mine(owner))

    def needed(self, owner: str) -> Partitions:
        """Return the partitions that the running bucket of `owner` needs."""
        position = self._running.get(owner)
        needs = np.zeros(len(self._holder), bool)
        if position is not None:
            needs[self._needs[:, position]] = True
            needs[-1] = False
        return self._partitions(needs)

    def acquire(self, owner: str, cached: Partitions = frozenset()) -> Grant | Wait | EpochDone:
        """Ask for a bucket to train.

        Args:
            owner: who asks.
            cached: partitions whose present version the owner has in memory, held or not.

        Raises:
            ValueError: the owner has not finished its last bucket.
        """
        self._join(owner)
        position = self._choose(owner, cached)
        if position is not None:
            self._grant(owner, position)
            surplus = self._surplus(owner)
            surplus[self._needs[:, position]] = False
            return Grant(self._buckets[position], self._partitions(surplus))
        if len(self._done) < len(self._buckets):
            return Wait(self._partitions(self._surplus(owner)))
        return EpochDone(frozenset() if self._alone(owner) else self.holds(owner))

    def peek(self, owner: str, cached: Partitions = frozenset()) -> Bucket | None:
        """Return the bucket that `acquire` would grant after the present one, for prefetching.

        Other owners may change what is free, so this is a guess unless the owner is alone.
        """
        position = self._choose(owner, cached)
        return None if position is None else self._buckets[position]

    def claim(self, owner: str, bucket: Bucket) -> bool:
        """Grant this very bucket if it may be granted; return whether it was.

        A scheduler that was made anew so learns from its owners what they are training.

        Raises:
            ValueError: the owner has not finished its last bucket.
        """
        self._join(owner)
        position = self._position.get(bucket)
        if position is None or not self._pending[position]:
            return False
        if not self._open(owner)[self._needs[:, position]].all():
            return False
        self._grant(owner, position)
        return True

    def give_back(self, owner: str, partitions: Iterable[PartitionKey]) -> None:
        """Release partitions, after their tables were saved where the next owner finds them.

        Raises:
            ValueError: the owner does not hold them, or its running bucket needs them.
        """
        released = self._flags(partitions)
        if (released & ~self._mine(owner)).any():
            raise ValueError(f"{owner} gave back partitions that it does not hold")
        if owner in self._running and released[self._needs[:, self._running[owner]]].any():
            raise ValueError(f"{owner} gave back partitions that its running bucket needs")
        self._holder[released] = _FREE

    def finish(self, owner: str) -> None:
        """Count the running bucket of `owner` as trained.

        Raises:
            ValueError: the owner runs none.
        """
        if owner not in self._running:
            raise ValueError(f"{owner} finished a bucket but runs none")
        self._done[self._running.pop(owner)] = None

    def lost(self, owner: str, undone: Iterable[Bucket] = ()) -> None:
        """Forget an owner: its bucket is pending again, what it held is free.

        Args:
            owner: who is gone.
            undone: finished buckets whose result is lost with it: they are pending again.

        Raises:
            ValueError: a bucket of `undone` is not finished.
        """
        again = [self._position.get(bucket, -1) for bucket in undone]
        if any(position not in self._done for position in again):
            raise ValueError(f"{owner} was lost with buckets that were not finished")
        if owner in self._running:
            again.append(self._running.pop(owner))
        for position in again:
            self._done.pop(position, None)
            del self._granted[position]
            self._count(position, 1)
        self._holder[self._mine(owner)] = _FREE
        self._numbers.pop(owner, None)
        self._joined = self._trained.copy()
        for position in self._granted:
            self._join_partitions(position)

    def _join(self, owner: str) -> None:
        if owner in self._running:
            raise ValueError(f"{owner} asked for a bucket while it runs one")
        if owner not in self._numbers:
            self._numbers[owner] = self._next_number
            self._next_number += 1

    def _grant(self, owner: str, position: int) -> None:
        self._running[owner] = position
        self._granted[position] = None
        self._count(position, -1)
        self._holder[self._needs[:, position]] = self._numbers[owner]
        self._holder[-1] = _FREE
        self._join_partitions(position)

    def _choose(self, owner: str, cached: Partitions) -> int | None:
        """Return the position of the best bucket that may be granted, by rules 2 and 3."""
        # `take` gathers several times faster than an index in brackets.
        free = self._open(owner).take(self._needs).all(axis=0) & self._pending
        best = np.flatnonzero(free)
        if not len(best):
            return None
        if self._affinity:
            if not self._joined[:-1].all():
                best = _least(best, self._strangeness(self._needs.take(best, axis=1)))
            for costs in self._costs(owner, cached):
                best = _least(best, costs.take(self._needs.take(best, axis=1)).sum(axis=0))
        return int(best[0])

    def _strangeness(self, needs: NDArray[Any]) -> NDArray[Any]:
        """Return the rank of buckets by rule 3a, given the columns of what they need."""
        joined: NDArray[Any] = self._joined.take(needs).sum(axis=0)
        strange: NDArray[Any] = (needs < len(self._keys)).sum(axis=0) - joined
        if not self._joined.any():
            return -strange  # the first bucket: the more it joins, the more can follow at once
        alone: NDArray[Any] = 1 + strange
        return np.where(joined > 0, strange == 0, alone)

    def _costs(self, owner: str, cached: Partitions) -> list[NDArray[Any]]:
        """Return what each partition costs by rules 3b, 3c and 3d, in the order they count."""
        away = ~self._mine(owner)
        away[-1] = False
        loads = away.copy()
        loads[[self._index[key] for key in cached & self._index.keys()]] = False
        if self._alone(owner):
            return [loads, away]
        scarce = self._wanted.max() * len(self._numbers) >= self.pending
        return [-self._wanted, loads, away] if scarce else [loads, away, -self._wanted]

    def _surplus(self, owner: str) -> NDArray[np.bool_]:
        """Return what `owner` holds and others may want, by rule 4."""
        if self._alone(owner):
            return np.zeros(len(self._holder), bool)
        return self._mine(owner) & (self._wanted > 0)

    def _alone(self, owner: str) -> bool:
        return all(other == owner for other in self._numbers)

    def _mine(self, owner: str) -> NDArray[np.bool_]:
        mine: NDArray[np.bool_] = self._holder == self._numbers.get(owner, _STRANGER)
        return mine

    def _open(self, owner: str) -> NDArray[np.bool_]:
        free: NDArray[np.bool_] = self._holder == _FREE
        return free | self._mine(owner)

    def _count(self, position: int, change: int) -> None:
        """Make a bucket pending (+1) or not (-1)."""
        self._pending[position] = change > 0
        self._wanted[self._needs[:, position]] += change
        self._wanted[-1] = 0

    def _join_partitions(self, position: int) -> None:
        """Note which partitions a grant ties to those trained before, or begins with."""
        needs = self._needs[:, position]
        if not self._joined.any() or self._joined[needs].any():
            self._joined[needs] = True
            self._joined[-1] = False

    def _columns(self, needs: Mapping[Bucket, Partitions]) -> NDArray[Any]:
        """Return the indices of the partitions that each bucket needs, shape [most, buckets]."""
        most = max((len(needs[bucket]) for bucket in self._buckets), default=1)
        columns = np.full((most, len(self._buckets)), len(self._keys))
        for position, bucket in enumerate(self._buckets):
            for row, key in enumerate(needs[bucket]):
                columns[row, position] = self._index[key]
        return columns

    def _flags(self, keys: Iterable[PartitionKey]) -> NDArray[np.bool_]:
        flags = np.zeros(len(self._keys) + 1, bool)
        for key in keys:
            if key not in self._index:
                raise ValueError(f"partition {key} is needed by no bucket of this epoch")
            flags[self._index[key]] = True
        return flags

    def _partitions(self, flags: NDArray[np.bool_]) -> Partitions:
        return frozenset(self._keys[i] for i in np.flatnonzero(flags))


def _least(positions: NDArray[Any], cost: NDArray[Any]) -> NDArray[Any]:
    least: NDArray[Any] = positions[cost == cost.min()]
    return least
