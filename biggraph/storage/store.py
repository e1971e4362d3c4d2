"""Where tables come from and go to: a partition is read from its newest version, or made.

Every save is a new immutable file. It counts once a commit names it; until then it only serves
the process that wrote it. Knows nothing of the log or of what is in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote

import torch
from torch import Tensor

from biggraph.errors import FormatError
from biggraph.storage.files import MappedArrays, read_arrays, write_arrays
from biggraph.storage.place import RESTORE, Place
from biggraph.storage.records import InitFacts, PartitionVersion
from biggraph.storage.table import EmbeddingTable, check_finite, empty, halve, new_table
from biggraph.types import PartitionKey, mix_seed


class PartitionStore(Protocol):
    """Loads and saves tables; different keys may be handled by several threads at once."""

    def load(self, key: PartitionKey) -> EmbeddingTable:
        """Return the newest table of a partition."""
        ...

    def save(self, table: EmbeddingTable) -> PartitionVersion:
        """Save a table as a new version."""
        ...

    def file_bytes(self, key: PartitionKey) -> int:
        """Return the bytes of a partition's numbers where they are saved."""
        ...

    def discard(self, saved: PartitionVersion) -> None:
        """Remove a version that a newer one replaced before any commit named it."""
        ...

    def view(self, key: PartitionKey) -> tuple[str, Tensor]:
        """Return the chain and the rows of a partition's newest version, to look at only."""
        ...


class DiskStore:
    """Partition files in the place of a run.

    Args:
        place: of the run.
        facts: shapes and seeds of the tables.
        heads: the newest committed versions.
        fence: number of the lease under which files are written; part of their names.
    """

    def __init__(
        self,
        place: Place,
        facts: InitFacts,
        heads: Mapping[PartitionKey, PartitionVersion],
        fence: int,
    ) -> None:
        self.place, self._facts = place, facts
        self._newest = dict(heads)
        self.fence = fence

    def begin(self, heads: Mapping[PartitionKey, PartitionVersion], fence: int) -> None:
        """Forget what was saved and not committed; read these versions, write under this lease."""
        self._newest = dict(heads)
        self.fence = fence

    def follow(self, heads: Mapping[PartitionKey, PartitionVersion]) -> None:
        """Read these versions from here on: others have written them."""
        self._newest |= heads

    def load(self, key: PartitionKey) -> EmbeddingTable:
        """Return the newest table of a partition; a partition never saved is made.

        Raises:
            FormatError: the file is damaged or not this partition's.
            StorageError: the file system refused.
        """
        saved = self._newest.get(key)
        if saved is None:
            return initial_table(self._facts, key)
        return read_table(self.place, self._facts, key, saved)

    def save(self, table: EmbeddingTable) -> PartitionVersion:
        """Write a table as a new version, durably.

        Raises:
            DivergenceError: a value is not finite.
            StorageError: the file system refused; nothing is left of the file.
        """
        check_finite(table)
        before = self._newest.get(table.key)
        version = before.version + 1 if before else 1
        rows = halve(table) if self._facts.half else table.rows
        arrays = {"embeddings": rows.numpy(), "optimizer": table.state.numpy()}
        name = partition_path(table.key, version, self.fence)
        attributes = _attributes(table.key, version, table.chain)
        file = write_arrays(self.place, name, arrays, attributes)
        self._newest[table.key] = PartitionVersion(version, file, table.chain)
        return self._newest[table.key]

    def file_bytes(self, key: PartitionKey) -> int:
        """Return the bytes of a partition's numbers in its file."""
        return self._facts.file_bytes(key)

    def view(self, key: PartitionKey) -> tuple[str, Tensor]:
        """Return the chain and the rows [count, D] of the newest version; nothing may change them.

        The rows of a saved version are mapped, so that only those looked at are kept in memory;
        they may be float16.

        Raises:
            FormatError: the file is missing or damaged.
            StorageError: the file system refused.
        """
        saved = self._newest.get(key)
        if saved is None:
            table = initial_table(self._facts, key)
            return table.chain, table.rows
        try:
            arrays, _ = MappedArrays.open(self.place, saved.file).arrays()
        except FileNotFoundError:
            raise _missing(self.place, saved) from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch: the mapping is read-only
            return saved.chain, torch.from_numpy(arrays["embeddings"])

    def discard(self, saved: PartitionVersion) -> None:
        """Remove the file of a version that no commit names.

        Raises:
            StorageError: the file system refused.
        """
        self.place.remove(saved.file.path)


def partition_path(key: PartitionKey, version: int, fence: int) -> str:
    """Return the name of a partition file in the place of a run.

    >>> partition_path(PartitionKey("user", 3), 42, 17)
    'parts/user/3/v000042-f000017.h5'
    """
    folder = quote(key.entity_type, safe="").replace(".", "%2E")
    return f"parts/{folder}/{key.index}/v{version:06d}-f{fence:06d}.h5"


def parameters_path(fence: int) -> str:
    """Return the name of a file of relation parameters in the place of a run.

    >>> parameters_path(17)
    'relations/f000017.h5'
    """
    return f"relations/f{fence:06d}.h5"


def initial_table(facts: InitFacts, key: PartitionKey) -> EmbeddingTable:
    """Return the table of a partition that was never trained: it follows from the run's seed."""
    kind = [entity.name for entity in facts.schema.entities].index(key.entity_type)
    seed = mix_seed(facts.seed, kind, key.index)
    return new_table(key, facts.shape(key), facts.row_wise, facts.init_scale, seed)


def read_table(
    place: Place, facts: InitFacts, key: PartitionKey, saved: PartitionVersion
) -> EmbeddingTable:
    """Read one version of a partition.

    Raises:
        FormatError: the file is missing, damaged or not what `saved` says.
        StorageError: the file system refused.
    """
    try:
        arrays, attributes = read_arrays(place, saved.file)
    except FileNotFoundError:
        raise _missing(place, saved) from None
    shapes = {name: array.shape for name, array in arrays.items()}
    if problem := describe_mismatch(facts, key, saved, shapes, attributes):
        raise FormatError(f"{place.where(saved.file.path)}: {problem}")
    rows, state = (torch.from_numpy(arrays[name]) for name in ("embeddings", "optimizer"))
    if rows.dtype != torch.float32:
        rows = empty(tuple(rows.shape)).copy_(rows)
    return EmbeddingTable(key, rows, state, saved.chain)


def describe_mismatch(
    facts: InitFacts,
    key: PartitionKey,
    saved: PartitionVersion,
    shapes: Mapping[str, tuple[int, ...]],
    attributes: Mapping[str, int | str],
) -> str | None:
    """Return in words how a file's content differs from what the log says, or None."""
    rows = facts.shape(key)
    expected = {"embeddings": rows, "optimizer": rows[:1] if facts.row_wise else rows}
    if shapes != expected:
        return f"expected arrays {expected}, found {dict(shapes)}"
    if attributes != (wanted := _attributes(key, saved.version, saved.chain)):
        return f"expected {wanted}, found {dict(attributes)}"
    return None


def _missing(place: Place, saved: PartitionVersion) -> FormatError:
    return FormatError(f"{place.where(saved.file.path)}: missing{RESTORE}")


def _attributes(key: PartitionKey, version: int, chain: str) -> dict[str, int | str]:
    return {
        "entity_type": key.entity_type,
        "partition": key.index,
        "version": version,
        "chain": chain,
    }
