"""Checkpoints: any kept state, whole while the writer goes on, and verified in words."""

import threading

import numpy as np
import pytest

from biggraph.errors import FormatError, InputError
from biggraph.storage import log
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.folder import Folder
from biggraph.storage.records import Work
from biggraph.storage.relations import write_delta
from biggraph.storage.run import RunDirectory, read_state
from biggraph.storage.store import initial_table
from biggraph.storage.vector import flatten
from tests.storage.doubles import (
    CONFIG,
    DIMENSION,
    SCHEMA,
    LoneWorker,
    facts,
    train,
    train_epoch,
    working,
)

USER_0, USER_1, ITEM = SCHEMA.partition_keys()


@pytest.fixture
def trained(tmp_path):
    train(tmp_path / "run")
    return tmp_path / "run"


def snapshot_of_disk(path):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in path.rglob("*")}


def test_best_is_preferred_and_the_last_commit_is_always_there(trained):
    assert (Checkpoint.open(trained).name, Checkpoint.open(trained).epoch) == ("best", 1)
    latest = Checkpoint.open(trained, "latest")
    assert (latest.name, latest.epoch) == ("latest", 2)
    assert not np.array_equal(
        latest.rows(USER_0, slice(None)), Checkpoint.open(trained).rows(USER_0, slice(None))
    )
    with pytest.raises(InputError, match='no snapshot "bets"; did you mean "best"'):
        Checkpoint.open(trained, "bets")


def test_a_checkpoint_knows_its_run(trained):
    checkpoint = Checkpoint.open(str(trained))
    assert checkpoint.path == str(trained)
    assert checkpoint.config == CONFIG
    assert checkpoint.schema == SCHEMA
    assert checkpoint.shape(USER_0) == (3, DIMENSION)


def test_rows_are_those_of_the_store(trained):
    checkpoint = Checkpoint.open(trained, "latest")
    with RunDirectory.resume(trained) as run:
        store = LoneWorker.begin(run).store
        for key in SCHEMA.partition_keys():
            rows = store.load(key).rows.numpy()
            found = checkpoint.rows(key, slice(None))
            assert found.dtype == np.float32
            assert np.array_equal(found, rows)
            assert np.array_equal(checkpoint.rows(key, slice(1, 2)), rows[1:2])
            offsets = np.array([1, 0, 1, 1])
            assert np.array_equal(checkpoint.rows(key, offsets), rows[offsets])
            assert checkpoint.rows(key, np.array([], dtype=np.int64)).shape == (0, DIMENSION)


def test_rows_are_the_callers_own(trained):
    checkpoint = Checkpoint.open(trained)
    checkpoint.rows(USER_0, slice(None))[:] = 0
    assert checkpoint.rows(USER_0, slice(None)).any()


def test_relations_come_without_optimizer_state(trained):
    assert Checkpoint.open(trained).relations().keys() == {"w"}


def test_a_run_without_a_commit_has_initial_rows_and_no_relations(tmp_path):
    RunDirectory.create(tmp_path / "run", CONFIG, facts()).close()
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert (checkpoint.name, checkpoint.epoch) == ("latest", 0)
    assert checkpoint.verify() == []
    for key in SCHEMA.partition_keys():
        expected = initial_table(facts(), key).rows.numpy()
        assert np.array_equal(checkpoint.rows(key, slice(None)), expected)
    with pytest.raises(FormatError, match="nothing was committed yet"):
        checkpoint.relations()


def test_reading_never_writes(trained):
    before = snapshot_of_disk(trained)
    checkpoint = Checkpoint.open(trained)
    checkpoint.rows(USER_0, slice(None))
    checkpoint.relations()
    checkpoint.verify()
    assert snapshot_of_disk(trained) == before


def test_an_open_checkpoint_stays_whole_when_its_files_are_removed(trained):
    checkpoint = Checkpoint.open(trained)
    expected = {key: checkpoint.rows(key, slice(None)) for key in (USER_0, USER_1)}
    checkpoint = Checkpoint.open(trained)
    with RunDirectory.resume(trained) as run:
        run.snapshot("best")
        assert run.collect_garbage() > 0
    for key, rows in expected.items():
        assert np.array_equal(checkpoint.rows(key, slice(None)), rows)
    assert checkpoint.relations()
    assert checkpoint.epoch == 1


def test_opening_while_a_run_is_trained(tmp_path):
    """The writer commits and removes files all the time; every checkpoint opened is one state."""
    path = tmp_path / "run"
    RunDirectory.create(path, CONFIG, facts()).close()
    done = threading.Event()

    def write():
        try:
            with working(path) as (worker, cache):
                for _ in range(10):
                    train_epoch(worker, cache)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        checkpoint = Checkpoint.open(path)
        rows = [checkpoint.rows(key, slice(None)) for key in SCHEMA.partition_keys()]
        assert all(np.isfinite(r).all() for r in rows)
        for key, saved in checkpoint.state.heads.items():
            assert checkpoint.shape(key)[0] == len(checkpoint.rows(key, slice(None)))
            assert saved.version > 0
        seen.add(checkpoint.state.number)
    writer.join()
    assert len(seen) > 1
    assert Checkpoint.open(path).epoch == 10


def test_a_removed_file_leads_to_a_second_look(trained, monkeypatch):
    """The log moved on between reading it and opening the files that it named."""
    stale = read_state(trained)
    with working(trained) as (worker, cache):
        train_epoch(worker, cache)
    states = [stale, read_state(trained)]
    monkeypatch.setattr("biggraph.storage.checkpoint.read_state", lambda path: states.pop(0))
    assert Checkpoint.open(trained, "latest").epoch == 3
    assert states == []


def test_damage_is_described(trained):
    state = read_state(trained)
    head = trained / state.heads[USER_0].file.path
    head.write_bytes(bytes(state.heads[USER_0].file.size))
    kept = trained / state.snapshots["best"].heads[USER_1].file.path
    relations = trained / state.relations.path
    checkpoint = Checkpoint.open(trained)
    kept.unlink()
    relations.write_bytes(b"short")
    problems = checkpoint.verify()
    assert len(problems) == 3
    for file, what in ((head, "damaged"), (kept, "missing"), (relations, "expected a file of")):
        assert [p for p in problems if p.startswith(f"{file}: {what}")]


def test_a_damaged_partition_is_named_when_it_is_first_read(trained):
    saved = read_state(trained).heads[USER_0]
    (trained / saved.file.path).write_bytes(bytes(saved.file.size))
    checkpoint = Checkpoint.open(trained, "latest")
    assert checkpoint.rows(USER_1, slice(None)).any()
    with pytest.raises(FormatError, match=f"{saved.file.path}: damaged"):
        checkpoint.rows(USER_0, slice(None))


def test_edges_that_are_missing_from_an_epoch_are_noticed(tmp_path):
    path = tmp_path / "run"
    with working(path) as (worker, cache):
        train_epoch(worker, cache)
    for record in log.replay(Folder(path)):
        if record.kind == "commit":
            record.body["work"]["edges"] -= 1
            (path / log.record_name(record.number)).write_bytes(log.encode(record))
    with pytest.raises(FormatError, match="edges trained, its buckets have"):
        Checkpoint.open(path)


def test_values_that_are_not_finite_are_described(trained):
    with working(trained) as (worker, _):
        worker.commit(3, [], {}, {"w": np.array([np.nan])}, 0, {})
        file = trained / worker.run.state.relations.path
    assert Checkpoint.open(trained, "latest").verify() == [f"{file}: w is not finite"]


def test_verification_meets_the_run_as_it_stands(trained):
    """Opened before the writer replaced every file."""
    checkpoint = Checkpoint.open(trained, "latest")
    with working(trained) as (worker, cache):
        train_epoch(worker, cache)
        assert checkpoint.verify() == []
        assert checkpoint.epoch == 2


def test_verification_looks_again_for_what_the_writer_replaced(trained, monkeypatch):
    stale = read_state(trained)
    checkpoint = Checkpoint.open(trained, "latest")
    with working(trained) as (worker, cache):
        train_epoch(worker, cache)
    now = read_state(trained)
    states = [stale, now, now]
    monkeypatch.setattr("biggraph.storage.checkpoint.read_state", lambda path: states.pop(0))
    assert checkpoint.verify() == []


# Relation parameters as a base and deltas


def arrays(value, **more):
    return {"w": np.float32([value] * 3), "optimizer.w": np.float32([value / 4] * 3), **more}


def add(worker, delta):
    """Commit a delta, and return its file."""
    run, fence = worker.run, worker.store.fence
    ref = write_delta(run.place, fence, flatten(delta).numpy())
    worker.store.fence = run.commit(fence, Work(run.state.epoch + 1, (), (), None, ref, 0, {}))
    return run.place.root / ref.path


@pytest.fixture
def summed(tmp_path):
    """A base of 1, a delta of 2, a snapshot, a delta of 4; their files."""
    path = tmp_path / "summed"
    with working(path) as (worker, _):
        worker.run.rebase(arrays(1))
        base = path / worker.run.state.relations.path
        first = add(worker, arrays(2))
        worker.run.snapshot("kept")
        return path, [base, first, add(worker, arrays(4))]


def test_relations_are_the_base_and_every_delta_of_the_state(summed):
    path, _ = summed
    for name, value in (("latest", 7), ("kept", 3)):
        checkpoint = Checkpoint.open(path, name)
        for _ in range(2):
            found = checkpoint.relations()
            assert found.keys() == {"w"}
            assert found["w"].tobytes() == arrays(value)["w"].tobytes()
            found["w"][:] = 0
    assert Checkpoint.open(path).verify() == []
    with RunDirectory.resume(path) as run:
        assert run.relations().keys() == {"w", "optimizer.w"}
        assert run.relations()["optimizer.w"].tolist() == [7 / 4] * 3


def test_an_open_checkpoint_outlives_a_new_base(summed):
    path, files = summed
    latest, kept = Checkpoint.open(path, "latest"), Checkpoint.open(path, "kept")
    with working(path) as (worker, _):
        worker.run.rebase(arrays(100))
        worker.run.snapshot("kept")
        assert worker.run.collect_garbage() == len(files)
    assert not any(file.exists() for file in files)
    assert latest.relations()["w"].tolist() == [7] * 3
    assert kept.relations()["w"].tolist() == [3] * 3
    assert Checkpoint.open(path, "latest").relations()["w"].tolist() == [100] * 3
    assert latest.verify() == []


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_damaged_base_or_delta_is_named(summed, victim):
    path, files = summed
    file = files[victim]
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(FormatError, match=f"{file}: damaged"):
        Checkpoint.open(path, "latest").relations()
    (problem,) = Checkpoint.open(path, "latest").verify()  # once, though two states need it
    assert problem.startswith(f"{file}: damaged")
    checkpoint = Checkpoint.open(path, "latest")
    file.unlink()
    assert checkpoint.verify() == [f"{file}: missing"]
    with pytest.raises(FormatError, match=f"{file}: missing"):
        Checkpoint.open(path, "latest")


@pytest.mark.parametrize(
    ("delta", "problem"),
    [
        (arrays(8, v=np.float32([1])), "7 relation parameters, expected 6"),
        ({"w": np.float32([1] * 3)}, "3 relation parameters, expected 6"),
        (arrays(np.inf), "delta is not finite"),
    ],
)
def test_a_delta_that_cannot_be_added_is_described(summed, delta, problem):
    path, _ = summed
    with working(path) as (worker, _):
        file = add(worker, delta)
    problems = Checkpoint.open(path, "latest").verify()
    assert f"{file}: {problem}" in problems
    assert all(line.startswith(f"{file}: ") for line in problems)
    with working(path) as (worker, _):
        worker.run.rebase(arrays(1))
    assert Checkpoint.open(path).verify() == []
