"""One simulation: a seed in, a report out.

Nature starts a coordinator and workers, does what it does to them for a while (`faults`), then lets
them be, waits for the end and has everything checked (`oracle`).
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from biggraph.errors import BigGraphError, ConfigError, Interrupted, LinkLost, StorageError
from biggraph.storage import layout
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.run import RunDirectory
from tests.dist.simulation import oracle
from tests.dist.simulation.disk import Disk
from tests.dist.simulation.faults import Faults
from tests.dist.simulation.job import Job
from tests.dist.simulation.network import Network
from tests.dist.simulation.stage import Stage, play
from tests.dist.simulation.world import Process, World, begin

CALM_S = 400.0  # virtual seconds within which a run has to end once nothing disturbs it
NOTICE_S = 20.0  # within which a coordinator whose run another one has finished has to end


@dataclass
class Report:
    """How a simulation went.

    Args:
        seed: of it.
        wrong: what is wrong, in words.
        history: what happened.
        counts: of faults, turns, messages.
    """

    seed: int
    wrong: list[str]
    history: list[str]
    counts: Counter[str]
    errors: list[BaseException] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {len(self.wrong)} defects", *self.wrong, *self.history[-40:]]
        for error in self.errors[:2]:
            lines += traceback.format_exception(error)
        return "\n".join(lines)


class Simulation:
    """A job, and who works on it."""

    def __init__(self, world: World, *, calm: bool, only: tuple[str, ...]) -> None:
        self.world, rng = world, world.rng
        self.job = Job.of(rng)
        self.disk = Disk(locks=rng.random() < 0.5)
        self.stage = Stage(self.job, self.disk, Network())
        self.counts: Counter[str] = Counter()
        self.running: dict[str, Process] = {}
        self.processes: list[Process] = []
        self.roles: dict[int, Any] = {}  # of workers, by the id of their processes
        self.over = False
        self.calm, self.only = calm, only
        count = self.job.config.cluster.parameter_servers
        self.servers = [f"p{i}" for i in range(count if count > 1 else 0)]
        self.clocks = {name: (rng.uniform(0, 1e5), rng.uniform(0.98, 1.02)) for name in _NAMES}
        self.finals: list[tuple[str, dict[str, Any]]] = []

    def start(self, name: str) -> None:
        """Start a process of that name, unless one runs."""
        if self.over or (name in self.running and not self.running[name].dead):
            return
        self.running[name] = self.launch(name)

    def launch(self, name: str) -> Process:
        """Start a process."""
        process = Process(name, *self.clocks[name])
        self.processes.append(process)
        self.world.spawn(process, lambda: self._live(process), "main")
        return process

    def _live(self, process: Process) -> None:
        """Be a process from its start to its end."""
        world, name = self.world, process.name
        world.say("starts")
        try:
            if name.startswith("c"):
                self.stage.coordinator()
                self.over = True
            elif name.startswith("p"):
                self.stage.parameter_server(int(name[1:]))
            else:
                self.stage.worker(name, lambda role: self._opened(process, role))
            world.say("ends well")
        except BigGraphError as error:
            self._judge(name, error)
        world.kill(process)
        if self.running.get(name) is process:
            world.at(world.rng.uniform(0.1, 2 * self.job.ttl), lambda: self.start(name))

    def _opened(self, process: Process, role: Any) -> None:
        """Know a worker's role, and what it holds where it hears that the run is finished."""
        self.roles[id(process)] = role
        end = role.parameters.end

        def remember() -> None:
            end()
            arrays = {name: array.copy() for name, array in role.parameters._arrays.items()}
            self.finals.append((process.name, arrays))

        role.parameters.end = remember

    def _judge(self, name: str, error: BigGraphError) -> None:
        """Say how a process ended, and whether it may end so."""
        self.world.say(f"ends: {type(error).__name__}: {error}")
        self.counts[f"ended by {type(error).__name__}"] += 1
        excused = isinstance(error, StorageError | LinkLost | Interrupted)
        twins = isinstance(error, ConfigError) and "started later" in str(error)
        if self.calm or not (excused or twins):
            self.world.defect(f"{name} ended: {error}", error)

    def wait(self, seconds: float) -> None:
        """Let so much time pass, or less where the run ends."""
        deadline = self.world.now + seconds
        while not self.over and self.world.now < deadline and self.world.turns < self.world.most:
            self.world.sleep(1.0)

    def play(self) -> None:
        """Play the whole simulation."""
        rng = self.world.rng
        self.start("c0")
        for name in self.servers:
            self.start(name)
        for name in [f"w{i}" for i in range(rng.randint(1, 4))]:
            self.world.at(rng.uniform(0, 5), lambda name=name: self.start(name))
        faults = Faults(self, self.only)
        if not self.calm:
            faults.rage()
            faults.end()
        began = self.world.now
        self.wait(CALM_S)
        self.counts["calm s"] = int(self.world.now - began)
        if not self.over:
            self.world.defect("the run does not end")
            return
        self.world.sleep(NOTICE_S)
        for process in self.processes:
            if process.name.startswith("c") and not process.dead:
                self.world.defect(f"{process.name} goes on, though another one finished the run")

    def audit(self) -> list[str]:
        """Return what is wrong in the end."""
        if self.over and self.world.rng.random() < 0.5:
            self.disk.power_cut()
        files, wrong = self.disk.files, list(self.world.defects)
        found = oracle.replay(self.job, files)
        wrong += oracle.check(found, self.job, files, self.over)
        if self.over and not wrong:
            wrong += self._parameters(found) + self._left_over()
        if self.calm:
            wrong += [f"lease {f} {why}" for f, why in found.expired if why != "released"]
        return wrong

    def _parameters(self, found: oracle.Replay) -> list[str]:
        """Compare what finished workers and the last coordinator hold with the log."""
        servers = [
            (name, coordinator._parameters.arrays())  # type: ignore[union-attr]
            for name, coordinator in self.stage.coordinators.items()
            if coordinator.state.number == self.last_number()
        ]
        return [
            f"{name}: its relation parameters are not those of the log"
            for name, arrays in (*self.finals, *servers)
            if any(not np.array_equal(arrays[n], found.relations[n]) for n in found.relations)
        ]

    def last_number(self) -> int:
        """Return how many records the log has."""
        return sum(name.startswith("log/") and ".tmp" not in name for name in self.disk.files)

    def _left_over(self) -> list[str]:
        """Resume the run, and return what is left that should not be."""
        self.disk.full, self.disk.failing, self.disk.owner = False, 0.0, None
        run = RunDirectory.resume(self.disk)  # type: ignore[arg-type]
        run.collect_garbage()
        named = {ref.path for ref in run.state.files()}
        wrong = [f"{n}: left" for n in layout.data_files(self.disk) if n not in named]
        wrong += [f"{n}: left" for n in layout.temporaries(self.disk)]
        wrong += [f"lease {fence} is left" for fence in run.state.leases]
        return wrong + Checkpoint.open(self.disk, "latest").verify()  # type: ignore[arg-type]


_NAMES = ("c0", "c1", "c2", "p0", "p1", "w0", "w1", "w2", "w3")


def run(seed: int, *, calm: bool = False, only: tuple[str, ...] = ()) -> Report:
    """Play one seed.

    Args:
        seed: decides everything.
        calm: nothing goes wrong, so nothing may be lost.
        only: kinds of faults; those that the seed says where empty.
    """
    world = begin(seed)
    simulation = Simulation(world, calm=calm, only=only)
    with play(simulation.stage):
        try:
            simulation.play()
            world.close()
            wrong = simulation.audit()
        finally:
            world.close()
    counts = simulation.counts
    counts.update(turns=world.turns, messages=simulation.stage.network.sent)
    counts.update(commits=simulation.last_number(), virtual_s=int(world.now))
    return Report(seed, wrong, world.history, counts, world.errors)
