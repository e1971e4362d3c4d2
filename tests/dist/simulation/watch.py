"""Watches a simulation for what the log alone cannot show: two live leases with one partition.

A lease is live as the log says. What a worker has in training or trained and not committed, no
other worker with a live lease may have at that moment.
"""

from __future__ import annotations

import json

from biggraph.dist.session import Session
from biggraph.types import Bucket
from tests.dist.simulation.job import Job
from tests.dist.simulation.world import world


class Watch:
    """Follows the log as it is written, and every session there ever was."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._live: dict[int, str] = {}
        self._sessions: list[Session] = []

    def enter(self, session: Session) -> None:
        """Watch one more worker."""
        self._sessions.append(session)

    def written(self, name: str, data: bytes) -> None:
        """Take in a file as it appears."""
        if not name.startswith("log/"):
            return
        record = json.loads(data)
        kind, body = record["kind"], record["body"]
        if kind in ("expired", "commit"):
            worker = self._live.pop(body["fence"], "?")
        if kind == "commit":
            self._live[body["next"]] = worker
        if kind == "lease":
            others = {f: w for f, w in self._live.items() if w != body["worker"]}
            self._live = {**others, body["fence"]: body["worker"]}

    def trains(self, session: Session, bucket: Bucket) -> None:
        """Compare a worker that begins a bucket with all others."""
        if session.fence not in self._live:
            return
        self._sessions = [s for s in self._sessions if s.fence in self._live or not s.fence]
        mine = self._job.needs[bucket]
        for other in self._sessions:
            if other is session or other.fence not in self._live or other.fence == session.fence:
                continue
            running = other._holding.running
            busy = (*other.trained, *(() if running is None else (running,)))
            if any(mine & self._job.needs[b] for b in busy):
                world().defect(
                    f"leases {session.fence} and {other.fence} live with one partition: "
                    f"{bucket} and {busy}"
                )
