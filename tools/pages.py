"""What the tools share that write a page of the documentation from the code, or check whether it is stale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def write_or_check(
    arguments: Sequence[str] | None, *, module: str, purpose: str, page: Path, render: Callable[[], str], target: str
) -> int:
    """The command line of such a tool.

    Args:
        arguments: its options; those of the process if None.
        module: its name, for `python -m`.
        purpose: what it does.
        page: what it writes, unless `--page` names another file.
        render: gives the page's text.
        target: the `make` target that writes it.

    Returns:
        The exit code: 1 for a page that is stale.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=purpose)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    parser.add_argument("--page", type=Path, default=page, help="where it is")
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
