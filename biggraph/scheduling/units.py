"""What comes into memory and leaves it as one: the partitions behind one side of a bucket.

With one entity type, row i and column i of the grid of buckets are the same table, so the unit i is
that table. Where no type stands on both sides (users on the left, items on the right), row i and
column i have nothing in common and are two units. Where types stand on both sides, unit i is every
partition of number i that has edges. So each bucket joins two units, or lies in one.

Knows which partitions buckets need; nothing of orders, sizes or schemas.
"""

from __future__ import annotations

from collections.abc import Mapping

from biggraph.types import Bucket, PartitionKey

Unit = frozenset[PartitionKey]
Needs = Mapping[Bucket, frozenset[PartitionKey]]
# The unit on the left and on the right of each bucket; empty where that side needs nothing.
Ends = dict[Bucket, tuple[Unit, Unit]]


def ends_of(needs: Needs) -> Ends:
    """Return the two units that each bucket joins, in the order of the buckets.

    Args:
        needs: partitions that training each bucket needs.
    """
    left, right = _types_by_side(needs)
    found: Ends = {}
    keys_by_index: dict[int, set[PartitionKey]] = {}
    for key in frozenset[PartitionKey]().union(*needs.values()):
        keys_by_index.setdefault(key.index, set()).add(key)
    units = {i: _units(keys, left, right) for i, keys in keys_by_index.items()}
    nothing: tuple[Unit, Unit] = (frozenset(), frozenset())
    for bucket in sorted(needs):
        found[bucket] = (units.get(bucket.lhs, nothing)[0], units.get(bucket.rhs, nothing)[1])
    return found


def _units(keys: set[PartitionKey], left: set[str], right: set[str]) -> tuple[Unit, Unit]:
    """Return the left and the right unit of one number, which are the same if they overlap."""
    on_left = frozenset(key for key in keys if key.entity_type in left)
    on_right = frozenset(key for key in keys if key.entity_type in right)
    if on_left & on_right:
        return on_left | on_right, on_left | on_right
    return on_left, on_right


def _types_by_side(needs: Needs) -> tuple[set[str], set[str]]:
    """Return the entity types on the left and on the right.

    Off the diagonal the number of a partition says on which side it is. A type that is nowhere
    else than on the diagonal counts as being on both sides.
    """
    left, right, seen = set[str](), set[str](), set[str]()
    for bucket, keys in needs.items():
        for name, index in keys:
            seen.add(name)
            if bucket.lhs != bucket.rhs:
                (left if index == bucket.lhs else right).add(name)
    elsewhere = left | right
    return left | (seen - elsewhere), right | (seen - elsewhere)
