"""The common command line of the tools that generate a documentation page from the code or check that it is current."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def write_or_check(
    arguments: Sequence[str] | None, *, module: str, purpose: str, page: Path, render: Callable[[], str], target: str
) -> int:
    """Run the command line of a tool that generates a page.

    Args:
        arguments: the tool's options; the options of the process if None.
        module: the tool's module name, for `python -m`.
        purpose: the description of the tool.
        page: the page's file, unless `--page` names another one.
        render: returns the page's text.
        target: the `make` target that writes the page.

    Returns:
        The exit code: 1 for a stale page with `--check`, otherwise 0.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=purpose)
    parser.add_argument("--check", action="store_true", help="fail if the page is stale")
    parser.add_argument("--page", type=Path, default=page, help="the page's file")
    options = parser.parse_args(arguments)
    text = render()
    if not options.check:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(text, encoding="utf-8")
        return 0
    if options.page.is_file() and options.page.read_text(encoding="utf-8") == text:
        return 0
    print(f"{options.page} is stale: run 'make {target}' and commit the result", file=sys.stderr)
    return 1
