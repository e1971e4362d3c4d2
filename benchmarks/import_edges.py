"""How fast does import read a large edge list, and in how much memory?

Writes a synthetic file of Zipf-skewed edges with names of 16 to 20 bytes, imports it in a child
process under a memory budget, and prints one JSON line with rows per second and the child's peak
resident memory:

    python benchmarks/import_edges.py --edges 10000000 --format tsv --partitions 8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

CHILD = """
import json, sys
from biggraph.graph.importer import import_graph
from biggraph.graph.spec import ImportSpec

source, out, options = sys.argv[1:]
report = import_graph([source], out, spec=ImportSpec(**json.loads(options)))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": report.seconds, "rows": report.rows["train"],
                  "rows_per_s": report.rows_per_s, "entities": report.entities["entity"],
                  "peak_rss_mib": int(peak.split()[1]) // 1024}))
"""


def names_of(ids: np.ndarray) -> pa.Array:
    """Return names such as "item:000000000042" and longer ones for every fourth id."""
    digits = pc.utf8_lpad(pc.cast(pa.array(ids), pa.string()), 11, "0")
    prefix = pc.if_else(pa.array(ids % 4 == 0), "entity:en", "item:")
    return pc.binary_join_element_wise(prefix, digits, "")


def edges(count: int, entities: int, relations: int, seed: int) -> pa.Table:
    """Return edges whose ends follow a power law and whose relations do too."""
    generator = np.random.default_rng(seed)
    ends = [(entities * generator.random(count) ** 3).astype(np.int64) for _ in range(2)]
    scramble = [(end * 2654435761 + 12345) % entities for end in ends]
    kinds = (relations * generator.random(count) ** 2).astype(np.int64)
    rel = pc.binary_join_element_wise("relation/", pc.cast(pa.array(kinds), pa.string()), "")
    columns = [names_of(scramble[0]), rel, names_of(scramble[1])]
    return pa.table(columns, names=["head", "relation", "tail"])


def write_source(path: Path, count: int, entities: int, relations: int) -> None:
    """Write the synthetic edges piece by piece."""
    is_parquet = path.suffix == ".parquet"
    options = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    schema = edges(1, entities, relations, 0).schema
    with (
        pyarrow.parquet.ParquetWriter(path, schema)
        if is_parquet
        else pyarrow.csv.CSVWriter(str(path), schema, write_options=options)
    ) as writer:
        for seed, start in enumerate(range(0, count, 1_000_000)):
            writer.write_table(edges(min(1_000_000, count - start), entities, relations, seed))


def main() -> None:
    """Run one import and print its measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, default=0, help="0: a fifth of the edges")
    parser.add_argument("--relations", type=int, default=200)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--memory", type=int, default=1 << 30, help="bytes")
    parser.add_argument("--format", choices=["tsv", "parquet"], default="tsv")
    parser.add_argument("--holdout", type=float, default=0.0, help="fraction for valid and test")
    arguments = parser.parse_args()
    options = {"partitions": arguments.partitions, "memory": arguments.memory}
    if arguments.holdout:
        options["holdout"] = dict.fromkeys(("valid", "test"), arguments.holdout)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        source = Path(folder) / f"edges.{arguments.format}"
        entities = arguments.entities or max(arguments.edges // 5, 1)
        write_source(source, arguments.edges, entities, arguments.relations)
        command = [sys.executable, "-c", CHILD, str(source), f"{folder}/graph", json.dumps(options)]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = json.loads(child.stdout)
        result["source_bytes"] = source.stat().st_size
    result["cpu_seconds"] = round(usage.ru_utime + usage.ru_stime, 1)
    result |= {"load": os.getloadavg()[0], "cpus": os.cpu_count(), "asked": vars(arguments)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
