"""The whole of a small job with its run in an object store, as in a folder."""

import json
import sys

import numpy as np
import pytest

from biggraph import api, cli
from biggraph.config import make_config
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.opening import open_place
from tests.storage.s3_server import make_bucket, serve

ROWS = "".join(f"p{i}\tknows\tp{(i * k + k) % 20}\n" for i in range(20) for k in (1, 2, 3))


@pytest.fixture(scope="module")
def store():
    with serve() as store:
        yield store


@pytest.fixture
def graph(tmp_path):
    (tmp_path / "edges.tsv").write_text(ROWS)
    holdout = {"valid": 0.1, "test": 0.1}
    out = tmp_path / "graph"
    api.import_graph([tmp_path / "edges.tsv"], out, holdout=holdout, partitions=2, quiet=True)
    return out


def run_of(graph, path, epochs):
    return make_config(
        {
            "graph": {"path": graph},
            "model": {"dimension": 8},
            "train": {"epochs": epochs, "threads": 1},
            "eval": {"every": 1},
            "checkpoint": {"path": path},
        }
    )


def contents(path):
    checkpoint = Checkpoint.open(path, "latest")
    assert checkpoint.verify() == []
    keys = checkpoint.schema.partition_keys()
    rows = [checkpoint.rows(key, slice(None)).tobytes() for key in keys]
    return rows, {name: array.tobytes() for name, array in checkpoint.relations().items()}


def test_a_run_in_a_bucket_is_that_in_a_folder(store, graph, tmp_path, monkeypatch, capsys):
    address = f"s3://{make_bucket(store, monkeypatch)}/runs/a"
    api.train(run_of(graph, address, 1), quiet=True)
    resumed = api.train(run_of(graph, address, 2), quiet=True)
    whole = api.train(run_of(graph, tmp_path / "run", 2), quiet=True)
    assert resumed.best["mrr"] == whole.best["mrr"]
    assert contents(address) == contents(tmp_path / "run")
    found, expected = (api.evaluate(p, quiet=True) for p in (address, tmp_path / "run"))
    assert found.metrics.to_dict() == expected.metrics.to_dict()
    assert found.about["checkpoint"] == address
    check_metrics(open_place(address).read("metrics.jsonl"))
    check_commands(address, tmp_path, monkeypatch, capsys)


def check_metrics(lines):
    """Every line of both starts is there."""
    events = [json.loads(line)["event"] for line in lines.splitlines()]
    assert events.count("start") == events.count("epoch") == events.count("evaluation") == 2
    assert events.count("bucket") >= 2


def check_commands(address, folder, monkeypatch, capsys):
    """The commands take the address as it is typed."""
    out = str(folder / "out")
    for arguments, said in (
        (["inspect", address, "--verify"], f"run: {address}"),
        (["neighbors", address, "p1", "-k", "2"], "p"),
        (["export", address, "--format", "npy", "--out", out], ""),
        (["status", address], "epoch: 2"),
    ):
        monkeypatch.setattr(sys, "argv", ["biggraph", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        assert said in captured.out
    assert np.load(next((folder / "out").rglob("*.npy"))).shape == (20, 8)


def test_mistakes_end_in_one_line(store, graph, tmp_path, monkeypatch, capsys):
    make_bucket(store, monkeypatch)
    run_file = tmp_path / "run.toml"
    run_file.write_text(f'[graph]\npath = "{graph}"\n[checkpoint]\npath = "s3://none-such/a"\n')
    for override, message in (
        ("train.epochs=1", "create the bucket"),
        ("checkpoint.path=s3://", "s3://bucket/prefix"),
        ("checkpoint.path=gs://bucket/a", "s3://bucket/prefix"),
    ):
        monkeypatch.setattr(sys, "argv", ["biggraph", "train", str(run_file), override, "-q"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        error = capsys.readouterr().err
        assert (ended.value.code, error.count("\n")) == (2, 1)
        assert error.startswith("error: ")
        assert message in error
