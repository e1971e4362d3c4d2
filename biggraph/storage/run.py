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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from biggraph.config import Config
from biggraph.errors import ConfigError, FormatError, InputError, StorageError
from biggraph.storage import fsops, layout, lock, log
from biggraph.storage.files import Arrays, FileRef, locate, read_arrays, write_arrays
from biggraph.storage.layout import CONFIG, FOLDERS, METRICS
from biggraph.storage.lock import RunLock
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
        path: the directory.
        state: what its log says.
        fence: above every fence ever used here.
        run_lock: held until `close`.
    """

    def __init__(self, path: Path, state: RunState, fence: int, run_lock: RunLock) -> None:
        self.path, self.state = path, state
        self.store = DiskStore(path, state.facts, state.heads, fence)
        self._first_fence = fence
        self._lock = run_lock

    @classmethod
    def create(cls, path: str | Path, config: Config, facts: InitFacts) -> RunDirectory:
        """Begin a run in a new or empty folder.

        Raises:
            StorageError: the folder holds a run or anything else, another process writes it, or
                the file system refused.
        """
        path = Path(path)
        fsops.make_folder(path)
        _require_vacant(path)
        run_lock = RunLock.acquire(path)
        try:
            _require_vacant(path)  # another process may have begun a run meanwhile
            _prepare(path, config)
            first = _first_record(config, facts)
            log.append(path / "log", first)
            return cls(path, RunState.begin(first), 1, run_lock)
        except BaseException:
            run_lock.release()
            raise

    @classmethod
    def recreate(cls, path: str | Path, config: Config, facts: InitFacts) -> RunDirectory:
        """Remove the run in a folder and begin another; files that are not the run's stay.

        The folder holds a run at every moment, so an interrupted call can be repeated.

        Raises:
            FormatError: not a run; nothing is removed.
            StorageError: another process writes it, or the file system refused.
        """
        path = Path(path)
        require_run(path)
        run_lock = RunLock.acquire(path)
        try:
            fence = layout.highest_fence(path) + 1  # a reader of the old run meets no name again
            _prepare(path, config)
            fsops.unlink(path / METRICS)
            first = _first_record(config, facts)
            later = [p for p in layout.records(path) if p != log.record_path(path / "log", 0)]
            log.begin_anew(path / "log", later, first)
            run = cls(path, RunState.begin(first), fence, run_lock)
            run._clean_up()
            fsops.remove_empty_folders(path / "parts")
        except BaseException:
            run_lock.release()
            raise
        return run

    @classmethod
    def resume(cls, path: str | Path) -> RunDirectory:
        """Go on with a run: replay its log, say so in it, remove what no record names.

        What another process writes meanwhile, where locks do not keep it away, is removed only
        after the record that makes its next one fail.

        Raises:
            FormatError: not a run, or damaged; names the file.
            StorageError: another process writes it, or the file system refused.
        """
        path = Path(path)
        require_run(path)
        run_lock = RunLock.acquire(path)
        try:
            state = read_state(path)
            for ref in state.files():
                _require_file(path, ref)
            fsops.check_put_if_absent(path)
            fence = max(state.fence, layout.highest_fence(path)) + 1
            # Another writer has used no fence above `fence`, so none of its names either.
            run = cls(path, state, fence + 1, run_lock)
            run._append("resumed", Resumed(fence))
            fsops.replace(path / CONFIG, state.config.encode())
            run._clean_up()
        except BaseException:
            run_lock.release()
            raise
        return run

    @property
    def config(self) -> Config:
        """The configuration of the run."""
        return Config.from_json(self.state.config, f"{self.path}: log")

    def reconfigure(self, config: Config) -> None:
        """Go on with another configuration; whether it suits the run is for the caller to know.

        Raises:
            StorageError: the file system refused.
        """
        self._append("config", Reconfigured(config.to_json()))
        fsops.replace(self.path / CONFIG, config.to_json().encode())

    def relations(self) -> Arrays:
        """Return the newest relation parameters with their optimizer state; {} before a commit.

        Raises:
            FormatError: the file is damaged.
        """
        if self.state.relations is None:
            return {}
        return read_arrays(self.path, self.state.relations)[0]

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
        file = write_arrays(self.path, f"relations/f{fence:06d}.h5", arrays, {"fence": fence})
        heads = tuple(
            Head(key, self.state.heads[key].version if key in self.state.heads else 0, saved)
            for key, saved in partitions.items()
        )
        body = Commit(fence, epoch, tuple(buckets), heads, file, edges, dict(stats))
        for ref in (file, *(saved.file for saved in partitions.values())):
            _require_unremoved(self.path / ref.path)
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
        named = {self.path / ref.path for ref in self.state.files()}
        committed = {(self.path / s.file.path).parent: s.version for s in self.state.heads.values()}
        garbage = [
            path
            for path in layout.data_files(self.path)
            if path not in named and not self._in_flight(path, committed.get(path.parent, 0))
        ]
        for path in garbage:
            fsops.unlink(path)
        return len(garbage)

    def close(self) -> None:
        """Let others write the run."""
        self._lock.release()

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
        for file in layout.temporaries(self.path):
            fsops.unlink(file)

    def _in_flight(self, path: Path, committed: int) -> bool:
        """Tell whether this process wrote a file after the last commit, or is writing it."""
        match = layout.FILE_NAME.fullmatch(path.name)
        if match is None or match[1] is None:
            return path.name.endswith(fsops.TEMPORARY)
        return int(match[2]) >= self._first_fence and int(match[1]) > committed

    def _append(self, kind: str, body: object) -> None:
        record = log.Record(self.state.number, kind, dump_body(kind, body))
        state = self.state.apply(record)  # refuses before anything is written
        log.append(self.path / "log", record)
        self.state = state


def check_claimable(path: str | Path) -> None:
    """Refuse a folder in which no run can be begun, resumed or begun anew; touches nothing.

    A folder with a run may hold any other files. One without may hold nothing, or what a failed
    beginning left. Whether another process writes there shows only when it is locked.

    Raises:
        StorageError: it holds something else, is a file, or the file system refused.
    """
    path = Path(path)
    with fsops.operation("read", path):
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise StorageError(f"{existing}: is a file; give the path of a folder")
    if path.exists() and not is_run(path):
        _require_vacant(path)


def is_run(path: str | Path) -> bool:
    """Tell whether a folder holds a run; raises StorageError where it cannot be read."""
    first = log.record_path(Path(path) / "log", 0)
    with fsops.operation("read", first):
        return first.exists()


def require_run(path: Path) -> None:
    """Refuse a folder that is not a run.

    Raises:
        FormatError: there is no such folder, or it holds no log.
    """
    if not is_run(path):
        found = "is not a run" if path.exists() else "does not exist"
        raise FormatError(f"{path}: {found} (no log/00000000); give the checkpoint.path of a run")


def read_state(path: Path) -> RunState:
    """Replay the log of a run; raises FormatError naming the folder and the record."""
    records = log.replay(path / "log")
    try:
        return RunState.replay(records)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def _require_vacant(path: Path) -> None:
    """Refuse a folder that holds anything but a failed beginning."""
    if is_run(path):
        raise StorageError(
            f"{path}: holds a run already; resume it, begin anew with --restart, or choose "
            "another checkpoint.path"
        )
    for file in sorted(set(layout.all_files(path)) - set(layout.temporaries(path))):
        if not _left_by_beginning(path, file):
            raise StorageError(
                f"{path}: holds something else ({file.relative_to(path)}); choose an empty or a "
                "new folder for checkpoint.path"
            )


def _left_by_beginning(path: Path, file: Path) -> bool:
    if file == path / lock.NAME:
        return RunLock.is_own(file)
    if file != path / CONFIG or not file.is_file():
        return False
    text = fsops.read_file(file).decode(errors="replace")
    try:
        return Config.from_json(text, str(file)).to_json() == text
    except ConfigError:
        return False


def _prepare(path: Path, config: Config) -> None:
    for name in FOLDERS:
        fsops.make_folder(path / name)
    fsops.check_put_if_absent(path)
    fsops.replace(path / CONFIG, config.to_json().encode())


def _first_record(config: Config, facts: InitFacts) -> log.Record:
    return log.Record(0, "init", dump_body("init", Init(facts, config.to_json())))


def _require_file(path: Path, ref: FileRef) -> None:
    file = locate(path, ref.path)
    if not file.is_file():
        raise FormatError(f"{file}: missing; restore it from a copy, or begin the run anew")


def _require_unremoved(file: Path) -> None:
    if not file.is_file():
        raise StorageError(
            f"{file}: gone before it was committed; another process has gone on with this run"
        )
