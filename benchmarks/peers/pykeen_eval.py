"""PyKEEN's filtered ranking, in its own environment: seconds and MRR, as a JSON line.

Takes the arrays of `eval_speed.py` into a ComplEx model, and runs the rank-based evaluator.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from pykeen.evaluation import RankBasedEvaluator
from pykeen.models import ComplEx
from pykeen.triples import CoreTriplesFactory


def model_of(arrays):
    """Return a model with these embeddings, whose halves are real and imaginary parts.

    It predicts heads with inverse relations, which have the odd places.
    """
    count, dimension = arrays["entities"].shape
    factory = CoreTriplesFactory.create(
        torch.from_numpy(arrays["train"]), num_entities=count,
        num_relations=len(arrays["real"]), create_inverse_triples=True,
    )  # fmt: skip
    model = ComplEx(triples_factory=factory, embedding_dim=dimension // 2, random_seed=0)
    halves = np.split(arrays["entities"], 2, axis=1)
    both = (np.stack((arrays[name], arrays[f"back_{name}"]), 1) for name in ("real", "imag"))
    factors = (pair.reshape(-1, dimension // 2) for pair in both)
    tables = ((model.entity_representations, *halves), (model.relation_representations, *factors))
    with torch.no_grad():
        for (representation,), real, imag in tables:
            weight = representation._embeddings.weight
            weight.copy_(torch.from_numpy(np.stack((real, imag), -1).reshape(weight.shape)))
    return model


def main():
    """Rank the first edges of the test split."""
    parser = argparse.ArgumentParser()
    parser.add_argument("arrays", type=Path, help="folder of eval_speed.py")
    parser.add_argument("--first", type=int, required=True, help="edges of the test split")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    arrays = {path.stem: np.load(path) for path in asked.arrays.glob("*.npy")}
    model = model_of(arrays)
    test = torch.from_numpy(arrays["test"])
    others = [torch.from_numpy(arrays[name]) for name in ("train", "valid")]

    def rank(triples, known):
        return RankBasedEvaluator(filtered=True).evaluate(
            model, triples, batch_size=asked.batch, additional_filter_triples=known,
            use_tqdm=False,
        )  # fmt: skip

    rank(test[: min(asked.batch, 64)], [test])  # warms up
    began, cpu = time.perf_counter(), time.process_time()
    result = rank(test[: asked.first], [*others, test[asked.first :]])
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    mrr = result.get_metric("both.realistic.inverse_harmonic_mean_rank")
    # Filters are made for each batch, so they are part of the ranking.
    print(json.dumps({"filter_s": 0.0, "rank_s": seconds, "all_cpu_s": cpu, "mrr": mrr}))


if __name__ == "__main__":
    main()
