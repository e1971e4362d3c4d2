"""The two roles of a cluster: what a coordinator and what a worker is made of, and their lives.

Knows how parts are put together for several processes; nothing of how they start each other.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import quote

from biggraph.config import Config
from biggraph.dist import course
from biggraph.dist.course import Plan
from biggraph.dist.endpoint import (
    ENDPOINT_FILE,
    Endpoint,
    encode_endpoint,
    find_secret,
    require_secret_beyond_loopback,
)
from biggraph.dist.parameter_server import ParameterServer
from biggraph.dist.parameters import SharedParameters
from biggraph.dist.remote import Patience, RemoteCoordinator, RunOver
from biggraph.dist.service import Service
from biggraph.dist.session import LeaseLostError, Session
from biggraph.dist.transport import open_line
from biggraph.errors import BigGraphError, ConfigError
from biggraph.log import Reporter
from biggraph.storage.files import read_arrays
from biggraph.storage.metrics import keep_metrics
from biggraph.storage.opening import folder_of, open_place
from biggraph.storage.place import Place
from biggraph.storage.reading import LogReader
from biggraph.storage.run import RunDirectory, read_state
from biggraph.train.build import (
    WorkerParts,
    build_coordinator,
    build_trainer,
    gpu_of,
    open_metrics,
    open_run,
    say_compiling,
    say_plan,
)
from biggraph.train.checks import required_paths
from biggraph.train.ground import Ground, ground_of
from biggraph.train.meeting import find_endpoint, parameters_file, wait_for_run
from biggraph.train.shared import add_shared
from biggraph.train.trainer import Trainer, TrainResult, Validation

WORKER_VARIABLE = "BIGGRAPH_WORKER"

_READ_S = 2.0  # between two looks whether the published endpoint is this coordinator's
_LOOK_S = 0.2  # between two looks at the time of the next renewal
_LONGEST_NAME = 80
_RENEWALS = 6  # within the time after which a lease expires


@dataclass
class CoordinatorRole:
    """An opened coordinator. Made by `open`."""

    service: Service
    directory: RunDirectory
    endpoint: Endpoint
    reporter: Reporter
    epochs: int
    look: float = -math.inf  # when to read the published endpoint again

    @classmethod
    def open(cls, config: Config, *, restart: bool, reporter: Reporter) -> CoordinatorRole:
        """Create or resume the run, listen, and say where in the run directory.

        Raises:
            ConfigError: the run file does not fit, or there is no secret where one is needed.
            StorageError: the run is another's, or the address cannot be used.
            FormatError: graph or run are damaged.
        """
        ground = Ground.of(config)
        directory = open_run(ground, restart=restart)
        try:
            ground = ground_of(ground, directory.state.facts)
            cluster = config.cluster
            secret = find_secret(folder_of(directory.place), cluster.secret_file, create=True)
            require_secret_beyond_loopback(cluster.bind, secret)
            say_plan(reporter, directory.state, ground)
            service = _build_service(ground, directory, reporter)
            endpoint = service.open(cluster, secret.key, ground.fingerprint[:16])
            role = cls(service, directory, endpoint, reporter, config.train.epochs)
            role._publish()
        except BaseException:
            directory.close()
            raise
        reporter.say(f"coordinator listens on {endpoint.host}:{endpoint.port}")
        return role

    def run(self, stop: threading.Event) -> TrainResult | None:
        """Serve until the run is finished; None where `stop` was set before.

        Raises:
            BigGraphError: the run has failed.
        """
        finished = self.service.run(stop, self._tend)
        if finished is None:
            return None
        edges = self.service.edges
        return TrainResult(finished.epochs, edges, finished.best, finished.stopped_early)

    def close(self) -> None:
        """Stop listening and let others write the run."""
        self.service.close()
        self.directory.close()

    def _publish(self) -> None:
        """Say where this coordinator listens, unless another one has gone on with the run."""
        self.service.between_requests(self.directory.require_own)
        self.directory.place.replace(ENDPOINT_FILE, encode_endpoint(self.endpoint))

    def _tend(self, status: dict[str, Any]) -> None:
        """Show how the run stands, and now and then see to it that workers find this coordinator.

        One that was frozen while it published puts its endpoint over this one's when it wakes.
        """
        if (now := time.monotonic()) >= self.look:
            self.look = now + _READ_S
            if not self._is_published():
                self._publish()
        self._show(status)

    def _is_published(self) -> bool:
        with suppress(FileNotFoundError):
            return self.directory.place.read(ENDPOINT_FILE) == encode_endpoint(self.endpoint)
        return False

    def _show(self, status: dict[str, Any]) -> None:
        epoch = min(status["epoch"] + 1, self.epochs)
        edges = status["edges_done"] + sum(w["edges"] for w in status["workers"])
        note = f"{status['edges_per_s']:,.0f} edges/s  {len(status['workers'])} workers"
        self.reporter.advance(f"epoch {epoch}/{self.epochs}", edges, status["edges"], note)


def _build_service(ground: Ground, directory: RunDirectory, reporter: Reporter) -> Service:
    place = directory.place
    if directory.state.relations is None:
        model = ground.model()
        add_shared(model.parameters, directory.state.facts)
        directory.rebase(model.arrays())  # deltas need something to be added to
    parameters = ParameterServer(directory.relations(), lambda ref: read_arrays(place, ref)[0])
    coordinator = build_coordinator(
        ground,
        directory,
        open_metrics(ground, directory.state),
        reporter,
        ttl=ground.config.cluster.lease_ttl,
        parameters=parameters,
    )
    coordinator.start(time.monotonic())
    return Service(coordinator, parameters)


@dataclass
class WorkerRole:
    """An opened worker. Made by `open`."""

    trainer: Trainer
    session: Session
    parameters: SharedParameters
    lines: list[RemoteCoordinator]
    place: Place
    plan: Plan

    @classmethod
    def open(
        cls, config: Config, *, name: str, reporter: Reporter, validate: Validation | None
    ) -> WorkerRole:
        """Find the run and its coordinator, waiting for them if need be.

        Raises:
            ConfigError: the run file does not fit its graph or this machine, or there
                is no secret.
            LinkLost: no coordinator appeared in time.
            FormatError: graph or run are damaged.
        """
        check_worker_name(name)
        gpu_of(config)  # or it would be missed after waiting for the run only
        ground = Ground.of(config)
        _, path = required_paths(config)
        place, plan = open_place(path), Plan.of(config)
        facts = wait_for_run(place, config.cluster.wait)
        say_compiling(reporter, config)
        ground = ground_of(ground, facts)
        secret = find_secret(folder_of(place), config.cluster.secret_file, create=False).key
        started, log = time.time_ns(), LogReader(place)
        find, connect = partial(find_endpoint, place), partial(open_line, config.cluster)
        patience = Patience(
            coordinator_s=config.cluster.wait,
            over=lambda: course.finished(log.state(), plan),
        )
        remote = RemoteCoordinator(find, connect, secret, name, started, patience)
        session = Session(remote, name, started, ground.fingerprint, ground.needs)
        model = ground.model()
        add_shared(model.parameters, facts)
        servers = [
            RemoteCoordinator(where, connect, secret, name, started, for_long)
            for where, for_long in _parameter_servers(config, place, patience)
        ]
        calls = [server.exchange for server in servers or [remote]]
        parameters = SharedParameters(model.parameters, calls, config.cluster.sync_every)
        metrics = keep_metrics(place, f"metrics-{quote(name, safe='')}.jsonl")
        metrics.write("start", worker=name)
        parts = WorkerParts(model, facts, place, metrics, reporter)
        trainer = build_trainer(ground, parts, session, parameters, validate, together=False)
        return cls(trainer, session, parameters, [remote, *servers], place, plan)

    def run(self) -> TrainResult:
        """Train until the run is finished; raises as `Trainer.run`.

        Where the coordinator has ended before this worker could hear that the run is finished,
        the log says so.
        """
        ended = threading.Event()
        renewals = threading.Thread(target=self._renew, args=(ended,), name="renew", daemon=True)
        renewals.start()
        self.parameters.start()
        try:
            return self.trainer.run()
        except RunOver:
            state = read_state(self.place)
            best, early = course.best(state, self.plan), state.epoch < self.plan.epochs
            return TrainResult(state.epoch, self.trainer.trained, best, early)
        finally:
            ended.set()
            self.parameters.close()

    def stop(self) -> None:
        """Finish the bucket, commit and end; at once when repeated. A signal handler may call it.

        Whoever does not answer by then is not waited for.
        """
        self.trainer.stop()
        for line in self.lines:
            line.hurry()

    def close(self) -> None:
        """Stop background threads and leave the coordinator."""
        self.trainer.close()
        for line in self.lines:
            line.close()

    def _renew(self, ended: threading.Event) -> None:
        """Say that this worker is alive, often enough to keep its lease."""
        waited = 0.0
        while not ended.wait(_LOOK_S):
            fence, waited = self.session.fence, waited + _LOOK_S
            if not fence or waited < min(self.session.ttl_s, 60.0) / _RENEWALS:
                continue
            waited = 0.0
            try:
                self.session.renew(self.trainer.progress.running)
            except LeaseLostError:
                if self.session.fence == fence:  # else it has begun again already
                    self.trainer.abandon()
            except BigGraphError:
                continue  # what is wrong will show in the loop


def _parameter_servers(
    config: Config, place: Place, patience: Patience
) -> list[tuple[Callable[[], Endpoint | None], Patience]]:
    """Return how to find each parameter server that is not in the coordinator, and its patience."""
    count = config.cluster.parameter_servers
    return [
        (
            partial(find_endpoint, place, parameters_file(index)),
            replace(patience, whom=f"parameter-server --index {index}"),
        )
        for index in range(count if count > 1 else 0)
    ]


def worker_name() -> str:
    """Return the name of the worker in this process: given by its environment, or made up."""
    return os.environ.get(WORKER_VARIABLE) or f"{socket.gethostname()}-{os.getpid()}"


def check_worker_name(name: str) -> None:
    """Refuse a name that cannot stand in messages and names of files.

    Raises:
        ConfigError: it is empty, long, or not printable ASCII.
    """
    if not name or len(name) > _LONGEST_NAME or not (name.isascii() and name.isprintable()):
        raise ConfigError(
            f"worker name {name!r}: expected 1 to {_LONGEST_NAME} printable ASCII characters; set "
            f"--name or {WORKER_VARIABLE}"
        )
