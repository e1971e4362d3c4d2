"""Reading a run: any of its kept states, also while it is being trained.

A checkpoint maps every file that its state names when it is opened, so it stays whole when the
writer goes on and removes them. Never writes. Knows nothing of models or evaluation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.config import Config
from biggraph.errors import BigGraphError, FormatError, InputError, did_you_mean
from biggraph.schema import GraphSchema
from biggraph.storage.files import Arrays, FileRef, MappedArrays
from biggraph.storage.run import read_state, require_run
from biggraph.storage.state import PartitionVersion, RunState, Snapshot
from biggraph.storage.store import describe_mismatch, initial_table
from biggraph.types import FloatArray, IntArray, PartitionKey

LATEST = "latest"
BEST = "best"
OPTIMIZER_PREFIX = "optimizer."  # of relation arrays that are not part of the model
_ATTEMPTS = 20


class Checkpoint:
    """A state of a run, open for reading.

    Args:
        path: the run directory.
        state: what its log said when the checkpoint was opened.
        name: "latest", or the name of a snapshot.
        kept: the state that the name stands for.
        files: the mapped files of that state.
    """

    def __init__(
        self,
        path: Path,
        state: RunState,
        name: str,
        kept: Snapshot,
        files: dict[FileRef, MappedArrays],
    ) -> None:
        self.path, self.state, self.name = path, state, name
        self._kept, self._files = kept, files
        self._initial: tuple[PartitionKey, FloatArray] | None = None

    @classmethod
    def open(cls, path: str | Path, snapshot: str | None = None) -> Checkpoint:
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
        path = Path(path)
        require_run(path)
        state = read_state(path)
        for _ in range(_ATTEMPTS):
            name, kept = _choose(path, state, snapshot)
            try:
                files = {ref: MappedArrays.open(path, ref) for ref in _files(kept)}
                return cls(path, state, name, kept, files)
            except FileNotFoundError as error:
                missing = error.filename
            before, state = state, read_state(path)
            if state.number == before.number:
                break  # nobody replaced it: it is missing
        raise FormatError(f"{missing}: missing; restore it from a copy, or begin the run anew")

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
        arrays, _ = self._files[self._kept.relations].arrays()
        return {
            name: np.array(array)
            for name, array in arrays.items()
            if not name.startswith(OPTIMIZER_PREFIX)
        }

    def verify(self) -> list[str]:
        """Return what is wrong with this run, in words; an empty list if it is sound.

        Opening has replayed the log: every (epoch, bucket) committed once with all its edges,
        version chains linear, fences rising, training chains as the log says. This reads every
        file of the state and of all snapshots: digest, shape, identity, finite values.
        """
        states = {LATEST: _latest(self.state), **self.state.snapshots}
        problems: dict[str, None] = {}
        for kept in states.values():
            for key, saved in kept.heads.items():
                problems |= dict.fromkeys(self._check(saved.file, key, saved))
            if kept.relations is not None:
                problems |= dict.fromkeys(self._check(kept.relations))
        return list(problems)

    def _trained(self, key: PartitionKey, saved: PartitionVersion) -> NDArray[Any]:
        arrays, attributes = self._files[saved.file].arrays()
        shapes = {name: array.shape for name, array in arrays.items()}
        if problem := describe_mismatch(self.state.facts, key, saved, shapes, attributes):
            raise FormatError(f"{self.path / saved.file.path}: {problem}")
        return arrays["embeddings"]

    def _untrained(self, key: PartitionKey) -> FloatArray:
        if self._initial is None or self._initial[0] != key:
            self._initial = key, initial_table(self.state.facts, key).rows.numpy()
        return self._initial[1]

    def _check(
        self,
        ref: FileRef,
        key: PartitionKey | None = None,
        saved: PartitionVersion | None = None,
    ) -> list[str]:
        try:
            arrays, attributes = MappedArrays.open(self.path, ref).arrays()
        except FileNotFoundError:
            return [f"{self.path / ref.path}: missing"]
        except BigGraphError as error:
            return [str(error)]
        problems = [
            f"{self.path / ref.path}: {name} is not finite"
            for name, array in arrays.items()
            if array.size and not np.isfinite([array.min(), array.max()]).all()
        ]
        if key is not None and saved is not None:
            shapes = {name: array.shape for name, array in arrays.items()}
            mismatch = describe_mismatch(self.state.facts, key, saved, shapes, attributes)
            problems += [f"{self.path / ref.path}: {mismatch}"] if mismatch else []
        return problems


def _latest(state: RunState) -> Snapshot:
    return Snapshot(state.number - 1, state.epoch, state.heads, state.relations)


def _choose(path: Path, state: RunState, wanted: str | None) -> tuple[str, Snapshot]:
    if wanted is None:
        wanted = BEST if BEST in state.snapshots else LATEST
    if wanted == LATEST:
        return LATEST, _latest(state)
    if wanted not in state.snapshots:
        hint = did_you_mean(wanted, [*state.snapshots, LATEST])
        raise InputError(f'{path}: no snapshot "{wanted}"{hint}')
    return wanted, state.snapshots[wanted]


def _files(kept: Snapshot) -> list[FileRef]:
    relations = [] if kept.relations is None else [kept.relations]
    return [saved.file for saved in kept.heads.values()] + relations
