"""Runs that follow a plan: loads as planned, within the budget, resumable bit for bit."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from biggraph import api
from biggraph.errors import Interrupted
from biggraph.log import Reporter
from biggraph.scheduling.plans import make_plan, swaps
from biggraph.storage.checkpoint import Checkpoint
from biggraph.train.build import build
from biggraph.types import mix_seed
from tests.train.test_trainer import assert_same, event_lines, make_run

ENTITIES, PARTITIONS, DIMENSION, SEED = 400, 10, 8, 7
ROW = 2 * 4 * DIMENSION  # with element-wise optimizer state
ROOM = {"comet": 9.5}  # tables that fit; 5.5 with other orders
SLOTS = {"comet": 3}  # what that leaves for a state; else 4


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "graph"
    rng = np.random.default_rng(3)
    heads, tails = rng.integers(ENTITIES, size=(2, 2000))
    table = pa.table(
        {
            "head": [f"e{i}" for i in [*heads, *range(ENTITIES)]],
            "relation": ["r"] * (2000 + ENTITIES),
            "tail": [f"e{i}" for i in [*tails, *range(ENTITIES)]],
        }
    )
    api.import_graph(table, path, partitions=PARTITIONS, quiet=True)
    return path


def run_of(graph_path, path, name, tables=None, **changes):
    """A run with room for so many tables of the mean size."""
    tables = tables or ROOM.get(name, 5.5)
    memory = str(int(tables * ENTITIES / PARTITIONS * ROW))
    changes = {"train__bucket_order": name, "train__memory": memory, **changes}
    return make_run(graph_path, path, **changes)


def open_run(config):
    return build(config, restart=False, reporter=Reporter(quiet=True), validate=None)


def trained_buckets(path, epoch):
    lines = [line for line in event_lines(path, "bucket") if line["epoch"] == epoch]
    return [tuple(bucket) for line in lines for bucket in line["buckets"]]


@pytest.mark.parametrize("name", ["beta", "comet", "inside_out"])
def test_the_cache_loads_what_the_plan_says(graph_path, tmp_path, name):
    """Four slots, and a fifth table that is read ahead; three with what a copy takes."""
    run = open_run(run_of(graph_path, tmp_path / "run", name, train__epochs=1))
    cache, needs, most = run.trainer.cache, run.trainer.needs, 0
    load = run.trainer.store.load

    def watched(key):
        nonlocal most
        with cache._lock:
            most = max(most, len(cache._tables) + 1)
        return load(key)

    run.trainer.store.load = watched
    run.trainer.run()
    run.close()
    slots = SLOTS.get(name, 4)
    plan = make_plan(name, needs, slots, mix_seed(SEED, 1))
    assert trained_buckets(tmp_path / "run", 1) == [tuple(b) for s in plan for b in s.buckets]
    assert most == 5  # 9 * 3 / 5, or 4 and the one that is read ahead
    planned = len(plan[0].loaded) + swaps(plan)
    if name == "inside_out":
        assert cache.statistics.loads < last_used_loads(plan, needs)
    else:
        assert planned - 8 <= cache.statistics.loads <= planned
    assert Checkpoint.open(tmp_path / "run").verify() == []


def stop_after(run, grants):
    """Let a run stop when it has trained what so many grants, or states, came to."""
    original, left = run.trainer._granted, [grants]

    def granted(grant):
        left[0] -= 1
        run.trainer._stop_requested = left[0] == 0
        return original(grant)

    run.trainer._granted = granted


def last_used_loads(plan, needs):
    """Loads where the least recently used of five tables leaves."""
    recent, loads = [], 0
    for bucket in (bucket for state in plan for bucket in state.buckets):
        loads += len(needs[bucket] - set(recent))
        recent = [*(k for k in recent if k not in needs[bucket]), *sorted(needs[bucket])][-5:]
    return loads


@pytest.mark.parametrize("name", ["beta", "comet"])
def test_a_planned_run_goes_on_bit_for_bit(graph_path, tmp_path, name):
    api.train(run_of(graph_path, tmp_path / "whole", name, train__epochs=2), quiet=True)
    config = run_of(graph_path, tmp_path / "parts", name, train__epochs=2)
    starts = 0
    while True:
        run, starts = open_run(config), starts + 1
        stop_after(run, 19 if name == "comet" else 43)
        try:
            run.trainer.run()
            break
        except Interrupted:
            continue
        finally:
            run.close()
    assert starts >= 3
    assert_same(tmp_path / "whole", tmp_path / "parts")
    for epoch in (1, 2):
        found = [trained_buckets(tmp_path / name, epoch) for name in ("whole", "parts")]
        assert found[0] == found[1]
    assert trained_buckets(tmp_path / "whole", 1) != trained_buckets(tmp_path / "whole", 2)


@pytest.mark.parametrize("tables", [3.5, 7.5, 30])
def test_another_budget_in_the_middle_of_an_epoch_trains_every_bucket_once(
    graph_path, tmp_path, tables
):
    run = open_run(run_of(graph_path, tmp_path / "run", "comet", train__epochs=1))
    stop_after(run, 10)
    with pytest.raises(Interrupted):
        run.trainer.run()
    run.close()
    again = run_of(graph_path, tmp_path / "run", "comet", tables=tables, train__epochs=1)
    assert api.train(again, quiet=True).epochs == 1
    count = Counter(trained_buckets(tmp_path / "run", 1))
    assert len(count) == sum(count.values()) == PARTITIONS**2
    assert Checkpoint.open(tmp_path / "run").verify() == []


def test_the_plan_is_said(graph_path, tmp_path, capsys):
    run = build(
        run_of(graph_path, tmp_path / "run", "beta"),
        restart=False,
        reporter=Reporter(),
        validate=None,
    )
    run.close()
    assert "beta: 4 at a time, 19 loads an epoch" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["bucket_order"] == "beta"
