"""Fixtures that every test may use."""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

torch.set_num_threads(1)

ROWS = (
    ("ann", "likes", "tea"),
    ("ann", "likes", "milk"),
    ("bob", "likes", "tea"),
    ("cleo", "likes", "milk"),
    ("dan", "likes", "tea"),
    ("ann", "knows", "bob"),
    ("bob", "knows", "cleo"),
    ("cleo", "knows", "ann"),
    ("dan", "knows", "ann"),
)


@pytest.fixture(scope="module")
def module_of() -> Iterator[Callable[[str], ModuleType]]:
    """Return a function that imports a script of `benchmarks/` or `scripts/`, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("benchmarks", "scripts"):
            patch.syspath_prepend(Path(__file__).parents[1] / folder)
        yield importlib.import_module


@pytest.fixture(scope="session")
def datasets() -> Callable[[str], Path]:
    """Return a function from a data set's name to its folder; it skips the test if absent."""

    def find(name: str) -> Path:
        if "BIGGRAPH_DATA" not in os.environ:
            pytest.skip(f"needs {name}: BIGGRAPH_DATA does not name a folder of data sets")
        folder = Path(os.environ["BIGGRAPH_DATA"]) / name
        if not folder.is_dir():
            pytest.skip(f"needs {folder}, which does not exist")
        return folder

    return find


@pytest.fixture
def write_tsv(tmp_path) -> Callable[..., Path]:
    """Return a function that writes rows as a TSV file; without rows, a tiny typed graph.

    The tiny graph has people (ann, bob, cleo, dan) and drinks (tea, milk); `likes` leads from
    people to drinks, `knows` from people to people.
    """

    def write(rows: Iterable[Iterable[object]] = ROWS, name: str = "edges.tsv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
        return path

    return write
