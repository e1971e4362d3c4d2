"""Coordinators and workers as processes of their own, which are killed, frozen and asked to end."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from biggraph.storage.checkpoint import Checkpoint
from tests.dist.chaos.audit import (
    audit,
    committed,
    expired,
    last_relations,
    leases,
    records,
)
from tests.dist.chaos.stage import Launcher, Stage, eventually, make_graph

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
PACE_S = 0.15  # so that a run lasts long enough to be disturbed


@pytest.fixture(scope="module")
def launcher():
    found = Launcher()
    yield found
    found.close()


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    return make_graph(tmp_path_factory.mktemp("graph"))


@pytest.fixture
def stage(launcher, graph, tmp_path):
    """Return a function that makes the run of a test; its processes end with the test."""
    stages = []

    def make(**settings) -> Stage:
        stages.append(Stage(launcher, tmp_path, graph, **settings))
        return stages[-1]

    yield make
    for found in stages:
        found.close()


def check(found: Stage) -> None:
    """Require that a run is finished, and as it should be."""
    assert audit(found.run, found.epochs, found.kept) == []
    assert Checkpoint.open(found.run, "latest").verify() == []


def under_way(found: Stage, buckets: int = 2) -> None:
    eventually("work is committed", lambda: committed(found.run) >= buckets)


def fences(found: Stage, name: str) -> list[int]:
    """Return the fences of the leases that a worker was given, but for those after commits."""
    given = [record["body"] for record in records(found.run) if record["kind"] == "lease"]
    return [body["fence"] for body in given if body["worker"] == name]


def alive(pid: int) -> bool:
    with suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def status(found: Stage, *options: str) -> str:
    asked = found.start("status", *options, out="status", config=str(found.run))
    found.finish(asked)
    return asked.said()


def test_every_worker_ends_with_the_relation_parameters_of_the_log(stage, tmp_path):
    found = stage(every=1)
    copies = [tmp_path / f"copy-{index}.npz" for index in range(2)]
    coordinator = found.coordinator()
    workers = [found.worker(f"w{i}", copies=str(copy)) for i, copy in enumerate(copies)]
    found.finish(coordinator, *workers)
    check(found)
    of_the_log = last_relations(found.run)
    assert any(array.any() for array in of_the_log.values())
    assert all(alike(dict(np.load(copy)), of_the_log) for copy in copies)
    assert expired(found.run) == ["released", "released"]
    assert [worker.said() for worker in workers] == ["", ""]
    assert "[c10d]" not in coordinator.said()


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Return whether both have the same numbers, but for the last bit: copies are sums too."""
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=1e-5, atol=1e-7) for name in one
    )


def test_a_killed_worker_begins_again_at_once(stage):
    found = stage()
    coordinator, other = found.coordinator(), found.worker("w0", pace=PACE_S)
    killed = found.worker("w1", pace=PACE_S)
    eventually("w1 has a lease", lambda: fences(found, "w1"))
    under_way(found)
    killed.kill()
    again = found.worker("w1")
    found.finish(coordinator, other, again)
    check(found)
    assert len(fences(found, "w1")) == 2
    assert not any("silent" in reason for reason in expired(found.run))


def test_leases_outlive_the_coordinator(stage):
    found = stage()
    killed = found.coordinator()
    workers = [found.worker(f"w{index}", pace=PACE_S) for index in range(2)]
    eventually("both have leases", lambda: len(leases(found.run)) == 2)
    under_way(found)
    before = found.endpoint()
    killed.kill()
    coordinator = found.coordinator()
    eventually("it moves", lambda: found.endpoint() != before)
    joined = found.worker("w2", pace=PACE_S)  # in the middle
    found.finish(coordinator, *workers, joined)
    check(found)
    assert expired(found.run) == ["released"] * 3
    assert [len(fences(found, f"w{index}")) for index in range(3)] == [1, 1, 1]
    assert all(worker.said() == "" for worker in (*workers, joined))


@pytest.mark.slow
def test_a_coordinator_that_froze_while_it_published_misleads_nobody_for_long(stage):
    """Only where there are no locks; elsewhere none can take over before the first has ended."""
    found = stage()
    strike = {"point": "rename endpoint", "hit": 1, "signal": signal.SIGSTOP}
    frozen = found.coordinator(lockless=True, strike=strike)
    eventually("it freezes while it publishes", frozen.frozen)
    coordinator = found.coordinator(lockless=True)
    worker = found.worker("w0", pace=PACE_S)
    under_way(found)
    own = found.endpoint()
    frozen.send(signal.SIGCONT)
    assert frozen.wait() == 2
    assert "another process has written this record" in frozen.said()
    eventually("the endpoint is right again", lambda: found.endpoint() == own)
    late = found.worker("w1", pace=PACE_S)
    found.finish(coordinator, worker, late)
    check(found)


def test_what_a_worker_did_before_it_froze_is_refused(stage):
    found = stage(ttl=2.0)
    coordinator = found.coordinator()
    strike = {"point": "link parts", "hit": 3, "signal": signal.SIGSTOP}
    frozen = found.worker("w0", pace=PACE_S, strike=strike)
    other = found.worker("w1", pace=PACE_S)
    eventually("w0 freezes in a commit", frozen.frozen)
    eventually("its lease ends", lambda: any("silent" in reason for reason in expired(found.run)))
    frozen.send(signal.SIGCONT)
    found.finish(coordinator, other, frozen)
    check(found)
    assert "lease_lost" in found.events("w0")


@pytest.mark.slow
def test_a_worker_that_wakes_after_the_end_hears_of_it(stage):
    found = stage(ttl=2.0)
    coordinator = found.coordinator()
    strike = {"point": "link parts", "hit": 1, "signal": signal.SIGSTOP}
    frozen = found.worker("w0", strike=strike)
    eventually("w0 freezes in a commit", frozen.frozen)
    other = found.worker("w1")
    found.finish(coordinator, other)
    frozen.send(signal.SIGCONT)
    found.finish(frozen)
    check(found)


def test_a_worker_that_is_asked_to_end_releases_its_lease(stage):
    found = stage()
    coordinator = found.coordinator()
    ending, other = (found.worker(f"w{index}", pace=PACE_S) for index in range(2))
    eventually("both have leases", lambda: len(leases(found.run)) == 2)
    under_way(found)
    ending.send(signal.SIGTERM)
    assert ending.wait() == 130
    assert "everything trained so far is committed" in ending.said()
    assert set(leases(found.run).values()) <= {"w1"}
    found.finish(coordinator, other)
    check(found)
    assert expired(found.run) == ["released"] * 2


@pytest.mark.slow
def test_a_worker_that_is_asked_to_end_waits_for_no_coordinator(stage):
    found = stage()
    coordinator, worker = found.coordinator(), found.worker("w0", pace=PACE_S)
    under_way(found)
    coordinator.kill()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 4
    assert "no coordinator has answered for 5 s" in worker.said()
    assert "Traceback" not in worker.said()


def test_who_does_not_belong_is_refused_in_one_line(stage):
    found = stage()
    coordinator = found.coordinator()
    eventually("it listens", found.endpoint)
    worker = found.worker("w0", pace=PACE_S)
    stranger = found.worker("w9", "train.seed=5")
    second = found.coordinator()
    assert [stranger.wait(), second.wait()] == [2, 2]
    assert stranger.said().count("\n") == 1
    assert "has another run file or graph than the coordinator" in stranger.said()
    assert second.said().count("\n") == 1
    assert "is writing this run" in second.said()
    eventually("w0 has a lease", lambda: fences(found, "w0"))
    twin = found.worker("w0", pace=PACE_S)
    assert worker.wait() == 2
    assert "another of that name has started later" in worker.said()
    found.finish(coordinator, twin)
    check(found)


def test_the_status_during_and_after_a_run(stage):
    found = stage()
    coordinator, worker = found.coordinator(), found.worker("w0", pace=PACE_S)
    under_way(found)
    during = json.loads(status(found, "--json"))
    assert [lease["worker"] for lease in during["workers"]] == ["w0"]
    assert during["coordinator"].startswith("127.0.0.1:")
    assert during["buckets"] == 16
    found.finish(coordinator, worker)
    after = status(found).splitlines()
    assert {"epoch: 2", "leases: 0", "coordinator: None"} <= set(after)


def test_training_on_one_machine_ends_with_its_parent_and_goes_on(stage):
    """Here processes are started as they are shipped, which takes seconds each."""
    found = stage(epochs=4000)
    command = [sys.executable, "-m", "biggraph", "train", found.run_file, "cluster.workers=2"]
    training = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    under_way(found)
    workers = eventually("two workers", lambda: two_children(training.pid))
    training.kill()
    training.communicate()
    eventually("the workers end", lambda: not any(map(alive, workers)))

    before = committed(found.run)
    training = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    under_way(found, before + 10)
    workers = eventually("two workers", lambda: two_children(training.pid))
    training.send_signal(signal.SIGTERM)
    _, said = training.communicate()
    assert training.returncode == 130, said
    assert "everything trained so far is committed" in said
    assert "[c10d]" not in said
    assert not any(map(alive, workers))
    assert leases(found.run) == {}
    assert Checkpoint.open(found.run, "latest").verify() == []


def two_children(parent: int) -> list[int]:
    """Return the children of a process, once there are two."""
    found = [
        int(entry)
        for entry in os.listdir("/proc")
        if entry.isdigit() and parent_of(int(entry)) == parent
    ]
    return found if len(found) == 2 else []


def parent_of(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
