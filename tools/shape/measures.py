"""What is measured of the sources. Each measure is a function of its arguments, and finds the largest first."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tools.shape.sources import Import, Source, When

_ANY_IN_TEXT = re.compile(r"\bAny\b")
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """One thing that was measured, and where it stands."""

    value: int
    where: str


@dataclass(frozen=True)
class Definition:
    """A class or a function."""

    path: str
    line: int
    name: str
    """With the classes and functions around it: `Class.method`."""

    lines: int
    """From `class` or `def` to its last line; decorators don't count."""

    size: int
    """A class's methods, or a function's parameters without `self`."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}"


def classes(sources: Iterable[Source]) -> list[Definition]:
    """Every class, with the functions written in its body; those that it inherits don't count."""
    return [
        _definition(source, node, name, sum(isinstance(child, _FUNCTION) for child in node.body))
        for source in sources
        for node, name, _ in _definitions(source.tree)
        if isinstance(node, ast.ClassDef)
    ]


def functions(sources: Iterable[Source]) -> list[Definition]:
    """Every function and method, those inside others too. `*args` is one parameter, and `**options` is one."""
    return [
        _definition(source, node, name, _parameters(node, in_class))
        for source in sources
        for node, name, in_class in _definitions(source.tree)
        if isinstance(node, _FUNCTION)
    ]


def constructors(functions: Iterable[Definition]) -> list[Definition]:
    """Those that are an `__init__`. They are written out; those that `@dataclass` and pydantic write are not there."""
    return [function for function in functions if function.name.endswith(".__init__")]


def changeable_dataclasses(sources: Iterable[Source]) -> list[Definition]:
    """Every `@dataclass` that isn't frozen, with its fields for a size: a constructor that nobody wrote out."""
    return [
        _definition(source, node, name, sum(isinstance(child, ast.AnnAssign) for child in node.body))
        for source in sources
        for node, name, _ in _definitions(source.tree)
        if isinstance(node, ast.ClassDef) and any(_makes_changeable(mark) for mark in node.decorator_list)
    ]


def file_lengths(sources: Iterable[Source]) -> list[Finding]:
    """The lines of each file."""
    return largest(Finding(_num_lines(source), source.path) for source in sources)


def any_uses(sources: Iterable[Source]) -> list[Finding]:
    """How often each file that does so says `Any`, in quotes too. Where it is imported doesn't count."""
    counted = (Finding(sum(_anys_in(node) for node in ast.walk(source.tree)), source.path) for source in sources)
    return largest(finding for finding in counted if finding.value)


def comments(sources: Iterable[Source], *marks: str) -> int:
    """How many lines have a comment that begins with one of these marks, such as `noqa`."""
    pattern = re.compile(rf"#\s*(?:{'|'.join(map(re.escape, marks))})")
    return sum(bool(pattern.search(line)) for source in sources for line in source.text.splitlines())


def fan_outs(imports: Iterable[Import]) -> list[Finding]:
    """How many of the project's modules each file imports."""
    imported = defaultdict(set)
    for each in imports:
        imported[each.importer].add(each.imported)
    return largest(Finding(len(modules), path) for path, modules in imported.items())


def circles(imports: Iterable[Import], *, with_types: bool = False) -> list[Finding]:
    """The groups of files that all import each other, over others or at once, and how many files each has.

    Args:
        imports: every import counts, those inside functions too.
        with_types: whether those for types alone count.
    """
    arrows: defaultdict[str, set[str]] = defaultdict(set)
    for each in imports:
        if with_types or each.when is not When.NEVER:
            arrows[each.importer].add(each.imported)
    reached = {path: _reached(path, arrows) for path in list(arrows)}
    groups = {
        frozenset(other for other in ahead if path in reached.get(other, ())) for path, ahead in reached.items()
    } - {frozenset()}
    return largest(Finding(len(group), " <-> ".join(sorted(group))) for group in groups)


def upwards(imports: Iterable[Import], rooms: Sequence[Sequence[str]]) -> list[Finding]:
    """The imports of a higher room by a lower one, and how many rooms they climb. Those for types alone count too."""
    found = []
    for each in imports:
        low, high = floor_of(each.importer, rooms), floor_of(each.imported, rooms)
        if low is not None and high is not None and low < high:
            found.append(Finding(high - low, f"{each.importer}:{each.line} -> {each.imported}"))
    return largest(found)


def between(imports: Iterable[Import], one: str, other: str) -> list[Finding]:
    """The imports from one of two packages to the other, in either direction."""
    return [
        Finding(1, f"{each.importer}:{each.line} -> {each.imported}")
        for each in imports
        if (each.importer.startswith(one) and each.imported.startswith(other))
        or (each.importer.startswith(other) and each.imported.startswith(one))
    ]


def unused_entries(sources: Sequence[Source], rooms: Sequence[Sequence[str]]) -> list[str]:
    """The entries of rooms that no file's path begins with."""
    paths = [source.path for source in sources]
    return [entry for entries in rooms for entry in entries if not any(path.startswith(entry) for path in paths)]


def without_room(sources: Iterable[Source], rooms: Sequence[Sequence[str]]) -> list[Finding]:
    """The files that no room takes."""
    return [Finding(1, source.path) for source in sources if floor_of(source.path, rooms) is None]


def rooms_in(layers: str) -> list[list[str]]:
    """The rooms of a table such as LAYERS, lowest first, each with the beginnings of its files' paths."""
    rows = [line.split() for line in layers.splitlines() if line.strip()]
    return [[f"{package}/{'' if entry == '*' else entry}" for entry in entries] for package, *entries in rows]


def floor_of(path: str, rooms: Sequence[Sequence[str]]) -> int | None:
    """Which room a file is in: the one with the longest entry that its path begins with."""
    fits = [(len(entry), floor) for floor, entries in enumerate(rooms) for entry in entries if path.startswith(entry)]
    return max(fits)[1] if fits else None


def largest(findings: Iterable[Finding]) -> list[Finding]:
    """Sorted by value, and alike ones by place."""
    return sorted(findings, key=lambda finding: (-finding.value, finding.where))


def _num_lines(source: Source) -> int:
    return len(source.text.splitlines())


def _definitions(
    node: ast.AST, around: str = "", in_class: bool = False
) -> Iterator[tuple[ast.ClassDef | _FUNCTION, str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # none is in an expression
        if isinstance(child, ast.ClassDef | _FUNCTION):
            name = f"{around}{child.name}"
            yield child, name, in_class
            yield from _definitions(child, f"{name}.", isinstance(child, ast.ClassDef))
        else:
            yield from _definitions(child, around, in_class)


def _definition(source: Source, node: ast.ClassDef | _FUNCTION, name: str, size: int) -> Definition:
    return Definition(source.path, node.lineno, name, (node.end_lineno or node.lineno) - node.lineno + 1, size)


def _makes_changeable(decorator: ast.expr) -> bool:
    match decorator:
        case ast.Name(id="dataclass"):
            return True
        case ast.Call(func=ast.Name(id="dataclass"), keywords=options):
            return not any(option.arg == "frozen" for option in options)
    return False


def _parameters(function: _FUNCTION, in_class: bool) -> int:
    taken = function.args
    num = len(taken.posonlyargs) + len(taken.args) + len(taken.kwonlyargs) + sum(map(bool, (taken.vararg, taken.kwarg)))
    static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in function.decorator_list)
    return num - (in_class and not static)


def _anys_in(node: ast.AST) -> int:
    """1 for the name itself, and what an annotation in quotes, or the type of a `cast` in quotes, holds."""
    match node:
        case ast.Name(id="Any") | ast.Attribute(value=ast.Name(id="typing" | "t"), attr="Any"):
            return 1
        case ast.arg(annotation=ast.expr() as annotation) | ast.AnnAssign(annotation=annotation):
            return _anys_in_quotes(annotation)
        case ast.FunctionDef(returns=ast.expr() as annotation) | ast.AsyncFunctionDef(returns=ast.expr() as annotation):
            return _anys_in_quotes(annotation)
        case ast.Call(func=ast.Name(id="cast" | "TypeVar"), args=[first, *_]):
            return _anys_in_quotes(first)
    return 0


def _anys_in_quotes(annotation: ast.expr) -> int:
    texts = (node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant))
    return sum(len(_ANY_IN_TEXT.findall(text)) for text in texts if isinstance(text, str))


def _reached(path: str, arrows: defaultdict[str, set[str]]) -> set[str]:
    """The files that one leads to, itself only if it is led back to."""
    reached: set[str] = set()
    ahead = list(arrows[path])
    while ahead:
        if (each := ahead.pop()) not in reached:
            reached.add(each)
            ahead.extend(arrows.get(each, ()))
    return reached
