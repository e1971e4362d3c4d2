"""A cluster on one machine: the coordinator in this process, the others in processes of their own.

One that dies is started again; a signal to this process reaches all workers. Knows processes;
nothing of what they do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from biggraph.config import Config
from biggraph.errors import BigGraphError, Interrupted
from biggraph.log import Reporter
from biggraph.storage.layout import CONFIG
from biggraph.storage.opening import local_copy
from biggraph.train.build import gpu_of, say_compiling
from biggraph.train.devices import RANK_VARIABLES
from biggraph.train.roles import WORKER_VARIABLE, CoordinatorRole
from biggraph.train.trainer import TrainResult

PARENT_VARIABLE = "BIGGRAPH_PARENT"

_RESTARTS = 10  # of one process, before something is taken to be wrong
_LOOK_S = 0.1
_GRACE_S = 60.0  # for a worker to finish its bucket and commit
_FINAL = (0, 2, 3)  # exit codes after which starting again would change nothing
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Children:
    """Processes of one run.

    Args:
        commands: arguments of `biggraph` by the name of the process.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        self._commands = commands
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = dict.fromkeys(commands, 0)
        self._ending = False

    def start(self) -> None:
        """Start every process."""
        for name in self._commands:
            self._start(name)

    def watch(self) -> int | None:
        """Start processes again that died; return an exit code once all have ended for good.

        Returns:
            None while some are alive; then 0, or the worst code with which one ended.
        """
        codes = {name: process.poll() for name, process in self._processes.items()}
        for name, code in codes.items():
            if code is not None and not self._has_ended(name, code):
                self._start(name)
                codes[name] = None
        ended = [code for code in codes.values() if code is not None]
        return max(map(abs, ended), default=0) if len(ended) == len(codes) else None

    def failed(self) -> bool:
        """Tell whether one has ended for good, and not because its work was done."""
        codes = {name: process.poll() for name, process in self._processes.items()}
        return any(code and self._has_ended(name, code) for name, code in codes.items())

    def terminate(self) -> None:
        """Ask every process to end: a worker after its bucket; harder when asked again."""
        self._ending = True
        for process in list(self._processes.values()):
            with suppress(ProcessLookupError):
                process.terminate()

    def await_end(self, grace_s: float) -> None:
        """Wait for the processes to end by themselves, for so long each."""
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)

    def close(self, grace_s: float) -> None:
        """Wait for the processes to end, and kill those that do not."""
        self._ending = True
        for process in self._processes.values():
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _has_ended(self, name: str, code: int) -> bool:
        return code in _FINAL or self._ending or self._starts[name] > _RESTARTS

    def _start(self, name: str) -> None:
        if self._ending:
            return
        self._starts[name] += 1
        started = self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", "biggraph", *self._commands[name], "--quiet"],
            env=_environment(name),
            start_new_session=True,  # a Ctrl-C reaches this process, which passes it on once
        )
        if self._ending:  # since a moment ago, so `terminate` may have missed it
            started.terminate()


def _environment(name: str) -> Mapping[str, str]:
    own = {WORKER_VARIABLE: name, PARENT_VARIABLE: str(os.getpid())}
    return {**os.environ, **own, RANK_VARIABLES[0]: name.rpartition("-")[2]}


@dataclass
class LocalCluster:
    """A coordinator in this process, and the processes around it. Made by `open_cluster`."""

    role: CoordinatorRole
    servers: Children
    workers: Children
    ended: threading.Event

    def stop(self) -> None:
        """Ask the workers to finish their buckets, commit and end; harder when asked again."""
        self.workers.terminate()

    def run(self) -> TrainResult:
        """Train until the run is finished.

        Raises:
            Interrupted: `stop` was called; everything trained is committed.
            BigGraphError: the run has failed, or its workers have.
        """
        self.servers.start()
        self.workers.start()
        threading.Thread(target=self._watch, name="workers", daemon=True).start()
        result = self.role.run(self.ended)
        if result is not None:
            self.servers.await_end(_GRACE_S)  # they read in the log that the run is finished
            return result
        if self.role.service.failure is not None:
            raise self.role.service.failure
        if self.servers.failed():
            raise BigGraphError("a parameter server has ended; see its message above")
        code = self.workers.watch()
        if code in (128 + signal.SIGINT, signal.SIGTERM, 0):
            raise Interrupted("stopped; everything trained so far is committed")
        raise BigGraphError(f"the workers ended with exit code {code}; see their messages above")

    def close(self) -> None:
        """End the workers, then those whom they need."""
        for children in (self.workers, self.servers):
            children.terminate()
            children.close(_GRACE_S)
        self.ended.set()
        self.role.close()

    def _watch(self) -> None:
        while not self.ended.wait(_LOOK_S):
            self.servers.watch()
            if self.servers.failed() or self.workers.watch() is not None:
                self.ended.wait(1.0)  # the coordinator may be about to see the end of the run
                self.ended.set()


def open_cluster(config: Config, *, restart: bool, reporter: Reporter) -> LocalCluster:
    """Open the coordinator of a run for `cluster.workers` workers on this machine.

    Raises:
        BigGraphError: as `CoordinatorRole.open`; this machine cannot train as the run file says.
    """
    gpu_of(config)  # or the run would be there before its workers refuse it
    role = CoordinatorRole.open(config, restart=restart, reporter=reporter)
    say_compiling(reporter, config)  # workers on this machine say nothing
    run_file = str(local_copy(role.directory.place, CONFIG))
    count, workers = config.cluster.parameter_servers, config.cluster.workers
    servers = {
        f"parameter-server-{index}": ["parameter-server", run_file, "--index", str(index)]
        for index in range(count if count > 1 else 0)
    }
    named = {f"worker-{index}": ["worker", run_file] for index in range(workers)}
    return LocalCluster(role, Children(servers), Children(named), threading.Event())


def local_name() -> str:
    """Return what lines of this process begin with: "worker-0: " where `train` started it."""
    name = os.environ.get(WORKER_VARIABLE) if PARENT_VARIABLE in os.environ else None
    return f"{name}: " if name else ""


def die_with_parent() -> None:
    """Make this process get SIGTERM when the process that started it as a worker ends."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
