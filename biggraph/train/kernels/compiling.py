"""Compiling every kernel ahead of time, for images of containers and for tests.

python -c "from biggraph.train.kernels.compiling import compile_all; compile_all()"
"""

from __future__ import annotations

import numpy as np
import torch

from biggraph.model.losses import make_loss
from biggraph.model.model import build_model
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, NegativesSection
from biggraph.storage.table import EmbeddingTable
from biggraph.train.batch import BatchMaker
from biggraph.train.kernels.blas import one_thread
from biggraph.train.kernels.step import CompiledStep
from biggraph.train.step import Lesson, StepSettings
from biggraph.types import Edges, PartitionKey, Side


def compile_all() -> None:
    """Train one batch of four edges with either optimizer; what is compiled is kept."""
    schema = GraphSchema((EntityType("e", (9,)),), (RelationType("r", "e", "e"),))
    ends = np.arange(4, dtype=np.int32)
    edges = Edges(ends, np.zeros(4, np.int32), ends + 1)
    model = build_model(ModelSection(dimension=4), [], schema)
    maker = BatchMaker(model, NegativesSection(in_batch=2, uniform=2), batch_size=4, dropout=0.5)
    settings = StepSettings(make_loss("softmax", margin=0.0, temperature=0.0), True, 0, 0.1, 0.1, 4)
    for shape in ((9, 4), (9,)):
        table = EmbeddingTable(PartitionKey("e", 0), torch.ones(9, 4), torch.ones(shape), "")
        tables = {(side, "e"): table for side in Side}
        populations = maker.populations(edges, dict.fromkeys(tables, (9, 9, 0)))
        step = CompiledStep(model, settings, maker)
        step.begin(Lesson(settings, tables, {}, edges, populations, 0))
        with one_thread():
            step(np.arange(4))
