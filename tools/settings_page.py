"""`python -m tools.settings_page`: generate docs/reference/configuration.md from the configuration, or check it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from fedmtl_core.config import Setting, reference
from tools.pages import write_or_check

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"

_INTRODUCTION = """\
# Configuration

<!-- Written from fedmtl_core/config by `make settings`. Not to be edited. -->

One YAML file serves the server, the clients and the launcher. Every key is optional but those marked as required; a key
that doesn't exist is an error that names it. `--set KEY=VALUE` overrides any on the command line.

The server's training settings reach its clients in the slice's header. `training.device`, the `client` section and a
task's `data` are each client's own, and so are the model's name and the numbers of rows where its own file gives them.

The file is YAML 1.1, which has surprises: `no` and `off` are false there, `12:30` is the number 750 and `0777` is 511.
None of them is taken for a number, and none for text without quotes: the error names the file, the line and what stands
there. `1e-3`, `1_000`, `0x1F` and numbers in quotes are numbers.
"""


def render(settings: Sequence[Setting]) -> str:
    """Return the page: a table for each section, with the default and meaning of every key."""
    sections = (
        "\n".join([f"## {section}", "", "| key | default | meaning |", "| --- | --- | --- |", *_rows(group)])
        for section, group in groupby(settings, key=lambda setting: setting.key.rpartition(".")[0] or "The run")
    )
    return "\n\n".join([_INTRODUCTION.rstrip(), *sections]) + "\n"


def _rows(settings: Iterator[Setting]) -> Iterator[str]:
    for setting in settings:
        default = f"`{setting.default}`" if setting.default else ""
        yield f"| `{setting.key}` | {default} | {setting.description} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page."""
    return write_or_check(
        arguments,
        module="tools.settings_page",
        purpose=__doc__ or "",
        page=PAGE,
        render=lambda: render(reference()),
        target="settings",
    )


if __name__ == "__main__":
    sys.exit(main())
