"""Triples a second of filtered ranking, beside PyTorch-BigGraph's and PyKEEN's; top-k queries.

All rank the same test triples of the same graph against all entities, both sides, with the same
ComplEx embeddings, those of a run (`--run`) or random ones, and the same filters, and must agree on
the MRR. Each run is a process of
its own; the sides take turns. The batch size of each peer is the best of several, tried on the
first triples in the same run. Starting processes and reading files is left out; building filters is
in `triples_per_s` and not in `ranked_per_s`. `triples_per_cpu_s` is by processor time, which others
on the machine disturb least.

    benchmarks/peers/setup.sh
    python benchmarks/eval_speed.py --graph GRAPH --threads 1 2 --repeats 3

GRAPH is what `biggraph import` made of FB15k-237, and a run one with reciprocal ComplEx relations
on it (`configs/fb15k-237.toml`, say); random embeddings are a case that biggraph's screen does not
help. Without GRAPH, a synthetic graph of the same size.
PyKEEN, which needs minutes for all triples, ranks the first ones (`--first`): its cost is the same
for each. PBG has a cost for each worker, and biggraph computes scores once for each query, so
these rank all.
Prints a JSON line for each run; then tables, on standard error. Where others use the machine too
(`others_cpus`), the ratio of the best runs says more than that of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import synthetic
import torch

from biggraph.config import make_config
from biggraph.evaluate.filters import known_answers
from biggraph.evaluate.numbering import Numbering
from biggraph.evaluate.opening import model_of
from biggraph.evaluate.queries import select_queries
from biggraph.evaluate.ranking import Ranker
from biggraph.evaluate.top import Search
from biggraph.graph.graph import Graph
from biggraph.log import align
from biggraph.model.comparators import COMPARATORS
from biggraph.storage.checkpoint import Checkpoint
from biggraph.types import FloatArray, IntArray, PartitionKey

PEERS = Path(__file__).resolve().parent / "peers"
BATCHES = {"pbg": (50, 200, 1000), "pykeen": (4, 16, 64, 256)}
TRIED = {"pbg": 4000, "pykeen": 256}  # triples with which batch sizes are compared
TOP_QUERIES, TOP_K = 2048, 10
SPLITS = ("train", "valid", "test")
SIZES = {"entities": 14_541, "relations": 237, "communities": 150, "noise": 0.3}  # FB15k-237's
COUNTS = {"train": 272_115, "valid": 17_535, "test": 20_466}

# Arrays of relation parameters, for tails and for heads, by the names that they have in a model.
RELATIONS = {
    "real": "0.lhs.real", "imag": "0.lhs.imag",
    "back_real": "0.rhs.real", "back_imag": "0.rhs.imag",
}  # fmt: skip

CHILD = "import sys; sys.path.insert(0, 'benchmarks'); import eval_speed as e; e.{}(*sys.argv[1:])"


class Tables:
    """Embeddings in memory, where evaluation expects a checkpoint: ComplEx, one r for each side."""

    def __init__(self, graph: Graph, arrays: dict[str, np.ndarray]) -> None:
        dimension = arrays["entities"].shape[1]
        self.config = make_config(
            {"model": {"operator": "complex_diagonal", "dimension": dimension}}
        )
        self._graph, self._arrays = graph, arrays
        self._numbering = Numbering(graph.schema)

    def shape(self, key: PartitionKey) -> tuple[int, int]:
        """Return rows and columns of a partition."""
        return self._graph.schema.count(key), self._arrays["entities"].shape[1]

    def rows(self, key: PartitionKey, offsets: IntArray | slice) -> FloatArray:
        """Return a fresh copy of some rows."""
        (first,) = self._numbering.numbers(key.entity_type, np.array([key.index]), np.array([0]))
        of_partition = self._arrays["entities"][first : first + self._graph.schema.count(key)]
        return np.array(of_partition[offsets])

    def relations(self) -> dict[str, np.ndarray]:
        """Return the relation parameters by the model's names."""
        return {name: self._arrays[own] for own, name in RELATIONS.items()}


def rank_here(folder: str, graph_path: str, first: str) -> None:
    """Rank all test triples in this process; print seconds, and the MRR of all and of the first."""
    graph = Graph.open(Path(graph_path))
    tables = Tables(graph, {path.stem: np.load(path) for path in Path(folder).glob("*.npy")})
    numbering = Numbering(graph.schema)
    ranker = Ranker(tables, model_of(tables, graph), numbering)
    few = select_queries(graph, numbering, "test", 64, 0)
    ranker.rank(few, known_answers(graph, few, numbering))  # warms up
    began, cpu = time.perf_counter(), time.process_time()
    queries = select_queries(graph, numbering, "test", None, 0)
    known = known_answers(graph, queries, numbering)
    ready = time.perf_counter()
    ranks = ranker.rank(queries, known).realistic()
    done, cpu = time.perf_counter(), time.process_time() - cpu
    both = ranks.reshape(2, -1)
    mrr_of_first = {count: float((1 / both[:, : int(count)]).mean()) for count in first.split(",")}
    print(json.dumps({
        "filter_s": ready - began, "rank_s": done - ready, "mrr": float((1 / ranks).mean()),
        "mrr_of_first": mrr_of_first, "all_cpu_s": cpu,
    }))  # fmt: skip


def top_here(folder: str, graph_path: str, count: str, k: str) -> None:
    """Find the k best of many random queries, and of one, and do so with the whole matrix."""
    graph = Graph.open(Path(graph_path))
    tables = Tables(graph, {path.stem: np.load(path) for path in Path(folder).glob("*.npy")})
    (kind, *_), dot = graph.schema.entities, COMPARATORS["dot"]
    search = Search(tables, Numbering(graph.schema), kind.name, dot, dot.prepare)
    generator = np.random.default_rng(1)
    shape = (int(count), tables.shape(PartitionKey(kind.name, 0))[1])
    queries = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
    table = torch.from_numpy(tables._arrays["entities"])
    nothing = [np.empty(0, np.int64)] * len(queries)

    def blocked(some: torch.Tensor) -> list[list[int]]:
        return [best.tolist() for best, _ in search.best(some, nothing[: len(some)], int(k))]

    def whole(some: torch.Tensor) -> list[list[int]]:
        found: list[list[int]] = (some @ table.T).topk(int(k)).indices.tolist()
        return found

    if blocked(queries) != whole(queries):
        raise SystemExit("the best of the blocks are not the best of the whole matrix")
    seconds = defaultdict[str, list](list)
    for _ in range(5):
        for name, find in (("blocked", blocked), ("whole", whole)):
            for size, some in (("many", queries), ("one", queries[:1])):
                began = time.perf_counter()
                find(some)
                seconds[f"{name}_{size}"].append((time.perf_counter() - began) / len(some))
    print(json.dumps({name: 1 / statistics.median(each) for name, each in seconds.items()}))


def write_arrays(graph: Graph, folder: Path, dimension: int, run: Path | None = None) -> int:
    """Write what all sides read: edges by number, and embeddings; return the test edges."""
    numbering = Numbering(graph.schema)
    for split in SPLITS:
        columns = []
        for bucket in sorted(graph.splits[split]):
            edges = graph.edges(split, bucket)
            lhs, rhs = numbering.ends(edges, bucket)
            columns.append(np.stack((lhs, edges.rel.astype(np.int64), rhs), 1))
        np.save(folder / f"{split}.npy", np.concatenate(columns))
    arrays = random_arrays(graph, dimension) if run is None else arrays_of(run, graph)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return sum(graph.splits["test"].values())


def random_arrays(graph: Graph, dimension: int) -> dict[str, np.ndarray]:
    """Return random embeddings; heads are predicted with the conjugate of what tails are."""
    generator = np.random.default_rng(0)
    relations = (len(graph.schema.relations), dimension // 2)
    shapes = {"entities": (graph.schema.entities[0].count, dimension), "real": relations}
    arrays = {
        name: generator.standard_normal(shape, dtype=np.float32)
        for name, shape in (shapes | {"imag": relations}).items()
    }
    return arrays | {"back_real": arrays["real"], "back_imag": -arrays["imag"]}


def arrays_of(run: Path, graph: Graph) -> dict[str, np.ndarray]:
    """Return the trained embeddings of a run, whose relations must be reciprocal ComplEx."""
    checkpoint, (kind, *_) = Checkpoint.open(run), graph.schema.entities
    model = checkpoint.config.model
    if (model.operator, model.comparator, model.reciprocal) != ("complex_diagonal", "dot", True):
        raise SystemExit(f"{run}: expected complex_diagonal, dot and reciprocal relations")
    parameters = checkpoint.relations()
    arrays = {own: parameters[name] for own, name in RELATIONS.items()}
    rows = Numbering(graph.schema).rows(checkpoint, kind.name, np.arange(kind.count))
    return arrays | {"entities": rows}


def make_graph(folder: Path) -> Path:
    """Import a synthetic graph of the size of FB15k-237; return where it is."""
    drawn = synthetic.triples(sum(COUNTS.values()), **SIZES)
    rows, start, paths = synthetic.table(drawn, SIZES["entities"]), 0, {}
    for split, count in COUNTS.items():
        paths[split] = folder / f"{split}.tsv"
        synthetic.write(rows.slice(start, count), paths[split])
        start += count
    command = [sys.executable, "-m", "biggraph", "import", paths["train"], "--valid"]
    measuring.run([*command, paths["valid"], "--test", paths["test"], "--out", folder / "graph"])
    return folder / "graph"


def run_side(
    side: str, setting: argparse.Namespace, threads: int, batch: int = 0, first: int = 0
) -> dict[str, Any]:
    """Rank once with one side; return its rates, what it found and what it used."""
    first = first or setting.first[side]
    if side == "biggraph":
        counts = ",".join(str(count) for count in set(setting.first.values()))
        command = [sys.executable, "-c", CHILD.format("rank_here"), setting.folder]
        command += [setting.graph, counts]
    else:
        python = setting.peers.absolute() / side / "bin/python"
        command = [python, PEERS / f"{side}_eval.py", setting.folder, "--first", first]
        command += ["--batch", batch, "--threads", threads]
    # PBG's threads are processes, each with one.
    inside = str(1 if side == "pbg" else threads)
    said, used = measuring.run(command, extra_env=dict.fromkeys(measuring.ONE_THREAD, inside))
    found = json.loads(said.splitlines()[-1])
    whole = found["filter_s"] + found["rank_s"]
    return {
        "side": side, "threads": threads, "batch": batch, "triples": first,
        "triples_per_s": round(first / whole, 1), "ranked_per_s": round(first / found["rank_s"], 1),
        "triples_per_cpu_s": round(first / found["all_cpu_s"], 1), **found, **used,
    }  # fmt: skip


def measure_top(setting: argparse.Namespace) -> str:
    """Return the table of top-k queries a second, here and by torch.topk of the whole matrix."""
    rows = []
    for threads in setting.threads:
        command = [sys.executable, "-c", CHILD.format("top_here"), setting.folder, setting.graph]
        environment = dict.fromkeys(measuring.ONE_THREAD, str(threads))
        said, used = measuring.run([*command, TOP_QUERIES, TOP_K], extra_env=environment)
        found = {name: round(rate) for name, rate in json.loads(said.splitlines()[-1]).items()}
        measuring.emit("eval_speed", "top_k", threads=threads, k=TOP_K, **found, **used)
        for size, count in (("many", TOP_QUERIES), ("one", 1)):
            here, whole = found[f"blocked_{size}"], found[f"whole_{size}"]
            rows.append((threads, count, f"{here:,}", f"{whole:,}", f"{here / whole:.2f}"))
    return align(rows, header=["threads", "queries at once", "blocks/s", "torch.topk/s", "ratio"])


def tune(side: str, setting: argparse.Namespace, threads: int) -> int:
    """Return the batch size with which a peer ranks most triples in a processor second."""
    rates = {}
    for batch in BATCHES.get(side, ()):
        first = min(TRIED[side], setting.first[side])
        line = run_side(side, setting, threads, batch, first)
        measuring.emit("eval_speed", "tuning", **line)
        rates[batch] = line["triples_per_cpu_s"]  # others disturb it least
    return max(rates, key=rates.get, default=0)


def measure(setting: argparse.Namespace, sides: list[str]) -> list[dict[str, Any]]:
    """Run every side in turns; return the lines."""
    lines = []
    for threads in setting.threads:
        batch = {side: tune(side, setting, threads) for side in sides}
        for repeat in range(setting.repeats):
            for side in sides if repeat % 2 == 0 else reversed(sides):
                line = run_side(side, setting, threads, batch[side]) | {"repeat": repeat}
                lines.append(line)
                measuring.emit("eval_speed", "run", **line)
    return lines


def check(lines: list[dict[str, Any]]) -> None:
    """End the benchmark unless all sides found the same MRR for the same triples."""
    ours = next((line for line in lines if line["side"] == "biggraph"), None)
    for line in lines if ours else ():
        expected = ours["mrr_of_first"].get(str(line["triples"]), ours["mrr"])
        if abs(line["mrr"] / expected - 1) > 1e-3:
            raise SystemExit(f"{line['side']} found MRR {line['mrr']}, biggraph {expected}")


def summarise(lines: list[dict[str, Any]]) -> list[str]:
    """Return the table of medians and that of ratios; print both as JSON lines."""
    groups = defaultdict[tuple[int, str], list](list)
    for line in lines:
        groups[line["threads"], line["side"]].append(line)
    names = (
        "triples_per_s",
        "ranked_per_s",
        "triples_per_cpu_s",
        "peak_rss_mib",
        "others_cpus",
        "load",
    )
    medians, ratios = [], []
    for (threads, side), runs in groups.items():
        found = {name: statistics.median(run[name] for run in runs) for name in names}
        facts = {"threads": threads, "side": side, "batch": runs[0]["batch"]}
        measuring.emit("eval_speed", "median", **facts, **found)
        medians.append((*facts.values(), *(f"{value:,.6g}" for value in found.values())))
        ours = groups.get((threads, "biggraph"))
        if side != "biggraph" and ours:
            values = {name: ratio_of(ours, runs, name) for name in names[:3]}
            best = [max(run["triples_per_s"] for run in some) for some in (ours, runs)]
            values["of_best"] = round(best[0] / best[1], 2)
            measuring.emit("eval_speed", "ratio", threads=threads, side=side, **values)
            cells = [f"{value:.1f}" for value in values.values()]
            ratios.append((threads, f"biggraph / {side}", *cells, len(runs)))
    header = [
        "threads",
        "side",
        "batch",
        "triples/s",
        "ranking alone",
        "a processor second",
        "RSS MiB",
    ]
    tables = [align(medians, header=[*header, "others' CPUs", "load"])]
    if ratios:
        header = ["threads", "sides", "ratio", "ranking alone", "by processor time", "of best runs",
                  "repeats"]  # fmt: skip

        tables.append(align(ratios, header=header))
    return tables


def ratio_of(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], name: str) -> float:
    """Return the median ratio of runs in the same repeat."""
    pairs = zip(ours, theirs, strict=True)
    return round(statistics.median(mine[name] / other[name] for mine, other in pairs), 2)


def first_of(wanted: list[str], triples: int) -> dict[str, int]:
    """Return how many triples each side ranks, of "pykeen=2000" and the like."""
    given = dict(word.split("=") for word in wanted)
    peers = {side: min(int(given.get(side, triples)), triples) for side in BATCHES}
    return {"biggraph": triples, **peers}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    all_sides = ["biggraph", *BATCHES]
    parser.add_argument("--graph", type=Path, help="of `biggraph import`, with one partition")
    parser.add_argument("--run", type=Path, help="trained on GRAPH; without it, random embeddings")
    parser.add_argument("--dimension", type=int, default=200, help="of random embeddings")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--first", nargs="*", default=["pykeen=2000"], metavar="SIDE=TRIPLES")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=all_sides, default=all_sides)
    parser.add_argument("--peers", type=Path, default=Path("peers-env"), help="of peers/setup.sh")
    setting = parser.parse_args()
    pythons = {side: setting.peers.absolute() / side / "bin/python" for side in BATCHES}
    pythons["biggraph"] = Path(sys.executable)
    sides = [side for side in setting.sides if pythons[side].exists()]
    for side in set(setting.sides) - set(sides):
        print(f"{side} is left out: benchmarks/peers/setup.sh installs it", file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        setting.folder = Path(name)
        setting.graph = setting.graph or make_graph(setting.folder)
        graph = Graph.open(setting.graph)
        triples = write_arrays(graph, setting.folder, setting.dimension, setting.run)
        setting.first = first_of(setting.first, triples)
        found = {side: measuring.versions(pythons[side]) for side in sides}
        measuring.emit("eval_speed", "machine", **measuring.machine(), versions=found,
                       sgemm_gflops=measuring.sgemm_gflops(), first=setting.first,
                       embeddings="trained" if setting.run else "random")  # fmt: skip
        lines = measure(setting, sides)
        check(lines)
        print("", *summarise(lines), measure_top(setting), sep="\n\n", file=sys.stderr)


if __name__ == "__main__":
    main()
