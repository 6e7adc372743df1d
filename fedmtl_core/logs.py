"""Logging: events with key-value context, as console lines for people or as JSON for machines."""

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
"""The lowest level to log; lines of higher levels are logged too."""

LEVELS = ("info", "warning", "error", "critical")
"""The levels of log lines, in ascending order."""

Logger = structlog.stdlib.BoundLogger

JOINED = "run.joined"
"""The event that a client logs when the server has accepted it; `fedmtl-local` waits for it."""

TRAINED = "round.trained"
"""The event that a client logs after its training and evaluations in a round, with the `seconds` of the training and
the `evaluation_seconds` of all its evaluations in the round."""

EVALUATED = "model.evaluated"
"""The event that a client logs after a round that only evaluates, with its `evaluation_seconds`."""


def configure(log_format: LogFormat = "console", level: str = "info") -> None:
    """Send every log line of this process to standard error in one format, and silence libraries."""
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                sort_keys=False,
                exception_formatter=structlog.dev.plain_traceback,  # other formatters show the values of variables
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
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # at call time: a progress bar may replace stderr
        cache_logger_on_first_use=False,
    )
    _silence_libraries()


def level_of(line: str) -> str:
    """Return the level of a console line; empty for lines that begin no event, such as those of a traceback."""
    found = re.match(r"\S+ \[(\w+) *\]", line)
    return found[1] if found and found[1] in LEVELS else ""


def event_of(line: str) -> str:
    """Return the event of a console line; empty for lines that begin no event."""
    found = re.match(r"\S+ \[\w+ *\] (\S+)", line)
    return found[1] if found else ""


def value_in(line: str, key: str) -> str | None:
    """Return the text of a value in a console line, without its quotes; None if the line doesn't have the key."""
    found = re.search(rf" {re.escape(key)}=(?:'([^']*)'|(\S+))", line)
    return None if found is None else found[1] if found[1] is not None else found[2]


def be_quiet_unless_configured() -> None:
    """If the program hasn't configured structlog, log only warnings and errors, to standard error.

    Otherwise structlog would print every line.
    """
    if not structlog.is_configured():
        configure(level="warning")


def get_logger(**context: object) -> Logger:
    """Return a logger that adds these key-value pairs to every line."""
    return cast(Logger, structlog.get_logger(**context))


def _round_floats(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: _rounded(value) for key, value in event.items()}


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value


def _silence_libraries() -> None:
    """Keep the model hub's progress bars and retry notices out of the log; failures become FedMTL's own errors."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
