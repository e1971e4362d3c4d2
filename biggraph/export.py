r"""Embeddings with their names, in formats that other programs read.

Writes block by block under a temporary name and renames at the end. Knows formats; nothing of
training. Formats of `out`:

    parquet   folder: entities/TYPE/part-P.parquet (name, embedding: fixed-size list of float32),
              relations.parquet (relation, side, operator, parameter, values)
    npy       folder: TYPE.npy (float32 [count, D]), TYPE.names.txt (line i names row i)
    tsv       folder: TYPE.tsv (name and D numbers, separated by tabs)
    word2vec  file: "count D", then name and D numbers, separated by blanks

Names in .txt and .tsv: backslash, tab, line feed and carriage return become \\, \t, \n, \r.
Names in word2vec: white space becomes %20 and the like, as does a % that would be read so
(`urllib.parse.unquote` undoes it); with more than one entity type, "TYPE:" stands before each.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from biggraph.errors import InputError, StorageError, did_you_mean
from biggraph.evaluate.opening import graph_of, model_of
from biggraph.graph.graph import Graph
from biggraph.model.model import Model
from biggraph.schema import EntityType
from biggraph.storage import fsops
from biggraph.storage.checkpoint import Checkpoint
from biggraph.types import FloatArray, PartitionKey

_BLOCK = 32 * 2**20  # bytes of rows written at once
_ESCAPES = (("\\", r"\\"), ("\t", r"\t"), ("\n", r"\n"), ("\r", r"\r"))
_SPACE = r"[\s\v\pZ\x1c-\x1f\x{85}]|%[0-9A-Fa-f]{2}"  # for RE2; finds at least what _QUOTED does
_QUOTED = re.compile(r"\s|%(?=[0-9A-Fa-f]{2})")


def export(
    checkpoint_path: str | Path,
    out: str | Path,
    *,
    format: str,
    graph: str | Path | None = None,
    snapshot: str | None = None,
    entity_types: Sequence[str] | None = None,
) -> None:
    """Write the embeddings of a checkpoint with their names.

    Args:
        checkpoint_path: run directory.
        out: file or folder to make, see the formats above.
        format: "parquet", "npy", "tsv" or "word2vec".
        graph: graph directory, if it moved since training.
        snapshot: a kept checkpoint by name; None: the best, else the latest.
        entity_types: only these; None: all.

    Raises:
        InputError: unknown format or entity type; the graph moved or is another one.
        FormatError: checkpoint or graph are damaged.
        StorageError: `out` is occupied, or the file system refused.
    """
    if format not in FORMATS:
        raise InputError(f'unknown format "{format}"{did_you_mean(format, FORMATS)}')
    out = Path(out)
    _refuse_occupied(out)
    checkpoint = Checkpoint.open(checkpoint_path, snapshot)
    its_graph = graph_of(checkpoint, graph)
    schema = its_graph.schema
    names = [entity.name for entity in schema.entities] if entity_types is None else entity_types
    types = tuple(schema.entity_type(name) for name in dict.fromkeys(names))
    source = _Source(checkpoint, its_graph, model_of(checkpoint, its_graph), types)
    fsops.make_folder(out.absolute().parent)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}{fsops.TEMPORARY}")
    try:
        with fsops.operation("write", temporary):
            FORMATS[format](source, temporary)
            _sync(temporary)
        with fsops.operation("rename", out):
            temporary.rename(out)
        fsops.sync_folder(out.absolute().parent)
    except BaseException:
        _remove(temporary)
        raise


@dataclass(frozen=True)
class _Source:
    """What is exported."""

    checkpoint: Checkpoint
    graph: Graph
    model: Model
    types: tuple[EntityType, ...]

    def partition(self, key: PartitionKey) -> Iterator[tuple[pa.Array, FloatArray]]:
        """Yield names and rows of every block of a partition, in order."""
        count, dimension = self.checkpoint.shape(key)
        size = max(1, _BLOCK // (4 * dimension))
        for start in range(0, count, size):
            block = slice(start, min(start + size, count))
            yield self.graph.names(key)[block], self.checkpoint.rows(key, block)

    def blocks(self, entity: EntityType) -> Iterator[tuple[pa.Array, FloatArray]]:
        """Yield names and rows of every block of a type, in order."""
        for index in range(entity.partitions):
            yield from self.partition(PartitionKey(entity.name, index))


def _write_parquet(source: _Source, folder: Path) -> None:
    vector = pa.list_(pa.float32(), source.model.dimension)
    schema = pa.schema([("name", pa.string()), ("embedding", vector)])
    for entity in source.types:
        home = folder / "entities" / entity.name
        home.mkdir(parents=True)
        for index in range(entity.partitions):
            path = home / f"part-{index}.parquet"
            with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
                for names, rows in source.partition(PartitionKey(entity.name, index)):
                    values = pa.array(rows.ravel())
                    vectors = pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
                    columns = [names.cast(pa.string()), vectors]
                    writer.write_table(pa.table(columns, schema=schema))
    pq.write_table(_relation_table(source), folder / "relations.parquet")


def _relation_table(source: _Source) -> pa.Table:
    """Return one row for each parameter of each operator of each relation."""
    values = source.model.arrays()
    rows = [
        {
            "relation": source.graph.schema.relations[relation].name,
            "side": str(end),
            "operator": group.operator,
            "parameter": own,
            "values": values[name][place].ravel(),
        }
        for group in source.model.groups
        for end in source.model.operator_sides()
        for own, name in source.model.parameter_names(group, end).items()
        for place, relation in enumerate(group.relations)
    ]
    texts = [(column, pa.string()) for column in ("relation", "side", "operator", "parameter")]
    return pa.Table.from_pylist(rows, pa.schema([*texts, ("values", pa.list_(pa.float32()))]))


def _write_npy(source: _Source, folder: Path) -> None:
    folder.mkdir()
    for entity in source.types:
        shape = (entity.count, source.model.dimension)
        array = np.lib.format.open_memmap(
            folder / f"{entity.name}.npy", mode="w+", dtype=np.float32, shape=shape
        )
        start = 0
        with (folder / f"{entity.name}.names.txt").open("wb") as file:
            for names, rows in source.blocks(entity):
                array[start : start + len(rows)] = rows
                start += len(rows)
                file.write(_joined(_escape(names)))
        array.flush()


def _write_tsv(source: _Source, folder: Path) -> None:
    folder.mkdir()
    for entity in source.types:
        with (folder / f"{entity.name}.tsv").open("wb") as file:
            for names, rows in source.blocks(entity):
                file.write(_lines(_escape(names), rows, "\t"))


def _write_word2vec(source: _Source, path: Path) -> None:
    count = sum(entity.count for entity in source.types)
    several = len(source.types) > 1
    with path.open("wb") as file:
        file.write(f"{count} {source.model.dimension}\n".encode())
        for entity in source.types:
            prefix = f"{entity.name}:" if several else ""
            for names, rows in source.blocks(entity):
                words = pc.binary_join_element_wise(prefix, names, "")
                file.write(_lines(_without_space(words), rows, " "))


FORMATS: dict[str, Callable[[_Source, Path], None]] = {
    "parquet": _write_parquet,
    "npy": _write_npy,
    "tsv": _write_tsv,
    "word2vec": _write_word2vec,
}


def _lines(names: pa.Array, rows: FloatArray, separator: str) -> bytes:
    """Return a line for each row: the name and shortest decimals that read back as the same."""
    numbers = pc.cast(pa.array(rows.ravel()), pa.string())
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    vectors = pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), numbers), separator)
    return _joined(pc.binary_join_element_wise(names, vectors, separator))


def _joined(lines: pa.Array) -> bytes:
    whole = pa.ListArray.from_arrays(pa.array([0, len(lines)], pa.int32()), lines)
    text: bytes = pc.binary_join(whole, "\n")[0].as_buffer().to_pybytes()
    return text + b"\n"


def _escape(names: pa.Array) -> pa.Array:
    for plain, escaped in _ESCAPES:
        names = pc.replace_substring(names, plain, escaped)
    return names.cast(pa.string())


def _without_space(words: pa.Array) -> pa.Array:
    found = pc.match_substring_regex(words, _SPACE)
    if not pc.any(found).as_py():
        return words
    quoted = [
        _QUOTED.sub(lambda match: quote(match[0]), word) for word in words.filter(found).to_pylist()
    ]
    return pc.replace_with_mask(words, found, pa.array(quoted, words.type))


def _refuse_occupied(out: Path) -> None:
    occupied = any(out.iterdir()) if out.is_dir() else out.exists() and out.stat().st_size > 0
    if occupied:
        raise StorageError(f"{out}: already there; choose another place or remove it first")


def _sync(path: Path) -> None:
    """Make what was written durable before it gets its name."""
    for written in [path] if path.is_file() else path.rglob("*"):
        if written.is_file():
            with written.open("rb") as file:
                fsops.sync(file, written)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
