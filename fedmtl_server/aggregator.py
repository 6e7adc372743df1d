"""How updates become the next model: the encoder averaged over all clients, each head over its own task's.

FedAvg (McMahan et al. 2017, arXiv:1602.05629) per component of MT-DNN (Liu et al. 2019, arXiv:1901.11504).
A function of its arguments: no clock, no lock, no socket, and the updates come back unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedmtl_core.errors import AggregationError
from fedmtl_core.layout import Component, Layout
from fedmtl_core.plan import UpdateKind
from fedmtl_core.scopes import SHARED, scope_of, task_of


@dataclass(frozen=True)
class ClientUpdate:
    """What one client made of one round."""

    client_id: str
    task: str
    num_examples: int
    """Weight of this update: examples trained on."""
    components: Mapping[str, Component]
    """By scope; trained parameters, or with kind `delta` trained minus received ones."""
    kind: UpdateKind = "parameters"

    @classmethod
    def from_parameters(
        cls,
        client_id: str,
        task: str,
        num_examples: int,
        parameters: Mapping[str, Tensor],
        kind: UpdateKind = "parameters",
    ) -> ClientUpdate:
        """An update of plain tensors, under their names in the multi-task model (`encoder.…`, `heads.TASK.…`).

        Its components are laid out by name, so that updates made like this go together.
        """
        by_scope: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(parameters.items()):
            by_scope.setdefault(scope_of(name), {})[name] = tensor
        return cls(
            client_id, task, num_examples, {s: Component.pack(s, tensors) for s, tensors in by_scope.items()}, kind
        )


@dataclass(frozen=True)
class Contribution:
    """One client's part in one component."""

    client_id: str
    task: str
    num_examples: int
    weight: float
    """Its share of the average, in 0 to 1."""


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates came to. A scope that nobody sent is absent."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """The new parameters by scope."""
    contributions: Mapping[str, Sequence[Contribution]] = field(default_factory=dict)
    """Who counted in them, in the order of folding."""


class ComponentMean:
    """A running weighted mean of one component, in float32 (float64 for float64 tensors).

    Each update moves the mean towards itself by its share of the weight so far (West 1979,
    doi:10.1145/359146.359153): one pass at memory bandwidth, nothing to divide at the end, and equal updates
    average to exactly themselves.
    """

    def __init__(self, layout: Layout):
        self._layout = layout
        self._runs = [
            torch.zeros((run.end - run.start) // run.dtype.itemsize, dtype=_accumulator(run.dtype))
            for run in layout.runs
        ]
        self._total = 0

    def fold(self, component: Component, weight: int, base: Component | None = None) -> None:
        """Take in one update.

        Args:
            component: its parameters; or its delta, if `base` is given.
            weight: at least 0.
            base: the parameters that the delta is to be added to.

        Raises:
            LayoutMismatchError: it is laid out otherwise.
        """
        self._layout.require_same(component.layout)
        if base is not None:
            self._layout.require_same(base.layout)
        if weight == 0:
            return
        before, self._total = self._total, self._total + weight
        base_runs = base.runs() if base else [None] * len(self._runs)
        for mean, run, origin in zip(self._runs, component.runs(), base_runs, strict=True):
            value = run.to(mean.dtype) if origin is None else origin.to(mean.dtype) + run.to(mean.dtype)
            _move_towards(mean, value, before, weight)

    def result(self) -> Component:
        """The mean, in the layout's own dtypes."""
        component = Component(self._layout)
        for target, mean in zip(component.runs(), self._runs, strict=True):
            target.copy_(mean)
        return component


class RoundFold:
    """Takes a round's updates as they come and folds them in the cohort's order.

    So the result doesn't depend, to the last bit, on who was faster; and an update whose turn has come is
    folded at once, so that its memory can be used again.

    Args:
        order: the cohort's client ids, in the order to fold them in.
        base: the model's components that deltas are relative to.

    Raises:
        AggregationError: a client id is there twice.
    """

    def __init__(self, order: Sequence[str], base: Mapping[str, Component]):
        self._order = list(order)
        self._place = {client_id: place for place, client_id in enumerate(self._order)}
        if len(self._place) != len(self._order):
            twice = next(client_id for client_id in self._order if self._order.count(client_id) > 1)
            raise AggregationError(f"client {twice!r} is there twice")
        self._base = base
        self._waiting: dict[str, ClientUpdate] = {}
        self._means: dict[str, ComponentMean] = {}
        self._counted: dict[str, list[tuple[str, str, int]]] = {}
        self._next = 0

    def offer(self, update: ClientUpdate) -> list[ClientUpdate]:
        """Take an update in.

        Returns:
            The updates that are folded now, whose bytes are needed no longer.

        Raises:
            AggregationError: the update's client isn't in the order, or has sent one already.
        """
        if self._place.get(update.client_id, -1) < self._next or update.client_id in self._waiting:
            raise AggregationError(f"no update of {update.client_id!r} is expected, or not another one")
        self._waiting[update.client_id] = update
        return self._fold_leading(lambda client_id: client_id in self._waiting)

    def close(self) -> Aggregate:
        """Fold what is still waiting, passing over clients that sent nothing.

        Raises:
            AggregationError: there are no updates, or a component's weights sum to zero.
        """
        self._fold_leading(lambda _: True)
        if not self._counted:
            raise AggregationError("there are no updates to average")
        contributions = {scope: _contributions(scope, counted) for scope, counted in self._counted.items()}
        return Aggregate({scope: mean.result() for scope, mean in self._means.items()}, contributions)

    def _fold_leading(self, ready: Callable[[str], bool]) -> list[ClientUpdate]:
        done = []
        while self._next < len(self._order) and ready(self._order[self._next]):
            update = self._waiting.pop(self._order[self._next], None)
            self._next += 1
            if update is not None:
                self._fold(update)
                done.append(update)
        return done

    def _fold(self, update: ClientUpdate) -> None:
        if update.num_examples < 0:
            raise AggregationError(
                f"{update.client_id}: expected num_examples of at least 0, got {update.num_examples}"
            )
        if update.kind == "delta" and (unknown := update.components.keys() - self._base.keys()):
            raise AggregationError(
                f"{update.client_id}: a delta of {min(unknown)!r} needs the parameters it starts from"
            )
        for scope, component in update.components.items():
            if scope not in self._means:
                self._means[scope] = ComponentMean(component.layout)
            base = self._base[scope] if update.kind == "delta" else None
            self._means[scope].fold(component, update.num_examples, base)
            self._counted.setdefault(scope, []).append((update.client_id, update.task, update.num_examples))


class MTLAggregator:
    """Task-aware averaging: who counts in a component is who sent it, weighted by `num_examples`."""

    def start_round(self, order: Sequence[str], base: Mapping[str, Component]) -> RoundFold:
        """Begin a round that takes updates as they arrive; see `RoundFold`."""
        return RoundFold(order, base)

    def aggregate_mtl_updates(
        self, client_updates: Iterable[ClientUpdate], base: Mapping[str, Component] | None = None
    ) -> dict[str, Any]:
        """Average a round's updates, all at hand.

        Args:
            client_updates: in any order; the result is the same to the last bit.
            base: the model's components by scope, if any update is a delta.

        Returns:
            `{"shared": {name: tensor}, "task_heads": {task: {name: tensor}}}` in the updates' dtypes. A task
            without updates is absent.

        Raises:
            AggregationError: there are no updates, a client appears twice, or weights sum to zero.
        """
        updates = sorted(client_updates, key=lambda update: update.client_id)
        fold = self.start_round([update.client_id for update in updates], base or {})
        for update in updates:
            fold.offer(update)
        components = fold.close().components
        return {
            "shared": components[SHARED].views() if SHARED in components else {},
            "task_heads": {
                task: component.views() for scope, component in components.items() if (task := task_of(scope))
            },
        }


def _move_towards(mean: Tensor, value: Tensor, before: int, weight: int) -> None:
    """Take one value into a mean of weight `before`, in place.

    The step is taken from whichever of the two weighs more: the smaller share is the one that keeps its precision
    when it is rounded to the tensors' dtype.
    """
    total = before + weight
    if before == 0:
        mean.copy_(value)
    elif weight < before:
        mean.lerp_(value, weight / total)
    else:
        torch.lerp(value, mean, before / total, out=mean)


def _contributions(scope: str, counted: Sequence[tuple[str, str, int]]) -> list[Contribution]:
    total = sum(num_examples for _, _, num_examples in counted)
    if total == 0:
        raise AggregationError(f"{scope}: the weights (num_examples) of its {len(counted)} updates sum to zero")
    return [
        Contribution(client_id, task, num_examples, num_examples / total) for client_id, task, num_examples in counted
    ]


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
