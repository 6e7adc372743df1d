"""`python -m tools.shape`: print the figures of the architecture, and fail if a figure exceeds its limit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tools.shape.figures import Figure, Project, read_project

_ROOT = Path(__file__).parents[2]
_NUM_LARGEST = 8


def render(project: Project) -> Iterator[str]:
    """Yield the lines of the report: every figure with its limit, then the largest items."""
    yield f"{'figure':<36}{'now':>6}{'limit':>7}"
    for figure in project.figures:
        named = figure.is_over or any(finding.value == figure.value for finding in figure.findings[:1])
        where = figure.findings[0].where if named else ""
        more = f" (of {len(figure.over)})" if figure.is_over and len(figure.over) > 1 else ""
        mark = "OVER" if figure.is_over else ""
        yield f"{figure.limit.figure:<36}{figure.value:>6}{figure.limit.at_most:>7}  {mark:<5} {where}{more}".rstrip()
    for name, value in project.information:
        yield f"{name:<36}{value:>6}"
    for title, rows in project.largest:
        yield ""
        yield title
        yield from (f"  {row}" for row in rows[:_NUM_LARGEST])


def render_over(figures: Iterable[Figure]) -> Iterator[str]:
    """Yield the items that exceed a limit, with the reason for the limit."""
    for figure in figures:
        if figure.is_over:
            yield ""
            yield f"{figure.limit.figure}: {figure.value}; the limit is {figure.limit.at_most}. {figure.limit.why}"
            yield from (f"  {finding.value:>4}  {finding.where}" for finding in figure.over)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; return 1 if a figure exceeds its limit."""
    parser = argparse.ArgumentParser(prog="python -m tools.shape", description=__doc__)
    parser.add_argument("--root", type=Path, default=_ROOT, help="the project's folder")
    parser.add_argument("--over", action="store_true", help="list only the items that exceed a limit")
    parser.add_argument("--no-layers", action="store_true", help="do not check the order of the layers")
    options = parser.parse_args(arguments)
    project = read_project(options.root, with_layers=not options.no_layers)
    over = [figure for figure in project.figures if figure.is_over]
    for line in render_over(over) if options.over else render(project):
        print(line)
    if over and not options.over:
        print(
            f"\n{len(over)} figure(s) over the limit; `python -m tools.shape --over` lists the items and the reasons",
            file=sys.stderr,
        )
    return bool(over)


if __name__ == "__main__":
    sys.exit(main())
