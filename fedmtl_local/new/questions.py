"""Facts from options, from a person at a terminal, or from proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from fedmtl_core.errors import ConfigError, DataError, ModelUnavailableError

_T = TypeVar("_T")
_ERRORS = (ValueError, ConfigError, DataError, ModelUnavailableError)
_EXIT_INTERRUPTED, _EXIT_END = 130, 1


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
        check: Callable[[_T], object] = lambda fact: None,
    ) -> _T:
        """One fact.

        Args:
            question: what a person is asked.
            parse: makes the fact of a text; `ValueError` and FedMTL's errors say why it can't.
            option: the command line's option for the fact.
            given: the option's value, if it was given.
            proposed: the fact that is taken if nobody says another; None if nothing can be proposed.
            why_needed: why nothing can be proposed.
            check: called with the fact, also if it was proposed; raises what `parse` raises.

        Raises:
            ConfigError: the option's value is wrong, or the fact is missing and nobody can be asked.
        """
        if self.asks and given is None:
            if why_needed and proposed is None:
                typer.echo(why_needed)
            return self._ask(question, parse, option, proposed, check)
        try:
            if given is not None:
                fact = parse(given)
            elif proposed is not None:
                fact = proposed
            else:
                raise ConfigError(f"{option}: needed{f': {why_needed}' if why_needed else ''}")
            check(fact)
        except ValueError as error:
            raise ConfigError(f"{option}: {error}") from None
        return fact

    def _ask(
        self,
        question: str,
        parse: Callable[[str], _T],
        option: str,
        proposed: _T | None,
        check: Callable[[_T], object],
    ) -> _T:
        """A person's answer; a wrong one is asked for again."""
        shown = _shown(proposed)

        def parsed(text: str) -> _T:
            try:
                fact = proposed if proposed is not None and text == shown else parse(text)
                check(fact)
            except _ERRORS as error:
                raise typer.BadParameter(str(error).removeprefix(f"{option}: ")) from None
            return fact

        try:
            answer: _T = typer.prompt(
                question,
                default=None if proposed is None else shown,
                show_default=bool(shown),
                value_proc=parsed,
            )
        except typer.Abort as error:
            typer.echo("\nnothing was written", err=True)
            is_interrupt = isinstance(error.__context__, KeyboardInterrupt)
            raise typer.Exit(_EXIT_INTERRUPTED if is_interrupt else _EXIT_END) from None
        return answer


def _shown(value: object) -> str:
    """A proposal as the text that a person would type for it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
