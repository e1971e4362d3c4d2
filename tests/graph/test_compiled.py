"""Where compiled code is kept, and whose change makes it old."""

import ast
import importlib
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

import biggraph.graph
from biggraph.graph import compiled

FOLDER = Path(biggraph.graph.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


def imported(name):
    """Return name → file of what a module takes from others of the package."""
    tree = ast.parse((FOLDER / f"{name}.py").read_bytes())
    prefix = "biggraph.graph."
    return {
        alias.name: f"{node.module.removeprefix(prefix)}.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix)
        for alias in node.names
    }


@pytest.mark.parametrize("name", MODULES)
def test_what_compiled_functions_take_from_other_files_is_known(name):
    """Numba itself looks only at a function's own file; constants are compiled in, too."""
    module, others = importlib.import_module(f"biggraph.graph.{name}"), imported(name)
    for function in vars(module).values():
        if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
            taken = {others[used] for used in function.py_func.__code__.co_names if used in others}
            assert taken <= set(compiled.INLINED), function


def test_compiled_code_belongs_to_the_sources_it_was_made_of(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    for name in compiled.INLINED:
        (tmp_path / name).write_text("one")
    before = compiled._digest(tmp_path)
    (tmp_path / compiled.INLINED[-1]).write_text("two")
    assert compiled._digest(tmp_path) != before
    function = compiled.compiled(one_more)
    assert function(1) == 2
    kept = list(tmp_path.rglob("*one_more*.nbi"))
    assert [path.parents[1].name for path in kept] == [f"graph-{compiled._DIGEST}"]


def one_more(value):
    return value + 1


def test_the_first_import_of_a_machine_says_that_it_compiles(tmp_path, monkeypatch, capsys):
    (tmp_path / "edges.tsv").write_text("a\tr\tb\n")
    said = "compiling the importer"
    monkeypatch.setattr(compiled, "folder", lambda name: tmp_path / "cache" / name)
    for number, expected in enumerate((True, False)):
        biggraph.import_graph(tmp_path / "edges.tsv", tmp_path / f"graph{number}")
        assert (said in capsys.readouterr().err) is expected
        code = compiled.folder(f"graph-{compiled._DIGEST}")
        code.mkdir(parents=True, exist_ok=True)
        (code / "function.nbi").touch()
