"""Computes the figures of a project: figures with a limit, and figures for information."""

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
    """The input of the measures."""

    sources: Sequence[Source]
    imports: Sequence[Import]
    layers: Sequence[Sequence[str]]
    """The layers, lowest first; each has the path prefixes of its files."""

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
    """A figure with its limit."""

    limit: Limit
    value: int
    findings: Sequence[Finding]
    """The measured items, the largest first."""

    @property
    def is_over(self) -> bool:
        """Whether the figure exceeds its limit."""
        return self.value > self.limit.at_most

    @property
    def over(self) -> Sequence[Finding]:
        """The items to change: the items that exceed the limit by themselves, or else all items of the sum."""
        return [finding for finding in self.findings if finding.value > self.limit.at_most] or self.findings


@dataclass(frozen=True)
class Project:
    """The content of the report."""

    figures: Sequence[Figure]
    information: Sequence[tuple[str, int]]
    """The figures without a limit."""

    largest: Sequence[tuple[str, Sequence[str]]]
    """The tables of the largest items: a title and rows, the largest first."""


def read_project(
    root: Path, *, packages: Sequence[str] = PACKAGES, layers: str = LAYERS, with_layers: bool = True
) -> Project:
    """Read and measure packages of a project.

    Args:
        root: the project's folder.
        packages: the names of the packages' folders.
        layers: the order of the layers, in the format of LAYERS in `limits.py`.
        with_layers: whether to check that imports keep the order of the layers.
    """
    sources = read_sources(root, packages)
    read = Read(sources, imports_among(sources), measures.parse_layers(layers))
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
    "imports upwards": (lambda read: measures.upwards(read.imports, read.layers), len),
    "modules in no layer": (lambda read: measures.without_layer(read.sources, read.layers), len),
    "imports between server and client": (lambda read: measures.between(read.imports, *APART), len),
    "Any, in all packages": (lambda read: read.any_uses, _sum),
    "Any, in fedmtl_server/access": (_any_in_access, _sum),
    "modules that a file imports": (lambda read: measures.fan_outs(read.imports), _most),
}
_ORDERED = ("imports upwards", "modules in no layer")


def _information(read: Read) -> list[tuple[str, int]]:
    lengths = [function.lines for function in read.functions]
    filled = [source for source in read.sources if len(source.tree.body) > 1]
    return [
        ("files", len(read.sources)),
        ("median file with more than a docstring", _median(measures.file_lengths(filled))),
        ("median function", median_high(lengths) if lengths else 0),
        ("circles over imports for types", len(measures.circles(read.imports, with_types=True))),
        ("imports of the project in functions", sum(each.when is When.CALLED for each in read.imports)),
        ("layers' entries without a file", len(measures.unused_entries(read.sources, read.layers))),
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
