"""A real graph directory and a real run, small enough to make in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from biggraph import api
from biggraph.config import make_config

ODD = [
    "a b",
    "tab\there",
    "new\nline",
    "cr\rx",
    "back\\slash",
    'quote"d',
    "50%20off",
    "ä\u00a0ö",
    "%",
]
ENTITIES = {
    "person": [f"p{i}" for i in range(20)] + ODD,
    "film": [f"f{i}" for i in range(9)] + ["p3"],
}
RELATIONS = [("knows", "person", "person"), ("likes", "person", "film")]


def make_splits():
    """Return random triples in which every entity occurs."""
    generator = np.random.default_rng(1)
    triples = {(name, "knows", "p0") for name in ENTITIES["person"][1:]}
    triples |= {("p0", "likes", name) for name in ENTITIES["film"]}
    for i in generator.integers(len(RELATIONS), size=120):
        name, lhs, rhs = RELATIONS[i]
        ends = (str(generator.choice(ENTITIES[lhs])), str(generator.choice(ENTITIES[rhs])))
        triples.add((ends[0], name, ends[1]))
    ordered = sorted(triples)
    order = generator.permutation(len(ordered))
    ordered = [ordered[i] for i in order]
    return {"train": ordered[30:], "valid": ordered[:15], "test": ordered[15:30]}


def make_run(folder: Path, **model) -> Path:
    """Import and train for a few epochs in `folder`; return the run directory."""
    settings = {
        "graph": {"path": str(folder / "graph")},
        "entities": {"person": {"partitions": 3}},
        "relations": [{"name": n, "lhs": lhs, "rhs": rhs} for n, lhs, rhs in RELATIONS],
        "model": {"dimension": 8} | model,
        "train": {"epochs": 6, "threads": 1, "batch_size": 30},
        "checkpoint": {"path": str(folder / "run")},
    }
    config = make_config(settings)
    splits = {split: table(triples) for split, triples in make_splits().items()}
    api.import_graph(
        splits["train"],
        folder / "graph",
        valid=splits["valid"],
        test=splits["test"],
        config=config,
        quiet=True,
    )
    api.train(config, quiet=True)
    return folder / "run"


def table(triples):
    """Return triples as an Arrow table."""
    columns = zip(*triples, strict=True)
    return pa.table(dict(zip(("head", "relation", "tail"), map(list, columns), strict=True)))
