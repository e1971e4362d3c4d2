"""The run file: TOML in, validated and frozen sections out.

Functions below the builder receive the section or
the values that they use, never the whole. Knows nothing of graphs, tensors or running.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from biggraph.errors import ConfigError, did_you_mean
from biggraph.sections import (
    CheckpointSection,
    ClusterSection,
    EntityConfig,
    EvalSection,
    GraphSection,
    ImportSection,
    LossSection,
    ModelSection,
    NegativesSection,
    OptimizerSection,
    RegularizerSection,
    RelationConfig,
    Section,
    TrainSection,
)


class Config(Section):
    """A whole run file."""

    graph: GraphSection | None = None
    import_: ImportSection = Field(ImportSection(), alias="import")
    entities: dict[str, EntityConfig] = Field({})
    relations: list[RelationConfig] = Field([])
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    negatives: NegativesSection = NegativesSection()
    regularizer: RegularizerSection = RegularizerSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection | None = None
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _check_combinations(self) -> Config:
        model, negatives = self.model, self.negatives
        operators = {model.operator} | {r.operator for r in self.relations if r.operator}
        if "complex_diagonal" in operators and model.dimension % 2:
            raise ValueError(
                f"model.dimension = {model.dimension}: complex_diagonal needs an even dimension"
            )
        if not negatives.all and negatives.in_batch + negatives.uniform == 0:
            raise ValueError("negatives: in_batch, uniform and all are all off; switch one on")
        if self.loss.adversarial_temperature and self.loss.name == "softmax":
            raise ValueError(
                "loss.adversarial_temperature: softmax weighs its negatives already; "
                "use it with logistic or ranking"
            )
        for key, loss in (("margin", "ranking"), ("correct_sampling", "softmax")):
            default = LossSection.model_fields[key].default
            if self.loss.name != loss and getattr(self.loss, key) != default:
                raise ValueError(f"loss.{key} has no effect with {self.loss.name}; leave it out")
        names = [relation.name for relation in self.relations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f'relations: "{twice[0]}" is defined twice')
        if self.eval.patience and not self.eval.every:
            raise ValueError("eval.patience needs eval.every > 0")
        return self

    def to_json(self) -> str:
        """Return the whole configuration, defaults included, as JSON that `from_json` reads."""
        return self.model_dump_json(by_alias=True, indent=2)

    @staticmethod
    def from_json(text: str, source: str) -> Config:
        """Read what `to_json` wrote; `source` names it in errors.

        Raises:
            ConfigError: not JSON, or not a valid configuration.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{source}: not valid JSON ({error})") from None
        return _validate(data, source)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run file and apply dotted overrides such as `train.epochs=3`.

    A file named *.json is read as JSON, such as the config.json of a run. Relative paths are
    relative to the working directory, as on the command line.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value has the wrong
            type, or values do not go together. The message names key, value and remedy.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        data = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such run file") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if Path(path).suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not valid {kind} ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    for override in overrides:
        _apply_override(data, override)
    return _validate(data, str(path))


def make_config(sections: dict[str, Any]) -> Config:
    """Validate a plain dictionary shaped like a run file.

    Raises:
        ConfigError: as `load_config`.
    """
    return _validate(sections, "config")


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f'override "{override}": expected key.sub=value, e.g. train.epochs=3')
    *parents, last = key.split(".")
    node: Any = data
    for part in parents:
        node = node.setdefault(part, {}) if isinstance(node, dict) else _item(node, part, key)
    if not isinstance(node, dict):
        raise ConfigError(f'override "{override}": {".".join(parents)} is not a section')
    node[last] = _toml_value(text)


def _item(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    raise ConfigError(f'override "{key}": no section "{part}"')


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string: checkpoint.path=runs/a


def _validate(data: dict[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        lines = [_explain(dict(detail), data) for detail in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def _explain(detail: dict[str, Any], data: dict[str, Any]) -> str:
    """Turn one pydantic error into "key = value: what is wrong; remedy"."""
    loc = [
        str(part) for part in detail["loc"] if not str(part).startswith(("function-", "literal["))
    ]
    if loc and loc[-1] in ("int", "constrained-int"):
        loc.pop()
    where = ".".join(loc)
    kind, message = detail["type"], str(detail["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f'{where}: unknown key "{loc[-1]}"{did_you_mean(loc[-1], known_keys(loc[:-1]))}'
    if kind == "literal_error":
        expected = re.findall(r"'([^']+)'", detail["ctx"]["expected"])
        found = detail["input"]
        what = loc[-1].replace("_", " ")
        return f'{where} = "{found}": unknown {what}{did_you_mean(str(found), expected)}'
    if kind == "missing":
        return f"{where}: missing; add it to the run file"
    if not where:
        return message
    return (
        f"{where} = {json.dumps(detail['input'], default=str)}: {message[0].lower()}{message[1:]}"
    )


def known_keys(loc: Sequence[str]) -> list[str]:
    """Return the keys that a section allows, for the dotted position `loc` of the section."""
    section: Any = Config
    for part in loc:
        if section is Config and part in ("entities", "relations"):
            section = {"entities": EntityConfig, "relations": RelationConfig}[part]
        elif part in SECTIONS:
            section = SECTIONS[part]
    return [field.alias or name for name, field in section.model_fields.items()]


SECTIONS: dict[str, type[Section]] = {
    "graph": GraphSection,
    "import": ImportSection,
    "model": ModelSection,
    "loss": LossSection,
    "negatives": NegativesSection,
    "regularizer": RegularizerSection,
    "optimizer": OptimizerSection,
    "train": TrainSection,
    "eval": EvalSection,
    "checkpoint": CheckpointSection,
    "cluster": ClusterSection,
}
