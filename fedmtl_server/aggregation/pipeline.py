"""The aggregation pipeline: the steps that turn a round's updates into the next model.

    screen       Each stage sees an update, in the cohort's order, and limits its examples or clips its norm.
    accumulate   Each component is added with its weight to an accumulator: one running mean for all tasks, or one
                 per task. An accumulator that needs all updates at once reads them again when the round closes.
    combine      The accumulators of a component are merged, by step counts and by task weights, and scaled.
    release      Each component takes the server optimizer's step.
    end          Stages update their state: task weightings, control variates, and the sharing of layers.

Without any stage, the pipeline is FedAvg (McMahan et al. 2017, arXiv:1602.05629) per component of MT-DNN (Liu et al.
2019, arXiv:1901.11504). Within each step, stages run in the order of `fedmtl_core.config.stages.STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor

from fedmtl_core.config.stages import STAGES
from fedmtl_core.errors import AggregationError, NonFiniteError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_of
from fedmtl_core.model.sharing import SharingTable
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.accumulators import Accumulator, Weight
from fedmtl_server.aggregation.blocks import BlockReader, UpdateBlocks
from fedmtl_server.aggregation.means import ComponentMean
from fedmtl_server.aggregation.merging import merge
from fedmtl_server.aggregation.outcomes import merged_outcomes, table_of
from fedmtl_server.aggregation.stages.base import Combination, Ending, Group, Stage
from fedmtl_server.aggregation.values import (
    Aggregate,
    Broadcast,
    Contribution,
    DiscardedComponent,
    Regrouping,
    RoundContext,
    RoundRecord,
    ScreenedUpdate,
    StageState,
    TaskFactors,
)
from fedmtl_server.aggregation.variants import Results, Variant, merged

_S = TypeVar("_S", bound=Stage)

STEPS = ("screen", "accumulate", "combine", "release", "end")
"""The steps of a round's aggregation, in order."""


class Pipeline:
    """The stages of one run. Stages keep state from round to round; the pipeline itself has no state.

    Args:
        stages: the stages, in any order.
    """

    def __init__(self, stages: Iterable[Stage] = ()):
        order = {rule.name: place for place, rule in enumerate(STAGES)}
        self.stages = tuple(sorted(stages, key=lambda stage: order.get(stage.name, len(order))))
        """The stages in the order in which they see an update."""

    def find(self, kind: type[_S]) -> _S | None:
        """Return the stage of a class; None if the run has no such stage."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    # A round.

    def admit(self, update: Update) -> None:
        """Check that an update contains the values that the stages need.

        Raises:
            InvalidRequestError: a value is missing or invalid.
        """
        for stage in self.stages:
            stage.admit(update)

    def factors(self, round_: int) -> dict[str, float]:
        """Return, by auxiliary task, the factor of its examples in a round; rounds count from 1."""
        return {task: factor for stage in self.stages for task, factor in stage.factors(round_).items()}

    def begin(
        self,
        base: Mapping[str, Component],
        round_: int = 1,
        contributors: Mapping[str, Collection[str]] | None = None,
    ) -> RoundAggregation:
        """Begin a round. Its updates are then added one by one.

        Args:
            base: by scope, the model that the round's deltas are added to.
            round_: the round's number.
            contributors: by client id, the scopes to which the client may contribute; None if any client may.
        """
        context = RoundContext(round_, base, TaskFactors(self.factors(round_)), contributors)
        for stage in self.stages:
            stage.begin(context)
        return RoundAggregation(self.stages, context)

    def count(self, update: Update, scopes: Collection[str]) -> None:
        """Register a counted update with the scopes of its components, before the update is added to the round."""
        for stage in self.stages:
            stage.count(update, scopes)

    def is_settled(self, client_id: str) -> bool:
        """Return whether a counted update can be added now, whatever updates still arrive."""
        return all(stage.is_settled(client_id) for stage in self.stages)

    def complete(self) -> None:
        """Register that no more updates arrive in this round: every counted update is now settled."""
        for stage in self.stages:
            stage.complete()

    def record(self, record: RoundRecord) -> None:
        """Record a round that has ended."""
        for stage in self.stages:
            stage.record(record)

    def regroup(self, regrouping: Regrouping) -> None:
        """Regroup the stages' saved components after parts of the model changed their scopes."""
        for stage in self.stages:
            stage.regroup(regrouping)

    def conclude(self, round_: int, variants: Results) -> Aggregate:
        """Return the change of the model after the evaluation round; see `Stage.conclude`.

        Args:
            round_: the round's number.
            variants: by task, the results of the round's variants.

        Raises:
            AggregationError: a plug-in returned an invalid result, or two stages choose a variant for one task.
        """
        return merged_outcomes(
            self.stages, [stage.conclude(Ending(round_, (), variants)) for stage in self.stages], variants
        )

    @property
    def table(self) -> SharingTable | None:
        """The sharing table as decided during the run; None if only the configuration determines it."""
        return table_of(self.stages)

    # Components to send, saved state, and memory.

    def broadcast(self) -> Broadcast:
        """Return the components that clients receive in addition to the model."""
        sent = [stage.broadcast() for stage in self.stages]
        components = {scope: component for one in sent for scope, component in one.components.items()}
        stack_base = next((one.stack_base for one in sent if one.stack_base), b"")
        return Broadcast(components, max((one.since for one in sent), default=0), stack_base)

    def variants(self, model: Mapping[str, Component], purpose: Purpose) -> dict[str, list[Variant]]:
        """Return, by task, the variants to offer in the round that begins; see `Stage.variants`.

        Raises:
            AggregationError: two variants of one task have the same name.
        """
        return merged(stage.variants(model, purpose) for stage in self.stages)

    def state_layouts(self, layouts: Sequence[Layout], metadata: Mapping[str, JsonObject]) -> list[Layout]:
        """Return the layouts of all saved components.

        Args:
            layouts: the layouts of the model.
            metadata: the result of `metadata` when the components were saved.
        """
        return [one for stage in self.stages for one in stage.state_layouts(layouts, metadata.get(stage.name, {}))]

    def components(self) -> dict[str, Component]:
        """Return the saved components by scope, for the checkpoint's state file."""
        return {scope: one for stage in self.stages for scope, one in stage.state().components.items()}

    def metadata(self) -> dict[str, JsonObject]:
        """Return, by stage, the JSON part of the saved state, without stages that have none."""
        return {stage.name: metadata for stage in self.stages if (metadata := stage.state().metadata)}

    def restore(
        self,
        components: Mapping[str, Component],
        metadata: Mapping[str, JsonObject],
        layouts: Sequence[Layout],
    ) -> None:
        """Restore the state that was saved when a run stopped.

        Args:
            components: the result of `components`; empty before a run's first commit.
            metadata: the result of `metadata`.
            layouts: the layouts of the model with which the run continues.

        Raises:
            LayoutMismatchError: a component has another layout.
        """
        for stage in self.stages:
            stage.restore(StageState(components, metadata.get(stage.name, {})), layouts)

    def kept_bytes(self, layouts: Iterable[Layout], members: Callable[[str], Collection[str]]) -> int:
        """Return the peak memory of a round in bytes, without its updates; the buffer pool keeps that much.

        Args:
            layouts: the model's layouts.
            members: returns the tasks that share a scope.
        """
        kept = 0
        for layout in layouts:
            copies = _accumulator(self.stages, layout).copies
            if _is_by_task(self.stages, layout.scope):
                copies *= len(members(layout.scope))
            kept += copies * layout.num_bytes
        growth = max((stage.growth for stage in self.stages), default=1.0)
        return int(growth * kept) + sum(one.layout.num_bytes for one in self.broadcast().components.values())


class RoundAggregation:
    """The aggregation of one round's updates. Not thread-safe.

    Args:
        stages: the stages in order; each has begun the round.
        context: the round's context.
    """

    def __init__(self, stages: Sequence[Stage], context: RoundContext):
        self._stages = stages
        self._context = context
        self._accumulators: dict[str, dict[str, Accumulator]] = {}
        self._updates: dict[str, list[ScreenedUpdate]] = {}
        self._scaling: dict[str, dict[str, float]] = {}
        self._spare: list[Tensor] = []

    def add(self, update: ScreenedUpdate, *, may_keep: bool = False) -> set[str]:
        """Screen and accumulate the next update.

        Args:
            update: the update; it stays unchanged unless `may_keep` is true.
            may_keep: whether the update's components may be overwritten. The first component of a scope then becomes
                the mean without a copy, unless a component is read again; see `reads_again`.

        Returns:
            The scopes of the components whose memory was kept.

        Raises:
            AggregationError: the update's weight is negative, it is normalized by steps and reports none, or the model
                lacks a component that a delta or a task weighting needs.
        """
        self._require_known(update)
        screened = self._screen(update)
        may_keep = may_keep and not self.reads_again(screened)
        return {scope for scope in screened.components if self._accumulate(scope, screened, may_keep)}

    def reads_again(self, update: ScreenedUpdate) -> bool:
        """Return whether an update's tensors, as they were sent, are read again when the round closes."""
        layouts = [component.layout for component in update.components.values()]
        return any(_accumulator(self._stages, layout).reads_blocks for layout in layouts)

    def close(self, blocks: UpdateBlocks | None = None, variants: Results = MappingProxyType({})) -> Aggregate:
        """Close the round and return its result. A component with a non-finite result keeps its old value.

        Args:
            blocks: the updates that are read again; see `reads_again`.
            variants: by task, the results of the round's variants.

        Raises:
            AggregationError: see `combine`; or a plug-in returned an invalid result, or two stages choose a variant
                for one task.
            StoreError: an update can't be read again.
        """
        components, contributions = self.combine(blocks)
        released, discarded = self._release(components, contributions)
        ending = Ending(self._context.round, released.keys(), variants)
        aggregate = merged_outcomes(self._stages, [stage.end(ending) for stage in self._stages], variants)
        counted = {scope: contributions[scope] for scope in released}
        scaling = {scope: factors for scope, factors in self._scaling.items() if factors and scope in released}
        return replace(
            aggregate,
            components=released,
            contributions=counted,
            scaling=scaling,
            discarded=discarded,
            spare=self._spare,
        )

    def _screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        for stage in self._stages:
            update = stage.screen(update)
        return update

    def _accumulate(self, scope: str, update: ScreenedUpdate, may_keep: bool) -> bool:
        """Add one component of an update to its accumulator, and return whether its memory was kept."""
        component, weight = update.components[scope], self._weight(scope, update)
        accumulators = self._accumulators.setdefault(scope, {})
        key = update.task if _is_by_task(self._stages, scope) else ""
        if key not in accumulators:
            accumulators[key] = _accumulator(self._stages, component.layout)
        base = self._context.base[scope] if update.needs_base_in(scope) else None
        is_delta = update.kind == "delta"
        kept = accumulators[key].add(
            component, weight, base, update.scale_in(scope), is_delta=is_delta, may_keep=may_keep
        )
        self._updates.setdefault(scope, []).append(update.without_tensors())
        return kept

    def combine(self, blocks: UpdateBlocks | None = None) -> tuple[dict[str, Component], dict[str, list[Contribution]]]:
        """Merge each scope's accumulators into one component.

        Args:
            blocks: the updates that are read again; see `reads_again`.

        Returns:
            The components by scope, and the contributions to them. A component is absent if all its updates are from
            tasks with a weight of 0.

        Raises:
            AggregationError: there are no updates, a component's weights sum to zero, or a plug-in returned an invalid
                result.
        """
        if not self._updates:
            raise AggregationError("there are no updates to average")
        groups = {scope: self._group(scope) for scope in self._updates}
        for group in groups.values():
            for key, accumulator in group.accumulators.items():
                accumulator.close(_reader(group, key, blocks) if accumulator.reads_blocks else None)
        for stage in self._stages:
            stage.inspect(groups)
        components, contributions = {}, {}
        for scope, group in groups.items():
            if not group.counts():
                continue  # only auxiliary tasks with a weight of 0: the component stays as it is
            combination = Combination.plain(group)
            for stage in self._stages:
                combination = stage.combine(group, combination)
            components[scope], spare = merge(group, combination)
            self._scaling[scope] = {one.part: one.factor for one in combination.scaled_parts}
            self._spare += spare
            contributions[scope] = _contributions(group, combination)
        return components, contributions

    def _release(
        self, components: Mapping[str, Component], contributions: Mapping[str, Sequence[Contribution]]
    ) -> tuple[dict[str, Component], list[DiscardedComponent]]:
        """Apply the stages' release step to every component, from the most widely shared to the heads."""
        released, discarded = {}, []
        for scope, base in self._context.base.items():
            if (component := components.get(scope)) is None:
                continue
            what = "average"
            try:
                component.require_finite()
                for stage in self._stages:
                    what = f"{stage.name}'s step"
                    stage.release(base, component)
                released[scope] = component
            except NonFiniteError as error:
                contributors = [part.client_id for part in contributions[scope]]
                discarded.append(DiscardedComponent(scope, f"its {what} isn't finite: {error}", contributors))
        return released, discarded

    def _require_known(self, update: ScreenedUpdate) -> None:
        if update.num_examples < 0:
            raise AggregationError(
                f"{update.client_id}: expected num_examples of at least 0, got {update.num_examples}"
            )
        if update.kind == "delta" and (unknown := update.components.keys() - self._context.base.keys()):
            raise AggregationError(
                f"{update.client_id}: a delta of {min(unknown)!r} needs the parameters it starts from"
            )

    def _weight(self, scope: str, update: ScreenedUpdate) -> Weight:
        """Return an update's weight in its accumulator. With one accumulator per task, `combine` applies the factor."""
        factor = 1 if _is_by_task(self._stages, scope) else self._context.factors.of(scope, update.task)
        weight = update.examples_in(scope) * factor
        for stage in self._stages:
            weight = stage.weigh(scope, update, weight)
        return weight

    def _group(self, scope: str) -> Group:
        return Group(
            scope,
            self._context.base.get(scope),
            self._updates[scope],
            self._accumulators[scope],
            _is_by_task(self._stages, scope),
            self._context.factors,
        )


def _is_by_task(stages: Sequence[Stage], scope: str) -> bool:
    """Return whether a component has one accumulator per task."""
    return task_of(scope) is None and any(stage.needs_task_means for stage in stages)


def _accumulator(stages: Sequence[Stage], layout: Layout) -> Accumulator:
    """Return a new accumulator for a component: a running mean, unless a stage provides another."""
    return next((one for stage in stages if (one := stage.accumulator(layout)) is not None), ComponentMean(layout))


def _reader(group: Group, key: str, blocks: UpdateBlocks | None) -> BlockReader:
    """Return a reader of the updates in one of a component's accumulators.

    Raises:
        AggregationError: the updates weren't kept.
    """
    if blocks is None:
        raise AggregationError(f"{group.scope}: its updates must be read again, but weren't kept")
    updates = [one for one in group.updates if not group.is_by_task or one.task == key]
    return BlockReader(group.scope, updates, group.base, blocks)


def _contributions(group: Group, combination: Combination) -> list[Contribution]:
    """Return the clients' contributions to a component, with their weights."""
    return [
        Contribution(
            update.client_id,
            update.task,
            update.update.claimed_examples or update.num_examples,
            coefficient * update.discount,
            update.staleness,
            update.norms.get(group.scope),
            update.clipped_to.get(group.scope),
            update.cut_examples(group.scope),
        )
        for update, coefficient in zip(group.updates, combination.coefficients(group), strict=True)
    ]
