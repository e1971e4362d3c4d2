"""What the names in a library of Python sources stand for.

Parses sources with `ast` and follows names through imports, classes and their bases; runs nothing.
Modules written in C are imported to list their contents. Used by `stdlib_graph.py`.
"""

from __future__ import annotations

import ast
import collections
import importlib
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "this", "antigravity"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


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
                module.stars.append(home_module(node, module.package))
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


def home_module(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that `from … import` names."""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parts, *([node.module] if node.module else [])])


def bindings(node: ast.Import | ast.ImportFrom, package: str) -> dict[str, Entity | Imported]:
    """Return the names that an import statement binds."""
    if isinstance(node, ast.ImportFrom):
        home = home_module(node, package)
        return {a.asname or a.name: Imported(home, a.name) for a in node.names if a.name != "*"}
    bound: dict[str, Entity | Imported] = {}
    for alias in node.names:
        top = alias.name if alias.asname else alias.name.partition(".")[0]
        bound[alias.asname or top] = Entity("module", top)
    return bound


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
