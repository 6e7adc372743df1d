"""The server's part of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378), with the paper's option II.

A client's control variate c_i is the mean gradient of its last training, and the server's c is the mean of the clients'
variates. A client steps along g - c_i + c instead of its own gradient g, so all clients go in similar directions. After
steps from x to y_i with learning rates that add up to s (K η in the paper), the client's variate is

    c_i⁺ = c_i - c + (x - y_i) / s

The change of the variate, -c - Δ_i / s, follows from the update, so the client uploads nothing else of that size.

c is the mean over all known clients, weighted by their examples n_i like the model's average. A client is known if an
update of it has counted since the variates started. In the paper, N is the number of all clients, which a server can't
know. With S the clients of a round and N the clients known after it,

    c⁺ = (c Σ_{known before} n_i + Σ_S n_i (-c - Δ_i / s_i)) / Σ_N n_i

The model reaches the optimum because c is the mean of all c_i. c is updated only by changes, so it would never be that
mean again after a client's variate was lost. Clients therefore report which of their updates their variate is from. If
that isn't the last counted update, all variates restart at 0. This happens if the client's process is new, the server
returned to an older checkpoint, or a round failed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from fedmtl_core.config.stages import CONTROL_VARIATES
from fedmtl_core.errors import NonFiniteError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import SHARED, task_scope
from fedmtl_core.wire.controls import control_layout, control_scope, vector
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.stages.base import Ending, Outcome, Stage
from fedmtl_server.aggregation.values import Broadcast, Notice, RoundContext, ScreenedUpdate, StageState

_BLOCK = 2**19
"""Number of elements per block, whose difference from the base stays in the cache."""


@dataclass(frozen=True)
class KnownClient:
    """A client whose variate is part of the mean."""

    task: str
    round: int
    """The round of the client's last update in the mean."""
    num_examples: int
    """The number that the client reported first. Its weight can't change later, because the server doesn't have c_i."""


class ControlVariates(Stage):
    """The server's variates of one run, which are sent with the model and updated from each round's updates.

    Args:
        layouts: the layouts of the whole model.
        members: by scope, the tasks that share it. A missing scope belongs to all tasks if it is the shared scope, and
            otherwise to the task in its name.
    """

    rule = CONTROL_VARIATES

    def __init__(self, layouts: Iterable[Layout], members: Mapping[str, Collection[str]] = MappingProxyType({})):
        self._members = members
        self._components = {
            component.scope: component for component in (Component(control_layout(layout)) for layout in layouts)
        }
        self._known: dict[str, KnownClient] = {}
        self._since = 1
        self._context = RoundContext()
        self._new: dict[str, KnownClient] = {}
        self._sums: dict[str, Tensor] = {}
        self._lost = ""

    def begin(self, context: RoundContext) -> None:
        self._context = context
        self._new, self._sums, self._lost = {}, {}, ""

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        """Add the change of a client's variate that follows from its update, and return the update unchanged.

        An update whose learning rates add up to 0 contains no information on gradients and is skipped.
        """
        learning_rate_sum = update.update.extra_of(self.name, "learning_rate_sum")
        if not learning_rate_sum:
            return update
        known = self._known.get(update.client_id)
        if reason := self._contradiction(update, known):
            self._lost = self._lost or f"client {update.client_id!r} {reason}"
            return update
        num_examples = known.num_examples if known else update.num_examples
        self._new[update.client_id] = KnownClient(update.task, self._context.round, num_examples)
        for scope, component in update.components.items():
            total = self._sums.setdefault(scope, torch.zeros(component.layout.num_elements))
            origin = None if update.kind == "delta" else self._context.base[scope]
            _add_delta(total, component, origin, num_examples / learning_rate_sum)
        return update

    def end(self, ending: Ending) -> Outcome:
        """Update the variates from the round's updates.

        Returns:
            A notice with the reason if the variates restart at 0.
        """
        if not self._lost and (discarded := self._sums.keys() - set(ending.committed)):
            self._lost = f"the round's {min(discarded)!r} was discarded"
        if not self._lost:
            moved = {control_scope(scope): self._moved(scope) for scope in self._sums}
            try:
                for component in moved.values():
                    component.require_finite()
            except NonFiniteError as error:
                self._lost = str(error)
            else:
                self._components |= moved
                self._known |= self._new
        reason = self._lost
        if reason:
            self._components = {scope: Component(one.layout) for scope, one in self._components.items()}
            self._known, self._since = {}, ending.round + 1
        self.begin(self._context)
        return Outcome(Notice("control_variates.restarted", reason) if reason else None)

    def broadcast(self) -> Broadcast:
        """Return the server's variates by `control:SCOPE`. Clients' variates from rounds before `since` are invalid.

        A component's bytes never change; an updated variate is a new component.
        """
        return Broadcast(self._components, self._since)

    def state_layouts(self, layouts: Sequence[Layout], metadata: JsonObject) -> list[Layout]:
        return [control_layout(layout) for layout in layouts]

    def state(self) -> StageState:
        known = {name: asdict(one) for name, one in self._known.items()}
        return StageState(self._components, {"since": self._since, "known": known})

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        if not state.metadata:
            return
        self._since = state.metadata["since"]
        self._known = {name: KnownClient(**one) for name, one in state.metadata["known"].items()}
        for scope in self._components.keys() & state.components.keys() if self._known else ():
            self._components[scope].layout.require_same(state.components[scope].layout)
            self._components[scope] = state.components[scope]

    def _contradiction(self, update: ScreenedUpdate, known: KnownClient | None) -> str:
        """Return why a client's variate can't be the one in the mean; empty if it can be."""
        if known is not None and known.task != update.task:
            return f"had the task {known.task!r} before, and now has {update.task!r}"
        expected = known.round if known is not None else 0
        control_round = update.update.extra_of(self.name, "control_round")
        if control_round != expected:
            return f"has a variate from round {control_round}, expected one from round {expected}"
        return ""

    def _moved(self, scope: str) -> Component:
        """Return a scope's variate after the round."""
        before = self._components[control_scope(scope)]
        examples = self._examples(self._known, scope)
        reported, known = self._examples(self._new, scope), self._examples(self._known | self._new, scope)
        after = Component(before.layout, torch.empty_like(before.buffer))
        scale = (examples - reported) / known
        torch.mul(vector(before), scale, out=vector(after)).add_(self._sums[scope], alpha=-1 / known)
        return after

    def _examples(self, clients: Mapping[str, KnownClient], scope: str) -> int:
        """Return the number of examples of the clients that share a component."""
        tasks = self._members.get(scope)
        return sum(
            one.num_examples
            for one in clients.values()
            if (scope in (SHARED, task_scope(one.task)) if tasks is None else one.task in tasks)
        )


def _add_delta(total: Tensor, component: Component, base: Component | None, weight: float) -> None:
    """Add a delta times its weight to `total`, float32 `(num_elements,)`.

    Args:
        component: a delta, or parameters if `base` is given.
    """
    first = 0
    if not weight <= torch.finfo(torch.float32).max:
        weight = math.nan  # makes the sum non-finite, which `end` detects
    for run, origin in zip(component.runs(), base.runs() if base else component.runs(), strict=True):
        for start in range(0, len(run), _BLOCK):
            block = slice(start, min(start + _BLOCK, len(run)))
            value = run[block].to(_wide(run.dtype))
            if base is not None:
                value = value - origin[block].to(value.dtype)
            total[first + block.start : first + block.stop].add_(value.to(torch.float32), alpha=weight)
        first += len(run)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
