"""What training reaches on a GPU: edges a second, shares of the ceilings, time to quality.

One command does it all, in this order: the tests marked `gpu`; the ceilings, which are a copy
within the device's memory, copies from and to main memory, and a large matrix product of each
precision; buckets of the graph of `synthetic.py` at each case, batch size and precision, each batch
told to the GPU operation by operation and as a recorded graph; FB15k-237 until its filtered
validation MRR is .34, where BIGGRAPH_DATA names a folder that holds it.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --cases 100:50+50 --batch-sizes 1000 10000 --skip tests quality

A case is dimension:in-batch+uniform negatives of each side; ComplEx, dot product, softmax, row-wise
Adagrad. The share of the products' ceiling counts 6 N D FLOP for an edge and replaced side, beside
the large product of the same precision. The share of the memory's counts the fewest bytes that a
batch could move: each distinct row read once, and read and written once more with its state.
Prints JSON lines; then tables, on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import synthetic
import torch
from train_speed import Case

import biggraph
from biggraph.errors import BigGraphError, ConfigError
from biggraph.log import align
from biggraph.model.losses import make_loss
from biggraph.model.model import Model, build_model
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, NegativesSection
from biggraph.storage.table import EmbeddingTable, new_table
from biggraph.train.batch import BatchMaker
from biggraph.train.bucket import BucketTrainer
from biggraph.train.device_step import PRODUCTS, DeviceStep
from biggraph.train.devices import find_device
from biggraph.train.recording import Record, Recording
from biggraph.train.step import StepSettings
from biggraph.train.transfers import Ferry
from biggraph.types import Bucket, Edges, PartitionKey, Side

CASES = [Case(100, 50, 50), Case(200, 100, 100), Case(400, 500, 500)]
PARTS = ("tests", "ceilings", "rates", "quality")
DATASET, TARGET = "fb15k-237", 0.34
WAYS: dict[str, Record | None] = {"eager": None, "graph": Recording}
WARM_UP = 0.2  # share of a bucket's batches


def synchronize(where: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def seconds(work: Callable[[], object], where: torch.device, repeats: int = 15) -> float:
    """Return how long something takes on a device: the median, after three times not counted."""
    taken = []
    for _ in range(repeats + 3):
        synchronize(where)
        began = time.perf_counter()
        work()
        synchronize(where)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[3:])


def ceilings(where: torch.device, *, side: int, mebibytes: int) -> dict[str, float]:
    """Return the rates of large copies, in GB/s, and of large products, in TFLOP/s by precision.

    Args:
        where: the device.
        side: of the square matrices.
        mebibytes: copied. A copy within the device counts twice, as it is read and written.
    """
    size = mebibytes * 2**20
    host = torch.ones(size // 4)
    source, target, ferry = host.to(where), torch.empty(size // 4, device=where), Ferry(where)
    found = {
        "copy_gb_s": 2 * size / seconds(lambda: target.copy_(source), where) / 1e9,
        "bring_gb_s": size / seconds(lambda: ferry.bring(host), where, 5) / 1e9,
        "fetch_gb_s": size / seconds(lambda: ferry.fetch(source, host), where, 5) / 1e9,
    }
    generator = torch.Generator(where).manual_seed(0)
    a, b = torch.randn(2, side, side, generator=generator, device=where)
    for precision, products in PRODUCTS.items():
        with products(where):
            taken = seconds(lambda: torch.matmul(a, b), where)
        found[f"{precision}_tflop_s"] = 2 * side**3 / taken / 1e12
    return {name: round(value, 4) for name, value in found.items()}


@dataclass(frozen=True)
class Job:
    """A bucket to train: made once for each case.

    Args:
        model: ComplEx.
        table: of all entities.
        edges: of one bucket.
        case: dimension and negatives.
    """

    model: Model
    table: EmbeddingTable
    edges: Edges
    case: Case

    @classmethod
    def of(cls, case: Case, edges: np.ndarray, entities: int) -> Job:
        """Return the job of a case on edges [E, 3]: head, relation, tail."""
        relations = int(edges[:, 1].max()) + 1
        schema = GraphSchema(
            (EntityType("all", (entities,)),),
            tuple(RelationType(f"r{i}", "all", "all") for i in range(relations)),
        )
        section = ModelSection(dimension=case.dimension)
        table = new_table(PartitionKey("all", 0), (entities, case.dimension), True, 1e-3, 0)
        columns = [np.ascontiguousarray(edges[:, i]) for i in range(3)]
        return cls(build_model(section, [], schema), table, Edges(*columns, None), case)

    def maker(self, batch_size: int) -> BatchMaker:
        """Return what makes its batches."""
        negatives = NegativesSection(in_batch=self.case.in_batch, uniform=self.case.uniform)
        return BatchMaker(self.model, negatives, batch_size=batch_size, dropout=0.0)


def train(
    job: Job, where: torch.device, batch_size: int, precision: str, way: str
) -> dict[str, float]:
    """Train a bucket; return edges/s of its batches after the first ones, and of all of it."""
    settings = StepSettings(
        make_loss("softmax", margin=0.0, temperature=0.0), True, 0.0, 0.1, 0.1, batch_size
    )
    trainer = BucketTrainer(
        job.model, settings, job.maker(batch_size), threads=1, seed=0,
        totals={"all": len(job.table.rows)},
        make_step=partial(DeviceStep, where=where, precision=precision, record=WAYS[way]),
    )  # fmt: skip
    tables = {(side, "all"): job.table for side in Side}
    times, sizes = list[float](), list[int]()

    def note(size: int, _loss: float) -> None:
        times.append(time.perf_counter())
        sizes.append(size)

    began = time.perf_counter()
    stats = trainer.train(1, Bucket(0, 0), tables, {}, job.edges, note)
    ended = time.perf_counter()
    first = min(int(WARM_UP * len(times)), len(times) - 2)
    rate = sum(sizes[first + 1 :]) / (times[-1] - times[first])
    return {
        "edges_per_s": rate, "whole_bucket_edges_per_s": stats.edges / (ended - began),
        "loss": stats.loss, "end_s": ended - times[-1],
    }  # fmt: skip


def bytes_of_batch(job: Job, batch_size: int, batches: int = 3) -> float:
    """Return the fewest bytes that a batch moves: of its distinct rows, thrice, and their state."""
    maker, generator = job.maker(batch_size), torch.Generator().manual_seed(1)
    plan = maker.plan(job.edges, generator)[:batches]
    count = len(job.table.rows)
    populations = maker.populations(job.edges, {(side, "all"): (count, count, 0) for side in Side})
    distinct = []
    for batch in maker.batches(job.edges, plan, populations, generator):
        ids = [*batch.ids.values()]
        ids += [c.ids_CN for c in batch.candidates.values() if c.ids_CN is not None]
        distinct.append(len(torch.cat([one.flatten() for one in ids]).unique()))
    return statistics.mean(distinct) * 4 * (3 * job.case.dimension + 2)


def rates(
    asked: argparse.Namespace, where: torch.device, way: str, top: dict[str, float]
) -> list[dict[str, Any]]:
    """Train every case, batch size and precision in one way; return the lines of those that went.

    What fails is said in a line, and does not end the benchmark.
    """
    drawn = synthetic.triples(
        asked.edges, entities=asked.entities, relations=asked.relations,
        communities=asked.communities, noise=asked.noise, seed=asked.seed,
    )  # fmt: skip
    lines = []
    for case in asked.cases:
        job = Job.of(case, drawn, asked.entities)
        for size in asked.batch_sizes:
            least = bytes_of_batch(job, size)
            for precision in asked.precisions:
                line = {"case": str(case), "batch_size": size, "precision": precision, "way": way}
                try:
                    found = train(job, where, size, precision, way)
                except (BigGraphError, RuntimeError) as error:
                    measuring.emit("gpu", "failed", **line, error=str(error)[:500])
                    continue
                line |= {name: float(f"{value:.5g}") for name, value in found.items()}
                lines.append(line | shares(case, line, least, top))
                measuring.emit("gpu", "rate", **lines[-1])
    return lines


def shares(
    case: Case, line: dict[str, Any], least: float, top: dict[str, float]
) -> dict[str, float]:
    """Return what share of each ceiling a bucket's rate is; `least`: bytes of a batch."""
    if not top:
        return {}
    rate, product = line["edges_per_s"], 1e12 * top[f"{line['precision']}_tflop_s"]
    moved = rate / line["batch_size"] * least
    return {
        "share_of_product": round(rate * case.flops() / product, 5),
        "share_of_copy": round(moved / (1e9 * top["copy_gb_s"]), 5),
    }


def quality(asked: argparse.Namespace) -> dict[str, Any]:
    """Train FB15k-237 until its filtered validation MRR reaches the target."""
    folder = Path(os.environ.get("BIGGRAPH_DATA", "")) / DATASET
    if "BIGGRAPH_DATA" not in os.environ or not folder.is_dir():
        return {"skipped": f"BIGGRAPH_DATA does not name a folder with {DATASET}"}
    with tempfile.TemporaryDirectory() as out:
        files = {name: sorted(folder.glob(f"{name}.tsv*"))[:1] for name in ("train", "valid")}
        graph, run = Path(out, "graph"), Path(out, "run")
        biggraph.import_graph(files["train"], graph, valid=files["valid"], quiet=True)
        overrides = [
            f"graph.path={graph}", f"checkpoint.path={run}", f"train.device={asked.device}",
            f"train.epochs={asked.epochs}", "eval.every=1", *asked.override,
        ]  # fmt: skip
        config = measuring.REPOSITORY / f"configs/{DATASET}-complex.toml"
        began = time.perf_counter()
        biggraph.train(config, overrides, quiet=True)
        wall = time.perf_counter() - began
        events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return time_to(TARGET, events) | {"whole_run_s": round(wall, 2)}


def time_to(target: float, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return when a run's validation MRR reached a target, from its metrics.

    `train_s` is the epochs' own time; `wall_s` has the validations and the start too.
    """
    started, trained, best = None, 0.0, 0.0
    for event in events:
        started = event["time_s"] if started is None else started
        trained += event["seconds"] if event["event"] == "epoch" else 0.0
        if event["event"] == "evaluation":
            best = max(best, event["mrr"])
            if best >= target:
                wall = round(event["time_s"] - started, 2)
                found = {"epochs": event["epoch"], "train_s": round(trained, 2), "wall_s": wall}
                return {"target": target, "reached": True, "mrr": best, **found}
    return {"target": target, "reached": False, "mrr": best, "train_s": round(trained, 2)}


def run_tests() -> dict[str, Any]:
    """Run the tests that need a GPU; what they say goes to standard error."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "tests"]
    done = subprocess.run(command, cwd=measuring.REPOSITORY, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-4000:], file=sys.stderr)
    return {"passed": done.returncode == 0, "said": done.stdout.strip().splitlines()[-1:]}


def tables(lines: list[dict[str, Any]]) -> str:
    """Return the table of rates."""
    names = ("edges_per_s", "whole_bucket_edges_per_s")
    rows = [
        (
            line["case"], line["batch_size"], line["precision"], line["way"],
            *(f"{line[name]:,.0f}" for name in names),
            *(f"{line.get(name, float('nan')):.1%}" for name in SHARES),
        )
        for line in lines
    ]  # fmt: skip
    header = [
        "case",
        "batch",
        "precision",
        "way",
        "edges/s",
        "with transfers",
        "of product",
        "of copy",
    ]
    return align(rows, header=header)


SHARES = ("share_of_product", "share_of_copy")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    synthetic.add_options(parser)
    parser.set_defaults(edges=1_000_000)
    parser.add_argument(
        "--cases", nargs="+", type=Case.parse, default=CASES, metavar="D:IN_BATCH+UNIFORM"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1000, 10_000])
    parser.add_argument("--precisions", nargs="+", choices=list(PRODUCTS), default=list(PRODUCTS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS),
                        help="graph: on a GPU only")  # fmt: skip
    parser.add_argument("--device", default="cuda", help='or "cuda:1"; "cpu" tries the benchmark')
    parser.add_argument("--side", type=int, default=8192, help="of the matrices of the ceilings")
    parser.add_argument("--mebibytes", type=int, default=2048, help="of the copies")
    parser.add_argument("--epochs", type=int, default=40, help="of FB15k-237, at most")
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE",
                        help="of FB15k-237's run file")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is asked for."""
    asked = parse(arguments)
    try:
        where = find_device(asked.device)
    except ConfigError as error:
        raise SystemExit(f"nothing was measured: {error}") from None
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "processor"
    measuring.emit("gpu", "machine", **measuring.machine(), device=name,
                   versions=measuring.versions(sys.executable))  # fmt: skip
    parts = [part for part in PARTS if part not in asked.skip]
    if "tests" in parts:
        measuring.emit("gpu", "tests", **run_tests())
    top: dict[str, float] = {}
    if "ceilings" in parts:
        top = ceilings(where, side=asked.side, mebibytes=asked.mebibytes)
        measuring.emit("gpu", "ceilings", **top)
    ways = asked.ways if "rates" in parts else []
    lines = [line for way in ways if way == "eager" for line in rates(asked, where, way, top)]
    if "quality" in parts:
        measuring.emit("gpu", "quality", **quality(asked))
    # Last: what goes wrong in a recording may leave the GPU useless to this process.
    lines += [line for way in ways if way == "graph" for line in rates(asked, where, way, top)]
    if lines:
        print("", tables(lines), sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
