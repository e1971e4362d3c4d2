"""What refuses a run before it touches the disk: run file, graph, memory and earlier run must fit.

Reads only. Knows configuration, schema and a run's state; nothing of training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path

from biggraph.config import Config
from biggraph.errors import ConfigError
from biggraph.graph.graph import Graph
from biggraph.storage.opening import folder_of, open_place
from biggraph.storage.state import RunState
from biggraph.types import Bucket, PartitionKey

# Keys that a resumed run may change: how long, how fast and with what care it goes on.
_MAY_CHANGE = {
    "train.epochs", "train.device", "train.precision", "train.threads", "train.commit_every",
    "train.memory", "train.loss_spike",
    "optimizer.lr", "optimizer.relation_lr", "optimizer.lr_end", "regularizer.n3",
    "regularizer.dropout",
    "eval.every", "eval.patience", "eval.filtered", "eval.candidates", "eval.edges",
    "train.retries", "graph.path", "checkpoint.path", "import", "entities", "cluster",
}  # fmt: skip

# Keys in which the workers of one run may differ: where things are, and what a machine has.
_LOCAL = {
    "train.device", "train.precision", "train.threads", "train.memory", "train.commit_every",
    "graph.path", "checkpoint.path", "import", "entities", "cluster",
}  # fmt: skip


def required_paths(config: Config) -> tuple[Path, str]:
    """Return the graph's and the checkpoint's path.

    Raises:
        ConfigError: the run file lacks one of them.
    """
    if config.graph is None:
        raise ConfigError("graph.path is missing; name the graph directory in the run file")
    if config.checkpoint is None:
        raise ConfigError("checkpoint.path is missing; name a folder for the run in the run file")
    return config.graph.path, config.checkpoint.path


def check_graph(config: Config, graph: Graph) -> None:
    """Refuse a run file that says otherwise than the graph, or wants what it does not have.

    Raises:
        ConfigError: names the key, both values and the remedy.
    """
    if not graph.splits.get("train"):
        raise ConfigError(f"{graph.path}: the train split holds no edges; import some")
    if config.eval.every and not graph.splits.get("valid"):
        raise ConfigError(
            f"eval.every = {config.eval.every}: {graph.path} has no validation split; import it "
            "with --valid or --holdout valid=0.05, or set eval.every = 0"
        )
    for name, entity in config.entities.items():
        partitions = graph.schema.entity_type(name).partitions
        if "partitions" in entity.model_fields_set and entity.partitions != partitions:
            raise ConfigError(
                f"entities.{name}.partitions = {entity.partitions}: the graph was imported with "
                f"{partitions}; import it again, or change the run file"
            )
    known = {relation.name: relation for relation in graph.schema.relations}
    for relation in config.relations:
        for end in ("lhs", "rhs"):
            said = getattr(relation, end)
            if relation.name in known and end in relation.model_fields_set:
                found = getattr(known[relation.name], end)
                if said != found:
                    raise ConfigError(
                        f'relations: "{relation.name}" has {end} = "{said}", but the graph was '
                        f'imported with "{found}"; import it again, or change the run file'
                    )


def check_place(path: str, graph: Path) -> None:
    """Refuse a run inside a graph directory, which a new import may replace as a whole.

    Raises:
        ConfigError: it is.
    """
    folder = folder_of(open_place(path))
    if folder is not None and folder.resolve().is_relative_to(graph.resolve()):
        raise ConfigError(
            f"checkpoint.path = {path}: lies inside the graph directory {graph}; choose a folder "
            "outside it"
        )


def check_cpu_precision(config: Config) -> None:
    """Raise `ConfigError` unless products on the CPU can be of `train.precision`."""
    precision, comparator = config.train.precision, config.model.comparator
    if precision == "float32":
        return
    set_to = f'train.precision = "{precision}"'
    if precision == "tf32":
        raise ConfigError(f'{set_to} is for GPUs; a CPU has "float32" and "bfloat16"')
    if config.train.step == "reference":
        raise ConfigError(f'{set_to} has no effect with train.step = "reference"; leave it out')
    if comparator in ("l2", "squared_l2"):
        raise ConfigError(
            f"{set_to}: on the CPU {comparator} is a difference of large products, "
            "which bfloat16 would drown in rounding; leave it out"
        )


def check_memory(
    needs: Mapping[Bucket, frozenset[PartitionKey]],
    sizes: Mapping[PartitionKey, int],
    memory: int,
    shared: int,
) -> None:
    """Refuse a budget that cannot hold the tables of the largest bucket.

    Args:
        needs: partitions of each bucket.
        sizes: bytes of each partition's table.
        memory: the budget in bytes.
        shared: bytes of tables that are always in memory.

    Raises:
        ConfigError: names the bucket, both sizes and the remedies.
    """
    largest = max(needs, key=lambda bucket: sum(sizes[key] for key in needs[bucket]))
    wanted = shared + sum(sizes[key] for key in needs[largest])
    if wanted > memory:
        raise ConfigError(
            f"train.memory = {memory:,} bytes: bucket {largest} needs {wanted:,} for its tables; "
            'allow more, use optimizer.name = "adagrad_row", lower model.dimension, or import '
            "with more partitions"
        )


def check_same_run(path: str, config: Config, graph: str, state: RunState) -> None:
    """Refuse to go on with a run under settings that would make it another.

    Args:
        path: of the run, for messages.
        config: as given now.
        graph: fingerprint of the graph as it is now.
        state: of the run.

    Raises:
        ConfigError: names the first key that differs, both values and the remedy.
    """
    remedy = "begin anew with --restart, or choose another checkpoint.path"
    if graph != state.facts.graph:
        raise ConfigError(f"{path}: was trained on another graph; {remedy}")
    old, new = _flat(Config.from_json(state.config, f"{path}: log")), _flat(config)
    for key in sorted(old.keys() | new.keys()):
        if not _is_in(key, _MAY_CHANGE) and old.get(key) != new.get(key):
            raise ConfigError(
                f"{path}: the run was begun with {key} = {old.get(key)}, found {new.get(key)}; "
                f"{remedy}"
            )


def fingerprint(config: Config, graph: str) -> str:
    """Return a digest of the graph and of every key that all workers of a run have to share."""
    shared = {key: value for key, value in _flat(config).items() if not _is_in(key, _LOCAL)}
    text = json.dumps([graph, shared], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_in(key: str, keys: Set[str]) -> bool:
    return key in keys or key.split(".")[0] in keys


def _flat(config: Config) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, section in json.loads(config.to_json()).items():
        if isinstance(section, dict):
            flat |= {f"{name}.{key}": value for key, value in section.items()}
        else:
            flat[name] = section
    return flat
