"""The run directory and its one writer.

    config.json   the configuration, for people; the log holds the one that counts
    log/          numbered records: what they say happened, happened
    parts/        immutable partition files, one per version
    relations/    immutable files of relation parameters, one per commit
    lock          held by the process that writes

A commit writes its files first and its record last, so a crash at any moment leaves the state of
the last record; files that no record names are removed at the next start. Knows nothing of
training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.config import Config
from biggraph.errors import ConfigError, FormatError, InputError, StorageError
from biggraph.storage import fsops, layout, lock, log
from biggraph.storage.files import Arrays, FileRef, read_arrays, write_arrays
from biggraph.storage.layout import CONFIG, FOLDERS, METRICS
from biggraph.storage.opening import open_place
from biggraph.storage.place import RESTORE, Place
from biggraph.storage.state import (
    Commit,
    Evaluation,
    Head,
    Init,
    InitFacts,
    Named,
    PartitionVersion,
    Reconfigured,
    Resumed,
    RunState,
    dump_body,
)
from biggraph.storage.store import DiskStore
from biggraph.types import Bucket, PartitionKey


class RunDirectory:
    """The writer of a run.

    Args:
        place: of the run.
        state: what its log says.
        fence: above every fence ever used here.
        unlock: lets other writers in, at `close`.
    """

    def __init__(
        self, place: Place, state: RunState, fence: int, unlock: Callable[[], None]
    ) -> None:
        self.place, self.state = place, state
        self.store = DiskStore(place, state.facts, state.heads, fence)
        self._first_fence = fence
        self._unlock = unlock

    @classmethod
    def create(cls, path: str | Path | Place, config: Config, facts: InitFacts) -> RunDirectory:
        """Begin a run in a new or empty folder.

        Raises:
            StorageError: the folder holds a run or anything else, another process writes it, or
                the file system refused.
        """
        place = open_place(path)
        place.make_folder("")
        _require_vacant(place)
        unlock = place.lock()
        try:
            _require_vacant(place)  # another process may have begun a run meanwhile
            _prepare(place, config)
            first = _first_record(config, facts)
            log.append(place, first)
            return cls(place, RunState.begin(first), 1, unlock)
        except BaseException:
            unlock()
            raise

    @classmethod
    def recreate(cls, path: str | Path | Place, config: Config, facts: InitFacts) -> RunDirectory:
        """Remove the run in a folder and begin another; files that are not the run's stay.

        The folder holds a run at every moment, so an interrupted call can be repeated.

        Raises:
            FormatError: not a run; nothing is removed.
            StorageError: another process writes it, or the file system refused.
        """
        place = open_place(path)
        require_run(place)
        unlock = place.lock()
        try:
            fence = layout.highest_fence(place) + 1  # a reader of the old run meets no name again
            _prepare(place, config)
            place.remove(METRICS)
            first = _first_record(config, facts)
            later = [name for name in layout.records(place) if name != log.record_name(0)]
            log.begin_anew(place, later, first)
            run = cls(place, RunState.begin(first), fence, unlock)
            run._clean_up()
            place.remove_folder("parts")
        except BaseException:
            unlock()
            raise
        return run

    @classmethod
    def resume(cls, path: str | Path | Place) -> RunDirectory:
        """Go on with a run: replay its log, say so in it, remove what no record names.

        What another process writes meanwhile, where locks do not keep it away, is removed only
        after the record that makes its next one fail.

        Raises:
            FormatError: not a run, or damaged; names the file.
            StorageError: another process writes it, or the file system refused.
        """
        place = open_place(path)
        require_run(place)
        unlock = place.lock()
        try:
            state = read_state(place)
            for ref in state.files():
                _require_file(place, ref)
            place.check_put_if_absent()
            fence = max(state.fence, layout.highest_fence(place)) + 1
            # Another writer has used no fence above `fence`, so none of its names either.
            run = cls(place, state, fence + 1, unlock)
            run._append("resumed", Resumed(fence))
            place.replace(CONFIG, state.config.encode())
            run._clean_up()
        except BaseException:
            unlock()
            raise
        return run

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return Config.from_json(self.state.config, f"{self.place}: log")

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; whether it suits the run is for the caller to know.

        Raises:
            StorageError: the file system refused.
        """
        self._append("config", Reconfigured(config.to_json()))
        self.place.replace(CONFIG, config.to_json().encode())

    def relations(self) -> Arrays:
        """Return the newest relation parameters with their optimizer state; {} before a commit.

        Raises:
            FormatError: the file is damaged.
        """
        if self.state.relations is None:
            return {}
        return read_arrays(self.place, self.state.relations)[0]

    def commit(
        self,
        epoch: int,
        buckets: Sequence[Bucket],
        partitions: Mapping[PartitionKey, PartitionVersion],
        relations: Mapping[str, NDArray[Any]],
        edges: int,
        stats: Mapping[str, Any],
    ) -> None:
        """Make work count: all of it, or after a crash none of it.

        Args:
            epoch: in training, from 1.
            buckets: trained since the last commit, in training order.
            partitions: the newest version of every partition that they changed
                (`PartitionCache.flush`).
            relations: relation parameters and their optimizer state; names that begin with
                "optimizer." are not part of the model.
            edges: trained in these buckets.
            stats: values of JSON, kept in `state.stats`.

        Raises:
            FormatError: the commit contradicts the log, a defect of the caller; nothing counts.
            StorageError: the file system refused, or another process has gone on with the run;
                resume to learn whether the commit counts.
        """
        fence = self.store.fence
        arrays = {name: np.asarray(array) for name, array in relations.items()}
        file = write_arrays(self.place, f"relations/f{fence:06d}.h5", arrays, {"fence": fence})
        heads = tuple(
            Head(key, self.state.heads[key].version if key in self.state.heads else 0, saved)
            for key, saved in partitions.items()
        )
        body = Commit(fence, epoch, tuple(buckets), heads, file, edges, dict(stats))
        for ref in (file, *(saved.file for saved in partitions.values())):
            _require_unremoved(self.place, ref.path)
        self._append("commit", body)
        self.store.fence = fence + 1

    def record_evaluation(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Keep metrics in the log; raises StorageError where the file system refused."""
        self._append("evaluation", Evaluation(epoch, dict(metrics)))

    def snapshot(self, name: str) -> None:
        """Keep the state of the last commit under a name, in place of what had it before.

        Raises:
            InputError: not a name, or "latest", which always means the last commit.
            StorageError: the file system refused.
        """
        if not re.fullmatch(r"[\w-][\w.-]*", name) or name == "latest":
            raise InputError(
                f'snapshot name "{name}": use letters, digits, "-", "_" and ".", not "latest"'
            )
        self._append("snapshot", Named(name))

    def collect_garbage(self) -> int:
        """Remove files that neither the last commit, nor a snapshot, nor work in flight needs.

        Returns:
            The number of files removed.

        Raises:
            StorageError: the file system refused.
        """
        named = {ref.path for ref in self.state.files()}
        committed = {_folder(s.file.path): s.version for s in self.state.heads.values()}
        garbage = [
            name
            for name in layout.data_files(self.place)
            if name not in named and not self._in_flight(name, committed.get(_folder(name), 0))
        ]
        for name in garbage:
            self.place.remove(name)
        return len(garbage)

    def close(self) -> None:
        """Let others write the run."""
        self._unlock()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _clean_up(self) -> None:
        """Remove what earlier processes left behind."""
        self.collect_garbage()
        for name in layout.temporaries(self.place):
            self.place.remove(name)

    def _in_flight(self, name: str, committed: int) -> bool:
        """Tell whether this process wrote a file after the last commit, or is writing it."""
        match = layout.FILE_NAME.fullmatch(layout.base_name(name))
        if match is None or match[1] is None:
            return name.endswith(fsops.TEMPORARY)
        return int(match[2]) >= self._first_fence and int(match[1]) > committed

    def _append(self, kind: str, body: object) -> None:
        record = log.Record(self.state.number, kind, dump_body(kind, body))
        state = self.state.apply(record)  # refuses before anything is written
        log.append(self.place, record)
        self.state = state


def check_claimable(path: str | Path | Place) -> None:
    """Refuse a place in which no run can be begun, resumed or begun anew; touches nothing.

    A folder with a run may hold any other files. One without may hold nothing, or what a failed
    beginning left. Whether another process writes there shows only when it is locked.

    Raises:
        StorageError: it holds something else, is a file, or the place refused.
    """
    place = open_place(path)
    if place.exists() and not is_run(place):
        _require_vacant(place)


def is_run(path: str | Path | Place) -> bool:
    """Tell whether a place holds a run; raises StorageError where it cannot be read."""
    return open_place(path).size(log.record_name(0)) is not None


def require_run(place: Place) -> None:
    """Refuse a place that holds no run.

    Raises:
        FormatError: there is no such place, or it holds no log.
    """
    if not is_run(place):
        found = "is not a run" if place.exists() else "does not exist"
        raise FormatError(f"{place}: {found} (no log/00000000); give the checkpoint.path of a run")


def read_state(path: str | Path | Place) -> RunState:
    """Replay the log of a run; raises FormatError naming the place and the record."""
    place = open_place(path)
    records = log.replay(place)
    try:
        return RunState.replay(records)
    except FormatError as error:
        raise FormatError(f"{place}: {error}") from None


def _require_vacant(place: Place) -> None:
    """Refuse a place that holds anything but a failed beginning."""
    if is_run(place):
        raise StorageError(
            f"{place}: holds a run already; resume it, begin anew with --restart, or choose "
            "another checkpoint.path"
        )
    for name in sorted(set(layout.all_files(place)) - set(layout.temporaries(place))):
        if not _left_by_beginning(place, name):
            raise StorageError(
                f"{place}: holds something else ({name}); choose an empty or a new folder for "
                "checkpoint.path"
            )


def _left_by_beginning(place: Place, name: str) -> bool:
    if name not in (lock.NAME, CONFIG) or place.size(name) is None:
        return False
    content = place.read(name)
    if name == lock.NAME:
        return lock.is_own(content)
    text = content.decode(errors="replace")
    try:
        return Config.from_json(text, place.where(name)).to_json() == text
    except ConfigError:
        return False


def _prepare(place: Place, config: Config) -> None:
    for name in FOLDERS:
        place.make_folder(name)
    place.check_put_if_absent()
    place.replace(CONFIG, config.to_json().encode())


def _first_record(config: Config, facts: InitFacts) -> log.Record:
    return log.Record(0, "init", dump_body("init", Init(facts, config.to_json())))


def _require_file(place: Place, ref: FileRef) -> None:
    if place.size(ref.path) is None:
        raise FormatError(f"{place.where(ref.path)}: missing{RESTORE}")


def _require_unremoved(place: Place, name: str) -> None:
    if place.size(name) is None:
        raise StorageError(
            f"{place.where(name)}: gone before it was committed; another process has gone on with "
            "this run"
        )


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
