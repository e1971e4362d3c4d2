"""Puts the shipping roles on a stage: their clocks, threads, wires and files are the simulation's.

`biggraph.train.roles` opens coordinator and worker as the command line does; only what they stand
on is exchanged, by name, in the modules that use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any
from unittest import mock

from torch import Tensor

from biggraph.dist import (
    follower,
    parameter_server,
    parameter_service,
    parameters,
    remote,
    service,
    session,
)
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.endpoint import Secret
from biggraph.dist.remote import Patience, RemoteCoordinator
from biggraph.dist.service import Service
from biggraph.dist.session import Session
from biggraph.dist.status import Chronicle
from biggraph.storage import cache, files, log
from biggraph.storage.run import RunDirectory, is_run
from biggraph.train import build, edges, meeting, parameter_role, roles, trainer
from tests.dist.simulation import job as jobs
from tests.dist.simulation.disk import Disk
from tests.dist.simulation.doubles import Event, Executor, Threading, Time
from tests.dist.simulation.job import Job, ToyTrainer
from tests.dist.simulation.network import LineDouble, Network, ServerDouble
from tests.dist.simulation.watch import Watch
from tests.dist.simulation.world import world


class Quiet:
    """Nobody reads what is reported."""

    def say(self, message: str) -> None:
        pass

    def advance(self, name: str, done: float, total: float | None, note: str = "") -> None:
        pass


_QUIET: Any = Quiet()


class NoMetrics:
    """Nobody reads the metrics."""

    def write(self, event: str, **values: Any) -> None:
        world().say(f"{event} {values}")


@dataclass
class Stage:
    """What one simulation is played on."""

    job: Job
    disk: Disk
    network: Network
    coordinators: dict[str, Coordinator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Watch(self.job)
        self.disk.observers.append(self.watch.written)

    def open_run(self, ground: Job, *, restart: bool) -> RunDirectory:
        if is_run(self.disk):
            return RunDirectory.resume(self.disk)
        return RunDirectory.create(self.disk, self.job.config, self.job.facts)

    def coordinator(self) -> None:
        """Be a coordinator until the run is over; raises as the role does."""
        role = roles.CoordinatorRole.open(self.job.config, restart=False, reporter=_QUIET)
        self.coordinators[world().process.name] = role.service._coordinator
        try:
            role.run(Event())  # type: ignore[arg-type]
        finally:
            role.close()

    def parameter_server(self, index: int) -> None:
        """Be a parameter server until the run is over; raises as the role does."""
        role = parameter_role.ParameterServerRole.open(
            self.job.config, index=index, reporter=_QUIET
        )
        try:
            role.run(Event())  # type: ignore[arg-type]
        finally:
            role.close()

    def worker(self, name: str, opened: Any) -> None:
        """Be a worker until the run is over; `opened` is given the role."""
        validate = jobs.validation(self.job, self.disk)
        role = roles.WorkerRole.open(self.job.config, name=name, reporter=_QUIET, validate=validate)
        toy: Any = role.trainer.bucket_trainer
        toy.session, toy.watch = role.session, self.watch
        self.watch.enter(role.session)
        self._note_commits(role.session)
        opened(role)
        try:
            role.run()
        finally:
            role.close()

    def _note_commits(self, session: Session) -> None:
        commit = session.commit

        def noting(work: Any, released: Any = ()) -> None:
            fence = session.fence
            commit(work, released)
            self.job.acknowledged.append(fence)

        session.commit = noting  # type: ignore[method-assign]

    def check_view(self, view: Tensor) -> None:
        """Compare what a parameter server says with what can be: each step adds 1 to the first."""
        if view.numel() and float(view[0]) > self.job.steps_made:
            world().defect(f"{view[0]:g} steps in a view, {self.job.steps_made} were made")


@contextmanager
def play(stage: Stage) -> Iterator[None]:
    """Let the shipping code run on a stage."""
    job, disk, network = stage.job, stage.disk, stage.network
    secret = Secret(b"0123456789abcdef", explicit=True)

    def open_server(section: Any, handlers: Any, key: bytes, job_id: str) -> ServerDouble:
        return ServerDouble(network, handlers, job_id, stage.check_view)

    exchanged: dict[Any, dict[str, Any]] = {
        log: {"decode": lru_cache(10_000)(log.decode)},  # a pure function, called very often
        files: {"_write": jobs.write_plain, "_parse": jobs.parse_plain},
        cache: {"threading": Threading, "time": Time, "ThreadPoolExecutor": Executor},
        edges: {"ThreadPoolExecutor": Executor},
        parameters: {"threading": Threading},
        parameter_server: {"threading": Threading},
        session: {"threading": Threading},
        remote: {
            "threading": Threading, "time": Time,
        },
        service: {
            "threading": Threading, "time": Time, "_TICK_S": 0.5,
            "open_server": open_server,
        },
        trainer: {"_IDLE_S": 0.4},
        build: {
            "_bucket_trainer": lambda ground, model: ToyTrainer(job, model),
            "Trainer": partial(trainer.Trainer, clock=Time.monotonic, sleep=Time.sleep),
            "Chronicle": partial(Chronicle, clock=Time.monotonic),
        },
        meeting: {"time": Time},
        follower: {"threading": Threading},
        parameter_service: {
            "threading": Threading, "_LOOK_S": 0.5,
            "open_server": open_server,
        },
        parameter_role: {
            "open_place": lambda path: disk, "folder_of": lambda place: None,
            "find_secret": lambda *a, **k: secret,
        },
        roles: {
            "threading": Threading, "time": Time, "_LOOK_S": 2.0,
            "Ground": mock.Mock(of=lambda config: job),
            "open_run": stage.open_run, "open_place": lambda path: disk,
            "folder_of": lambda place: None,
            "find_secret": lambda *a, **k: secret,
            "keep_metrics": lambda *a: NoMetrics(), "open_metrics": lambda *a: NoMetrics(),
            "Service": partial(Service, clock=Time.monotonic),
            "RemoteCoordinator": partial(RemoteCoordinator, sleep=Time.sleep),
            "Patience": partial(Patience, 1.0),
            "open_line": lambda section, *line: LineDouble(network, *line),
        },
    }  # fmt: skip
    with ExitStack() as stack:
        for module, names in exchanged.items():
            for name, double in names.items():
                stack.enter_context(mock.patch.object(module, name, double))
        yield
