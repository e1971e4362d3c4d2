"""Edges a second of the compiled step against the number of negatives, shared and not.

Three ways to give every edge its negatives of each side:

* `batched`: a chunk of 250 edges shares uniform ones (`negatives.in_batch = 0`);
* `half own`: half of them are the chunk's own entities, half uniform; a chunk has half as many
  edges as an edge has negatives (`negatives.in_batch = uniform`);
* `unbatched`: every edge has its own (`negatives.in_batch = 1`, where an edge meets only itself).

One thread of this process calls the step, on tables and edges in memory, in turns: ComplEx, dot
product, weighted softmax, row-wise Adagrad. Rates are edges per second of *processor* time, which
is wall time where nobody else wants the core; `wall_edges_per_s` is beside them.

    python benchmarks/negatives.py --plot docs/images/negatives.svg

Prints JSON lines, then a table on standard error. The share of the machine's peak counts 12 N D
FLOP for an edge with N negatives of each side (three products); the peak is one thread's sgemm.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import synthetic
import torch

from biggraph.log import align
from biggraph.model.losses import make_loss
from biggraph.model.model import build_model
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.sections import ModelSection, NegativesSection
from biggraph.storage.table import EmbeddingTable, empty
from biggraph.train.batch import BatchMaker
from biggraph.train.kernels.blas import one_thread
from biggraph.train.kernels.step import CompiledStep
from biggraph.train.step import Lesson, StepSettings
from biggraph.types import Edges, PartitionKey, Side

ENTITY = "entity"
WAYS = {
    "batched": lambda n: (0, n),
    "half own": lambda n: (n // 2, n - n // 2),
    "unbatched": lambda n: (1, n),
}


def negatives_of(way: str, count: int) -> NegativesSection:
    """Return the section that gives every edge so many negatives of each side."""
    in_batch, uniform = WAYS[way](count)
    return NegativesSection(in_batch=in_batch, uniform=uniform, reservoir=0)


class Bench:
    """Tables and edges in memory, and what trains them; all ways share the tables."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.batch_size = asked.batch_size
        drawn = synthetic.triples(
            asked.edges, entities=asked.entities, relations=asked.relations,
            communities=asked.communities, noise=asked.noise, seed=asked.seed,
        )  # fmt: skip
        self.edges = Edges(*(np.ascontiguousarray(column) for column in drawn.T), None)
        relations = [RelationType(f"r{i}", ENTITY, ENTITY) for i in range(asked.relations)]
        schema = GraphSchema((EntityType(ENTITY, (asked.entities,)),), tuple(relations))
        self.model = build_model(ModelSection(dimension=asked.dimension), [], schema)
        generator = torch.Generator().manual_seed(asked.seed)
        rows = empty((asked.entities, asked.dimension)).normal_(0, 1e-3, generator=generator)
        table = EmbeddingTable(PartitionKey(ENTITY, 0), rows, torch.zeros(asked.entities), chain="")
        self.tables = {(side, ENTITY): table for side in Side}
        loss = make_loss("softmax", margin=0.0, temperature=0.0)
        self.settings = StepSettings(loss, True, 0.0, 0.1, 0.1, self.batch_size)

    def step(self, way: str, count: int) -> CompiledStep:
        """Return a step that is ready for batches."""
        negatives = negatives_of(way, count)
        maker = BatchMaker(self.model, negatives, batch_size=self.batch_size, dropout=0.0)
        sizes = {use: (len(table.rows),) * 2 + (0,) for use, table in self.tables.items()}
        step = CompiledStep(self.model, self.settings, maker)
        populations = maker.populations(self.edges, sizes)
        step.begin(Lesson(self.settings, self.tables, {}, self.edges, populations, count))
        return step

    def rate(self, step: CompiledStep, seconds: float) -> dict[str, int]:
        """Train batches, one at least, for some seconds; return rates of processor and wall."""
        plan = np.random.default_rng(1).permutation(len(self.edges)).astype(np.int64)
        starts = range(0, len(plan), self.batch_size)
        batches = itertools.cycle([plan[i : i + self.batch_size] for i in starts])
        step(next(batches))  # memory is there from here on
        trained, wall, cpu = 0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - wall < seconds or not trained:
            positions = next(batches)
            step(positions)
            trained += len(positions)
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        return {"edges_per_s": round(trained / cpu), "wall_edges_per_s": round(trained / wall)}


def measure(bench: Bench, asked: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """Measure every way and number, in turns; return the lines."""
    lines = []
    with one_thread():
        bench.rate(bench.step("batched", min(asked.negatives)), 0)  # compiles
        for repeat in range(asked.repeats):
            for count in asked.negatives:
                for way in list(asked.ways)[:: -1 if repeat % 2 else 1]:
                    found = bench.rate(bench.step(way, count), asked.seconds)
                    share = found["edges_per_s"] * 12 * count * asked.dimension / (1e9 * peak)
                    line = {"way": way, "negatives": count, "repeat": repeat, **found}
                    lines.append(line | {"share_of_sgemm": round(share, 3)})
                    measuring.emit("negatives", "run", **lines[-1])
    return lines


def medians(lines: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the median rates, by way and number of negatives."""
    rates = defaultdict[tuple[str, int], list[float]](list)
    for line in lines:
        rates[line["way"], line["negatives"]].append(line["edges_per_s"])
    found = defaultdict[str, dict[int, float]](dict)
    for (way, count), values in sorted(rates.items(), key=lambda item: item[0][1]):
        found[way][count] = statistics.median(values)
        measuring.emit("negatives", "median", way=way, negatives=count,
                       edges_per_s=found[way][count])  # fmt: skip
    return found


def table_of(found: dict[str, dict[int, float]]) -> str:
    """Return the table of medians, and how many times sharing is faster."""
    counts = sorted({count for rates in found.values() for count in rates})
    rows = [[f"{n:,}", *(f"{rates[n]:,.0f}" for rates in found.values())] for n in counts]
    header = ["negatives", *found]
    if {"batched", "unbatched"} <= set(found):
        header.append("batched / unbatched")
        for row, n in zip(rows, counts, strict=True):
            row.append(f"{found['batched'][n] / found['unbatched'][n]:.1f}")
    return align(rows, header=header)


def draw(found: dict[str, dict[int, float]], path: Path) -> None:
    """Draw the rates, both axes logarithmic."""
    import plots

    figure, (axes,) = plots.panels(1)
    for way, marker in zip(found, "osv", strict=False):
        axes.plot(list(found[way]), list(found[way].values()), marker=marker, label=way)
    plots.powers(axes, sorted({n for rates in found.values() for n in rates}), "negatives a side")
    axes.set_yscale("log")
    axes.set_ylabel("edges/s of one thread")
    axes.legend()
    plots.save(figure, path)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    synthetic.add_options(parser)
    parser.set_defaults(entities=200_000, edges=1_000_000, communities=200)
    parser.add_argument("--dimension", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--negatives", nargs="+", type=int, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a run, or one batch")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    peak = measuring.sgemm_gflops()
    measuring.emit("negatives", "machine", **measuring.machine(), sgemm_gflops=round(peak, 1),
                   versions=measuring.versions(sys.executable))  # fmt: skip
    found = medians(measure(Bench(asked), asked, peak))
    print("", table_of(found), sep="\n\n", file=sys.stderr)
    if asked.plot:
        draw(found, asked.plot)


if __name__ == "__main__":
    main()
