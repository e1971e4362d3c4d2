"""A cluster on one machine: the coordinator in this process, workers in processes of their own.

A worker that dies is started again; a signal to this process reaches all of them. Knows processes;
nothing of what they do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from biggraph.config import Config
from biggraph.errors import BigGraphError, Interrupted
from biggraph.log import Reporter
from biggraph.storage.layout import CONFIG
from biggraph.storage.opening import local_copy
from biggraph.train.roles import WORKER_VARIABLE, CoordinatorRole
from biggraph.train.trainer import TrainResult

PARENT_VARIABLE = "BIGGRAPH_PARENT"

_RESTARTS = 10  # of one worker, before something is taken to be wrong
_LOOK_S = 0.1
_GRACE_S = 60.0  # for a worker to finish its bucket and commit
_FINAL = (0, 2, 3)  # exit codes after which starting again would change nothing
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Workers:
    """Worker processes of one run.

    Args:
        run_file: that all of them read.
        count: how many.
    """

    def __init__(self, run_file: Path, count: int) -> None:
        self._run_file = run_file
        self._names = [f"worker-{index}" for index in range(count)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._starts = dict.fromkeys(self._names, 0)
        self._ending = False

    def start(self) -> None:
        """Start every worker."""
        for name in self._names:
            self._start(name)

    def watch(self) -> int | None:
        """Start workers again that died; return an exit code once all have ended for good.

        Returns:
            None while some are alive; then 0, or the worst code with which one ended.
        """
        codes = {name: process.poll() for name, process in self._processes.items()}
        for name, code in codes.items():
            crashed = code is not None and code not in _FINAL and not self._ending
            if crashed and self._starts[name] <= _RESTARTS:
                self._start(name)
                codes[name] = None
        ended = [code for code in codes.values() if code is not None]
        return max(map(abs, ended)) if len(ended) == len(codes) else None

    def terminate(self) -> None:
        """Ask every worker to finish its bucket, commit and end; harder when asked again."""
        self._ending = True
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.terminate()

    def close(self, grace_s: float) -> None:
        """Wait for the workers to end, and kill those that do not."""
        self._ending = True
        for process in self._processes.values():
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str) -> None:
        self._starts[name] += 1
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", "biggraph", "worker", str(self._run_file), "--quiet"],
            env=_environment(name),
            start_new_session=True,  # a Ctrl-C reaches this process, which passes it on once
        )


def _environment(name: str) -> Mapping[str, str]:
    return {**os.environ, WORKER_VARIABLE: name, PARENT_VARIABLE: str(os.getpid())}


@dataclass
class LocalCluster:
    """A coordinator in this process and its workers. Made by `open_cluster`."""

    role: CoordinatorRole
    workers: Workers
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
        self.workers.start()
        threading.Thread(target=self._watch, name="workers", daemon=True).start()
        result = self.role.run(self.ended)
        if result is not None:
            return result
        code = self.workers.watch()
        if code in (128 + signal.SIGINT, signal.SIGTERM, 0):
            raise Interrupted("stopped; everything trained so far is committed")
        raise BigGraphError(f"the workers ended with exit code {code}; see their messages above")

    def close(self) -> None:
        """End the workers, then the coordinator."""
        self.workers.terminate()
        self.workers.close(_GRACE_S)
        self.ended.set()
        self.role.close()

    def _watch(self) -> None:
        while not self.ended.wait(_LOOK_S):
            if self.workers.watch() is not None:
                self.ended.wait(1.0)  # the coordinator may be about to see the end of the run
                self.ended.set()


def open_cluster(config: Config, *, restart: bool, reporter: Reporter) -> LocalCluster:
    """Open the coordinator of a run for `cluster.workers` workers on this machine.

    Raises:
        BigGraphError: as `CoordinatorRole.open`.
    """
    role = CoordinatorRole.open(config, restart=restart, reporter=reporter)
    run_file = local_copy(role.directory.place, CONFIG)
    return LocalCluster(role, Workers(run_file, config.cluster.workers), threading.Event())


def die_with_parent() -> None:
    """Make this process get SIGTERM when the process that started it as a worker ends."""
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)
