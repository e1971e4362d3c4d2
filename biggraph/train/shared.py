"""Entity types that all workers share: which ones, and their tables among the parameters.

A type with one partition is needed by a whole row or column of buckets where another type has
many: whoever locked its table would have that row for itself. Small ones are kept like relation
parameters instead, whole in every worker. Knows schema and tables; nothing of who keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping

from biggraph.model.relations import RelationParameters
from biggraph.schema import GraphSchema
from biggraph.storage.records import InitFacts
from biggraph.storage.relations import table_name
from biggraph.storage.store import initial_table
from biggraph.storage.table import EmbeddingTable
from biggraph.types import PartitionKey

# Every commit writes so much, and every exchange moves it both ways: 0.1 s at 10 Gbit/s, a fraction
# of `cluster.sync_every`. A larger table goes from hand to hand with its bucket.
MAX_SHARED_BYTES = 64 * 2**20


def choose_shared(schema: GraphSchema, sizes: Mapping[PartitionKey, int]) -> tuple[str, ...]:
    """Return the entity types that several workers share, the smallest first.

    Args:
        schema: of the graph.
        sizes: bytes of each partition's table, optimizer state included.
    """
    if all(entity.partitions == 1 for entity in schema.entities):
        return ()
    whole = [PartitionKey(e.name, 0) for e in schema.entities if e.partitions == 1]
    chosen: list[PartitionKey] = []
    for key in sorted(whole, key=lambda key: (sizes[key], key)):
        if sum(sizes[other] for other in (*chosen, key)) <= MAX_SHARED_BYTES:
            chosen.append(key)
    return tuple(key.entity_type for key in chosen)


def add_shared(parameters: RelationParameters, facts: InitFacts) -> None:
    """Add the untrained tables of shared entity types to the relation parameters."""
    for key in facts.shared_keys():
        table = initial_table(facts, key)
        parameters.add(table_name(key.entity_type), table.rows, table.state)


def shared_tables(
    parameters: RelationParameters, facts: InitFacts
) -> dict[PartitionKey, EmbeddingTable]:
    """Return the tables of shared entity types; they are the tensors among the parameters.

    Their chain is empty: what trained them is what trained the relation parameters.
    """
    tables = {}
    for key in facts.shared_keys():
        name = table_name(key.entity_type)
        tables[key] = EmbeddingTable(key, parameters.values[name], parameters.sums[name], "")
    return tables
