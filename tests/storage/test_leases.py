"""Leases on disk: several workers' commits count in turn, and each one's files are kept or not."""

import numpy as np
import pytest

from biggraph.errors import FormatError
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.records import Head, Lease, Work
from biggraph.storage.relations import write_delta, write_relations
from biggraph.storage.run import RunDirectory, read_state
from biggraph.storage.table import advance_chain
from biggraph.storage.vector import flatten
from biggraph.types import Bucket
from tests.storage.doubles import BUCKETS, CONFIG, SCHEMA, facts

B00, B01, B10, B11 = sorted(BUCKETS)
USER_0, USER_1, ITEM = SCHEMA.partition_keys()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def run(path):
    with RunDirectory.create(path, CONFIG, facts()) as run:
        yield run


def arrays(value):
    return {"w": np.full(3, value, np.float32), "optimizer.w": np.ones(3, np.float32)}


def work_on(run: RunDirectory, fence: int, *buckets: Bucket, **changes) -> Work:
    """Train buckets under a lease as one of several workers would, up to the commit."""
    store, epoch = run.store(fence), run.state.epoch + 1
    tables = {}
    for bucket in buckets:
        for key in SCHEMA.partitions_of(bucket):
            table = tables[key] = tables.get(key) or store.load(key)
            table.rows += 1
            table.chain = advance_chain(table.chain, epoch, bucket)
    before = {key: saved.version for key, saved in run.state.heads.items()}
    heads = tuple(Head(key, before.get(key, 0), store.save(t)) for key, t in tables.items())
    edges = sum(BUCKETS[bucket] for bucket in buckets)
    files = {"relations": None, "delta": None, **changes}
    return Work(epoch, buckets, heads, files["relations"], files["delta"], edges, {})


def names(path):
    return {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}


def data_files(path):
    return {name for name in names(path) if name.startswith(("parts/", "relations/"))}


def files_of(work):
    return {ref.path for ref in work.files()}


def test_two_workers_commit_in_turn(run, path):
    a, b = run.begin_lease("a", 5), run.begin_lease("b", 9)
    of_a, of_b = work_on(run, a, B00), work_on(run, b, B11)
    after_b = run.commit(b, of_b)
    after_a = run.commit(a, of_a)
    assert (a, b, after_b, after_a) == (1, 2, 3, 4)
    assert run.state.leases == {3: Lease(3, "b", 9), 4: Lease(4, "a", 5)}
    assert run.state.ended == {"a": (1, 4), "b": (2, 3)}
    assert run.state.done == (B11, B00)
    assert read_state(path) == run.state
    run.commit(after_a, work_on(run, after_a, B01, B10))
    assert run.state.epoch == 1
    assert [saved.version for saved in run.state.heads.values()] == [2, 2, 2]
    assert Checkpoint.open(path).verify() == []


@pytest.mark.parametrize("how", ["unknown", "expired", "replaced", "committed"])
def test_a_commit_without_a_live_lease_changes_nothing(run, path, how):
    fence = run.begin_lease("a", 1)
    work = work_on(run, fence, B00)
    if how == "unknown":
        fence = 77
    elif how == "expired":
        run.expire(fence, "silent")
    elif how == "replaced":
        run.begin_lease("a", 2)
    else:
        run.commit(fence, work)
    before, seen = run.state, names(path)
    with pytest.raises(FormatError, match=f"fence {fence} is not that of a live lease"):
        run.commit(fence, work)
    assert run.state == before == read_state(path)
    assert names(path) == seen


@pytest.mark.parametrize("field", ["relations", "delta"])
@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_a_commit_needs_its_relation_files_as_they_were_written(run, path, field, damage):
    run.rebase(arrays(1))
    fence = run.begin_lease("a", 1)
    ref = write_relations(run.place, fence, arrays(2))
    work = work_on(run, fence, B11, **{field: ref})
    content = (path / ref.path).read_bytes()
    (path / ref.path).unlink()
    if damage == "shorter":
        (path / ref.path).write_bytes(content[:-1])
    before, seen = run.state, names(path)
    with pytest.raises(FormatError, match=f"{path / ref.path}: (missing|expected a file of)"):
        run.commit(fence, work)
    assert run.state == before == read_state(path)
    assert names(path) == seen
    (path / ref.path).write_bytes(content)
    run.commit(fence, work)
    assert run.state.done == (B11,)


def test_ending_a_lease_twice_is_refused_and_not_written(run, path):
    fence = run.begin_lease("a", 1)
    run.expire(fence, "diverged", 0.5)
    before = run.state
    with pytest.raises(FormatError, match=f"fence {fence} is not that of a live lease"):
        run.expire(fence, "diverged", 0.5)
    assert run.state == before == read_state(path)
    assert run.state.rate == 0.5
    run.reconfigure(CONFIG, rate=1.0)
    assert read_state(path).rate == 1.0


def test_fences_rise_through_leases_commits_bases_and_starts(run, path):
    fences = [run.begin_lease("a", 1), run.begin_lease("b", 1)]
    fences.append(run.commit(fences[0], work_on(run, fences[0], B00)))
    run.rebase(arrays(1))
    fences.append(int(run.state.relations.path[-9:-3]))
    fences.append(run.begin_lease("c", 1))
    run.close()
    (path / "relations" / "f000050.h5").write_bytes(b"of a worker that the log does not know")
    with RunDirectory.resume(path) as again:
        assert again.state.leases.keys() == {2, 3, 5}
        fences.append(again.state.fence)
        fences.append(again.begin_lease("a", 2))
        fences.append(again.commit(3 - 1, work_on(again, 2, B11)))
        assert again.state.leases.keys() == {5, 52, 53}
    assert fences == [1, 2, 3, 4, 5, 51, 52, 53]


# What is removed and what is kept


def temporary(work):
    return f"{work.partitions[0].saved.file.path}.0123456789ab.tmp"


@pytest.fixture
def four(run, path):
    """Work of four leases, each with an unfinished file: live, silent, replaced, committed."""
    works = {}
    for worker, bucket in (("live", B00), ("silent", B01), ("replaced", B10), ("committed", B11)):
        fence = run.begin_lease(worker, 1)
        works[worker] = work_on(run, fence, bucket)
        (path / temporary(works[worker])).write_bytes(b"torn")
        if worker == "silent":
            run.expire(fence, "silent")
        elif worker == "replaced":
            run.begin_lease(worker, 2)
        elif worker == "committed":
            run.commit(fence, works[worker])
    return works


def kept_of(works):
    return files_of(works["live"]) | {temporary(works["live"])} | files_of(works["committed"])


def test_garbage_is_what_no_live_lease_wrote_and_nothing_names(run, path, four):
    before = data_files(path)
    dead = before - kept_of(four)
    assert len(dead) == len(files_of(four["silent"]) | files_of(four["replaced"])) + 3
    assert run.collect_garbage() == len(dead)
    assert data_files(path) == kept_of(four)
    assert run.collect_garbage() == 0


def test_a_start_keeps_what_live_leases_are_writing_and_may_be_reading(run, path, four):
    (path / "log" / "00000099.0123456789ab.tmp").write_bytes(b"torn")
    (path / "config.json.0123456789ab.tmp").write_bytes(b"torn")
    run.close()
    before = data_files(path)
    with RunDirectory.resume(path) as again:
        assert {n for n in before if not n.endswith(".tmp")} <= data_files(path)
        assert [n for n in names(path) if n.endswith(".tmp")] == [temporary(four["live"])]
        again.commit(1, four["live"])  # its worker did not notice
        again.collect_garbage()
    assert data_files(path) == files_of(four["live"]) | files_of(four["committed"])


def test_files_that_somebody_reads_are_kept_where_asked(run, path, four):
    reading = four["silent"].files()[:1]
    run.collect_garbage([reading[0].path])
    assert data_files(path) == kept_of(four) | {reading[0].path}
    run.place.remove(reading[0].path)
    assert data_files(path) == kept_of(four)
    run.place.remove(reading[0].path)  # gone is gone


def test_beginning_anew_keeps_nothing_of_live_leases(run, path, four):
    run.close()
    with RunDirectory.recreate(path, CONFIG, facts()) as again:
        assert data_files(path) == set()
        assert again.state.leases == {}
        fence = again.begin_lease("live", 1)
        assert fence > run.state.fence == max(run.state.leases)  # no file has that one yet
        with pytest.raises(FormatError, match="missing"):
            again.commit(fence, four["live"])


def test_a_run_with_a_damaged_log_can_be_begun_anew(run, path, four):
    run.close()
    (path / "log" / "00000002").write_bytes(b"damaged")
    with pytest.raises(FormatError, match="damaged record"):
        RunDirectory.resume(path)
    with RunDirectory.recreate(path, CONFIG, facts()) as again:
        assert again.begin_lease("live", 1) > 4  # of the newest file
    assert names(path) == {"lock", "config.json", "log/00000000", "log/00000001"}


# Relation parameters


def test_a_new_base_takes_the_place_of_base_and_deltas(run, path):
    run.rebase(arrays(1))
    base = run.state.relations
    a = run.begin_lease("a", 1)
    first = write_delta(run.place, a, flatten(arrays(2)).numpy())
    b = run.commit(a, work_on(run, a, B00, delta=first))
    run.snapshot("kept")
    second = write_delta(run.place, b, flatten(arrays(4)).numpy())
    run.commit(b, work_on(run, b, B01, delta=second))
    assert run.relations()["w"].tolist() == [7, 7, 7]
    summed = run.relations()
    run.rebase(summed)
    assert (run.state.deltas, read_state(path).deltas) == ((), ())
    for name, array in run.relations().items():
        assert array.tobytes() == summed[name].tobytes()
    run.collect_garbage()
    relations = {name for name in data_files(path) if name.startswith("relations/")}
    assert relations == {base.path, first.path, run.state.relations.path}  # the snapshot's too
    run.snapshot("kept")
    run.collect_garbage()
    relations = {name for name in data_files(path) if name.startswith("relations/")}
    assert relations == {run.state.relations.path}
