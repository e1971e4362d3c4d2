"""How long workers wait, and what a coordinator that was frozen makes of their silence."""

import subprocess
import sys
import threading

import pytest
from torch.distributed import QueueEmptyError

from biggraph.dist.endpoint import Endpoint
from biggraph.dist.mailbox import MailboxServer
from biggraph.dist.protocol import AskStatus
from biggraph.dist.remote import Patience, RemoteCoordinator, RunOver
from biggraph.dist.service import Service
from biggraph.errors import LinkLost
from biggraph.train.local import Children


def nobody():
    """Say that no coordinator has started."""
    return


class Waits:
    """A sleep that may do something at the n-th call."""

    def __init__(self, then=lambda: None, at=3):
        self.count, self._then, self._at = 0, then, at

    def __call__(self, seconds):
        self.count += 1
        if self.count == self._at:
            self._then()


@pytest.fixture
def no_time(monkeypatch):
    """Make each look at the clock a second later than the last."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("biggraph.dist.remote.time.monotonic", lambda: float(next(ticks)))


def remote(patience, sleep):
    return RemoteCoordinator(nobody, None, b"secret", "w", 1, patience, sleep)


@pytest.mark.usefixtures("no_time")
def test_who_was_asked_to_end_waits_a_few_seconds_more():
    waits = Waits(lambda: line.hurry())
    line = remote(Patience(coordinator_s=10_000), waits)
    with pytest.raises(LinkLost, match="no coordinator has answered for 5 s"):
        line(AskStatus())
    assert waits.count < 20


@pytest.mark.usefixtures("no_time")
def test_nobody_waits_for_the_coordinator_of_a_finished_run():
    finished = threading.Event()
    waits = Waits(finished.set)
    line = remote(Patience(coordinator_s=10_000, over=finished.is_set), waits)
    with pytest.raises(RunOver):
        line(AskStatus())
    assert waits.count < 20


class CoordinatorDouble:
    """Notes the times that it is told."""

    end = failure = None

    def __init__(self):
        self.times = []

    def tick(self, now):
        self.times.append(now)

    def handle(self, request, now):
        self.times.append(now)


def test_the_time_in_which_the_coordinator_was_frozen_does_not_count():
    now = 100.0
    coordinator = CoordinatorDouble()
    service = Service(coordinator, None, clock=lambda: now)
    for later in (0.2, 0.2, 500.0, 0.2):
        now += later
        service._tick()
    first, second, third, last = coordinator.times
    assert second - first == pytest.approx(0.2)
    assert third - second == pytest.approx(2.0)  # as much as a busy machine may take
    assert last - third == pytest.approx(0.2)


class LateReaders:
    """A store whose queues are emptied by somebody else after every look."""

    def __init__(self):
        self.looked = []

    def queue_len(self, name):
        self.looked.append(name)
        return 1

    def queue_pop(self, name, block):
        raise QueueEmptyError("queue is empty")


def test_a_late_reply_that_its_link_takes_after_all_disturbs_nobody():
    server = MailboxServer(None, b"secret", Endpoint(term="t", host="h", port=1, job="j"), None)
    store = LateReaders()
    for queue in ("first", "second", "third"):
        server._drop_late_replies(store, "w", queue)
    assert store.looked == ["first", "second"]


@pytest.mark.multiprocess
def test_a_child_that_was_just_being_started_ends_with_the_others(monkeypatch):
    children = Children({"a": [], "b": []})
    real, started = subprocess.Popen, []

    def start(command, **options):
        started.append(real([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(started) == 1:
            children.terminate()  # as a signal does at any moment
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    children.start()
    children.close(30.0)
    assert [process.returncode for process in started] == [-15]
    assert children.watch() == 15
