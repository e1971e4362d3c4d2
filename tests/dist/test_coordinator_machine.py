"""Coordinator and sessions against a small oracle: any order of requests, repetitions, restarts."""

import hashlib

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from biggraph.dist.coordinator import Coordinator
from biggraph.dist.course import Plan
from biggraph.dist.protocol import Finished, Grant, Wait
from biggraph.dist.session import LeaseLostError, Session
from biggraph.dist.status import Chronicle
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.files import FileRef
from biggraph.storage.records import Head, InitFacts, PartitionVersion, Work
from biggraph.storage.run import RunDirectory
from biggraph.storage.store import partition_path
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket
from tests.dist.simulation.disk import Disk
from tests.dist.simulation.stage import NoMetrics, Quiet
from tests.dist.simulation.world import begin
from tests.storage.doubles import CONFIG

TTL, EPOCHS = 10.0, 2
SCHEMA = GraphSchema((EntityType("e", (1, 1, 1)),), (RelationType("r", "e", "e"),))
BUCKETS = {Bucket(i, j): 1 for i in range(3) for j in range(3) if (i, j) != (2, 0)}
NEEDS = SCHEMA.needs(BUCKETS)
FACTS = InitFacts(SCHEMA, "graph", 1, True, 0.1, 0, BUCKETS)
TIMES = st.integers(1, 3)  # that a request comes
NAMES = st.sampled_from(["a", "b"])


class Memory(Disk):
    """A disk on which nothing takes time."""

    def _turn(self, kind):
        pass

    def put(self, name) -> FileRef:
        with self.create(name, 0) as file:
            file.write(name.encode())
        return FileRef(name, hashlib.sha256(name.encode()).hexdigest(), len(name))


class Oracle:
    """What was said to count: that alone, and each (epoch, bucket) once."""

    def __init__(self):
        self.counted, self.fences = [], [0]

    def leased(self, fence):
        assert fence > max(self.fences), f"fence {fence} after {self.fences}"
        self.fences.append(fence)

    def committed(self, epoch, buckets):
        for bucket in buckets:
            assert (epoch, bucket) not in self.counted
            self.counted.append((epoch, bucket))

    def check(self, state):
        done = [(epoch, b) for epoch in range(1, state.epoch + 1) for b in BUCKETS]
        done += [(state.epoch + 1, b) for b in state.done]
        assert sorted(done) == sorted(self.counted)


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        begin(0)
        self.now, self.times, self.disk, self.oracle = 0.0, 1, Memory(locks=False), Oracle()
        self.sessions, self.chains = {}, {}
        self.run = RunDirectory.create(self.disk, CONFIG, FACTS)
        self.serve()

    def serve(self):
        def schedule(state):
            left = [bucket for bucket in sorted(BUCKETS) if bucket not in state.done]
            return BucketScheduler(left, NEEDS, affinity=True)

        self.coordinator = Coordinator(
            self.run, Plan(EPOCHS, 0, 0, [], 3), schedule, fingerprint="run", ttl=TTL,
            parameters=None, chronicle=Chronicle(NoMetrics(), Quiet(), EPOCHS, lambda: self.now),
        )  # fmt: skip
        self.coordinator.start(self.now)

    def handle(self, request):
        """Answer a request, which may come several times; the last answer is the one heard."""
        answers = [self.coordinator.handle(request, self.now) for _ in range(self.times)]
        assert len({type(answer) for answer in answers}) == 1, answers
        self.times = 1
        return answers[-1]

    def attempt(self, name, action):
        try:
            return action(self.sessions[name])
        except LeaseLostError:
            del self.sessions[name]
            return None

    @rule(name=NAMES)
    def hello(self, name):
        session = Session(self.handle, name, len(self.oracle.fences) + 1000, "run", NEEDS)
        session.begin()
        self.oracle.leased(session.fence)
        self.sessions[name] = session
        self.chains[name] = {key: saved.chain for key, saved in session.heads.items()}

    @precondition(lambda self: self.sessions)
    @rule(name=NAMES, steps=st.integers(1, 4), times=TIMES)
    def work_on(self, name, steps, times):
        for _ in range(steps):
            self.times = times
            if name in self.sessions:
                self.attempt(name, lambda session: self.step(name, session))

    def step(self, name, session):
        task, changed = session.acquire()
        self.chains[name] |= {key: session.heads[key].chain for key in changed}
        if isinstance(task, Grant | Wait) and task.evict:
            self.give(name, session, task.evict)
        elif isinstance(task, Wait) and session.trained:
            self.submit(name, session, ())
        if isinstance(task, Grant):
            for key in NEEDS[task.bucket]:
                before = self.chains[name].get(key, new_chain(key))
                self.chains[name][key] = advance_chain(before, task.epoch, task.bucket)
            session.finish([task.bucket])
        return task

    def give(self, name, session, evict):
        if session.trained:
            self.submit(name, session, evict)
        else:
            session.give_back(evict)

    @precondition(lambda self: self.sessions)
    @rule(name=NAMES, times=TIMES)
    def commit(self, name, times):
        self.times = times
        if name in self.sessions and self.sessions[name].trained:
            self.attempt(name, lambda session: self.submit(name, session, ()))

    def submit(self, name, session, released):
        epoch, buckets, fence = session.epoch, session.trained, session.fence
        heads = []
        for key in sorted(set().union(*(NEEDS[bucket] for bucket in buckets))):
            base = session.heads[key].version if key in session.heads else 0
            file = self.disk.put(partition_path(key, base + 1, fence))
            saved = PartitionVersion(base + 1, file, self.chains[name][key])
            heads.append(Head(key, base, saved))
        relations = self.disk.put(f"relations/f{fence:06d}.h5")
        stats = {"loss": 1.0, "edges": len(buckets)}
        work = Work(epoch, buckets, tuple(heads), relations, None, len(buckets), stats)
        session.commit(work, released)
        self.oracle.leased(session.fence)
        self.oracle.committed(epoch, buckets)

    @precondition(lambda self: self.sessions)
    @rule(name=NAMES)
    def renew(self, name):
        if name in self.sessions:
            self.attempt(name, lambda session: session.renew(0))

    @precondition(lambda self: self.sessions)
    @rule(name=NAMES)
    def release(self, name):
        if name in self.sessions:
            self.sessions.pop(name).release()

    @rule(seconds=st.sampled_from([0.1, 1.0, TTL / 2, TTL]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def restart(self):
        self.run = RunDirectory.resume(self.disk)
        self.oracle.fences.append(self.run.state.fence)
        self.serve()

    @invariant()
    def what_counts_is_what_was_acknowledged(self):
        self.oracle.check(self.run.state)

    @invariant()
    def no_two_live_leases_work_on_one_partition(self):
        taken = {}
        for name, session in self.sessions.items():
            lease = self.run.state.leases.get(session.fence)
            for bucket in session.trained if lease else ():
                for key in NEEDS[bucket]:
                    assert taken.setdefault(key, name) == name

    def teardown(self):
        """Whatever has happened: two workers who are left alone finish the run."""
        self.now, self.times = self.now + 3 * TTL, 1
        for _ in range(20 * EPOCHS * len(BUCKETS)):
            for name in "ab":
                if name not in self.sessions:
                    self.hello(name)
                ended = self.attempt(name, lambda session, name=name: self.step(name, session))
                if isinstance(ended, Finished):
                    assert len(self.oracle.counted) == EPOCHS * len(BUCKETS)
                    return
            self.now += 0.1
        raise AssertionError("the run does not end")


TestCoordinator = Machine.TestCase
TestCoordinator.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
