"""The run directory and its one writer.

    config.json   the configuration, for people; the log holds the one that counts
    log/          numbered records: what they say happened, happened
    parts/        immutable partition files, one per version
    relations/    immutable files of relation parameters, or of what is to be added to them
    lock          held by the process that writes

A commit writes its files first and its record last, so a crash at any moment leaves the state of
the last record; files that no record names are removed at the next start. Knows nothing of
training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from biggraph.config import Config
from biggraph.errors import ConfigError, FormatError, InputError, StorageError
from biggraph.storage import layout, lock, log
from biggraph.storage.files import Arrays
from biggraph.storage.layout import CONFIG, FOLDERS
from biggraph.storage.opening import open_place
from biggraph.storage.place import Place, files_of_a_commit, require_file
from biggraph.storage.records import (
    Based,
    Commit,
    Evaluation,
    Expired,
    Init,
    InitFacts,
    Lease,
    Named,
    Reconfigured,
    Resumed,
    Work,
    dump_body,
)
from biggraph.storage.relations import read_relations, write_relations
from biggraph.storage.state import RunState
from biggraph.storage.store import DiskStore


class RunDirectory:
    """The writer of a run.

    Args:
        place: of the run.
        state: what its log says.
        fence: no lease has used this one or a higher one.
        unlock: lets other writers in, at `close`.
    """

    def __init__(
        self, place: Place, state: RunState, fence: int, unlock: Callable[[], None]
    ) -> None:
        self.place, self.state = place, state
        self._fence = fence
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
            with suppress(FormatError):  # its log may be damaged
                fence = max(fence, read_state(place).fence + 1)  # nor does a worker meet its fence
            _prepare(place, config)
            for name in layout.told(place):
                place.remove(name)
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
            with log.reading_files(place, state.number):
                for ref in state.files():
                    require_file(place, ref.path, ref.size)
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

    def reconfigure(self, config: Config, *, rate: float) -> None:
        """Go on with another configuration; whether it suits the run is for the caller to know.

        Args:
            config: from here on.
            rate: what multiplies its learning rates.

        Raises:
            StorageError: the file system refused.
        """
        self._append("config", Reconfigured(config.to_json(), rate))
        self.place.replace(CONFIG, config.to_json().encode())

    def relations(self) -> Arrays:
        """Return the newest relation parameters with their optimizer state; {} before a commit.

        Raises:
            FormatError: a file is missing or damaged.
            StorageError: another process has gone on with the run.
        """
        with log.reading_files(self.place, self.state.number):
            return read_relations(self.place, self.state.present)

    def store(self, fence: int) -> DiskStore:
        """Return a store that writes under a lease."""
        return DiskStore(self.place, self.state.facts, self.state.heads, fence)

    def begin_lease(self, worker: str, incarnation: int) -> int:
        """Give a worker a lease, and return its fence; an earlier lease of that worker ends.

        Raises:
            StorageError: the file system refused, or another process has gone on with the run.
        """
        fence = self._next_fence()
        self._append("lease", Lease(fence, worker, incarnation))
        return fence

    def expire(self, fence: int, reason: str, rate: float = 1.0) -> None:
        """End a lease: what was done under it never happened.

        Args:
            fence: of the lease.
            reason: in words.
            rate: what the learning rates are multiplied with from here on.

        Raises:
            FormatError: there is no such lease.
            StorageError: the file system refused, or another process has gone on with the run.
        """
        self._append("expired", Expired(fence, reason, rate))

    def commit(self, fence: int, work: Work) -> int:
        """Make work count: all of it, or after a crash none of it.

        Returns:
            The fence of the lease with which its worker goes on.

        Raises:
            FormatError: the work contradicts the log, or a file of it is not as it was written.
            CommitUnreadable: it cannot be seen whether a file of it is there.
            StorageError: as `begin_lease`; resume to learn whether the commit counts.
        """
        with files_of_a_commit():
            for ref in work.files():
                require_file(self.place, ref.path, ref.size)
        following = self._next_fence()
        self._append("commit", Commit(fence, following, work))
        return following

    def rebase(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the relation parameters as they are with every delta so far, as the new base.

        Raises:
            StorageError: as `begin_lease`.
        """
        fence = self._next_fence()
        self._append("relations", Based(fence, write_relations(self.place, fence, arrays)))

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

    def garbage(self) -> list[str]:
        """Return data files that the last commit, snapshots and live leases do not need.

        Those of fences that this log does not know are none: a writer that froze here and has been
        replaced meanwhile must not remove what its successor's workers wrote.
        """
        named = {ref.path for ref in self.state.files()}
        known = max(self._fence, self.state.fence)
        dead = [name for name in layout.data_files(self.place) if self._dead(name)]
        return [n for n in dead if n not in named and (layout.fence_of(n) or 0) <= known]

    def collect_garbage(self, keep: Iterable[str] = ()) -> int:
        """Remove `garbage` but `keep`; return how many files. Raises as `begin_lease`."""
        names = sorted(set(self.garbage()).difference(keep))
        for name in names:
            self.place.remove(name)
        return len(names)

    def require_own(self) -> None:
        """Refuse where another process has gone on with the run; raises StorageError."""
        log.require_free(self.place, self.state.number)

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
        if not self.state.leases:  # else workers may be reading what was replaced a moment ago
            self.collect_garbage()
        for name in filter(self._dead, layout.temporaries(self.place)):
            self.place.remove(name)

    def _dead(self, name: str) -> bool:
        """Tell whether no live lease wrote a file."""
        return layout.fence_of(name) not in self.state.leases

    def _next_fence(self) -> int:
        return max(self._fence, self.state.fence + 1)

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


def read_facts(path: str | Path | Place) -> InitFacts | None:
    """Return what never changes during a run, None where no run has begun yet.

    Raises:
        FormatError: the first record of the log is damaged.
    """
    place = open_place(path)
    name = log.record_name(0)
    if place.size(name) is None:
        return None
    return RunState.begin(log.decode(place.read(name), 0, place.where(name))).facts


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
