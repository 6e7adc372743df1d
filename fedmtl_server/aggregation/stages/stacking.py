"""The stage that adds a round's adapters to the base (`model.adapters.aggregation: stack`).

FLoRA (Wang et al. 2024, arXiv:2409.05976). The clients' factors aren't averaged: each adapted weight W becomes
W + Σ c B A, and the next round starts new adapters with a new random A and B = 0. Clients that have the base of the
round get the factors instead of the sum, and compute it themselves; see `fedmtl_core.model.merging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedmtl_core.config.stages import ADAPTERS
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.adapters import first_values
from fedmtl_core.model.merging import merge, rank_of, stack, stack_layout
from fedmtl_core.model.scopes import MERGED, SHARED, stack_scope
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.factors import counted_factors, factor_pairs
from fedmtl_server.aggregation.stages.base import Combination, Ending, Group, Outcome, Stage
from fedmtl_server.aggregation.values import Broadcast, RoundContext, ScreenedUpdate, StageState


@dataclass(frozen=True)
class _Merge:
    """One addition of adapters to the base."""

    stack: Component
    base_digest: bytes
    """The digest of the component `merged` before."""
    base: Component | None = None
    """The component `merged` after; None once the round has ended."""


class StackedAdapters(Stage):
    """Adds the products of a round's adapters to the base, and starts new adapters.

    All adapters are in the component that all tasks share. The factors of all updates stay in memory until the round
    ends. Without a new value of that component, the base and the stack stay as they are.

    Args:
        settings: the adapters.
    """

    rule = ADAPTERS

    def __init__(self, settings: AdapterSettings):
        self._settings = settings
        self._context = RoundContext()
        self._factors: dict[str, Mapping[str, Tensor]] = {}
        self._coefficients: dict[str, float] = {}
        self._last: _Merge | None = None
        self._next: _Merge | None = None

    def begin(self, context: RoundContext) -> None:
        self._context = context
        self._factors, self._coefficients, self._next = {}, {}, None

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        if SHARED in update.components:
            self._factors[update.client_id] = counted_factors(update, SHARED, self._context.base[SHARED])
        return update

    def combine(self, group: Group, combination: Combination) -> Combination:
        if group.scope == SHARED:
            coefficients = zip(group.updates, combination.coefficients(group), strict=True)
            self._coefficients = {one.client_id: value for one, value in coefficients if value}
        return combination

    def release(self, base: Component, combined: Component) -> None:
        """Compute the next base, and replace the means of the factors by the values of new adapters.

        Raises:
            NonFiniteError: a weight is beyond the range of its dtype.
        """
        if base.scope != SHARED:
            return
        scaled = [self._settings.scale * value for value in self._coefficients.values()]
        stacked = stack(base.layout, [self._factors[client] for client in self._coefficients], scaled)
        before = self._context.base[MERGED]
        after = before.clone()
        merge(after.views(), stacked)
        after.require_finite()
        views = combined.views()
        for a, b in factor_pairs(combined.layout).values():
            views[a].copy_(first_values(a, views[a].shape, self._settings.seed, self._context.round))
            views[b].zero_()
        self._next = _Merge(stacked, before.digest(), after)

    def end(self, ending: Ending) -> Outcome:
        merged, self._next, self._factors = self._next, None, {}
        if merged is None or merged.base is None or SHARED not in ending.committed:
            return Outcome()
        self._last = _Merge(merged.stack, merged.base_digest)
        return Outcome(base={MERGED: merged.base})

    def broadcast(self) -> Broadcast:
        """Return the stack of the last round that changed the base. Its bytes never change."""
        if self._last is None:
            return Broadcast()
        return Broadcast({self._last.stack.scope: self._last.stack}, stack_base=self._last.base_digest)

    def state_layouts(self, layouts: Sequence[Layout], metadata: JsonObject) -> list[Layout]:
        rank = metadata.get("rank")
        return [stack_layout(layout, rank) for layout in layouts if layout.scope == SHARED and rank]

    def state(self) -> StageState:
        if self._last is None:
            return StageState()
        metadata: JsonObject = {"rank": rank_of(self._last.stack), "base": self._last.base_digest.hex()}
        return StageState({self._last.stack.scope: self._last.stack}, metadata)

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        self._last = None
        if state.metadata:
            stacked = state.components[stack_scope(SHARED)]
            self._last = _Merge(stacked, bytes.fromhex(state.metadata["base"]))
