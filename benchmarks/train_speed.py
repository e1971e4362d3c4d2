"""Edges a second inside training, beside PyTorch-BigGraph's on the same graph, and memory.

Both train the first edges of the graph of `synthetic.py`, with all its entities: ComplEx, dot
product, softmax, batches of 1000, row-wise Adagrad. `biggraph_bfloat16` is `biggraph` with
train.precision = "bfloat16". Each run is a process of its own in its own environment; the sides
take turns. A rate is that of the median epoch after the first, which warms
up. A case is dimension:in-batch+uniform negatives of each side.

    benchmarks/peers/setup.sh
    python benchmarks/train_speed.py --cases 100:50+50 200:100+100 --workers 1 2 --repeats 3

Prints a JSON line for each run; then tables, on standard error. Where others use the machine too
(`others_cpus`), the ratio of the best epochs says more than that of the medians. The share of the
machine's peak counts 6 N D FLOP for an edge and replaced side: N negatives, three products. The
peak is that of one thread's 1024 x 1024 sgemm right before the run, times threads.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import measuring
import synthetic

from biggraph.log import align

PEERS = Path(__file__).resolve().parent / "peers"
BATCH, RATE = 1000, 0.1

RUN_FILE = """
[graph]
path = "{graph}"
[model]
operator = "complex_diagonal"
comparator = "dot"
dimension = {dimension}
[loss]
name = "softmax"
correct_sampling = false  # PBG has no such thing
[negatives]
in_batch = {in_batch}
uniform = {uniform}
reservoir = 0
[regularizer]
n3 = 0.0
[optimizer]
name = "adagrad_row"
lr = {rate}
[train]
epochs = {epochs}
batch_size = {batch}
threads = {workers}
[checkpoint]
path = "{out}/run"
"""


@dataclass(frozen=True)
class Case:
    """What is trained: `in_batch` and `uniform` negatives of each side."""

    dimension: int
    in_batch: int
    uniform: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """Return the case that "100:50+50" names."""
        found = re.fullmatch(r"(\d+):(\d+)\+(\d+)", text)
        if not found:
            raise argparse.ArgumentTypeError(f"expected 100:50+50, found {text!r}")
        return cls(*map(int, found.groups()))

    def flops(self) -> float:
        """Return the FLOP of an edge's matrix products, both sides."""
        return 2 * 6 * (self.in_batch + self.uniform) * self.dimension

    def __str__(self) -> str:
        return f"D={self.dimension}, {self.in_batch}+{self.uniform}"


CASES = [Case(100, 50, 50), Case(200, 100, 100), Case(100, 500, 500)]


@dataclass(frozen=True)
class Setting:
    """Where things are, and what all runs share."""

    cache: Path
    peers: Path
    epoch_edges: int
    epochs: int
    overrides: tuple[str, ...]

    @property
    def pbg_python(self) -> Path:
        """The interpreter of PBG's environment."""
        return self.peers.absolute() / "pbg/bin/python"


Trained = tuple[list[float], list[float], dict[str, float]]  # edges/s and loss by epoch, usage


def train_rough(setting: Setting, case: Case, workers: int, out: Path) -> Trained:
    """Train here with products of bfloat16; see `train_biggraph`."""
    overrides = ('train.precision="bfloat16"', *setting.overrides)
    return train_biggraph(replace(setting, overrides=overrides), case, workers, out)


def train_biggraph(setting: Setting, case: Case, workers: int, out: Path) -> Trained:
    """Train here; rates are those of the buckets in metrics.jsonl, which hold training alone."""
    run_file = out / "run.toml"
    text = RUN_FILE.format(
        graph=biggraph_graph(setting), out=out, workers=workers, rate=RATE, batch=BATCH,
        epochs=setting.epochs, **asdict(case),
    )  # fmt: skip
    run_file.write_text(text)
    command = [sys.executable, "-m", "biggraph", "train", run_file, *setting.overrides]
    _, used = measuring.run(command)
    edges, seconds, losses = defaultdict[int, int](int), defaultdict[int, float](float), []
    for line in (out / "run/metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "bucket":
            edges[event["epoch"]] += event["edges"]
            seconds[event["epoch"]] += event["edges"] / event["edges_per_s"]
        elif event["event"] == "epoch":
            losses.append(event["loss"])
    return [edges[epoch] / seconds[epoch] for epoch in sorted(edges)], losses, used


def train_pbg(setting: Setting, case: Case, workers: int, out: Path) -> Trained:
    """Train with PBG; rates are from what it logs of each bucket."""
    config = pbg_paths(setting.cache) | {
        "edge_paths": [str(pbg_edges(setting))], "checkpoint_path": str(out / "checkpoint"),
        "dimension": case.dimension, "num_batch_negs": case.in_batch,
        "num_uniform_negs": case.uniform, "batch_size": BATCH, "workers": workers,
        "num_epochs": setting.epochs, "lr": RATE, "comparator": "dot", "loss_fn": "softmax",
        "global_emb": False, "eval_fraction": 0.0, "hogwild_delay": 0.0,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    command = [setting.pbg_python, "-m", "torchbiggraph.train", PEERS / "pbg_config.py"]
    said, used = measuring.run(command, extra_env={"PBG_CONFIG": str(out / "config.json")})
    found = re.findall(r"Processed (\d+) edges in ([\d.]+) s", said)
    lines = (out / "checkpoint/training_stats.json").read_text().splitlines()
    losses = [json.loads(line)["stats"]["metrics"]["loss"] for line in lines]
    return [int(edges) / float(seconds) for edges, seconds in found], losses, used


SIDES: dict[str, Callable[[Setting, Case, int, Path], Trained]] = {
    "biggraph": train_biggraph,
    "biggraph_bfloat16": train_rough,
    "pbg": train_pbg,
}


def biggraph_graph(setting: Setting) -> Path:
    """Return the graph whose train split is the first edges; the rest are its valid split."""
    graph = setting.cache / f"biggraph-{setting.epoch_edges}"
    if not graph.exists():
        first, rest = (setting.cache / f"{name}.parquet" for name in ("first", "rest"))
        rows = synthetic.pyarrow.parquet.read_table(setting.cache / "edges.parquet")
        synthetic.write(rows.slice(0, setting.epoch_edges), first)
        synthetic.write(rows.slice(setting.epoch_edges), rest)
        command = [sys.executable, "-m", "biggraph", "import", first, "--valid", rest]
        measuring.run([*command, "--out", graph])
        first.unlink()
        rest.unlink()
    return graph


def pbg_paths(cache: Path) -> dict[str, Any]:
    """Return the part of PBG's configuration that its importer reads."""
    relation = {"name": "all", "lhs": "entity", "rhs": "entity", "operator": "complex_diagonal"}
    return {
        "entities": {"entity": {"num_partitions": 1}}, "relations": [relation],
        "dynamic_relations": True, "entity_path": str(cache / "pbg/entities"),
        "edge_paths": [str(cache / "pbg/edges")],
    }  # fmt: skip


def pbg_edges(setting: Setting) -> Path:
    """Return PBG's folder of the first edges, cut from those of the whole graph."""
    folder = setting.cache / f"pbg/edges-{setting.epoch_edges}"
    if not folder.exists():
        whole = pbg_whole(setting)
        making = folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        with h5py.File(whole / "edges_0_0.h5") as old, h5py.File(making / whole.name, "w") as new:
            new.attrs.update(old.attrs)
            for name in old:
                new[name] = old[name][: setting.epoch_edges]
        (making / whole.name).rename(making / "edges_0_0.h5")
        making.rename(folder)
    return folder


def pbg_whole(setting: Setting) -> Path:
    """Return PBG's folder of all edges, imported by PBG."""
    config, done = pbg_paths(setting.cache), setting.cache / "pbg/import.json"
    if not done.exists():
        shutil.rmtree(setting.cache / "pbg", ignore_errors=True)
        done.parent.mkdir()
        (done.parent / "config.json").write_text(json.dumps(config))
        source = setting.cache / "edges.tsv"
        rows = synthetic.pyarrow.parquet.read_table(setting.cache / "edges.parquet")
        synthetic.write(rows, source)
        command = [setting.pbg_python, PEERS / "pbg_import.py", done.parent / "config.json", source]
        _, used = measuring.run(command)
        source.unlink()
        done.write_text(json.dumps(used))
    return Path(config["edge_paths"][0])


def prepare(asked: argparse.Namespace) -> Setting:
    """Return where things are; makes the graph unless the cache has it."""
    keys = ("entities", "edges", "relations", "communities", "noise", "seed")
    cache = asked.cache.absolute() / "-".join(f"{getattr(asked, key):g}" for key in keys)
    cache.mkdir(parents=True, exist_ok=True)
    (asked.cache / ".gitignore").write_text("*\n")
    edges = cache / "edges.parquet"
    if not edges.exists():
        synthetic.write(synthetic.of_options(asked, asked.edges), cache / "making.parquet")
        (cache / "making.parquet").rename(edges)
    epoch_edges = min(asked.epoch_edges, asked.edges)
    return Setting(cache, asked.peers, epoch_edges, asked.epochs, tuple(asked.override))


def measure(setting: Setting, asked: argparse.Namespace, sides: list[str]) -> list[dict[str, Any]]:
    """Run every case and side, in turns; return the lines."""
    lines = []
    if sides != ["pbg"]:  # what is compiled is there from here on, and takes no memory
        one_run(replace(setting, epochs=1), asked.cases[0], asked.workers[0], "biggraph")
    for repeat in range(asked.repeats):
        for case in asked.cases:
            for workers in asked.workers:
                for side in sides if repeat % 2 == 0 else reversed(sides):
                    lines.append(one_run(setting, case, workers, side) | {"repeat": repeat})
                    measuring.emit("train_speed", "run", **lines[-1])
    return lines


def one_run(setting: Setting, case: Case, workers: int, side: str) -> dict[str, Any]:
    """Train once."""
    peak = measuring.sgemm_gflops()
    with tempfile.TemporaryDirectory(dir=setting.cache) as folder:
        rates, losses, used = SIDES[side](setting, case, workers, Path(folder))
    rate = statistics.median(rates[1:] or rates)
    share = rate * case.flops() / (1e9 * peak * workers)
    return {
        "side": side, "case": str(case), "workers": workers, "edges_per_s": round(rate),
        "epochs": [round(rate) for rate in rates], "losses": [round(loss, 4) for loss in losses],
        "sgemm_gflops": round(peak, 1), "share_of_sgemm": round(share, 3), **used,
    }  # fmt: skip


def summarise(lines: list[dict[str, Any]]) -> list[str]:
    """Return the table of medians, and that of ratios to PBG; print both as JSON lines."""
    groups = defaultdict[tuple[str, int, str], list](list)
    for line in lines:
        groups[line["case"], line["workers"], line["side"]].append(line)
    medians, ratios = [], []
    for key, runs in groups.items():
        names = ("edges_per_s", "share_of_sgemm", "peak_rss_mib", "peak_pss_mib", "others_cpus")
        found = {name: statistics.median(run[name] for run in runs) for name in names}
        facts = dict(zip(("case", "workers", "side"), key, strict=True))
        measuring.emit("train_speed", "median", **facts, **found, best_epoch=best(runs))
        cells = [f"{found['edges_per_s']:,.0f}", f"{best(runs):,}"]
        cells += [f"{found['share_of_sgemm']:.0%}", *(f"{found[name]:g}" for name in names[2:])]
        medians.append((*key, *cells))
        if key[2] != "pbg" and (peers := groups.get((*key[:2], "pbg"))):
            values = ratios_of(runs, peers)
            measuring.emit("train_speed", "ratio", **facts, **values)
            ratios.append((*key, *(f"{value:.2f}" for value in values.values()), len(runs)))
    header = ["case", "workers", "side", "edges/s", "best epoch", "of sgemm", "RSS MiB", "PSS MiB"]
    tables = [align(medians, header=[*header, "others' CPUs"])]
    if ratios:
        header = ["case", "workers", "side", "side / pbg", "least", "most", "of best epochs"]
        tables.append(align(ratios, header=[*header, "repeats"]))
    return tables


def best(runs: list[dict[str, Any]]) -> int:
    """Return the rate of the fastest epoch of all: the least disturbed one."""
    return max(rate for run in runs for rate in run["epochs"])


def ratios_of(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median, least and greatest ratio of runs in the same repeat, and of the bests."""
    pairs = zip(ours, theirs, strict=True)
    each = [mine["edges_per_s"] / other["edges_per_s"] for mine, other in pairs]
    found = {"ratio": statistics.median(each), "least": min(each), "most": max(each)}
    found["ratio_of_best"] = best(ours) / best(theirs)
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    synthetic.add_options(parser)
    parser.add_argument(
        "--cases", nargs="+", type=Case.parse, default=CASES, metavar="D:IN_BATCH+UNIFORM"
    )
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--epoch-edges", type=int, default=1_000_000, help="trained in an epoch")
    parser.add_argument("--epochs", type=int, default=2, help="of a run; the first warms up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--peers", type=Path, default=Path("peers-env"), help="of peers/setup.sh")
    parser.add_argument("--cache", type=Path, default=Path("data/train-speed"), help="kept")
    parser.add_argument("--override", nargs="*", default=[], metavar="KEY=VALUE",
                        help="of biggraph's run file")  # fmt: skip
    asked = parser.parse_args()
    setting, sides = prepare(asked), list(asked.sides)
    pythons = dict.fromkeys(SIDES, Path(sys.executable)) | {"pbg": setting.pbg_python}
    for side in asked.sides:
        if not pythons[side].exists():
            sides.remove(side)
            print(f"{side} is left out: benchmarks/peers/setup.sh installs it", file=sys.stderr)
    found = {side: measuring.versions(pythons[side]) for side in sides}
    measuring.emit("train_speed", "machine", **measuring.machine(), versions=found,
                   epoch_edges=setting.epoch_edges, overrides=asked.override)  # fmt: skip
    print("", *summarise(measure(setting, asked, sides)), sep="\n\n", file=sys.stderr)


if __name__ == "__main__":
    main()
