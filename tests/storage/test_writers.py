"""Two writers without locks, and folders in which other files lie beside a run."""

import errno
import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from biggraph.errors import FormatError, StorageError
from biggraph.storage import fsops, log
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.folder import Folder
from biggraph.storage.lock import RunLock
from biggraph.storage.run import RunDirectory, check_claimable, is_run, read_state
from biggraph.storage.table import advance_chain
from biggraph.types import Bucket
from tests.storage.doubles import (
    BUCKETS,
    CONFIG,
    SCHEMA,
    Crash,
    Fault,
    LoneWorker,
    facts,
    train,
    working,
)

FIRST = Bucket(0, 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def trained(path):
    train(path)
    return path


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def trained_tables(cache):
    """Train one bucket of epoch 3 and write its tables, which no commit names yet."""
    tables = cache.hold(SCHEMA.partitions_of(FIRST))
    for table in tables.values():
        table.chain = advance_chain(table.chain, 3, FIRST)
    return cache.flush()


def commit(worker, saved):
    worker.commit(3, [FIRST], saved, {"w": np.ones(3)}, BUCKETS[FIRST], {})


@pytest.mark.usefixtures("no_locks")
def test_a_writer_that_another_one_replaced_cannot_commit(trained):
    with working(trained) as (old, cache):
        saved = trained_tables(cache)
        before = old.run.state
        with working(trained) as (new, _):
            assert not (trained / saved[SCHEMA.partition_keys()[0]].file.path).exists()
            with pytest.raises(FormatError, match="missing"):
                commit(old, saved)
            assert old.run.state == before
            with pytest.raises(StorageError, match="another process has written this record"):
                old.run.snapshot("mine")
            assert new.store.fence > old.store.fence
    assert Checkpoint.open(trained, "latest").verify() == []
    train(trained)


@pytest.mark.usefixtures("no_locks")
def test_a_replaced_writer_cannot_commit_files_that_are_still_there(trained):
    """The new writer leaves the lease alone: its worker may have outlived its coordinator."""
    with working(trained) as (old, cache):
        saved = trained_tables(cache)
        before = old.run.state
        with RunDirectory.resume(trained) as new:
            assert old.store.fence in new.state.leases
            with pytest.raises(StorageError, match="another process has written this record"):
                commit(old, saved)
            assert old.run.state == before
            assert new.state.epoch == before.epoch
    assert read_state(trained).done == ()


@pytest.mark.usefixtures("no_locks")
def test_a_writer_that_lost_the_race_for_a_record_removes_nothing(trained, monkeypatch):
    """The old writer commits after the new one has read the log."""
    with working(trained) as (old, cache):
        saved = trained_tables(cache)
        stale = read_state(trained)
        commit(old, saved)
        monkeypatch.setattr("biggraph.storage.run.read_state", lambda path: stale)
        with pytest.raises(StorageError, match="another process has written this record"):
            RunDirectory.resume(trained)
    assert Checkpoint.open(trained, "latest").verify() == []


@pytest.mark.usefixtures("no_locks")
def test_a_writer_that_comes_while_another_one_replaces_files_says_so(trained, monkeypatch):
    """It has read the log, and finds that the files it names are gone."""
    stale = read_state(trained)
    with working(trained) as (worker, cache):
        commit(worker, trained_tables(cache))
        worker.run.collect_garbage()
        worker.run.state, now = stale, worker.run.state
        with pytest.raises(StorageError, match="another process has written this record"):
            worker.run.relations()
        worker.run.state = now
    assert not (trained / stale.relations.path).exists()
    with monkeypatch.context() as patch:
        patch.setattr("biggraph.storage.run.read_state", lambda path: stale)
        with pytest.raises(StorageError, match="another process has written this record"):
            RunDirectory.resume(trained)
    with RunDirectory.resume(trained) as run:
        (trained / run.state.relations.path).unlink()
        with pytest.raises(FormatError, match=f"{run.state.relations.path}: missing"):
            run.relations()


@pytest.mark.usefixtures("no_locks")
def test_a_replaced_writer_removes_nothing_of_its_successor(trained):
    """The old writer froze before it removed garbage, and wakes when the new one has committed."""
    with RunDirectory.resume(trained) as old:
        old.begin_lease("w", 1)
        with working(trained) as (new, cache):
            commit(new, trained_tables(cache))
            old.collect_garbage()
    assert Checkpoint.open(trained, "latest").verify() == []


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_a_commit_of_files_that_are_not_there_as_they_were_is_refused(trained, damage):
    with working(trained) as (worker, cache):
        saved = trained_tables(cache)
        file = trained / next(iter(saved.values())).file.path
        content = file.read_bytes()
        file.unlink()
        if damage != "gone":
            file.write_bytes(content[:-1] if damage == "shorter" else content + b"0")
        before = worker.run.state
        with pytest.raises(FormatError, match=f"{file}: (missing|expected a file of)"):
            commit(worker, saved)
        assert worker.run.state == before
    assert read_state(trained) == before


def test_a_temporary_file_that_another_process_removed_is_an_ordinary_error(tmp_path):
    with (
        pytest.raises(StorageError, match="another process has cleaned up"),
        fsops.publish(tmp_path / "a"),
    ):
        next(tmp_path.iterdir()).unlink()


def test_writing_again_after_a_failure_at_the_end_is_an_ordinary_error(trained):
    """The file has its name, but its folder could not be synced."""
    with RunDirectory.resume(trained) as run:
        store = LoneWorker.begin(run).store
        table = store.load(SCHEMA.partition_keys()[0])

        def fail(operation, path):
            if operation == "sync folder":
                raise OSError(5, os.strerror(5))

        with fsops.observed(fail), pytest.raises(StorageError, match="cannot sync folder"):
            store.save(table)
        with pytest.raises(StorageError, match=r"exists already; .*resume the run"):
            store.save(table)


def test_a_run_begun_by_another_process_meanwhile_is_not_overwritten(path, monkeypatch):
    acquire = RunLock.acquire

    def late(folder):
        monkeypatch.setattr(RunLock, "acquire", acquire)
        train(path)
        return acquire(folder)

    monkeypatch.setattr(RunLock, "acquire", late)
    with pytest.raises(StorageError, match="holds a run already"):
        RunDirectory.create(path, CONFIG, facts())
    assert Checkpoint.open(path).verify() == []
    RunDirectory.resume(path).close()  # the lock was released


# Files that are not the run's

FOREIGN = {
    "config.json": '{"editor": "vim"}',
    "metrics.jsonl": "{}",
    "lock": "yarn",
    "log": "a file",
    "log/app.log": "started",
    "log/00000001": "a record without a first one",
    "parts/list.csv": "screw",
    "relations/family.txt": "aunt",
    "data.tmp": "draft",
}


def put(path, names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(FOREIGN.get(name, "keep"))


def files(path):
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_without_a_run_that_holds_anything_is_refused_and_left_alone(path, name):
    put(path, [name])
    before = files(path)
    for use in (check_claimable, lambda p: RunDirectory.create(p, CONFIG, facts())):
        with pytest.raises(StorageError, match=rf"holds something else \({name}\)"):
            use(path)
    assert files(path) == before


BESIDE = ["notes.txt", "data.tmp", "export/user.npy", "log/app.log", "parts/list.csv"]


def test_files_beside_a_run_stay_whatever_is_done_with_it(trained):
    put(trained, BESIDE)
    kept = {name: (trained / name).read_bytes() for name in BESIDE}
    check_claimable(trained)
    RunDirectory.resume(trained).close()
    assert files(trained).items() >= kept.items()
    RunDirectory.recreate(trained, CONFIG, facts()).close()
    assert files(trained).keys() == {*kept, "lock", "config.json", "log/00000000"}
    train(trained)
    assert files(trained).items() >= kept.items()
    assert Checkpoint.open(trained).verify() == []


def test_what_can_be_claimed(tmp_path, path):
    check_claimable(path)
    path.mkdir()
    check_claimable(path)
    with RunDirectory.create(path, CONFIG, facts()):
        check_claimable(path)
    (tmp_path / "file").write_text("")
    for below in ("file", "file/run"):
        with pytest.raises(StorageError, match="file: is a file"):
            check_claimable(tmp_path / below)


def test_a_folder_that_cannot_be_read_is_an_ordinary_error(trained, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "stat", refuse)
    for use in (is_run, check_claimable, RunDirectory.resume):
        with pytest.raises(StorageError, match="cannot read: Permission denied"):
            use(trained)


def test_beginning_anew_ends_with_the_same_state(trained, tmp_path):
    train(tmp_path / "fresh")
    (trained / "metrics.jsonl").write_text("{}")
    RunDirectory.recreate(trained, CONFIG, facts()).close()
    assert read_state(trained).epoch == 0
    assert not (trained / "metrics.jsonl").exists()
    train(trained)
    chains = [
        {key: saved.chain for key, saved in read_state(p).heads.items()}
        for p in (trained, tmp_path / "fresh")
    ]
    assert chains[0] == chains[1]
    with pytest.raises(FormatError, match="is not a run"):
        RunDirectory.recreate(tmp_path, CONFIG, facts())


def test_beginning_anew_can_be_interrupted_anywhere(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for n in range(1, 1000, 5):
        copy = tmp_path / f"copy-{n}"
        shutil.copytree(trained, copy)
        with fsops.observed(fault := Fault(n, Crash())), suppress(Crash):
            RunDirectory.recreate(copy, CONFIG, facts()).close()
        assert is_run(copy)
        if log.replay(Folder(copy))[1:]:
            assert fault.hit
        RunDirectory.recreate(copy, CONFIG, facts()).close()
        assert files(copy).keys() == {"lock", "config.json", "log/00000000"}
        if not fault.hit:
            break
    assert n > 30
