"""The graph and the model that belong to a checkpoint.

Knows where a run says that its graph is, and how to tell another graph from it.
"""

from __future__ import annotations

from pathlib import Path

from biggraph.errors import InputError
from biggraph.graph.graph import Graph
from biggraph.model.model import Model, build_model
from biggraph.storage.checkpoint import Checkpoint


def graph_of(checkpoint: Checkpoint, path: str | Path | None = None) -> Graph:
    """Open the graph that a checkpoint was trained on.

    Args:
        checkpoint: a trained run.
        path: where the graph is now; None: where the run file said.

    Raises:
        InputError: it is not there, or it is another graph.
        FormatError: it is damaged.
    """
    said = checkpoint.config.graph.path if checkpoint.config.graph else None
    chosen = Path(path) if path is not None else said
    if chosen is None:
        raise InputError(f"{checkpoint.path}: does not say where its graph is; pass --graph")
    if path is None and not chosen.exists():
        raise InputError(
            f"{checkpoint.path}: its graph is no longer at {chosen}; "
            "pass --graph with its new place"
        )
    graph = Graph.open(chosen)
    expected = checkpoint.state.facts.graph
    if graph.fingerprint != expected:
        raise InputError(
            f"{chosen}: not the graph that {checkpoint.path} was trained on (fingerprint "
            f"{graph.fingerprint[:12]}, expected {expected[:12]}); "
            "pass --graph with the right one"
        )
    return graph


def model_of(checkpoint: Checkpoint, graph: Graph) -> Model:
    """Return the model of a checkpoint with its trained relation parameters.

    Raises:
        FormatError: the parameters do not fit the graph.
    """
    model = build_model(checkpoint.config.model, checkpoint.config.relations, graph.schema)
    model.load(checkpoint.relations())
    return model
