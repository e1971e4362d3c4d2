"""Rows of partitions that are not loaded: read-only candidates from outside the bucket.

Candidates from the loaded partitions alone make training easier than the task: two entities in
different partitions are never compared, and the more partitions there are, the worse the model
ranks. A sample of every partition's rows, as they were when it was last trained, closes the gap.

The sample of a partition follows from its chain, the digest of its training history, so that a
resumed run sees what an uninterrupted one does. Knows tables and the store; nothing of batches.

Axes: S sampled rows, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from biggraph.schema import GraphSchema
from biggraph.storage.store import PartitionStore
from biggraph.storage.table import EmbeddingTable
from biggraph.types import PartitionKey, Side

# Rows [S, D] that a side of a bucket is compared with beside its own partition.
Outside = Mapping[tuple[Side, str], Tensor]


class Reservoir:
    """Samples of every partition, newest training each.

    Args:
        store: where partitions that this process has not trained are read.
        schema: partitions and their sizes.
        rows: sampled rows of each entity type, spread over its partitions by size; 0 for none.
    """

    def __init__(self, store: PartitionStore, schema: GraphSchema, rows: int) -> None:
        self._store, self._schema, self._rows = store, schema, rows
        self._samples: dict[PartitionKey, Tensor] = {}

    def outside(self, uses: Iterable[tuple[Side, PartitionKey]]) -> Outside:
        """Return, for each side and entity type, sampled rows of the partitions not loaded there.

        Args:
            uses: the loaded partitions on each side.

        Raises:
            FormatError, StorageError: a partition could not be read.
        """
        if not self._rows:
            return {}
        loaded: dict[tuple[Side, str], set[int]] = {}
        for side, key in uses:
            loaded.setdefault((side, key.entity_type), set()).add(key.index)
        found = {}
        for (side, name), indices in loaded.items():
            others = [
                self._sample(PartitionKey(name, index))
                for index in range(self._schema.entity_type(name).partitions)
                if index not in indices
            ]
            if others:
                found[side, name] = torch.cat(others)
        return found

    def refresh(self, tables: Iterable[EmbeddingTable]) -> None:
        """Sample tables anew after they were trained."""
        for table in tables:
            if self._rows and self._schema.entity_type(table.key.entity_type).partitions > 1:
                self._samples[table.key] = table.rows[self._choose(table.key, table.chain)]

    def forget(self, keys: Iterable[PartitionKey] | None = None) -> None:
        """Sample partitions anew when they are next needed, all of them without `keys`."""
        for key in list(self._samples if keys is None else keys):
            self._samples.pop(key, None)

    def _sample(self, key: PartitionKey) -> Tensor:
        if key not in self._samples:
            chain, rows_ND = self._store.view(key)
            self._samples[key] = rows_ND[self._choose(key, chain)].float()
        return self._samples[key]

    def _choose(self, key: PartitionKey, chain: str) -> Tensor:
        count, total = self._schema.count(key), self._schema.entity_type(key.entity_type).count
        wanted = -(-self._rows * count // total)
        if wanted >= count:
            return torch.arange(count)
        generator = torch.Generator().manual_seed(int(chain[:15], 16))
        return torch.randint(count, (wanted,), generator=generator)
