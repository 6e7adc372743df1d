"""Base class of aggregation stages, which screen, weight, accumulate, combine and release, and keep state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from fedmtl_core.config.stages import StageRule
from fedmtl_core.errors import AggregationError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_of
from fedmtl_core.model.sharing import Partition, SharingTable
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.accumulators import Accumulator, Weight
from fedmtl_server.aggregation.values import (
    Broadcast,
    Notice,
    Regrouping,
    RoundContext,
    RoundRecord,
    ScreenedUpdate,
    StageState,
    TaskFactors,
)
from fedmtl_server.aggregation.variants import Results, Variant


@dataclass(frozen=True)
class Group:
    """One component at the end of a round: its counted updates and its accumulators."""

    scope: str
    base: Component | None
    """The model's component; None if the model doesn't have it and no stage needs it."""
    updates: Sequence[ScreenedUpdate]
    """The updates without their tensors, in the order of accumulation."""
    accumulators: Mapping[str, Accumulator]
    """The accumulators by task if `is_by_task`; otherwise a single accumulator under an empty name."""
    is_by_task: bool = False
    factors: TaskFactors = field(default_factory=TaskFactors)

    @cached_property
    def examples(self) -> Mapping[str, Weight]:
        """The counted examples by task; at least one number is above 0.

        Raises:
            AggregationError: all numbers are 0.
        """
        by_task: dict[str, Weight] = {}
        for update in self.updates:
            by_task[update.task] = by_task.get(update.task, 0) + update.examples_in(self.scope)
        if not any(by_task.values()):
            count = len(self.updates)
            raise AggregationError(f"{self.scope}: the weights (num_examples) of its {count} updates sum to zero")
        return by_task

    def counts(self) -> bool:
        """Return whether the component has weight: not if all its examples are of auxiliary tasks with a weight of 0.

        Raises:
            AggregationError: see `examples`.
        """
        return bool(self.examples) and any(self.weights)

    @property
    def tasks(self) -> list[str]:
        """The tasks with counted examples, sorted by name, so that their order doesn't depend on arrival."""
        return sorted(task for task, examples in self.examples.items() if examples)

    @property
    def keys(self) -> list[str]:
        """The keys of the accumulators with counted examples, in the order in which they are combined."""
        return self.tasks if self.is_by_task else [""]

    @cached_property
    def weights(self) -> list[Weight]:
        """Each update's weight: its counted examples times the factor of its task."""
        return [one.examples_in(self.scope) * self.factors.of(self.scope, one.task) for one in self.updates]

    def base_and_mean(self, task: str, names: Collection[str]) -> list[tuple[Tensor, Tensor]] | None:
        """Return the base and the task's mean of some tensors of the component; their difference is the task's delta.

        Returns:
            For each tensor, the base's and the mean's values as flat vectors; None if the task has no counted examples
            or no mean of its own.
        """
        examples = sum(update.num_examples for update in self.updates if update.task == task)
        mean = self.accumulators.get("" if task_of(self.scope) else task)
        if mean is None or not examples or self.base is None:
            return None
        views = self.base.views()
        specs = [spec for spec in self.base.layout.tensors if spec.name in names]
        return [(views[spec.name].flatten(), mean.vector(spec)) for spec in specs]


@dataclass(frozen=True)
class ScaledPart:
    """A part of a component with a factor of its own."""

    part: str
    names: Collection[str]
    """The names of the part's tensors in the component."""
    factor: float
    """The factor on the part's combined delta."""


@dataclass(frozen=True)
class Combination:
    """How a component's accumulators are merged: base + factor · Σ shares · multipliers · (accumulator - base)."""

    multipliers: Mapping[str, float]
    """By accumulator, the factor that turns its difference from the base into its delta."""
    shares: Mapping[str, float]
    """By accumulator, the coefficient of its delta."""
    scales: Sequence[float]
    """By update, the factor on its own delta within its accumulator, in addition to its weight."""
    are_shares: bool = True
    """Whether the sum of `shares` is fixed, so that a reduction of one share increases the others."""
    scaled_parts: Sequence[ScaledPart] = ()
    """The parts of the component with their factors. They contain each tensor once; without any, the factor is 1."""

    @classmethod
    def plain(cls, group: Group) -> Combination:
        """Return a combination that leaves the accumulators unchanged."""
        return cls(dict.fromkeys(group.keys, 1.0), dict.fromkeys(group.keys, 1.0), [1.0] * len(group.updates))

    def coefficients(self, group: Group) -> list[float]:
        """Return, by update, the coefficient of its own delta in the component, without the factors of parts."""
        if group.is_by_task:
            weights = [
                self.shares.get(one.task, 0.0) * one.examples_in(group.scope) / (group.examples[one.task] or 1)
                for one in group.updates
            ]
        else:
            total = sum(group.weights)
            weights = [float(weight / total) for weight in group.weights]
        return [weight * scale for weight, scale in zip(weights, self.scales, strict=True)]


@dataclass(frozen=True)
class Ending:
    """The end of a round, as a stage receives it."""

    round: int
    committed: Collection[str]
    """The scopes whose new value becomes the model's; none after an evaluation round."""
    variants: Results = field(default_factory=dict)
    """By task, the results of the variants that the round offered. A variant without any evaluation is included."""


@dataclass(frozen=True)
class Outcome:
    """The result of a round in one stage."""

    notice: Notice | None = None
    """A warning for the log."""
    moved: Mapping[str, Partition] = field(default_factory=dict)
    """By part of the encoder whose sharing changes, the blocks of tasks that shared it before."""
    moved_by: Mapping[str, str] = field(default_factory=dict)
    """By part in `moved`, the setting that changed its sharing, such as `sharing.schedule[0]`."""
    chosen: Mapping[str, Variant] = field(default_factory=dict)
    """By task, a variant whose tensors replace the model's, after the round's average and after `moved`. The task must
    then share these tensors with no other task."""
    adjusted: Mapping[str, Variant] = field(default_factory=dict)
    """By task, tensors that replace the model's as those of `chosen` do, but that clients didn't compare with it."""
    base: Mapping[str, Component] = field(default_factory=dict)
    """By scope, new components of the base beside adapters."""
    must_save: bool = False
    """Whether the stage's saved components have changed. They are then saved even if the model hasn't changed; without
    it, a round that doesn't change the model saves only the stage's metadata."""


class Stage:
    """Base class of stages. By default, a stage changes nothing; derived classes override single methods.

    A stage is a function of its arguments and its state. The same arguments and state give the same result to the last
    bit, because a resumed run computes a round again. A stage uses no clock, no lock and no socket. The pipeline calls
    the methods in the order of this class, each method for all stages in the pipeline's order.
    """

    rule: ClassVar[StageRule]
    """The stage's name, the properties that it requires of a run, and those that it takes from other stages."""
    needs_task_means: bool = False
    """Whether components that several tasks share need one accumulator per task."""
    growth: float = 1.0
    """The largest size of the server's model that this stage may cause, as a multiple of its initial size."""

    @property
    def name(self) -> str:
        """The key of the stage's state, of its numbers in an update's extras, and of its part of the report."""
        return self.rule.name

    # Before an update counts.

    def admit(self, update: Update) -> None:
        """Check that an update contains the values that this stage needs.

        Raises:
            InvalidRequestError: a value is missing or invalid.
        """

    # While a round accepts updates.

    def factors(self, round_: int) -> Mapping[str, float]:
        """Return, by task, the factor of its examples in components that several tasks share, if it isn't 1."""
        return {}

    def begin(self, context: RoundContext) -> None:
        """Begin a round, and discard all data of an earlier round that failed."""

    def count(self, update: Update, scopes: Collection[str]) -> None:
        """Register a counted update with the scopes of its components, before it is screened."""

    def is_settled(self, client_id: str) -> bool:
        """Return whether the screening of a counted update is independent of updates that may still arrive."""
        return True

    def complete(self) -> None:
        """Register that no more updates arrive."""

    # Screen, then accumulate, in cohort order.

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        """Return an update with this stage's limits and measurements. Its tensors stay unchanged.

        Raises:
            AggregationError: the update can't be aggregated.
        """
        return update

    def weigh(self, scope: str, update: ScreenedUpdate, weight: Weight) -> Weight:
        """Return an update's weight in its accumulator.

        Raises:
            AggregationError: the update has no valid weight.
        """
        return weight

    def accumulator(self, layout: Layout) -> Accumulator | None:
        """Return a new accumulator for a component; None for the running mean."""
        return None

    # Combine, release and end, when the round has closed.

    def inspect(self, groups: Mapping[str, Group]) -> None:
        """Read the accumulators of all components, by scope, before they are combined."""

    def combine(self, group: Group, combination: Combination) -> Combination:
        """Return how the accumulators of one component are merged.

        Raises:
            AggregationError: a plug-in returned an invalid result.
        """
        return combination

    def release(self, base: Component, combined: Component) -> None:
        """Turn the combined component into the model's next component, in place.

        Raises:
            NonFiniteError: the result isn't finite; the stage's state is unchanged.
        """

    def end(self, ending: Ending) -> Outcome:
        """Update the stage's state at the end of a round.

        Raises:
            AggregationError: a plug-in returned an invalid result.
        """
        return Outcome()

    def conclude(self, ending: Ending) -> Outcome:
        """Return the change of the model after the evaluation round, which makes it the run's final model.

        It is called once, at the end of the run. Without a change, the evaluated model is the final one.

        Args:
            ending: the evaluation round, with the results of its variants.

        Raises:
            AggregationError: a plug-in returned an invalid result.
        """
        return Outcome()

    def table(self) -> SharingTable | None:
        """Return the new sharing table if this stage decides it; None otherwise."""
        return None

    def keep(self, scopes: Collection[str]) -> None:
        """Drop the metadata of components that no longer exist after a change of scopes; `regroup` follows."""

    def regroup(self, regrouping: Regrouping) -> None:
        """Regroup the saved components after parts of the model changed their scopes."""

    def record(self, record: RoundRecord) -> None:
        """Record an ended round, whether or not it changed the model. A resumed run records all earlier rounds."""

    # Components to send, and saved state.

    def broadcast(self) -> Broadcast:
        """Return the components that clients receive in addition to the model."""
        return Broadcast()

    def variants(self, model: Mapping[str, Component], purpose: Purpose) -> Mapping[str, Sequence[Variant]]:
        """Return, by task, the variants to offer in the round that begins; at most 16 for a task.

        The result is a function of the arguments and the stage's state: a server that resumes the round calls this
        again, and must offer the same bytes. Variants with values that aren't finite are left out of the offer.

        Args:
            model: the model's components by scope.
            purpose: the purpose of the round: training, or the evaluation of the final model.
        """
        return {}

    def state_layouts(self, layouts: Sequence[Layout], metadata: JsonObject) -> list[Layout]:
        """Return the layouts of the saved components.

        Args:
            layouts: the layouts of the model.
            metadata: the metadata that `state` returned together with the components.
        """
        return []

    def state(self) -> StageState:
        """Return the state to save; empty if the stage has none."""
        return StageState()

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        """Restore the state that was saved when a run stopped.

        Args:
            state: the result of `state`, which may also contain components of other stages; empty for a new run.
            layouts: the layouts of the model with which the run continues.

        Raises:
            LayoutMismatchError: a component has another layout; the stage is then unchanged.
        """
