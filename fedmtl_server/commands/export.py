"""`fedmtl-server export`: writes a run's model as a folder for Hugging Face's libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedmtl_core import logs
from fedmtl_core.errors import UserError
from fedmtl_server.commands.runs import RunsDir, Url
from fedmtl_server.storage.runs import find_run

if TYPE_CHECKING:
    from fedmtl_server.export.folders import Exported


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="Task whose model is written.")] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Write the encoder and all heads instead of one task's model.")
    ] = False,
    adapters: Annotated[
        bool,
        typer.Option("--adapters", help="Write only the task's adapters and head, for PeftModel.from_pretrained."),
    ] = False,
    run_dir: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    run: Annotated[
        str | None,
        typer.Option(help="Id of the run or a prefix of the id, or its folder's name; replaces --run-dir."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    url: Url = None,
    round_: Annotated[
        str,
        typer.Option(
            "--round",
            metavar="N|best|last",
            help="Model to write: that of a round, the last, or the best by the task's main metric.",
        ),
    ] = "last",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files in the folder.")] = False,
) -> None:
    """Write a task's model for AutoModelForSequenceClassification, with its tokenizer and a model card."""
    logs.configure(level="warning")
    if (task is None) == (not all_):
        raise UserError("expected either --task TASK, or --all for the encoder and all heads")
    if adapters and task is None:
        raise UserError("--adapters: expected --task TASK with it, since each task has its own head")
    if (run_dir is None) == (run is None):
        raise UserError("expected either --run-dir DIR, or --run with an id from `fedmtl-server runs list`")
    which = _round(round_)
    place = run_dir if run_dir is not None else find_run(run or "", runs_dir, url).folder

    from transformers.utils.logging import disable_progress_bar

    from fedmtl_server.export.folders import export_adapters, export_all, export_task  # imports PyTorch
    from fedmtl_server.saved_runs import open_run

    disable_progress_bar()
    opened = open_run(place)
    if task is None:
        done = export_all(opened, folder, which, force=force)
        typer.echo(f"wrote {folder}: the model of round {done.round}, encoder ({done.architecture}) and all heads")
        return
    if adapters:
        done, source = export_adapters(opened, task, folder, which, force=force), opened.config.model.server_model
        typer.echo(f"wrote {folder}: {_adapters_text(task, done, source)}")
        return
    done = export_task(opened, task, folder, which, force=force)
    remote = "" if done.is_native else ", with trust_remote_code=True and its modeling_fedmtl.py"
    typer.echo(f"wrote {folder}: {task}, the model of round {done.round}, for {done.architecture}{remote}")


def _adapters_text(task: str, done: Exported, source: str) -> str:
    untried = "" if done.is_tried else f"; not tried on {source}, whose weights aren't on this machine"
    return (
        f"{task}, the adapters and head of round {done.round}, for {done.architecture} with the weights of "
        f"{source}{untried}"
    )


def _round(text: str) -> int | Literal["best", "last"]:
    if text == "best" or text == "last":
        return text  # type: ignore[return-value]
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"--round: expected a round's number, best or last, got {text!r}")
    return int(text)
