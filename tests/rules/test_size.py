"""How large things may grow. A limit is raised only together with a design note."""

import ast
import io
import tokenize
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "biggraph"

MAX_PACKAGE_LINES = 27_000
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 7
VERBS = ("cli.py", "api.py")  # their parameters are the options of the commands

Function = ast.FunctionDef | ast.AsyncFunctionDef
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def size_problems(root: Path) -> list[str]:
    """Return files, functions and parameter lists that are too long."""
    problems = []
    for path in sorted(root.rglob("*.py")):
        name, text = path.relative_to(root).as_posix(), path.read_text()
        if len(text.splitlines()) > MAX_FILE_LINES:
            problems.append(f"{name}: {len(text.splitlines())} lines")
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, Function)]
        code = code_lines(text)
        for function in functions:
            where = f"{name}:{function.lineno} {function.name}"
            if (length := function_lines(function, code)) > MAX_FUNCTION_LINES:
                problems.append(f"{where}: {length} lines of code")
            exempt = name in VERBS or is_compiled(function)
            if (count := parameter_count(function)) > MAX_PARAMETERS and not exempt:
                problems.append(f"{where}: {count} parameters")
    return problems


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold more than blanks and comments."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE and token.string:
            lines.update(range(token.start[0], token.end[0] + 1))
    return lines


def function_lines(function: Function, code: set[int]) -> int:
    """Return how many lines of a function are code; its docstring is not."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = range(first.lineno, first.end_lineno + 1) if documented else ()
    return len(code & set(range(function.lineno, function.end_lineno + 1)) - set(docstring))


def is_compiled(function: Function) -> bool:
    """Return whether Numba compiles the function: its arrays come one by one."""
    return any("njit" in ast.unparse(decorator) for decorator in function.decorator_list)


def parameter_count(function: Function) -> int:
    """Return how many parameters a caller can give."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in named)


def test_nothing_is_too_long():
    assert size_problems(PACKAGE) == []


def test_the_package_keeps_to_its_budget():
    total = sum(len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py"))
    assert total <= MAX_PACKAGE_LINES


def test_code_at_the_limits_passes(tmp_path):
    docstring = ['    """Long."""', *["    # why"] * 30]
    body = ["    x = 1"] * (MAX_FUNCTION_LINES - 1)
    lines = ["def f(self, a, b, c, d, e, *, f, g):", *docstring, *body]
    lines += [""] * (MAX_FILE_LINES - len(lines))
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert size_problems(tmp_path) == []


def test_a_long_file_is_found(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n" * (MAX_FILE_LINES + 1))
    assert size_problems(tmp_path) == [f"a.py: {MAX_FILE_LINES + 1} lines"]


def test_a_long_function_is_found(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES)
    assert size_problems(tmp_path) == [f"a.py:1 f: {MAX_FUNCTION_LINES + 1} lines of code"]


def test_many_parameters_are_found_unless_exempt(tmp_path):
    function = "def f(a, b, c, d, e, /, f, *, g, h): ..."
    for name in ("a.py", *VERBS):
        (tmp_path / name).write_text(function)
    (tmp_path / "b.py").write_text(f"@njit(cache=True)\n{function}")
    assert size_problems(tmp_path) == ["a.py:1 f: 8 parameters"]
