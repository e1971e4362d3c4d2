"""Rows a second and memory of import, beside PyTorch-BigGraph's importer on the same file.

Imports the graph of `synthetic.py`, a tenth as many entities as rows, into one partition; each
import is a process of its own, and the sides take turns. Rates are from inside the importers,
start-up left out.

    benchmarks/peers/setup.sh
    python benchmarks/import_speed.py --rows 1000000 10000000 --parquet-rows 1000000
    python benchmarks/import_speed.py --rows 1000000 10000000 50000000 --sides biggraph

`pbg` is the released importer with what the project's last sources do better: it appends edges in
blocks, and reads Parquet (with a package in pure Python). `pbg_released` is as it is: text alone.
Prints a JSON line for each import; then tables, on standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measuring
import synthetic

from biggraph.log import align

PEERS = Path(__file__).resolve().parent / "peers"
WARM_UP_ROWS = 10_000

# Rows a second that the report gives are of this call alone; sys.argv: source, graph, options.
IMPORT = """
import json, sys
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec

source, out, options = sys.argv[1:]
report = import_graph([source], out, spec=ImportSpec(**json.loads(options)))
print(json.dumps({"seconds": report.seconds}))
"""


def command_of(side: str, source: Path, folder: Path, asked: argparse.Namespace) -> list[Any]:
    """Return the command that imports a file and ends with a JSON line of its seconds."""
    if side == "biggraph":
        options = {"partitions": asked.partitions, "memory": asked.memory}
        return [sys.executable, "-c", IMPORT, source, folder / "graph", json.dumps(options)]
    relation = {"name": "all", "lhs": "entity", "rhs": "entity", "operator": "complex_diagonal"}
    config = {
        "entities": {"entity": {"num_partitions": asked.partitions}}, "relations": [relation],
        "dynamic_relations": True, "entity_path": str(folder / "entities"),
        "edge_paths": [str(folder / "edges")],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    command = [pbg_python(asked), PEERS / "pbg_import.py", folder / "config.json", source]
    return [*command, *(["--as-released"] if side == "pbg_released" else [])]


def pbg_python(asked: argparse.Namespace) -> Path:
    """Return the interpreter of PBG's environment."""
    return asked.peers.absolute() / "pbg/bin/python"


def sources(asked: argparse.Namespace, folder: Path) -> Iterator[tuple[Path, int]]:
    """Write one file after the other; each is gone when the next is asked for."""
    sizes = {"tsv": asked.rows, "parquet": asked.parquet_rows}
    for count in sorted({*asked.rows, *asked.parquet_rows}):
        drawn = synthetic.triples(
            count, entities=count // 10, relations=10, communities=max(count // 10_000, 1),
            noise=0.15,
        )  # fmt: skip
        rows = synthetic.table(drawn, count // 10)
        for suffix in (suffix for suffix, counts in sizes.items() if count in counts):
            path = folder / f"edges.{suffix}"
            synthetic.write(rows, path)
            yield path, count
            path.unlink()


def warm_up(here: Path, asked: argparse.Namespace, sides: list[str]) -> None:
    """Import a little, so that compiled code is there and libraries are in memory."""
    small = argparse.Namespace(rows=[WARM_UP_ROWS], parquet_rows=[WARM_UP_ROWS])
    for source, _ in sources(small, here):
        for side in (side for side in sides if side != "pbg_released"):
            with tempfile.TemporaryDirectory(dir=here) as folder:
                measuring.run(command_of(side, source, Path(folder).absolute(), asked))


def measure(asked: argparse.Namespace, sides: list[str]) -> list[dict[str, Any]]:
    """Import every file with every side, in turns; return the lines."""
    lines = []
    with tempfile.TemporaryDirectory(dir=".") as here:
        warm_up(Path(here).absolute(), asked, sides)
        for source, count in sources(asked, Path(here).absolute()):
            able = [s for s in sides if s != "pbg_released" or source.suffix == ".tsv"]
            for repeat in range(asked.repeats):
                for side in able if repeat % 2 == 0 else reversed(able):
                    with tempfile.TemporaryDirectory(dir=here) as folder:
                        command = command_of(side, source, Path(folder).absolute(), asked)
                        said, used = measuring.run(command)
                    seconds = json.loads(said.splitlines()[-1])["seconds"]
                    lines.append({
                        "side": side, "format": source.suffix[1:], "rows": count, "repeat": repeat,
                        "rows_per_s": round(count / seconds), "seconds": round(seconds, 2),
                        "source_bytes": source.stat().st_size, **used,
                    })  # fmt: skip
                    measuring.emit("import_speed", "import", **lines[-1])
    return lines


def summarise(lines: list[dict[str, Any]]) -> list[str]:
    """Return the table of medians and that of ratios; print both as JSON lines."""
    groups = defaultdict[tuple[str, int, str], list](list)
    for line in lines:
        groups[line["format"], line["rows"], line["side"]].append(line)
    medians, ratios = [], []
    for key, runs in groups.items():
        names = ("rows_per_s", "peak_rss_mib", "others_cpus")
        found = {name: statistics.median(run[name] for run in runs) for name in names}
        facts = dict(zip(("format", "rows", "side"), key, strict=True))
        measuring.emit("import_speed", "median", **facts, **found)
        medians.append(
            (key[0], f"{key[1]:,}", key[2], *(f"{value:,.8g}" for value in found.values()))
        )
        ours = groups.get((*key[:2], "biggraph"))
        if key[2] != "biggraph" and ours:
            pairs = zip(ours, runs, strict=True)
            each = [mine["rows_per_s"] / theirs["rows_per_s"] for mine, theirs in pairs]
            ratio = round(statistics.median(each), 2)
            measuring.emit("import_speed", "ratio", **facts, ratio=ratio)
            ratios.append((key[0], f"{key[1]:,}", f"biggraph / {key[2]}", f"{ratio:.1f}"))
    header = ["format", "rows", "side", "rows/s", "peak RSS MiB", "others' CPUs"]
    tables = [align(medians, header=header)]
    if ratios:
        tables.append(align(ratios, header=["format", "rows", "sides", "ratio"]))
    return tables


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    all_sides = ["biggraph", "pbg", "pbg_released"]
    parser.add_argument("--rows", nargs="*", type=int, default=[1_000_000], help="of TSV files")
    parser.add_argument("--parquet-rows", nargs="*", type=int, default=[1_000_000])
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1 << 30, help="biggraph's budget, in bytes")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=all_sides, default=all_sides[:2])
    parser.add_argument("--peers", type=Path, default=Path("peers-env"), help="of peers/setup.sh")
    asked = parser.parse_args()
    sides = list(asked.sides)
    if not pbg_python(asked).exists():
        sides = [side for side in sides if side == "biggraph"]
        print("pbg is left out: benchmarks/peers/setup.sh installs it", file=sys.stderr)
    found = {"biggraph": measuring.versions(sys.executable)}
    if len(sides) > 1:
        found["pbg"] = measuring.versions(pbg_python(asked))
    measuring.emit("import_speed", "machine", **measuring.machine(), versions=found)
    print("", *summarise(measure(asked, sides)), sep="\n\n", file=sys.stderr)


if __name__ == "__main__":
    main()
