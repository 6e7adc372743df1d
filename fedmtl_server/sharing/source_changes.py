"""Changes of the tasks' sources from round to round, read from the saved states of the rounds.

This module works on names only. It needs neither PyTorch nor the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmtl_core.json_types import JsonObject
from fedmtl_server.sharing.source_selection import Sources, sources_of

Kind = Literal["accepted", "followed"]
"""The kind of a change: a candidate was accepted, or an auxiliary task followed the tasks that take its updates."""

_REASONS: Mapping[Kind, str] = {
    "accepted": "lower calibrated loss",
    "followed": "follows the tasks that take its updates",
}


@dataclass(frozen=True)
class SourceState:
    """The sources in effect after a round."""

    sources: Mapping[str, Sources]
    """By task, the tasks whose updates its layers take, in the run's order."""
    auxiliary: Collection[str] = ()
    """The tasks that have no trials of their own."""

    @classmethod
    def start(cls, tasks: Sequence[str]) -> SourceState:
        """Return the state before the first round: each task takes its own updates only."""
        return cls({task: (task,) for task in tasks})

    @classmethod
    def of(cls, saved: JsonObject, tasks: Sequence[str]) -> SourceState:
        """Return the state that the stage `sources` saved.

        Args:
            saved: the stage's part of a round's report; empty before the first round with an update.
            tasks: all tasks, in the run's order.
        """
        selections = saved.get("selections")
        if not selections:
            return cls.start(tasks)
        selected = {task: tuple(one["sources"]) for task, one in selections.items()}
        return cls(sources_of(selected, tasks), [task for task in tasks if task not in selected])


@dataclass(frozen=True)
class SourceChange:
    """A change of the sources of one task."""

    task: str
    kind: Kind
    before: Sources
    after: Sources

    @property
    def reason(self) -> str:
        """The reason in words."""
        return _REASONS[self.kind]


def source_changes(before: SourceState, after: SourceState) -> list[SourceChange]:
    """Return the changes between two states, in the order of the tasks."""
    return [
        SourceChange(task, "followed" if task in after.auxiliary else "accepted", before.sources[task], now)
        for task, now in after.sources.items()
        if now != before.sources[task]
    ]
