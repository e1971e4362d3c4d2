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
import importlib
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "this", "antigravity"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Edge = tuple[str, str, str]


class Entity(NamedTuple):
    """What a name stands for: kind is "module", "class" or "function"."""

    kind: str
    name: str


class Imported(NamedTuple):
    """A name bound by `from module import name`, not followed yet."""

    module: str
    name: str


@dataclass
class Class:
    """A class: bases as written, and what its body defines."""

    module: str
    bases: list[ast.expr] = field(default_factory=list)
    members: dict[str, Entity] = field(default_factory=dict)


@dataclass
class Module:
    """A module: its syntax tree (None if written in C) and what its names are bound to."""

    tree: ast.Module | None
    package: str
    names: dict[str, Entity | Imported] = field(default_factory=dict)
    stars: list[str] = field(default_factory=list)


@dataclass
class Library:
    """Everything that names can stand for."""

    modules: dict[str, Module] = field(default_factory=dict)
    classes: dict[str, Class] = field(default_factory=dict)

    def resolve(
        self, module: str, name: str, seen: frozenset[Imported] = frozenset()
    ) -> Entity | None:
        """Follow a name of a module through imports to the entity that defines it."""
        here = Imported(module, name)
        if module not in self.modules or here in seen:
            return None
        found = self.modules[module].names.get(name)
        if isinstance(found, Imported):
            return self.resolve(*found, seen | {here})
        if found:
            return found
        if f"{module}.{name}" in self.modules:
            return Entity("module", f"{module}.{name}")
        stars = (self.resolve(star, name, seen | {here}) for star in self.modules[module].stars)
        return next(filter(None, stars), None)

    def member(self, owner: Entity | None, name: str) -> Entity | None:
        """Return what `owner.name` stands for; methods are looked up in the bases too."""
        if owner is None or owner.kind == "function":
            return None
        if owner.kind == "module":
            return self.resolve(owner.name, name)
        for ancestor in self.ancestors(owner.name):
            if name in self.classes[ancestor].members:
                return self.classes[ancestor].members[name]
        return None

    def bases(self, name: str) -> list[Entity]:
        """Return the bases of a class that are known."""
        here = self.classes[name]
        found = (Names(self, here.module).entity(base) for base in here.bases)
        return [base for base in found if base and base.kind == "class"]

    def ancestors(self, name: str) -> Iterator[str]:
        """Yield a class and its known ancestors, nearest first, each once."""
        queue, seen = collections.deque([name]), {name}
        while queue:
            here = queue.popleft()
            if here in self.classes:
                yield here
                new = [base.name for base in self.bases(here) if base.name not in seen]
                seen.update(new)
                queue.extend(new)


@dataclass
class Names:
    """What names stand for at one place in the code: local ones, the module's, the builtins."""

    library: Library
    module: str
    class_name: str = ""
    local: dict[str, Entity | None] = field(default_factory=dict)

    def entity(self, node: ast.AST) -> Entity | None:
        """Return what an expression stands for; an instance stands for its class."""
        if isinstance(node, ast.Name):
            if node.id in self.local:
                return self.local[node.id]
            outer = self.library.resolve(self.module, node.id)
            return outer or self.library.resolve("builtins", node.id)
        if isinstance(node, ast.Attribute):
            return self.library.member(self.entity(node.value), node.attr)
        if isinstance(node, ast.Call):
            made = self.entity(node.func)
            if made == Entity("class", "builtins.super") and self.class_name:
                return next(iter(self.library.bases(self.class_name)), None)
            return made if made and made.kind == "class" else None
        return None


# --- reading -------------------------------------------------------------------------------------


def read_library(folder: Path) -> Library:
    """Parse every module below `folder` that belongs to the standard library."""
    library = Library()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or SKIPPED & set(parts):
            continue
        if parts[0].startswith("_sysconfigdata") or any(part.count("-") for part in parts):
            continue
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        package = name if is_package else name.rpartition(".")[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            library.modules[name] = Module(ast.parse(path.read_bytes()), package)
    for name in sorted(sys.stdlib_module_names - library.modules.keys() - SKIPPED):
        read_compiled(library, name)
    for name, module in library.modules.items():
        if module.tree:
            bind(library, name, module, flatten(module.tree.body))
    return library


def read_compiled(library: Library, name: str) -> None:
    """List the classes and functions of a module that has no source."""
    try:
        contents = vars(importlib.import_module(name))
    except ImportError:
        return  # of another platform
    module = library.modules[name] = Module(None, name)
    for key, value in sorted(contents.items()):
        if isinstance(value, type):
            home = value.__module__ if value.__module__ in sys.stdlib_module_names else name
            module.names[key] = Entity("class", f"{home}.{value.__qualname__}")
        elif callable(value) and not key.startswith("__"):
            module.names[key] = Entity("function", f"{name}.{key}")


def flatten(body: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the statements of a body, those under `if`, `try` and `with` too, in order."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from flatten(getattr(node, part, []))


def bind(library: Library, name: str, module: Module, body: Iterable[ast.AST]) -> None:
    """Record what a module binds its names to: definitions beat imports, the first beats the last.

    So `os.path` is `posixpath`, and a class stands for itself where C may replace it.
    """
    imported: dict[str, Entity | Imported] = {}
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported = bindings(node, module.package) | imported
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                module.stars.append(source(node, module.package))
        elif isinstance(node, Function):
            module.names[node.name] = Entity("function", f"{name}.{node.name}")
        elif isinstance(node, ast.ClassDef):
            module.names[node.name] = Entity("class", f"{name}.{node.name}")
            bind_class(library, f"{name}.{node.name}", node, name)
    module.names = imported | module.names


def bind_class(library: Library, name: str, node: ast.ClassDef, module: str) -> None:
    """Record the members of a class and of the classes inside it."""
    members = library.classes[name] = Class(module, node.bases)
    for child in flatten(node.body):
        if isinstance(child, Function):
            members.members[child.name] = Entity("function", f"{name}.{child.name}")
        elif isinstance(child, ast.ClassDef):
            members.members[child.name] = Entity("class", f"{name}.{child.name}")
            bind_class(library, f"{name}.{child.name}", child, module)


def source(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that `from … import` names."""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parts, *([node.module] if node.module else [])])


def bindings(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, Entity | Imported]:
    """Return the names that an import statement binds."""
    if isinstance(node, ast.ImportFrom):
        home = source(node, package)
        return {a.asname or a.name: Imported(home, a.name) for a in node.names if a.name != "*"}
    bound: dict[str, Entity | Imported] = {}
    for alias in node.names:
        top = alias.name if alias.asname else alias.name.partition(".")[0]
        bound[alias.asname or top] = Entity("module", top)
    return bound


# --- edges ---------------------------------------------------------------------------------------


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
            homes = [source(node, module.package)]
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


def local_names(names: Names, node: Function) -> dict[str, Entity | None]:
    """Return what the names bound inside a function stand for, None where that is not known."""
    nodes = [child for child in ast.walk(node) if child is not node]
    local: dict[str, Entity | None] = dict.fromkeys(bound_names(nodes))
    for child in nodes:
        if isinstance(child, ast.Import | ast.ImportFrom):
            package = names.library.modules[names.module].package
            for name, target in bindings(child, package).items():
                found = target if isinstance(target, Entity) else names.library.resolve(*target)
                local[name] = found
    first = (node.args.posonlyargs + node.args.args)[:1]
    if names.class_name and first:
        local[first[0].arg] = Entity("class", names.class_name)
    return local | instances(Names(names.library, names.module, names.class_name, local), nodes)


def bound_names(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the names that nodes inside a function bind, imports aside."""
    bound, elsewhere = set(), set()
    for node in nodes:
        if isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.ClassDef | Function):
            bound.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            elsewhere.update(node.names)
    return bound - elsewhere


def instances(names: Names, nodes: Iterable[ast.AST]) -> dict[str, Entity | None]:
    """Return the class of names bound by `name = Class(…)`, where that is the only binding."""
    stored = collections.Counter(
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    made: dict[str, Entity | None] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target, found = node.targets[0], names.entity(node.value)
            if isinstance(target, ast.Name) and stored[target.id] == 1 and found:
                made[target.id] = found
    return made


# --- command -------------------------------------------------------------------------------------


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
