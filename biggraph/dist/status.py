"""How a run stands, for people and for programs.

Knows what to say; nothing of how leases or epochs come about.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from biggraph.dist.course import Plan
from biggraph.dist.holder import Holder
from biggraph.log import MetricsLog, Reporter, duration
from biggraph.storage.records import Work
from biggraph.storage.state import RunState

# What workers count between two commits: seconds that they waited for storage; bytes of tables read
# and written, with those of relation files; bytes exchanged with the parameter server.
_TRAFFIC = ("io_wait_s", "bytes_read", "bytes_written", "bytes_exchanged")

Clock = Callable[[], float]


class Chronicle:
    """Writes what happens to a run into its metrics, and says it.

    Args:
        metrics: JSON lines.
        reporter: for people.
        epochs: of the plan.
        clock: seconds that only move forward.
    """

    def __init__(
        self, metrics: MetricsLog, reporter: Reporter, epochs: int, clock: Clock = time.monotonic
    ) -> None:
        self._metrics, self._reporter = metrics, reporter
        self._epochs, self._clock = epochs, clock
        self._began, self._edges = clock(), 0
        self._traffic = Counter[str]()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the epoch in training began, or was gone on with."""
        return self._clock() - self._began

    @property
    def edges(self) -> int:
        """Edges of this epoch committed since then."""
        return self._edges

    def begin_epoch(self) -> None:
        """An epoch begins, or is gone on with."""
        self._began, self._edges = self._clock(), 0
        self._traffic.clear()

    def commit(self, worker: str, work: Work) -> None:
        """Work counts."""
        self._edges += work.edges
        self._traffic.update({name: work.stats.get(name, 0) for name in _TRAFFIC})
        self._metrics.write(
            "commit", epoch=work.epoch, buckets=len(work.buckets), edges=work.edges, worker=worker
        )

    def end_epoch(self, state: RunState) -> None:
        """Report the whole epoch as committed, and the rate of this start's part of it."""
        epoch, seconds = state.epoch, self.elapsed_s
        rate, total = self._edges / max(seconds, 1e-9), state.edges[epoch]
        commits = state.stats[epoch]
        loss = sum(commit["loss"] * commit["edges"] for commit in commits) / max(total, 1)
        self._metrics.write(
            "epoch", epoch=epoch, edges=total, edges_per_s=round(rate, 1), loss=loss,
            seconds=round(seconds, 3), **{name: round(self._traffic[name], 3) for name in _TRAFFIC},
        )  # fmt: skip
        left = total / max(rate, 1e-9) * (self._epochs - epoch)
        self._reporter.say(
            f"epoch {epoch}/{self._epochs}  loss {loss:.4f}  {rate:,.0f} edges/s  "
            f"{seconds:.1f} s  {duration(left)} left"
        )

    def evaluation(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """A validation is done."""
        self._metrics.write("evaluation", epoch=epoch, **metrics)
        self._reporter.say(
            f"epoch {epoch}  validation mrr {metrics['mrr']:.4f}  hits@10 {metrics['hits@10']:.4f}"
        )

    def diverged(self, reason: str, rate: float) -> None:
        """Training goes back to the last commit, more slowly."""
        self._metrics.write("diverged", reason=reason, rate=rate)
        self._reporter.say(f"{reason}; going on from the last commit at {rate:g} times the rate")

    def lease_ended(self, worker: str, fence: int, reason: str) -> None:
        """A lease ended without a commit."""
        self._metrics.write("lease_ended", worker=worker, fence=fence, reason=reason)


def describe(
    state: RunState, plan: Plan, holders: Mapping[int, Holder], chronicle: Chronicle, now: float
) -> dict[str, Any]:
    """Return how a run stands, as values of JSON; keys as in docs/distributed.md."""
    total = sum(state.facts.buckets.values())
    done = state.edges.get(state.epoch + 1, 0)
    running = sum(holder.edges for holder in holders.values())
    rate = (chronicle.edges + running) / max(chronicle.elapsed_s, 1e-9)
    left = total * (plan.epochs - state.epoch) - done - running
    return {
        "epoch": state.epoch,
        "epochs": plan.epochs,
        "buckets_done": len(state.done),
        "buckets": len(state.facts.buckets),
        "edges_done": done,
        "edges": total,
        "edges_per_s": round(rate, 1),
        "seconds_left": round(left / rate, 1) if rate > 0 else None,
        "rate": state.rate,
        "log_records": state.number,
        "workers": [_describe_lease(fence, holder, now) for fence, holder in holders.items()],
    }


def _describe_lease(fence: int, holder: Holder, now: float) -> dict[str, Any]:
    holding, left = holder.holding, holder.deadline - now
    return {
        "worker": holder.worker,
        "fence": fence,
        "bucket": list(holding.running) if holding.running else None,
        "trained": [list(bucket) for bucket in holding.trained],
        "holds": [str(key) for key in holding.held],
        "edges": holder.edges,
        "validating": holder.validating,
        "known": holder.known,
        "expires_s": round(left, 1) if left < float("inf") else None,
    }
