"""The main job from source files to answers, one command at a time.

    python scripts/demo.py

Embeds the standard library of the Python that runs it (see `stdlib_graph.py`): import, train,
evaluate, neighbours, a prediction, and a map of the modules. Each command is printed as you would
type it. Everything is written to `demo-output`; needs no network and about a minute.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from module_map import draw_module_map
from rich.console import Console
from rich.table import Table

import biggraph

ROOT = Path(__file__).resolve().parent.parent
OUT = Path("demo-output")
CONFIG = Path("configs/stdlib.toml")
CHECKPOINT = OUT / "checkpoint"
NAMES = (
    "json",
    "asyncio",
    "collections.OrderedDict",
    "argparse.ArgumentParser",
    "threading.Thread",
)
METRICS = ("mrr", "hits@1", "hits@10")

console = Console(highlight=False)


def main() -> None:
    """Run the demo in the repository's root, from an empty output folder."""
    os.chdir(ROOT)
    shutil.rmtree(OUT, ignore_errors=True)
    edges = OUT / "stdlib.tsv"

    chapter("A graph: who imports, defines, inherits and calls whom in the standard library")
    run("python", "scripts/stdlib_graph.py", edges)
    chapter("Import: names become numbers, edges become buckets; 5 % are kept aside for the test")
    holdout = ("--holdout", "valid=0.05,test=0.05")
    run("biggraph", "import", edges, "--out", OUT / "graph", "--config", CONFIG, *holdout)
    chapter("Train: ComplEx; the functions in two partitions, so four buckets an epoch")
    run("biggraph", "train", CONFIG)
    chapter("Evaluate: rank the true end of each test edge among all entities of its type")
    run("biggraph", "eval", CHECKPOINT, "--json", OUT / "model.json")
    chapter("The same test for a baseline: rank by how often an entity ends edges of the relation")
    run("biggraph", "eval", CHECKPOINT, "--baseline", "--json", OUT / "popularity.json")
    chapter("Neighbours: entities with similar embeddings")
    for name in NAMES:
        run("biggraph", "neighbors", CHECKPOINT, name, "-k", "5")
    chapter("Predict: what else might shutil.copytree call, beyond what the graph says?")
    question = ("--head", "shutil.copytree", "--relation", "function_calls_function")
    run("biggraph", "predict", CHECKPOINT, *question, "-k", "5")

    picture = OUT / "modules.png"
    draw_module_map(biggraph.Embeddings.open(CHECKPOINT), picture)
    chapter("Result")
    console.print(result_table("model", "popularity"))
    console.print(f"A map of the modules: {picture}")


def chapter(title: str) -> None:
    """Print what comes next."""
    console.print(f"\n[bold]{title}[/bold]", soft_wrap=True)


def run(program: str, *arguments: object) -> None:
    """Print one command and run it with the programs that stand beside this Python."""
    words = [program, *map(str, arguments)]
    console.print(f"[green]$ {shlex.join(words)}[/green]", soft_wrap=True)
    beside = str(Path(sys.executable).parent)
    path = shutil.which(program, path=beside) or sys.executable
    finished = subprocess.run([path, *words[1:]], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def result_table(*names: str) -> Table:
    """Return the metrics that `biggraph eval` wrote, a row for each file."""
    table = Table(title="Test edges, both ends, filtered", title_justify="left")
    table.add_column("")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for name in names:
        metrics = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
        table.add_row(name, *(f"{metrics[metric]:.3f}" for metric in METRICS))
    return table


if __name__ == "__main__":
    main()
