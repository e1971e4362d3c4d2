"""Failing or dying at the n-th file operation, for every n, never loses or repeats work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from biggraph.errors import StorageError
from biggraph.storage import fsops
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.run import is_run, read_state
from tests.storage.doubles import SCHEMA, Crash, Fault, train

ROOT = Path(__file__).parents[2]
KINDS = {
    "full disk": lambda n: Fault(n, OSError(28, os.strerror(28))),
    "failing disk": lambda n: Fault(n, OSError(5, os.strerror(5))),
    "crash": lambda n: Fault(n, Crash()),
    "torn file": lambda n: Fault(n, Crash(), tear=True),
}


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    """What a power cut would lose cannot be seen from here; only the order of operations can."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def contents(path):
    """Everything that a reader can learn from a run, bit by bit."""
    seen = []
    for name in ("latest", "best"):
        checkpoint = Checkpoint.open(path, name)
        rows = [checkpoint.rows(k, slice(None)).tobytes() for k in SCHEMA.partition_keys()]
        relations = {k: v.tobytes() for k, v in checkpoint.relations().items()}
        chains = {k: v.chain for k, v in checkpoint.state.heads.items()}
        seen.append((checkpoint.epoch, rows, relations, chains, checkpoint.state.edges))
    return seen


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what an undisturbed run comes to, and its file operations."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    with fsops.observed(probe := Fault(0, None)):
        train(path)
    return contents(path), probe


def check_and_finish(path, expected):
    """After a disturbance: readers see a sound state, and training ends as if undisturbed."""
    if is_run(path):
        assert Checkpoint.open(path, "latest").verify() == []
    train(path)
    assert contents(path) == expected
    assert Checkpoint.open(path).verify() == []
    train(path)  # a start with nothing to do cleans up
    assert not list(path.rglob("*.tmp"))
    assert set(path.rglob("*.h5")) == {path / ref.path for ref in read_state(path).files()}


def sweep(folder, kind, points, undisturbed):
    expected, _ = undisturbed
    for n in points:
        path = folder / f"{n}"
        fault = KINDS[kind](n)
        with fsops.observed(fault):
            try:
                train(path)
            except (StorageError, Crash):
                assert fault.hit
            else:
                assert not fault.hit  # writing behind makes the number of operations vary
        check_and_finish(path, expected)


def test_the_sweep_meets_every_operation(undisturbed):
    _, probe = undisturbed
    wanted = {"write", "sync", "link", "rename", "remove", "sync folder", "make folder", "lock"}
    assert wanted | {"read", "list", "look for space"} == set(probe.seen)
    assert probe.count > 150


@pytest.mark.parametrize("kind", KINDS)
def test_some_operations(tmp_path, undisturbed, kind):
    first = 1 + list(KINDS).index(kind)
    sweep(tmp_path, kind, range(first, undisturbed[1].count, 12), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_operation(tmp_path, undisturbed, kind):
    sweep(tmp_path, kind, range(1, undisturbed[1].count + 1), undisturbed)


def test_many_crashes_in_a_row(tmp_path, undisturbed):
    """Each start gets a little further than the last, whatever the last left behind."""
    path = tmp_path / "run"
    for crashes in range(1, 100):
        # A start reads what the earlier ones wrote: "resumed", "expired" and "lease".
        with fsops.observed(fault := Fault(70 + 8 * crashes, Crash())):
            try:
                train(path)
            except Crash:
                continue
        break
    assert not fault.hit
    assert crashes > 5
    check_and_finish(path, undisturbed[0])


@pytest.mark.multiprocess
def test_real_deaths(tmp_path, undisturbed):
    """A child process ends on the spot, like one that is killed, without closing anything."""
    code = f"""
import os, sys
import torch
from biggraph.storage import fsops
from tests.storage.doubles import Fault, train
torch.set_num_threads(1)
from pathlib import Path
for n in range(9, 190, 36):
    child = os.fork()
    if not child:
        with fsops.observed(Fault(n, 9, tear=True)):
            train(Path({str(tmp_path)!r}) / str(n))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, n
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
    deaths = sorted(tmp_path.iterdir())
    assert len(deaths) == 6
    for path in deaths:
        check_and_finish(path, undisturbed[0])
