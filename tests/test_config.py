"""The run file: defaults, overrides, and a clear refusal of everything else."""

import contextlib
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from biggraph.config import SECTIONS, Config, known_keys, load_config, make_config
from biggraph.errors import ConfigError
from biggraph.sections import parse_duration, parse_size


def refused(sections):
    with pytest.raises(ConfigError) as caught:
        make_config(sections)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "parts"),
    [
        ({"model": {"operator": "complx"}},
         ['model.operator = "complx"', "unknown operator", 'did you mean "complex_diagonal"?']),
        ({"modle": {}}, ['unknown key "modle"', 'did you mean "model"?']),
        ({"train": {"epoch": 3}}, ["train.epoch", 'did you mean "epochs"?']),
        ({"train": {"epochs": "many"}}, ['train.epochs = "many"', "integer"]),
        ({"train": {"epochs": -1}}, ["train.epochs = -1", "greater than or equal to 0"]),
        ({"train": {"commit_every": "5 parsecs"}}, ["train.commit_every", '"30s" or "5min"']),
        ({"train": {"memory": "lots"}}, ["train.memory", '"1GiB"']),
        ({"model": {"dimension": 5}}, ["model.dimension = 5", "even dimension"]),
        ({"negatives": {"in_batch": 0, "uniform": 0}}, ["negatives", "switch one on"]),
        ({"loss": {"adversarial_temperature": 1.0}}, ["adversarial_temperature", "logistic"]),
        ({"relations": [{"name": "r"}, {"name": "r"}]}, ['"r" is defined twice']),
        ({"relations": [{"name": "r", "oprator": "x"}]}, ['did you mean "operator"?']),
        ({"entities": {"x": {"partitons": 2}}}, ['did you mean "partitions"?']),
        ({"eval": {"patience": 2}}, ["eval.patience needs eval.every"]),
        ({"graph": {}}, ["graph.path: missing"]),
        ({"optimizer": {"lr": float("nan")}}, ["optimizer.lr"]),
    ],
)  # fmt: skip
def test_wrong_values_are_named_with_a_remedy(sections, parts):
    message = refused(sections)
    assert all(part in message for part in parts), message


def test_defaults_are_those_that_reach_good_quality():
    config = make_config({})
    assert (config.model.operator, config.model.reciprocal) == ("complex_diagonal", True)
    assert (config.loss.name, config.optimizer.lr) == ("softmax", 0.1)


def test_where_a_run_is_may_be_a_path_or_an_address(tmp_path):
    for text, meant in (
        (tmp_path, str(tmp_path)),
        ("runs//a/", "runs/a"),
        ("s3://bucket/a", "s3://bucket/a"),
    ):
        config = make_config({"checkpoint": {"path": text}})
        assert config.checkpoint.path == meant
        assert Config.from_json(config.to_json(), "log") == config
    assert "checkpoint.path = 3" in refused({"checkpoint": {"path": 3}})


def test_a_file_with_overrides(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[graph]\npath = "g"\n[[relations]]\nname = "r"\n')
    overrides = [
        "train.epochs=3",
        "checkpoint.path=runs/a",
        "relations.0.weight=2",
        "import.seed=4",
    ]
    config = load_config(file, [*overrides, 'model.operator="identity"'])
    assert config.train.epochs == 3
    assert config.checkpoint.path == "runs/a"
    assert config.relations[0].weight == 2
    assert config.import_.seed == 4
    assert config.model.operator == "identity"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "expected key.sub=value"),
        ("=3", "expected key.sub=value"),
        ("train.epochs.x=3", "is not a section"),
        ("relations.7.weight=2", 'no section "7"'),
    ],
)
def test_wrong_overrides_are_refused(tmp_path, override, message):
    file = tmp_path / "run.toml"
    file.write_text('[train]\nepochs = 1\n[[relations]]\nname = "r"\n')
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such run file"):
        load_config(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[train\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(broken)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@given(
    epochs=st.integers(0, 1000), lr=st.floats(1e-6, 10), n3=st.floats(0, 1),
    candidates=st.one_of(st.just("all"), st.integers(1, 10**6)),
    memory=st.none() | st.integers(1, 2**40), partitions=st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_json_round_trip(epochs, lr, n3, candidates, memory, partitions):
    sections = {
        "graph": {"path": "g"},
        "entities": {"t": {"partitions": partitions}},
        "regularizer": {"n3": n3},
        "optimizer": {"lr": lr},
        "train": {"epochs": epochs} | ({"memory": memory} if memory else {}),
        "eval": {"candidates": candidates},
    }
    config = make_config(sections)
    assert Config.from_json(config.to_json(), "test") == config


@given(text=st.text(max_size=30))
@settings(deadline=None)
def test_no_text_escapes_as_another_error(text):
    with contextlib.suppress(ConfigError):
        Config.from_json(text, "test")


@given(number=st.integers(1, 10**6), unit=st.sampled_from(["", "KB", "MiB", "gib", "TB"]))
def test_sizes(number, unit):
    factor = {"": 1, "KB": 10**3, "MiB": 2**20, "gib": 2**30, "TB": 10**12}[unit]
    assert parse_size(f"{number}{unit}") == number * factor
    assert parse_size(f" {number} {unit} ") == number * factor


@given(text=st.text(alphabet=string.ascii_letters, min_size=1))
def test_durations_without_a_number_are_refused(text):
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


def test_every_key_is_described():
    for name, section in SECTIONS.items():
        assert known_keys([name]) == [
            field.alias or key for key, field in section.model_fields.items()
        ]
        for key, field in section.model_fields.items():
            assert field.description, f"{name}.{key}"
