"""What the log may say: records that cannot be true are refused."""

import dataclasses
from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from biggraph.errors import FormatError
from biggraph.storage.files import FileRef
from biggraph.storage.log import Record
from biggraph.storage.records import (
    Based,
    Commit,
    Expired,
    Head,
    Init,
    Lease,
    Named,
    PartitionVersion,
    Reconfigured,
    Resumed,
    Work,
    dump_body,
    load_body,
)
from biggraph.storage.state import RunState
from biggraph.storage.store import parameters_path, partition_path
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket
from tests.storage.doubles import BUCKETS, CONFIG, SCHEMA, facts


def file(name):
    return FileRef(name, "0" * 64, 1)


class Story:
    """Commits on paper: tables are chains, files are names."""

    def __init__(self, *, begun=True):
        first = Record(0, "init", dump_body("init", load_body(self.init())))
        self.state = RunState.begin(first)
        self.chains = {key: new_chain(key) for key in SCHEMA.partition_keys()}
        self.fence = self.lease("w") if begun else 0

    @staticmethod
    def init():
        return Record(0, "init", dump_body("init", Init(facts(), CONFIG.to_json())))

    def say(self, kind, body):
        record = Record(self.state.number, kind, dump_body(kind, body))
        self.state = self.state.apply(record)

    def lease(self, worker, incarnation=1):
        fence = self.state.fence + 1
        self.say("lease", Lease(fence, worker, incarnation))
        return fence

    def work(self, epoch, *buckets, fence=None):
        """Return what an honest worker would report of these buckets, and their chains."""
        touched = {}
        for bucket in buckets:
            for key in SCHEMA.partitions_of(bucket):
                touched[key] = advance_chain(touched.get(key, self.chains[key]), epoch, bucket)
        heads = []
        for key, chain in touched.items():
            base = self.state.heads[key].version if key in self.state.heads else 0
            ref = file(partition_path(key, base + 1, fence or self.fence))
            heads.append(Head(key, base, PartitionVersion(base + 1, ref, chain)))
        edges = sum(BUCKETS.get(bucket, 0) for bucket in buckets)
        relations = parameters(fence or self.fence)
        return Work(epoch, buckets, tuple(heads), relations, None, edges, {}), touched

    def commit(self, epoch, *buckets, fence=None, next=None, **changes):
        """Apply a commit of these buckets; `changes` replace fields of the honest work."""
        fence = self.fence if fence is None else fence
        following = self.state.fence + 1 if next is None else next
        work, touched = self.work(epoch, *buckets, fence=fence)
        self.say("commit", Commit(fence, following, dataclasses.replace(work, **changes)))
        self.chains |= touched
        self.fence = following
        return work.partitions


B00, B01, B10, B11 = sorted(BUCKETS)


def test_an_epoch_ends_when_its_last_bucket_is_done():
    story = Story()
    story.commit(1, B00, B11)
    assert (story.state.epoch, story.state.done) == (0, (B00, B11))
    story.commit(1, B10)
    story.commit(1, B01)
    assert (story.state.epoch, story.state.done) == (1, ())
    story.commit(2, B01, B00, B11, B10)
    assert (story.state.epoch, story.state.done) == (2, ())


def test_a_commit_without_buckets_may_keep_initial_relations():
    story = Story()
    story.commit(1)
    assert story.state.relations is not None
    assert story.state.done == ()


@pytest.mark.parametrize(
    ("epoch", "buckets", "changes", "reason"),
    [
        (1, [B00], {}, "was committed before"),
        (1, [B01, B01], {}, "was committed before"),
        (1, [Bucket(5, 5)], {"partitions": ()}, "not one of the graph's"),
        (2, [B01], {}, "epoch 2 while epoch 1 is in training"),
        (0, [B01], {}, "epoch 0 while epoch 1"),
        (1, [B01], {"fence": 1}, "fence 1 is not that of a live lease"),  # a commit ended it
        (1, [B01], {"fence": 3}, "fence 3 is not that of a live lease"),
        (1, [B01], {"next": 2}, "fence 2 is not above 2"),
        (1, [B01], {"next": 1}, "fence 1 is not above 2"),
        (1, [B01], {"partitions": ()}, "was not trained on exactly the buckets"),
        (1, [B01, B10], {"buckets": (B10, B01)}, "was not trained on exactly the buckets"),
        (1, [B01, B10], {"buckets": (B01,)}, "was not trained on exactly the buckets"),
        (1, [B01], {"buckets": (B01, B10)}, "was not trained on exactly the buckets"),
        (1, [B01], {"edges": 1}, "1 edges trained, its buckets have 2"),
        (1, [B01], {"edges": -1}, r"malformed commit: work\.edges"),
        (1, [B01], {"relations": "r.h5"}, r"malformed commit: work\.relations"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of what is malformed
def test_commits_that_cannot_be_true_are_refused(epoch, buckets, changes, reason):
    story = Story()
    story.commit(1, B00)
    before = story.state
    with pytest.raises(FormatError, match=f"log record 3: .*{reason}"):
        story.commit(epoch, *buckets, **changes)
    assert story.state == before


@pytest.mark.parametrize(("base", "version"), [(0, 2), (2, 3), (1, 1)])
def test_a_fork_of_a_partition_is_refused(base, version):
    story = Story()
    heads = Story().commit(1, B00)
    story.commit(1, B00)
    saved = dataclasses.replace(heads[0].saved, version=version)
    forked = dataclasses.replace(heads[0], base=base, saved=saved)
    with pytest.raises(FormatError, match="does not follow its last version"):
        story.commit(1, B01, partitions=(forked,))


# Leases


def test_a_commit_moves_its_lease_to_the_next_fence_and_is_remembered():
    story = Story()
    other = story.lease("v", 7)
    story.commit(1, B00, next=9)
    assert story.state.leases == {other: Lease(2, "v", 7), 9: Lease(9, "w", 1)}
    assert (story.state.fence, story.state.ended) == (9, {"w": (1, 9)})
    story.commit(1, B01)
    assert story.state.leases.keys() == {2, 10}
    story.commit(1, B10, fence=other)
    assert story.state.leases == {10: Lease(10, "w", 1), 11: Lease(11, "v", 7)}
    assert story.state.ended == {"w": (9, 10), "v": (2, 11)}


def test_a_new_lease_ends_the_older_one_of_the_same_worker_only():
    story = Story()
    other = story.lease("v")
    again = story.lease("w", 2)
    assert story.state.leases == {other: Lease(2, "v", 1), again: Lease(3, "w", 2)}
    with pytest.raises(FormatError, match="fence 1 is not that of a live lease"):
        story.commit(1, B00, fence=1)
    story.commit(1, B00, fence=again)
    story.commit(1, B01, fence=other)
    assert story.state.done == (B00, B01)


def test_an_expired_lease_can_neither_commit_nor_expire_again():
    story = Story()
    story.say("expired", Expired(1, "silent"))
    assert (story.state.leases, story.state.fence, story.state.rate) == ({}, 1, 1.0)
    assert story.state.ended == {}
    with pytest.raises(FormatError, match="log record 3: fence 1 is not that of a live lease"):
        story.commit(1, B00)
    with pytest.raises(FormatError, match="log record 3: fence 1 is not that of a live lease"):
        story.say("expired", Expired(1, "silent"))


def test_the_rate_is_multiplied_where_leases_diverge_and_set_by_a_configuration():
    story = Story()
    for _ in range(2):
        story.say("expired", Expired(story.lease("w"), "diverged", 0.5))
    assert story.state.rate == 0.25
    story.say("config", Reconfigured("{}", 1.0))
    assert (story.state.rate, story.state.config) == (1.0, "{}")
    for rate in (0.0, 1.5, -1.0):
        with pytest.raises(FormatError, match="malformed expired: rate"):
            story.say("expired", Expired(story.lease("w"), "diverged", rate))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("lease", Lease(5, "v", 1)),
        ("resumed", Resumed(5)),
        ("relations", Based(5, file("relations/f5.h5"))),
    ],
)
@pytest.mark.parametrize("fence", [0, 4, 5])
def test_every_fence_is_above_all_before(kind, body, fence):
    story = Story()
    story.say("resumed", Resumed(4))
    story.commit(1, B00)
    assert story.state.fence == 5
    with pytest.raises(FormatError, match=f"log record 4: fence {fence} is not above 5"):
        story.say(kind, dataclasses.replace(body, fence=fence))
    story.say(kind, dataclasses.replace(body, fence=6))
    assert story.state.fence == 6


def test_leases_outlive_the_process_that_wrote_the_log():
    story = Story()
    story.say("resumed", Resumed(40))
    story.commit(1, B00)
    assert story.state.leases.keys() == {41}


# Relation parameters


def parameters(fence):
    """Return the file of relation parameters that a lease writes."""
    return file(parameters_path(fence))


def delta(fence):
    """Return the fields of work that brings a delta and nothing else of relations."""
    return {"relations": None, "delta": parameters(fence)}


@pytest.mark.parametrize(
    "names",
    [
        {"relations": "log/00000000"},
        {"relations": "relations/f000009.h5"},
        {"delta": "../elsewhere"},
        {"partition": "log/00000000"},
        {"partition": "parts/user/0/v000001-f000009.h5"},
    ],
)
def test_a_commit_names_files_of_its_own_only(names):
    """What a commit names, a later one makes disappear."""
    story = Story()
    story.say("relations", Based(2, file("base")))
    work, _ = story.work(1, B00)
    changes = {name: file(path) for name, path in names.items() if name != "partition"}
    if path := names.get("partition"):
        first, *others = work.partitions
        saved = dataclasses.replace(first.saved, file=file(path))
        changes["partitions"] = (dataclasses.replace(first, saved=saved), *others)
    with pytest.raises(FormatError, match=r"is in|parameters are in"):
        story.commit(1, B00, **changes)


def test_a_delta_without_a_base_is_refused():
    story = Story()
    with pytest.raises(FormatError, match="its delta has no relation parameters to be added to"):
        story.commit(1, B00, **delta(story.fence))
    story.commit(1, B00, relations=None)  # nothing of relations at all is allowed
    assert story.state.present.parameter_files() == ()
    with pytest.raises(FormatError, match="its delta has no relation parameters to be added to"):
        story.commit(1, B01, **delta(story.fence))


def test_deltas_pile_up_in_the_order_of_the_log_until_there_is_a_new_base():
    story = Story()
    other = story.lease("v")
    story.say("relations", Based(3, file("base")))
    story.commit(1, B00, fence=other, **delta(other))
    story.commit(1, B01, fence=1, **delta(1))
    story.commit(1, B10, relations=None)
    assert story.state.relations == file("base")
    assert story.state.deltas == (parameters(other), parameters(1))
    story.say("snapshot", Named("kept"))
    story.say("relations", Based(10, file("new")))
    assert story.state.present.parameter_files() == (file("new"),)
    last = story.fence
    story.commit(1, B11, **delta(last))
    assert story.state.present.parameter_files() == (file("new"), parameters(last))
    whole = story.fence
    story.commit(2, B00)
    assert (story.state.deltas, story.state.relations) == ((), parameters(whole))
    kept = story.state.snapshots["kept"]
    assert kept.parameter_files() == (file("base"), parameters(other), parameters(1))
    assert kept.files() <= story.state.files()
    assert file("new") not in story.state.files()


class Machine(RuleBasedStateMachine):
    """Against a naive record of who may commit: fences rise, and each one commits once."""

    @initialize()
    def begin(self):
        self.story = Story(begun=False)
        self.owner: dict[int, str] = {}
        self.used: list[int] = []
        self.todo = list(BUCKETS)

    @rule(worker=st.sampled_from("abc"), skip=st.integers(0, 3))
    def lease(self, worker, skip):
        fence = self.story.state.fence + 1 + skip
        self.story.say("lease", Lease(fence, worker, 1))
        self.used.append(fence)
        self.owner = {f: w for f, w in self.owner.items() if w != worker} | {fence: worker}

    @rule(choice=st.integers(0, 40))
    def expire(self, choice):
        self.tried(choice, lambda fence: self.story.say("expired", Expired(fence, "silent")))

    @precondition(lambda self: self.todo)
    @rule(choice=st.integers(0, 40))
    def commit(self, choice):
        following = self.story.state.fence + 1
        work = partial(self.story.commit, 1, self.todo[0], next=following)
        if worker := self.tried(choice, lambda fence: work(fence=fence)):
            self.used.append(following)
            self.owner[following] = worker
            self.todo.pop(0)

    def tried(self, choice, act):
        """Act under some fence, used or not; it has to succeed for that of a live lease only."""
        fence = [*self.used, self.story.state.fence + 1][choice % (len(self.used) + 1)]
        before = self.story.state
        if fence in self.owner:
            act(fence)
            return self.owner.pop(fence)
        with pytest.raises(FormatError, match=f"fence {fence} is not that of a live lease"):
            act(fence)
        assert self.story.state == before
        return None

    @invariant()
    def fences_rise_and_leases_are_those_expected(self):
        if hasattr(self, "story"):
            assert self.used == sorted(set(self.used))
            state = self.story.state
            assert {fence: lease.worker for fence, lease in state.leases.items()} == self.owner
            assert state.fence == max(self.used, default=0)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record(1, "party", {}), 'unknown kind "party"'),
        (Record(2, "snapshot", {"name": "a"}), "expected number 1"),
        (Record(1, "resumed", {"fence": 0}), "fence 0 is not above 0"),
        (Record(1, "snapshot", {}), "malformed snapshot: name"),
        (Record(1, "commit", {"fence": "x"}), "malformed commit"),
        (Record(1, "lease", {"fence": 1, "worker": "w"}), "malformed lease: incarnation"),
        (Record(1, "expired", {"fence": 1, "reason": "r"}), "fence 1 is not that of a live lease"),
        (Record(1, "relations", {"fence": 1}), "malformed relations: relations"),
        (Record(1, "init", Story.init().body), "the run has begun already"),
    ],
)
def test_records_that_cannot_follow_are_refused(record, reason):
    with pytest.raises(FormatError, match=reason):
        Story(begun=False).state.apply(record)


def test_a_log_has_to_begin():
    with pytest.raises(FormatError, match="the log is empty"):
        RunState.replay([])
    with pytest.raises(FormatError, match='is "snapshot", expected "init"'):
        RunState.replay([Record(0, "snapshot", {"name": "a"})])
