"""Layers that move from one scope to another while a run goes on: a policy is asked, and what it says is done."""

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
from fedmtl_server.sharing.policies import PartFacts, SharingPolicy, SharingRound, checked


class LayerRegrouping(Stage):
    """What has moved in one run, and what moves next. It changes no model. Tasks have to be weighted beside it.

    Args:
        policy: says what moves.
        parts: what the server's model is made of, shared as the configuration says.
        layers: the parts that may move; None for all that the configuration leaves to what all share.
        max_parameters: the most encoder parameters that the server may keep, as a multiple of one encoder's.

    Raises:
        ConfigError: the encoder hasn't got one of the layers.
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
        """Note how the tasks of a round moved each part."""
        self._products = {part: self._products_of(groups, names) for part, names in self._movable.items()}

    def end(self, ending: Ending) -> Outcome:
        """Have the policy say what moves after a round that changed the model.

        Returns:
            By part that moves, the blocks that shared it before; `table` has those that do now.

        Raises:
            AggregationError: the policy, which may be a user's own, answers with something else than it should.
        """
        if not ending.committed:
            return Outcome()
        parts = [
            PartFacts(part, self._parts.num_elements(names), self._parts.blocks(names[0]), self._products[part])
            for part, names in self._movable.items()
            if part in self._products
        ]
        self._products = {}
        facts = SharingRound(ending.round, self._parts.tasks, parts, self._room(), self._policy_state)
        decided = checked(self._policy.decide(facts), facts)
        self._policy_state = decided.state
        now = {one.part: one.blocks for one in parts}
        moves = {part: blocks for part, blocks in decided.blocks.items() if set(blocks) != set(now[part])}
        self._note_moved({**self._moved, **moves})
        return Outcome(moved={part: now[part] for part in moves})

    def table(self) -> SharingTable:
        """With all that has moved in the run."""
        return self._parts.table

    def state(self) -> StageState:
        """By part that has moved in the run, the blocks of tasks that share it now; and what the policy remembers."""
        facts = {"blocks": dict(self._moved), "policy": self._policy_state}
        return StageState(facts={key: value for key, value in facts.items() if value})

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        blocks: Mapping[str, Sequence[Sequence[str]]] = state.facts.get("blocks", {})
        self._note_moved({part: blocks_of(one) for part, one in blocks.items()})
        self._policy_state = state.facts.get("policy", {})

    def _room(self) -> int:
        """How many more encoder parameters there may be."""
        most = int(self.growth * self._parts.encoder_elements())
        return most - self._parts.kept_encoder_elements()

    def _note_moved(self, moved: Mapping[str, Partition]) -> None:
        """Note all parts that have moved in the run, and the blocks of tasks that share them now."""
        self._moved = moved
        self._parts = self._configured.moved(moved)

    def _products_of(self, groups: Mapping[str, Group], names: Sequence[str]) -> NDArray[np.float64]:
        """Inner products of the tasks' deltas of a part, `(tasks, tasks)`; 0 for those without an update."""
        tasks = self._parts.tasks
        moves = []
        for task in tasks:
            group = groups.get(self._parts.table.by_task[task][names[0]])
            moves.append(group.moves(task, frozenset(names)) if group else None)
        there = [number for number, one in enumerate(moves) if one is not None]
        products = np.zeros((len(tasks), len(tasks)))
        if there:
            products[np.ix_(there, there)] = inner_products_of([one for one in moves if one is not None])
        return products
