"""Relation parameters among several workers: every copy, every server and the log agree."""

import threading

import numpy as np
import pytest
import torch

from biggraph.dist.follower import Follower
from biggraph.dist.parameter_server import ParameterServer, Sums
from biggraph.dist.parameters import SharedParameters
from biggraph.storage.vector import cut, flatten
from biggraph.errors import FormatError, LinkLost, RemoteError, StorageError
from biggraph.model.relations import RelationParameters
from biggraph.storage.files import read_arrays
from biggraph.storage.folder import Folder
from biggraph.storage.place import CommitUnreadable
from biggraph.storage.relations import read_relations
from biggraph.storage.run import RunDirectory, read_state
from tests.storage.doubles import BUCKETS, CONFIG, facts
from tests.storage.test_leases import work_on

ALL = tuple(sorted(BUCKETS))


def initial():
    return RelationParameters({"a": torch.randn(5, 3, generator=torch.Generator().manual_seed(1))})


def bits(arrays):
    return flatten(arrays).numpy().view(np.uint32).tolist()


class Cluster:
    """A coordinator's side, followers, and workers whose links the test may cut."""

    def __init__(self, path, servers):
        self.run = RunDirectory.create(path, CONFIG, facts())
        self.place, self.count = self.run.place, servers
        self.run.rebase(initial().arrays())
        self.center = ParameterServer(self.run.relations(), self.read)
        self.followers = [self.follower(index) for index in range(servers)]
        self.down: set[int] = set()

    def read(self, ref):
        return read_arrays(self.place, ref)[0]

    def follower(self, index):
        follower = Follower(self.place, index, self.count)
        follower.catch_up()
        return follower

    def call(self, index):
        def exchange(header, vector, *, patient):
            if index in self.down:
                raise LinkLost("down")
            return self.followers[index].exchange(header, vector)

        return exchange

    def worker(self, name):
        return Worker(self, name)

    def committed(self):
        return read_relations(self.place, read_state(self.place).present)

    def views(self, fence):
        header = {"fence": fence}
        views = [f.exchange(header, torch.empty(0))[1] for f in self.followers]
        return torch.cat(views)


class Worker:
    """What a worker does with its parameters."""

    def __init__(self, cluster, name):
        self.cluster, self.parameters = cluster, initial()
        calls = [cluster.call(index) for index in range(cluster.count)]
        self.shared = SharedParameters(self.parameters, calls, 60.0)
        self.fence = cluster.run.begin_lease(name, 1)
        cluster.center.begin(self.fence)
        self.shared.begin(self.fence)

    def train(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for tensor in (*self.parameters.values.values(), *self.parameters.sums.values()):
            tensor += torch.rand(tensor.shape, generator=generator)

    def commit(self, *buckets):
        run, center = self.cluster.run, self.cluster.center
        _, delta = self.shared.save(run.store(self.fence))
        work = work_on(run, self.fence, *buckets, delta=delta)
        arrays = center.check(work)
        following = run.commit(self.fence, work)
        center.commit(self.fence, following, arrays)
        self.shared.committed(following)
        self.fence = following


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path / "run", servers=3)
    yield cluster
    cluster.run.close()


def catch_up(cluster):
    for follower in cluster.followers:
        follower.catch_up()


def assert_all_equal(cluster, *workers):
    """Every slice, the coordinator's copy, the files and every worker: the same bits."""
    wanted = bits(cluster.committed())
    assert bits(cluster.center.arrays()) == wanted
    assert flatten_bits(torch.cat([f.committed for f in cluster.followers])) == wanted
    for worker in workers:
        worker.shared.end()
        assert bits(worker.parameters.arrays()) == wanted


def flatten_bits(vector):
    return vector.numpy().view(np.uint32).tolist()


def test_slices_cover_a_vector_once():
    for size in range(12):
        for count in range(1, 6):
            parts = [list(range(size))[cut(size, index, count)] for index in range(count)]
            assert [i for part in parts for i in part] == list(range(size))


def test_workers_servers_and_files_agree_bit_for_bit(cluster):
    a, b = cluster.worker("a"), cluster.worker("b")
    for seed, (worker, other, bucket) in enumerate([(a, b, 0), (b, a, 1), (a, b, 2), (b, a, 3)]):
        worker.train(seed)
        worker.shared.exchange()
        other.train(100 + seed)
        other.shared.exchange()
        worker.commit(ALL[bucket])
        worker.shared.exchange()
        catch_up(cluster)
    cluster.center.rebase(cluster.run)
    cluster.run.collect_garbage()
    a.shared.save(cluster.run.store(a.fence))  # what nobody committed is nowhere
    a.shared._saved = None
    a.shared.exchange()
    cluster.run.expire(a.fence, "test")
    cluster.run.expire(b.fence, "test")
    catch_up(cluster)
    assert_all_equal(cluster, a, b)


def test_every_slice_sees_what_others_pushed(cluster):
    a, b = cluster.worker("a"), cluster.worker("b")
    catch_up(cluster)
    a.train(1)
    a.shared.exchange()
    b.shared.exchange()
    np.testing.assert_allclose(flatten(b.parameters.arrays()), flatten(a.parameters.arrays()))
    assert torch.equal(cluster.views(a.fence), flatten(cluster.committed()))


def test_a_server_killed_in_the_middle_loses_nothing(cluster):
    a, b = cluster.worker("a"), cluster.worker("b")
    a.train(1)
    a.commit(ALL[0])
    cluster.down.add(1)
    a.train(2)
    a.shared.exchange()
    assert a.shared.lost == 1
    b.train(3)
    b.commit(ALL[1])  # no server is needed for that
    a.commit(ALL[2])
    a.train(4)
    cluster.followers[1] = cluster.follower(1)
    cluster.down.clear()
    catch_up(cluster)
    a.shared.exchange()
    seen = cluster.views(b.fence)
    np.testing.assert_allclose(seen, flatten(a.parameters.arrays()), rtol=1e-5)
    a.commit(ALL[3])
    catch_up(cluster)
    assert_all_equal(cluster, a, b)


def test_a_push_that_overtakes_the_log_does_no_harm(cluster):
    late = cluster.followers[0]
    a = cluster.worker("a")  # a fresh pull makes its lease known
    a.train(1)
    a.commit(ALL[0])
    before = flatten(a.parameters.arrays())
    a.train(2)
    trained = flatten(a.parameters.arrays())
    size = len(late.committed)
    answer, _ = late.exchange({"fence": a.fence}, torch.ones(size))
    assert answer == {"live": False}
    a.shared.exchange()
    assert torch.equal(flatten(a.parameters.arrays()), trained)
    catch_up(cluster)
    a.shared.exchange()
    others = cluster.views(0) - flatten(cluster.committed())
    np.testing.assert_allclose(others, trained - before, rtol=1e-4, atol=1e-6)


def test_an_expired_lease_takes_its_delta_with_it(cluster):
    a, b = cluster.worker("a"), cluster.worker("b")
    catch_up(cluster)
    a.train(1)
    a.shared.exchange()
    b.shared.exchange()
    cluster.run.expire(a.fence, "silent")
    catch_up(cluster)
    b.shared.exchange()
    np.testing.assert_allclose(
        flatten(b.parameters.arrays()), flatten(cluster.committed()), atol=1e-6
    )


def test_a_server_that_is_behind_finds_files_gone_and_reads_on(cluster):
    late = cluster.follower(2)
    a = cluster.worker("a")
    for bucket in ALL:
        a.train(bucket.lhs)
        a.commit(bucket)
    cluster.center.rebase(cluster.run)
    assert cluster.run.collect_garbage() >= len(ALL)
    late.catch_up()
    whole = flatten(cluster.committed())
    assert torch.equal(late.committed, whole[cut(len(whole), 2, 3)])


def test_a_file_may_vanish_between_reading_the_log_and_the_file(cluster, monkeypatch):
    late = cluster.follower(0)
    a = cluster.worker("a")
    a.train(1)
    a.commit(*ALL)
    read_log, again = late._log.state, []

    def rebase_after_reading():
        state = read_log()
        if not again:
            again.append(True)
            cluster.center.rebase(cluster.run)
            cluster.run.collect_garbage()
        return state

    monkeypatch.setattr(late._log, "state", rebase_after_reading)
    late.catch_up()
    whole = flatten(cluster.committed())
    assert torch.equal(late.committed, whole[cut(len(whole), 0, 3)])


def test_a_missing_file_is_named(cluster, tmp_path):
    (file,) = (tmp_path / "run/relations").iterdir()
    file.unlink()
    with pytest.raises(FormatError, match=r"f\d+\.h5: missing"):
        cluster.follower(0)


def test_a_delta_that_cannot_be_read_is_told_from_a_log_that_cannot(cluster, tmp_path):
    a = cluster.worker("a")
    a.train(1)
    _, delta = a.shared.save(cluster.run.store(a.fence))
    work = work_on(cluster.run, a.fence, *ALL, delta=delta)
    (tmp_path / "run" / delta.path).unlink()
    (tmp_path / "run" / delta.path).mkdir()
    with pytest.raises(CommitUnreadable, match=f"{delta.path}: cannot read: Is a directory"):
        cluster.center.check(work)


def test_a_run_begun_anew_is_followed(cluster, tmp_path):
    a = cluster.worker("a")
    a.train(1)
    a.commit(*ALL)
    cluster.center.rebase(cluster.run)
    catch_up(cluster)
    cluster.run.close()
    cluster.run = RunDirectory.recreate(tmp_path / "run", CONFIG, facts())
    cluster.run.rebase(initial().arrays())
    catch_up(cluster)
    views = torch.cat([follower.committed for follower in cluster.followers])
    assert torch.equal(views, flatten(initial().arrays()))
    assert cluster.followers[0].state == read_state(Folder(tmp_path / "run"))


def test_a_state_is_there_at_every_moment_while_another_run_is_read(cluster, monkeypatch):
    follower, looks = cluster.followers[0], []
    before = follower.state

    def broken(place):
        looks.append(follower.state)  # as the thread that serves does
        raise StorageError("unreachable")

    monkeypatch.setattr("biggraph.storage.reading.read_state", broken)
    monkeypatch.setattr(follower._log, "_last", None)  # as where the run was begun anew
    with pytest.raises(StorageError):
        follower.catch_up()
    assert [*looks, follower.state] == [before, before]
    monkeypatch.undo()
    cluster.worker("a")
    follower.catch_up()
    assert follower.state == read_state(cluster.place) != before


def test_servers_cut_otherwise_are_refused(cluster):
    calls = [cluster.call(0), cluster.call(1)]
    shared = SharedParameters(initial(), calls, 60.0)
    with pytest.raises(RemoteError, match=r"cluster\.parameter_servers"):
        shared.begin(1)


def test_sums_change_in_one_step_while_others_exchange():
    """A commit moves a delta into the committed vector; nobody sees it twice or not at all."""
    sums, seen, stop = Sums(torch.zeros(1000)), [], threading.Event()
    sums.follow(sums.committed, [0])

    def look():
        while not stop.is_set():
            view = sums.exchange({"fence": -1}, torch.empty(0))[1]
            seen.extend(view.unique().tolist())

    thread = threading.Thread(target=look)
    thread.start()
    for fence in range(300):
        sums.exchange({"fence": fence}, torch.ones(1000))
        sums.follow(sums.committed + 1, [fence + 1])
    stop.set()
    thread.join()
    assert seen == sorted(seen)


def test_the_end_of_a_run_counts_nothing_uncommitted(cluster):
    busy, done = cluster.worker("busy"), cluster.worker("done")
    catch_up(cluster)
    busy.train(1)
    busy.shared.exchange()
    done.shared.end()
    assert bits(done.parameters.arrays()) == bits(cluster.committed())
