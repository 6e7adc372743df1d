"""The stage that regroups layers during a run, as a sharing policy decides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedmtl_core.config.stages import SHARING
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.sharing import Partition, SharingTable, blocks_of
from fedmtl_core.wire.layout import Layout
from fedmtl_server.aggregation.delta_products import inner_products_of
from fedmtl_server.aggregation.stages.base import Ending, Group, Outcome, Stage
from fedmtl_server.aggregation.values import StageState
from fedmtl_server.model_parts import ModelParts
from fedmtl_server.sharing.policies import PartStats, SharingPolicy, SharingRound, checked


class LayerRegrouping(Stage):
    """Regroups layers: asks a policy after each round, and records all changes of the run.

    The stage changes no model itself. It needs a mean for each task, and therefore a stage that weights tasks.

    Args:
        policy: decides which tasks share a part.
        parts: the parts of the server's model, shared as the configuration says.
        layers: the parts that may change; None for all that the configuration doesn't name.
        max_parameters: the largest number of encoder parameters on the server, as a multiple of one encoder's.

    Raises:
        ConfigError: the encoder doesn't have one of the layers.
    """

    rule = SHARING

    def __init__(self, policy: SharingPolicy, parts: ModelParts, layers: Collection[str] | None, max_parameters: float):
        self.growth = max_parameters
        self._policy = policy
        self._configured = self._parts = parts
        self._movable = parts.movable(layers)
        self._products: dict[str, NDArray[np.float64]] = {}
        self._moved: Mapping[str, Partition] = {}
        self._policy_state: JsonObject = {}

    def inspect(self, groups: Mapping[str, Group]) -> None:
        """Compute the inner products of the tasks' deltas for each part."""
        self._products = {part: self._products_of(groups, names) for part, names in self._movable.items()}

    def end(self, ending: Ending) -> Outcome:
        """Ask the policy which parts change after a round that changed the model.

        Returns:
            By part that changes, the blocks that shared it before; `table` contains the new blocks.

        Raises:
            AggregationError: the policy, which may be a plug-in, returned an invalid decision.
        """
        if not ending.committed:
            return Outcome()
        parts = [
            PartStats(part, self._parts.num_elements(names), self._parts.blocks(names[0]), self._products[part])
            for part, names in self._movable.items()
            if part in self._products
        ]
        self._products = {}
        round_ = SharingRound(ending.round, self._parts.tasks, parts, self._room(), self._policy_state)
        decided = checked(self._policy.decide(round_), round_)
        self._policy_state = decided.state
        now = {one.part: one.blocks for one in parts}
        moves = {part: blocks for part, blocks in decided.blocks.items() if set(blocks) != set(now[part])}
        self._note_moved({**self._moved, **moves})
        return Outcome(moved={part: now[part] for part in moves})

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

    def _room(self) -> int:
        """Return how many more encoder parameters the server may keep."""
        most = int(self.growth * self._parts.encoder_elements())
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
