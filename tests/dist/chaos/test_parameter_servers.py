"""Parameter servers that are processes: one is killed, and every copy still has the same bits."""

import numpy as np
import pytest

from tests.dist.chaos import audit
from tests.dist.chaos.stage import Launcher, Stage, eventually, make_graph

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TWO = "cluster.parameter_servers=2"
OFTEN = "cluster.sync_every=0.05"


@pytest.fixture(scope="module")
def launcher():
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return make_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def stage(launcher, graph, tmp_path):
    stage = Stage(launcher, tmp_path, graph)
    yield stage
    stage.close()


def serve(stage, index):
    return stage.start("parameter-server", TWO, "--index", str(index), out=f"server-{index}")


def copies_of(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_a_killed_parameter_server_is_replaced_and_all_agree_bit_for_bit(stage):
    coordinator = stage.coordinator(TWO)
    servers = [serve(stage, index) for index in range(2)]
    copies = [stage.folder / f"{name}.npz" for name in "ab"]
    workers = [
        stage.worker(name, TWO, OFTEN, pace=0.15, copies=str(path))
        for name, path in zip("ab", copies, strict=True)
    ]
    eventually("some buckets are committed", lambda: audit.committed(stage.run) >= 4)
    servers[1].kill()
    before = audit.committed(stage.run)
    eventually("workers go on without it", lambda: audit.committed(stage.run) >= before + 6)
    servers[1] = serve(stage, 1)
    stage.finish(coordinator, *workers, *servers)

    assert audit.audit(stage.run, stage.epochs, stage.kept) == []
    last = audit.last_relations(stage.run)
    assert last
    for path in copies:
        assert audit.same(copies_of(path), last)


def test_one_command_starts_workers_and_parameter_servers(stage):
    stage.finish(stage.start("train", TWO, OFTEN, "cluster.workers=2"))
    assert audit.audit(stage.run, stage.epochs) == []
    assert len(list(stage.run.glob("endpoint-parameters-*.json"))) == 2


def test_a_parameter_server_that_the_run_file_does_not_have_is_refused(stage):
    server = stage.start("parameter-server", "--index", "0")
    assert server.wait() == 2
    assert "cluster.parameter_servers = 1" in server.said()
