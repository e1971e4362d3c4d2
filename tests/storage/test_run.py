"""Run directories: created, resumed, locked, cleaned and removed."""

import dataclasses
import os

import numpy as np
import pytest
import torch

from biggraph.config import make_config
from biggraph.errors import FormatError, InputError, StorageError
from biggraph.storage import fsops, log
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.folder import Folder
from biggraph.storage.log import Record
from biggraph.storage.run import RunDirectory, read_state
from biggraph.storage.store import DiskStore, initial_table, partition_path
from biggraph.storage.table import advance_chain
from biggraph.types import Bucket, PartitionKey
from tests.storage import doubles
from tests.storage.doubles import CONFIG, SCHEMA, LoneWorker, facts, train, working

USER_0 = PartitionKey("user", 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "run"


@pytest.fixture
def trained(path):
    train(path)
    return path


def recreate(path):
    return RunDirectory.recreate(path, CONFIG, facts())


def data_files(path):
    return {str(p.relative_to(path)) for p in path.rglob("*.h5")}


def named_files(path):
    return {ref.path for ref in read_state(path).files()}


def test_a_new_run_knows_its_facts(path):
    with RunDirectory.create(path, CONFIG, facts(row_wise=True)) as run:
        assert run.state.facts == facts(row_wise=True)
        assert run.config == CONFIG
        assert run.relations() == {}
        assert (run.state.epoch, run.state.done, run.state.heads) == (0, (), {})
    assert read_state(path) == run.state
    assert make_config({}).from_json((path / "config.json").read_text(), "") == CONFIG


def test_training_ends_with_what_the_log_says(trained):
    state = read_state(trained)
    assert (state.epoch, state.done) == (2, ())
    assert state.edges == {1: 14, 2: 14}
    assert [e.metrics for e in state.evaluations] == [{"mrr": 0.5}]
    assert {len(stats) for stats in state.stats.values()} == {2}
    assert state.heads.keys() == set(SCHEMA.partition_keys())
    assert data_files(trained) == named_files(trained)
    assert Checkpoint.open(trained).verify() == []


def test_a_run_replays_to_the_same_state(trained):
    before = read_state(trained)
    with RunDirectory.resume(trained) as run:
        assert run.state.fence == before.fence + 1
        same = dataclasses.replace(run.state, number=before.number, fence=before.fence)
        assert same == before
        run.record_evaluation(2, {"mrr": 0.6})
        after = run.state
    assert read_state(trained) == after


def test_the_memory_of_the_cache_does_not_change_the_result(tmp_path):
    for capacity in (0, 150, 10**6):
        train(tmp_path / str(capacity), capacity)
    first, *others = (contents(p) for p in sorted(tmp_path.iterdir()))
    assert others == [first, first]


def contents(path):
    checkpoint = Checkpoint.open(path, "latest")
    rows = {k: checkpoint.rows(k, slice(None)).tobytes() for k in SCHEMA.partition_keys()}
    return rows, {k: v.tobytes() for k, v in checkpoint.relations().items()}


def test_occupied_folders_are_refused(tmp_path, trained):
    with pytest.raises(StorageError, match="holds a run already; resume it"):
        RunDirectory.create(trained, CONFIG, facts())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(StorageError, match=r"holds something else \(thesis.tex\)"):
        RunDirectory.create(tmp_path / "other", CONFIG, facts())
    assert not (tmp_path / "other" / "lock").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        RunDirectory.create(tmp_path / "file", CONFIG, facts())


def test_what_is_not_a_run_is_not_resumed_nor_removed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for use in (RunDirectory.resume, recreate, Checkpoint.open):
        with pytest.raises(FormatError, match="is not a run"):
            use(tmp_path / "other")
        with pytest.raises(FormatError, match="does not exist"):
            use(tmp_path / "none")
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_one_process_writes(trained):
    with RunDirectory.resume(trained):
        for use in (RunDirectory.resume, recreate):
            with pytest.raises(StorageError, match=f"process {os.getpid()} on .* is writing"):
                use(trained)
        assert Checkpoint.open(trained).verify() == []
    RunDirectory.resume(trained).close()


def test_a_beginning_that_failed_can_be_repeated(path):
    path.mkdir(parents=True)
    for name in ("log", "parts", "relations"):
        (path / name).mkdir()
    (path / "log" / "00000000.0123456789ab.tmp").write_text("torn")
    (path / "config.json").write_text(CONFIG.to_json())
    train(path)
    assert not [p for p in path.rglob("*.tmp") if p.parent.name != "log"]
    RunDirectory.resume(path).close()
    assert not list(path.rglob("*.tmp"))


def test_left_overs_are_removed_and_their_fences_never_used_again(trained):
    before = data_files(trained)
    folder = trained / "parts" / "user" / "0"
    (folder / "v000099-f000300.h5").write_bytes(b"never committed")
    (folder / "v000100-f000301.h5.0123456789ab.tmp").write_bytes(b"torn")
    (trained / "relations" / "f000400.h5").write_bytes(b"never committed")
    with RunDirectory.resume(trained) as run:
        assert LoneWorker.begin(run).store.fence == 402
    assert data_files(trained) == before
    assert not list(trained.rglob("*.tmp"))


def test_a_run_begun_anew_tells_nothing_of_the_old_one(trained):
    old = ["endpoint.json", "metrics.jsonl", "metrics-worker-1.jsonl", "metrics-a%2Fb%20c.jsonl"]
    torn = ["endpoint.json", "endpoint-parameters-1.json", "secret", "config.json"]
    old += [f"{name}.0123456789ab.tmp" for name in torn]
    # These are for processes that may live on; the last are the user's own.
    kept = ["secret", "endpoint-parameters-0.json", "metrics-of-a-friend.txt", "my-endpoint.json"]
    for name in (*old, *kept):
        (trained / name).write_text("{}")
    recreate(trained).close()
    left = {path.name for path in trained.iterdir() if path.is_file()}
    assert left == {*kept, "config.json", "lock"}


def test_garbage_collection_keeps_snapshots_and_work_in_flight(trained):
    with RunDirectory.resume(trained) as run:
        store = LoneWorker.begin(run).store
        saved = store.save(store.load(USER_0))
        assert run.collect_garbage() == 0
        assert (trained / saved.file.path).exists()
        kept = {s.file.path for s in run.state.snapshots["best"].heads.values()}
        assert kept <= data_files(trained)
        run.snapshot("best")
        assert run.collect_garbage() == len(kept) + 1  # and the relations
    with RunDirectory.resume(trained) as run:  # the worker may have outlived its coordinator
        assert data_files(trained) == named_files(trained) | {saved.file.path}
        LoneWorker.begin(run)
    assert data_files(trained) == named_files(trained)


@pytest.mark.parametrize("name", ["latest", "", "a/b", "..", ".hidden", "a b"])
def test_snapshot_names(trained, name):
    with RunDirectory.resume(trained) as run, pytest.raises(InputError, match="snapshot name"):
        run.snapshot(name)


def test_a_configuration_may_change_on_resume(trained):
    longer = make_config({"train": {"epochs": 99}})
    with RunDirectory.resume(trained) as run:
        run.reconfigure(longer, rate=1.0)
    (trained / "config.json").write_text("edited")
    with RunDirectory.resume(trained) as run:
        assert run.config == longer
    assert "99" in (trained / "config.json").read_text()
    assert Checkpoint.open(trained).config == longer


@pytest.mark.parametrize("victim", ["parts/user/0", "relations"])
def test_a_missing_file_is_named_at_the_start(trained, victim):
    with RunDirectory.resume(trained) as run:
        run.snapshot("best")
        run.collect_garbage()
    file = next((trained / victim).rglob("*.h5"))
    file.unlink()
    for use in (RunDirectory.resume, Checkpoint.open):
        with pytest.raises(FormatError, match=f"{file}: missing"):
            use(trained)


def test_a_damaged_table_is_named_when_it_is_read(trained):
    with RunDirectory.resume(trained) as run:
        saved, store = run.state.heads[USER_0], LoneWorker.begin(run).store
        (trained / saved.file.path).write_bytes(bytes(saved.file.size))
        with pytest.raises(FormatError, match=f"{saved.file.path}: damaged"):
            store.load(USER_0)
        (trained / saved.file.path).unlink()
        with pytest.raises(FormatError, match=f"{saved.file.path}: missing"):
            store.load(USER_0)


def test_a_file_in_the_wrong_place_is_named(trained):
    with RunDirectory.resume(trained) as run:
        swapped = {USER_0: run.state.heads[PartitionKey("user", 1)]}
        with pytest.raises(FormatError, match="expected arrays"):
            DiskStore(Folder(trained), run.state.facts, swapped, 9).load(USER_0)
        other = dataclasses.replace(run.state.heads[USER_0], chain="0")
        with pytest.raises(FormatError, match=r"expected .*'chain': '0'"):
            DiskStore(Folder(trained), run.state.facts, {USER_0: other}, 9).load(USER_0)


def test_tables_round_trip_bit_by_bit(path):
    for row_wise in (False, True):
        folder = path / str(row_wise)
        with RunDirectory.create(folder, CONFIG, facts(row_wise)) as run:
            store = LoneWorker.begin(run).store
            for key in SCHEMA.partition_keys():
                table = store.load(key)
                again = initial_table(facts(row_wise), key)
                assert torch.equal(table.rows, again.rows)
                table.rows[0, 0], table.state[0] = -0.0, 1e-45
                table.chain = advance_chain(table.chain, 1, Bucket(0, 0))
                assert store.save(table).version == 1
                found = store.load(key)
                assert found.rows.numpy().tobytes() == table.rows.numpy().tobytes()
                assert found.state.numpy().tobytes() == table.state.numpy().tobytes()
                assert found.chain == table.chain
                assert store.save(found).version == 2


def test_initial_tables_differ_between_partitions_and_seeds():
    tables = [initial_table(facts(), key).rows[:2].tolist() for key in SCHEMA.partition_keys()]
    assert tables[0] != tables[1] != tables[2] != tables[0]
    other = dataclasses.replace(facts(), seed=8)
    assert initial_table(other, USER_0).rows[:2].tolist() != tables[0]


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\0b", "ü", "%2F", " "])
def test_names_of_entity_types_stay_inside_their_folder(name):
    path = partition_path(PartitionKey(name, 1), 2, 3)
    parts, folder, index, file = path.split("/")
    assert (parts, index, file) == ("parts", "1", "v000002-f000003.h5")
    assert folder.strip(".")
    assert "\0" not in folder


def test_a_commit_that_contradicts_the_log_is_not_written(trained):
    with working(trained) as (worker, cache):
        before = worker.run.state
        cache.hold(SCHEMA.partitions_of(Bucket(0, 0)))
        with pytest.raises(FormatError, match="not trained on exactly the buckets"):
            worker.commit(
                3, [Bucket(0, 0)], cache.flush(), {"w": np.ones(1)}, 5, {}
            )  # chains not advanced
        assert worker.run.state == before
    assert read_state(trained) == before
    doubles.train(trained)


def test_a_record_written_by_another_process_stops_the_writer(trained):
    with RunDirectory.resume(trained) as run:
        log.append(Folder(trained), Record(run.state.number, "snapshot", {"name": "thief"}))
        with pytest.raises(StorageError, match="another process has written this record"):
            run.snapshot("mine")


@pytest.mark.parametrize("kind", ["commit", "relations"])
def test_hostile_names_in_a_record_lead_nowhere(trained, tmp_path, kind):
    (tmp_path / "secret").write_bytes(b"secret")
    state = read_state(trained)
    if kind == "relations":
        hostile = {"path": "../../secret", "size": 6, "digest": "0" * 64}
        body = {"fence": state.fence + 1, "relations": hostile}
        record, reason = Record(state.number, kind, body), "outside the run directory"
    else:
        record = [r for r in log.replay(Folder(trained)) if r.kind == "commit"][-1]
        for number in range(record.number, state.number):
            (trained / log.record_name(number)).unlink()
        record.body["work"]["relations"] |= {"path": "../../secret", "size": 6}
        reason = r"relation parameters are in '\.\./\.\./secret'"
    log.append(Folder(trained), record)
    with pytest.raises(FormatError, match=reason):
        Checkpoint.open(trained, "latest")
    with pytest.raises(FormatError, match=reason):
        RunDirectory.resume(trained)
    assert fsops.read_file(tmp_path / "secret") == b"secret"
