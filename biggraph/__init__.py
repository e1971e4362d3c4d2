"""Partitioned graph embedding: from an edge list to embeddings of every entity.

import biggraph
biggraph.import_graph("edges.tsv", "graph", holdout={"test": 0.1})
biggraph.train("run.toml")
biggraph.evaluate("runs/a").metrics.mrr
biggraph.Embeddings.open("runs/a").neighbors("Q42")
"""

import os

# Read by torch when it is imported. Its TCPStore warns whenever a wait ends without an answer,
# which is how a cluster notices that somebody is gone; what people should know, biggraph says.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

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
