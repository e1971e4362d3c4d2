"""Virtual time, and processes whose threads take turns: one runs at a time, the seed says which.

Threads are real, but each waits for its turn. A thread gives its turn away whenever it sleeps,
waits, or does anything that another process could notice; there it may be killed or frozen. What
is drawn from the seed never depends on real time, so a seed gives the same history again.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable

_current: World | None = None


class Killed(BaseException):
    """The process of this thread is dead: no code may go on."""


def world() -> World:
    """Return the world that is running."""
    assert _current is not None, "no simulation is running"
    return _current


class Process:
    """What is killed and frozen as a whole, and has a clock of its own."""

    def __init__(self, name: str, offset: float = 0.0, rate: float = 1.0) -> None:
        self.name, self.offset, self.rate = name, offset, rate
        self.dead = False
        self.frozen_until = 0.0
        self.threads: list[Thread] = []
        self.fuse: tuple[int, str, Callable[[], None]] | None = None  # turns left, of which kind

    def burn(self, kind: str) -> None:
        """Count one turn of that kind; where the fuse ends, what it is tied to happens."""
        if self.fuse is None or not kind.startswith(self.fuse[1]):
            return
        left, wanted, action = self.fuse
        self.fuse = (left - 1, wanted, action) if left > 1 else None
        if left <= 1:
            action()


class Thread:
    """A thread of a process that waits for its turn."""

    def __init__(self, process: Process, run: Callable[[], object], name: str) -> None:
        self.process, self.name = process, name
        self.turn = threading.Lock()
        self.turn.acquire()
        self.ticket = 0  # only the newest entry of the agenda counts
        self.over = False
        self.waiters: list[Thread] = []
        self._run = run
        process.threads.append(self)

    def main(self) -> None:
        self.turn.acquire()
        here = world()
        try:
            if not self.process.dead:
                self._run()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - shown with the history of the seed
            here.defect(f"{self.process.name}/{self.name} ended with {error!r}", error)
        self.over = True
        for waiter in self.waiters:
            here.wake(waiter)
        here.switch(last=True)


class World:
    """One simulation.

    Args:
        seed: of everything.
        turns: how many may be taken before the simulation is stuck.
    """

    def __init__(self, seed: int, turns: int = 400_000) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.turns, self.most = 0, turns
        self.history: list[str] = []
        self.defects: list[str] = []
        self.errors: list[BaseException] = []
        self._agenda: list[tuple[float, float, int, Thread | Callable[[], None], int]] = []
        self._entries = 0
        self._all: list[Thread] = []
        self.nature = Thread(Process("nature"), lambda: None, "nature")
        self.thread = self.nature

    @property
    def process(self) -> Process:
        """The process whose turn it is."""
        return self.thread.process

    def say(self, what: str) -> None:
        """Remember what happened."""
        self.history.append(f"{self.now:9.3f} {self.thread.process.name}: {what}")

    def defect(self, what: str, error: BaseException | None = None) -> None:
        """Remember what must not happen."""
        self.say(f"DEFECT {what}")
        self.defects.append(what)
        if error is not None:
            self.errors.append(error)

    def spawn(self, process: Process, run: Callable[[], object], name: str) -> Thread:
        """Start a thread, whose first turn comes soon."""
        thread = Thread(process, run, name)
        self._all.append(thread)
        threading.Thread(target=thread.main, name=f"{process.name}/{name}", daemon=True).start()
        self.wake(thread)
        return thread

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something later that needs no thread, such as delivering a message."""
        self._enter(self.now + delay, action, 0)

    def sleep(self, seconds: float, kind: str = "sleep") -> None:
        """Give the turn away for so long."""
        self._enter(self.now + max(seconds, 0.0), self.thread, self.thread.ticket)
        self.switch(kind)

    def wait(self, seconds: float | None = None, kind: str = "wait") -> None:
        """Give the turn away until somebody wakes this thread, or so long."""
        if seconds is not None:
            self._enter(self.now + max(seconds, 0.0), self.thread, self.thread.ticket)
        self.switch(kind)

    def wake(self, thread: Thread) -> None:
        """Let a thread have a turn now."""
        thread.ticket += 1
        self._enter(self.now, thread, thread.ticket)

    def kill(self, process: Process) -> None:
        """End a process: no thread of it does anything any more."""
        if process.dead:
            return
        process.dead = True
        for thread in process.threads:
            if not thread.over and thread is not self.thread:
                self.wake(thread)

    def check(self) -> None:
        """Stop here if the process of this thread is dead."""
        if self.thread.process.dead:
            raise Killed

    def switch(self, kind: str = "", *, last: bool = False) -> None:
        """Let the next thread of the agenda run, and return when it is this one's turn again."""
        me = self.thread
        if not last:
            if me.process.dead:
                raise Killed
            me.process.burn(kind)
            if me.process.dead:
                raise Killed
        self.thread = self.nature  # what needs no thread is nature's doing
        following = self._next()
        self.thread = following
        if following is not me:
            following.turn.release()
            if last:
                return
            me.turn.acquire()
        me.ticket += 1
        if me.process.dead:
            raise Killed

    def close(self) -> None:
        """Kill whatever is left, and return when all threads have ended; called by nature."""
        self.most = 10**9
        for thread in self._all:
            thread.process.dead = True
        while left := [thread for thread in self._all if not thread.over]:
            for thread in left:
                self.wake(thread)
            self._enter(self.now, self.nature, self.nature.ticket)
            self.switch()

    def _enter(self, time: float, what: Thread | Callable[[], None], ticket: int) -> None:
        self._entries += 1
        entry = (time, self.rng.random(), self._entries, what, ticket)
        heapq.heappush(self._agenda, entry)

    def _next(self) -> Thread:
        self.turns += 1
        while self._agenda:
            time, _, _, what, ticket = heapq.heappop(self._agenda)
            self.now = max(self.now, time)
            if not isinstance(what, Thread):
                what()
            elif what.over or ticket != what.ticket:
                continue
            elif what.process.frozen_until > self.now and not what.process.dead:
                self._enter(what.process.frozen_until, what, ticket)
            elif self.turns > self.most and what is not self.nature:
                continue  # nature says what is wrong
            else:
                return what
        return self.nature


def begin(seed: int) -> World:
    """Begin a simulation; the calling thread is nature."""
    global _current
    _current = World(seed)
    return _current
