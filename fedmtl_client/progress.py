"""Training progress for people: a bar on a terminal, otherwise one log line per epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedmtl_client.trainer import Step
from fedmtl_core.logs import get_logger


@contextmanager
def training_progress(title: str, *, bar: bool) -> Iterator[Callable[[Step], None]]:
    """Yield a function to call with every step. It shows progress from the first step to the last.

    Args:
        title: the round's name.
        bar: whether to show a bar if standard error is a terminal.
    """
    if not (bar and sys.stderr.isatty()):
        yield lambda step: _log_epoch(title, step)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(title, total=None, loss=float("nan"))

    def show(step: Step) -> None:
        progress.start()
        progress.update(
            task,
            description=f"{title}, epoch {step.epoch}/{step.num_epochs}",
            total=step.num_steps,
            completed=step.step,
            loss=step.loss,
        )
        if step.step == step.num_steps:
            progress.stop()

    try:
        yield show
    finally:
        if progress.live.is_started:
            progress.stop()


def _log_epoch(title: str, step: Step) -> None:
    if step.epoch_ended:
        get_logger().info("epoch.trained", progress=title, epoch=f"{step.epoch}/{step.num_epochs}", loss=step.loss)
