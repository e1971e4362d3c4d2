"""What do coordinator, parameter server and a second worker cost and bring?

Four measurements, each a JSON line, then a table:

* `log`: one commit and one acquire at the coordinator, without sockets, at 128 x 128 buckets; of a
  commit, the share that is the write of its record is measured beside it.
* `scaling`: edges per second of one and of two single-thread workers in interleaved repeats, on a
  synthetic skewed graph.
* `coordinator`: the share of a core that scheduler and parameter server use with four workers.
* `traffic`: bytes that workers counted in an epoch, and those that docs/distributed.md predicts.

    python benchmarks/cluster.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from biggraph import api
from biggraph.config import make_config
from biggraph.dist.coordinator import Coordinator
from biggraph.dist.course import Plan
from biggraph.dist.session import Session
from biggraph.dist.status import Chronicle
from biggraph.log import MetricsLog, Reporter, align
from biggraph.scheduling.scheduler import BucketScheduler
from biggraph.schema import EntityType, GraphSchema, RelationType
from biggraph.storage import log as run_log
from biggraph.storage.files import FileRef
from biggraph.storage.records import Head, InitFacts, PartitionVersion, Work
from biggraph.storage.run import RunDirectory, read_state
from biggraph.storage.store import partition_path
from biggraph.storage.table import advance_chain, new_chain
from biggraph.types import Bucket


def main() -> None:
    """Measure, print JSON lines and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--edges", type=int, default=400_000)
    parser.add_argument("--workers", type=int, default=4, help="for the coordinator's share")
    parser.add_argument("--share-edges", type=int, default=2_000_000)
    parser.add_argument("--only", choices=["log", "scaling", "share", "traffic"])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if args.only in (None, "log"):
            rows += report("log", measure_log(Path(folder) / "log"))
        if args.only in (None, "scaling", "traffic"):
            graph = make_graph(Path(folder), args.edges)
        if args.only in (None, "scaling"):
            rows += report("scaling", measure_scaling(Path(folder), graph, args.repeats))
        if args.only in (None, "share"):
            larger = make_graph(Path(folder), args.share_edges, name="larger")
            share = measure_share(Path(folder), larger, args.workers)
            rows += report("coordinator", share)
        if args.only in (None, "traffic"):
            rows += report("traffic", measure_traffic(Path(folder), graph))
    print(align(rows, header=["measurement", "figure", "value"]), file=sys.stderr)


def report(name: str, values: dict[str, float]) -> list[tuple[str, str, float]]:
    """Print one JSON line, and return its rows of the table."""
    line = {"benchmark": "cluster", "measurement": name, "load": os.getloadavg()[0], **values}
    print(json.dumps(line), flush=True)
    return [(name, figure, float(value)) for figure, value in values.items()]


def measure_log(folder: Path, partitions: int = 128, commits: int = 300) -> dict[str, float]:
    """Return medians in milliseconds for a coordinator with a full grid of buckets."""
    schema = GraphSchema(
        (EntityType("entity", (1,) * partitions),), (RelationType("edge", "entity", "entity"),)
    )
    buckets = {Bucket(i, j): 1 for i in range(partitions) for j in range(partitions)}
    facts = InitFacts(schema, "graph", 2, True, 0.1, 0, buckets)
    needs, times = schema.needs(buckets), {"acquire": [], "commit": [], "write": []}
    with RunDirectory.create(folder, make_config({}), facts) as run:
        session = _lone_session(run, needs, folder)
        session.begin()
        chains = {key: new_chain(key) for key in schema.partition_keys()}
        for _ in range(commits):
            start = time.perf_counter()
            grant, _ = session.acquire()
            times["acquire"].append(time.perf_counter() - start)
            work = _pretend(run, session, grant.bucket, chains)
            session.finish([grant.bucket])
            start = time.perf_counter()
            session.commit(work)
            times["commit"].append(time.perf_counter() - start)
            times["write"].append(_write_alone(run, len(times["write"])))
    medians = {f"{name}_ms": 1e3 * statistics.median(found) for name, found in times.items()}
    return medians | {"commit_without_write_ms": medians["commit_ms"] - medians["write_ms"]}


def _lone_session(run: RunDirectory, needs: dict, folder: Path) -> Session:
    def schedule(state: object) -> BucketScheduler:
        return BucketScheduler(sorted(needs), needs, affinity=True)

    chronicle = Chronicle(MetricsLog(folder / "metrics.jsonl"), Reporter(quiet=True), 1)
    coordinator = Coordinator(
        run, Plan(1, 0, 0, [], 0), schedule, fingerprint="", ttl=60.0, parameters=None,
        chronicle=chronicle,
    )  # fmt: skip
    return Session(lambda r: coordinator.handle(r, time.monotonic()), "w", 1, "", needs)


def _pretend(run: RunDirectory, session: Session, bucket: Bucket, chains: dict) -> Work:
    """Return the work that training a bucket would come to; its files are a few bytes each."""
    heads = []
    for key in sorted(run.state.facts.schema.partitions_of(bucket)):
        chains[key] = advance_chain(chains[key], 1, bucket)
        base = session.heads[key].version if key in session.heads else 0
        name = partition_path(key, base + 1, session.fence)
        run.place.make_folder(name.rpartition("/")[0])
        run.place.put_if_absent(name, b"x")
        heads.append(
            Head(key, base, PartitionVersion(base + 1, FileRef(name, "0", 1), chains[key]))
        )
    parameters = f"relations/f{session.fence:06d}.h5"
    run.place.put_if_absent(parameters, b"x")
    ref = FileRef(parameters, "0", 1)
    return Work(1, (bucket,), tuple(heads), ref, None, 1, {"loss": 1.0, "edges": 1})


def _write_alone(run: RunDirectory, number: int) -> float:
    """Return the seconds that writing a record of the same size takes."""
    data = run.place.read(run_log.record_name(run.state.number - 1))
    start = time.perf_counter()
    run.place.put_if_absent(f"log/copy-{number}", data)
    return time.perf_counter() - start


def make_graph(folder: Path, edges: int, name: str = "graph", entities: int = 100_000) -> Path:
    """Import a skewed random graph in 8 partitions."""
    generator, relations = np.random.default_rng(0), 50
    ends = [(entities * generator.random(edges) ** 2).astype(np.int64) for _ in range(2)]
    table = pa.table(
        {
            "head": [f"e{i}" for i in ends[0]],
            "relation": [f"r{i}" for i in generator.integers(relations, size=edges)],
            "tail": [f"e{i}" for i in ends[1]],
        }
    )
    api.import_graph(table, folder / name, partitions=8, quiet=True)
    return folder / name


def run_file(folder: Path, graph: Path, workers: int, epochs: int) -> Path:
    """Write a run file for so many single-thread workers that train bucket by bucket."""
    path = folder / f"run-{workers}-{time.monotonic_ns()}.toml"
    path.write_text(
        f'[graph]\npath = "{graph}"\n[model]\ndimension = 100\n'
        "[negatives]\nin_batch = 50\nuniform = 200\nreservoir = 0\n"
        f'[train]\nepochs = {epochs}\nthreads = 1\nmemory = "40MiB"\n'
        f'[optimizer]\nname = "adagrad_row"\n[cluster]\nworkers = {workers}\n'
        f'[checkpoint]\npath = "{path.with_suffix("")}"\n'
    )
    return path


def train(path: Path) -> Path:
    """Run `biggraph train` on a run file, and return its run directory."""
    command = [sys.executable, "-m", "biggraph", "train", str(path), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path.with_suffix("")


def epoch_lines(run: Path) -> list[dict]:
    """Return the epochs of a run as its metrics have them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def measure_scaling(folder: Path, graph: Path, repeats: int) -> dict[str, float]:
    """Return edges per second with one and with two workers, and the median of their ratios.

    The first epoch of each run is left out: it pays for starting processes and first compilation.
    """
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, found in rates.items():
            lines = epoch_lines(train(run_file(folder, graph, workers, epochs=4)))
            found.append(statistics.median(line["edges_per_s"] for line in lines[1:]))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "one_worker_edges_per_s": statistics.median(rates[1]),
        "two_workers_edges_per_s": statistics.median(rates[2]),
        "ratio": statistics.median(ratios),
    }


def measure_share(folder: Path, graph: Path, workers: int) -> dict[str, float]:
    """Return the share of a core that the coordinator's process uses while workers train."""
    path = run_file(folder, graph, workers, epochs=1)
    path.write_text(path.read_text().replace(f"workers = {workers}", "workers = 1"))
    begin = [sys.executable, "-m", "biggraph"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    coordinator = subprocess.Popen([*begin, "coordinator", str(path)], **quiet)
    crowd = [
        subprocess.Popen([*begin, "worker", str(path), "--name", f"w{i}"], **quiet)
        for i in range(workers)
    ]
    samples: list[tuple[float, float, int]] = []
    watcher = threading.Thread(target=_sample, args=(coordinator.pid, path, workers, samples))
    watcher.start()
    for process in (*crowd, coordinator):
        if process.wait():
            raise SystemExit(f"{process.args}: ended with {process.returncode}")
    watcher.join()
    (first, used_first, before), (last, used_last, after) = samples[0], samples[-1]
    share = (used_last - used_first) / (last - first)
    return {
        "workers": workers,
        "share_of_a_core": share,
        "seconds": last - first,
        "commits_per_s": (after - before) / (last - first),
        "processor_ms_per_commit": 1e3 * (used_last - used_first) / (after - before),
    }


def _sample(pid: int, path: Path, workers: int, samples: list[tuple[float, float, int]]) -> None:
    """Note time, processor time and commits of a coordinator.

    From the first commit of every worker on, so that none still joins, until the epoch ends: what
    a process needs to begin and to end is no share of the work between.
    """
    process, metrics = psutil.Process(pid), path.with_suffix("") / "metrics.jsonl"
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        text = metrics.read_text() if metrics.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        commits = [line for line in lines if line["event"] == "commit"]
        if any(line["event"] == "epoch" for line in lines):
            return
        if len({line["worker"] for line in commits}) == workers:
            used = process.cpu_times()
            samples.append((time.perf_counter(), used.user + used.system, len(commits)))
        time.sleep(0.2)


def measure_traffic(folder: Path, graph: Path) -> dict[str, float]:
    """Return the bytes of an epoch as counted, and as they follow from the log."""
    run = train(run_file(folder, graph, workers=2, epochs=2))
    state, counted = read_state(run), epoch_lines(run)[-1]
    commits = [body for body in _commits(run) if body["work"]["epoch"] == 2]
    facts = state.facts
    row_bytes = 4 * (facts.dimension + (1 if facts.row_wise else facts.dimension))
    saved = sum(
        facts.schema.entity_type(key).counts[index] * row_bytes
        for body in commits
        for key, index in (head["key"] for head in body["work"]["partitions"])
    )
    relations = 50 * 2 * 2 * facts.dimension * 4  # values and sums, of both sides
    return {
        "written_counted": counted["bytes_written"],
        "written_predicted": saved + len(commits) * relations,
        "read_counted": counted["bytes_read"],
        "exchanged_counted": counted["bytes_exchanged"],
        "exchanges": counted["bytes_exchanged"] / (2 * relations),
    }


def _commits(run: Path) -> list[dict]:
    records = [json.loads(path.read_text()) for path in sorted((run / "log").glob("[0-9]*"))]
    return [record["body"] for record in records if record["kind"] == "commit"]


if __name__ == "__main__":
    main()
