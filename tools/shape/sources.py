"""Reads and parses the project's Python files, and finds the imports among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str
    """The path relative to the project's folder, with slashes."""

    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The import name: `package.module`, or `package` for a package's `__init__.py`."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """The package that relative imports of this file start from."""
        return self.module if self.path.endswith("/__init__.py") else self.module.rpartition(".")[0]


class When(Enum):
    """When an import happens."""

    LOADED = auto()
    """When the file is loaded."""

    CALLED = auto()
    """When a function is called."""

    NEVER = auto()
    """Never: the import is under `if TYPE_CHECKING`, for types alone."""


@dataclass(frozen=True)
class Import:
    """An import of one file of the project by another."""

    importer: str
    imported: str
    line: int
    when: When


def read_sources(root: Path, packages: Sequence[str]) -> list[Source]:
    """Read every Python file of some packages, in the order of the paths.

    Raises:
        FileNotFoundError: a package does not exist; it must not count as a package without faults.
        SyntaxError: a file is not valid Python.
    """
    sources = []
    for package in packages:
        if not (root / package).is_dir():
            raise FileNotFoundError(f"{root} has no folder {package}")
        for file in sorted((root / package).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            sources.append(Source(file.relative_to(root).as_posix(), text, ast.parse(text, str(file))))
    return sources


def imports_among(sources: Sequence[Source]) -> list[Import]:
    """Return every import among the files. `from package import module` counts as an import of the module."""
    paths = {source.module: source.path for source in sources}
    return [
        Import(source.path, paths[name], line, when)
        for source in sources
        for name, line, when in _imported(source, paths)
        if name in paths and paths[name] != source.path
    ]


def _imported(source: Source, modules: dict[str, str]) -> Iterator[tuple[str, int, When]]:
    for node, when in _import_statements(source.tree, When.LOADED):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, when) for alias in node.names)
            continue
        base = node.module or ""
        if node.level:
            parts = source.package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        yield from ((name if name in modules else base, node.lineno, when) for name in names)


def _import_statements(node: ast.AST, when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, when
    elif isinstance(node, ast.If) and _asks_type_checking(node.test):
        for statement in node.body:
            yield from _import_statements(statement, When.NEVER)
        for statement in node.orelse:
            yield from _import_statements(statement, when)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and when is When.LOADED
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                continue  # an expression has no import statements
            yield from _import_statements(child, When.CALLED if inside else when)


def _asks_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )
