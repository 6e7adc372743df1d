"""The stage that applies the server optimizer to each component, block by block, and keeps its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from fedmtl_core.config.stages import SERVER_OPTIMIZER
from fedmtl_core.errors import AggregationError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.optimizers import ServerOptimizer
from fedmtl_server.aggregation.rearranging import rearranged
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.values import Regrouping, StageState

_BLOCK = 2**19
"""Number of elements per block; all intermediate values of a step stay in the cache."""


def state_scope(scope: str, slot: str) -> str:
    """Return the scope of a state vector of a component, such as `shared/momentum`."""
    return f"{scope}/{slot}"


def state_layout(layout: Layout, slot: str) -> Layout:
    """Return the layout of a state vector of a component: the same tensors, all float32, without padding."""
    tensors = {f"{slot}/{spec.name}": torch.empty(spec.shape, device="meta") for spec in layout.tensors}
    return Layout.of(state_scope(layout.scope, slot), tensors)


class OptimizerSteps(Stage):
    """Applies a server optimizer to the averages, and keeps its state during a run.

    Args:
        optimizer: the server optimizer.
        layouts: the layouts of the whole model.
    """

    rule = SERVER_OPTIMIZER

    def __init__(self, optimizer: ServerOptimizer, layouts: Iterable[Layout]):
        self._optimizer = optimizer
        self._slots = {str(slot): float(value) for slot, value in optimizer.slots.items()}
        self._components = self._begun(layouts)
        self._spare: dict[str, Tensor] = {}

    def release(self, base: Component, combined: Component) -> None:
        """Overwrite a component's average with the model's component after the optimizer's step.

        Args:
            base: the model's component.
            combined: the average; overwritten.

        Raises:
            NonFiniteError: the result isn't finite; the state is then unchanged.
            AggregationError: the optimizer, which may be a plug-in, returned an invalid result.
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
        """Regroup the state together with its parameters; see `rearranging.rearranged`."""
        before, after = regrouping.before, regrouping.after
        components: dict[str, Component] = {}
        for slot in self._slots:
            mine = {scope: self._components[state_scope(scope, slot)] for scope in before.scopes}
            moved = rearranged(mine, before, after, regrouping.num_examples, prefix=f"{slot}/")
            components |= {state_scope(scope, slot): one for scope, one in moved.items()}
        self._spare.clear()
        self._components = {
            layout.scope: Component(layout, components[layout.scope].buffer)
            for layout in self.state_layouts(regrouping.layouts, {})
        }

    def state_layouts(self, layouts: Sequence[Layout], metadata: JsonObject) -> list[Layout]:
        return [state_layout(layout, slot) for layout in layouts for slot in self._slots]

    def state(self) -> StageState:
        """Return the state by `SCOPE/SLOT`. The components' bytes stay unchanged through the next step of the scope."""
        return StageState(self._components)

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        components = self._begun(layouts)
        mine = {scope: component for scope, component in state.components.items() if scope in components}
        for scope, component in mine.items():
            components[scope].layout.require_same(component.layout)
        self._components = components | mine

    def _begun(self, layouts: Iterable[Layout]) -> dict[str, Component]:
        """Return the initial state for a model with the given layouts."""
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
        """Overwrite `value` with `origin` plus the optimizer's step, and `after` with the new state."""
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        delta = value.to(wide).sub(origin.to(wide)).to(torch.float32)
        move, state = self._optimizer.step(delta, before)
        _require(move, delta, "the step")
        value.copy_(origin.to(wide).add(move))
        for slot, target in after.items():
            if slot not in state:
                raise AggregationError(f"server_optimizer: the step returned no state {slot!r}")
            _require(state[slot], delta, f"the state {slot!r}")
            target.copy_(state[slot])

    def _take_spare(self, layout: Layout) -> Component:
        """Return memory for a new state; it reuses the memory of the state before the last."""
        buffer = self._spare.pop(layout.scope, None)
        return Component(layout, torch.empty(layout.num_bytes, dtype=torch.uint8) if buffer is None else buffer)


def _vector(component: Component) -> Tensor:
    """Return a state's numbers, float32 `(num_elements,)`. A state has no padding, so this is a view of its buffer."""
    return component.buffer.view(torch.float32)


def _cut(vectors: Mapping[str, Tensor], there: slice) -> dict[str, Tensor]:
    return {slot: vector[there] for slot, vector in vectors.items()}


def _require(result: object, delta: Tensor, what: str) -> None:
    """Check the result of an optimizer's step; the optimizer may be a plug-in."""
    if not isinstance(result, Tensor) or result.shape != delta.shape or result.dtype != delta.dtype:
        got = f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise AggregationError(f"server_optimizer: {what}: expected float32 {list(delta.shape)}, got {got}")
