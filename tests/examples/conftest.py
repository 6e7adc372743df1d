"""Which example clients there are to test. CI has all of them; elsewhere what is missing is skipped, and says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import pytest

from tests.examples.languages import LANGUAGES, Language


@pytest.fixture(scope="session")
def missing_languages() -> Mapping[str, str]:
    """By language, why it can't be tested. All others are built from what is in the tree now."""
    missing = {name: reason for name, one in LANGUAGES.items() if (reason := one.why_missing()) is not None}
    for name in LANGUAGES.keys() - missing.keys():
        LANGUAGES[name].bring_up_to_date()
    return missing


@pytest.fixture(scope="session")
def language_named(missing_languages: Mapping[str, str]) -> Callable[[str], Language]:
    def get(name: str) -> Language:
        if (reason := missing_languages.get(name)) is not None:
            give_up(reason)
        return LANGUAGES[name]

    return get


@pytest.fixture(scope="session")
def languages(missing_languages: Mapping[str, str]) -> Mapping[str, Language]:
    """All that can be tested; at least one."""
    if (missing_languages and os.environ.get("CI") == "true") or len(missing_languages) == len(LANGUAGES):
        give_up("; ".join(missing_languages.values()))
    return {name: one for name, one in LANGUAGES.items() if name not in missing_languages}


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest, language_named: Callable[[str], Language]) -> Language:
    """Each in its turn."""
    return language_named(request.param)


def give_up(reason: str) -> None:
    """Skip, or fail where nothing may be missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
