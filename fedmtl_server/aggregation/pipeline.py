"""How a round's updates become the next model: the page that shows the order.

    screen       each stage looks at an update, in the cohort's order: its examples are limited, its norm is clipped
    accumulate   each component goes into its accumulator, weighed: a running mean for all tasks, or one for each;
                 an accumulator that needs all updates at once reads them again when the round closes
    combine      the accumulators of a component become one: by steps, by tasks' weights
    release      what came out becomes what the model moves to: the server optimiser's step
    end          stages take up what the round changed: control variates, and who shares which layers

FedAvg (McMahan et al. 2017, arXiv:1602.05629) per component of MT-DNN (Liu et al. 2019, arXiv:1901.11504) is what
remains without any stage. Within each step the stages come in the order of `fedmtl_core.config.stages.STAGES`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from fedmtl_core.config.stages import STAGES
from fedmtl_core.errors import AggregationError, NonFiniteError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_of
from fedmtl_core.model.sharing import SharingTable
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.accumulators import Accumulator, Weight
from fedmtl_server.aggregation.blocks import BlockReader, UpdateBlocks
from fedmtl_server.aggregation.delta_products import combine as move_by_deltas
from fedmtl_server.aggregation.means import ComponentMean
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

_S = TypeVar("_S", bound=Stage)

STEPS = ("screen", "accumulate", "combine", "release", "end")
"""What happens to a round's updates, in this order."""


class Pipeline:
    """The stages of one run. They remember what goes from round to round; the pipeline itself remembers nothing.

    Args:
        stages: in any order.
    """

    def __init__(self, stages: Iterable[Stage] = ()):
        order = {rule.name: place for place, rule in enumerate(STAGES)}
        self.stages = tuple(sorted(stages, key=lambda stage: order.get(stage.name, len(order))))
        """In the order in which they see an update."""

    def find(self, kind: type[_S]) -> _S | None:
        """The stage of a class; None if the run has none."""
        return next((stage for stage in self.stages if isinstance(stage, kind)), None)

    # A round.

    def admit(self, update: Update) -> None:
        """Check that an update says what is needed to aggregate it.

        Raises:
            InvalidRequestError: it doesn't.
        """
        for stage in self.stages:
            stage.admit(update)

    def factors(self, round_: int) -> dict[str, float]:
        """By auxiliary task, what an example of it counts for in a round, counted from 1."""
        return {task: factor for stage in self.stages for task, factor in stage.factors(round_).items()}

    def begin(
        self,
        base: Mapping[str, Component],
        round_: int = 1,
        contributors: Mapping[str, Collection[str]] | None = None,
    ) -> RoundAggregation:
        """Begin a round, whose updates then come one after the other.

        Args:
            base: the model that its deltas are added to, by scope.
            round_: its number.
            contributors: by client id, the scopes of those who may contribute; None if anybody may.
        """
        context = RoundContext(round_, base, TaskFactors(self.factors(round_)), contributors)
        for stage in self.stages:
            stage.begin(context)
        return RoundAggregation(self.stages, context)

    def count(self, update: Update, scopes: Collection[str]) -> None:
        """Note an update that counts, with the scopes of its components. It can't be added to the round before."""
        for stage in self.stages:
            stage.count(update, scopes)

    def is_settled(self, client_id: str) -> bool:
        """Whether an update that counts can be added to the round, whoever may still come."""
        return all(stage.is_settled(client_id) for stage in self.stages)

    def complete(self) -> None:
        """Note that no more updates come in this round: all that count are settled."""
        for stage in self.stages:
            stage.complete()

    def record(self, record: RoundRecord) -> None:
        """Learn of a round that has ended."""
        for stage in self.stages:
            stage.record(record)

    def regroup(self, regrouping: Regrouping) -> None:
        """Have all components that are remembered follow a model whose parts go to other scopes."""
        for stage in self.stages:
            stage.regroup(regrouping)

    @property
    def table(self) -> SharingTable | None:
        """Who shares what by what was decided in the run; None where the configuration alone says so."""
        return _table(self.stages)

    # What is sent, remembered and kept in memory.

    def broadcast(self) -> Broadcast:
        """What clients get beside the model."""
        sent = [stage.broadcast() for stage in self.stages]
        components = {scope: component for one in sent for scope, component in one.components.items()}
        return Broadcast(components, max((one.since for one in sent), default=0))

    def state_layouts(self, layouts: Sequence[Layout]) -> list[Layout]:
        """The layouts of all components that are remembered of a model of some layouts."""
        return [layout for stage in self.stages for layout in stage.state_layouts(layouts)]

    def components(self) -> dict[str, Component]:
        """The components that are remembered, by scope, for the checkpoint's state file."""
        return {scope: one for stage in self.stages for scope, one in stage.state().components.items()}

    def facts(self) -> dict[str, JsonObject]:
        """By stage, what else is remembered, as JSON has it; stages that remember nothing are absent."""
        return {stage.name: facts for stage in self.stages if (facts := stage.state().facts)}

    def restore(
        self,
        components: Mapping[str, Component],
        facts: Mapping[str, JsonObject],
        layouts: Sequence[Layout],
    ) -> None:
        """Remember what was remembered when a run was left.

        Args:
            components: as `components` gave them; none before a run's first commit.
            facts: as `facts` gave them.
            layouts: of the model that the run goes on with.

        Raises:
            LayoutMismatchError: a component is laid out otherwise.
        """
        for stage in self.stages:
            stage.restore(StageState(components, facts.get(stage.name, {})), layouts)

    def kept_bytes(self, layouts: Iterable[Layout], members: Callable[[str], Collection[str]]) -> int:
        """The memory that a round needs beside its updates at its height; the buffer pool is to keep so much.

        Args:
            layouts: of the model.
            members: the tasks that share a scope.
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
    """One round's updates on their way to the next model. Not for two threads at once.

    Args:
        stages: in their order; each has begun the round.
        context: the round's.
    """

    def __init__(self, stages: Sequence[Stage], context: RoundContext):
        self._stages = stages
        self._context = context
        self._accumulators: dict[str, dict[str, Accumulator]] = {}
        self._updates: dict[str, list[ScreenedUpdate]] = {}
        self._spare: list[Tensor] = []

    def add(self, update: ScreenedUpdate, *, may_keep: bool = False) -> set[str]:
        """Screen and accumulate the update whose turn it is.

        Args:
            update: it comes back unchanged, unless it may be kept.
            may_keep: whether its components may be overwritten: the first of a scope then becomes the mean, without a
                copy, unless any of them is read again; see `reads_again`.

        Returns:
            The scopes of the components that were kept.

        Raises:
            AggregationError: its weight is negative, or it is a delta of what the model hasn't, or its task is to be
                weighted in what the model hasn't, or it is to count by step and says no steps.
        """
        self._require_known(update)
        screened = self._screen(update)
        may_keep = may_keep and not self.reads_again(screened)
        return {scope for scope in screened.components if self._accumulate(scope, screened, may_keep)}

    def reads_again(self, update: ScreenedUpdate) -> bool:
        """Whether an update with its tensors, as it was sent, is read once more when the round closes."""
        layouts = [component.layout for component in update.components.values()]
        return any(_accumulator(self._stages, layout).reads_blocks for layout in layouts)

    def close(self, blocks: UpdateBlocks | None = None) -> Aggregate:
        """What the updates came to: a component that isn't finite stays what it was.

        Args:
            blocks: the updates that are read again; see `reads_again`.

        Raises:
            AggregationError: see `combine`; or a class of the user's own answers with something else than it should.
            StoreError: an update can't be read again.
        """
        components, contributions = self.combine(blocks)
        released, discarded = self._release(components, contributions)
        return self._end(released, contributions, discarded)

    def _screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        for stage in self._stages:
            update = stage.screen(update)
        return update

    def _accumulate(self, scope: str, update: ScreenedUpdate, may_keep: bool) -> bool:
        """Take one component of an update in, and say whether it was kept."""
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
        """Make one component of each scope's accumulators.

        Args:
            blocks: as for `close`.

        Returns:
            The components by scope, and who counted in them. A component is absent if only tasks that count for
            nothing sent it.

        Raises:
            AggregationError: there are no updates, or a component's weights sum to zero, or a weighting of the user's
                own answers with something else than it should.
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
                continue  # only auxiliary tasks that count for nothing: it stays as it is
            combination = Combination.plain(group)
            for stage in self._stages:
                combination = stage.combine(group, combination)
            components[scope] = self._combined(group, combination)
            contributions[scope] = _contributions(group, combination)
        return components, contributions

    def _release(
        self, components: Mapping[str, Component], contributions: Mapping[str, Sequence[Contribution]]
    ) -> tuple[dict[str, Component], list[DiscardedComponent]]:
        """Have every component become what the model moves to, from what most share to the heads."""
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

    def _end(
        self,
        released: Mapping[str, Component],
        contributions: Mapping[str, Sequence[Contribution]],
        discarded: Sequence[DiscardedComponent],
    ) -> Aggregate:
        ending = Ending(self._context.round, released.keys())
        outcomes = [stage.end(ending) for stage in self._stages]
        moved = {part: blocks for one in outcomes for part, blocks in one.moved.items()}
        if moved and (table := _table(self._stages)) is not None:
            for stage in self._stages:
                stage.keep(table.scopes)
        return Aggregate(
            released,
            {scope: contributions[scope] for scope in released},
            discarded,
            moved,
            notices=[one.notice for one in outcomes if one.notice],
            spare=self._spare,
        )

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
        """What an update weighs in its accumulator; where that is its task's alone, the factor is for `combine`."""
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

    def _combined(self, group: Group, combination: Combination) -> Component:
        """A component of the base, moved by its accumulators' differences from it times their coefficients."""
        coefficients = {key: combination.shares[key] * combination.multipliers[key] for key in group.keys}
        first, *others = [group.accumulators[key] for key in coefficients]
        if not group.is_by_task and coefficients[""] == 1.0:
            return first.result()
        assert group.base is not None
        move_by_deltas(group.base, [one.runs for one in (first, *others)], list(coefficients.values()))
        self._spare += [one.buffer for one in group.accumulators.values() if one is not first]
        return first.result()


def _table(stages: Sequence[Stage]) -> SharingTable | None:
    return next((table for stage in stages if (table := stage.table()) is not None), None)


def _is_by_task(stages: Sequence[Stage], scope: str) -> bool:
    """Whether a component is accumulated for each task by itself."""
    return task_of(scope) is None and any(stage.needs_task_means for stage in stages)


def _accumulator(stages: Sequence[Stage], layout: Layout) -> Accumulator:
    """What a component's updates are accumulated in: a running mean, unless a stage says otherwise."""
    return next((one for stage in stages if (one := stage.accumulator(layout)) is not None), ComponentMean(layout))


def _reader(group: Group, key: str, blocks: UpdateBlocks | None) -> BlockReader:
    """The updates that one of a component's accumulators has taken in.

    Raises:
        AggregationError: nothing is known of where they lie.
    """
    if blocks is None:
        raise AggregationError(f"{group.scope}: its updates have to be read again, and aren't kept")
    updates = [one for one in group.updates if not group.is_by_task or one.task == key]
    return BlockReader(group.scope, updates, group.base, blocks)


def _contributions(group: Group, combination: Combination) -> list[Contribution]:
    """Who counted in a component, and with what weight."""
    if group.is_by_task:
        weights = [
            combination.shares.get(one.task, 0.0) * one.examples_in(group.scope) / (group.examples[one.task] or 1)
            for one in group.updates
        ]
    else:
        total = sum(group.weights)
        weights = [float(weight / total) for weight in group.weights]
    return [
        Contribution(
            update.client_id,
            update.task,
            update.update.claimed_examples or update.num_examples,
            weight * scale * update.discount,
            update.staleness,
            update.norms.get(group.scope),
            update.clipped_to.get(group.scope),
            update.cut_examples(group.scope),
        )
        for update, weight, scale in zip(group.updates, weights, combination.scales, strict=True)
    ]
