"""The relation parameters of a run: a base file, and the deltas committed since.

The tables of entity types that workers share are among them, under names of their own.

Values and optimizer state are summed in the order of the log, in float32, so that everybody who
does it comes to the same numbers. Knows names and arrays; nothing of what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from biggraph.errors import FormatError
from biggraph.storage.files import Arrays, FileRef, read_arrays, write_arrays
from biggraph.storage.place import Place
from biggraph.storage.state import Snapshot
from biggraph.storage.store import parameters_path

OPTIMIZER_PREFIX = "optimizer."  # of arrays that are optimizer state
TABLE_PREFIX = "table."  # of tables of shared entity types


def table_name(entity_type: str) -> str:
    """Return the name of a shared entity type's table among the relation parameters.

    >>> table_name("a/b")
    'table.a%2Fb'
    """
    return TABLE_PREFIX + quote(entity_type, safe="")


def write_relations(place: Place, fence: int, arrays: Mapping[str, NDArray[Any]]) -> FileRef:
    """Write relation parameters, or what is to be added to them, under a lease.

    Raises:
        StorageError: the place refused.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    return write_arrays(place, parameters_path(fence), found, {"fence": fence})


def read_relations(place: Place, snapshot: Snapshot) -> Arrays:
    """Return the relation parameters of a state with their optimizer state; {} before a commit.

    Raises:
        FormatError: a file is damaged, or a delta does not fit.
        FileNotFoundError: a file is gone.
    """
    return sum_relations(place, snapshot, lambda ref: read_arrays(place, ref)[0])


def sum_relations(place: Place, snapshot: Snapshot, read: Callable[[FileRef], Arrays]) -> Arrays:
    """Return what `read_relations` does, given what reads a file of the state.

    Raises:
        FormatError: a delta does not fit; and whatever `read` raises.
    """
    if snapshot.relations is None:
        return {}
    arrays = {name: np.array(array) for name, array in read(snapshot.relations).items()}
    for delta in snapshot.deltas:
        add_delta(arrays, read(delta), place.where(delta.path))
    return arrays


def add_delta(arrays: Arrays, delta: Mapping[str, NDArray[Any]], where: str) -> None:
    """Add a delta to relation parameters, in place.

    Raises:
        FormatError: other names, shapes or types; names the file `where`.
    """
    if _forms(delta) != _forms(arrays):
        raise FormatError(f"{where}: its arrays are not those of the relation parameters")
    for name, array in delta.items():
        arrays[name] += array


def _forms(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (array.shape, array.dtype.str) for name, array in arrays.items()}
