"""The command line: one command, verbs named like the functions of `biggraph.api`.

Parses arguments, prints results on stdout and progress on stderr; does no work of its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from biggraph import api, cluster, describe
from biggraph.dist.leaving import leave_threads_behind
from biggraph.embeddings import Embeddings
from biggraph.errors import BigGraphError, ConfigError, FormatError
from biggraph.export import export as write_export
from biggraph.log import to_json
from biggraph.sections import parse_candidates, parse_size
from biggraph.train.local import local_name

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
)

T = TypeVar("T")
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result to FILE.")]
GraphPath = Annotated[
    Path | None, typer.Option("--graph", help="Graph directory, if it moved since training.")
]
SnapshotName = Annotated[
    str | None, typer.Option("--snapshot", help="A kept checkpoint; default: best, else latest.")
]
K = Annotated[int, typer.Option("-k", min=1, help="How many to print.")]
Checkpoint = Annotated[
    str, typer.Argument(help="Run directory made by `biggraph train`, or s3://bucket/prefix.")
]


class ExportFormat(StrEnum):
    """Formats that `biggraph export` writes."""

    PARQUET = "parquet"
    NPY = "npy"
    TSV = "tsv"
    WORD2VEC = "word2vec"


class Metric(StrEnum):
    """Similarities that `biggraph neighbors` ranks by."""

    COS = "cos"
    DOT = "dot"
    L2 = "l2"


def _example(text: str) -> str:
    return f"Example:  {text}"


@app.command("import", epilog=_example("biggraph import edges.tsv --out graph --holdout test=0.1"))
def import_(
    sources: Annotated[list[str], typer.Argument(help="Files, folders or globs: the train split.")],
    out: Annotated[Path, typer.Option(help="Graph directory to make.")],
    valid: Annotated[list[str], typer.Option(help="Sources of the validation split.")] = [],  # noqa: B006
    test: Annotated[list[str], typer.Option(help="Sources of the test split.")] = [],  # noqa: B006
    holdout: Annotated[
        str | None, typer.Option(help="Random splits instead: valid=0.05,test=0.05.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Names or positions: head,relation,tail[,weight].")
    ] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="Default: found out.")
    ] = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Slices an entity type.")] = None,
    memory: Annotated[str | None, typer.Option(help="Working memory, such as 1GiB.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of assignment and shuffle.")] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Report bad lines, do not stop.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing graph.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="Run file with entity types, relations and filters.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Shard entities into partitions and edges into buckets."""
    report = api.import_graph(
        sources,
        out,
        valid=valid,
        test=test,
        holdout=parse_holdout(holdout),
        columns=[part.strip() for part in columns.split(",")] if columns else None,
        header=header,
        partitions=partitions,
        memory=None if memory is None else parsed("--memory", parse_size, memory),
        seed=seed,
        skip_bad_lines=skip_bad_lines,
        overwrite=overwrite,
        config=config,
        quiet=quiet,
    )
    print(to_json(describe.import_values(report)) if as_json else describe.import_text(report))


@app.command(epilog=_example("biggraph train run.toml train.epochs=20 checkpoint.path=runs/a"))
def train(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    overrides: Annotated[list[str], typer.Argument(help="Dotted overrides: key.sub=value.")] = [],  # noqa: B006
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove an existing run first.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train embeddings; goes on where an earlier start of the same run ended."""
    result = api.train(config, overrides, restart=restart, quiet=quiet)
    print(to_json(asdict(result)) if as_json else describe.train_text(result))


@app.command(epilog=_example("biggraph coordinator run.toml cluster.bind=10.0.0.1"))
def coordinator(
    config: Annotated[Path, typer.Argument(help="Run file (TOML), the same for all workers.")],
    overrides: Annotated[list[str], typer.Argument(help="Dotted overrides: key.sub=value.")] = [],  # noqa: B006
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove an existing run first.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Coordinate the workers of a run; may be ended and started again at any time."""
    result = cluster.coordinate(config, overrides, restart=restart, quiet=quiet)
    print(to_json(asdict(result)) if as_json else describe.train_text(result))


@app.command(epilog=_example("biggraph worker run.toml --name w1"))
def worker(
    config: Annotated[Path, typer.Argument(help="Run file (TOML) of the coordinator.")],
    overrides: Annotated[list[str], typer.Argument(help="Dotted overrides: key.sub=value.")] = [],  # noqa: B006
    name: Annotated[
        str | None, typer.Option(help="Of this worker; default: BIGGRAPH_WORKER, or made up.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train what the coordinator of a run grants; may join and leave at any time."""
    cluster.work(config, overrides, name=name, quiet=quiet)


@app.command("parameter-server", epilog=_example("biggraph parameter-server run.toml --index 0"))
def parameter_server(
    config: Annotated[Path, typer.Argument(help="Run file (TOML) of the coordinator.")],
    overrides: Annotated[list[str], typer.Argument(help="Dotted overrides: key.sub=value.")] = [],  # noqa: B006
    index: Annotated[int, typer.Option(min=0, help="Which, from 0.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Serve one slice of large relation parameters; may be ended and started again at any time."""
    cluster.serve_parameters(config, overrides, index=index, quiet=quiet)


@app.command(
    "partition-server", epilog=_example("biggraph partition-server /data/runs --port 7070")
)
def partition_server(
    directory: Annotated[Path, typer.Argument(help="Folder below which runs lie.")],
    bind: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7070,
    secret_file: Annotated[
        Path | None, typer.Option(help="Default: BIGGRAPH_SECRET, else `secret` in the folder.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM; required beyond loopback.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM, its key.")] = None,
) -> None:
    """Keep files of runs for machines that share no storage: flight://host:port,…/run."""
    cluster.serve_partitions(
        directory,
        bind,
        port,
        secret_file,
        (tls_cert, tls_key),
        started=lambda address: print(f"partition server listens on {address}", flush=True),
    )


@app.command(epilog=_example("biggraph status runs/a"))
def status(checkpoint: Checkpoint, as_json: AsJson = False) -> None:
    """Say how a run stands: progress, workers, leases, time left."""
    values = cluster.status(checkpoint)
    print(to_json(values) if as_json else describe.values_text(values))


@app.command("eval", epilog=_example("biggraph eval runs/a --split test --json test.json"))
def evaluate(
    checkpoint: Checkpoint,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    filtered: Annotated[
        bool, typer.Option("--filtered/--raw", help="Leave known true edges out.")
    ] = True,
    candidates: Annotated[str, typer.Option(help='"all", or a number of sampled ones.')] = "all",
    edges: Annotated[int | None, typer.Option(min=1, help="Evaluate a sample of edges.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    per_relation: Annotated[
        bool, typer.Option("--per-relation", help="Each relation too.")
    ] = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="Rank by popularity.")] = False,
    graph: GraphPath = None,
    snapshot: SnapshotName = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Rank true edges among corrupted ones: MRR, mean rank, hits@k."""
    if json_file and not json_file.parent.is_dir():
        raise ConfigError(f"--json {json_file}: there is no folder {json_file.parent}")
    result = api.evaluate(
        checkpoint,
        split=split,
        filtered=filtered,
        candidates=parsed("--candidates", parse_candidates, candidates),
        edges=edges,
        seed=seed,
        per_relation=per_relation,
        baseline=baseline,
        graph=graph,
        snapshot=snapshot,
        quiet=quiet,
    )
    print(describe.evaluation_text(result))
    if json_file:
        write_text(json_file, to_json(result.to_dict()) + "\n")


@app.command(epilog=_example("biggraph neighbors runs/a Q42 -k 5"))
def neighbors(
    checkpoint: Checkpoint,
    entity: Annotated[str, typer.Argument(help="Name of an entity, or TYPE:name.")],
    k: K = 10,
    metric: Annotated[Metric, typer.Option(help="Similarity.")] = Metric.COS,
    entity_type: Annotated[str | None, typer.Option(help="Only this entity type.")] = None,
    graph: GraphPath = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """List the entities nearest to one."""
    embeddings = Embeddings.open(checkpoint, graph=graph, snapshot=snapshot)
    found = embeddings.neighbors(entity, k, metric=metric.value, entity_type=entity_type)
    rows = [asdict(neighbor) for neighbor in found]
    print(json.dumps(rows, ensure_ascii=False, indent=2) if as_json else describe.rows_text(rows))


@app.command(epilog=_example("biggraph predict runs/a --head Paris --relation capital_of"))
def predict(
    checkpoint: Checkpoint,
    relation: Annotated[str, typer.Option(help="Name of a relation.")],
    head: Annotated[str | None, typer.Option(help="Known left end; predicts the right.")] = None,
    tail: Annotated[str | None, typer.Option(help="Known right end; predicts the left.")] = None,
    k: K = 10,
    include_known: Annotated[
        bool, typer.Option("--include-known", help="Also list edges of the graph.")
    ] = False,
    graph: GraphPath = None,
    snapshot: SnapshotName = None,
    as_json: AsJson = False,
) -> None:
    """List the best candidates for the missing end of an edge."""
    embeddings = Embeddings.open(checkpoint, graph=graph, snapshot=snapshot)
    found = embeddings.predict(
        head=head, relation=relation, tail=tail, k=k, exclude_known=not include_known
    )
    rows = [asdict(prediction) for prediction in found]
    print(json.dumps(rows, ensure_ascii=False, indent=2) if as_json else describe.rows_text(rows))


@app.command(epilog=_example("biggraph export runs/a --format parquet --out embeddings"))
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="File or folder to make.")],
    format: Annotated[ExportFormat, typer.Option(help="What to write.")],
    entity_type: Annotated[list[str], typer.Option(help="Only these entity types.")] = [],  # noqa: B006
    graph: GraphPath = None,
    snapshot: SnapshotName = None,
) -> None:
    """Write embeddings with their names to a common format."""
    write_export(
        checkpoint,
        out,
        format=format.value,
        graph=graph,
        snapshot=snapshot,
        entity_types=entity_type or None,
    )
    print(f"wrote {out}", file=sys.stderr)


@app.command(epilog=_example("biggraph inspect runs/a --verify"))
def inspect(
    path: Annotated[str, typer.Argument(help="A graph directory, a run directory or s3://….")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every digest and invariant.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a graph or a checkpoint holds."""
    values = describe.describe(path)
    problems = describe.verify(path) if verify else []
    if verify:
        values |= {"problems": problems}
    print(to_json(values) if as_json else describe.values_text(values))
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise FormatError(f"{path}: {len(problems)} problems found")
    if verify:
        print("verified: every digest and invariant holds", file=sys.stderr)


def parse_holdout(text: str | None) -> dict[str, float]:
    """Return {"valid": 0.05} for "valid=0.05".

    Raises:
        ConfigError: not of that form.
    """
    try:
        pairs = [part.split("=") for part in text.split(",")] if text else []
        shares = {split.strip(): float(share) for split, share in pairs}
    except ValueError:
        raise ConfigError(f'--holdout "{text}": expected valid=0.05,test=0.05') from None
    if len(shares) < len(pairs):
        raise ConfigError(f'--holdout "{text}": names a split twice')
    return shares


def parsed(option: str, parse: Callable[[object], T], text: str) -> T:
    """Return an option's value as `parse` reads it.

    Raises:
        ConfigError: it cannot be read; the message names the option.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Embed graphs: import an edge list, train, evaluate, query, export."""
    if version:
        print(importlib.metadata.version("biggraph"))
        raise typer.Exit


@leave_threads_behind()
def main() -> None:
    """Run the command line; a user's mistake ends in one line on stderr and exit code 2."""
    try:
        app()
    except BigGraphError as error:
        end(error, error.exit_code)
    except (MemoryError, RuntimeError) as error:
        # torch reports a failed allocation as a RuntimeError of this text.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        end("out of memory; lower train.memory, train.batch_size or --memory, or add partitions")
    except KeyboardInterrupt:
        end("interrupted", 130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        end(f"{where}{error.strerror or error}")


def end(reason: object, code: int = 2) -> NoReturn:
    """Say in one line why this process ends, and which one it is where several say so at once."""
    print(f"{local_name()}error: {reason}", file=sys.stderr)
    sys.exit(code)
