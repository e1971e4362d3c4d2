"""The evaluation protocol: questions of a split, candidates, known answers, ranks, metrics.

One protocol for a checkpoint and for the popularity baseline. Knows which parts to put together;
nothing of how scores are counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from biggraph.errors import InputError
from biggraph.evaluate.filters import Known, known_answers, only_truths
from biggraph.evaluate.metrics import Metrics, summarize
from biggraph.evaluate.numbering import Numbering, Numbers
from biggraph.evaluate.opening import model_of
from biggraph.evaluate.popularity import rank_by_popularity
from biggraph.evaluate.queries import Queries, select_queries
from biggraph.evaluate.ranking import DEFAULT_MEMORY, Progress, Ranker, Ranks
from biggraph.graph.graph import Graph
from biggraph.schema import GraphSchema
from biggraph.storage.checkpoint import Checkpoint
from biggraph.types import mix_seed

_CANDIDATES = 2  # purpose of the generator that chooses candidates


@dataclass(frozen=True)
class Settings:
    """What is ranked against what.

    Args:
        split: whose edges are evaluated.
        filtered: known true entities of any split do not compete; else only the true one is out.
        candidates: "all" entities of the replaced side's type, or this many of each type, drawn
            once and used for every question.
        edges: how many edges of the split, drawn without replacement; None: all.
        seed: of both draws.
    """

    split: str = "test"
    filtered: bool = True
    candidates: Literal["all"] | int = "all"
    edges: int | None = None
    seed: int = 0


DEFAULT = Settings()


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        metrics: over all ranks, and for each replaced side.
        settings: how it was done.
        seconds: how long it took.
        edges: how many edges were evaluated.
        relations: metrics by relation name, if asked for; only relations that have edges.
        about: what was evaluated, such as checkpoint, snapshot and epoch.
    """

    metrics: Metrics
    settings: Settings
    seconds: float
    edges: int
    relations: Mapping[str, Metrics] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def edges_per_s(self) -> float:
        """Return evaluated edges per second, each ranked on both sides."""
        return self.edges / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: settings, metrics, and metrics by relation if asked for."""
        values = (
            dict(self.about)
            | asdict(self.settings)
            | {"edges": self.edges}
            | self.metrics.to_dict()
        )
        values |= {"seconds": self.seconds, "edges_per_s": self.edges_per_s}
        if self.relations:
            values["relations"] = {name: m.to_dict() for name, m in self.relations.items()}
        return values


def evaluate(
    checkpoint: Checkpoint,
    graph: Graph,
    settings: Settings = DEFAULT,
    *,
    per_relation: bool = False,
    memory: int = DEFAULT_MEMORY,
    on_progress: Progress | None = None,
) -> Evaluation:
    """Rank the edges of a split with the embeddings of a checkpoint, replacing each side in turn.

    Args:
        checkpoint: what is evaluated.
        graph: the graph that it was trained on.
        settings: what is ranked against what.
        per_relation: whether to report each relation too.
        memory: budget in bytes for query vectors, candidate rows and scores.
        on_progress: called with the number of scores done and in all.

    Raises:
        InputError: no such split, an empty one, or a number that is not positive.
    """
    model = model_of(checkpoint, graph)

    def rank(task: _Task) -> Ranks:
        ranker = Ranker(checkpoint, model, task.numbering, task.candidates, memory)
        return ranker.rank(task.queries, task.known, on_progress)

    return _evaluate(graph, settings, per_relation, rank)


def evaluate_popularity(
    graph: Graph, settings: Settings = DEFAULT, *, per_relation: bool = False
) -> Evaluation:
    """Rank the edges of a split by training counts; see `popularity` and `evaluate`."""

    def rank(task: _Task) -> Ranks:
        return rank_by_popularity(graph, task.queries, task.known, task.numbering, task.candidates)

    return _evaluate(graph, settings, per_relation, rank)


@dataclass(frozen=True)
class _Task:
    """Everything that a way of ranking needs."""

    numbering: Numbering
    queries: Queries
    known: Known
    candidates: Mapping[str, Numbers] | None


def _evaluate(
    graph: Graph, settings: Settings, per_relation: bool, rank: Callable[[_Task], Ranks]
) -> Evaluation:
    started = time.perf_counter()
    numbering = Numbering(graph.schema)
    candidates = _draw_candidates(graph.schema, settings)
    queries = select_queries(graph, numbering, settings.split, settings.edges, settings.seed)
    if settings.filtered:
        known = known_answers(graph, queries, numbering)
    else:
        known = only_truths(queries, numbering)
    ranks = rank(_Task(numbering, queries, known, candidates)).realistic()
    relations: dict[str, Metrics] = {}
    if per_relation:
        for rel in np.unique(queries.rel):
            chosen = queries.rel == rel
            name = graph.schema.relations[rel].name
            relations[name] = summarize(ranks[chosen], queries.replaces_lhs[chosen])
    seconds = time.perf_counter() - started
    metrics = summarize(ranks, queries.replaces_lhs)
    return Evaluation(metrics, settings, seconds, len(queries) // 2, relations)


def _draw_candidates(schema: GraphSchema, settings: Settings) -> dict[str, Numbers] | None:
    """Return the ascending numbers of the candidates of each type, or None where all compete.

    Each type has its own generator: one type's draw does not depend on the others.
    """
    wanted = settings.candidates
    if wanted == "all":
        return None
    if not isinstance(wanted, int) or wanted < 1:
        raise InputError(
            f'candidates = {json.dumps(wanted)}: expected "all" or a number of at least 1'
        )
    drawn = {}
    for i, entity in enumerate(schema.entities):
        generator = np.random.default_rng(mix_seed(settings.seed, _CANDIDATES, i))
        size = min(wanted, entity.count)
        drawn[entity.name] = np.sort(generator.choice(entity.count, size, replace=False))
    return drawn
