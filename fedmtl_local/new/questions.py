"""Facts from options, from a person at a terminal, or from proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from fedmtl_core.errors import ConfigError, DataError

_T = TypeVar("_T")


class Questions:
    """Finds each fact: the option wins; a person is asked if there is one; else the proposal is taken.

    Args:
        asks: whether there is a person at a terminal.
    """

    def __init__(self, *, asks: bool):
        self.asks = asks

    def find(
        self,
        question: str,
        parse: Callable[[str], _T],
        *,
        option: str,
        given: str | None = None,
        proposed: _T | None = None,
        why_needed: str = "",
    ) -> _T:
        """One fact.

        Args:
            question: what a person is asked.
            parse: makes the fact of a text; `ValueError` and FedMTL's errors say why it can't.
            option: the command line's option for the fact.
            given: the option's value, if it was given.
            proposed: the fact that is taken if nobody says another; None if nothing can be proposed.
            why_needed: why nothing can be proposed.

        Raises:
            ConfigError: the option's value is wrong, or the fact is missing and nobody can be asked.
        """
        if given is not None:
            try:
                return parse(given)
            except ValueError as error:
                raise ConfigError(f"{option}: {error}") from None
        if not self.asks:
            if proposed is None:
                raise ConfigError(f"{option}: needed{f': {why_needed}' if why_needed else ''}")
            return proposed
        if why_needed and proposed is None:
            typer.echo(why_needed)
        shown = _shown(proposed)
        answer: _T = typer.prompt(
            question,
            default=None if proposed is None else shown,
            show_default=bool(shown),
            value_proc=lambda text: proposed if proposed is not None and text == shown else _parsed(parse, text),
        )
        return answer


def _parsed(parse: Callable[[str], _T], text: str) -> _T:
    """A person's answer; a wrong one is asked for again."""
    try:
        return parse(text)
    except (ValueError, ConfigError, DataError) as error:
        raise typer.BadParameter(str(error)) from None


def _shown(value: object) -> str:
    """A proposal as the text that a person would type for it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
