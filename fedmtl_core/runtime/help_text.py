"""Help texts from docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

_Command = TypeVar("_Command", bound=Callable[..., object])


def reflowed(command: _Command) -> _Command:
    """Join the lines of each paragraph of a command's docstring, because typer keeps line breaks in a help text."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    command.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return command
