"""What the log may say: records that cannot be true are refused."""

import dataclasses

import pytest

from biggraph.errors import FormatError
from biggraph.storage.files import FileRef
from biggraph.storage.log import Record
from biggraph.storage.state import (
    Commit,
    Head,
    Init,
    PartitionVersion,
    RunState,
    dump_body,
    load_body,
)
from biggraph.storage.store import partition_path
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket
from tests.storage.doubles import BUCKETS, CONFIG, SCHEMA, facts


class Story:
    """Commits on paper: tables are chains, files are names."""

    def __init__(self):
        first = Record(0, "init", dump_body("init", load_body(self.init())))
        self.state = RunState.begin(first)
        self.chains = {key: new_chain(key) for key in SCHEMA.partition_keys()}

    @staticmethod
    def init():
        return Record(0, "init", dump_body("init", Init(facts(), CONFIG.to_json())))

    def commit(self, epoch, *buckets, **changes):
        """Apply a commit of these buckets; `changes` replace fields of the honest record."""
        touched = {}
        for bucket in buckets:
            for key in SCHEMA.partitions_of(bucket):
                touched[key] = advance_chain(touched.get(key, self.chains[key]), epoch, bucket)
        fence = self.state.fence + 1
        heads = []
        for key, chain in touched.items():
            base = self.state.heads[key].version if key in self.state.heads else 0
            ref = FileRef(partition_path(key, base + 1, fence), "0" * 64, 1)
            heads.append(Head(key, base, PartitionVersion(base + 1, ref, chain)))
        relations = FileRef(f"relations/f{fence}.h5", "0" * 64, 1)
        edges = sum(BUCKETS.get(bucket, 0) for bucket in buckets)
        honest = Commit(fence, epoch, buckets, tuple(heads), relations, edges, {})
        body = dump_body("commit", dataclasses.replace(honest, **changes))
        self.state = self.state.apply(Record(self.state.number, "commit", body))
        self.chains |= touched
        return heads


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
        (1, [B01], {"fence": 1}, "fence 1 is not above 1"),
        (1, [B01], {"partitions": ()}, "was not trained on exactly the buckets"),
        (1, [B01, B10], {"buckets": (B10, B01)}, "was not trained on exactly the buckets"),
        (1, [B01, B10], {"buckets": (B01,)}, "was not trained on exactly the buckets"),
        (1, [B01], {"buckets": (B01, B10)}, "was not trained on exactly the buckets"),
        (1, [B01], {"edges": 1}, "1 edges trained, its buckets have 2"),
        (1, [B01], {"edges": -1}, "malformed commit: edges"),
        (1, [B01], {"relations": None}, "malformed commit: relations"),
    ],
)
def test_commits_that_cannot_be_true_are_refused(epoch, buckets, changes, reason):
    story = Story()
    story.commit(1, B00)
    with pytest.raises(FormatError, match=f"log record 2: .*{reason}"):
        story.commit(epoch, *buckets, **changes)


@pytest.mark.parametrize(("base", "version"), [(0, 2), (2, 3), (1, 1)])
def test_a_fork_of_a_partition_is_refused(base, version):
    story = Story()
    heads = Story().commit(1, B00)
    story.commit(1, B00)
    saved = dataclasses.replace(heads[0].saved, version=version)
    forked = dataclasses.replace(heads[0], base=base, saved=saved)
    with pytest.raises(FormatError, match="does not follow its last version"):
        story.commit(1, B01, partitions=(forked,))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record(1, "party", {}), 'unknown kind "party"'),
        (Record(2, "snapshot", {"name": "a"}), "expected number 1"),
        (Record(1, "resumed", {"fence": 0}), "fence 0 is not above 0"),
        (Record(1, "snapshot", {}), "malformed snapshot: name"),
        (Record(1, "commit", {"fence": "x"}), "malformed commit"),
        (Record(1, "init", Story.init().body), "the run has begun already"),
    ],
)
def test_records_that_cannot_follow_are_refused(record, reason):
    with pytest.raises(FormatError, match=reason):
        Story().state.apply(record)


def test_a_log_has_to_begin():
    with pytest.raises(FormatError, match="the log is empty"):
        RunState.replay([])
    with pytest.raises(FormatError, match='is "snapshot", expected "init"'):
        RunState.replay([Record(0, "snapshot", {"name": "a"})])
