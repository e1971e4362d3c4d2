"""Turn the standard library of the running Python into a typed graph.

    python scripts/stdlib_graph.py stdlib.tsv

Reads the sources with `ast` and runs none of them; modules written in C are imported to list their
names. Every line is one edge: head, relation, tail. Entities are modules, classes, functions
(methods too), parameters (`indent=`) and attributes (`.append`); a dotted name such as
`collections.OrderedDict` says where a thing is defined, not where it was imported. A relation is
named after its ends, as in `class_inherits_class`, so that one name has one pair of entity types.
The same Python gives the same file.
"""

from __future__ import annotations

import argparse
import ast
import collections
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from python_names import (
    Entity,
    Function,
    Library,
    Module,
    Names,
    flatten,
    home_module,
    local_names,
    read_library,
)

RELATIONS = (
    "module_contains_module",
    "module_imports_module",
    "module_imports_class",
    "module_imports_function",
    "module_defines_class",
    "module_defines_function",
    "class_defines_class",
    "class_defines_function",
    "class_inherits_class",
    "class_decorated_by_function",
    "function_decorated_by_function",
    "function_decorated_by_class",
    "function_overrides_function",
    "function_calls_function",
    "function_creates_class",
    "function_raises_class",
    "function_catches_class",
    "function_uses_module",
    "function_uses_class",
    "function_uses_function",
    "function_takes_parameter",
    "function_reads_attribute",
)
Edge = tuple[str, str, str]


def edges(library: Library) -> Iterator[Edge]:
    """Yield every edge; some more than once."""
    for name, module in library.modules.items():
        here = Entity("module", name)
        if name.rpartition(".")[0] in library.modules:
            yield edge(Entity("module", name.rpartition(".")[0]), "contains", here)
        for known in module.names.values():
            if (
                isinstance(known, Entity)
                and known.name == f"{name}.{known.name.rpartition('.')[2]}"
            ):
                yield edge(here, "defines", known)
        if module.tree:
            yield from import_edges(library, here, module)
            yield from body_edges(Names(library, name), here, flatten(module.tree.body))


def edge(lhs: Entity, verb: str, rhs: Entity) -> Edge:
    """Return one line of the file."""
    return lhs.name, f"{lhs.kind}_{verb}_{rhs.kind}", rhs.name


def import_edges(library: Library, here: Entity, module: Module) -> Iterator[Edge]:
    """Yield what a module imports: modules, and the classes and functions it names."""
    assert module.tree is not None
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            homes = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            homes = [home_module(node, module.package)]
            named = [library.resolve(homes[0], alias.name) for alias in node.names]
            yield from (edge(here, "imports", entity) for entity in named if entity)
        else:
            continue
        known = (home for home in homes if home in library.modules)
        yield from (edge(here, "imports", Entity("module", home)) for home in known)


def body_edges(names: Names, owner: Entity, body: Iterable[ast.AST]) -> Iterator[Edge]:
    """Yield the edges of the classes and functions that a module or class defines."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from class_edges(names, Entity("class", f"{owner.name}.{node.name}"), node)
        elif isinstance(node, Function):
            yield from function_edges(names, Entity("function", f"{owner.name}.{node.name}"), node)


def class_edges(names: Names, here: Entity, node: ast.ClassDef) -> Iterator[Edge]:
    """Yield bases, decorators and members of a class, and what its methods override."""
    library = names.library
    bases = library.bases(here.name)
    yield from (edge(here, "inherits", base) for base in bases)
    yield from decorator_edges(names, here, node)
    for name, member in library.classes[here.name].members.items():
        yield edge(here, "defines", member)
        hidden = next(filter(None, (library.member(base, name) for base in bases)), None)
        if member.kind == "function" and hidden and hidden.kind == "function":
            yield edge(member, "overrides", hidden)
    inside = Names(library, names.module, here.name)
    yield from body_edges(inside, here, flatten(node.body))


def decorator_edges(names: Names, here: Entity, node: ast.ClassDef | Function) -> Iterator[Edge]:
    """Yield what decorates a class or function; `@name(…)` counts as `@name`."""
    for decorator in node.decorator_list:
        plain = decorator.func if isinstance(decorator, ast.Call) else decorator
        found = names.entity(plain)
        if found and found.kind != "module":
            yield edge(here, "decorated_by", found)


def function_edges(names: Names, here: Entity, node: Function) -> Iterator[Edge]:
    """Yield what a function takes, calls, creates, raises, catches and uses.

    Functions inside it count as part of it.
    """
    yield from decorator_edges(names, here, node)
    arguments = node.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
    yield from (edge(here, "takes", Entity("parameter", f"{name}=")) for name in parameters)
    names = Names(names.library, names.module, names.class_name, local_names(names, node))
    roles = node_roles(node)
    for child in inside(node):
        found = names.entity(child) if isinstance(child, ast.Name | ast.Attribute) else None
        if found and found != here:
            verb = roles.get(id(child), "uses")
            if found.kind == "class" and verb == "calls":
                verb = "creates"
            if found.kind == "class" or verb in ("calls", "uses"):
                yield edge(here, verb if found.kind != "module" else "uses", found)
        elif isinstance(child, ast.Attribute) and not found:
            yield edge(here, "reads", Entity("attribute", f".{child.attr}"))


def inside(node: Function) -> Iterator[ast.AST]:
    """Yield every node of a function except its decorators."""
    for part in (*node.body, node.args, *([node.returns] if node.returns else [])):
        yield from ast.walk(part)


def node_roles(node: Function) -> dict[int, str]:
    """Return the verb for expressions that are called, raised or caught, by identity."""
    roles: dict[int, str] = {}
    for child in ast.walk(node):
        if isinstance(child, ast.Call):
            roles.setdefault(id(child.func), "calls")
        elif isinstance(child, ast.Raise) and child.exc:
            raised = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            roles[id(raised)] = "raises"
        elif isinstance(child, ast.ExceptHandler) and child.type:
            caught = child.type.elts if isinstance(child.type, ast.Tuple) else [child.type]
            roles.update((id(one), "catches") for one in caught)
    return roles


def main() -> None:
    """Write the graph and print how many edges each relation has."""
    parser = argparse.ArgumentParser(description="Write the standard library as a typed graph.")
    parser.add_argument("out", type=Path, help="TSV file to write: head, relation, tail")
    parser.add_argument(
        "--library", type=Path, default=Path(sysconfig.get_path("stdlib")), help="folder to read"
    )
    options = parser.parse_args()
    found = sorted(set(edges(read_library(options.library))))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines("\t".join(row) + "\n" for row in found)
    counts = collections.Counter(relation for _, relation, _ in found)
    for relation in RELATIONS:
        print(f"{counts[relation]:8,}  {relation}")
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"{len(found):8,}  edges of the standard library of Python {version} in {options.out}")


if __name__ == "__main__":
    main()
