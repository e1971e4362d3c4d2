"""Time and memory of `biggraph train` against the number of partitions, under a memory budget.

The same graph (`synthetic.py`) is imported with 1, 2, 4 … partitions and trained with a budget for
tables that holds `--tables` (4) of the finest cut, or two of the cut at hand where that is more:
less is refused. With 1 and 2 partitions everything fits, and what `train.bucket_order` says does
not matter; with more, every order is measured. ComplEx, softmax, row-wise Adagrad.

    python benchmarks/partitions.py --plot docs/images/partitions.svg

Prints a JSON line for each run, then a table on standard error: the last epoch's seconds and rate
(an epoch's first tables are made in the first one), the share of it spent waiting for partitions
(`io_wait_s`), bytes that it moved; of the whole command, wall time, processor time (which others on
the machine disturb least) and peak resident memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import measuring
import synthetic

from biggraph.graph.graph import Graph
from biggraph.log import align

RUN_FILE = """
[graph]
path = "{graph}"
[model]
dimension = {dimension}
[negatives]
in_batch = {in_batch}
uniform = {uniform}
[optimizer]
name = "adagrad_row"
[train]
epochs = {epochs}
threads = {threads}
bucket_order = "{order}"
memory = {memory}
[checkpoint]
path = "{out}/run"
"""

ALL_FIT = "all in memory"
COLUMNS = {
    "epoch_s": "epoch, s", "edges_per_s": "edges/s", "io_share": "waits", "wall_s": "wall, s",
    "cpu_s": "CPU, s", "peak_rss_mib": "RSS MiB", "gib_read": "GiB read",
    "gib_written": "GiB written", "others_cpus": "others' CPUs",
}  # fmt: skip


def graphs(asked: argparse.Namespace) -> dict[int, Path]:
    """Return the graph by number of partitions; makes what the cache lacks."""
    keys = ("entities", "edges", "relations", "communities", "noise", "seed")
    cache = asked.cache.absolute() / "-".join(f"{getattr(asked, key):g}" for key in keys)
    cache.mkdir(parents=True, exist_ok=True)
    (asked.cache / ".gitignore").write_text("*\n")
    edges, found = cache / "edges.parquet", {}
    if not edges.exists():
        synthetic.write(synthetic.of_options(asked, asked.edges), cache / "making.parquet")
        (cache / "making.parquet").rename(edges)
    for count in asked.partitions:
        found[count] = cache / f"graph-{count}"
        if not found[count].exists():
            command = [sys.executable, "-m", "biggraph", "import", edges, "--partitions", count]
            measuring.run([*command, "--out", found[count]])
    return found


def table_sizes(graph: Path, dimension: int) -> list[int]:
    """Return the bytes of the tables of a graph with one entity type, the largest first."""
    (kind,) = Graph.open(graph).schema.entities
    return sorted((4 * count * (dimension + 1) for count in kind.counts), reverse=True)


def budget(sizes: list[int], finest: list[int], tables: int) -> int:
    """Return the bytes allowed for tables of these sizes.

    >>> budget([40, 40], [11, 10, 10, 9, 9, 9], 3), budget([11, 10, 10, 9, 9, 9], [11] * 6, 3)
    (80, 33)
    """
    return max(sum(sizes[:2]), sum(finest[:tables]))


def train(graph: Path, order: str, memory: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Train once; return what it took."""
    with tempfile.TemporaryDirectory(dir=graph.parent) as folder:
        run_file = Path(folder) / "run.toml"
        run_file.write_text(RUN_FILE.format(
            graph=graph, out=folder, order=order, memory=memory, dimension=asked.dimension,
            in_batch=asked.in_batch, uniform=asked.uniform, epochs=asked.epochs,
            threads=asked.threads,
        ))  # fmt: skip
        command = [sys.executable, "-m", "biggraph", "train", run_file, *asked.override]
        _, used = measuring.run(command)
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    return last_epoch([json.loads(line) for line in lines]) | used


def last_epoch(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return time, rate, waiting and traffic of the last epoch, from the lines of metrics.jsonl."""
    last = [event for event in events if event["event"] == "epoch"][-1]
    return {
        "epoch_s": round(last["seconds"], 2),
        "edges_per_s": round(last["edges_per_s"]),
        "io_share": round(last["io_wait_s"] / last["seconds"], 3),
        "gib_read": round(last["bytes_read"] / 2**30, 2),
        "gib_written": round(last["bytes_written"] / 2**30, 2),
    }


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Train every cut with every order, in turns; return the lines."""
    found = graphs(asked)
    sizes = {count: table_sizes(graph, asked.dimension) for count, graph in found.items()}
    finest = sizes[max(sizes)]
    train(found[min(found)], asked.orders[0], sum(sizes[min(found)]), asked)  # compiles
    lines = []
    for repeat in range(asked.repeats):
        for count, graph in found.items():
            memory = budget(sizes[count], finest, asked.tables)
            fits = sum(sizes[count]) <= memory
            for order in asked.orders[:1] if fits else asked.orders[:: -1 if repeat % 2 else 1]:
                line = {"partitions": count, "order": ALL_FIT if fits else order, "repeat": repeat}
                line |= {"budget_mib": round(memory / 2**20), **train(graph, order, memory, asked)}
                lines.append(measuring.emit("partitions", "run", **line))
    return lines


def medians(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the median of every column, by partitions and order."""
    groups = defaultdict[tuple[int, str, int], list[dict[str, Any]]](list)
    for line in lines:
        groups[line["partitions"], line["order"], line["budget_mib"]].append(line)
    found = []
    for key, runs in groups.items():
        values = {name: statistics.median(run[name] for run in runs) for name in COLUMNS}
        facts = dict(zip(("partitions", "order", "budget_mib"), key, strict=True))
        found.append(facts | values)
        measuring.emit("partitions", "median", **found[-1])
    return found


def table_of(found: list[dict[str, Any]]) -> str:
    """Return the table of medians."""
    rows = []
    for line in found:
        cells = [f"{line[name]:,g}" for name in COLUMNS]
        cells[list(COLUMNS).index("io_share")] = f"{line['io_share']:.0%}"
        rows.append([f"{line['partitions']}", line["order"], f"{line['budget_mib']}", *cells])
    return align(rows, header=["partitions", "order", "budget MiB", *COLUMNS.values()])


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw the time of an epoch and the memory, with a line for each order."""
    import plots

    figure, (time, memory) = plots.panels(2)
    orders = [order for order in dict.fromkeys(line["order"] for line in found) if order != ALL_FIT]
    for order, marker in zip(orders or [ALL_FIT], "osv^Dx", strict=False):
        mine = [line for line in found if line["order"] in (order, ALL_FIT)]
        counts = [line["partitions"] for line in mine]
        time.plot(counts, [line["epoch_s"] for line in mine], marker=marker, label=order)
        memory.plot(counts, [line["peak_rss_mib"] for line in mine], marker=marker, label=order)
    budgets = {line["partitions"]: line["budget_mib"] for line in found}
    memory.plot(list(budgets), list(budgets.values()), "k--", label="budget for tables")
    for axes in (time, memory):
        plots.powers(axes, list(budgets), "partitions")
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        axes.legend()
    time.set_ylabel("seconds of an epoch")
    memory.set_ylabel("peak memory, MiB")
    plots.save(figure, path)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    synthetic.add_options(parser)
    parser.set_defaults(entities=400_000, edges=2_000_000)
    parser.add_argument("--partitions", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--tables", type=int, default=4, help="of the finest cut, in the budget")
    parser.add_argument("--orders", nargs="+", default=["inside_out", "beta", "comet"])
    parser.add_argument("--dimension", type=int, default=200)
    parser.add_argument("--in-batch", type=int, default=50)
    parser.add_argument("--uniform", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("data/partitions"), help="kept")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    parser.add_argument(
        "--override", nargs="*", default=[], metavar="KEY=VALUE", help="of the run file"
    )
    asked = parser.parse_args()
    facts = {name: getattr(asked, name) for name in ("entities", "edges", "dimension", "threads")}
    measuring.emit("partitions", "machine", **measuring.machine(), **facts,
                   versions=measuring.versions(sys.executable))  # fmt: skip
    found = medians(measure(asked))
    print("", table_of(found), sep="\n\n", file=sys.stderr)
    if asked.plot:
        draw(found, asked.plot)


if __name__ == "__main__":
    main()
