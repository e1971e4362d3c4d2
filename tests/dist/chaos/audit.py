"""Replays the log of a run by itself, and says what cannot be true.

Shares no code with biggraph: it reads JSON and HDF5, and knows the rules from docs/checkpoints.md.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path

import h5py
import numpy as np


def records(run: Path) -> list[dict]:
    """Return the records of a log in order."""
    names = sorted(path for path in (run / "log").glob("*") if path.name.isdigit())
    return [json.loads(path.read_text()) for path in names]


def leases(run: Path) -> dict[int, str]:
    """Return the worker of each lease of the log that has not ended, by fence."""
    live: dict[int, str] = {}
    for record in records(run):
        body, kind = record["body"], record["kind"]
        if kind == "lease":
            live = {fence: name for fence, name in live.items() if name != body["worker"]}
            live[body["fence"]] = body["worker"]
        elif kind == "expired":
            del live[body["fence"]]
        elif kind == "commit":
            live[body["next"]] = live.pop(body["fence"])
    return live


def expired(run: Path) -> list[str]:
    """Return why leases ended without a commit."""
    return [record["body"]["reason"] for record in records(run) if record["kind"] == "expired"]


def committed(run: Path) -> int:
    """Return the number of buckets committed."""
    commits = [record["body"]["work"] for record in records(run) if record["kind"] == "commit"]
    return sum(len(work["buckets"]) for work in commits)


def audit(run: Path, epochs: int, kept: Path | None = None) -> list[str]:
    """Return what is wrong with a finished run; nothing where all is well.

    Args:
        run: directory of the run.
        epochs: that it should have.
        kept: folder with the files of relation parameters that were removed; None: they are
            not compared.
    """
    log = records(run)
    problems = [
        f"record {number}: its number is {record['number']}"
        for number, record in enumerate(log)
        if record["number"] != number
    ]
    problems += _check_fences(log)
    problems += _check_buckets(log, epochs)
    problems += _check_files(run, log)
    if kept is not None:
        problems += _check_relations(run, kept, log)
    return problems


def _check_fences(log: list[dict]) -> list[str]:
    """Require that fences rise, and that only a live lease commits or ends."""
    problems, highest, live = [], 0, {}
    for record in log:
        number, kind, body = record["number"], record["kind"], record["body"]
        new = body.get("next") if kind == "commit" else None
        if kind in ("lease", "resumed", "relations"):
            new = body["fence"]
        if new is not None:
            if new <= highest:
                problems.append(f"record {number}: fence {new} after {highest}")
            highest = max(highest, new)
        if kind in ("commit", "expired") and body["fence"] not in live:
            problems.append(f"record {number}: {kind} under fence {body['fence']}, not live")
        if kind == "lease":
            live = {fence: name for fence, name in live.items() if name != body["worker"]}
            live[body["fence"]] = body["worker"]
        if kind == "expired":
            live.pop(body["fence"], None)
        if kind == "commit":
            live[body["next"]] = live.pop(body["fence"], None)
    return problems


def _check_buckets(log: list[dict], epochs: int) -> list[str]:
    """Require each bucket of each epoch exactly once, and unbroken versions and chains."""
    wanted = {tuple(entry[:2]) for entry in _bucket_edges(log[0])}
    edges = {tuple(entry[:2]): entry[2] for entry in _bucket_edges(log[0])}
    seen: Counter[tuple] = Counter()
    problems, heads, chains = [], {}, {}
    for record in log:
        if record["kind"] != "commit":
            continue
        work, number = record["body"]["work"], record["number"]
        for lhs, rhs in work["buckets"]:
            seen[work["epoch"], lhs, rhs] += 1
            for index in {lhs, rhs}:
                chain = chains.get(index) or _digest(f"entity/{index}")
                chains[index] = _digest(f"{chain} {work['epoch']} {lhs} {rhs}")
        for head in work["partitions"]:
            index, saved = head["key"][1], head["saved"]
            if head["base"] != heads.get(index, 0) or saved["version"] <= head["base"]:
                problems.append(f"record {number}: partition {index} was forked")
            if saved["chain"] != chains.get(index):
                problems.append(f"record {number}: partition {index} has another history")
            heads[index] = saved["version"]
        if work["edges"] != sum(edges[tuple(bucket)] for bucket in work["buckets"]):
            problems.append(f"record {number}: {work['edges']} edges")
    expected = Counter({(epoch, *b): 1 for epoch in range(1, epochs + 1) for b in wanted})
    if seen != expected:
        problems.append(f"lost {dict(expected - seen)}, too often {dict(seen - expected)}")
    return problems


def _bucket_edges(init: dict) -> list[list[int]]:
    return init["body"]["facts"]["buckets"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_files(run: Path, log: list[dict]) -> list[str]:
    """Require the last version of each partition, as it was when it was committed, and no more."""
    last = {}
    for record in log:
        if record["kind"] == "commit":
            for head in record["body"]["work"]["partitions"]:
                last[head["key"][1]] = head["saved"]["file"]
    problems = []
    for ref in last.values():
        path = run / ref["path"]
        if not path.exists():
            problems.append(f"{ref['path']}: missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != ref["digest"]:
            problems.append(f"{ref['path']}: changed")
    return problems


def _check_relations(run: Path, kept: Path, log: list[dict]) -> list[str]:
    """Require that each base is, bit for bit, the one before and the deltas between, in order."""
    problems, total = [], None
    for record in log:
        body = record["body"]
        if record["kind"] == "commit":
            (delta,) = read(_find(run, kept, body["work"]["delta"]["path"])).values()
            total = _sum(total, delta)
        if record["kind"] == "relations":
            base = read(_find(run, kept, body["relations"]["path"]))
            if total is not None and not same(total, base):
                problems.append(f"record {record['number']}: not the sum of the deltas")
            total = base
    return problems


def _sum(total: dict[str, np.ndarray], delta: np.ndarray) -> dict[str, np.ndarray]:
    """Add a flat delta to arrays that follow each other in it in the order of their names."""
    ends = np.cumsum([total[name].size for name in sorted(total)])
    assert ends[-1] == len(delta)
    parts = dict(zip(sorted(total), np.split(delta, ends[:-1]), strict=True))
    return {name: array + parts[name].reshape(array.shape) for name, array in total.items()}


def _find(run: Path, kept: Path, name: str) -> Path:
    path = run / name
    return path if path.exists() else kept / path.name


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file."""
    with h5py.File(path) as file:
        return {name: array[...] for name, array in _arrays(file)}


def _arrays(group: h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    found = []
    group.visititems(
        lambda name, node: found.append((name, node)) if hasattr(node, "shape") else None
    )
    return found


def last_relations(run: Path) -> dict[str, np.ndarray]:
    """Return the relation parameters of a run's last base."""
    bases = [record["body"] for record in records(run) if record["kind"] == "relations"]
    return read(run / bases[-1]["relations"]["path"])


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Return whether both have the same arrays, bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )
