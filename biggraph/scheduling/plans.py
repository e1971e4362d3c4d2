"""Plans of an epoch for a cache of several partitions: what is loaded and what is trained from it.

A plan is a sequence of states. Each says which partitions are in memory and which buckets are
trained from them, in the order wanted; they may also be mixed. A plan is a function of the buckets,
the slots and a seed alone. Partitions come and go by units (`units`): with one entity type, a slot
holds one partition.

Beside the orders of `orders`, which are walked with the best possible evictions, there are two that
are made for more than two slots:

- `beta` (Mohoney et al., "Marius: Learning Massive Graph Embeddings on a Single Machine", OSDI
  2021): all slots but one hold a group that stays while every other unit passes through the last
  slot; then the group is never needed again and the next one follows. For p units and c slots that
  takes `(p-c) + (x+1) * ((p-c) - x*(c-1)/2)` swaps, `x = (p-c) // (c-1)`; no plan takes less than
  `(p*(p-1)/2 - c*(c-1)/2) / (c-1)`.
- `comet` (Waleffe et al., "MariusGNN: Resource-Efficient Out-of-Core Training of Graph Neural
  Networks", EuroSys 2023): units are thrown together at random into groups, of which two or three
  are in memory; the groups take the way of `beta`, and each bucket goes to a random one of the
  states that have what it needs. So no run of buckets has one partition in common, and the next
  epoch brings other partitions together.

Knows nothing of tensors, files or who trains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from biggraph.scheduling.orders import ORDERS, Order
from biggraph.scheduling.units import Ends, Needs, Unit, ends_of
from biggraph.types import Bucket, PartitionKey

_COMET_GROUPS = 2  # in memory: the paper's choice; what is between two states is then half as much


@dataclass(frozen=True, slots=True)
class State:
    """A time in which the same partitions are in memory.

    Args:
        loaded: the partitions in memory.
        buckets: those trained meanwhile; they need nothing else.
    """

    loaded: frozenset[PartitionKey]
    buckets: tuple[Bucket, ...]


# The units in memory, the one that came last at the end.
Stay = tuple[Unit, ...]


def make_plan(name: str, needs: Needs, slots: int, seed: int) -> list[State]:
    """Return the plan of an epoch.

    Args:
        name: of the order, a key of `PLANS`.
        needs: partitions that training each bucket needs.
        slots: units in memory at a time.
        seed: of what is random.

    Raises:
        ValueError: fewer than two slots.
    """
    if slots < 2:
        raise ValueError(f"{slots} slots: a bucket may need two")
    return PLANS[name](ends_of(needs), slots, seed)


def swaps(plan: Sequence[State]) -> int:
    """Return how many partitions are loaded after those of the first state."""
    return sum(len(after.loaded - before.loaded) for before, after in pairwise(plan))


def choose_slots(name: str, needs: Needs, sizes: Mapping[PartitionKey, int], capacity: int) -> int:
    """Return how many units a plan may have in memory, at least 2.

    What is loaded for the next state needs room beside what is in use: one unit. With `comet`,
    whose states are trained as one, the tables of a state are copied into one: while that is done,
    there are those that came, the copy, and what still leaves the copy before.

    Args:
        name: of the order.
        needs: partitions that training each bucket needs.
        sizes: bytes of each partition's table.
        capacity: bytes that tables may take.
    """
    units = {unit for pair in ends_of(needs).values() for unit in pair if unit}
    fitting = 0
    for size in sorted((sum(sizes[key] for key in unit) for unit in units), reverse=True):
        capacity -= size
        fitting += capacity >= 0
    return max(2, 2 * fitting // 5 if name == "comet" else fitting - 1)


def capacity_of_cache(capacity: int, *, copies: bool) -> int:
    """Return what the tables of a cache may take, given what they and a copy of a state's may take.

    A state, half as much that is read ahead, and the copy: see `choose_slots`.
    """
    return capacity * 3 // 5 if copies else capacity


def _walk(order_of: Order, ends: Ends, slots: int, seed: int) -> list[State]:
    """Return the plan of a sequence of buckets, in which the unit needed last leaves first.

    No other choice loads less (Belady, "A study of replacement algorithms for a virtual-storage
    computer", IBM Systems Journal 1966).
    """
    order = order_of(list(ends), seed)
    uses: dict[Unit, list[int]] = {}  # positions to come, the next one at the end
    for position in range(len(order) - 1, -1, -1):
        for unit in set(ends[order[position]]):
            uses.setdefault(unit, []).append(position)
    loaded: list[Unit] = []
    steps: list[tuple[Stay, Bucket]] = []
    for bucket in order:
        for unit in dict.fromkeys(ends[bucket]):
            uses[unit].pop()
            if unit and unit not in loaded:
                if len(loaded) == slots:
                    others = [other for other in loaded if other not in ends[bucket]]
                    loaded.remove(max(others, key=lambda u: uses[u][-1] if uses[u] else len(order)))
                loaded.append(unit)
        steps.append((tuple(loaded), bucket))
    return _states(steps)


def _beta(ends: Ends, slots: int, seed: int) -> list[State]:
    rank = _shuffled_ranks(ends, seed)
    steps = []
    stays = _eliminate(ends, slots, rank)
    masks = _masks(stays)
    for bucket, (left, right) in ends.items():
        both = masks[left] & masks[right]
        first = (both & -both).bit_length() - 1
        late = max((stays[first].index(unit) for unit in (left, right) if unit), default=0)
        # The diagonal comes last: what is new is first trained against what is not.
        pair = sorted(rank[unit] for unit in (left, right) if unit)
        steps.append((first, late, left == right, pair, bucket))
    return _states((stays[first], bucket) for first, *_, bucket in sorted(steps))


def _comet(ends: Ends, slots: int, seed: int) -> list[State]:
    rng = random.Random(seed)
    most = max(1, slots // _COMET_GROUPS)
    group_of = _groups(ends, most, rng)
    joined = {bucket: (group_of[a], group_of[b]) for bucket, (a, b) in ends.items()}
    stays = _eliminate(joined, slots // most, _shuffled_ranks(joined, rng.getrandbits(63)))
    masks = _masks(stays)
    steps = []
    for bucket, (left, right) in joined.items():
        both = masks[left] & masks[right]
        for _ in range(rng.randrange(both.bit_count())):
            both &= both - 1  # pass over the lowest one
        steps.append(((both & -both).bit_length() - 1, rng.random(), bucket))
    return _states((stays[chosen], bucket) for chosen, _, bucket in sorted(steps))


def _groups(ends: Ends, most: int, rng: random.Random) -> dict[Unit, Unit]:
    """Throw units together at random, at most so many; left, right and both stay apart."""
    left, right = ({pair[side] for pair in ends.values()} - {frozenset()} for side in (0, 1))
    group_of: dict[Unit, Unit] = {frozenset(): frozenset()}
    for kind in (left - right, left & right, right - left):
        units = sorted(kind, key=sorted)
        rng.shuffle(units)
        count = -(-len(units) // most)
        for group in (units[i::count] for i in range(count)):
            group_of |= dict.fromkeys(group, frozenset().union(*group))
    return group_of


def _shuffled_ranks(ends: Ends, seed: int) -> dict[Unit, int]:
    units = sorted({unit for pair in ends.values() for unit in pair if unit}, key=sorted)
    random.Random(seed).shuffle(units)
    return {unit: i for i, unit in enumerate(units)}


def _eliminate(ends: Ends, slots: int, rank: Mapping[Unit, int]) -> list[Stay]:
    """Return what is in memory, step by step, so that the units of every bucket meet.

    Groups are made of units of the left side or of the right side, whichever loads less: where no
    entity type stands on both, only the units of the other side have to pass.
    """
    both_ways = []
    for side in (0, 1):
        anchors = {pair[side] or pair[1 - side] for pair in ends.values()} - {frozenset()}
        in_order = sorted(rank, key=lambda unit: (unit not in anchors, rank[unit]))
        both_ways.append(_pass_by_groups(in_order, len(anchors), _meetings(ends), slots))
    return min(both_ways, key=_loads)


def _meetings(ends: Ends) -> dict[Unit, set[Unit]]:
    """Return the units that each unit has to be in memory with, itself for what it needs alone."""
    meetings: dict[Unit, set[Unit]] = {}
    for left, right in ends.values():
        for unit, other in ((left, right), (right, left)):
            if unit:
                meetings.setdefault(unit, set()).add(other or unit)
    return meetings


def _pass_by_groups(
    units: list[Unit], anchors: int, meetings: dict[Unit, set[Unit]], slots: int
) -> list[Stay]:
    """Return the stays in which groups of anchors stay while all that they have to meet passes.

    Args:
        units: in the order in which they come.
        anchors: how many of the first ones may be in groups; every bucket has one of them.
        meetings: what each unit has still to meet; is emptied.
        slots: units in memory at a time.
    """
    stays: list[Stay] = []
    loaded: list[Unit] = []
    while left := [unit for unit in units[:anchors] if meetings[unit]]:
        group = sorted(left, key=lambda unit: unit not in loaded)[: slots - 1]
        wanted = set[Unit]().union(*(meetings[unit] for unit in group)) - set(group)
        passing = [unit for unit in units if unit in wanted]
        for unit in (*group, *sorted(passing, key=lambda unit: unit not in loaded)):
            if unit in loaded:
                continue
            if len(loaded) == slots:
                loaded.remove(_leaving(loaded, group, meetings))
            loaded.append(unit)
            stays.append(tuple(loaded))
            for other in loaded:
                meetings[unit].discard(other)
                meetings[other].discard(unit)
    # The slots are filled before anything is trained.
    filled = next((i for i, stay in enumerate(stays) if len(stay) == slots), len(stays) - 1)
    return stays[max(filled, 0) :] or [()]  # no bucket needs anything


def _leaving(loaded: list[Unit], group: list[Unit], meetings: Mapping[Unit, set[Unit]]) -> Unit:
    """Return a unit that is not of the group: one that has met all others, else the oldest."""
    return min((unit for unit in loaded if unit not in group), key=lambda u: bool(meetings[u]))


def _loads(stays: Sequence[Stay]) -> int:
    return sum(len(unit) for a, b in pairwise(stays) for unit in set(b) - set(a))


def _masks(stays: Sequence[Stay]) -> dict[Unit, int]:
    """Return for each unit the stays in which it is in memory, as the bits of a number."""
    masks: dict[Unit, int] = {frozenset(): (1 << len(stays)) - 1}
    for i, stay in enumerate(stays):
        for unit in stay:
            masks[unit] = masks.get(unit, 0) | 1 << i
    return masks


def _states(steps: Iterable[tuple[Stay, Bucket]]) -> list[State]:
    """Put buckets that follow each other into one state while nothing leaves."""
    found: list[tuple[Stay, list[Bucket]]] = []
    for stay, bucket in steps:
        if found and (found[-1][0] is stay or set(found[-1][0]) <= set(stay)):
            found[-1] = (stay, found[-1][1])
        else:
            found.append((stay, []))
        found[-1][1].append(bucket)
    return [State(frozenset().union(*stay), tuple(buckets)) for stay, buckets in found]


PLANS: dict[str, Callable[[Ends, int, int], list[State]]] = {
    **{name: partial(_walk, order) for name, order in ORDERS.items()},
    "beta": _beta,
    "comet": _comet,
}
