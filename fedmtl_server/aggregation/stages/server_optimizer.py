"""The server optimiser's steps, block by block, component by component, and what it remembers of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedmtl_core.config.stages import SERVER_OPTIMIZER
from fedmtl_core.errors import AggregationError
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.optimizers import ServerOptimizer
from fedmtl_server.aggregation.rearranging import rearranged
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.values import Regrouping, StageState

_BLOCK = 2**19
"""Elements that are computed with at a time: everything that a step makes of them stays in the cache."""


def state_scope(scope: str, slot: str) -> str:
    """The name of what is remembered of a component: `shared/momentum`."""
    return f"{scope}/{slot}"


def state_layout(layout: Layout, slot: str) -> Layout:
    """The layout of what is remembered of a component: the same tensors, all float32, without padding."""
    tensors = {f"{slot}/{spec.name}": torch.empty(spec.shape, device="meta") for spec in layout.tensors}
    return Layout.of(state_scope(layout.scope, slot), tensors)


class OptimizerSteps(Stage):
    """One run's optimiser and what it remembers: it makes of the average what the model moves to.

    Args:
        optimizer: whose steps.
        layouts: of the whole model.
    """

    rule = SERVER_OPTIMIZER

    def __init__(self, optimizer: ServerOptimizer, layouts: Iterable[Layout]):
        self._optimizer = optimizer
        self._slots = {slot: float(value) for slot, value in optimizer.slots.items()}
        self._components = self._begun(layouts)
        self._spare: dict[str, Tensor] = {}

    def release(self, base: Component, combined: Component) -> None:
        """Make the average of a component the component that the optimiser moves the model to.

        Args:
            base: the model's component.
            combined: the average; overwritten.

        Raises:
            NonFiniteError: what it came to isn't finite; what is remembered is as it was then.
            AggregationError: a user's own optimiser returned something else than it should.
        """
        now = {slot: self._components[state_scope(base.scope, slot)] for slot in self._slots}
        new = {slot: self._take_spare(component.layout) for slot, component in now.items()}
        before = {slot: _vector(component) for slot, component in now.items()}
        after = {slot: _vector(component) for slot, component in new.items()}
        first = 0
        for origin, run in zip(base.runs(), combined.runs(), strict=True):
            for start in range(0, len(run), _BLOCK):
                block = slice(start, min(start + _BLOCK, len(run)))
                there = slice(first + block.start, first + block.stop)
                self._step_block(origin[block], run[block], _cut(before, there), _cut(after, there))
            first += len(run)
        try:
            for component in (combined, *new.values()):
                component.require_finite()
        except BaseException:
            self._spare |= {component.scope: component.buffer for component in new.values()}
            raise
        self._spare |= {component.scope: component.buffer for component in now.values()}
        self._components |= {component.scope: component for component in new.values()}

    def regroup(self, regrouping: Regrouping) -> None:
        """Move what is remembered with the parameters that it is of; see `rearranging.rearranged`."""
        before, after = regrouping.before, regrouping.after
        components: dict[str, Component] = {}
        for slot in self._slots:
            mine = {scope: self._components[state_scope(scope, slot)] for scope in before.scopes}
            moved = rearranged(mine, before, after, regrouping.num_examples, prefix=f"{slot}/")
            components |= {state_scope(scope, slot): one for scope, one in moved.items()}
        self._spare.clear()
        self._components = {
            layout.scope: Component(layout, components[layout.scope].buffer)
            for layout in self.state_layouts(regrouping.layouts)
        }

    def state_layouts(self, layouts: Iterable[Layout]) -> list[Layout]:
        return [state_layout(layout, slot) for layout in layouts for slot in self._slots]

    def state(self) -> StageState:
        """All that is remembered, by `SCOPE/SLOT`. The components' bytes stay as they are until the next step but one
        of the same scope."""
        return StageState(self._components)

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        components = self._begun(layouts)
        mine = {scope: component for scope, component in state.components.items() if scope in components}
        for scope, component in mine.items():
            components[scope].layout.require_same(component.layout)
        self._components = components | mine

    def _begun(self, layouts: Iterable[Layout]) -> dict[str, Component]:
        """What is remembered before the first step, of a model of some layouts."""
        components = {}
        for layout in layouts:
            for slot, value in self._slots.items():
                component = Component(state_layout(layout, slot))
                _vector(component).fill_(value)
                components[component.scope] = component
        return components

    def _step_block(
        self, origin: Tensor, value: Tensor, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        """Move `value` to where the step leads from `origin`, and note the state that it leaves."""
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        delta = value.to(wide).sub(origin.to(wide)).to(torch.float32)
        move, state = self._optimizer.step(delta, before)
        _require(move, delta, "the move")
        value.copy_(origin.to(wide).add(move))
        for slot, target in after.items():
            if slot not in state:
                raise AggregationError(f"server_optimizer: the step returned no {slot!r} for the next one")
            _require(state[slot], delta, f"the state {slot!r}")
            target.copy_(state[slot])

    def _take_spare(self, layout: Layout) -> Component:
        """Where a new state may be written: what the one before the last lay in."""
        buffer = self._spare.pop(layout.scope, None)
        return Component(layout, torch.empty(layout.num_bytes, dtype=torch.uint8) if buffer is None else buffer)


def _vector(component: Component) -> Tensor:
    """A state's numbers, float32 `(num_elements,)`: as it has no padding, its buffer."""
    return component.buffer.view(torch.float32)


def _cut(vectors: Mapping[str, Tensor], there: slice) -> dict[str, Tensor]:
    return {slot: vector[there] for slot, vector in vectors.items()}


def _require(result: object, delta: Tensor, what: str) -> None:
    """Check what a step returned, which may be a user's own."""
    if not isinstance(result, Tensor) or result.shape != delta.shape or result.dtype != delta.dtype:
        got = f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise AggregationError(f"server_optimizer: {what}: expected float32 {list(delta.shape)}, got {got}")
