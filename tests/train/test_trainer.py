"""Whole runs on small graphs: exactly once, resumable bit for bit, and honest about trouble."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from biggraph import api
from biggraph.config import make_config
from biggraph.errors import BigGraphError, ConfigError, DivergenceError, Interrupted, StorageError
from biggraph.graph.graph import Graph
from biggraph.log import Reporter
from biggraph.sections import RelationConfig
from biggraph.storage import fsops
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.run import RunDirectory
from biggraph.train.bucket import BucketTrainer
from biggraph.train.build import build
from biggraph.train.kernels.step import CompiledStep
from biggraph.train.step import ReferenceStep
from biggraph.train.trainer import Trainer
from tests.storage.doubles import Crash, Fault

PEOPLE, CITIES, EDGES = 60, 15, 900
# Less than all tables (4,800 bytes), and as much as the largest bucket needs.
SMALL = "4300"
# Less than all tables too, so that buckets are trained one by one, but with room to spare.
MEDIUM = "4700"


def make_edges(seed=0):
    rng = np.random.default_rng(seed)
    half = EDGES // 2
    people = rng.integers(PEOPLE, size=EDGES)
    friend = (people[:half] + rng.integers(1, 4, size=half)) % PEOPLE
    city = people[half:] // (PEOPLE // CITIES)
    return pa.table(
        {
            "head": [f"p{i}" for i in people],
            "relation": ["knows"] * half + ["lives_in"] * (EDGES - half),
            "tail": [f"p{i}" for i in friend] + [f"c{i}" for i in city],
        }
    )


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory):
    """A typed graph: three partitions of people, two of cities, two relations."""
    path = tmp_path_factory.mktemp("graph") / "graph"
    config = make_config(
        {
            "entities": {"person": {"partitions": 3}, "city": {"partitions": 2}},
            "relations": [
                {"name": "knows", "lhs": "person", "rhs": "person"},
                {"name": "lives_in", "lhs": "person", "rhs": "city"},
            ],
        }
    )
    api.import_graph(make_edges(), path, config=config, holdout={"valid": 0.1}, quiet=True)
    return path


def make_run(graph_path, path, **changes):
    sections = {
        "graph": {"path": str(graph_path)},
        "model": {"dimension": 8},
        "negatives": {"in_batch": 10, "uniform": 8},
        "train": {"epochs": 3, "batch_size": 40, "threads": 1, "seed": 7, "memory": "1MB"},
        "optimizer": {"name": "adagrad"},
        "checkpoint": {"path": str(path)},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        sections.setdefault(section, {})[name] = value
    return make_config(sections)


def content(path):
    """Every number of the last commit."""
    checkpoint = Checkpoint.open(path, "latest")
    rows = {key: checkpoint.rows(key, slice(None)) for key in checkpoint.schema.partition_keys()}
    return rows, checkpoint.relations()


def assert_same(a, b):
    for left, right in zip(content(a), content(b), strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key])


def event_lines(path, event):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("memory", [SMALL, "1MB"])
def test_every_edge_is_trained_once_an_epoch(graph_path, tmp_path, memory):
    config = make_run(graph_path, tmp_path / "run", train__threads=2, train__memory=memory)
    result = api.train(config, quiet=True)
    total = sum(Graph.open(graph_path).splits["train"].values())
    assert (result.epochs, result.edges) == (3, 3 * total)
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.state.edges == {1: total, 2: total, 3: total}
    assert checkpoint.verify() == []
    epochs = event_lines(tmp_path / "run", "epoch")
    assert [line["edges"] for line in epochs] == [total] * 3
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert {"time_s", "epoch", "edges", "edges_per_s", "loss"} <= epochs[0].keys()


def test_training_learns_the_graph(graph_path, tmp_path):
    config = make_run(graph_path, tmp_path / "run", train__epochs=25, model__dimension=16)
    api.train(config, quiet=True)
    trained = api.evaluate(tmp_path / "run", split="valid", quiet=True).metrics.mrr
    popular = api.evaluate(tmp_path / "run", split="valid", baseline=True, quiet=True).metrics.mrr
    assert trained > popular + 0.2


def test_a_small_cache_trains_the_same_rows(graph_path, tmp_path):
    """Tables that travel through files between buckets end as those that stay in memory."""
    api.train(make_run(graph_path, tmp_path / "large", train__memory=MEDIUM), quiet=True)
    small = make_run(graph_path, tmp_path / "small", train__memory=SMALL)
    run = build(small, restart=False, reporter=Reporter(quiet=True), validate=None)
    run.trainer.run()
    run.close()
    assert run.trainer.cache.statistics.loads > 10  # of five partitions
    assert_same(tmp_path / "large", tmp_path / "small")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resuming_after_any_bucket_is_bit_identical(graph_path, tmp_path, precision):
    changes = {"train__memory": SMALL, "train__precision": precision}
    api.train(make_run(graph_path, tmp_path / "whole", **changes), quiet=True)
    config = make_run(graph_path, tmp_path / "parts", train__commit_every="0s", **changes)
    starts = 0
    while True:
        starts += 1
        run = build(config, restart=False, reporter=Reporter(quiet=True), validate=None)
        stop_after = 1 + starts % 3
        original = run.trainer._bucket

        def bucket(*args, run=run, original=original, left=[stop_after]):  # noqa: B006
            left[0] -= 1
            if left[0] == 0:
                run.trainer._stop_requested = True
            return original(*args)

        run.trainer._bucket = bucket
        try:
            run.trainer.run()
            break
        except Interrupted:
            continue
        finally:
            run.close()
    assert starts > 5
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert Checkpoint.open(tmp_path / "parts").verify() == []


@pytest.mark.parametrize("buckets", [1, 4])
def test_a_run_may_go_on_with_more_memory_in_the_middle_of_an_epoch(graph_path, tmp_path, buckets):
    """From bucket by bucket to all together: no edge twice, and every chain is kept."""
    config = make_run(graph_path, tmp_path / "run", train__memory=SMALL)
    run = build(config, restart=False, reporter=Reporter(quiet=True), validate=None)
    original, left = run.trainer._bucket, [buckets]

    def bucket(*args):
        left[0] -= 1
        run.trainer._stop_requested = left[0] == 0
        return original(*args)

    run.trainer._bucket = bucket
    with pytest.raises(Interrupted):
        run.trainer.run()
    run.close()
    assert len(Checkpoint.open(tmp_path / "run").state.done) == buckets
    assert api.train(make_run(graph_path, tmp_path / "run"), quiet=True).epochs == 3
    checkpoint = Checkpoint.open(tmp_path / "run")
    assert checkpoint.verify() == []
    assert len(set(checkpoint.state.edges.values())) == 1


@pytest.mark.parametrize("memory", [SMALL, "1MB"])
def test_more_epochs_go_on_from_the_last(graph_path, tmp_path, memory):
    def run(name, **changes):
        return make_run(graph_path, tmp_path / name, train__memory=memory, **changes)

    api.train(run("whole"), quiet=True)
    api.train(run("parts", train__epochs=1), quiet=True)
    result = api.train(run("parts"), quiet=True)
    assert result.epochs == 3
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_another_seed_trains_other_rows(graph_path, tmp_path):
    api.train(make_run(graph_path, tmp_path / "a", train__epochs=1), quiet=True)
    api.train(make_run(graph_path, tmp_path / "b", train__epochs=1, train__seed=8), quiet=True)
    rows_a, rows_b = content(tmp_path / "a")[0], content(tmp_path / "b")[0]
    assert all(not np.array_equal(rows_a[key], rows_b[key]) for key in rows_a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__dimension": 4}, r"begun with model.dimension = 8, found 4; begin anew"),
        ({"train__batch_size": 20}, r"begun with train.batch_size = 40, found 20"),
        ({"negatives__uniform": 9}, r"begun with negatives.uniform = 8, found 9"),
    ],
)
def test_a_run_is_not_resumed_under_other_settings(graph_path, tmp_path, changes, message):
    api.train(make_run(graph_path, tmp_path / "run", train__epochs=1), quiet=True)
    with pytest.raises(ConfigError, match=message):
        api.train(make_run(graph_path, tmp_path / "run", **changes), quiet=True)
    changed = make_run(graph_path, tmp_path / "run", train__epochs=1, **changes)
    assert api.train(changed, restart=True, quiet=True).epochs == 1


def test_a_run_is_not_resumed_on_another_graph(graph_path, tmp_path):
    api.train(make_run(graph_path, tmp_path / "run", train__epochs=1), quiet=True)
    api.import_graph(make_edges(1), tmp_path / "other", quiet=True)
    with pytest.raises(ConfigError, match="trained on another graph"):
        api.train(make_run(tmp_path / "other", tmp_path / "run"), quiet=True)


def test_a_folder_with_something_else_is_refused_and_untouched(graph_path, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for restart in (False, True):
        with pytest.raises(StorageError, match="holds something else"):
            api.train(make_run(graph_path, tmp_path), restart=restart, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_memory_too_small_for_a_bucket_is_refused_before_training(graph_path, tmp_path):
    with pytest.raises(ConfigError, match=r"bucket \(.*\) needs .* for its tables"):
        api.train(make_run(graph_path, tmp_path / "run", train__memory="1KB"), quiet=True)
    assert not (tmp_path / "run").exists()
    smaller = make_run(graph_path, tmp_path / "run", train__memory="1500", model__dimension=2)
    assert api.train(smaller, quiet=True).epochs == 3


def test_a_refused_restart_leaves_the_run_as_it_was(graph_path, tmp_path):
    config = make_run(graph_path, tmp_path / "run", train__epochs=1)
    api.train(config, quiet=True)
    before = content(tmp_path / "run")
    for changes in ({"train__memory": "1KB"}, {"graph__path": "nowhere"}, {"eval__every": 1}):
        if "eval__every" in changes:
            api.import_graph(make_edges(1), tmp_path / "unsplit", quiet=True)
            changes["graph__path"] = str(tmp_path / "unsplit")
        with pytest.raises(BigGraphError):
            api.train(make_run(graph_path, tmp_path / "run", **changes), restart=True, quiet=True)
    for key, rows in content(tmp_path / "run")[0].items():
        np.testing.assert_array_equal(rows, before[0][key])


def test_validation_without_a_validation_split_is_refused_at_once(tmp_path):
    api.import_graph(make_edges(1), tmp_path / "graph", quiet=True)
    with pytest.raises(ConfigError, match=r"eval.every = 1: .* has no validation split"):
        api.train(make_run(tmp_path / "graph", tmp_path / "run", eval__every=1), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_inside_the_graph_directory_is_refused(graph_path):
    with pytest.raises(ConfigError, match="inside the graph directory"):
        api.train(make_run(graph_path, graph_path / "run"), quiet=True)


def test_a_lower_learning_rate_may_go_on(graph_path, tmp_path):
    """The remedy that a diverged run is given."""
    api.train(make_run(graph_path, tmp_path / "run", train__epochs=1), quiet=True)
    result = api.train(make_run(graph_path, tmp_path / "run", optimizer__lr=0.01), quiet=True)
    assert result.epochs == 3


def test_heavy_relations_are_not_taken_for_divergence(graph_path, tmp_path):
    relations = [{"name": "knows", "weight": 50.0}, {"name": "lives_in", "weight": 0.1}]
    config = make_run(graph_path, tmp_path / "run", train__bucket_order="random")
    config = config.model_copy(
        update={"relations": [RelationConfig(**relation) for relation in relations]}
    )
    assert api.train(config, quiet=True).epochs == 3


def test_only_validations_done_alike_are_compared(graph_path, tmp_path):
    easy = {"eval__every": 1, "eval__candidates": 2, "train__epochs": 2}
    api.train(make_run(graph_path, tmp_path / "run", **easy), quiet=True)
    hard = {"eval__every": 1, "eval__patience": 2, "train__epochs": 6}
    result = api.train(make_run(graph_path, tmp_path / "run", **hard), quiet=True)
    assert result.epochs > 3
    assert Checkpoint.open(tmp_path / "run").epoch >= 2


def test_divergence_names_the_bucket_and_keeps_the_last_commit(graph_path, tmp_path):
    changes = {"model__comparator": "squared_l2", "model__operator": "translation"}
    api.train(make_run(graph_path, tmp_path / "run", train__epochs=1, **changes), quiet=True)
    before = content(tmp_path / "run")
    config = make_run(graph_path, tmp_path / "run", **changes)
    config = make_run(graph_path, tmp_path / "run", train__memory=SMALL, **changes)
    run = build(config, restart=False, reporter=Reporter(quiet=True), validate=None)
    original = run.trainer.cache.hold

    def poisoned(keys):
        tables = original(keys)
        next(iter(tables.values())).rows[:] = float("nan")
        return tables

    run.trainer.cache.hold = poisoned
    try:
        with pytest.raises(DivergenceError, match=r"bucket \(\d, \d\): the loss became nan"):
            run.trainer.run()
    finally:
        run.close()
    assert content(tmp_path / "run")[0].keys() == before[0].keys()
    for key, rows in content(tmp_path / "run")[0].items():
        np.testing.assert_array_equal(rows, before[0][key])


def test_an_exploding_loss_stops_the_run(graph_path, tmp_path):
    config = make_run(
        graph_path, tmp_path / "run", optimizer__lr=50.0, regularizer__n3=0.0,
        model__comparator="squared_l2", model__operator="translation", train__epochs=30,
    )  # fmt: skip
    with pytest.raises(DivergenceError, match=r"the loss (rose|became)"):
        api.train(config, quiet=True)
    with RunDirectory.resume(tmp_path / "run") as run:
        assert run.state.epoch < 30


def test_early_stopping_keeps_the_best(graph_path, tmp_path):
    config = make_run(
        graph_path, tmp_path / "run", train__epochs=60, eval__every=1, eval__patience=2,
        optimizer__lr=0.5,
    )  # fmt: skip
    result = api.train(config, quiet=True)
    assert result.stopped_early
    lines = event_lines(tmp_path / "run", "evaluation")
    scores = [line["mrr"] for line in lines]
    assert len(scores) == result.epochs < 60
    assert max(scores) == result.best["mrr"] > max(scores[-2:])
    best = Checkpoint.open(tmp_path / "run")
    assert (best.name, best.epoch) == ("best", 1 + scores.index(max(scores)))
    again = api.evaluate(tmp_path / "run", split="valid", quiet=True)
    assert again.metrics.mrr == pytest.approx(max(scores), abs=1e-9)
    assert {"split", "filtered", "mrr", "hits@1", "hits@3", "hits@10"} <= lines[0].keys()


SCRIPT = """
import sys
from biggraph import api
from biggraph.errors import BigGraphError
try:
    print(api.train(sys.argv[1], sys.argv[2:], quiet=True).epochs)
except BigGraphError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def write_run_file(graph_path, tmp_path, run):
    file = tmp_path / "run.toml"
    file.write_text(
        f'[graph]\npath = "{graph_path}"\n[model]\ndimension = 8\n'
        "[negatives]\nin_batch = 10\nuniform = 8\n"
        '[train]\nepochs = 150\nbatch_size = 40\nthreads = 1\nseed = 7\nmemory = "4300"\n'
        f'commit_every = "0s"\n[optimizer]\nname = "adagrad"\n[checkpoint]\npath = "{run}"\n'
    )
    return file


def start(*arguments):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_commits(run, more):
    """Wait until the log of a run has grown by some commits."""

    def number():
        records = [path for path in (run / "log").glob("[0-9]*") if path.suffix != ".tmp"]
        return sum('"kind":"commit"' in path.read_text() for path in records)

    goal = number() + more
    deadline = time.monotonic() + 60
    while number() < goal and time.monotonic() < deadline:
        time.sleep(0.005)
    assert number() >= goal


@pytest.mark.multiprocess
def test_kill_9_anywhere_then_resume_is_bit_identical(graph_path, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    file = write_run_file(graph_path, tmp_path, killed)
    api.train(file, [f"checkpoint.path={whole}", "train.epochs=12"], quiet=True)
    rng = np.random.default_rng(0)
    for _ in range(3):
        process = start(file, "train.epochs=12")
        wait_for_commits(killed, int(rng.integers(1, 20)))
        time.sleep(float(rng.random() * 0.02))
        process.kill()
        process.communicate()
    api.train(file, ["train.epochs=12"], quiet=True)
    assert Checkpoint.open(killed).verify() == []
    assert_same(whole, killed)


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_commits_and_ends_the_run(graph_path, tmp_path, number):
    run = tmp_path / "run"
    process = start(write_run_file(graph_path, tmp_path, run), "train.commit_every=1h")
    wait_for_commits(run, 2)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "everything trained so far is committed" in errors
    checkpoint = Checkpoint.open(run)
    assert checkpoint.verify() == []
    assert 0 < checkpoint.state.epoch < 150


def disturbed_run(config, fault):
    """Train under a fault; tell whether it ended the run."""
    with fsops.observed(fault):
        try:
            api.train(config, quiet=True)
        except (Crash, StorageError):
            return True
    return False


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["crash", "full disk"])
def test_failing_at_the_nth_file_operation_never_loses_a_commit(
    graph_path, tmp_path, monkeypatch, step, kind
):
    """The whole job, validation and snapshots included; resumed, it ends bit for bit the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    changes = {"train__epochs": 2, "train__memory": SMALL, "eval__every": 1, "eval__edges": 10}
    whole = make_run(graph_path, tmp_path / "whole", **changes)
    probe = Fault(0, None)
    assert not disturbed_run(whole, probe)
    hits = 0
    for n in range(1, probe.count, step):
        error = Crash() if kind == "crash" else OSError(28, "No space left on device")
        path = tmp_path / f"{n}"
        config = make_run(graph_path, path, **changes)
        hits += disturbed_run(config, Fault(n, error))
        api.train(config, quiet=True)
        assert_same(tmp_path / "whole", path)
        checkpoint = Checkpoint.open(path, "latest")
        assert checkpoint.verify() == []
        assert len(checkpoint.state.evaluations) == 2
    assert hits > 0.8 * len(range(1, probe.count, step))


def test_divergence_goes_back_to_the_last_commit_at_half_the_rate(
    graph_path, tmp_path, monkeypatch
):
    """What diverged leaves no trace but the lower rate: all else is as in a run at that rate."""
    guard, answers = Trainer._guard, iter([None, "boom", None, "boom"])

    def failing(self, bucket, stats):
        if next(answers, None):
            raise DivergenceError("boom")
        guard(self, bucket, stats)

    monkeypatch.setattr(Trainer, "_guard", failing)
    config = make_run(graph_path, tmp_path / "run", train__memory=SMALL, train__commit_every="1h")
    api.train(config, quiet=True)
    checkpoint = Checkpoint.open(tmp_path / "run", "latest")
    assert checkpoint.verify() == []
    assert checkpoint.state.rate == 0.25
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rates = [line["rate"] for line in map(json.loads, lines) if line["event"] == "diverged"]
    assert rates == [0.5, 0.25]

    monkeypatch.setattr(Trainer, "_guard", guard)
    quarter = make_run(
        graph_path,
        tmp_path / "quarter",
        train__memory=SMALL,
        optimizer__lr=config.optimizer.lr / 4,
    )
    api.train(quarter, quiet=True)
    other = Checkpoint.open(tmp_path / "quarter", "latest")
    for key in checkpoint.state.facts.schema.partition_keys():
        assert np.array_equal(checkpoint.rows(key, slice(None)), other.rows(key, slice(None)))


@pytest.mark.parametrize(
    ("name", "kind"), [("compiled", CompiledStep), ("reference", ReferenceStep)]
)
def test_the_run_file_chooses_step_and_rates(graph_path, tmp_path, monkeypatch, name, kind):
    rates, steps = [], set()
    genuine = BucketTrainer.set_rate

    def set_rate(self, rate):
        rates.append(rate)
        steps.update(type(step) for step in self._steps)
        genuine(self, rate)

    monkeypatch.setattr(BucketTrainer, "set_rate", set_rate)
    api.train(
        make_run(graph_path, tmp_path / "run", train__step=name, optimizer__lr_end=0.5), quiet=True
    )
    assert list(dict.fromkeys(rates)) == [1.0, 0.75, 0.5]
    assert steps == {kind}
