"""Changes of the tasks' sources from round to round, read from the saved states of the rounds.

This module works on names only. It needs neither PyTorch nor the model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedmtl_core.json_types import JsonObject
from fedmtl_server.sharing.source_selection import OWN, Sources, sources_of

Kind = Literal["began", "confirmed", "reverted", "accepted", "followed"]
"""The kind of a change: a trial of other sources began, was confirmed or was reverted; a candidate was accepted; or an
auxiliary task followed the tasks that take its updates."""

_REASONS: Mapping[Kind, str] = {
    "began": "trial of a task of the same type began",
    "confirmed": "trial confirmed: own updates only were worse",
    "reverted": "trial not confirmed: own updates only were not worse by the margins",
    "accepted": "lower calibrated loss",
    "followed": "follows the tasks that take its updates",
}


@dataclass(frozen=True)
class SourceState:
    """The sources in effect after a round."""

    sources: Mapping[str, Sources]
    """By task, the tasks whose updates its layers take, in the run's order."""
    trials: Collection[str] = ()
    """The tasks whose sources are on trial."""
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
        trials = [task for task, one in selections.items() if one["is_trial"]]
        return cls(sources_of(selected, tasks), trials, [task for task in tasks if task not in selected])


@dataclass(frozen=True)
class SourceChange:
    """A change of the sources of one task, or the confirmation of its sources."""

    task: str
    kind: Kind
    before: Sources
    after: Sources

    @property
    def reason(self) -> str:
        """The reason in words."""
        return _REASONS[self.kind]

    def is_decided_by(self, candidate: str, *, is_chosen: bool) -> bool:
        """Return whether the comparison with a candidate decided this change.

        Args:
            candidate: the candidate's name.
            is_chosen: whether the task's model has the candidate's values after the round.
        """
        if self.kind in ("confirmed", "reverted"):
            return candidate == OWN
        return self.kind == "accepted" and is_chosen


def source_changes(before: SourceState, after: SourceState) -> list[SourceChange]:
    """Return the changes between two states, in the order of the tasks."""
    changes = []
    for task, now in after.sources.items():
        earlier = before.sources[task]
        was_trial, is_trial = task in before.trials, task in after.trials
        kinds: list[Kind] = []
        if task in after.auxiliary:
            kinds = ["followed"] if now != earlier else []
        elif is_trial:
            kinds = [] if was_trial else ["began"]
        elif was_trial and now == (task,):
            kinds = ["reverted"]
        else:
            kinds = ["confirmed"] if was_trial else []
            kinds += ["accepted"] if now != earlier else []
        changes += [SourceChange(task, kind, earlier, earlier if kind == "confirmed" else now) for kind in kinds]
    return changes
