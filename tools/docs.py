"""The pages of the documentation that are made of the code: MkDocs calls this (`hooks` in `mkdocs.yml`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from fedmtl_client.cli import app as client
from fedmtl_core.config import Setting, reference
from fedmtl_local.cli import app as local
from fedmtl_server.cli import app as server


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that nobody writes."""
    pages: dict[str, Callable[[], str]] = {
        "reference/configuration.md": configuration,
        "reference/commands.md": commands,
    }
    for path, page in pages.items():
        files.append(File.generated(config, path, content=page()))
    return files


def configuration() -> str:
    """Every configuration key, a table for each section."""
    return "\n".join(
        [
            "# Configuration",
            "",
            "One YAML file serves the server, the clients and the launcher. Every key is optional but those marked as "
            "required; `--set KEY=VALUE` overrides any on the command line. A key that doesn't exist is an error that "
            "names it.",
            *_sections(),
        ]
    )


def _sections() -> Iterator[str]:
    current = ""
    for setting in reference():
        section, _, key = setting.key.rpartition(".")
        if section != current:
            current = section
            yield from (
                "",
                f"## {section.replace('[]', '[…]')}",
                "",
                "| key | default | meaning |",
                "| --- | --- | --- |",
            )
        yield _row(key, setting)


def _row(key: str, setting: Setting) -> str:
    default = f"`{setting.default}`" if setting.default else ""
    return f"| `{key}` | {default} | {setting.description} |"


def commands() -> str:
    """Every command line's options and commands."""
    pages = [_command(app, name) for name, app in _APPS.items()]
    return "\n\n".join(["# Command lines", *pages])


_APPS = {"fedmtl-server": server, "fedmtl-client": client, "fedmtl-local": local}


def _command(app: typer.Typer, name: str) -> str:
    command = typer.main.get_command(app)
    command.epilog = None  # the configuration has a page of its own
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name=name, indent=1).strip()


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave the names of files beside `docs/`, to which the site has no links."""
    return re.sub(r"\[([^]]+)\]\(\.\./(?:\.\./)?(?:protos|tests|fedmtl_|examples|configs)[^)]*\)", r"\1", markdown)
