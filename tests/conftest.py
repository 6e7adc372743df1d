"""What holds for all tests."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logging_as_nobody_has_set_it() -> Iterator[None]:
    """A test that sets how logs look, or how few of them, sets it for itself."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
