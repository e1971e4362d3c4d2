"""Train the quality configurations on real graphs and print what they reach.

    python scripts/quality.py                     every row of the table
    python scripts/quality.py fb15k-237-complex   one of them
    python scripts/quality.py --partitions 4      cut into four partitions

The data sets are read from the folder that BIGGRAPH_DATA names (or --data), one folder a data
set with train, valid and test (or edges) as .tsv or .tsv.zst. Results go to stdout as a table and
to quality-output/results.jsonl as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import biggraph
from biggraph.log import align

CONFIGS = Path(__file__).parent.parent / "configs"
OUT = Path("quality-output")
# Configuration, data set, and the filtered test MRR that it must reach.
ROWS = {
    "fb15k-237-complex": ("fb15k-237", 0.335),
    "fb15k-237-transe": ("fb15k-237", 0.29),
    "wn18rr-complex": ("wn18rr", 0.46),
    "lastfm-asia": ("lastfm-asia", 0.11),
}


def find(folder: Path, split: str) -> list[str]:
    """Return the file of a split, or nothing."""
    return [str(path) for path in sorted(folder.glob(f"{split}.tsv*"))][:1]


def import_dataset(data: Path, name: str, partitions: int) -> Path:
    """Import a data set once for each number of partitions."""
    out = OUT / "graphs" / f"{name}-p{partitions}"
    if (out / "graph.json").exists():
        return out
    folder = data / name
    if not folder.is_dir():
        sys.exit(f"needs {folder}, which does not exist; name its parent with --data")
    splits = {split: find(folder, split) for split in ("train", "valid", "test")}
    if splits["train"]:
        biggraph.import_graph(
            splits["train"], out, valid=splits["valid"], test=splits["test"],
            partitions=partitions, overwrite=True,
        )  # fmt: skip
    else:
        holdout = {"valid": 0.05, "test": 0.1}
        edges = find(folder, "edges")
        biggraph.import_graph(edges, out, holdout=holdout, partitions=partitions, overwrite=True)
    return out


def run(data: Path, config: str, partitions: int, overrides: list[str]) -> dict[str, object]:
    """Train and test one configuration."""
    dataset, floor = ROWS[config]
    graph = import_dataset(data, dataset, partitions)
    checkpoint = OUT / "runs" / f"{config}-p{partitions}"
    own = [f"graph.path={graph}", f"checkpoint.path={checkpoint}", *overrides]
    started = time.perf_counter()
    result = biggraph.train(CONFIGS / f"{config}.toml", own, restart=True)
    seconds = time.perf_counter() - started
    metrics = biggraph.evaluate(checkpoint).metrics
    popular = biggraph.evaluate(checkpoint, baseline=True).metrics
    return {
        "config": config, "partitions": partitions, "epochs": result.epochs,
        "train_s": round(seconds), "mrr": metrics.mrr, "hits@1": metrics.hits_at_1,
        "hits@10": metrics.hits_at_10, "popularity_mrr": popular.mrr, "floor": floor,
    }  # fmt: skip


def main() -> None:
    """Run the rows asked for; exit 1 if one misses its floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="*", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--data", type=Path, default=os.environ.get("BIGGRAPH_DATA"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides such as train.epochs=2")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.configs if name not in ROWS]
    if unknown or not arguments.data:
        parser.error(f"unknown: {unknown}" if unknown else "name the data with --data")
    rows = []
    for config in arguments.configs or ROWS:
        rows.append(run(arguments.data, config, arguments.partitions, arguments.set))
        with (OUT / "results.jsonl").open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(align([list(row.values()) for row in rows], header=list(rows[0])))
    missed = [
        str(row["config"]) for row in rows if float(str(row["mrr"])) < ROWS[str(row["config"])][1]
    ]
    if missed:
        sys.exit(f"below their floor: {', '.join(missed)}")


if __name__ == "__main__":
    main()
