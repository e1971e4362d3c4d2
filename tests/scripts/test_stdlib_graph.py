"""The demo's graph: what the script finds in a small library written for the test."""

import sys
from pathlib import Path

import pytest

from biggraph.config import load_config

ROOT = Path(__file__).parents[2]

SOURCES = {
    "json/__init__.py": """
        from .decoder import JSONDecoder as Decoder
        from json import encoder
        from queue import *
        class Plain(Decoder, dict):
            def decode(self, text, *, limit=3):
                return super().decode(text)
        def load(file, cls=None):
            decoder = Decoder()
            try:
                return decoder.decode(file.read())
            except (ValueError, KeyError):
                raise TypeError("no")
    """,
    "json/decoder.py": """
        import json.encoder as enc
        class JSONDecoder:
            @staticmethod
            def help(): ...
            def decode(self, text):
                self.help()
                return enc.encode
    """,
    "json/encoder.py": "def encode(x):\n    print(x)\n    return put",
    "queue.py": """
        try:
            import json as path
        except ImportError:
            import re as path
        def put(load):
            load()
            path.load(1)
            def inner():
                import json
                json.decoder.JSONDecoder()
    """,
    "re.py": "",
    "notstdlib.py": "import json",
    "test/test_json.py": "import json",
}


@pytest.fixture(scope="module")
def script(module_of):
    return module_of("stdlib_graph")


@pytest.fixture(scope="module")
def found(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for name, text in SOURCES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()))
    with pytest.MonkeyPatch.context() as patch:
        names = {"json", "queue", "re", "builtins"}
        patch.setattr(sys, "stdlib_module_names", frozenset(names))
        return set(script.edges(script.read_library(folder)))


@pytest.mark.parametrize(
    "edge",
    [
        ("json", "module_contains_module", "json.decoder"),
        ("json", "module_imports_module", "json.decoder"),
        ("json", "module_imports_class", "json.decoder.JSONDecoder"),
        ("json", "module_defines_class", "json.Plain"),
        ("json", "module_defines_function", "json.load"),
        ("json.Plain", "class_inherits_class", "json.decoder.JSONDecoder"),
        ("json.Plain", "class_inherits_class", "builtins.dict"),
        ("json.Plain", "class_defines_function", "json.Plain.decode"),
        ("json.Plain.decode", "function_overrides_function", "json.decoder.JSONDecoder.decode"),
        ("json.Plain.decode", "function_calls_function", "json.decoder.JSONDecoder.decode"),
        ("json.Plain.decode", "function_takes_parameter", "limit="),
        ("json.load", "function_creates_class", "json.decoder.JSONDecoder"),
        ("json.load", "function_calls_function", "json.decoder.JSONDecoder.decode"),
        ("json.load", "function_catches_class", "builtins.KeyError"),
        ("json.load", "function_raises_class", "builtins.TypeError"),
        ("json.load", "function_reads_attribute", ".read"),
        ("json.decoder.JSONDecoder.help", "function_decorated_by_class", "builtins.staticmethod"),
        (
            "json.decoder.JSONDecoder.decode",
            "function_calls_function",
            "json.decoder.JSONDecoder.help",
        ),
        ("json.decoder.JSONDecoder.decode", "function_uses_function", "json.encoder.encode"),
        ("json.encoder.encode", "function_calls_function", "builtins.print"),
        ("queue.put", "function_calls_function", "json.load"),
        ("queue.put", "function_creates_class", "json.decoder.JSONDecoder"),
    ],
    ids=lambda edge: " ".join(edge),
)
def test_edges_are_found(found, edge):
    assert edge in found


def test_names_that_are_not_what_they_seem_are_left_out(found):
    heads_and_tails = {name for head, _, tail in found for name in (head, tail)}
    assert "notstdlib" not in heads_and_tails
    assert not any(name.startswith("test") for name in heads_and_tails)
    assert ("json.encoder.encode", "function_uses_function", "queue.put") not in found
    assert ("json.load", "function_takes_parameter", "self=") not in found
    calls_of_put = {t for h, r, t in found if (h, r) == ("queue.put", "function_calls_function")}
    assert calls_of_put == {"json.load"}  # the parameter `load` is not the function


def test_every_relation_is_known_to_the_run_file(script, found):
    relations = load_config(ROOT / "configs/stdlib.toml").relations
    assert {r.name for r in relations} == set(script.RELATIONS)
    for relation in relations:
        lhs, rhs = relation.name.split("_")[0], relation.name.split("_")[-1]
        assert (relation.lhs, relation.rhs) == (lhs, rhs)
    assert {relation for _, relation, _ in found} <= set(script.RELATIONS)
