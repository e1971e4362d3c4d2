"""Whole runs on partition servers: alone, and as a cluster of machines that share nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from biggraph import api
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.opening import open_place
from biggraph.storage.run import read_state
from tests.storage.far_servers import SECRET, Servers

RUN = """
graph.path = "graph"
model.dimension = 8
negatives.in_batch = 4
negatives.uniform = 4
train.epochs = 3
train.batch_size = 8
train.threads = 1
train.commit_every = "0.01s"
eval.every = 1
eval.edges = 20
cluster.sync_every = "0.05s"
cluster.transport = "flight"
"""


@pytest.fixture
def graph(write_tsv, tmp_path):
    """Return a run file; a graph lies beside it."""
    rows = [(f"e{i % 23}", f"r{i % 3}", f"e{i * 7 % 23}") for i in range(200)]
    source = [str(write_tsv(rows))]
    home = tmp_path / "home"
    home.mkdir()
    api.import_graph(source, home / "graph", partitions=3, holdout={"valid": 0.1}, quiet=True)
    (home / "run.toml").write_text(RUN)
    return home / "run.toml"


def numbers(path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(path, "latest")
    assert checkpoint.verify() == []
    keys = sorted(read_state(path).heads, key=str)
    rows = {str(key): checkpoint.rows(key, slice(None)).tobytes() for key in keys}
    return rows | {name: array.tobytes() for name, array in checkpoint.relations().items()}


def test_one_worker_trains_the_same_numbers_as_in_a_folder(graph, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGGRAPH_SECRET", SECRET.decode())
    monkeypatch.chdir(graph.parent)
    servers = Servers(tmp_path, 2)
    address = servers.address(options="?replicas=2")
    try:
        trained = [
            api.train(graph, [f"checkpoint.path={path}"], quiet=True) for path in ("run", address)
        ]
        assert trained[0].best["mrr"] == trained[1].best["mrr"]
        assert numbers("run") == numbers(address)
        assert {"metrics.jsonl", "config.json"} <= servers.files(0)
        evaluated = [api.evaluate(path, split="valid", quiet=True) for path in ("run", address)]
        assert evaluated[0].metrics == evaluated[1].metrics
    finally:
        servers.close()


class Machines:
    """Processes, each in a folder of its own with a copy of graph and run file."""

    def __init__(self, home: Path, folder: Path):
        self._home, self._folder = home, folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, name: str, *command: str, **environment: str) -> subprocess.Popen[str]:
        place = self._folder / name
        if not place.exists():
            shutil.copytree(self._home, place)
        root = Path(__file__).parents[2]
        variables = {"PYTHONPATH": str(root), "BIGGRAPH_SECRET": SECRET.decode()}
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "biggraph", *command],
                cwd=place, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **variables, "OMP_NUM_THREADS": "1", **environment},
            )
        )  # fmt: skip
        return self.processes[-1]

    def serve(self, name: str, port: int = 0) -> tuple[subprocess.Popen[str], int]:
        server = self.start(name, "partition-server", "data", "--port", str(port))
        return server, int(server.stdout.readline().rpartition(":")[2])

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            with process:
                pass


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_cluster_without_shared_storage_outlives_a_killed_partition_server(graph, tmp_path):
    machines = Machines(graph.parent, tmp_path)
    try:
        _, first = machines.serve("host-a")
        victim, second = machines.serve("host-b")
        address = f"flight://127.0.0.1:{first},127.0.0.1:{second}/runs/a?replicas=2"
        overrides = [f"checkpoint.path={address}"]
        coordinator = machines.start("host-c", "coordinator", "run.toml", *overrides, "-q")
        workers = [
            machines.start(name, "worker", "run.toml", *overrides, "-q", BIGGRAPH_WORKER=name)
            for name in ("host-d", "host-e")
        ]
        parts = tmp_path / "host-b" / "data" / "runs" / "a" / "parts"
        while not parts.exists():
            assert coordinator.poll() is None
            time.sleep(0.05)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        machines.serve("host-b", second)
        assert [process.wait(120) for process in (coordinator, *workers)] == [0, 0, 0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BIGGRAPH_SECRET", SECRET.decode())
            state = read_state(address)
            assert (state.epoch, len(state.leases)) == (3, 0)
            assert Checkpoint.open(address, "latest").verify() == []
            names = open_place(address).names("parts")
            for host in ("host-a", "host-b"):  # both have everything
                root = tmp_path / host / "data" / "runs" / "a"
                found = sorted(str(path.relative_to(root)) for path in root.rglob("parts/*/*/*"))
                assert found == names
    finally:
        machines.close()
