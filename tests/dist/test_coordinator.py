"""The coordinator, asked directly: what it grants, what counts, what a lost lease takes along."""

import math

import pytest

from biggraph.dist.coordinator import Coordinator
from biggraph.dist.course import Plan
from biggraph.dist.protocol import (
    Committed,
    Done,
    Failed,
    Finished,
    Grant,
    Hello,
    Holding,
    Lost,
    Renew,
    Validate,
    Wait,
    Welcome,
)
from biggraph.dist.session import LeaseLostError, Session
from biggraph.dist.status import Chronicle
from biggraph.errors import ConfigError, DivergenceError, FormatError, StorageError
from biggraph.log import MetricsLog, Reporter
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.files import write_arrays
from biggraph.storage.records import Head, InitFacts, PartitionVersion, Work
from biggraph.storage.run import RunDirectory
from biggraph.storage.store import partition_path
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket
from tests.storage.doubles import CONFIG

TTL = 10.0
PARTITIONS = 4
SCHEMA = GraphSchema(
    (EntityType("entity", (1,) * PARTITIONS),), (RelationType("edge", "entity", "entity"),)
)
BUCKETS = {Bucket(i, j): 1 for i in range(PARTITIONS) for j in range(PARTITIONS)}
NEEDS = SCHEMA.needs(BUCKETS)
FACTS = InitFacts(SCHEMA, "graph", 1, True, 0.1, 0, BUCKETS)


class World:
    """A coordinator, the time, and workers that train on paper."""

    def __init__(self, path, plan=None, ttl=TTL):
        self.path, self.now, self.ttl = path, 0.0, ttl
        self.plan = plan or Plan(2, 0, 0, [], 3)
        self.run = RunDirectory.create(path, CONFIG, FACTS)
        self.begin()

    def begin(self):
        """Start a coordinator on what the log says."""
        chronicle = Chronicle(
            MetricsLog(self.path / "metrics.jsonl"), Reporter(quiet=True), 2, lambda: self.now
        )
        self.coordinator = Coordinator(
            self.run,
            self.plan,
            lambda state: BucketScheduler(
                [b for b in sorted(BUCKETS) if b not in state.done], NEEDS, affinity=True
            ),
            fingerprint="run",
            ttl=self.ttl,
            parameters=None,
            chronicle=chronicle,
        )
        self.coordinator.start(self.now)

    def restart(self):
        """End the coordinator and start another: only the log survives."""
        self.run.close()
        self.run = RunDirectory.resume(self.path)
        self.begin()

    def handle(self, request):
        return self.coordinator.handle(request, self.now)

    def worker(self, name, incarnation=1):
        return Worker(self, name, incarnation)


class Worker:
    """A session, and files with a few bytes instead of tables."""

    def __init__(self, world, name, incarnation):
        self.world, self.name = world, name
        self.session = Session(world.handle, name, incarnation, "run", NEEDS)
        self.session.begin()
        self.chains = {key: saved.chain for key, saved in self.session.heads.items()}

    def acquire(self):
        task, changed = self.session.acquire()
        self.chains |= {key: self.session.heads[key].chain for key in changed}
        return task

    def train(self, grant):
        """Train the granted bucket; what is to be given back is committed first."""
        if grant.evict and self.session.trained:
            self.commit(grant.evict)
        elif grant.evict:
            self.session.give_back(grant.evict)
        for key in NEEDS[grant.bucket]:
            chain = self.chains.get(key, new_chain(key))
            self.chains[key] = advance_chain(chain, grant.epoch, grant.bucket)
        self.session.finish([grant.bucket])

    def work(self):
        session, buckets = self.session, self.session.trained
        touched = set().union(*(NEEDS[bucket] for bucket in buckets))
        heads = []
        for key in sorted(touched):
            base = session.heads[key].version if key in session.heads else 0
            name = partition_path(key, base + 1, session.fence)
            file = write_arrays(self.world.run.place, name, {}, {})
            heads.append(Head(key, base, PartitionVersion(base + 1, file, self.chains[key])))
        parameters = write_arrays(
            self.world.run.place, f"relations/f{session.fence:06d}.h5", {}, {}
        )
        stats = {"loss": 1.0, "edges": len(buckets)}
        return Work(session.epoch, buckets, tuple(heads), parameters, None, len(buckets), stats)

    def commit(self, released=()):
        self.session.commit(self.work(), released)

    def step(self):
        """Do whatever the coordinator says; return its answer."""
        task = self.acquire()
        if isinstance(task, Grant):
            self.train(task)
        elif isinstance(task, Wait) and self.session.trained:
            self.commit(task.evict)
        elif isinstance(task, Wait):
            self.session.give_back(task.evict)
        elif isinstance(task, Validate):
            self.session.evaluated(task.epoch, {"mrr": 0.5, "hits@10": 0.5})
        return task


@pytest.fixture
def make_world(tmp_path):
    worlds = []

    def make(*args, **options):
        worlds.append(World(tmp_path / "run", *args, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.run.close()


@pytest.fixture
def world(make_world):
    return make_world()


def finish(workers, steps=500):
    """Let workers take turns until all are told that the run is finished."""
    ends = {}
    for _ in range(steps):
        for worker in workers:
            if worker.name not in ends and isinstance(task := worker.step(), Finished):
                ends[worker.name] = task
        if len(ends) == len(workers):
            return ends
    raise AssertionError("no end in sight")


def test_three_workers_train_every_bucket_once(world):
    workers = [world.worker(name) for name in "abc"]
    ends = finish(workers)
    assert {end.epochs for end in ends.values()} == {2}
    state = world.coordinator.state
    assert (state.epoch, state.done, state.edges) == (2, (), {1: 16, 2: 16})
    assert {head.version for head in state.heads.values()} >= {1} or state.heads


def test_no_two_leases_ever_hold_a_partition(world):
    workers = [world.worker(name) for name in "abc"]
    for _ in range(60):
        for worker in workers:
            worker.step()
            epoch = world.coordinator.state.epoch + 1
            sessions = [w.session for w in workers if w.session.epoch == epoch]
            held = [key for session in sessions for key in session.held]
            assert len(held) == len(set(held))


def test_a_repeated_question_gets_the_same_answer(world):
    worker = world.worker("a")
    first, again = worker.acquire(), worker.acquire()
    assert isinstance(first, Grant)
    assert (first.bucket, first.evict) == (again.bucket, again.evict)


def test_a_repeated_commit_counts_once(world):
    worker = world.worker("a")
    worker.train(worker.acquire())
    work, fence = worker.work(), worker.session.fence
    worker.session.commit(work)
    before = world.coordinator.state
    worker.session.fence = fence  # the answer was lost
    worker.session.commit(work)
    assert world.coordinator.state == before
    assert worker.session.fence == before.ended["a"][1]


def test_silence_ends_a_lease_and_others_train_its_buckets(world):
    frozen, other = world.worker("a"), world.worker("b")
    frozen.train(frozen.acquire())
    lost = frozen.session.trained
    world.now += TTL / 2
    other.session.renew(0)
    world.now += TTL / 2
    granted = []
    while not world.coordinator.state.epoch:
        world.now += 0.1
        task = other.step()
        granted += [task.bucket] if isinstance(task, Grant) else []
    assert set(lost) <= set(granted)
    with pytest.raises(LeaseLostError, match="has ended"):
        frozen.commit()
    assert world.coordinator.state.edges[1] == 16


def test_renewals_keep_a_lease(world):
    worker = world.worker("a")
    worker.train(worker.acquire())
    for _ in range(5):
        world.now += TTL * 0.9
        worker.session.renew(0)
    worker.commit()


def test_a_renewal_that_a_commit_overtook_is_no_loss(world):
    worker = world.worker("a")
    worker.train(worker.acquire())
    late = Renew(worker.session.fence, Holding())
    worker.commit()
    assert world.handle(late) == Done()


def test_a_worker_that_starts_again_gets_a_lease_at_once(world):
    first = world.worker("a", 1)
    first.train(first.acquire())
    second = world.worker("a", 5)
    assert second.session.fence > first.session.fence
    with pytest.raises(LeaseLostError):
        first.commit()
    finish([second])


def test_an_earlier_start_of_the_same_name_is_sent_away(world):
    world.worker("a", 5)
    answer = world.handle(Hello("a", 3, "run"))
    assert isinstance(answer, Failed)
    assert answer.kind == ConfigError.__name__
    assert "BIGGRAPH_WORKER" in answer.message


def test_a_repeated_hello_gets_the_same_lease(world):
    first = world.handle(Hello("a", 7, "run"))
    assert isinstance(first, Welcome)
    assert world.handle(Hello("a", 7, "run")) == first


def test_another_run_file_is_refused(world):
    with pytest.raises(ConfigError, match="another run file or graph"):
        Session(world.handle, "a", 1, "other", NEEDS).begin()


def test_release_gives_everything_back(world):
    leaving, other = world.worker("a"), world.worker("b")
    leaving.train(leaving.acquire())
    leaving.session.release()
    leaving.session.release()  # the answer was lost
    finish([other])


def test_leases_outlive_the_coordinator(world):
    workers = [world.worker("a"), world.worker("b")]
    for worker in workers:
        worker.train(worker.acquire())
    fences = [worker.session.fence for worker in workers]
    trained = [worker.session.trained for worker in workers]
    world.restart()
    assert isinstance(workers[0].acquire(), Wait)  # the other has not said what it has
    workers[1].session.renew(0)
    for worker in workers:
        worker.commit(worker.session.held)
    assert list(world.coordinator.state.done) == [*trained[0], *trained[1]]
    assert [lease.worker for lease in world.coordinator.state.leases.values()] == ["a", "b"]
    ended = world.coordinator.state.ended
    assert [ended[worker.name][0] for worker in workers] == fences
    finish(workers)


def test_nobody_is_granted_what_a_silent_lease_may_have(world):
    silent, other = world.worker("a"), world.worker("b")
    silent.train(silent.acquire())
    world.restart()
    assert isinstance(other.acquire(), Wait)
    world.now += TTL / 2
    other.session.renew(0)
    assert isinstance(other.acquire(), Wait)
    world.now += TTL / 2
    other.session.renew(0)
    assert isinstance(other.acquire(), Grant)


def test_a_commit_may_be_the_first_word_after_a_restart(world):
    worker, other = world.worker("a"), world.worker("b")
    worker.train(worker.acquire())
    trained = worker.session.trained
    world.restart()
    worker.commit(worker.session.held)
    assert world.coordinator.state.done == trained
    finish([worker, other])


def test_who_trains_what_was_not_granted_begins_again(world):
    """After a restart, an old renewal may arrive before what the old coordinator granted last."""
    worker, other = world.worker("a"), world.worker("b")
    renewal = Renew(worker.session.fence, Holding())
    granted = worker.acquire()
    world.restart()
    world.handle(renewal)  # says that nothing is running
    other.session.renew(0)
    taken = other.acquire()
    assert taken.bucket == granted.bucket
    with pytest.raises(LeaseLostError):
        worker.session.renew(1)
    worker.session.begin()
    worker.chains.clear()
    finish([worker, other])


def test_divergence_goes_back_and_slows_down_a_few_times(make_world):
    world = make_world(Plan(2, 0, 0, [], 2))
    worker = world.worker("a")
    for rate in (0.5, 0.25):
        worker.train(worker.acquire())
        with pytest.raises(LeaseLostError):
            worker.session.diverged("the loss is NaN")
        worker.session.begin()
        worker.chains.clear()
        assert worker.session.rate == rate
    with pytest.raises(DivergenceError, match="the loss is NaN"):
        worker.session.diverged("the loss is NaN")
    assert isinstance(world.handle(Hello("b", 1, "run")), Failed)
    assert world.coordinator.state.edges == {}


def test_a_commit_that_the_log_refuses_ends_the_lease_and_then_the_run(world):
    worker = world.worker("a")
    for _ in range(2):
        worker.train(worker.acquire())
        worker.chains = dict.fromkeys(worker.chains, "wrong")
        with pytest.raises(LeaseLostError, match="not trained on exactly"):
            worker.commit()
        worker.session.begin()
        worker.chains.clear()
    worker.train(worker.acquire())
    worker.chains = dict.fromkeys(worker.chains, "wrong")
    with pytest.raises(FormatError, match="not trained on exactly"):
        worker.commit()
    assert world.coordinator.failure is not None


@pytest.mark.parametrize("kind", ["parts", "relations"])
def test_a_file_that_cannot_be_read_costs_its_worker_the_lease_and_nobody_else(world, kind):
    worker, other = world.worker("a"), world.worker("b")
    worker.train(worker.acquire())
    work = worker.work()
    named = next(ref.path for ref in work.files() if ref.path.startswith(kind))
    (world.path / named).unlink()
    (world.path / named).symlink_to((world.path / named).name)  # which leads nowhere, for ever
    with pytest.raises(LeaseLostError, match=f"{named}: cannot read: "):
        worker.session.commit(work)
    worker.session.begin()
    worker.chains.clear()
    finish([worker, other])


def test_a_log_that_cannot_be_written_ends_the_coordinator(world, monkeypatch):
    worker = world.worker("a")
    worker.train(worker.acquire())

    def refuse(name, data):
        raise StorageError(f"{name}: cannot write: No space left on device")

    monkeypatch.setattr(world.run.place, "put_if_absent", refuse)
    with pytest.raises(StorageError, match="No space left"):
        worker.commit()


def test_one_worker_validates_while_others_wait(make_world):
    world = make_world(Plan(1, 1, 0, [], 0))
    a, b = world.worker("a"), world.worker("b")
    while not world.coordinator.state.epoch:
        a.step()
        b.step()
    assert isinstance(a.acquire(), Validate)
    assert isinstance(b.acquire(), Wait)
    assert isinstance(a.acquire(), Validate)  # the answer was lost
    a.session.release()
    assert isinstance(b.acquire(), Validate)
    b.session.evaluated(1, {"mrr": 0.5, "hits@10": 0.5})
    b.session.evaluated(1, {"mrr": 0.5, "hits@10": 0.5})
    assert len(world.coordinator.state.evaluations) == 1
    assert isinstance(b.acquire(), Finished)


def test_patience_ends_a_run(make_world):
    world = make_world(Plan(9, 1, 2, [], 0))
    end = finish([world.worker("a")])["a"]
    assert (end.epochs, end.stopped_early) == (3, True)
    assert list(world.coordinator.state.snapshots) == ["best"]
    assert world.coordinator.state.snapshots["best"].epoch == 1


def test_files_are_removed_once_nobody_can_read_them(world):
    worker = world.worker("a")
    finish([worker])
    worker.session.release()
    named = {ref.path for ref in world.coordinator.state.files()}
    assert {n for n in world.run.place.names("parts") if n.endswith(".h5")} == {
        name for name in named if name.startswith("parts/")
    }


def test_a_world_of_one_needs_no_clock(make_world):
    world = make_world(ttl=math.inf)
    worker = world.worker("alone")
    world.now = 1e12
    finish([worker])
    assert isinstance(world.handle(Renew(worker.session.fence, Holding())), Done)


def test_the_answer_to_a_commit_names_the_next_fence(world):
    worker = world.worker("a")
    worker.train(worker.acquire())
    before = worker.session.fence
    worker.commit()
    assert worker.session.fence > before
    assert Committed(worker.session.fence).next in world.coordinator.state.leases
    assert isinstance(Lost("x").reason, str)


def test_a_coordinator_that_nobody_asks_notices_that_it_was_replaced(world):
    world.coordinator.tick(0.0)
    world.run.close()
    RunDirectory.resume(world.path).close()
    world.coordinator.tick(1.0)
    with pytest.raises(StorageError, match="another process has written"):
        world.coordinator.tick(10.0)


def test_a_new_coordinator_keeps_for_a_while_what_was_replaced(world):
    worker = world.worker("a")
    worker.train(worker.acquire())
    worker.commit()
    key, old = next(iter(worker.session.heads.items()))
    while worker.session.heads[key] == old:
        worker.train(worker.acquire())
        worker.commit()
    world.restart()
    assert world.run.place.size(old.file.path) is not None  # somebody may be reading it
    world.now += TTL - 1
    worker.train(worker.acquire())
    world.now += 2
    worker.commit()
    assert world.run.place.size(old.file.path) is None
