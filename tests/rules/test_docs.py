"""Docs say what is: pages are fresh, links lead somewhere, nothing public lacks a docstring."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from biggraph.config import SECTIONS, load_config
from biggraph.sections import EntityConfig, RelationConfig

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "biggraph"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

needs_command_line = pytest.mark.skipif(
    not (PACKAGE / "cli.py").exists(), reason="biggraph/cli.py does not exist"
)


def generator():
    """Return scripts/generate_docs.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "generate_docs", ROOT / "scripts/generate_docs.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verbs() -> dict[str, str]:
    """Return the help of every command by its verb."""
    import typer.main

    from biggraph.cli import app

    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="biggraph", terminal_width=90)
    helps = {}
    for verb in command.list_commands(context):
        child = command.get_command(context, verb)
        helps[verb] = child.get_help(
            child.context_class(child, info_name=verb, parent=context)
        ).rstrip()
    return helps


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings make, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return links to files and headings that do not exist; the network is not asked."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (
            anchor and path.suffix == ".md" and anchor not in anchors(path.read_text())
        ):
            broken.append(f"{page.name}: {target}")
    return broken


def missing_paths(page: Path, root: Path) -> list[str]:
    """Return source files that a page names and that do not exist."""
    pattern = r"(?<![\w/.-])((?:biggraph|configs|scripts|tests|benchmarks|docs)/[\w./-]+\.\w+)"
    named = re.findall(pattern, page.read_text(encoding="utf-8"))
    return [f"{page.name}: {name}" for name in sorted(set(named)) if not (root / name).exists()]


def undocumented(tree: ast.Module, name: str) -> list[str]:
    """Return a file's public modules, classes and functions without a docstring."""
    found = [] if ast.get_docstring(tree) or not tree.body else [name]
    stack: list[tuple[ast.AST, str]] = [(tree, name)]
    while stack:
        parent, path = stack.pop()
        for node in ast.iter_child_nodes(parent):
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            if isinstance(node, kinds) and not node.name.startswith("_"):
                where = f"{path}.{node.name}"
                if not ast.get_docstring(node):
                    found.append(where)
                if isinstance(node, ast.ClassDef):
                    stack.append((node, where))
    return found


def test_everything_public_has_a_docstring():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += undocumented(ast.parse(path.read_bytes()), str(path.relative_to(ROOT)))
    assert found == []


def test_links_resolve():
    assert [line for page in PAGES for line in broken_links(page)] == []


def test_files_named_in_the_docs_exist():
    pages = [page for page in PAGES if page.name not in ("log.md", "CHANGELOG.md")]
    assert [line for page in pages for line in missing_paths(page, ROOT)] == []


@needs_command_line
@pytest.mark.parametrize("page", ["config.md", "cli.md", "config.schema.json"])
def test_generated_pages_are_fresh(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text == generator().PAGES[page](), f"docs/{page} is stale; run `make docs`"


@pytest.mark.parametrize(
    "section", [*SECTIONS.values(), EntityConfig, RelationConfig], ids=lambda s: s.__name__
)
def test_every_key_of_the_run_file_is_described(section):
    page = generator().config_page()
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name} has no description"
        assert f"| `{field.alias or name}` |" in page


@needs_command_line
def test_every_verb_is_documented_and_ends_with_an_example():
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for verb, text in verbs().items():
        assert f"## biggraph {verb}\n" in page
        assert "biggraph " + verb in text[-240:], f"the help of {verb} ends without an example"


@needs_command_line
def test_commands_in_the_docs_exist():
    known = verbs()
    for page in PAGES:
        blocks = re.findall(r"^```.*?^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for verb in re.findall(r"^(?:\$ )?biggraph ([a-z]\S*)", "\n".join(blocks), re.MULTILINE):
            assert verb in known, f"{page.name}: biggraph {verb}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.toml")), ids=lambda p: p.name)
def test_run_files_in_the_repository_are_valid(path):
    load_config(path)


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text(
        "# One `thing`\n[a](a.md) [b](#one-thing) [c](https://example.org)\n"
        "[d](gone.md) [e](a.md#gone)\n```\n[f](not-a-link)\n```\n"
    )
    assert broken_links(page) == ["a.md: gone.md", "a.md: a.md#gone"]


def test_missing_files_are_found(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("see `scripts/gone.py` and `docs/here.md`, not https://x.org/docs/x.html")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/here.md").touch()
    assert missing_paths(page, tmp_path) == ["a.md: scripts/gone.py"]


def test_missing_docstrings_are_found():
    text = "class A:\n    '''A.'''\n    def b(self): ...\n    def _c(self): ...\ndef d():\n    'D.'"
    assert undocumented(ast.parse(text), "m") == ["m", "m.A.b"]
