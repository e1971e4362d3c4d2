"""Kills, freezes and doubles the processes of a run at random, then lets it end and audits it."""

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from biggraph.storage.checkpoint import Checkpoint
from tests.dist.chaos.audit import audit, expired
from tests.dist.chaos.stage import LONGEST_S, Process, Stage

NAMES = ("w0", "w1", "w2")
PACE_S = 0.04
# What a coordinator says that another one has replaced.
DEPOSED = ("another process has written this record", "another process has cleaned up here")
ACTIONS = {
    "kill a worker": 35,
    "kill a worker for long": 8,
    "kill the coordinator": 12,
    "freeze a worker shortly": 25,
    "freeze a worker beyond its lease": 12,
    "freeze the coordinator": 8,
    "start a second coordinator": 3,
}


@dataclass
class Storm:
    """Faults for one run.

    Args:
        stage: of the run.
        seed: of the faults.
        faults: how many, unless the run ends before.
    """

    stage: Stage
    seed: int
    faults: int
    counts: Counter = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._frozen: list[tuple[float, Process]] = []
        self._killed: set[Path] = set()
        self._old: list[Process] = []
        self._back: dict[str, float] = {}  # when a worker that was killed is started again

    def rage(self) -> None:
        """Run the stage to its end under faults, and look for what is wrong."""
        self.coordinator = self._coordinator()
        self.workers = {name: self._worker(name) for name in NAMES}
        calm_since = 0.0
        done = 0
        while not self._ended():
            self._thaw(everything=done >= self.faults)
            if done < self.faults:
                self._strike()
                done += 1
                calm_since = time.monotonic()
                time.sleep(self._random.uniform(0.02, 0.3))
            else:
                time.sleep(0.05)
            if time.monotonic() - calm_since > LONGEST_S:
                self.violations.append("the run does not end though the faults have")
                break
        self._thaw(everything=True)
        self._judge()

    def _coordinator(self) -> Process:
        return self.stage.coordinator(lockless=True)

    def _worker(self, name: str) -> Process:
        return self.stage.worker(name, pace=PACE_S)

    def _ended(self) -> bool:
        """Look who has ended, and start again whoever was killed."""
        self._complain(self.coordinator, *self.workers.values())
        for name, process in self.workers.items():
            if process.code not in (None, 0) and time.monotonic() >= self._back.get(name, 0.0):
                self.workers[name] = self._worker(name)
        if self.coordinator.code not in (None, 0):
            self.coordinator = self._coordinator()
        return self.coordinator.code == 0 or len(self.violations) > 3

    def _complain(self, *processes: Process) -> None:
        """Note who has ended, though nobody killed it and no other coordinator took over."""
        for process in processes:
            said = process.said()
            deposed = process.code == 2 and any(reason in said for reason in DEPOSED)
            if process.code in (None, 0) or process.out in self._killed or deposed:
                continue
            self._killed.add(process.out)  # once
            where = f"{process.out.name} ended with {process.code}"
            self.violations.append(f"{where}: {said[-1500:]}")

    def _strike(self) -> None:
        action = self._random.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        name = self._random.choice(NAMES)
        worker = self.workers[name]
        ttl = self.stage.ttl
        self.counts[action] += 1
        if action == "kill a worker":
            self._kill(worker)
        elif action == "kill a worker for long":
            self._kill(worker)
            self._back[name] = time.monotonic() + self._random.uniform(1, 1.5) * ttl
        elif action == "kill the coordinator":
            self._kill(self.coordinator)
        elif action == "freeze a worker shortly":
            self._freeze(worker, self._random.uniform(0.05, 0.8))
        elif action == "freeze a worker beyond its lease":
            self._freeze(worker, self._random.uniform(1.2, 2) * ttl)
        elif action == "freeze the coordinator":
            self._freeze(self.coordinator, self._random.uniform(0.1, 1.5) * ttl)
        else:
            self._freeze(self.coordinator, self._random.uniform(0.1, 1.5))
            self._old.append(self.coordinator)
            self.coordinator = self._coordinator()

    def _kill(self, process: Process) -> None:
        self._killed.add(process.out)
        process.send(signal.SIGKILL)
        process.wait()

    def _freeze(self, process: Process, seconds: float) -> None:
        process.send(signal.SIGSTOP)
        self._frozen.append((time.monotonic() + seconds, process))

    def _thaw(self, *, everything: bool) -> None:
        for entry in list(self._frozen):
            if everything or entry[0] <= time.monotonic():
                entry[1].send(signal.SIGCONT)
                self._frozen.remove(entry)

    def _judge(self) -> None:
        for process in (*self.workers.values(), *self._old):
            process.wait()
            self._complain(process)
        self.violations += audit(self.stage.run, self.stage.epochs, self.stage.kept)
        self.violations += Checkpoint.open(self.stage.run, "latest").verify()
        said = "".join(path.read_text() for path in self.stage.folder.glob("*.out"))
        if "Traceback" in said:
            self.violations.append("a traceback was printed")
        self.counts["leases ended"] += sum("silent" in reason for reason in expired(self.stage.run))
        self.counts["other ends"] += sum(
            "silent" not in reason for reason in expired(self.stage.run)
        )
