"""The undisturbed run that others are held against, and a place for what a test has to say when it went well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.faults.harness import Undisturbed, run_undisturbed

_SAID = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return asyncio.run(run_undisturbed(tmp_path_factory.mktemp("faults") / "undisturbed"))


@pytest.fixture
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Have a line shown at the end, whether the test passes or not."""
    return pytestconfig.stash.setdefault(_SAID, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_SAID, []):
        terminalreporter.write_line(line)
