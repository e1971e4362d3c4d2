"""What nature does to a run: kills, freezes, cuts, power cuts, bad disks, and people's doings.

Each simulation draws which kinds of faults it knows and how often they come. Half of the kills and
freezes have a fuse: they happen some turns later, at a file operation or a message, where timing
alone would seldom hit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.dist.simulation.world import Process

_WORKERS = ("w0", "w1", "w2", "w3")
_KINDS = ("", "disk", "disk sync", "disk link", "reply", "train")


class Faults:
    """Does its worst until `end`."""

    def __init__(self, simulation: Any, only: tuple[str, ...] = ()) -> None:
        self._simulation, self._world = simulation, simulation.world
        self._rng, self._ttl = simulation.world.rng, simulation.job.ttl
        self._network, self._disk = simulation.stage.network, simulation.disk
        kinds: dict[str, Callable[[], None]] = {
            "kill worker": lambda: self._strike(self._worker(), "kill"),
            "kill coordinator": lambda: self._strike(self._coordinator(), "kill"),
            "kill parameter server": lambda: self._strike(self._pick("p"), "kill"),
            "freeze parameter server": lambda: self._strike(self._pick("p"), "freeze"),
            "freeze worker": lambda: self._strike(self._worker(), "freeze"),
            "freeze coordinator": lambda: self._strike(self._coordinator(), "freeze"),
            "cut off": self._cut_off,
            "second coordinator": self._second,
            "twin worker": self._twin,
            "power cut": self._power_cut,
            "slow disk": lambda: self._spoil("delay", self._rng.choice([0.05, 0.3])),
            "full disk": lambda: self._spoil("full", True),
            "failing disk": lambda: self._spoil("failing", 0.3),
            "divergence": self._diverge,
            "stop": self._stop,
            "join": self._join,
        }
        chosen = only or self._rng.sample(sorted(kinds), self._rng.randint(1, len(kinds)))
        self._kinds = {kind: kinds[kind] for kind in chosen}
        self._pause = self._rng.choice([0.5, 1.5, 4.0])

    def rage(self) -> None:
        """Disturb the run for a while, or until it ends in spite of it."""
        rng, network = self._rng, self._network
        if rng.random() < 0.5:
            network.drop, network.twice = rng.choice([0, 0.02, 0.2]), rng.choice([0, 0.1, 0.5])
            network.late = rng.choice([0, 0.05, 0.3])
        until = self._world.now + rng.choice([20.0, 40.0, 80.0])
        while self._world.now < until and not self._simulation.over:
            self._world.sleep(rng.expovariate(1 / self._pause))
            kind = rng.choice(sorted(self._kinds))
            self._simulation.counts[kind] += 1
            self._world.say(f"!! {kind}")
            self._kinds[kind]()

    def end(self) -> None:
        """Let everything be well from here on."""
        network, disk = self._network, self._disk
        network.drop = network.twice = network.late = 0.0
        network.cuts.clear()
        disk.delay, disk.full, disk.failing = 0.002, False, 0.0
        self._simulation.job.divergences = 0
        for process in self._simulation.processes:
            process.frozen_until, process.fuse = 0.0, None
        for name in ("c0", *self._simulation.servers, *_WORKERS[:2]):
            self._world.at(
                self._rng.uniform(0, self._ttl), lambda n=name: self._simulation.start(n)
            )
        self._world.say("calm")

    def _worker(self) -> Process | None:
        return self._pick("w")

    def _coordinator(self) -> Process | None:
        return self._pick("c")

    def _pick(self, prefix: str) -> Process | None:
        alive = [p for p in self._simulation.processes if p.name.startswith(prefix) and not p.dead]
        return self._rng.choice(alive) if alive else None

    def _strike(self, process: Process | None, what: str) -> None:
        """Kill or freeze a process, now or some turns later."""
        if process is None:
            return
        world, rng = self._world, self._rng
        seconds = rng.choice([0.1, 0.5, 1.1, 2.5]) * self._ttl * rng.uniform(0.8, 1.2)

        def strike() -> None:
            if process.dead:
                return
            world.say(f"!! {what} {process.name}")
            if what == "kill":
                world.kill(process)
                delay = rng.choice([0.0, 0.3, 1.5]) * self._ttl + rng.random()
                world.at(delay, lambda: self._simulation.start(process.name))
            else:
                process.frozen_until = world.now + seconds

        if rng.random() < 0.5:
            strike()
        else:
            process.fuse = (rng.randint(1, 12), rng.choice(_KINDS), strike)

    def _cut_off(self) -> None:
        """Keep messages from or to a process, or both."""
        process = self._pick(self._rng.choice(["w", "w", "c", "p"]))
        if process is None:
            return
        ways = self._rng.choice([("in",), ("out",), ("in", "out")])
        cuts = {(process.name, way) for way in ways}
        self._network.cuts |= cuts
        seconds = self._rng.choice([0.2, 1.0, 2.5]) * self._ttl
        self._world.at(seconds, lambda: self._network.cuts.difference_update(cuts))

    def _second(self) -> None:
        """Start another coordinator, though one may be there."""
        self._simulation.launch(self._rng.choice(["c1", "c2"]))

    def _twin(self) -> None:
        """Freeze a worker and start it again, as if it had died."""
        process = self._worker()
        if process is not None:
            process.frozen_until = self._world.now + self._rng.choice([0.3, 1.5]) * self._ttl
            self._simulation.running[process.name] = self._simulation.launch(process.name)

    def _power_cut(self) -> None:
        """End all processes at once; the disk keeps what it has to, and what it likes."""
        world = self._world
        for process in self._simulation.processes:
            world.kill(process)
        self._disk.power_cut()
        names = ["c0", *{p.name: None for p in self._simulation.running.values() if p.name != "c0"}]
        for name in names:
            world.at(
                self._rng.uniform(0, self._ttl), lambda name=name: self._simulation.start(name)
            )

    def _spoil(self, quality: str, value: Any) -> None:
        """Make the disk worse for a while."""
        good = {"delay": 0.002, "full": False, "failing": 0.0}[quality]
        setattr(self._disk, quality, value)
        seconds = self._rng.uniform(0.1, 1.0) * self._ttl
        self._world.at(seconds, lambda: setattr(self._disk, quality, good))

    def _diverge(self) -> None:
        if self._simulation.counts["divergence"] < 8:  # each halves the rate, and some is left
            self._simulation.job.divergences = 1

    def _stop(self) -> None:
        """Send SIGTERM to a worker, sometimes twice."""
        process = self._worker()
        role = None if process is None else self._simulation.roles.get(id(process))
        if role is not None:
            role.stop()
            if self._rng.random() < 0.3:
                role.stop()

    def _join(self) -> None:
        self._simulation.start(self._rng.choice(_WORKERS))
