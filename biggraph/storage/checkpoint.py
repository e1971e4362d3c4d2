"""Reading a run: any of its kept states, also while it is being trained.

A checkpoint maps every file that its state names when it is opened, so it stays whole when the
writer goes on and removes them. Never writes. Knows nothing of models or evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.config import Config
from biggraph.errors import FormatError, InputError, did_you_mean
from biggraph.schema import GraphSchema
from biggraph.storage.files import Arrays, FileRef, MappedArrays
from biggraph.storage.opening import open_place
from biggraph.storage.place import RESTORE, Place
from biggraph.storage.records import PartitionVersion
from biggraph.storage.relations import (
    OPTIMIZER_PREFIX,
    TABLE_PREFIX,
    sum_relations,
    table_name,
)
from biggraph.storage.run import read_state, require_run
from biggraph.storage.state import RunState, Snapshot
from biggraph.storage.store import describe_mismatch, initial_table
from biggraph.types import FloatArray, IntArray, PartitionKey

LATEST = "latest"
BEST = "best"
_ATTEMPTS = 20


class Checkpoint:
    """A state of a run, open for reading.

    Args:
        place: of the run.
        state: what its log said when the checkpoint was opened.
        name: "latest", or the name of a snapshot.
        kept: the state that the name stands for.
        files: the mapped files of that state.
    """

    def __init__(
        self,
        place: Place,
        state: RunState,
        name: str,
        kept: Snapshot,
        files: dict[FileRef, MappedArrays],
    ) -> None:
        self.path, self.state, self.name = str(place), state, name
        self._place = place
        self._kept, self._files = kept, files
        self._initial: tuple[PartitionKey, FloatArray] | None = None
        self._parameters: Arrays | None = None

    @classmethod
    def open(cls, path: str | Path | Place, snapshot: str | None = None) -> Checkpoint:
        """Open a run for reading.

        Args:
            path: the run directory.
            snapshot: name of a kept state, or "latest"; None: "best" where it exists, else the
                last commit.

        Raises:
            FormatError: not a run, or damaged; names the file.
            InputError: no snapshot of that name.
            StorageError: the file system refused.
        """
        place = open_place(path)
        require_run(place)
        state = read_state(place)
        for _ in range(_ATTEMPTS):
            name, kept = _choose(str(place), state, snapshot)
            try:
                files = {ref: MappedArrays.open(place, ref) for ref in kept.files()}
                return cls(place, state, name, kept, files)
            except FileNotFoundError as error:
                missing = error.filename
            before, state = state, read_state(place)
            if state.number == before.number:
                break  # nobody replaced it: it is missing
        raise FormatError(f"{missing}: missing{RESTORE}")

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return Config.from_json(self.state.config, f"{self.path}: log")

    @property
    def schema(self) -> GraphSchema:
        """The schema of the graph that the run is trained on."""
        return self.state.facts.schema

    @property
    def epoch(self) -> int:
        """Epochs completed in this state."""
        return self._kept.epoch

    def shape(self, key: PartitionKey) -> tuple[int, int]:
        """Return (count, D) of a partition."""
        return self.state.facts.shape(key)

    def rows(self, key: PartitionKey, offsets: IntArray | slice) -> FloatArray:
        """Return rows of a partition, float32 [n, D], in the order asked for.

        Args:
            key: which partition.
            offsets: integer positions [n], or a slice.

        Raises:
            FormatError: the file is damaged.
        """
        saved = self._kept.heads.get(key)
        if key.entity_type in self.state.facts.shared and self._kept.relations is not None:
            all_rows = self._shared(key)
        else:
            all_rows = self._untrained(key) if saved is None else self._trained(key, saved)
        rows: FloatArray = np.array(all_rows[offsets], dtype=np.float32)
        return rows

    def relations(self) -> Arrays:
        """Return the relation parameters by the model's names, without optimizer state.

        Raises:
            FormatError: the file is damaged, or nothing was committed yet.
        """
        if self._kept.relations is None:
            raise FormatError(f"{self.path}: nothing was committed yet; train first")
        other = (OPTIMIZER_PREFIX, TABLE_PREFIX)
        return {n: array.copy() for n, array in self._sum().items() if not n.startswith(other)}

    def verify(self) -> list[str]:
        """Return what is wrong with this run, in words; an empty list if it is sound.

        Opening has replayed the log: every (epoch, bucket) committed once with all its edges,
        version chains linear, fences rising, training chains as the log says. This reads every
        file of the state and of all snapshots: digest, shape, identity, finite values.

        The log is read again first, so a run that is being trained is verified as it stands now.

        Raises:
            FormatError: the log is damaged.
            StorageError: the file system refused.
        """
        state, mapped = _map_everything(self._place)
        problems: dict[str, None] = {}  # in order, once each
        for kept in (state.present, *state.snapshots.values()):
            for key, saved in kept.heads.items():
                where = self._place.where(saved.file.path)
                problems |= dict.fromkeys(
                    _check_table(where, mapped[saved.file], state, key, saved)
                )
            problems |= dict.fromkeys(_check_relations(self._place, state, kept, mapped))
        return list(problems)

    def _sum(self) -> Arrays:
        """Return relation parameters and shared tables with every delta of this state."""
        if self._parameters is None:
            self._parameters = sum_relations(
                self._place, self._kept, lambda ref: self._files[ref].arrays()[0]
            )
        return self._parameters

    def _shared(self, key: PartitionKey) -> NDArray[Any]:
        found = self._sum()
        if problem := _describe_shared(found, self.state, key):
            raise FormatError(f"{self.path}: {problem}")
        return found[table_name(key.entity_type)]

    def _trained(self, key: PartitionKey, saved: PartitionVersion) -> NDArray[Any]:
        arrays, attributes = self._files[saved.file].arrays()
        shapes = {name: array.shape for name, array in arrays.items()}
        if problem := describe_mismatch(self.state.facts, key, saved, shapes, attributes):
            raise FormatError(f"{self._place.where(saved.file.path)}: {problem}")
        return arrays["embeddings"]

    def _untrained(self, key: PartitionKey) -> FloatArray:
        if self._initial is None or self._initial[0] != key:
            self._initial = key, initial_table(self.state.facts, key).rows.numpy()
        return self._initial[1]


def _map_everything(place: Place) -> tuple[RunState, dict[FileRef, MappedArrays | str]]:
    """Read the log and map every file that it names, or say what is wrong with the file."""
    state = read_state(place)
    for _ in range(_ATTEMPTS):
        mapped = {ref: _map_or_describe(place, ref) for ref in state.files()}
        before, state = state, read_state(place)
        if state.files() == before.files():  # so a missing file is not one that was replaced
            break
    return before, mapped


def _map_or_describe(place: Place, ref: FileRef) -> MappedArrays | str:
    try:
        return MappedArrays.open(place, ref)
    except FileNotFoundError:
        return f"{place.where(ref.path)}: missing"
    except FormatError as error:
        return str(error)


def _check_numbers(where: str, mapped: MappedArrays | str) -> list[str]:
    if isinstance(mapped, str):
        return [mapped]
    try:
        arrays, _ = mapped.arrays()
    except FormatError as error:
        return [str(error)]
    return [
        f"{where}: {name} is not finite"
        for name, array in arrays.items()
        if array.size and not np.isfinite([array.min(), array.max()]).all()
    ]


def _check_relations(
    place: Place,
    state: RunState,
    kept: Snapshot,
    mapped: Mapping[FileRef, MappedArrays | str],
) -> list[str]:
    problems = []
    readable: dict[FileRef, MappedArrays] = {}
    for ref in kept.parameter_files():
        problems += _check_numbers(place.where(ref.path), found := mapped[ref])
        if not isinstance(found, str):
            readable[ref] = found
    if problems or kept.relations is None:
        return problems
    try:
        arrays = sum_relations(place, kept, lambda ref: readable[ref].arrays()[0])
    except FormatError as error:
        return [str(error)]
    described = [_describe_shared(arrays, state, key) for key in state.facts.shared_keys()]
    where = place.where(kept.relations.path)
    return [f"{where}: {problem}" for problem in described if problem]


def _describe_shared(arrays: Arrays, state: RunState, key: PartitionKey) -> str | None:
    """Return in words how the table of a shared entity type differs from the facts, or None."""
    rows = state.facts.shape(key)
    name = table_name(key.entity_type)
    sums = OPTIMIZER_PREFIX + name
    expected = {name: rows, sums: rows[:1] if state.facts.row_wise else rows}
    found = {n: arrays[n].shape for n in expected if n in arrays}
    return None if found == expected else f"expected arrays {expected}, found {found}"


def _check_table(
    where: str,
    mapped: MappedArrays | str,
    state: RunState,
    key: PartitionKey,
    saved: PartitionVersion,
) -> list[str]:
    problems = _check_numbers(where, mapped)
    if problems or isinstance(mapped, str):
        return problems
    arrays, attributes = mapped.arrays()
    shapes = {name: array.shape for name, array in arrays.items()}
    mismatch = describe_mismatch(state.facts, key, saved, shapes, attributes)
    return [f"{where}: {mismatch}"] if mismatch else []


def _choose(path: str, state: RunState, wanted: str | None) -> tuple[str, Snapshot]:
    if wanted is None:
        wanted = BEST if BEST in state.snapshots else LATEST
    if wanted == LATEST:
        return LATEST, state.present
    if wanted not in state.snapshots:
        hint = did_you_mean(wanted, [*state.snapshots, LATEST])
        raise InputError(f'{path}: no snapshot "{wanted}"{hint}')
    return wanted, state.snapshots[wanted]
