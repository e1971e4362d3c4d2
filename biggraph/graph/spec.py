"""What an import is asked to do and what it reports. Values only: no reading, no writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from biggraph.errors import ConfigError, did_you_mean
from biggraph.types import Bucket

SPLITS = ("train", "valid", "test")
DEFAULT_TYPE = "entity"
DEFAULT_RELATION = "edge"
MAX_PARTITIONS = 1 << 15
MIN_MEMORY = 1 << 24
NO_RELATION = "-"

Progress = Callable[[str, int, "int | None"], None]


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """How sources become a graph directory.

    Args:
        valid: sources of the validation split: paths (files, folders, globs), a pyarrow Table or a
            pandas frame.
        test: sources of the test split.
        holdout: split ("valid", "test") → fraction of the train edges to move there.
        columns: head, relation, tail[, weight] columns, or head, tail; names or positions from 0.
            "-" as relation: the file has no relation column.
        header: whether text files start with a header line; None: a header is expected when
            `columns` are names, else when the first line is exactly head, relation, tail[, weight].
        skip_bad_lines: count and report lines that cannot be read instead of refusing the file.
        memory: budget for the importer's buffers in bytes.
        entities: entity type → number of partitions.
        partitions: partitions of entity types that `entities` does not list.
        relations: (name, lhs type, rhs type) of every relation allowed, in order of their ids;
            empty: the relations found, sorted by name, between entities of type "entity".
        min_entity_count: drop entities that occur in fewer edges, and their edges.
        min_relation_count: drop relations with fewer edges (before entities are counted).
        seed: of the assignment, the shuffle and the holdout.
        overwrite: replace an existing graph directory.
        on_progress: called with (stage, done, total or None) now and then.
    """

    valid: Any = ()
    test: Any = ()
    holdout: Mapping[str, float] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    header: bool | None = None
    skip_bad_lines: bool = False
    memory: int = 1 << 30
    entities: Mapping[str, int] = field(default_factory=dict)
    partitions: int = 1
    relations: Sequence[tuple[str, str, str]] = ()
    min_entity_count: int = 1
    min_relation_count: int = 1
    seed: int = 0
    overwrite: bool = False
    on_progress: Progress | None = None

    @property
    def type_names(self) -> list[str]:
        """Entity types in the order of the relations that use them."""
        if not self.relations:
            return [DEFAULT_TYPE]
        return list(dict.fromkeys(t for _, lhs, rhs in self.relations for t in (lhs, rhs)))

    def partitions_of(self, entity_type: str) -> int:
        """Return the number of partitions of an entity type."""
        return self.entities.get(entity_type, self.partitions)


@dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Args:
        rows: edges read per split, before filters and holdout.
        edges: edges written per split.
        skipped: the first 100 lines skipped as (file, line, reason).
        skipped_count: all lines skipped.
        dropped_edges: edges dropped by the minimum counts.
        dropped_entities: entities dropped by the minimum counts.
        dropped_relations: relations dropped by the minimum counts.
        entities: entity type → entities.
        relations: number of relations.
        buckets: split → non-empty buckets and their edges.
        seconds: wall-clock time.
        fingerprint: identifies the graph's content.
    """

    rows: Mapping[str, int]
    edges: Mapping[str, int]
    skipped: Sequence[tuple[str, int, str]]
    skipped_count: int
    dropped_edges: int
    dropped_entities: int
    dropped_relations: int
    entities: Mapping[str, int]
    relations: int
    buckets: Mapping[str, Mapping[Bucket, int]]
    seconds: float
    fingerprint: str

    @property
    def rows_per_s(self) -> float:
        """Rows read per second of the whole import."""
        return sum(self.rows.values()) / max(self.seconds, 1e-9)


def check_spec(spec: ImportSpec) -> None:
    """Refuse options that cannot be or do not go together.

    Raises:
        ConfigError: names the option, its value and the remedy.
    """
    _check_holdout(spec)
    for name, partitions in {"partitions": spec.partitions, **_dotted(spec.entities)}.items():
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(f"{name} = {partitions}: must be from 1 to {MAX_PARTITIONS}")
    if spec.memory < MIN_MEMORY:
        raise ConfigError(
            f"memory = {spec.memory}: must be at least {MIN_MEMORY >> 20} MiB ({MIN_MEMORY} bytes)"
        )
    for name in ("min_entity_count", "min_relation_count"):
        if getattr(spec, name) < 1:
            raise ConfigError(f"{name} = {getattr(spec, name)}: must be at least 1")
    if spec.seed < 0:
        raise ConfigError(f"seed = {spec.seed}: must not be negative")
    names = [name for name, _, _ in spec.relations]
    for name in names:
        if names.count(name) > 1 if len(names) < 1000 else len(set(names)) < len(names):
            raise ConfigError(f'relations: "{name}" is defined twice')
    for unused in set(spec.entities) - set(spec.type_names):
        raise ConfigError(
            f'entities.{unused}: no relation has entities of type "{unused}"; name the type in '
            f"[[relations]] or remove it{did_you_mean(unused, spec.type_names)}"
        )
    _check_columns(spec.columns)


def _check_columns(columns: Sequence[str] | None) -> None:
    if columns is None:
        return
    shown = f"columns = {','.join(columns)}"
    if len(columns) not in (2, 3, 4):
        raise ConfigError(f"{shown}: expected head,relation,tail[,weight] or head,tail")
    if NO_RELATION in columns and [i for i, n in enumerate(columns) if n == NO_RELATION] != [1]:
        raise ConfigError(
            f'{shown}: "-" stands for no relation, the second of head,relation,tail[,weight]'
        )
    if NO_RELATION in columns and len(columns) == 2:
        raise ConfigError(f'{shown}: "-" leaves no tail; give head,tail or head,-,tail')


def is_given(sources: Any) -> bool:
    """Return whether a split has sources: a path, a table, or a sequence that is not empty."""
    return sources is not None and not (isinstance(sources, Sequence) and len(sources) == 0)


def _dotted(entities: Mapping[str, int]) -> dict[str, int]:
    return {f"entities.{name}.partitions": count for name, count in entities.items()}


def _check_holdout(spec: ImportSpec) -> None:
    for split, fraction in spec.holdout.items():
        if split not in SPLITS[1:]:
            raise ConfigError(f"holdout.{split}: unknown split{did_you_mean(split, SPLITS[1:])}")
        if not 0 < fraction < 1:
            raise ConfigError(f"holdout.{split} = {fraction}: must be between 0 and 1")
        given = spec.valid if split == "valid" else spec.test
        if is_given(given):
            raise ConfigError(f"holdout.{split}: files for {split} are given too; choose one")
    if sum(spec.holdout.values()) >= 1:
        raise ConfigError(
            f"holdout: fractions sum to {sum(spec.holdout.values())}, leaving no train edges"
        )
