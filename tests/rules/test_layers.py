"""Who may import whom: modules import downward only, and some libraries stay where they belong."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "biggraph"

# From the bottom up; a module belongs to the layer of the longest name that matches it.
LAYERS = (
    ("errors", "types", "log", "compiled"),
    ("schema", "sections", "config"),
    ("graph", "model", "storage", "scheduling"),
    ("train", "dist"),
    ("train.build", "train.local", "train.roles", "train.trainer"),
    ("evaluate", "embeddings", "export", "serve"),
    ("", "api", "cluster", "describe", "cli", "__main__"),
)
SIBLINGS = {"graph", "model", "storage", "scheduling"}
ONLY_IN = {
    "h5py": ("graph/format.py", "storage/files.py"),
    "boto3": ("storage/s3_client.py",),
    "botocore": ("storage/s3_client.py",),
    "torch.distributed": ("dist/",),
    "pyarrow.flight": ("dist/flight_server.py", "storage/flight.py"),
}
NOT_IN = {
    "scheduling/": {"torch", "time", "datetime", "socket", "threading", "asyncio"},
    "graph/": {"torch"},
}
BANNED_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "hash", "__import__", "torch.load", "torch.manual_seed"}
GLOBAL_RANDOM = re.compile(
    r"((np|numpy)\.)?random\.(?!(Random|default_rng|Generator|SeedSequence|PCG64|Philox)\b)"
)


def sources(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every file, by path relative to the package."""
    return {
        path.relative_to(root).as_posix(): ast.parse(path.read_bytes())
        for path in sorted(root.rglob("*.py"))
    }


def module_name(path: str) -> str:
    """Return the dotted name inside the package: "train.step", "train" for its __init__, ""."""
    return path.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")


def imported(path: str, tree: ast.Module) -> set[str]:
    """Return the absolute names that a file imports, those inside functions too."""
    package = ["biggraph", *Path(path).parent.parts]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *filter(None, [node.module])])
            names |= {home, *(f"{home}.{alias.name}" for alias in node.names)}
    return names


def import_graph(root: Path) -> dict[str, set[str]]:
    """Return the modules of the package that each module imports."""
    trees = sources(root)
    known = {module_name(path) for path in trees}
    found = {}
    for path, tree in trees.items():
        inside = {name for name in imported(path, tree) if name.startswith("biggraph.")}
        targets = {name.removeprefix("biggraph.") for name in inside} & known
        found[module_name(path)] = targets - {module_name(path)}
    return found


def layer_of(module: str) -> int:
    """Return the height of a module's layer, -1 if the table does not have it."""
    place = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    while module not in place and "." in module:
        module = module.rpartition(".")[0]
    return place.get(module, -1)


def layer_problems(root: Path) -> list[str]:
    """Return what breaks the layers."""
    problems = []
    for module, targets in import_graph(root).items():
        if layer_of(module) < 0:
            problems.append(f"{module}: not in the table of layers")
        for target in sorted(targets):
            if layer_of(target) > layer_of(module):
                problems.append(f"{module} imports {target}, which is above it")
            tops = {module.partition(".")[0], target.partition(".")[0]}
            if len(tops) == 2 and tops <= SIBLINGS:
                problems.append(f"{module} imports its sibling {target}")
    return problems


def cycle(root: Path) -> list[str]:
    """Return one ring of modules that import each other, or nothing."""
    graph = {
        module: {t for t in targets if not module.startswith(f"{t}.")}
        for module, targets in import_graph(root).items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def library_problems(root: Path) -> list[str]:
    """Return imports and calls that are banned, everywhere or where they stand."""
    problems = []
    for path, tree in sources(root).items():
        for name in sorted(imported(path, tree)):
            if name.partition(".")[0] in BANNED_IMPORTS:
                problems.append(f"{path} imports {name}")
            for library, homes in ONLY_IN.items():
                if f"{name}.".startswith(f"{library}.") and not path.startswith(homes):
                    problems.append(f"{path} imports {name}, which belongs in {', '.join(homes)}")
            for folder, kept_out in NOT_IN.items():
                if path.startswith(folder) and name.partition(".")[0] in kept_out:
                    problems.append(f"{path} imports {name}, which stays out of {folder}")
        problems += call_problems(path, tree)
    return problems


def call_problems(path: str, tree: ast.Module) -> list[str]:
    """Return calls that are banned; `print` is the command line's."""
    banned = BANNED_CALLS | (set() if path == "cli.py" else {"print"})
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in banned or GLOBAL_RANDOM.match(called):
                problems.append(f"{path}:{node.lineno} calls {called}")
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if options.get("allow_pickle", "False") != "False":
                problems.append(f"{path}:{node.lineno} allows pickle")
    return problems


def test_imports_go_downward():
    assert layer_problems(PACKAGE) == []


def test_no_import_cycle():
    assert cycle(PACKAGE) == []


def test_libraries_stay_where_they_belong():
    assert library_problems(PACKAGE) == []


@pytest.fixture
def tree(tmp_path):
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("path", "line", "other", "problem"),
    [
        ("model/a.py", "from biggraph.train import step", "train/step.py", "above"),
        ("model/a.py", "from ..train.step import f", "train/step.py", "above"),
        ("train/step.py", "def f():\n    import biggraph.train.build", "train/build.py", "above"),
        ("model/a.py", "from biggraph.graph.b import f", "graph/b.py", "sibling"),
        ("novel.py", "x = 1", "types.py", "not in the table"),
    ],
)
def test_a_broken_layer_is_found(tree, path, line, other, problem):
    (found,) = layer_problems(tree({path: line, other: ""}))
    assert problem in found


def test_downward_imports_pass(tree):
    root = tree(
        {
            "types.py": "",
            "model/a.py": "from biggraph.types import Side\nfrom .b import f",
            "model/b.py": "import numpy",
            "train/build.py": "from biggraph.train.step import f\nfrom biggraph.model import a",
            "train/step.py": "",
        }
    )
    assert layer_problems(root) == []
    assert cycle(root) == []


def test_a_cycle_is_found(tree):
    root = tree({"model/a.py": "from .b import f", "model/b.py": "from biggraph.model.a import g"})
    assert set(cycle(root)) == {"model.a", "model.b"}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("model/a.py", "import h5py"),
        ("graph/importer.py", "from h5py import File"),
        ("train/build.py", "import torch.distributed as dist"),
        ("train/build.py", "from torch import distributed"),
        ("storage/far.py", "from pyarrow import flight"),
        ("graph/a.py", "from torch import nn"),
        ("scheduling/a.py", "import time"),
        ("storage/a.py", "import pickle"),
        ("cli.py", "eval('1')"),
        ("storage/a.py", "import torch\ntorch.load('x')"),
        ("types.py", "hash('x')"),
        ("types.py", "print('x')"),
        ("types.py", "import random\nrandom.shuffle([1])"),
        ("types.py", "import numpy as np\nnp.random.rand(3)"),
        ("types.py", "import numpy as np\nnp.load('x', allow_pickle=True)"),
    ],
)
def test_a_misplaced_library_is_found(tree, path, line):
    assert len(library_problems(tree({path: line}))) >= 1


def test_libraries_at_home_pass(tree):
    root = tree(
        {
            "graph/format.py": "import h5py",
            "storage/files.py": "import h5py",
            "dist/world.py": "import torch.distributed as dist",
            "cli.py": "print('x')",
            "types.py": "class A:\n    def __hash__(self):\n        return 1",
            "schema.py": "import random\nrandom.Random(3).random()",
        }
    )
    assert library_problems(root) == []
