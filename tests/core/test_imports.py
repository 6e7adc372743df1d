"""Imports point one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported_modules(path: Path) -> Iterator[str]:
    """The absolute names that a file imports, from anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{one.name}" for one in node.names)


@pytest.mark.parametrize(
    ("package", "others"),
    [
        ("fedmtl_core", {"fedmtl_server", "fedmtl_client", "fedmtl_local", "fedmtl_experiment"}),
        ("fedmtl_server", {"fedmtl_client", "fedmtl_local", "fedmtl_experiment"}),
        ("fedmtl_client", {"fedmtl_server", "fedmtl_local", "fedmtl_experiment"}),
    ],
)
def test_server_and_client_know_the_core_and_not_each_other(package, others):
    for path in (ROOT / package).rglob("*.py"):
        assert not others & {name.partition(".")[0] for name in imported_modules(path)}, path


def test_the_servers_packages_import_one_another_in_no_circle():
    root, imports = ROOT / "fedmtl_server", {}
    for path in root.rglob("*.py"):
        part = path.relative_to(root).parts[0].removesuffix(".py")
        names = (name.split(".")[1] for name in imported_modules(path) if name.startswith("fedmtl_server."))
        imports.setdefault(part, set()).update(name for name in names if name != part)
    order = list(TopologicalSorter(imports).static_order())  # or CycleError, which names them
    assert order.index("aggregation") < order.index("federation") < order.index("rpc") < order.index("server")
