"""The changes of a run's sharing, and the trials that decided them, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmtl_core.model.sharing import blocks_text, parts_text

if TYPE_CHECKING:
    from fedmtl_server.sharing.source_changes import SourceChange
    from fedmtl_server.storage.sharing_history import DecidedChange, Move, Trial


def move_text(move: Move) -> str:
    """Return a change of layers in words: `layers 0-1: sst2+qqp becomes sst2 | qqp, by sharing.schedule[0]`."""
    cause = f", by {move.cause}" if move.cause else ""
    return f"{parts_text(move.parts)}: {blocks_text(move.before)} becomes {blocks_text(move.after)}{cause}"


def change_text(decided: DecidedChange) -> str:
    """Return a change of a task's sources in words, with the trial that decided it.

    For example: `stsb takes sick's updates: calibrated loss -0.123 ± 0.020 on 400 rows (of 0.836)`.
    """
    change, task = decided.change, decided.change.task
    difference = _difference_text(change)
    if change.kind == "followed":
        return f"{task} {difference}: an auxiliary task takes the updates of the tasks that take its updates"
    result = f": {trial_text(decided.trial)}" if decided.trial is not None else ""
    return f"{task} {difference}{result}"


def trial_text(trial: Trial) -> str:
    """Return the result of a trial in words: `calibrated loss -0.123 ± 0.020 on 400 rows (of 0.836)`."""
    if trial.loss is None or trial.loss_difference is None:
        return "not evaluated"
    return (
        f"calibrated loss {difference_and_error(trial)} on {trial.num_examples} rows "
        f"(of {trial.loss - trial.loss_difference:.3f})"
    )


def difference_and_error(trial: Trial) -> str:
    error = "" if trial.standard_error is None else f" ± {trial.standard_error:.3f}"
    return "-" if trial.loss_difference is None else f"{trial.loss_difference:+.3f}{error}"


def _difference_text(change: SourceChange) -> str:
    """Return the difference between a task's sources before and after: `takes sick's updates`."""
    gained = [task for task in change.after if task not in change.before]
    lost = [task for task in change.before if task not in change.after]
    texts = [f"takes {_updates_of(gained)}"] if gained else []
    texts += [f"no longer takes {_updates_of(lost)}"] if lost else []
    return " and ".join(texts)


def _updates_of(tasks: Sequence[str]) -> str:
    """Return `a's and b's updates`, or a list if there are many tasks."""
    if len(tasks) > 3:
        return f"the updates of {', '.join(tasks)}"
    return " and ".join(f"{task}'s" for task in tasks) + " updates"


def rounds_text(rounds: Sequence[int]) -> str:
    """Return rounds in ascending order with ranges: `2-4, 8`."""
    runs: list[list[int]] = []
    for round_ in rounds:
        if runs and round_ == runs[-1][-1] + 1:
            runs[-1].append(round_)
        else:
            runs.append([round_])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
