"""What becomes of tests that need buf where there is none."""

import pytest

from tests import buf


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_they_are_skipped_and_in_ci_they_fail(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(buf.shutil, "which", lambda name: None)
    buf._command.cache_clear()
    try:
        with pytest.raises(outcome, match="npx isn't installed"):
            buf.buf()
    finally:
        buf._command.cache_clear()
