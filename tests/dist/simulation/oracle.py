"""What the log of a run has to come to, found without `RunState`, from the bodies of its records.

`replay` reads the raw records; `check` compares what training, storage and parameter server made of
them with arithmetic done anew, bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from biggraph.storage.store import initial_table
from biggraph.types import Bucket, PartitionKey
from tests.dist.simulation.job import (
    RELATIONS,
    Job,
    Rows,
    parse_plain,
    relation_change,
    score,
    train_tables,
)


@dataclass
class Replay:
    """What the records say, and what their arithmetic comes to."""

    tables: dict[PartitionKey, tuple[Rows, Rows]]
    relations: dict[str, Rows]
    wrong: list[str] = field(default_factory=list)
    commits: dict[int, tuple[int, list[Bucket]]] = field(default_factory=dict)  # by fence
    counted: Counter[tuple[int, Bucket]] = field(default_factory=Counter)
    heads: dict[PartitionKey, dict[str, Any]] = field(default_factory=dict)
    live: dict[int, str] = field(default_factory=dict)
    expired: list[tuple[int, str]] = field(default_factory=list)
    fence: int = 0


def replay(job: Job, files: dict[str, bytes]) -> Replay:
    """Replay the log, doing again whatever it says was done."""
    names = sorted(name for name in files if name.startswith("log/") and ".tmp" not in name)
    tables = {}
    for key in job.schema.partition_keys():
        table = initial_table(job.facts, key)
        tables[key] = (table.rows.numpy().copy(), table.state.numpy().copy())
    zeros = {name: np.zeros(RELATIONS, np.float32) for name in ("operator", "optimizer.operator")}
    found = Replay(tables, zeros)
    for number, name in enumerate(names):
        record = json.loads(files[name])
        if name != f"log/{number:08d}" or record["number"] != number:
            found.wrong.append(f"{name} is not record {number}")
        apply(found, job, record["kind"], record["body"])
    return found


def apply(found: Replay, job: Job, kind: str, body: dict[str, Any]) -> None:
    """Take in one record."""
    fence = body.get("next", body.get("fence", 0))
    if kind in ("lease", "commit", "resumed", "relations"):
        if fence <= found.fence:
            found.wrong.append(f"fence {fence} of a {kind} is not above {found.fence}")
        found.fence = max(fence, found.fence)
    if kind == "lease":
        found.live = {f: w for f, w in found.live.items() if w != body["worker"]}
        found.live[fence] = body["worker"]
    elif kind == "expired":
        found.expired.append((fence, body["reason"]))
        if found.live.pop(fence, None) is None:
            found.wrong.append(f"lease {fence} expired, but was not live")
    elif kind == "commit":
        worker = found.live.pop(body["fence"], None)
        if worker is None:
            found.wrong.append(f"a commit under fence {body['fence']}, which is not live")
        found.live[fence] = worker or "?"
        _commit(found, job, body["fence"], body["work"])
    elif kind == "evaluation":
        rows = {key: rows for key, (rows, _) in found.tables.items()}
        wanted = score(rows, {"operator": found.relations["operator"]})
        if body["metrics"]["mrr"] != wanted:
            found.wrong.append(f"epoch {body['epoch']} was validated on other tables")


def _commit(found: Replay, job: Job, fence: int, work: dict[str, Any]) -> None:
    epoch, buckets = work["epoch"], [Bucket(*bucket) for bucket in work["buckets"]]
    found.commits[fence] = (epoch, buckets)
    touched = set()
    for bucket in buckets:
        found.counted[epoch, bucket] += 1
        used = {key: found.tables[key] for key in job.needs[bucket]}
        touched |= used.keys()
        for step in range(job.steps):
            train_tables(used, (epoch, *bucket, step))
            found.relations["operator"] += relation_change(epoch, bucket)
            found.relations["optimizer.operator"] += 1
    changed = set()
    for head in work["partitions"]:
        key, before = PartitionKey(*head["key"]), found.heads.get(PartitionKey(*head["key"]))
        changed.add(key)
        if head["base"] != (before["version"] if before else 0):
            found.wrong.append(f"commit {fence}: {key} does not follow its last version")
        found.heads[key] = head["saved"]
    if not touched <= changed:
        found.wrong.append(f"commit {fence} names {sorted(changed)}, changed {sorted(touched)}")


def read(data: bytes) -> dict[str, Rows]:
    """Return the arrays of a file."""
    slots, _ = parse_plain(io.BytesIO(data), "", len(data))
    return {
        name: np.frombuffer(data, s.dtype, int(np.prod(s.shape)), s.offset).reshape(s.shape)
        for name, s in slots.items()
    }


def check(found: Replay, job: Job, files: dict[str, bytes], finished: bool) -> list[str]:
    """Return what is wrong with a run."""
    wrong = list(found.wrong)
    expected = {
        (epoch, bucket) for epoch in range(1, job.config.train.epochs + 1) for bucket in job.needs
    }
    if any(count > 1 for count in found.counted.values()):
        wrong.append(f"committed more than once: {found.counted.most_common(3)}")
    if finished and found.counted.keys() != expected:
        wrong.append(f"never committed: {sorted(expected - found.counted.keys())[:3]}")
    for key, saved in found.heads.items():
        data = files.get(saved["file"]["path"])
        if data is None:
            wrong.append(f"{saved['file']['path']} is named and missing")
            continue
        if hashlib.sha256(data).hexdigest() != saved["file"]["digest"]:
            wrong.append(f"{saved['file']['path']} is not what was committed")
        arrays, (rows, state) = read(data), found.tables[key]
        if not (np.array_equal(arrays["embeddings"], rows)):
            wrong.append(f"{key}: its rows are not those of the buckets committed")
        if not (np.array_equal(arrays["optimizer"], state)):
            wrong.append(f"{key}: its optimizer state is not that of the buckets committed")
    done: dict[int, list[tuple[int, Bucket]]] = {}
    for fence, epoch, bucket in job.trainings:
        done.setdefault(fence, []).append((epoch, bucket))
    for fence, (epoch, buckets) in found.commits.items():
        if done.get(fence, []) != [(epoch, bucket) for bucket in buckets]:
            wrong.append(f"commit {fence} says {buckets}, trained was {done.get(fence)}")
    lost = [fence for fence in job.acknowledged if fence not in found.commits]
    wrong += [f"commit {fence} was acknowledged and is lost" for fence in lost]
    wrong += [f"lease {f} {why}" for f, why in found.expired if why.startswith("refused")]
    return wrong
