"""Layers that move from one scope to another while a run goes on: a policy is asked, and what it says is done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmtl_core.model.sharing import Partition, SharingTable, blocks_of
from fedmtl_server.aggregation.aggregator import RoundFold
from fedmtl_server.aggregation.delta_products import inner_products_of
from fedmtl_server.model import MTLServerModel
from fedmtl_server.sharing.policies import PartFacts, SharingPolicy, SharingRound, checked


class Mover:
    """What has moved in one run, and what moves next. It changes no model.

    Args:
        policy: says what moves.
        model: the server's.
        layers: the parts that may move; None for all that the configuration leaves to what all share.
        max_parameters: the most encoder parameters that the server may keep, as a multiple of one encoder's.

    Raises:
        ConfigError: the encoder hasn't got one of the layers.
    """

    def __init__(
        self, policy: SharingPolicy, model: MTLServerModel, layers: Collection[str] | None, max_parameters: float
    ):
        self._policy = policy
        self._model = model
        self._parts = model.movable(layers)
        self._max_parameters = max_parameters
        self._products: dict[str, NDArray[np.float64]] = {}
        self.moved: dict[str, Partition] = {}
        """By part that has moved in the run, the blocks of tasks that share it now."""
        self.state: Mapping[str, Any] = {}
        """What the policy remembers."""

    def take_up(self, moved: Mapping[str, Sequence[Sequence[str]]], state: Mapping[str, Any]) -> None:
        """Go on from what a round's report says."""
        self.moved = {part: blocks_of(blocks) for part, blocks in moved.items()}
        self.state = state

    @property
    def table(self) -> SharingTable:
        """With all that has moved."""
        return self._model.table_of(self.moved)

    def look(self, fold: RoundFold) -> None:
        """Note how the tasks of a round moved each part, before its updates are averaged to the end."""
        self._products = {part: self._products_of(fold, names) for part, names in self._parts.items()}

    def decide(self, round_: int) -> dict[str, Partition]:
        """Have the policy say what moves after the round that was looked at last.

        Returns:
            By part that moves, the blocks that shared it before; `moved` has those that do now.

        Raises:
            AggregationError: the policy, which may be a user's own, answers with something else than it should.
        """
        parts = [
            PartFacts(part, self._model.num_elements(names), self._model.blocks(names[0]), self._products[part])
            for part, names in self._parts.items()
            if part in self._products
        ]
        self._products = {}
        facts = SharingRound(round_, self._model.tasks, parts, self._room(), self.state)
        decided = checked(self._policy.decide(facts), facts)
        self.state = decided.state
        now = {one.part: one.blocks for one in parts}
        moves = {part: blocks for part, blocks in decided.blocks.items() if set(blocks) != set(now[part])}
        self.moved |= moves
        return {part: now[part] for part in moves}

    def _room(self) -> int:
        """How many more encoder parameters there may be."""
        table = self._model.sharing
        kept = [name for scope in table.scopes for name in table.tensors(scope)]
        encoder = {name for names in self._model.parts.values() for name in names}
        most = int(self._max_parameters * self._model.num_elements(encoder))
        return most - self._model.num_elements(name for name in kept if name in encoder)

    def _products_of(self, fold: RoundFold, names: Sequence[str]) -> NDArray[np.float64]:
        """Inner products of the tasks' deltas of a part, `(tasks, tasks)`; 0 for those without an update."""
        tasks = self._model.tasks
        moves = [fold.moves(task, self._model.sharing.by_task[task][names[0]], frozenset(names)) for task in tasks]
        there = [number for number, one in enumerate(moves) if one is not None]
        products = np.zeros((len(tasks), len(tasks)))
        if there:
            products[np.ix_(there, there)] = inner_products_of([one for one in moves if one is not None])
        return products
