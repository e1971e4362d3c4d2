"""The verbs of a cluster: coordinate, work, serve parameters, ask how it stands; and all at once.

Opens roles, passes signals on and shows progress; computes nothing itself.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from biggraph.config import Config, load_config
from biggraph.dist.endpoint import (
    advertised_host,
    find_secret,
    require_secret_beyond_loopback,
)
from biggraph.dist.flight_server import read_tls
from biggraph.dist.partition_server import PartitionServer
from biggraph.dist.protocol import AskStatus, Status
from biggraph.dist.remote import Patience, RemoteCoordinator
from biggraph.dist.transport import open_line
from biggraph.errors import FormatError, Interrupted, LinkLost
from biggraph.evaluate import evaluate as evaluation
from biggraph.evaluate.evaluate import Settings
from biggraph.evaluate.opening import graph_of
from biggraph.log import Reporter
from biggraph.storage import fsops
from biggraph.storage.checkpoint import Checkpoint
from biggraph.storage.opening import folder_of, open_place
from biggraph.storage.run import read_state
from biggraph.train import local
from biggraph.train.checks import required_paths
from biggraph.train.meeting import find_endpoint
from biggraph.train.parameter_role import ParameterServerRole
from biggraph.train.roles import CoordinatorRole, WorkerRole, worker_name
from biggraph.train.trainer import TrainResult, Validation

_ANSWER_S = 3.0  # for a coordinator to say how its run stands


def coordinate(
    config: str | Path, overrides: Sequence[str] = (), *, restart: bool = False, quiet: bool = False
) -> TrainResult:
    """Coordinate a run until it is finished: grant buckets, commit work, serve parameters.

    Args:
        config: run file, the same for every worker.
        overrides: dotted overrides.
        restart: remove an existing run first.
        quiet: show no progress.

    Raises:
        ConfigError: the run file is wrong or does not fit the graph or the run.
        StorageError: the run is another's, or storage refused.
        DivergenceError: training diverged; the last commit is kept.
        Interrupted: a signal ended it; workers wait for the next coordinator.
    """
    stop = threading.Event()
    with Reporter(quiet=quiet) as reporter:
        role = CoordinatorRole.open(
            load_config(config, overrides), restart=restart, reporter=reporter
        )
        try:
            with stopping_on_signals(stop.set):
                result = role.run(stop)
        finally:
            role.close()
    if result is None:
        raise Interrupted("coordinator stopped; workers wait for another one")
    return result


def work(
    config: str | Path,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Train what the coordinator of a run grants, until the run is finished.

    Args:
        config: the run file that the coordinator has.
        overrides: dotted overrides, the same too.
        name: of this worker, the same after every start; default: the environment's
            BIGGRAPH_WORKER, else made up of host and process.
        quiet: show no progress.

    Raises:
        ConfigError: the run file is wrong, or not the coordinator's.
        LinkLost: no coordinator has answered for `cluster.wait`.
        Interrupted: a signal stopped it; what was trained is committed.
    """
    local.die_with_parent()
    run_file = load_config(config, overrides)
    with Reporter(quiet=quiet) as reporter:
        role = WorkerRole.open(
            run_file,
            name=name or worker_name(),
            reporter=reporter,
            validate=validation(run_file),
        )
        try:
            with stopping_on_signals(role.stop):
                return role.run()
        finally:
            role.close()


def serve_parameters(
    config: str | Path, overrides: Sequence[str] = (), *, index: int, quiet: bool = False
) -> None:
    """Serve one slice of the relation parameters to workers, until the run is finished.

    Args:
        config: the run file that the coordinator has.
        overrides: dotted overrides, the same too.
        index: of the slice, from 0 to `cluster.parameter_servers` - 1.
        quiet: show no progress.

    Raises:
        ConfigError: the run file is wrong, or has no server of this number.
        LinkLost: no coordinator has begun the run for `cluster.wait`.
        Interrupted: a signal ended it; workers wait for the next one.
    """
    local.die_with_parent()
    stop = threading.Event()
    with Reporter(quiet=quiet) as reporter:
        role = ParameterServerRole.open(
            load_config(config, overrides), index=index, reporter=reporter
        )
        try:
            with stopping_on_signals(stop.set):
                finished = role.run(stop)
        finally:
            role.close()
    if not finished:
        raise Interrupted("parameter server stopped; workers wait for another one")


def serve_partitions(
    directory: Path,
    bind: str,
    port: int,
    secret_file: Path | None,
    tls: tuple[Path | None, Path | None],
    *,
    started: Callable[[str], None],
) -> None:
    """Serve the files of runs below a folder until a signal comes.

    Args:
        directory: made if it is not there.
        bind: address to listen on; beyond loopback with TLS and a secret that was given alone.
        port: 0 for any that is free.
        secret_file: that clients have too; default: the environment's BIGGRAPH_SECRET, else
            `secret` in the folder.
        tls: paths of certificate and key, or None.
        started: told the address that it listens on.

    Raises:
        ConfigError: no secret, or it cannot listen there, or must not.
        StorageError: the folder cannot be made.
    """
    local.die_with_parent()
    stop = threading.Event()
    server = PartitionServer(directory)
    fsops.make_folder(directory)
    secret = find_secret(directory, secret_file, create=True)
    require_secret_beyond_loopback(bind, secret, "--")
    port = server.open(secret.key, bind, port, read_tls(*tls, "--"))
    try:
        started(f"{advertised_host(bind)}:{port}")
        with stopping_on_signals(stop.set):
            stop.wait()
    finally:
        server.close()


def train_together(config: Config, *, restart: bool, reporter: Reporter) -> TrainResult:
    """Train with `cluster.workers` worker processes; raises as `api.train`."""
    cluster = local.open_cluster(config, restart=restart, reporter=reporter)
    try:
        with stopping_on_signals(cluster.stop):
            return cluster.run()
    finally:
        cluster.close()


def status(path: str | Path) -> dict[str, Any]:
    """Return how a run stands: what its log says, and what its coordinator adds if one answers.

    Args:
        path: of the run.

    Raises:
        FormatError: not a run, or damaged.
        ConfigError: the job secret cannot be found.
    """
    place, state = open_place(path), read_state(path)
    values: dict[str, Any] = {
        "epoch": state.epoch,
        "buckets_done": len(state.done),
        "buckets": len(state.facts.buckets),
        "log_records": state.number,
        "leases": len(state.leases),
        "coordinator": None,
    }
    endpoint = find_endpoint(place)
    if endpoint is None:
        return values
    config = Config.from_json(state.config, f"{path}: log")
    secret = find_secret(folder_of(place), config.cluster.secret_file, create=False).key
    remote = RemoteCoordinator(
        lambda: endpoint,
        partial(open_line, config.cluster),
        secret,
        "status",
        time.time_ns(),
        Patience(_ANSWER_S, 0.0),
    )
    try:
        answer = remote(AskStatus())
    except LinkLost:
        return values
    finally:
        remote.close()
    if not isinstance(answer, Status):
        raise FormatError(f"{path}: its coordinator answered with {answer}")
    return values | {"coordinator": f"{endpoint.host}:{endpoint.port}"} | answer.values


def validation(config: Config) -> Validation:
    """Return a function that evaluates the last commit as the run file's [eval] says."""
    _, path = required_paths(config)
    section = config.eval
    settings = Settings("valid", section.filtered, section.candidates, section.edges)

    def validate(on_progress: Callable[[int, int], None]) -> dict[str, Any]:
        checkpoint = Checkpoint.open(path, "latest")
        graph = graph_of(checkpoint)
        return evaluation.evaluate(checkpoint, graph, settings, on_progress=on_progress).to_dict()

    return validate


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGINT and SIGTERM, where the main thread runs this."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
