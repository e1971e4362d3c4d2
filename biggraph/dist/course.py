"""What a run has still to do, as its state and its plan say: train, validate, or nothing more.

Pure functions of the state. Knows nothing of workers, leases or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from biggraph.config import Config
from biggraph.storage.state import RunState

METRIC = "mrr"  # validations are compared by it


@dataclass(frozen=True)
class Plan:
    """What the run file says of the course of a run.

    Args:
        epochs: passes over all edges.
        eval_every: epochs between validations, 0 for none.
        patience: validations without gain before stopping, 0 for never.
        series: how validations are done; only those done alike are compared.
        retries: times that a divergence is answered by a lower learning rate.
    """

    epochs: int
    eval_every: int
    patience: int
    series: list[Any]
    retries: int

    @classmethod
    def of(cls, config: Config) -> Plan:
        """Return the plan of a run file."""
        return cls(
            epochs=config.train.epochs,
            eval_every=config.eval.every,
            patience=config.eval.patience,
            series=[config.eval.filtered, config.eval.candidates, config.eval.edges],
            retries=config.train.retries,
        )


def validation_due(state: RunState, plan: Plan) -> bool:
    """Tell whether the state after the last complete epoch is to be evaluated first."""
    epoch = state.epoch
    complete = plan.eval_every and epoch and not state.done
    if not complete or (epoch % plan.eval_every and epoch != plan.epochs):
        return False
    return not any(
        evaluation.epoch == epoch and evaluation.metrics["series"] == plan.series
        for evaluation in state.evaluations
    )


def finished(state: RunState, plan: Plan) -> bool:
    """Tell whether nothing is left, neither to train nor to validate."""
    if validation_due(state, plan):
        return False
    return state.epoch >= plan.epochs or (not state.done and out_of_patience(state, plan))


def out_of_patience(state: RunState, plan: Plan) -> bool:
    """Tell whether the last validations brought no gain."""
    scores = [metrics[METRIC] for metrics in validations(state, plan)]
    if not plan.patience or not scores:
        return False
    return len(scores) - 1 - scores.index(max(scores)) >= plan.patience


def validations(state: RunState, plan: Plan) -> list[dict[str, Any]]:
    """Return the metrics of every validation that can be compared with those of this plan."""
    found = [evaluation.metrics for evaluation in state.evaluations]
    return [metrics for metrics in found if metrics["series"] == plan.series]


def best(state: RunState, plan: Plan) -> dict[str, Any] | None:
    """Return the metrics of the best validation, the first of equals; None without one."""
    return max(validations(state, plan), key=lambda m: float(m[METRIC]), default=None)


def may_slow_down(state: RunState, plan: Plan) -> bool:
    """Tell whether one more divergence may be answered by halving the learning rate."""
    return state.rate > 0.5**plan.retries
