"""Whole runs with the device step: bucket by bucket and together, stopped and resumed."""

from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch

from biggraph import api
from biggraph.config import make_config
from biggraph.errors import ConfigError
from biggraph.graph.graph import Graph
from biggraph.log import Reporter
from biggraph.storage.checkpoint import Checkpoint
from biggraph.train import build
from biggraph.train.device_step import DeviceStep
from biggraph.train.transfers import Residence
from tests.train.test_device_step import on_gpu

PEOPLE, EDGES = 60, 600
SMALL = "6000"  # bytes for tables: two of three partitions


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory):
    """Three partitions of people who know their neighbours on a circle."""
    path = tmp_path_factory.mktemp("graph") / "graph"
    rng = np.random.default_rng(0)
    people = rng.integers(PEOPLE, size=EDGES)
    friends = (people + rng.integers(1, 4, size=EDGES)) % PEOPLE
    edges = pa.table(
        {
            "head": [f"p{i}" for i in people],
            "relation": ["knows"] * EDGES,
            "tail": [f"p{i}" for i in friends],
        }
    )
    api.import_graph(edges, path, partitions=3, holdout={"valid": 0.1}, quiet=True)
    return path


def make_run(graph_path, path, **train):
    settings = {"epochs": 3, "batch_size": 40, "threads": 1, "seed": 7, "memory": "1MB"}
    return make_config(
        {
            "graph": {"path": str(graph_path)},
            "model": {"dimension": 16},
            "negatives": {"in_batch": 10, "uniform": 8},
            "train": settings | train,
            "optimizer": {"name": "adagrad"},
            "checkpoint": {"path": str(path)},
        }
    )


def rows_of(path):
    checkpoint = Checkpoint.open(path, "latest")
    return np.concatenate(
        [checkpoint.rows(key, slice(None)) for key in sorted(checkpoint.schema.partition_keys())]
    )


@pytest.fixture
def on_processor(monkeypatch):
    """Let runs take the path of a device, on the processor."""
    step = partial(DeviceStep, where=torch.device("cpu"))
    monkeypatch.setattr(build, "_make_step", lambda config, gpu: step)


@pytest.mark.parametrize(
    "train", [{"memory": SMALL}, {"memory": "1MB"}, {"memory": SMALL, "bucket_order": "comet"}]
)
def test_a_run_on_a_device_is_the_reference_run(graph_path, tmp_path, on_processor, train):
    result = api.train(make_run(graph_path, tmp_path / "device", **train), quiet=True)
    total = sum(Graph.open(graph_path).splits["train"].values())
    assert (result.epochs, result.edges) == (3, 3 * total)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_make_step", lambda config, gpu: build.ReferenceStep)
        api.train(make_run(graph_path, tmp_path / "reference", **train), quiet=True)
    wanted = rows_of(tmp_path / "reference")
    np.testing.assert_allclose(rows_of(tmp_path / "device"), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("memory", "most"), [(SMALL, 3 * 15 - 15), ("1MB", 1)])
def test_tables_that_the_next_bucket_needs_too_stay(
    graph_path, tmp_path, on_processor, monkeypatch, memory, most
):
    """Of 15 in each of three epochs, at least a third; all where all buckets are joined to one."""
    brought, bring = [], Residence.bring

    def counting(self, hosts):
        hosts = list(hosts)
        brought.extend(host for host in hosts if host not in self._here)
        return bring(self, hosts)

    monkeypatch.setattr(Residence, "bring", counting)
    api.train(make_run(graph_path, tmp_path / "run", memory=memory), quiet=True)
    tables = len(brought) / 2  # rows and state
    assert 1 <= tables <= most, tables


@pytest.mark.parametrize("memory", [SMALL, "1MB"])
def test_a_run_goes_on_as_if_it_had_not_ended(graph_path, tmp_path, on_processor, memory):
    api.train(make_run(graph_path, tmp_path / "whole", epochs=4, memory=memory), quiet=True)
    for epochs in (1, 2, 4):
        api.train(
            make_run(graph_path, tmp_path / "parts", epochs=epochs, memory=memory), quiet=True
        )
    np.testing.assert_array_equal(rows_of(tmp_path / "parts"), rows_of(tmp_path / "whole"))


@pytest.mark.gpu
@pytest.mark.parametrize("memory", [SMALL, "1MB"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_run_on_a_gpu_learns_as_one_on_the_processor(graph_path, tmp_path, memory, precision):
    on_gpu()
    found = {}
    for device in ("cpu", "cuda"):
        config = make_run(
            graph_path, tmp_path / device, device=device, epochs=25, memory=memory,
            precision=precision if device == "cuda" else "float32",
        )  # fmt: skip
        api.train(config, quiet=True)
        found[device] = api.evaluate(tmp_path / device, split="valid", quiet=True).metrics.mrr
    assert found["cuda"] > 0.9 * found["cpu"]


def test_a_run_without_its_gpu_is_refused_before_anything_is_written(
    graph_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=r'train.device = "cuda"'):
        api.train(make_run(graph_path, tmp_path / "run", device="cuda"), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": {"precision": "tf32"}}, "is for GPUs"),
        ({"train": {"precision": "tf32"}, "cluster": {"workers": 2}}, "is for GPUs"),
        ({"train": {"precision": "bfloat16", "step": "reference"}}, "leave it out"),
        ({"train": {"precision": "bfloat16"}, "model": {"comparator": "l2"}}, "drown in rounding"),
    ],
)
def test_a_precision_that_the_processor_has_not_is_refused(settings, message, graph_path, tmp_path):
    places = {"graph": {"path": str(graph_path)}, "checkpoint": {"path": str(tmp_path / "run")}}
    with pytest.raises(ConfigError, match=message):
        api.train(make_config(settings | places), quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_may_go_on_on_another_device(graph_path, tmp_path, on_processor):
    config = make_run(graph_path, tmp_path / "run", epochs=1, precision="bfloat16")
    api.train(config, quiet=True)
    result = api.train(make_run(graph_path, tmp_path / "run", epochs=2), quiet=True)
    assert result.epochs == 2


@pytest.mark.parametrize(
    ("kept", "step", "said"),
    [(False, "compiled", True), (True, "compiled", False), (False, "reference", False)],
)
def test_compiling_for_a_minute_is_said(
    kept, step, said, graph_path, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(build, "kept", lambda name: kept)
    build.say_compiling(Reporter(), make_run(graph_path, tmp_path / "run", step=step))
    assert ("compiling the training step" in capsys.readouterr().err) == said
