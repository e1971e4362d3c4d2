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
from biggraph.storage.vector import add

OPTIMIZER_PREFIX = "optimizer."  # of arrays that are optimizer state
TABLE_PREFIX = "table."  # of tables of shared entity types
_DELTA = "delta"  # the only array of a delta's file


def table_name(entity_type: str) -> str:
    """Return the name of a shared entity type's table among the relation parameters.

    >>> table_name("a/b")
    'table.a%2Fb'
    """
    return TABLE_PREFIX + quote(entity_type, safe="")


def write_relations(place: Place, fence: int, arrays: Mapping[str, NDArray[Any]]) -> FileRef:
    """Write relation parameters under a lease.

    Raises:
        StorageError: the place refused.
    """
    found = {name: np.asarray(array) for name, array in arrays.items()}
    return write_arrays(place, parameters_path(fence), found, {"fence": fence})


def write_delta(place: Place, fence: int, delta: NDArray[np.float32]) -> FileRef:
    """Write what is to be added to the relation parameters, under a lease.

    It is one array, since every commit of every worker is read again, at once by the coordinator:
    a file of many arrays takes several times as long to parse.

    Args:
        place: of the run.
        fence: of the lease.
        delta: of all parameters, in the order of `vector.flatten` [n].

    Raises:
        StorageError: the place refused.
    """
    return write_arrays(place, parameters_path(fence), {_DELTA: delta}, {"fence": fence})


def delta_of(arrays: Arrays, where: str) -> NDArray[np.float32]:
    """Return the vector [n] of a delta's file, given the arrays in it.

    Raises:
        FormatError: the file `where` holds something else.
    """
    delta = arrays.get(_DELTA)
    if delta is None or len(arrays) != 1 or delta.dtype != np.float32 or delta.ndim != 1:
        raise FormatError(f"{where}: not a delta of relation parameters")
    return delta


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
        where = place.where(delta.path)
        add_delta(arrays, delta_of(read(delta), where), where)
    return arrays


def add_delta(arrays: Arrays, delta: NDArray[np.float32], where: str) -> None:
    """Add a delta [n] to relation parameters, in place.

    Raises:
        FormatError: another number of parameters; names the file `where`.
    """
    size = sum(array.size for array in arrays.values())
    if len(delta) != size:
        raise FormatError(f"{where}: {len(delta):,} relation parameters, expected {size:,}")
    add(arrays, delta)
