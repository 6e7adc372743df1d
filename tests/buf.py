"""buf for tests, in the Makefile's version, as npx has it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@functools.cache
def _command() -> tuple[str, ...] | str:
    """How to call buf, or why it can't be called."""
    npx = shutil.which("npx")
    if npx is None:
        return "npx isn't installed"
    package = re.search(r"^BUF .*(@bufbuild/buf@\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert package is not None
    command = (npx, "--yes", package[1])
    try:
        subprocess.run([*command, "--version"], check=True, capture_output=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        return f"npx doesn't get buf: {(error.stderr or b'it took too long').decode(errors='replace').strip()[-300:]}"
    return command


def buf() -> tuple[str, ...]:
    """How to call buf. Without it the test is skipped, or with CI=true fails."""
    command = _command()
    if isinstance(command, tuple):
        return command
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{command}, and CI=true wants no test skipped for that")
    pytest.skip(command)
