"""One meaning of a training step, and one file that knows where it runs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "biggraph"

STEP = "train/step.py"
BUILDER = "train/build.py"
DEPLOYMENT = {"device", "is_cuda", "cuda", "world", "world_size"}


def parsed(root: Path) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node of every file with the file's path in the package."""
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            yield path.relative_to(root).as_posix(), node


def gradient_calls(root: Path) -> list[str]:
    """Return the files that ask autograd for gradients, once for each call."""
    return [
        path
        for path, node in parsed(root)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr == "backward" or ast.unparse(node.func).endswith("autograd.grad"))
    ]


def deployment_tests(root: Path) -> list[str]:
    """Return the conditions that look at the device or at the number of workers."""
    found = []
    for path, node in parsed(root):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            words = {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}
            words |= {n.attr for n in ast.walk(node.test) if isinstance(n, ast.Attribute)}
            if words & DEPLOYMENT:
                found.append(f"{path}:{node.lineno} tests {ast.unparse(node.test)}")
    return found


def test_gradients_are_asked_for_once():
    if not (PACKAGE / STEP).exists():
        pytest.skip(f"{STEP} does not exist")
    assert gradient_calls(PACKAGE) == [STEP]


def test_only_the_builder_looks_at_the_deployment():
    assert [line for line in deployment_tests(PACKAGE) if not line.startswith(BUILDER)] == []


@pytest.mark.parametrize("line", ["loss.backward()", "torch.autograd.grad(loss, rows)"])
def test_a_second_step_is_found(tmp_path, line):
    (tmp_path / "other.py").write_text(line)
    assert gradient_calls(tmp_path) == ["other.py"]


@pytest.mark.parametrize(
    "line",
    [
        "if rows.is_cuda: ...",
        "x = 1 if device.type == 'cpu' else 2",
        "while world.size > 1: ...",
        "if torch.cuda.is_available(): ...",
    ],
)
def test_a_look_at_the_deployment_is_found(tmp_path, line):
    (tmp_path / "other.py").write_text(line)
    assert len(deployment_tests(tmp_path)) == 1


def test_passing_the_deployment_on_is_fine(tmp_path):
    (tmp_path / "other.py").write_text("x = torch.zeros(3, device=rows.device)\nif x: ...")
    assert deployment_tests(tmp_path) == []
    assert gradient_calls(tmp_path) == []
