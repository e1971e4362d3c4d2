"""Runs under random fire, at every crash point, and in networks that are cut. Not for CI."""

import os
import shutil
import signal
import time
from collections import Counter

import pytest

from biggraph.storage.checkpoint import Checkpoint
from tests.dist.chaos.audit import audit, committed, expired, leases
from tests.dist.chaos.net import Net, missing
from tests.dist.chaos.stage import Launcher, Stage, eventually, make_graph
from tests.dist.chaos.storm import Storm

pytestmark = [pytest.mark.multiprocess, pytest.mark.chaos]

FIRST = int(os.environ.get("BIGGRAPH_CHAOS_SEED", "0"))
RUNS = int(os.environ.get("BIGGRAPH_CHAOS_RUNS", "12"))
FAULTS = 45
PACE_S = 0.02


@pytest.fixture(scope="module")
def launcher():
    found = Launcher()
    yield found
    found.close()


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return make_graph(tmp_path_factory.mktemp("graph"))


def check(stage: Stage) -> None:
    """Require that a run is finished, and as it should be."""
    assert audit(stage.run, stage.epochs, stage.kept) == []
    assert Checkpoint.open(stage.run, "latest").verify() == []


def test_storms(launcher, graph, tmp_path, capsys):
    counts: Counter = Counter()
    for seed in range(FIRST, FIRST + RUNS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        stage = Stage(launcher, folder, graph, epochs=3, ttl=2.0, every=2, wait=60.0)
        storm = Storm(stage, seed, FAULTS)
        try:
            storm.rage()
        finally:
            stage.close()
        counts += storm.counts
        counts["runs"] += 1
        assert not storm.violations, f"seed {seed}: {storm.violations}"
        shutil.rmtree(folder)
    with capsys.disabled():
        print("\n" + "\n".join(f"{count:6}  {what}" for what, count in counts.most_common()))


def crash_points(stage: Stage, role: str) -> Counter:
    """Return how often each file operation happens in an undisturbed run, in the role's process."""
    watch = {"watch": str(stage.folder / "watched")}
    coordinator = stage.coordinator(**(watch if role == "coordinator" else {}))
    workers = [stage.worker("w0", **(watch if role == "worker" else {})), stage.worker("w1")]
    stage.finish(coordinator, *workers)
    check(stage)
    return Counter((stage.folder / "watched").read_text().splitlines())


@pytest.mark.parametrize("role", ["coordinator", "worker"])
def test_every_crash_point(launcher, graph, tmp_path, role, capsys):
    def stage(name: str) -> Stage:
        folder = tmp_path / name
        folder.mkdir()
        return Stage(launcher, folder, graph, epochs=1)

    points = crash_points(stage("undisturbed"), role)
    assert len(points) > 10
    for number, (point, times) in enumerate(sorted(points.items())):
        for hit in sorted({1, (times + 1) // 2}):
            found = stage(f"{number}-{hit}")
            try:
                die_at(found, role, {"point": point, "hit": hit, "signal": signal.SIGKILL})
            except AssertionError as error:
                raise AssertionError(f"{role} at {point}, hit {hit}: {error}") from error
            finally:
                found.close()
            shutil.rmtree(found.folder)
    with capsys.disabled():
        print(f"\n{len(points)} crash points of a {role}")


def die_at(stage: Stage, role: str, strike: dict) -> None:
    """Let a process die at a crash point, start it again, and let the run end."""
    fatal = {"strike": strike}
    coordinator = stage.coordinator(**(fatal if role == "coordinator" else {}))
    struck = stage.worker("w0", pace=PACE_S, **(fatal if role == "worker" else {}))
    other = stage.worker("w1", pace=PACE_S)
    if role == "worker":
        if struck.wait() == -signal.SIGKILL:
            struck = stage.worker("w0")
    elif coordinator.wait() == -signal.SIGKILL:
        coordinator = stage.coordinator()
    stage.finish(coordinator, struck, other)
    check(stage)


@pytest.fixture(scope="module")
def network():
    if reason := missing():
        pytest.skip(reason)
    found = Net()
    yield found
    found.close()


@pytest.mark.parametrize("beyond", [False, True], ids=["short", "beyond the lease"])
@pytest.mark.parametrize(
    ("host", "way"), [("w0", "both"), ("w0", "out"), ("w0", "in"), ("c", "both")]
)
def test_a_host_that_is_cut_off(launcher, graph, tmp_path, network, host, way, beyond):
    stage = Stage(launcher, tmp_path, graph, ttl=3.0)
    secret = {"BIGGRAPH_SECRET": "a secret of the tests, long enough"}

    def at(where: str) -> dict:
        return {"netns": network.namespace(where), "env": secret}

    bind = f"cluster.bind={network.address('c')}"
    coordinator = stage.coordinator(bind, **at("c"))
    workers = [stage.worker(name, bind, pace=0.15, **at(name)) for name in ("w0", "w1")]
    try:
        eventually("both work", lambda: set(leases(stage.run).values()) == {"w0", "w1"})
        eventually("work is committed", lambda: committed(stage.run) >= 2)
        network.cut(host, way)
        try:
            if beyond:
                eventually("a lease ends", lambda: expired(stage.run))
            else:
                time.sleep(1.0)
        finally:
            network.heal(host, way)
        stage.finish(coordinator, *workers)
        check(stage)
        lost = [reason for reason in expired(stage.run) if "silent" in reason]
        assert bool(lost) == beyond
    finally:
        stage.close()
