"""Where a worker is in its plan: what it needs next, and when it needs what it has.

For one that follows its plan exactly, the future is known: what is needed last leaves memory first,
and what comes is read ahead. Knows plans; nothing of tables, files or memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from biggraph.scheduling.plans import State
from biggraph.scheduling.units import Needs
from biggraph.types import Bucket, PartitionKey


class Route:
    """The way through the plans of one epoch after another.

    Args:
        plan_of: makes the plan of an epoch, from 1.
        needs: partitions that training each bucket needs.
    """

    def __init__(self, plan_of: Callable[[int], list[State]], needs: Needs) -> None:
        self._plan_of, self._needs = plan_of, needs
        self._epoch = 0
        self._plan: list[State] = []
        self._places: dict[Bucket, tuple[int, int]] = {}  # position in the epoch, state
        self._uses: dict[PartitionKey, list[int]] = {}  # positions of buckets that need it
        self._position = self._state = 0

    @property
    def state(self) -> State:
        """The state of the bucket reached last; its buckets may be trained in any order."""
        return self._plan[self._state]

    def reach(self, epoch: int, bucket: Bucket) -> list[PartitionKey]:
        """Go on to the bucket that is trained next.

        Returns:
            The partitions needed after it, the soonest first, to the end of the next state.
        """
        if epoch != self._epoch:
            self._begin(epoch)
        self._position, self._state = self._places[bucket]
        near = self._plan[self._state : self._state + 2]
        end = self._places[near[-1].buckets[-1]][0]
        keys = frozenset[PartitionKey]().union(*(state.loaded for state in near))
        coming = sorted((self._use(key, self._position + 1), key) for key in keys)
        return [key for use, key in coming if use <= end]

    def next_use(self, key: PartitionKey) -> int:
        """Return the position of the first bucket that needs a partition, now or later.

        The number of buckets of the epoch, where none does.
        """
        return self._use(key, self._position)

    def _use(self, key: PartitionKey, position: int) -> int:
        """Return the position of the first bucket from `position` on that needs a partition."""
        uses = self._uses.get(key, [])
        at = bisect_left(uses, position)
        return uses[at] if at < len(uses) else len(self._places)

    def _begin(self, epoch: int) -> None:
        self._epoch, self._plan = epoch, self._plan_of(epoch)
        self._places, self._uses = {}, {}
        for i, state in enumerate(self._plan):
            for bucket in state.buckets:
                for key in self._needs[bucket]:
                    self._uses.setdefault(key, []).append(len(self._places))
                self._places[bucket] = (len(self._places), i)
