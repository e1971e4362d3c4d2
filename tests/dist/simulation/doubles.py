"""`threading`, `time` and executors of a simulated process, for modules that use the real ones."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tests.dist.simulation.world import Killed, Thread, world

_WALL = 1_700_000_000.0


class Lock:
    """Waits by giving the turn away; now and then taking it gives the turn away too."""

    reentrant = False

    def __init__(self) -> None:
        self._owner: Thread | None = None
        self._depth = 0
        self._waiting: list[Thread] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        here = world()
        if here.rng.random() < 0.02:
            here.sleep(0.0)
        if self.reentrant and self._owner is here.thread:
            self._depth += 1
            return True
        deadline = here.now + timeout if timeout >= 0 else None
        while self._owner is not None and not self._owner.process.dead:
            if deadline is not None and here.now >= deadline:
                return False
            self._waiting.append(here.thread)
            here.wait(None if deadline is None else deadline - here.now)
        here.check()
        self._owner = here.thread
        return True

    def release(self) -> None:
        if self._depth:
            self._depth -= 1
            return
        waiting, self._waiting, self._owner = self._waiting, [], None
        for thread in waiting:
            world().wake(thread)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


class RLock(Lock):
    reentrant = True


class Event:
    def __init__(self) -> None:
        self._set, self._waiting = False, list[Thread]()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for thread in waiting:
            world().wake(thread)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        here = world()
        deadline = None if timeout is None else here.now + timeout
        while not self._set and (deadline is None or here.now < deadline):
            self._waiting.append(here.thread)
            here.wait(None if deadline is None else deadline - here.now)
        return self._set


class ThreadDouble:
    def __init__(
        self, target: Callable[..., object], name: str, daemon: bool, args: tuple[Any, ...] = ()
    ) -> None:
        self._target, self._name, self._arguments = target, name, args

    def start(self) -> None:
        here = world()
        self._thread = here.spawn(here.process, lambda: self._target(*self._arguments), self._name)

    def join(self, timeout: float | None = None) -> None:
        here = world()
        while not self._thread.over:
            self._thread.waiters.append(here.thread)
            here.wait()


class Threading:
    """Stands for the module `threading`."""

    Lock, RLock, Event, Thread = Lock, RLock, Event, ThreadDouble


class Time:
    """Stands for the module `time`: the clock of the process whose turn it is."""

    @staticmethod
    def monotonic() -> float:
        here = world()
        return here.now * here.process.rate + here.process.offset

    perf_counter = monotonic

    @staticmethod
    def time_ns() -> int:
        return int((_WALL + Time.monotonic()) * 1e9)

    @staticmethod
    def sleep(seconds: float) -> None:
        world().sleep(seconds)


class Uuid:
    """Stands for the module `uuid`."""

    @staticmethod
    def uuid4() -> uuid.UUID:
        return uuid.UUID(int=world().rng.getrandbits(128))


class Future:
    def __init__(self) -> None:
        self._done, self._value, self._error = False, None, None
        self._waiting: list[Thread] = []

    def done(self) -> bool:
        return self._done

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        self._done, self._value, self._error = True, value, error
        for thread in self._waiting:
            world().wake(thread)
        self._waiting = []

    def result(self, timeout: float | None = None) -> Any:
        here = world()
        deadline = None if timeout is None else here.now + timeout
        while not self._done:
            if deadline is not None and here.now >= deadline:
                raise TimeoutError
            self._waiting.append(here.thread)
            here.wait(None if deadline is None else deadline - here.now)
        here.check()
        if self._error is not None:
            raise self._error
        return self._value


class Executor:
    """Stands for a `ThreadPoolExecutor` of one thread."""

    def __init__(self, threads: int, name: str = "pool", thread_name_prefix: str = "") -> None:
        assert threads == 1
        self._name = thread_name_prefix or name
        self._tasks: list[tuple[Future, Callable[..., Any], tuple[Any, ...]]] = []
        self._idle: Thread | None = None
        self._started = self._closed = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        here, future = world(), Future()
        here.check()
        self._tasks.append((future, function, arguments))
        if not self._started:
            self._started = True
            here.spawn(here.process, self._loop, self._name)
        elif self._idle is not None:
            here.wake(self._idle)
        return future

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            self._tasks.clear()
        if self._idle is not None:
            world().wake(self._idle)

    def _loop(self) -> None:
        here = world()
        while not self._closed:
            if not self._tasks:
                self._idle = here.thread
                here.wait()
                self._idle = None
                continue
            future, function, arguments = self._tasks.pop(0)
            try:
                value = function(*arguments)
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - surfaces where it is awaited
                future.settle(error=error)
            else:
                future.settle(value)
