"""A page of the documentation as something to be followed: files to write, commands to type, and what they show."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ANY = "…"
"""Stands for anything within a line; alone on a line, for any lines."""
_BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]*)")?\n(?P<body>.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class WriteFile:
    """Text that the reader puts into a file, or at the end of one of its sections."""

    name: str
    section: str
    text: str


@dataclass(frozen=True)
class Type:
    """A command that the reader types, and what it then shows; without one, what a running command goes on to show."""

    terminal: str
    """Empty for one where every command is waited for."""
    command: str
    shown: Sequence[str]


def steps(markdown: str) -> Iterator[WriteFile | Type]:
    """What a page tells its reader to do, in order."""
    for block in _BLOCK.finditer(markdown):
        title, body = block["title"] or "", block["body"]
        if block["language"] == "console":
            yield from _typed(title, body.splitlines())
        elif title:
            name, _, section = title.partition(", at the end of ")
            yield WriteFile(name, section, body)


def _typed(terminal: str, lines: Sequence[str]) -> Iterator[Type]:
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    if not starts or starts[0] > 0:
        yield Type(terminal, "", lines[: starts[0]] if starts else lines)
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        yield Type(terminal, lines[start].removeprefix("$ "), lines[start + 1 : end])


def with_section_extended(text: str, section: str, addition: str) -> str:
    """A YAML file's text with lines added at the end of one of its top-level sections."""
    lines = text.splitlines(keepends=True)
    first = lines.index(f"{section}:\n")
    end = next((i for i in range(first + 1, len(lines)) if lines[i][0] not in " #\n"), len(lines))
    return "".join([*lines[:end], addition, *lines[end:]])


def require_shown(expected: Sequence[str], lines: Sequence[str]) -> None:
    """Check that lines are the expected ones.

    Raises:
        AssertionError: they aren't; says which.
    """
    rest = [line for line in lines if line.strip()]
    anything = False
    for pattern in expected:
        if pattern.strip() == ANY:
            anything = True
            continue
        where = next((i for i, line in enumerate(rest) if _matches(pattern, line)), None)
        assert where is not None, f"expected {pattern!r} in:\n" + "\n".join(rest)
        assert anything or where == 0, f"expected {pattern!r}, got {rest[0]!r}"
        rest, anything = rest[where + 1 :], False
    assert anything or not rest or not expected, f"shown besides: {rest}"


def _matches(pattern: str, line: str) -> bool:
    parts = (re.escape(" ".join(part.split())) for part in pattern.split(ANY))
    return re.fullmatch(r"\s*.*\s*".join(parts), " ".join(line.split())) is not None


class Terminal:
    """A terminal in which a command goes on while the reader does other things."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]):
        self.name = name
        self._folder, self._environment = folder, environment
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._changed = threading.Condition()

    def start(self, command: str, timeout_s: float) -> None:
        """Type a command, once the one before has ended."""
        if self._process is not None:
            self._process.wait(timeout_s)
        self._lines = []
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def await_shown(self, expected: Sequence[str], timeout_s: float) -> None:
        """Wait for lines, in their order; others may come between them.

        Raises:
            AssertionError: one doesn't come.
        """
        give_up = time.monotonic() + timeout_s
        for pattern in expected:
            with self._changed:
                while (where := self._find(pattern)) is None:
                    left = give_up - time.monotonic()
                    shown = "\n".join(self._lines)
                    assert left > 0, f"{self.name}: expected {pattern!r} in {timeout_s:g} s, after:\n{shown}"
                    self._changed.wait(min(left, 1.0))
                del self._lines[: where + 1]

    def end(self, timeout_s: float) -> int:
        """The exit status of the last command, which is to end by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """End what is still running."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _find(self, pattern: str) -> int | None:
        return next((i for i, line in enumerate(self._lines) if _matches(pattern, line)), None)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
