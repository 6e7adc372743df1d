"""The undisturbed run that others are held against, and a place for what a test has to say when it went well."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.faults.harness import Undisturbed, run_undisturbed

_SAID = "said"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return asyncio.run(run_undisturbed(tmp_path_factory.mktemp("faults") / "undisturbed"))


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Have a line shown at the end, whether the test passes or not; it gets there from other processes too."""
    return lambda line: record_property(_SAID, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [one for some in terminalreporter.stats.values() for one in some if isinstance(one, pytest.TestReport)]
    for report in reports:
        for name, line in report.user_properties if report.when == "call" else ():
            if name == _SAID:
                terminalreporter.write_line(str(line))
