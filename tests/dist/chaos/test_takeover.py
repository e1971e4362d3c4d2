"""What a coordinator that has just started learns from workers that outlived the one before."""

import pytest

from biggraph.config import make_config
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.course import Plan
from biggraph.dist.protocol import Grant, Submit, Wait
from biggraph.dist.session import LeaseLostError, Session
from biggraph.dist.status import Chronicle
from biggraph.log import MetricsLog, Reporter
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.records import Head, InitFacts, Work
from biggraph.storage.run import RunDirectory
from biggraph.storage.table import advance_chain
from biggraph.types import Bucket

SCHEMA = GraphSchema((EntityType("e", (2, 2, 2, 2)),), (RelationType("r", "e", "e"),))
BUCKETS = [Bucket(lhs, rhs) for lhs in range(4) for rhs in range(4)]
NEEDS = SCHEMA.needs(BUCKETS)
FACTS = InitFacts(SCHEMA, "g", 2, False, 0.1, 1, dict.fromkeys(BUCKETS, 1))


class Job:
    """A run in a folder, and coordinators of it, one after the other."""

    def __init__(self, folder):
        self.folder, self.starts = folder, 0
        self.directory = RunDirectory.create(folder / "run", make_config({}), FACTS)
        self.coordinator = self._coordinator()

    def _coordinator(self):
        metrics = MetricsLog(self.folder / "metrics.jsonl")
        coordinator = Coordinator(
            self.directory,
            Plan(epochs=2, eval_every=0, patience=0, series=[], retries=0),
            self._schedule,
            fingerprint="f",
            ttl=10.0,
            parameters=None,
            chronicle=Chronicle(metrics, Reporter(quiet=True), 2),
        )
        coordinator.start(0.0)
        return coordinator

    def _schedule(self, state):
        left = [bucket for bucket in BUCKETS if bucket not in state.done]
        return BucketScheduler(left, NEEDS, affinity=True)

    def restart(self):
        self.directory.close()
        self.directory = RunDirectory.resume(self.folder / "run")
        self.coordinator = self._coordinator()

    def call(self, request):
        return self.coordinator.handle(request, 0.0)

    def session(self, name):
        self.starts += 1
        session = Session(lambda request: self.call(request), name, self.starts, "f", NEEDS)
        session.begin()
        return session

    def work(self, session, buckets):
        """Return what training these buckets comes to, with its files."""
        store, heads = self.directory.store(session.fence), []
        for key in sorted(set().union(*(NEEDS[bucket] for bucket in buckets))):
            table = store.load(key)
            for bucket in buckets:
                if key in NEEDS[bucket]:
                    table.chain = advance_chain(table.chain, 1, bucket)
            base = session.heads[key].version if key in session.heads else 0
            heads.append(Head(key, base, store.save(table)))
        return Work(1, tuple(buckets), tuple(heads), None, None, len(buckets), {"loss": 1.0})


@pytest.fixture
def job(tmp_path):
    found = Job(tmp_path)
    yield found
    found.directory.close()


def granted(session):
    task, _ = session.acquire()
    assert isinstance(task, Grant)
    return task.bucket


def test_a_commit_tells_what_was_granted_after_the_work(job):
    # A worker commits before it gives a partition up: with the next bucket granted already.
    worker = job.session("w")
    first = granted(worker)
    worker.finish([first])
    second = granted(worker)
    job.restart()
    worker.commit(job.work(worker, [first]))
    other = job.session("v")
    assert not NEEDS[granted(other)] & NEEDS[second]
    worker.finish([second])
    assert granted(worker) != second


def test_buckets_of_an_unknown_lease_are_not_granted(job):
    worker, other = job.session("w"), job.session("v")
    bucket = granted(worker)
    job.restart()
    assert isinstance(other.acquire()[0], Wait)
    worker.renew(0)
    assert not NEEDS[granted(other)] & NEEDS[bucket]


def test_a_repeated_commit_is_answered_by_the_next_coordinator(job):
    worker = job.session("w")
    bucket = granted(worker)
    worker.finish([bucket])
    work = job.work(worker, [bucket])
    job.call(Submit("w", worker.fence, worker._holding, work))  # its answer is lost
    job.restart()
    worker.commit(work)
    assert granted(worker) != bucket


def test_a_lease_that_another_start_has_ended_is_lost(job):
    worker = job.session("w")
    bucket = granted(worker)
    worker.finish([bucket])
    work = job.work(worker, [bucket])
    job.session("w")
    with pytest.raises(LeaseLostError):
        worker.commit(work)
