"""Trains FB15k-237 with three workers twice: quietly, and with ten of them killed.

    BIGGRAPH_DATA=… python -m tests.dist.chaos.quality FOLDER [EPOCHS]

Prints filtered MRR on the validation split, wall time and leases lost of both, as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import biggraph
from biggraph.storage.checkpoint import Checkpoint
from tests.dist.chaos.audit import audit, committed, expired
from tests.dist.chaos.stage import Launcher, Stage

KILLS = 10
WORKERS = 3
PARTITIONS = 8
SETTINGS = [
    "model.dimension=100",
    "model.operator=complex_diagonal",
    "negatives.uniform=500",
    "negatives.reservoir=4000",
    "negatives.in_batch=100",
]


def prepare(folder: Path) -> Path:
    """Import the data set, unless that was done before."""
    source, graph = Path(os.environ["BIGGRAPH_DATA"]) / "fb15k-237", folder / "graph"
    if not graph.exists():
        splits = {name: [next(source.glob(f"{name}.*"))] for name in ("train", "valid", "test")}
        biggraph.import_graph(
            splits["train"], graph, valid=splits["valid"], test=splits["test"],
            partitions=PARTITIONS, quiet=True,
        )  # fmt: skip
    return graph


def train(stage: Stage, kills: int) -> dict:
    """Train to the end, killing a worker whenever another share of all buckets is committed."""
    start = time.monotonic()
    coordinator = stage.coordinator(*SETTINGS)
    workers = {f"w{index}": stage.worker(f"w{index}", *SETTINGS) for index in range(WORKERS)}
    numbers, killed = random.Random(1), 0
    total = stage.epochs * PARTITIONS**2
    while coordinator.code is None:
        time.sleep(0.2)
        if killed < kills and committed(stage.run) >= (killed + 1) * total / (kills + 1):
            name = numbers.choice(sorted(workers))
            workers[name].send(signal.SIGKILL)
            workers[name].wait()
            workers[name] = stage.worker(name, *SETTINGS)
            killed += 1
    seconds = time.monotonic() - start
    stage.finish(coordinator, *workers.values())
    found = biggraph.evaluate(stage.run, split="valid", quiet=True).metrics
    reasons = expired(stage.run)
    return {
        "filtered valid mrr": round(float(found.mrr), 4),
        "seconds": round(seconds, 1),
        "kills": killed,
        "leases that expired": sum("silent" in reason for reason in reasons),
        "problems": audit(stage.run, stage.epochs) + Checkpoint.open(stage.run, "latest").verify(),
    }


def main() -> None:
    folder, epochs = Path(sys.argv[1]), int((sys.argv[2:] or ["8"])[0])
    folder.mkdir(parents=True, exist_ok=True)
    graph, launcher = prepare(folder), Launcher()
    for name, kills in (("quiet", 0), ("killed", KILLS)):
        (folder / name).mkdir()
        stage = Stage(launcher, folder / name, graph, epochs=epochs, ttl=20.0)
        try:
            print(json.dumps({"run": name, "epochs": epochs, **train(stage, kills)}), flush=True)
        finally:
            stage.close()
    launcher.close()


if __name__ == "__main__":
    main()
