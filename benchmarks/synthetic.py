"""A skewed graph with planted structure, the same for everybody who gives the same numbers.

Entities are drawn by Zipf's law (density of rank k ~ k^-0.8) and belong to communities. Relation r
leads from community c to community c + 37 (r + 1), modulo their number, so that a model with an
operator for each relation can learn it; a share of the edges is noise, whose tails are drawn from
all entities. Edges are unique. Written as train, valid and test files of TSV or Parquet:

    python benchmarks/synthetic.py --out data/synthetic --format tsv parquet
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

EXPONENT = 0.8
SHIFT = 37
SEED_NAMES, SEED_EDGES = 1, 2


def triples(
    edges: int, *, entities: int, relations: int, communities: int, noise: float, seed: int = 0
) -> np.ndarray:
    """Return unique edges in random order.

    Args:
        edges: how many.
        entities: how many there may be; the rarest may not occur.
        relations: how many.
        communities: of entities, all of about the same size.
        noise: share of the edges that are drawn without regard to communities.
        seed: of everything random.

    Returns:
        int32 [edges, 3]: head, relation, tail.
    """
    if edges > relations * entities**2 / (8 * communities):  # drawing unique ones would be slow
        raise SystemExit(f"{edges} edges need more entities than {entities}, or fewer communities")
    generator = np.random.default_rng([seed, SEED_EDGES])
    found = np.empty(0, dtype=np.int64)
    while len(found) < edges:
        wanted = int(1.2 * (edges - len(found))) + 1000
        drawn = _draw(generator, wanted, entities, relations, communities, noise)
        found = np.unique(np.concatenate([found, drawn]))
    generator.shuffle(found)
    found = found[:edges]
    result = np.empty((edges, 3), dtype=np.int32)
    result[:, 0], rest = np.divmod(found, relations * entities)
    result[:, 1], result[:, 2] = np.divmod(rest, entities)
    return result


def _draw(
    generator: np.random.Generator,
    count: int,
    entities: int,
    relations: int,
    communities: int,
    noise: float,
) -> np.ndarray:
    """Return edges as numbers (head * relations + relation) * entities + tail, some twice."""
    head = _zipf(generator, count, entities)
    relation = np.minimum(_zipf(generator, count, relations), relations - 1)
    community = (head + SHIFT * (relation + 1)) % communities
    # The entity of rank k is in community k modulo their number.
    tail = _zipf(generator, count, -(-entities // communities)) * communities + community
    anywhere = (generator.random(count) < noise) | (tail >= entities)
    tail[anywhere] = _zipf(generator, int(anywhere.sum()), entities)
    return (head * relations + relation) * entities + tail


def _zipf(generator: np.random.Generator, count: int, ranks: int) -> np.ndarray:
    """Return ranks from 0, by the inverse of the continuous law's distribution function."""
    power = 1 - EXPONENT
    drawn = (1 + generator.random(count) * ((ranks + 1) ** power - 1)) ** (1 / power)
    return np.minimum(drawn.astype(np.int64) - 1, ranks - 1)


def table(edges: np.ndarray, entities: int, seed: int = 0) -> pa.Table:
    """Return edges with names: "e17", "r3"; a name's number says nothing of its degree."""
    numbers = np.random.default_rng([seed, SEED_NAMES]).permutation(entities)
    names = pa.array(np.char.add("e", numbers.astype(str)).tolist())
    kinds = pa.array([f"r{number}" for number in range(int(edges[:, 1].max(initial=0)) + 1)])
    columns = [source.take(pa.array(edges[:, i])) for i, source in enumerate((names, kinds, names))]
    return pa.table(columns, names=["head", "relation", "tail"])


def write(rows: pa.Table, path: Path) -> None:
    """Write TSV without a header, or Parquet that the plainest readers understand."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(rows, path, compression="none", use_dictionary=False)
    else:
        options = pyarrow.csv.WriteOptions(
            include_header=False, delimiter="\t", quoting_style="none"
        )
        pyarrow.csv.write_csv(rows, path, write_options=options)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe the graph."""
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=10_000_000, help="of the train split")
    parser.add_argument("--relations", type=int, default=10)
    parser.add_argument("--communities", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)


def of_options(asked: argparse.Namespace, edges: int) -> pa.Table:
    """Return the named edges of the graph that options describe."""
    drawn = triples(
        edges, entities=asked.entities, relations=asked.relations,
        communities=asked.communities, noise=asked.noise, seed=asked.seed,
    )  # fmt: skip
    return table(drawn, asked.entities, asked.seed)


def main() -> None:
    """Write the splits, and print what they are like as a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--heldout", type=int, default=50_000, help="of valid, and of test")
    parser.add_argument("--out", type=Path, default=Path("data/synthetic"))
    parser.add_argument("--format", nargs="+", choices=["tsv", "parquet"], default=["parquet"])
    asked = parser.parse_args()
    began = time.perf_counter()
    rows = of_options(asked, asked.edges + 2 * asked.heldout)
    asked.out.mkdir(parents=True, exist_ok=True)
    sizes = {"train": asked.edges, "valid": asked.heldout, "test": asked.heldout}
    start = 0
    for split, size in sizes.items():
        for suffix in asked.format:
            write(rows.slice(start, size), asked.out / f"{split}.{suffix}")
        start += size
    ends = pa.chunked_array(rows["head"].chunks + rows["tail"].chunks)
    degrees = ends.value_counts().field("counts").to_numpy()
    facts = {
        "out": str(asked.out), **sizes, "entities": len(degrees), "relations": asked.relations,
        "degree_max": int(degrees.max()), "degree_median": float(np.median(degrees)),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
