"""The numbers that all stages share: entity types, partitions, buckets, seeds, memory shares.

Values only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from biggraph.graph.hashing import type_salt
from biggraph.graph.spec import ImportSpec
from biggraph.types import Bucket, IntArray, PartitionKey


@dataclass(frozen=True)
class Plan:
    """What stages need to know of an import besides their rows.

    A partition's code numbers all partitions of all types; a bucket's code is lhs * grid + rhs.

    Args:
        spec: what was asked.
        root: the graph directory under construction.
        hash_seed: seed of the names' hashes.
    """

    spec: ImportSpec
    root: Path
    hash_seed: int

    @property
    def scratch(self) -> Path:
        """Folder of intermediate files, removed before publishing."""
        return self.root / "scratch"

    @cached_property
    def types(self) -> list[str]:
        """Names of entity types."""
        return self.spec.type_names

    @cached_property
    def partitions(self) -> IntArray:
        """Partitions of each type, int64, shape [types]."""
        return np.array([self.spec.partitions_of(name) for name in self.types], np.int64)

    @cached_property
    def first_code(self) -> IntArray:
        """Code of the first partition of each type, int64, shape [types]."""
        return np.cumsum(self.partitions) - self.partitions

    @cached_property
    def salts(self) -> NDArray[np.uint64]:
        """Salt of the names of each type, shape [types]."""
        return np.array([type_salt(name, self.hash_seed) for name in self.types], np.uint64)

    @property
    def grid(self) -> int:
        """Partitions of the type that has most."""
        return int(self.partitions.max())

    def bucket(self, code: int) -> Bucket:
        """Return the bucket of a code."""
        return Bucket(*divmod(code, self.grid))

    def all_keys(self) -> Iterator[tuple[int, PartitionKey]]:
        """Yield (code, key) of every partition."""
        pairs = ((t, i) for t, count in enumerate(self.partitions) for i in range(count))
        for code, (entity_type, index) in enumerate(pairs):
            yield code, PartitionKey(self.types[entity_type], index)

    def share(self, divisor: int) -> int:
        """Return a part of the memory budget in bytes, at least 64 KiB."""
        return max(self.spec.memory // divisor, 1 << 16)

    def folder(self, name: str) -> Path:
        """Return a scratch folder's path."""
        return self.scratch / name

    def spilled(self, name: str) -> list[tuple[int, Path]]:
        """Return (code, path) of the spill files in a scratch folder, in order of their codes."""
        folder = self.folder(name)
        if not folder.is_dir():
            return []
        return sorted((int(path.name), path) for path in folder.iterdir())

    def tell(self, stage: str, done: int, total: int | None) -> None:
        """Report progress to whoever asked for it."""
        if self.spec.on_progress:
            self.spec.on_progress(stage, done, total)
