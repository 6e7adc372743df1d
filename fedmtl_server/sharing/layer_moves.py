"""The stage that regroups layers during a run, as a schedule and a sharing policy decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmtl_core.config import SharingConfig
from fedmtl_core.config.stages import SHARING
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.sharing import Partition, SharingTable, blocks_of, movable_parts
from fedmtl_core.model.sharing_schedule import ScheduledBlocks, SharingSchedule, scheduled_parts
from fedmtl_core.wire.layout import Layout
from fedmtl_server.aggregation.delta_products import inner_products_of
from fedmtl_server.aggregation.stages.base import Ending, Group, Outcome, Stage
from fedmtl_server.aggregation.values import StageState
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.sharing.policies import PartStats, SharingPolicy, SharingRound, checked


@dataclass(frozen=True)
class Adaptation:
    """The regrouping of layers by a policy."""

    policy: SharingPolicy
    """Decides which tasks share a part."""
    layers: Collection[str] | None = None
    """The parts that may change; None for all that neither the configuration's layers nor the schedule name."""
    max_parameters: float = 2.0
    """The largest number of encoder parameters on the server, as a multiple of one encoder's, for the policy."""


class LayerRegrouping(Stage):
    """Regroups layers after each round, as a schedule and a policy decide, and records all changes of the run.

    The stage changes no model itself. Each part belongs to one of the two: the schedule alone changes the parts that it
    names. With a policy, the stage needs a mean for each task, and therefore a stage that weights tasks.

    Args:
        parts: the parts of the server's model, shared as the configuration says before the first round.
        schedule: the planned changes.
        adaptation: the policy, and what it may change; None for no policy.

    Raises:
        ConfigError: the encoder doesn't have one of the layers, or the schedule names a part that doesn't move.
    """

    rule = SHARING

    def __init__(self, parts: ModelParts, schedule: SharingSchedule, adaptation: Adaptation | None = None):
        self._configured = self._parts = parts
        self._schedule = schedule
        self._adaptation = adaptation
        self._names = parts.regroupable()
        scheduled = scheduled_parts(schedule.changes)
        self._movable = parts.movable(adaptation.layers, scheduled) if adaptation else {}
        self.growth = _growth(parts, schedule) + (adaptation.max_parameters - 1 if adaptation else 0)
        self._products: dict[str, NDArray[np.float64]] = {}
        self._moved: Mapping[str, Partition] = {}
        self._policy_state: JsonObject = {}

    def inspect(self, groups: Mapping[str, Group]) -> None:
        """Compute the inner products of the tasks' deltas for each part that a policy may regroup."""
        self._products = {part: self._products_of(groups, names) for part, names in self._movable.items()}

    def end(self, ending: Ending) -> Outcome:
        """Regroup the parts that are due after a round that changed the model.

        Returns:
            By part that changes, the blocks that shared it before and the cause; `table` contains the new blocks.

        Raises:
            AggregationError: the policy, which may be a plug-in, returned an invalid decision.
        """
        if not ending.committed:
            return Outcome()
        before = self._parts
        planned = self._due(ending.round)
        self._note_moved({**self._moved, **{part: one.blocks for part, one in planned.items()}})
        decided = self._decided(ending.round) if self._adaptation else {}
        self._note_moved({**self._moved, **decided})
        causes = {part: f"sharing.schedule[{one.entry}]" for part, one in planned.items()}
        causes |= dict.fromkeys(decided, "sharing.adaptive")
        return Outcome(moved={part: before.blocks(self._names[part][0]) for part in causes}, moved_by=causes)

    def table(self) -> SharingTable:
        """Return the sharing table, including all changes of the run."""
        return self._parts.table

    def state(self) -> StageState:
        """Return, by part that changed in the run, the blocks of tasks that share it now, and the policy's state."""
        values = {"blocks": dict(self._moved), "policy": self._policy_state}
        return StageState(metadata={key: value for key, value in values.items() if value})

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        blocks: Mapping[str, Sequence[Sequence[str]]] = state.metadata.get("blocks", {})
        self._note_moved({part: blocks_of(one) for part, one in blocks.items()})
        self._policy_state = state.metadata.get("policy", {})

    def _due(self, round_: int) -> dict[str, ScheduledBlocks]:
        """Return the parts that the schedule changes after a round. A round that failed leaves them to a later one."""
        return {
            part: one
            for part, one in self._schedule.after(round_).items()
            if set(one.blocks) != set(self._blocks(part))
        }

    def _decided(self, round_: int) -> dict[str, Partition]:
        """Return the new blocks of the parts that the policy changes after a round, and note the policy's state."""
        assert self._adaptation is not None
        parts = [
            PartStats(part, self._parts.num_elements(names), self._blocks(part), self._products[part])
            for part, names in self._movable.items()
            if part in self._products
        ]
        self._products = {}
        of_round = SharingRound(round_, self._parts.tasks, parts, self._room(), self._policy_state)
        decided = checked(self._adaptation.policy.decide(of_round), of_round)
        self._policy_state = decided.state
        return {part: blocks for part, blocks in decided.blocks.items() if set(blocks) != set(self._blocks(part))}

    def _blocks(self, part: str) -> Partition:
        """Return the blocks of tasks that share a part now."""
        return self._parts.blocks(self._names[part][0])

    def _room(self) -> int:
        """Return how many more encoder parameters the server may keep for the policy."""
        assert self._adaptation is not None
        most = int(self._adaptation.max_parameters * self._parts.encoder_elements())
        return most - self._parts.kept_encoder_elements()

    def _note_moved(self, moved: Mapping[str, Partition]) -> None:
        """Record all parts that changed in the run, with the blocks of tasks that share them now."""
        self._moved = moved
        self._parts = self._configured.moved(moved)

    def _products_of(self, groups: Mapping[str, Group], names: Sequence[str]) -> NDArray[np.float64]:
        """Return the inner products of the tasks' deltas of a part, `(tasks, tasks)`; 0 for tasks without an update."""
        tasks = self._parts.tasks
        deltas = []
        for task in tasks:
            group = groups.get(self._parts.table.by_task[task][names[0]])
            deltas.append(group.base_and_mean(task, frozenset(names)) if group else None)
        present = [number for number, one in enumerate(deltas) if one is not None]
        products = np.zeros((len(tasks), len(tasks)))
        if present:
            products[np.ix_(present, present)] = inner_products_of([one for one in deltas if one is not None])
        return products


def make_regrouping(section: SharingConfig, parts: ModelParts, policy: SharingPolicy | None) -> LayerRegrouping:
    """Return the stage that regroups layers by a configuration's schedule, and by a policy if there is one.

    Raises:
        ConfigError: the schedule or `sharing.adaptive.layers` names a layer that the encoder does not have.
    """
    rules, changes = section.rules(), section.changes()
    adaptation = None
    if policy is not None:
        layers = movable_parts(rules, section.adaptive.layers, scheduled_parts(changes))
        adaptation = Adaptation(policy, layers, section.adaptive.max_parameters)
    return LayerRegrouping(parts, SharingSchedule.of(parts.shape, rules, changes), adaptation)


def _growth(parts: ModelParts, schedule: SharingSchedule) -> float:
    """Return the largest size of the model under a schedule, as a multiple of its size before the first change."""
    before = parts.num_bytes()
    return max([before, *(one.num_bytes() for one in parts.planned(schedule).values())]) / max(before, 1)
