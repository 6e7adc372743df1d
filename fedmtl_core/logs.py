"""Logging: an event and its facts, as a console line for people or as JSON for machines."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Literal, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

LogFormat = Literal["console", "json"]
LogLevel = Literal["info", "warning", "error"]
"""Lines of this level and those above it."""

LEVELS = ("info", "warning", "error", "critical")
"""What a line may be, the least first."""

Logger = structlog.stdlib.BoundLogger

JOINED = "run.joined"
"""What a client's log says when the server has taken it in; `fedmtl-local` looks for it."""


def configure(log_format: LogFormat = "console", level: str = "info") -> None:
    """Send every log line of this process to standard error in one format, and quieten the libraries."""
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                sort_keys=False,
                exception_formatter=structlog.dev.plain_traceback,  # the others show the values of variables
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(
                fmt="iso" if log_format == "json" else "%H:%M:%S", utc=log_format == "json"
            ),
            _round_floats,
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # looked up late: a progress bar may wrap it
        cache_logger_on_first_use=False,
    )
    _quieten_libraries()


def level_of(line: str) -> str:
    """The level of a console line; empty for what isn't one's beginning, such as a line of a traceback."""
    found = re.match(r"\S+ \[(\w+) *\]", line)
    return found[1] if found and found[1] in LEVELS else ""


def be_quiet_unless_configured() -> None:
    """Within a program that hasn't configured structlog, log warnings and errors alone, to standard error.

    structlog would otherwise print every line.
    """
    if not structlog.is_configured():
        configure(level="warning")


def get_logger(**facts: object) -> Logger:
    """A logger whose lines all carry these facts."""
    return cast(Logger, structlog.get_logger(**facts))


def _round_floats(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: _rounded(value) for key, value in event.items()}


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value


def _quieten_libraries() -> None:
    """Keep progress bars and retry notices of the model hub out of the log; failures reach it as our errors."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
