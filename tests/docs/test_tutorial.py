"""The tutorial, followed word for word in an empty folder."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.docs.pages import Terminal, Type, WriteFile, require_shown, steps, with_section_extended

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
TIMEOUT_S = 600.0


@pytest.mark.skipif("FEDMTL_TUTORIAL" not in os.environ, reason="several minutes: `make tutorial`")
def test_who_follows_the_tutorial_sees_what_it_shows(tmp_path):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "160",
        "HF_HUB_OFFLINE": "1",  # nothing is downloaded
    }
    terminals: dict[str, Terminal] = {}
    with ExitStack() as stack:
        for step in steps(TUTORIAL.read_text(encoding="utf-8")):
            if isinstance(step, WriteFile):
                _write(tmp_path, step)
            elif not step.terminal:
                _run(tmp_path, step, environment)
            else:
                if step.terminal not in terminals:
                    terminals[step.terminal] = Terminal(step.terminal, tmp_path, environment)
                    stack.callback(terminals[step.terminal].close)
                if step.command:
                    terminals[step.terminal].start(step.command, TIMEOUT_S)
                terminals[step.terminal].await_shown(step.shown, TIMEOUT_S)
        assert {name: terminal.end(60) for name, terminal in terminals.items()} == dict.fromkeys(terminals, 0)


def _write(folder: Path, step: WriteFile) -> None:
    path = folder / step.name
    text = with_section_extended(path.read_text(), step.section, step.text) if step.section else step.text
    path.write_text(text)


def _run(folder: Path, step: Type, environment: dict[str, str]) -> None:
    result = subprocess.run(
        ["bash", "-c", step.command], cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"$ {step.command}\n{output}"
    require_shown(step.shown, output.splitlines())
