"""PyTorch-BigGraph's importer, in its own environment: rows a second inside it, as a JSON line.

The release 1.0.0 reads only text and appends edges one at a time. The last sources are several
times as fast: they append them in blocks of 500,000, and read Parquet with the `parquet` package.
The same is done here around the released code, unless `--as-released` is given.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from torchbiggraph.converters import import_from_tsv as importer
from torchbiggraph.edgelist import EdgeList
from torchbiggraph.entitylist import EntityList

HEAD, RELATION, TAIL = 0, 1, 2
BLOCK = 500_000


class Row(tuple):
    """A row of a Parquet file where the importer expects a line of text."""

    __slots__ = ()

    def split(self):
        """Return the values."""
        return self


class ParquetSource:
    """What the importer needs of a path, for a Parquet file."""

    def __init__(self, path):
        self.path = path

    @contextlib.contextmanager
    def open(self, _mode):
        """Give the rows as lines."""
        import parquet

        with self.path.open("rb") as file:
            yield (Row(row) for row in parquet.reader(file, columns=["head", "relation", "tail"]))


def append_in_blocks(source, _out, storage, entities, relation_types, relations, dynamic, *columns):
    """Stand in for `generate_edge_path_files`."""
    head, tail, relation = columns
    storage.prepare()
    appenders, blocks = {}, {}

    def flush(bucket):
        data = torch.tensor(blocks[bucket], dtype=torch.long).t()
        ends = [EntityList.from_tensor(data[i]) for i in (0, 1)]
        appenders[bucket].append_edges(EdgeList(*ends, data[2]))
        blocks[bucket].clear()

    with source.open("rt") as lines, contextlib.ExitStack() as opened:
        for line in lines:
            words = line.split()
            kind = relation_types.get_id(words[relation])
            types = relations[0 if dynamic else kind]
            lhs, lhs_offset = entities[types.lhs].get_partition(words[head])
            rhs, rhs_offset = entities[types.rhs].get_partition(words[tail])
            bucket = lhs, rhs
            if bucket not in appenders:
                appender = storage.save_edges_by_appending(lhs, rhs)
                appenders[bucket], blocks[bucket] = opened.enter_context(appender), []
            block = blocks[bucket]
            block.append((lhs_offset, rhs_offset, kind))
            if len(block) >= BLOCK:
                flush(bucket)
        for bucket, block in blocks.items():
            if block:
                flush(bucket)


def main():
    """Import one file, and say how fast."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path, help="JSON with entities, relations and paths")
    parser.add_argument("source", type=Path, help="head, relation, tail")
    parser.add_argument("--as-released", action="store_true")
    asked = parser.parse_args()
    if not asked.as_released:
        importer.generate_edge_path_files = append_in_blocks
    is_parquet = asked.source.suffix == ".parquet"
    source = ParquetSource(asked.source) if is_parquet else asked.source
    config = json.loads(asked.config.read_text())
    entities, relations, entity_path, edge_paths, dynamic = importer.parse_config_partial(config)
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        importer.convert_input_data(
            entities, relations, entity_path, edge_paths, [source], HEAD, TAIL, RELATION,
            dynamic_relations=dynamic,
        )  # fmt: skip
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
