"""The tasks that share each part of the encoder, or train it together, after each round of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from fedmtl_core.config import Config
from fedmtl_core.config.sharing import VALIDATED
from fedmtl_core.config.stages import SOURCES
from fedmtl_core.model.scopes import LOCAL
from fedmtl_core.model.sharing import blocks_of
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.sharing.mixing_setup import mixed_parts
from fedmtl_server.sharing.source_changes import SourceState

NORMS = "norms"
"""The name of the normalization layers as a part, if they have a level of their own."""


class Via(Enum):
    """How a task's part of the encoder depends on other tasks."""

    COPY = "copy"
    """All tasks of the cell share one copy."""
    UPDATES = "updates"
    """The task has its own copy, which takes the updates of all tasks of the cell."""
    CLIENTS = "clients"
    """Each client has its own copy."""


@dataclass(frozen=True)
class Cell:
    """The sharing of some parts of one task's encoder after a round."""

    tasks: frozenset[str]
    """The tasks that share the copy, or whose updates it takes; the task itself is always one of them."""
    via: Via


@dataclass(frozen=True)
class SharingTimeline:
    """The sharing of a run by round."""

    tasks: Sequence[str]
    """The tasks in the run's order."""
    rounds: Sequence[int]
    """The rounds in ascending order; 0 is the start of the run."""
    cells: Mapping[tuple[str, ...], Mapping[str, Sequence[Cell]]]
    """By parts of the encoder that have the same sharing in all rounds: by task, a cell for each round."""

    @property
    def is_plain(self) -> bool:
        """Whether all tasks shared one copy of the whole encoder all the time."""
        return all(
            one.via is Via.COPY and len(one.tasks) == len(self.tasks)
            for by_task in self.cells.values()
            for cells in by_task.values()
            for one in cells
        )


def sharing_timeline(config: Config, parts: ModelParts, reports: Sequence[RoundReport]) -> SharingTimeline:
    """Return the sharing of a run by round.

    Args:
        config: the run's configuration.
        parts: the parts of the server's model, with any sharing.
        reports: the reports of the rounds that have ended, in order. The evaluation round is left out unless it changed
            the model.
    """
    mixed = mixed_parts(config, parts) if config.sharing.adaptive.policy == VALIDATED else {}
    columns = [_column(parts.moved({}), mixed, SourceState.start(parts.tasks))]
    rounds, state = [0], SourceState.start(parts.tasks)
    for report in reports:
        if report.purpose == "evaluate" and not (report.makes_final_model or report.moved):
            continue
        state = SourceState.of(report.stages.get(SOURCES.name, {}), parts.tasks)
        moved = {part: blocks_of(blocks) for part, blocks in report.sharing.items()}
        columns.append(_column(parts.moved(moved), mixed, state))
        rounds.append(report.round)
    together: dict[tuple[tuple[Cell, ...], ...], list[str]] = {}
    for part in columns[0]:
        rows = tuple(tuple(column[part][task] for column in columns) for task in parts.tasks)
        together.setdefault(rows, []).append(part)
    cells = {tuple(names): dict(zip(parts.tasks, rows, strict=True)) for rows, names in together.items()}
    return SharingTimeline(parts.tasks, rounds, cells)


def _column(parts: ModelParts, mixed: Mapping[str, object], state: SourceState) -> dict[str, dict[str, Cell]]:
    """Return a cell for each task, by part of the encoder."""
    names = {part: mine[0] for part, mine in parts.regroupable().items() if mine}
    if parts.rules.norms is not None and parts.shape.norms:
        names[NORMS] = next(name for name in parts.shape.parts if name in parts.shape.norms)
    return {part: _cells(parts, name, state if part in mixed else None) for part, name in names.items()}


def _cells(parts: ModelParts, name: str, state: SourceState | None) -> dict[str, Cell]:
    """Return a cell for each task for the part with a parameter; `state` is None if the policy doesn't mix the part."""
    cells = {}
    for block in parts.blocks(name):
        for task in block:
            if parts.table.by_task[task][name] == LOCAL:
                cells[task] = Cell(frozenset((task,)), Via.CLIENTS)
            elif state is None:
                cells[task] = Cell(frozenset(block), Via.COPY)
            else:
                cells[task] = Cell(frozenset(state.sources[task]), Via.UPDATES)
    return cells
