"""The shape of a graph: entity types and their partitions, relation types, the bucket grid.

Pure values; knows nothing of files or tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from biggraph.errors import InputError, did_you_mean
from biggraph.types import Bucket, PartitionKey, Side


@dataclass(frozen=True, slots=True)
class EntityType:
    """A class of entities, cut into partitions.

    Args:
        name: unique name.
        counts: entities in each partition; its length is the number of partitions.
    """

    name: str
    counts: tuple[int, ...]

    @property
    def partitions(self) -> int:
        """Number of partitions, at least 1."""
        return len(self.counts)

    @property
    def count(self) -> int:
        """Number of entities of this type."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class RelationType:
    """A kind of edge between two entity types."""

    name: str
    lhs: str
    rhs: str

    def entity_type(self, side: Side) -> str:
        """Return the name of the entity type on that side."""
        return self.lhs if side is Side.LHS else self.rhs


@dataclass(frozen=True)
class GraphSchema:
    """Entity types and relation types; a relation's id is its position.

    An edge with lhs in partition i of its type and rhs in partition j of its type is in bucket
    (i, j). Types may have different numbers of partitions: a type with fewer than the grid has
    simply does not occur in the rows or columns beyond its own.
    """

    entities: tuple[EntityType, ...]
    relations: tuple[RelationType, ...]

    @cached_property
    def _entity_by_name(self) -> dict[str, EntityType]:
        return {entity.name: entity for entity in self.entities}

    @cached_property
    def _relation_ids(self) -> dict[str, int]:
        return {relation.name: i for i, relation in enumerate(self.relations)}

    def entity_type(self, name: str) -> EntityType:
        """Return the entity type of that name.

        Raises:
            InputError: no such type.
        """
        if name not in self._entity_by_name:
            hint = did_you_mean(name, self._entity_by_name)
            raise InputError(f'unknown entity type "{name}"{hint}')
        return self._entity_by_name[name]

    def relation_id(self, name: str) -> int:
        """Return the id of the relation of that name.

        Raises:
            InputError: no such relation.
        """
        if name not in self._relation_ids:
            raise InputError(f'unknown relation "{name}"{did_you_mean(name, self._relation_ids)}')
        return self._relation_ids[name]

    @property
    def num_entities(self) -> int:
        """Number of entities of all types."""
        return sum(entity.count for entity in self.entities)

    def count(self, key: PartitionKey) -> int:
        """Return the number of entities in one partition."""
        return self.entity_type(key.entity_type).counts[key.index]

    def partition_keys(self) -> tuple[PartitionKey, ...]:
        """Return every partition of every entity type."""
        return tuple(PartitionKey(e.name, i) for e in self.entities for i in range(e.partitions))

    def partitions_of(self, bucket: Bucket) -> tuple[PartitionKey, ...]:
        """Return the partitions that training a bucket needs, each once, in a fixed order."""
        keys: dict[PartitionKey, None] = {}
        for relation in self.relations:
            lhs, rhs = self.entity_type(relation.lhs), self.entity_type(relation.rhs)
            if bucket.lhs < lhs.partitions and bucket.rhs < rhs.partitions:
                keys[PartitionKey(lhs.name, bucket.lhs)] = None
                keys[PartitionKey(rhs.name, bucket.rhs)] = None
        return tuple(keys)

    def needs(self, buckets: Iterable[Bucket]) -> dict[Bucket, frozenset[PartitionKey]]:
        """Return, for each bucket, the set of partitions that it locks."""
        return {bucket: frozenset(self.partitions_of(bucket)) for bucket in buckets}
