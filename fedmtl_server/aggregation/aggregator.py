"""How updates become the next model: the encoder averaged over all clients, each head over its own task's; and what
only some tasks share, over theirs.

FedAvg (McMahan et al. 2017, arXiv:1602.05629) per component of MT-DNN (Liu et al. 2019, arXiv:1901.11504). Where a task
is to count for something else in the encoder than its examples do, there is one mean for each task, and at the close
the model moves by the sum of what these differ from it by, each times what its task counts for. Where deltas are to
count by step, their weights are others, and so is what the means are multiplied with at the close.
A function of its arguments: no clock, no lock, no socket, and the updates come back unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedmtl_core.config import Normalization
from fedmtl_core.errors import AggregationError, InvalidRequestError
from fedmtl_core.model.scopes import SHARED, group_of, scope_of, task_of
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.layout import Component, Layout, TensorSpec
from fedmtl_core.wire.updates import Extras, Update
from fedmtl_server.aggregation.auxiliary import Auxiliary, factors, scaled
from fedmtl_server.aggregation.client_shares import ClientShares
from fedmtl_server.aggregation.delta_products import combine, inner_products
from fedmtl_server.aggregation.normalization import RoundSteps, Steps, step_weight
from fedmtl_server.aggregation.norms import NormRule, update_norms
from fedmtl_server.aggregation.task_weighting.base import RoundWeighting, TaskFacts, TaskWeighting

_BLOCK = 2**19
"""Elements that are computed with at a time where there is a copy to make."""

NO_NORMS = NormRule()
"""Updates are not measured."""


@dataclass(frozen=True)
class ClientUpdate:
    """What one client made of one round."""

    client_id: str
    task: str
    num_examples: int
    """Weight of this update: examples trained on, no more than its task's limit."""
    components: Mapping[str, Component]
    """By scope; trained parameters, or with kind `delta` trained minus received ones."""
    kind: UpdateKind = "parameters"
    staleness: int = 0
    """Commits since the model that it started from."""
    discount: float = 1.0
    """How much of a delta counts, for its staleness (FedBuff; Nguyen et al. 2022, arXiv:2106.06639)."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """By scope, the norm of its delta, where it was measured."""
    clipped_to: Mapping[str, float] = field(default_factory=dict)
    """By scope, the norm that its delta was scaled down to, where it was."""
    num_eval_examples: int = 0
    """That its metrics were measured on."""
    received_metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the model that it started from; `loss` among them, if its client says so."""
    trained_metrics: Mapping[str, float] = field(default_factory=dict)
    """Of its own; `train_loss` among them, likewise."""
    extras: Extras = field(default_factory=dict)
    """Numbers for single stages; see `Update.extras`."""
    claimed_examples: int = 0
    """The examples that its client says it trained on, where that is beyond the task's limit; else 0."""
    counted_examples: Mapping[str, Fraction] = field(default_factory=dict)
    """By scope, the examples that it counts as, where one client may not be more of the component; see
    `fedmtl_server.aggregation.client_shares`."""

    def extra(self, stage: str, name: str) -> float:
        """A stage's own number; 0 if the update has none."""
        return self.extras.get(stage, {}).get(name, 0)

    @property
    def num_steps(self) -> int:
        """Optimiser steps that it took; 0 if it doesn't say."""
        return int(self.extra("normalization", "num_steps"))

    def examples_in(self, scope: str) -> int | Fraction:
        """The examples that it counts as in a component."""
        return self.counted_examples.get(scope, self.num_examples)

    @classmethod
    def from_parameters(
        cls,
        client_id: str,
        task: str,
        num_examples: int,
        parameters: Mapping[str, Tensor],
        kind: UpdateKind = "parameters",
        scopes: Mapping[str, str] | None = None,
    ) -> ClientUpdate:
        """An update of plain tensors, under their names in the multi-task model (`encoder.…`, `heads.TASK.…`).

        Its components are laid out by name, so that updates made like this go together.

        Args:
            scopes: by name, the scopes of tensors that are of another than `scope_of` says.
        """
        by_scope: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(parameters.items()):
            by_scope.setdefault((scopes or {}).get(name) or scope_of(name), {})[name] = tensor
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
    """Its share of the average, of a stale delta what is left of it; with a task weighting its share of what its task's
    delta was multiplied with, and not all weightings bring these to a sum of 1. Where deltas count by step, what
    its own was multiplied with."""
    staleness: int = 0
    norm: float | None = None
    """The L2 norm of its delta as it was sent, before any discount; None if it wasn't measured."""
    clipped_to: float | None = None
    """The norm that its delta was scaled down to before it counted; None if it wasn't."""
    counted_examples: float | None = None
    """What its examples counted as, where that is less than what its client says; else None."""

    @property
    def counted_norm(self) -> float | None:
        """The norm that it counted with."""
        return self.norm if self.clipped_to is None else self.clipped_to


@dataclass(frozen=True)
class DiscardedComponent:
    """A component that stays as it was, although updates of it counted."""

    scope: str
    reason: str
    contributors: Sequence[str]
    """The clients whose updates were in it, in the order of folding."""


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates came to. A scope is absent if nobody sent it, or only tasks that count for nothing."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """The new parameters by scope."""
    contributions: Mapping[str, Sequence[Contribution]] = field(default_factory=dict)
    """Who counted in them, in the order of folding."""
    weighting_states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By scope, what the task weighting is to remember of it; as JSON gives it back."""
    discarded: Sequence[DiscardedComponent] = ()
    """The components whose new value isn't used; they are in none of the others."""


class ComponentMean:
    """A running weighted mean of one component, in float32 (float64 for float64 tensors).

    Each update moves the mean towards itself by its share of the weight so far (West 1979,
    doi:10.1145/359146.359153): one pass at memory bandwidth, nothing to divide at the end, and equal updates
    average to exactly themselves.

    Args:
        layout: of the component.
        component: where the mean is to be; its bytes may hold anything. A new one is made if None.
    """

    def __init__(self, layout: Layout, component: Component | None = None):
        self._component = component or Component(layout, torch.empty(layout.num_bytes, dtype=torch.uint8))
        self._means = [
            run if run.dtype == _accumulator(run.dtype) else torch.empty(run.shape, dtype=_accumulator(run.dtype))
            for run in self._component.runs()
        ]
        self._total: int | Fraction = 0

    def fold(
        self,
        component: Component,
        weight: int | Fraction,
        base: Component | None = None,
        discount: float = 1.0,
        *,
        is_delta: bool = True,
    ) -> None:
        """Take in one update.

        Args:
            component: its parameters; or its delta, if `base` is given. It may be the very component that the mean
                is to be in, the first time.
            weight: at least 0, finite; what it counts for beside the others.
            base: the parameters that the delta is to be added to.
            discount: what the delta is multiplied with.
            is_delta: False for parameters in spite of a base: what they differ from it by is the delta.

        Raises:
            LayoutMismatchError: it is laid out otherwise.
        """
        self._component.layout.require_same(component.layout)
        if base is not None:
            self._component.layout.require_same(base.layout)
        if weight == 0:
            return
        before, self._total = self._total, self._total + weight
        share, rest = float(weight / self._total), float(before / self._total)
        base_runs = base.runs() if base else [None] * len(self._means)
        for mean, run, origin in zip(self._means, component.runs(), base_runs, strict=True):
            _fold_run(mean, run, origin, share, rest, discount, is_delta)

    @property
    def runs(self) -> list[Tensor]:
        """The mean so far, as flat vectors of the component's runs, in float32 or float64; as views."""
        return self._means

    def vector(self, spec: TensorSpec) -> Tensor:
        """One tensor's mean so far, flat, in float32 or float64; as a view."""
        for run, mean in zip(self._component.layout.runs, self._means, strict=True):
            if run.start <= spec.offset < run.end:
                first = (spec.offset - run.start) // spec.dtype.itemsize
                return mean[first : first + spec.num_elements]
        return torch.empty(0)

    @property
    def buffer(self) -> Tensor:
        """The component's bytes."""
        return self._component.buffer

    def result(self) -> Component:
        """The mean of at least one update with a weight, in the layout's own dtypes. Nothing can be folded in after."""
        for target, mean in zip(self._component.runs(), self._means, strict=True):
            if target.dtype != mean.dtype:
                target.copy_(mean)
        self._component.clear_padding()  # what a client sent there is of no meaning
        return self._component


class CohortOrder:
    """Whose turn it is to be folded: the cohort's order, whoever arrived first.

    So the result doesn't depend, to the last bit, on who was faster; and an update whose turn has come can be folded
    at once, so that its memory can be used again.

    Args:
        order: the cohort's client ids, in the order to fold them in.
        may_fold: whether an update that has arrived may be folded already; until it may, those after it wait too.

    Raises:
        AggregationError: a client id is there twice.
    """

    def __init__(self, order: Sequence[str], may_fold: Callable[[str], bool] = lambda client_id: True):
        self._may_fold = may_fold
        self._order = list(order)
        self._place = {client_id: place for place, client_id in enumerate(self._order)}
        if len(self._place) != len(self._order):
            twice = next(client_id for client_id in self._order if self._order.count(client_id) > 1)
            raise AggregationError(f"client {twice!r} is there twice")
        self._arrived: set[str] = set()
        self._next = 0

    def place(self, client_id: str) -> int:
        """How many come before a client.

        Raises:
            AggregationError: it isn't in the order.
        """
        if client_id not in self._place:
            raise AggregationError(f"no update of {client_id!r} is expected")
        return self._place[client_id]

    def arrive(self, client_id: str) -> list[str]:
        """Note that a client's update is there.

        Returns:
            Those whose turn has come with it.

        Raises:
            AggregationError: the client isn't in the order, or was there already.
        """
        if self.place(client_id) < self._next or client_id in self._arrived:
            raise AggregationError(f"another update of {client_id!r} is there already")
        self._arrived.add(client_id)
        return self._leading(lambda one: one in self._arrived and self._may_fold(one))

    def close(self) -> list[str]:
        """Pass over those that didn't come.

        Returns:
            Those who did and are not folded yet.
        """
        return [client_id for client_id in self._leading(lambda _: True) if client_id in self._arrived]

    def append(self, client_id: str) -> None:
        """Have one more come, after all others. One that is there already keeps its place."""
        if client_id not in self._place:
            self._place[client_id] = len(self._order)
            self._order.append(client_id)

    def _leading(self, ready: Callable[[str], bool]) -> list[str]:
        first = self._next
        while self._next < len(self._order) and ready(self._order[self._next]):
            self._next += 1
        return self._order[first : self._next]


class RoundFold:
    """Folds a round's updates, one after the other.

    Args:
        base: the model's components that deltas are relative to.
        norms: what becomes of updates by how far they move the model. Those that are to be refused aren't given here.
        bounds: by scope, the most that a delta's norm may be in this round.
        weighting: what each task counts for in what several share; None for its examples.
        factors: by auxiliary task, what an example of it counts for in what several share, or its share is multiplied
            with.
        normalization: whether a delta counts by the steps that its client took.
    """

    def __init__(
        self,
        base: Mapping[str, Component],
        norms: NormRule = NO_NORMS,
        bounds: Mapping[str, float] | None = None,
        weighting: RoundWeighting | None = None,
        factors: Mapping[str, float] | None = None,
        normalization: Normalization = "none",
    ):
        self._base = base
        self._factors = factors or {}
        self._norms = norms
        self._bounds = (bounds or {}) if norms.action == "clip" else {}
        self._weighting = weighting
        self._by_step = normalization == "fednova"
        self._means: dict[str, dict[str, ComponentMean]] = {}
        """By scope and task; all tasks in one under an empty name, where they aren't weighted."""
        self._counted: dict[str, list[ClientUpdate]] = {}
        self.spare: list[Tensor] = []
        """Once it is closed: the buffers of means that nobody needs any more, also of updates that were kept."""

    def fold(self, update: ClientUpdate, *, may_keep: bool = False) -> set[str]:
        """Take in the update whose turn it is.

        Args:
            update: it comes back unchanged, unless it may be kept.
            may_keep: its components may be overwritten: the first of a scope then becomes the mean, without a copy.

        Returns:
            The scopes of the components that were kept.

        Raises:
            AggregationError: its weight is negative, or it is a delta of what the model hasn't, or its task is to be
                weighted in what the model hasn't, or it is to count by step and says no steps.
        """
        if update.num_examples < 0:
            raise AggregationError(
                f"{update.client_id}: expected num_examples of at least 0, got {update.num_examples}"
            )
        if update.kind == "delta" and (unknown := update.components.keys() - self._base.keys()):
            raise AggregationError(
                f"{update.client_id}: a delta of {min(unknown)!r} needs the parameters it starts from"
            )
        update = self._measured(update)
        kept = set()
        for scope, component in update.components.items():
            means, task = self._means.setdefault(scope, {}), self._mean_of(scope, update)
            if task not in means:
                keep = may_keep and self._weight(scope, update) > 0
                means[task] = ComponentMean(component.layout, component if keep else None)
                kept |= {scope} if keep else set()
            self._fold_component(means[task], scope, component, update)
            self._counted.setdefault(scope, []).append(replace(update, components={}))
        return kept

    def _measured(self, update: ClientUpdate) -> ClientUpdate:
        """An update with its norms, where they are wanted, and what it is to be clipped to."""
        if not self._norms.measures:
            return update
        norms = update.norms or update_norms(update.kind, update.components, self._base)
        clipped_to = {scope: bound for scope, bound in self._bounds.items() if norms.get(scope, 0.0) > bound}
        return replace(update, norms=norms, clipped_to=clipped_to)

    def _mean_of(self, scope: str, update: ClientUpdate) -> str:
        """Which of a component's means an update belongs to."""
        by_task = self._has_means_by_task(scope)
        if not (by_task or self._by_step):
            return ""
        if scope not in self._base:
            what = "weighting tasks" if by_task else "counting by step"
            raise AggregationError(f"{update.client_id}: {what} in {scope!r} needs the parameters that they start from")
        self._base[scope].layout.require_same(update.components[scope].layout)
        return update.task if by_task else ""

    def _has_means_by_task(self, scope: str) -> bool:
        return self._weighting is not None and task_of(scope) is None

    def _factor(self, scope: str, task: str) -> int | Fraction:
        """What an example of a task counts for in a component. In its own head it is what it always is."""
        factor = 1 if task_of(scope) is not None else self._factors.get(task, 1)
        return 1 if factor == 1 else Fraction(factor)

    def _weight(self, scope: str, update: ClientUpdate) -> int | Fraction:
        """What an update counts for in its mean; where that is its task's alone, the factor is for the close."""
        factor = 1 if self._has_means_by_task(scope) else self._factor(scope, update.task)
        weight = update.examples_in(scope) * factor
        return step_weight(update.client_id, weight, update.num_steps) if self._by_step else weight

    def _fold_component(self, mean: ComponentMean, scope: str, component: Component, update: ClientUpdate) -> None:
        is_delta, weight = update.kind == "delta", self._weight(scope, update)
        if scope in update.clipped_to:
            scale = update.clipped_to[scope] / update.norms[scope] * update.discount
            mean.fold(component, weight, self._base[scope], scale, is_delta=is_delta)
        else:
            base = self._base[scope] if is_delta else None
            mean.fold(component, weight, base, update.discount)

    def moves(self, task: str, scope: str, names: Collection[str]) -> list[tuple[Tensor, Tensor]] | None:
        """How a task's clients moved some tensors of a component, on average. Before it is closed.

        Returns:
            For each tensor where they began and where they ended, as flat vectors; None if nothing of the task counted,
            or it has no mean of its own.
        """
        examples = sum(update.num_examples for update in self._counted.get(scope, ()) if update.task == task)
        mean = self._means.get(scope, {}).get("" if task_of(scope) else task)
        if mean is None or not examples:
            return None
        base = self._base[scope].views()
        specs = [spec for spec in self._base[scope].layout.tensors if spec.name in names]
        return [(base[spec.name].flatten(), mean.vector(spec)) for spec in specs]

    def close(self) -> Aggregate:
        """What the updates came to.

        Raises:
            AggregationError: there are no updates, a component's weights sum to zero, or a weighting of the user's own
                answers with something else than it should.
        """
        if not self._counted:
            raise AggregationError("there are no updates to average")
        components, contributions, states = {}, {}, {}
        for scope, counted in self._counted.items():
            by_task = _examples_by_task(scope, counted)
            counts = [update.examples_in(scope) * self._factor(scope, update.task) for update in counted]
            if not any(counts):
                continue  # only auxiliary tasks that count for nothing: it stays as it is
            steps = self._steps(scope, counted)
            if self._has_means_by_task(scope):
                factors = {task: float(steps.factor(task)) if steps else 1.0 for task in _counting(by_task)}
                shares, states[scope] = self._weigh(scope, factors)
                components[scope] = self._combined(scope, {task: shares[task] * factors[task] for task in factors})
                parts = [
                    shares.get(one.task, 0.0) * one.examples_in(scope) / (by_task[one.task] or 1) for one in counted
                ]
            else:
                components[scope] = self._combined(scope, {"": float(steps.factor()) if steps else 1.0})
                total = sum(counts)
                parts = [float(count / total) for count in counts]
            if steps:
                parts = [part * steps.scale(one.num_steps) for part, one in zip(parts, counted, strict=True)]
            contributions[scope] = _contributions(scope, counted, parts)
        return Aggregate(components, contributions, states)

    def _steps(self, scope: str, counted: Sequence[ClientUpdate]) -> RoundSteps | None:
        """The steps of a component's updates, if deltas count by step."""
        if not self._by_step:
            return None
        return RoundSteps(
            tuple(
                Steps(one.task, one.examples_in(scope), one.num_steps, self._factor(scope, one.task)) for one in counted
            )
        )

    def _weigh(self, scope: str, factors: Mapping[str, float]) -> tuple[dict[str, float], Mapping[str, Any]]:
        """What each task counts for in a component, and what the weighting remembers of it.

        Args:
            scope: the component's.
            factors: by task, what its mean's difference from the base is multiplied with to be its delta.
        """
        assert self._weighting is not None
        rule, means, products = self._weighting.weighting, self._means[scope], None
        if rule.needs_products:
            products = inner_products(self._base[scope], [means[task].runs for task in factors])
            products *= np.outer(list(factors.values()), list(factors.values()))
        weighed = self._weighting.weigh(scope, _facts(scope, self._counted[scope], list(factors)), products)
        coefficients = dict(zip(factors, weighed.coefficients, strict=True))
        return scaled(coefficients, self._factors, are_shares=rule.gives_shares), weighed.state

    def _combined(self, scope: str, coefficients: Mapping[str, float]) -> Component:
        """A component of the base, moved by the means' differences from it times these coefficients."""
        means = self._means[scope]
        first, *others = [means[task] for task in coefficients]
        if means.keys() == {""} and coefficients[""] == 1.0:
            return first.result()
        combine(self._base[scope], [mean.runs for mean in (first, *others)], list(coefficients.values()))
        self.spare += [mean.buffer for mean in means.values() if mean is not first]
        return first.result()


class MTLAggregator:
    """Task-aware averaging: who counts in a component is who sent it, weighted by `num_examples`.

    Args:
        norms: what becomes of updates by how far they move the model.
        weighting: what each task counts for in what several share; None for its examples.
        seed: the run's, for what the weighting leaves to chance.
        auxiliary: by auxiliary task, what it counts for in what several share.
        normalization: whether a client's delta counts by the steps that it took; see
            `fedmtl_server.aggregation.normalization`.
        max_client_share: the most that one of several clients may be of a component; None for no limit.
    """

    def __init__(
        self,
        norms: NormRule = NO_NORMS,
        weighting: TaskWeighting | None = None,
        seed: int = 0,
        auxiliary: Mapping[str, Auxiliary] | None = None,
        normalization: Normalization = "none",
        max_client_share: float | None = None,
    ):
        self.norms = norms
        self.normalization = normalization
        self._max_client_share = max_client_share
        self._weighting = weighting
        self._seed = seed
        self._auxiliary = auxiliary or {}

    def require(self, update: Update) -> None:
        """Check that an update says what is needed to average it.

        Raises:
            InvalidRequestError: deltas count by step, and it doesn't say its steps.
        """
        if self.normalization == "none" or update.kind == "metrics":
            return
        if update.extra("normalization", "num_steps") < 1:
            raise InvalidRequestError(
                "num_steps: this server counts deltas by step (aggregation.normalization), expected at least 1, got 0",
                field="num_steps",
            )

    def factors(self, round_: int) -> dict[str, float]:
        """By auxiliary task, what an example of it counts for in a round, counted from 1."""
        return factors(self._auxiliary, round_)

    def start_shares(self, round_: int = 1, members: Mapping[str, Collection[str]] | None = None) -> ClientShares:
        """Begin to note what a round's updates say they count for; see `ClientShares`."""
        return ClientShares(self._max_client_share, self.factors(round_), members)

    def start_round(
        self,
        base: Mapping[str, Component],
        bounds: Mapping[str, float] | None = None,
        round_: int = 1,
        states: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> RoundFold:
        """Begin a round whose updates come one after the other; see `RoundFold` and `RoundWeighting`."""
        weighting = RoundWeighting(self._weighting, round_, self._seed, states or {}) if self._weighting else None
        return RoundFold(base, self.norms, bounds, weighting, self.factors(round_), self.normalization)

    def aggregate_mtl_updates(
        self, client_updates: Iterable[ClientUpdate], base: Mapping[str, Component] | None = None, round_: int = 1
    ) -> dict[str, Any]:
        """Average a round's updates, all at hand.

        Args:
            client_updates: in any order; the result is the same to the last bit.
            base: the model's components by scope, if any update is a delta, or tasks are weighted, or deltas count by
                step.
            round_: the round's number, counted from 1.

        Returns:
            `{"shared": {name: tensor}, "groups": {group: {name: tensor}}, "task_heads": {task: {name: tensor}}}` in
            the updates' dtypes, where a task's are all those that it has for itself. A group or task without updates is
            absent.

        Raises:
            AggregationError: there are no updates, a client appears twice, or weights sum to zero.
        """
        updates = sorted(client_updates, key=lambda update: update.client_id)
        CohortOrder([update.client_id for update in updates])  # nobody twice
        fold, shares = self.start_round(base or {}, round_=round_), self.start_shares(round_)
        for update in updates:
            shares.add(update.client_id, update.task, update.num_examples, update.components)
        shares.close()
        for update in updates:
            fold.fold(replace(update, counted_examples=shares.counted(update.client_id)))
        components = fold.close().components
        return {
            "shared": components[SHARED].views() if SHARED in components else {},
            "groups": {
                group: component.views() for scope, component in components.items() if (group := group_of(scope))
            },
            "task_heads": {
                task: component.views() for scope, component in components.items() if (task := task_of(scope))
            },
        }


def _fold_run(
    mean: Tensor,
    run: Tensor,
    origin: Tensor | None,
    share: float,
    rest: float,
    discount: float,
    is_delta: bool,
) -> None:
    """Take one flat vector, and what it is relative to, into a mean, in place; shares as of `_move_towards`."""
    if origin is None and run.dtype == mean.dtype:
        _move_towards(mean, run, share, rest)
        return
    for start in range(0, len(mean), _BLOCK):  # what has to be computed first stays in the cache
        block = slice(start, start + _BLOCK)
        value = run[block].to(mean.dtype)
        if origin is not None:
            start_value = origin[block].to(mean.dtype)
            if is_delta:
                value = torch.add(start_value, value, alpha=discount)
            else:  # both are scaled before they are subtracted, so that nothing overflows
                value = torch.mul(value, discount).sub_(start_value, alpha=discount).add_(start_value)
        _move_towards(mean[block], value, share, rest)


def _move_towards(mean: Tensor, value: Tensor, share: float, rest: float) -> None:
    """Take one value into a mean, in place.

    The step is taken from whichever of the two weighs more: the smaller share is the one that keeps its precision
    when it is rounded to the tensors' dtype.

    Args:
        share: the value's, in 0 to 1.
        rest: what was in the mean before; where it is 0 the mean may hold anything.
    """
    if rest == 0:
        mean.copy_(value)
    elif share < rest:
        mean.lerp_(value, share)
    else:
        torch.lerp(value, mean, rest, out=mean)


def _examples_by_task(scope: str, counted: Sequence[ClientUpdate]) -> dict[str, int | Fraction]:
    """The examples of a component's updates, by task; not all of them 0."""
    by_task: dict[str, int | Fraction] = {}
    for update in counted:
        by_task[update.task] = by_task.get(update.task, 0) + update.examples_in(scope)
    if not any(by_task.values()):
        raise AggregationError(f"{scope}: the weights (num_examples) of its {len(counted)} updates sum to zero")
    return by_task


def _counting(by_task: Mapping[str, int | Fraction]) -> list[str]:
    """The tasks that count for anything, by name: whoever was faster."""
    return sorted(task for task, num_examples in by_task.items() if num_examples)


def _contributions(scope: str, counted: Sequence[ClientUpdate], weights: Sequence[float]) -> list[Contribution]:
    """Who counted in a component, and with what weight before any discount."""
    return [
        Contribution(
            update.client_id,
            update.task,
            update.claimed_examples or update.num_examples,
            weight * update.discount,
            update.staleness,
            update.norms.get(scope),
            update.clipped_to.get(scope),
            float(update.examples_in(scope)) if update.claimed_examples or scope in update.counted_examples else None,
        )
        for update, weight in zip(counted, weights, strict=True)
    ]


def _facts(scope: str, counted: Sequence[ClientUpdate], tasks: Sequence[str]) -> list[TaskFacts]:
    """What a round's updates say of their tasks. Who started from an older model says nothing of the round's own."""
    facts = []
    for task in tasks:
        mine = [update for update in counted if update.task == task]
        received = [
            (update.num_eval_examples, update.received_metrics["loss"])
            for update in mine
            if "loss" in update.received_metrics and not update.staleness
        ]
        trained = [
            (update.examples_in(scope), update.trained_metrics["train_loss"])
            for update in mine
            if "train_loss" in update.trained_metrics
        ]
        num_examples = sum(update.examples_in(scope) for update in mine)
        facts.append(TaskFacts(task, _plain(num_examples), _mean_of(received), _mean_of(trained)))
    return facts


def _plain(number: int | Fraction) -> int | float:
    return number if isinstance(number, int) else float(number)


def _mean_of(weighted: Sequence[tuple[int | Fraction, float]]) -> float | None:
    """The mean of values with their weights; None if they have none."""
    total = sum(weight for weight, _ in weighted)
    return math.fsum(weight / total * value for weight, value in weighted) if total else None


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
