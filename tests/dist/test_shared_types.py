"""Entity types that workers share: users in four partitions, countries in one, two workers."""

import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from biggraph import api
from biggraph.config import make_config
from biggraph.describe import describe
from biggraph.dist.parameter_server import ParameterServer
from biggraph.dist.parameters import SharedParameters
from biggraph.dist.protocol import Grant
from biggraph.dist.session import Session
from biggraph.embeddings import Embeddings
from biggraph.errors import ConfigError, FormatError
from biggraph.export import export
from biggraph.log import MetricsLog, Reporter
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.files import read_arrays
from biggraph.storage.records import Head, InitFacts, PartitionVersion
from biggraph.storage.relations import read_relations
from biggraph.storage.run import read_state
from biggraph.train import shared
from biggraph.train.build import WorkerParts, build_coordinator, build_trainer, open_run
from biggraph.train.ground import Ground, ground_of
from biggraph.train.shared import add_shared, choose_shared
from biggraph.types import Bucket, PartitionKey
from tests.storage.test_state import Story, file

USERS, COUNTRIES = 80, 10
COUNTRY = PartitionKey("country", 0)
SCHEMA = GraphSchema(
    (EntityType("user", (20,) * 4), EntityType("country", (10,))),
    (RelationType("lives_in", "user", "country"), RelationType("hosts", "country", "user")),
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Each user lives in one country, and every country hosts users of another."""
    users = np.random.default_rng(0).integers(USERS, size=1200)
    homes = users % COUNTRIES
    lives = ["lives_in"] * 600 + ["hosts"] * 600
    heads = [f"u{u}" for u in users[:600]] + [f"c{(c + 1) % COUNTRIES}" for c in homes[600:]]
    tails = [f"c{c}" for c in homes[:600]] + [f"u{u}" for u in users[600:]]
    config = make_config(
        {
            "entities": {"user": {"partitions": 4}},
            "relations": [
                {"name": "lives_in", "lhs": "user", "rhs": "country"},
                {"name": "hosts", "lhs": "country", "rhs": "user"},
            ],
        }
    )
    path = tmp_path_factory.mktemp("graph") / "graph"
    edges = pa.table({"head": heads, "relation": lives, "tail": tails})
    api.import_graph(edges, path, config=config, holdout={"valid": 0.1}, quiet=True)
    return path


def make_run(graph, path, **train):
    return make_config(
        {
            "graph": {"path": str(graph)},
            "model": {"dimension": 8},
            "negatives": {"in_batch": 20, "uniform": 10},
            "train": {
                "epochs": 4,
                "batch_size": 50,
                "threads": 1,
                "memory": "1MB",
                "commit_every": "0.001s",
            }
            | train,
            "optimizer": {"lr": 0.2},
            "cluster": {"workers": 2},
            "checkpoint": {"path": str(path)},
        }
    )


class Cluster:
    """A coordinator and workers in one process, which call each other directly."""

    def __init__(self, config, path):
        ground = Ground.of(config)
        self.directory = open_run(ground, restart=False)
        self.facts = self.directory.state.facts
        self.ground = ground_of(ground, self.facts)
        self.lock, self.reporter = threading.Lock(), Reporter(quiet=True)
        place, self.metrics = self.directory.place, MetricsLog(path)
        if self.directory.state.relations is None:
            self.directory.rebase(self.model().arrays())
        self.server = ParameterServer(
            self.directory.relations(), lambda ref: read_arrays(place, ref)[0]
        )
        self.coordinator = build_coordinator(
            self.ground, self.directory, self.metrics, self.reporter,
            ttl=1000.0, parameters=self.server,
        )  # fmt: skip
        self.coordinator.start(time.monotonic())

    def model(self):
        model = self.ground.model()
        add_shared(model.parameters, self.facts)
        return model

    def call(self, request):
        with self.lock:
            return self.coordinator.handle(request, time.monotonic())

    def session(self, name):
        return Session(self.call, name, 1, self.ground.fingerprint, self.ground.needs)

    def worker(self, name):
        model = self.model()

        def exchange(header, vector, *, patient):
            return self.server.exchange(header, vector)

        keeper = SharedParameters(model.parameters, [exchange], 0.01)
        place = self.directory.place
        parts = WorkerParts(model, self.facts, place, self.metrics, self.reporter)
        session = self.session(name)
        trainer = build_trainer(self.ground, parts, session, keeper, None, together=False)
        return trainer, keeper, model.parameters

    def train(self, *names):
        """Train to the end; return each worker's parameters."""
        workers = [self.worker(name) for name in names]
        threads = [threading.Thread(target=trainer.run) for trainer, _, _ in workers]
        for (_, keeper, _), thread in zip(workers, threads, strict=True):
            keeper.start()
            thread.start()
        for (trainer, keeper, _), thread in zip(workers, threads, strict=True):
            thread.join()
            keeper.close()
            trainer.close()
        return [parameters.arrays() for _, _, parameters in workers]


@pytest.fixture
def cluster(graph, tmp_path):
    cluster = Cluster(make_run(graph, tmp_path / "run"), tmp_path / "metrics.jsonl")
    yield cluster
    cluster.directory.close()


def test_two_workers_have_buckets_of_one_column_at_the_same_time(cluster):
    sessions = [cluster.session(name) for name in "ab"]
    granted = []
    for session in sessions:
        session.begin()
        task, _ = session.acquire()
        assert isinstance(task, Grant)
        granted.append(task.bucket)
    granted.append(sessions[1].acquire()[0].bucket)  # an answer that is lost is given again
    first, second, again = granted
    assert first != second == again
    users = [cluster.ground.needs[bucket] for bucket in (first, second)]
    assert all(key.entity_type == "user" for keys in users for key in keys)
    assert not users[0] & users[1]
    rows = [bucket for bucket in cluster.facts.buckets if bucket.rhs == 0]
    assert len(rows) == 4  # all of them need the one table of countries


def test_a_whole_run_counts_everything_once_and_can_be_read(cluster, tmp_path):
    run = tmp_path / "run"
    copies = cluster.train("a", "b")
    assert sum(map(len, read_state(run).stats.values())) == 4 * 7  # one for each bucket
    files = read_relations(cluster.directory.place, read_state(run).present)
    for arrays in (*copies, cluster.server.arrays()):
        assert arrays.keys() == files.keys()
        for name, array in files.items():
            np.testing.assert_array_equal(arrays[name].view(np.uint32), array.view(np.uint32))
    checkpoint = Checkpoint.open(run)
    assert checkpoint.verify() == []
    rows = checkpoint.rows(COUNTRY, slice(None))
    np.testing.assert_array_equal(rows, files["table.country"])
    assert (files["optimizer.table.country"] > 0).all()
    assert not any("table" in name for name in checkpoint.relations())
    assert describe(run)["shared_entity_types"] == ["country"]

    trained = api.evaluate(run, split="valid", quiet=True).metrics.mrr
    popular = api.evaluate(run, split="valid", baseline=True, quiet=True).metrics.mrr
    assert trained > popular + 0.1
    neighbors = Embeddings.open(run).neighbors("c1", 3, entity_type="country")
    assert len(neighbors) == 3
    export(run, tmp_path / "out", format="npy")
    exported = np.load(tmp_path / "out/country.npy")
    assert sorted(map(tuple, exported)) == sorted(map(tuple, rows))


@pytest.mark.parametrize("memory", ["5000", "1MB"])
def test_a_lone_worker_goes_on_with_a_run_of_several(cluster, graph, tmp_path, memory):
    run = tmp_path / "run"
    cluster.train("a", "b")
    before = Checkpoint.open(run).rows(COUNTRY, slice(None))
    cluster.directory.close()
    alone = make_run(graph, run, epochs=6, memory=memory)
    alone = alone.model_copy(update={"cluster": make_config({}).cluster})
    assert api.train(alone, quiet=True).epochs == 6
    checkpoint = Checkpoint.open(run)
    assert checkpoint.verify() == []
    after = checkpoint.rows(COUNTRY, slice(None))
    assert not np.array_equal(before, after)
    assert COUNTRY not in checkpoint.state.heads
    assert api.evaluate(run, split="valid", quiet=True).metrics.mrr > 0.3


def test_several_workers_go_on_after_a_lone_one(cluster, graph, tmp_path):
    cluster.train("a")
    cluster.directory.close()
    alone = make_run(graph, tmp_path / "run", epochs=5)
    api.train(alone.model_copy(update={"cluster": make_config({}).cluster}), quiet=True)
    again = Cluster(make_run(graph, tmp_path / "run", epochs=6), tmp_path / "metrics.jsonl")
    again.train("a", "b")
    again.directory.close()
    assert Checkpoint.open(tmp_path / "run").verify() == []


def test_a_run_begun_alone_shares_nothing(graph, tmp_path):
    alone = make_run(graph, tmp_path / "run", epochs=1)
    api.train(alone.model_copy(update={"cluster": make_config({}).cluster}), quiet=True)
    assert read_state(tmp_path / "run").facts.shared == ()
    cluster = Cluster(make_run(graph, tmp_path / "run", epochs=2), tmp_path / "metrics.jsonl")
    assert COUNTRY in cluster.ground.needs[Bucket(1, 0)]
    cluster.train("a", "b")
    cluster.directory.close()
    assert Checkpoint.open(tmp_path / "run").verify() == []


def test_rows_before_the_first_commit_are_those_that_training_begins_with(cluster, tmp_path):
    rows = Checkpoint.open(tmp_path / "run").rows(COUNTRY, slice(None))
    model = cluster.model()
    np.testing.assert_array_equal(rows, model.parameters.values["table.country"])


def test_shared_rows_change_only_under_the_lock_of_the_parameters(cluster):
    """What others did is added in place: a step that wrote beside it would lose some of that."""
    seen = []

    class Lock:
        def __enter__(self):
            self.before = model.parameters.values["table.country"].clone()
            seen.append(torch.equal(self.before, before))

        def __exit__(self, *_):
            before.copy_(model.parameters.values["table.country"])

    trainer, keeper, _ = cluster.worker("a")
    model = trainer.bucket_trainer._model
    before = model.parameters.values["table.country"].clone()
    trainer._begin()
    before.copy_(model.parameters.values["table.country"])
    untrained = before.clone()
    model.parameters.lock = Lock()
    task = trainer._ask()
    trainer._granted(task)
    assert len(seen) > 1
    assert all(seen)
    after = model.parameters.values["table.country"]
    assert torch.equal(after, before)
    assert not torch.equal(after, untrained)
    keeper.close()
    trainer.close()


def sizes_of(schema, each):
    return dict.fromkeys(schema.partition_keys(), each)


def test_small_types_with_one_partition_beside_larger_ones_are_shared():
    entities = [EntityType("user", (5, 5)), *(EntityType(n, (5,)) for n in ("a", "b", "c"))]
    schema = GraphSchema(tuple(entities), (RelationType("r", "user", "a"),))
    assert choose_shared(schema, sizes_of(schema, 100)) == ("a", "b", "c")
    large = shared.MAX_SHARED_BYTES // 2
    sizes = sizes_of(schema, 100) | {PartitionKey("a", 0): large, PartitionKey("c", 0): large}
    assert choose_shared(schema, sizes) == ("b", "a")
    one = GraphSchema((EntityType("user", (5,)), EntityType("a", (5,))), schema.relations)
    assert choose_shared(one, sizes_of(one, 100)) == ()


def facts(**changes):
    buckets = {Bucket(i, 0): 1 for i in range(4)}
    return InitFacts(SCHEMA, "graph", 2, False, 0.1, 0, buckets, **changes)


def test_facts_of_older_logs_share_nothing():
    assert facts().shared == ()
    assert COUNTRY in facts().locked(Bucket(2, 0))
    assert facts(shared=("country",)).locked(Bucket(2, 0)) == {PartitionKey("user", 2)}


def test_a_shared_table_cannot_be_committed_as_a_partition():
    story = Story()
    facts = story.state.facts
    user_0, _, item = facts.schema.partition_keys()
    story.state = replace(story.state, facts=replace(facts, shared=(item.entity_type,)))
    work, _ = story.work(1, Bucket(0, 0))
    heads = [head for head in work.partitions if head.key != item]
    extra = Head(item, 0, PartitionVersion(1, file("parts/item"), "0" * 64))
    with pytest.raises(FormatError, match=f"{item} is kept with the relation parameters"):
        story.commit(1, Bucket(0, 0), partitions=(*heads, extra))
    story.commit(1, Bucket(0, 0), partitions=tuple(heads))
    assert user_0 in story.state.heads
    assert item not in story.state.heads


def test_memory_has_to_hold_the_shared_tables_too(graph, tmp_path):
    # The users of a bucket take 720 bytes or little more, the countries 360.
    with pytest.raises(ConfigError, match=r"bucket \(\d, \d\) needs 1,\d{3} for its tables"):
        open_run(Ground.of(make_run(graph, tmp_path / "run", memory="1079")), restart=False)
