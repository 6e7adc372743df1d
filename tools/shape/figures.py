"""The figures that have a limit, and those that are only told, of one project."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median_high

from tools.shape import measures
from tools.shape.limits import ACCESS, APART, LAYERS, LIMITS, PACKAGES, Limit
from tools.shape.measures import Definition, Finding
from tools.shape.sources import Import, Source, When, imports_among, read_sources


@dataclass(frozen=True)
class Read:
    """What measures work on."""

    sources: Sequence[Source]
    imports: Sequence[Import]
    rooms: Sequence[Sequence[str]]
    """Lowest first; each the beginnings of its files' paths."""

    @cached_property
    def classes(self) -> list[Definition]:
        return measures.classes(self.sources)

    @cached_property
    def functions(self) -> list[Definition]:
        return measures.functions(self.sources)

    @cached_property
    def any_uses(self) -> list[Finding]:
        return measures.any_uses(self.sources)


@dataclass(frozen=True)
class Figure:
    """A figure beside its limit."""

    limit: Limit
    value: int
    findings: Sequence[Finding]
    """What it is made of, the largest first."""

    @property
    def is_over(self) -> bool:
        """Whether it is more than it may be."""
        return self.value > self.limit.at_most

    @property
    def over(self) -> Sequence[Finding]:
        """What has to change: what is over the limit by itself, or else everything that adds up to it."""
        return [finding for finding in self.findings if finding.value > self.limit.at_most] or self.findings


@dataclass(frozen=True)
class Project:
    """Everything that the report shows."""

    figures: Sequence[Figure]
    information: Sequence[tuple[str, int]]
    """Figures without a limit."""

    largest: Sequence[tuple[str, Sequence[str]]]
    """Tables: a title, and rows of which the first is the largest."""


def read_project(
    root: Path, *, packages: Sequence[str] = PACKAGES, layers: str = LAYERS, with_layers: bool = True
) -> Project:
    """Read these packages of a project and measure them.

    Args:
        root: the project's folder.
        packages: folders in it.
        layers: the order of its rooms, as LAYERS in `limits.py`.
        with_layers: whether its imports have to keep that order.
    """
    sources = read_sources(root, packages)
    read = Read(sources, imports_among(sources), measures.rooms_in(layers))
    figures = [_figure(limit, read) for limit in LIMITS if with_layers or limit.figure not in _ORDERED]
    return Project(figures, _information(read), _largest(read))


def _figure(limit: Limit, read: Read) -> Figure:
    measure, total = _MEASURES[limit.figure]
    findings = [finding for finding in measure(read) if not finding.where.startswith(limit.exempt)]
    return Figure(limit, total(findings), findings)


def _by_lines(definitions: Iterable[Definition]) -> list[Finding]:
    return measures.largest(Finding(each.lines, str(each)) for each in definitions)


def _by_size(definitions: Iterable[Definition]) -> list[Finding]:
    return measures.largest(Finding(each.size, str(each)) for each in definitions)


def _most(findings: Sequence[Finding]) -> int:
    return max((finding.value for finding in findings), default=0)


def _sum(findings: Sequence[Finding]) -> int:
    return sum(finding.value for finding in findings)


def _median(findings: Sequence[Finding]) -> int:
    return median_high(finding.value for finding in findings) if findings else 0


def _any_in_access(read: Read) -> list[Finding]:
    return [finding for finding in read.any_uses if finding.where.startswith(ACCESS)]


_MEASURES: dict[str, tuple[Callable[[Read], list[Finding]], Callable[[Sequence[Finding]], int]]] = {
    "lines of a class": (lambda read: _by_lines(read.classes), _most),
    "methods of a class": (lambda read: _by_size(read.classes), _most),
    "parameters of a constructor": (lambda read: _by_size(measures.constructors(read.functions)), _most),
    "lines of a file": (lambda read: measures.file_lengths(read.sources), _most),
    "lines of the median file": (lambda read: measures.file_lengths(read.sources), _median),
    "lines of a function": (lambda read: _by_lines(read.functions), _most),
    "import circles": (lambda read: measures.circles(read.imports), len),
    "imports upwards": (lambda read: measures.upwards(read.imports, read.rooms), len),
    "modules in no room": (lambda read: measures.without_room(read.sources, read.rooms), len),
    "imports between server and client": (lambda read: measures.between(read.imports, *APART), len),
    "Any, in all packages": (lambda read: read.any_uses, _sum),
    "Any, in fedmtl_server/access": (_any_in_access, _sum),
    "modules that a file imports": (lambda read: measures.fan_outs(read.imports), _most),
}
_ORDERED = ("imports upwards", "modules in no room")


def _information(read: Read) -> list[tuple[str, int]]:
    lengths = [function.lines for function in read.functions]
    filled = [source for source in read.sources if len(source.tree.body) > 1]
    return [
        ("files", len(read.sources)),
        ("median file with more than a docstring", _median(measures.file_lengths(filled))),
        ("median function", median_high(lengths) if lengths else 0),
        ("circles over imports for types", len(measures.circles(read.imports, with_types=True))),
        ("imports of the project in functions", sum(each.when is When.CALLED for each in read.imports)),
        ("rooms' entries without a file", len(measures.unused_entries(read.sources, read.rooms))),
        ("type: ignore", measures.comments(read.sources, "type: ignore")),
        ("noqa and nosec", measures.comments(read.sources, "noqa", "nosec")),
    ]


def _largest(read: Read) -> list[tuple[str, list[str]]]:
    classes = sorted(read.classes, key=lambda each: -each.lines)
    functions = _by_size(read.functions)
    changeable = _by_size(measures.changeable_dataclasses(read.sources))
    return [
        ("lines and methods of a class", [f"{each.lines:>4} {each.size:>3}  {each}" for each in classes]),
        ("parameters of a function", _rows(functions)[:5]),
        ("fields of a dataclass that isn't frozen", _rows(changeable)[:3]),
        ("modules that a file imports", _rows(measures.fan_outs(read.imports))),
        ("Any in a file", _rows(read.any_uses)[:5]),
    ]


def _rows(findings: Iterable[Finding]) -> list[str]:
    return [f"{finding.value:>4}  {finding.where}" for finding in findings]
