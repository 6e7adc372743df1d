"""Every fuzz target with its seeds and with what was found, and for a moment with inputs of its own making."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"
SECONDS = 25
"""Beside the time it takes to start."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_target_starts_from_does_no_harm(name):
    for data in TARGETS[name].seeds():
        assert len(data) <= TARGETS[name].max_bytes
        TARGETS[name].run(data)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_did_harm_does_none_any_more(path):
    TARGETS[path.parent.name].run(path.read_bytes())


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has wheels for Linux on x86-64 only")
def test_half_a_minute_of_fuzzing_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "any", f"--seconds={SECONDS}", f"--folder={tmp_path}", "--seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
