"""Digests of the plug-ins that settings name, so that changed code doesn't count as the code of a stored cell."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from fedmtl_core import plugins


def digests(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the SHA-256 of each plug-in's code, in hexadecimal, by the name of its module.

    A plug-in is any text of the form `module:Name` whose module exists. Its code is the module's file and the files of
    the same folder that it imports, directly or through one another. Nothing is imported.

    Args:
        settings: settings by dotted key; values may be lists and mappings.
    """
    modules = sorted({text.partition(":")[0] for text in _texts(settings.values()) if plugins.is_reference(text)})
    found = {module: plugins.source_file(module) for module in modules}
    return {module: _digest(path, module) for module, path in found.items() if path is not None}


def _texts(values: Iterable[object]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _texts(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _texts(value)


def _digest(path: Path, module: str) -> str:
    digest = hashlib.sha256()
    for file in _files(path, module):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _files(path: Path, module: str) -> list[Path]:
    """Return a module's file and the files of its folder that it imports, ordered by name."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[Path] = set()
    remaining = {path, *([path.with_name("__init__.py")] if package else [])}
    while remaining:
        file = remaining.pop()
        if file in found or not file.is_file():
            continue
        found.add(file)
        remaining.update(file.with_name(f"{name}.py") for name in _imported(file, package))
    return sorted(found)


def _imported(file: Path, package: str) -> Iterator[str]:
    """Yield the names of imported modules that are in the file's folder, if they exist.

    Args:
        file: a file of the folder.
        package: the package whose folder it is; empty for a folder that isn't a package.
    """
    try:
        tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):
        return  # importing it later reports the error
    prefix = f"{package}." if package else ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            dotted = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            start = (prefix if node.level else "") + (node.module or "")
            dotted = [start, *(f"{start.rstrip('.')}.{one.name}" for one in node.names)]
        else:
            continue
        yield from (name.removeprefix(prefix).partition(".")[0] for name in dotted if name.startswith(prefix))
