"""PyTorch-BigGraph's filtered ranking, in its own environment: seconds and MRR, as a JSON line.

Takes the arrays of `eval_speed.py`, writes what PBG reads of them, and runs its filtered evaluator
against all entities. Writing and reading files, and starting the workers, is left out of the time.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchbiggraph.eval as evaluation
from torchbiggraph.checkpoint_manager import CheckpointManager
from torchbiggraph.config import ConfigSchema
from torchbiggraph.edgelist import EdgeList
from torchbiggraph.entitylist import EntityList
from torchbiggraph.filtered_eval import FilteredRankingEvaluator
from torchbiggraph.graph_storages import (
    EDGE_STORAGES,
    ENTITY_STORAGES,
    RELATION_TYPE_STORAGES,
)
from torchbiggraph.model import make_model


def configuration(folder, asked, dimension):
    """Return the configuration of an evaluation of the test split."""
    relation = {
        "name": "all", "lhs": "entity", "rhs": "entity", "operator": "complex_diagonal",
        "all_negs": True,
    }  # fmt: skip
    return ConfigSchema.from_dict({
        "entities": {"entity": {"num_partitions": 1}}, "relations": [relation],
        "dynamic_relations": True, "entity_path": str(folder / "entities"),
        "edge_paths": [str(folder / "test")], "checkpoint_path": str(folder / "checkpoint"),
        "dimension": dimension, "comparator": "dot", "global_emb": False, "num_uniform_negs": 0,
        "num_batch_negs": 0, "batch_size": asked.batch, "workers": asked.threads, "verbose": 0,
    })  # fmt: skip


def write(folder, arrays, first):
    """Write edges and counts; return the paths of the splits."""
    entities = ENTITY_STORAGES.make_instance(str(folder / "entities"))
    entities.prepare()
    entities.save_count("entity", 0, len(arrays["entities"]))
    relations = RELATION_TYPE_STORAGES.make_instance(str(folder / "entities"))
    relations.prepare()
    relations.save_count(len(arrays["real"]))
    paths = []
    rest = {"rest": arrays["test"][first:]} if first < len(arrays["test"]) else {}
    splits = {"test": arrays["test"][:first], **rest}
    for name, edges in (splits | {name: arrays[name] for name in ("valid", "train")}).items():
        lhs, rel, rhs = torch.from_numpy(np.ascontiguousarray(edges.T))
        path = str(folder / name)
        storage = EDGE_STORAGES.make_instance(path)
        storage.prepare()
        ends = [EntityList.from_tensor(end) for end in (lhs, rhs)]
        with storage.save_edges_by_appending(0, 0) as appender:
            appender.append_edges(EdgeList(*ends, rel))
        paths.append(path)
    return paths


def write_checkpoint(config, arrays):
    """Write embeddings and operators: one for tails at the left, one for heads at the right."""
    manager = CheckpointManager(config.checkpoint_path)
    manager.write("entity", 0, torch.from_numpy(arrays["entities"]), None)
    model = make_model(config)
    with torch.no_grad():
        for operator, side in ((model.lhs_operators[0], ""), (model.rhs_operators[0], "back_")):
            operator.real.copy_(torch.from_numpy(arrays[f"{side}real"]))
            operator.imag.copy_(torch.from_numpy(arrays[f"{side}imag"]))
    manager.write_model(model.state_dict(), None)
    manager.write_new_version(config)
    manager.switch_to_new_version()
    manager.close()


def processor_seconds():
    """Return those of this process and of its workers, so far."""
    ticks = 0
    for pid in ("self", *(worker.pid for worker in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def rank(config, filters):
    """Return seconds for the filters and of ranking, processor seconds of both, and the MRR."""
    seconds = []
    wait = evaluation.get_async_result

    def timed(*arguments):
        began, cpu = time.perf_counter(), processor_seconds()
        result = wait(*arguments)
        seconds.append((time.perf_counter() - began, processor_seconds() - cpu))
        return result

    evaluation.get_async_result = timed  # the workers have started, and get their edges in it
    began, cpu = time.perf_counter(), time.process_time()
    evaluator = FilteredRankingEvaluator(config, filters)
    prepared, cpu = time.perf_counter() - began, time.process_time() - cpu
    *_, (_, _, stats) = evaluation.do_eval_and_report_stats(config, evaluator=evaluator)
    ranked, ranked_cpu = map(sum, zip(*seconds, strict=True))
    return {
        "filter_s": prepared, "rank_s": ranked, "all_cpu_s": cpu + ranked_cpu,
        "mrr": stats.metrics["mrr"],
    }  # fmt: skip


def main():
    """Rank the first edges of the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("arrays", type=Path, help="folder of eval_speed.py")
    parser.add_argument("--first", type=int, required=True, help="edges of the test split")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="workers with one thread each")
    asked = parser.parse_args()
    arrays = {path.stem: np.load(path) for path in asked.arrays.glob("*.npy")}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        config = configuration(folder, asked, arrays["entities"].shape[1])
        filters = write(folder, arrays, asked.first)
        write_checkpoint(config, arrays)
        found = rank(config, filters)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
