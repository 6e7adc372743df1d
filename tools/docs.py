"""What the documentation has of the code: MkDocs calls this (`hooks` in `mkdocs.yml`)."""

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
from fedmtl_local.cli import app as local
from fedmtl_local.new.cli import new_federation_app as new
from fedmtl_server.commands.app import app as server


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page that nobody writes."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def commands() -> str:
    """Every command line's options and commands."""
    pages = [_command(app, name) for name, app in _APPS.items()]
    return "\n\n".join(["# Command lines", *pages])


_APPS = {
    "fedmtl-server": server,
    "fedmtl-client": client,
    "fedmtl-client doctor": doctor,
    "fedmtl-client init": init,
    "fedmtl-local": local,
    "fedmtl-local new": new,
}


def _command(app: typer.Typer, name: str) -> str:
    command = typer.main.get_command(app)
    command.epilog = None  # the configuration has a page of its own
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name=name, indent=1).strip()


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave the names of files beside `docs/`, to which the site has no links."""
    return re.sub(r"\[([^]]+)\]\(\.\./(?:\.\./)?(?:protos|tests|fedmtl_|examples|configs)[^)]*\)", r"\1", markdown)
