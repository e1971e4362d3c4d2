"""The role of a parameter server of its own: what it is made of, and its life.

It needs the run file and the run, not the graph. Knows how its parts are put together; nothing of
the coordinator or of workers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from biggraph.config import Config
from biggraph.dist import course
from biggraph.dist.course import Plan
from biggraph.dist.endpoint import (
    Endpoint,
    encode_endpoint,
    find_secret,
    require_secret_beyond_loopback,
)
from biggraph.dist.follower import Follower
from biggraph.dist.parameter_service import ParameterService
from biggraph.errors import ConfigError
from biggraph.log import Reporter
from biggraph.storage.opening import folder_of, open_place
from biggraph.train.checks import fingerprint, required_paths
from biggraph.train.meeting import parameters_file, wait_for_run


@dataclass
class ParameterServerRole:
    """An opened parameter server. Made by `open`."""

    service: ParameterService
    endpoint: Endpoint
    plan: Plan

    @classmethod
    def open(cls, config: Config, *, index: int, reporter: Reporter) -> ParameterServerRole:
        """Wait for the run, read what it has committed, listen, and say where beside its log.

        Raises:
            ConfigError: there is no server of that number, or no secret, or the address cannot be
                used.
            LinkLost: no coordinator has begun the run in time.
            FormatError: the run is damaged.
        """
        _, path = required_paths(config)
        cluster, place = config.cluster, open_place(path)
        count = cluster.parameter_servers
        if not 0 <= index < count or count == 1:
            raise ConfigError(
                f"--index {index}: the run file has cluster.parameter_servers = {count}; with 1 "
                "the coordinator serves them itself, with more --index counts them from 0"
            )
        facts = wait_for_run(place, cluster.wait)
        secret = find_secret(folder_of(place), cluster.secret_file, create=False)
        require_secret_beyond_loopback(cluster.bind, secret)
        follower = Follower(place, index, count)
        follower.catch_up()
        service = ParameterService(follower)
        port = cluster.port + 1 + index if cluster.port else 0
        section = cluster.model_copy(update={"port": port})
        endpoint = service.open(section, secret.key, fingerprint(config, facts.graph)[:16])
        place.replace(parameters_file(index), encode_endpoint(endpoint))
        reporter.say(f"parameter server {index} listens on {endpoint.host}:{endpoint.port}")
        return cls(service, endpoint, Plan.of(config))

    def run(self, stop: threading.Event) -> bool:
        """Serve until the run has ended and no worker has a lease; False where `stop` was set.

        Raises:
            BigGraphError: the run is damaged, or storage refused.
        """
        return self.service.run(
            stop, lambda state: course.finished(state, self.plan) and not state.leases
        )

    def close(self) -> None:
        """Stop listening."""
        self.service.close()
