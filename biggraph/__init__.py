"""Partitioned graph embedding: from an edge list to embeddings of every entity.

import biggraph
biggraph.import_graph("edges.tsv", "graph", holdout={"test": 0.1})
biggraph.train("run.toml")
biggraph.evaluate("runs/a").metrics.mrr
biggraph.Embeddings.open("runs/a").neighbors("Q42")
"""

from biggraph.api import evaluate, import_graph, train
from biggraph.config import Config, load_config, make_config
from biggraph.embeddings import Embeddings
from biggraph.errors import BigGraphError
from biggraph.export import export
from biggraph.graph.graph import Graph

__all__ = [
    "BigGraphError",
    "Config",
    "Embeddings",
    "Graph",
    "evaluate",
    "export",
    "import_graph",
    "load_config",
    "make_config",
    "train",
]
