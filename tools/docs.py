"""MkDocs hooks that add generated content to the documentation (`hooks` in `mkdocs.yml`)."""

from __future__ import annotations

import re

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from fedmtl_client.cli import app as client
from fedmtl_client.doctor_cli import doctor_app as doctor
from fedmtl_client.init_cli import init_app as init
from fedmtl_experiment.cli import app as experiment
from fedmtl_local.cli import app as local
from fedmtl_local.new.cli import new_federation_app as new
from fedmtl_server.commands.app import app as server


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of commands, which is generated."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def commands() -> str:
    """Return the page with the options and commands of every command line."""
    pages = [_command(app, name) for name, app in _APPS.items()]
    return "\n\n".join(["# Command lines", *pages])


_APPS = {
    "fedmtl-server": server,
    "fedmtl-client": client,
    "fedmtl-client doctor": doctor,
    "fedmtl-client init": init,
    "fedmtl-local": local,
    "fedmtl-local new": new,
    "fedmtl-experiment": experiment,
}


def _command(app: typer.Typer, name: str) -> str:
    command = typer.main.get_command(app)
    command.epilog = None  # the configuration has a page of its own
    _keep_summaries(command)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name=name, indent=1).strip()


def _keep_summaries(command: object) -> None:
    """Set the first sentence of each command's help as its summary, which click would cut after a few words."""
    for inner in getattr(command, "commands", {}).values():
        inner.short_help = (inner.help or "").partition("\n\n")[0].partition(". ")[0].rstrip(".") + "."
        _keep_summaries(inner)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files outside `docs/` with their names, because the site doesn't contain them."""
    return re.sub(r"\[([^]]+)\]\(\.\./(?:\.\./)?(?:protos|tests|fedmtl_|examples|configs)[^)]*\)", r"\1", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the keys and names that begin a table's rows break after dots and underscores, where the page is narrow."""
    return re.sub(r"(?<=<td><code>)[^<]+(?=</code>)", lambda name: re.sub(r"([._])", r"\1<wbr>", name[0]), html)
