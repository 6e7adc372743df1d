"""What a stage of the aggregation may do: screen updates, weigh and accumulate them, combine, release, and remember."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from fedmtl_core.config.stages import StageRule
from fedmtl_core.errors import AggregationError
from fedmtl_core.model.scopes import task_of
from fedmtl_core.model.sharing import Partition, SharingTable
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


@dataclass(frozen=True)
class Group:
    """One component at the end of a round: the updates that count in it, and what they were accumulated to."""

    scope: str
    base: Component | None
    """The model's; None if the model hasn't got it, and nothing needs it."""
    updates: Sequence[ScreenedUpdate]
    """Without their tensors, in the order of accumulation."""
    accumulators: Mapping[str, Accumulator]
    """By task if `is_by_task`; else one alone, under an empty name."""
    is_by_task: bool = False
    factors: TaskFactors = field(default_factory=TaskFactors)

    @cached_property
    def examples(self) -> Mapping[str, Weight]:
        """By task, the examples that its updates count as; not all of them 0.

        Raises:
            AggregationError: they are.
        """
        by_task: dict[str, Weight] = {}
        for update in self.updates:
            by_task[update.task] = by_task.get(update.task, 0) + update.examples_in(self.scope)
        if not any(by_task.values()):
            count = len(self.updates)
            raise AggregationError(f"{self.scope}: the weights (num_examples) of its {count} updates sum to zero")
        return by_task

    def counts(self) -> bool:
        """Whether anything counts in it: not so if all its examples are of auxiliary tasks without a weight.

        Raises:
            AggregationError: see `examples`.
        """
        return bool(self.examples) and any(self.weights)

    @property
    def tasks(self) -> list[str]:
        """The tasks that count for anything, sorted by name: whoever was faster."""
        return sorted(task for task, examples in self.examples.items() if examples)

    @property
    def keys(self) -> list[str]:
        """The accumulators that something counts in, in the order in which they are combined."""
        return self.tasks if self.is_by_task else [""]

    @cached_property
    def weights(self) -> list[Weight]:
        """What each update counts for beside the others: its examples, times the factor of its task."""
        return [one.examples_in(self.scope) * self.factors.of(self.scope, one.task) for one in self.updates]

    def moves(self, task: str, names: Collection[str]) -> list[tuple[Tensor, Tensor]] | None:
        """How a task's clients moved some tensors of the component, on average.

        Returns:
            For each tensor where they began and where they ended, as flat vectors; None if nothing of the task counted,
            or it has no mean of its own.
        """
        examples = sum(update.num_examples for update in self.updates if update.task == task)
        mean = self.accumulators.get("" if task_of(self.scope) else task)
        if mean is None or not examples or self.base is None:
            return None
        begins = self.base.views()
        specs = [spec for spec in self.base.layout.tensors if spec.name in names]
        return [(begins[spec.name].flatten(), mean.vector(spec)) for spec in specs]


@dataclass(frozen=True)
class Combination:
    """How the accumulators of a component become one: base + Σ shares · multipliers · (accumulator - base)."""

    multipliers: Mapping[str, float]
    """By accumulator, what its difference from the base is multiplied with to be its delta."""
    shares: Mapping[str, float]
    """By accumulator, what its delta counts for."""
    scales: Sequence[float]
    """By update, what its own delta counts for within its accumulator's, beside its weight."""
    are_shares: bool = True
    """Whether `shares` are parts of a whole, so that what is taken from one of them goes to the others."""

    @classmethod
    def plain(cls, group: Group) -> Combination:
        """The accumulators as they are."""
        return cls(dict.fromkeys(group.keys, 1.0), dict.fromkeys(group.keys, 1.0), [1.0] * len(group.updates))


@dataclass(frozen=True)
class Ending:
    """The end of a round, as a stage is told of it."""

    round: int
    committed: Collection[str]
    """The scopes whose new value becomes the model's."""


@dataclass(frozen=True)
class Outcome:
    """What came of a round in one stage."""

    notice: Notice | None = None
    """What is to be said of it in the log."""
    moved: Mapping[str, Partition] = field(default_factory=dict)
    """By part of the encoder that other tasks share from now on, the blocks of tasks that shared it before."""


class Stage:
    """One step between a round's updates and the next model. It does nothing but what a class derived from it says.

    A stage is a function of its arguments and of what it remembers: the same arguments give the same result to the last
    bit, since a run that is resumed computes a round again. It has no clock, no lock and no socket. Its methods are
    called in the order in which they stand here, once for each stage in the order of the pipeline.
    """

    rule: ClassVar[StageRule]
    """Its name, what it requires of a run, and what it takes from other stages."""
    needs_task_means: bool = False
    """Whether what several tasks share is to be accumulated for each task by itself."""
    growth: float = 1.0
    """How many times the model that the run begins with the server may come to keep, because of this stage."""

    @property
    def name(self) -> str:
        """The key of its state, of its numbers among an update's extras, and of its part in the report."""
        return self.rule.name

    # Before an update counts.

    def admit(self, update: Update) -> None:
        """Check that an update says what this stage needs to know of it.

        Raises:
            InvalidRequestError: it doesn't.
        """

    # While a round takes updates.

    def factors(self, round_: int) -> Mapping[str, float]:
        """By task, what an example of it counts for in what several tasks share, if that isn't 1."""
        return {}

    def begin(self, context: RoundContext) -> None:
        """Begin a round; what one before it that came to nothing has left is forgotten."""

    def count(self, update: Update, scopes: Collection[str]) -> None:
        """Note an update that counts, with the scopes of its components, before it is screened."""

    def is_settled(self, client_id: str) -> bool:
        """Whether screening an update that counts doesn't depend on those that may still come."""
        return True

    def complete(self) -> None:
        """Note that no more updates come."""

    # Screen, then accumulate; in the cohort's order.

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        """Look at an update, and say what is to be done with it. Its tensors stay as they are.

        Raises:
            AggregationError: it can't be aggregated.
        """
        return update

    def weigh(self, scope: str, update: ScreenedUpdate, weight: Weight) -> Weight:
        """What an update weighs in its accumulator.

        Raises:
            AggregationError: it can't be weighed.
        """
        return weight

    def accumulator(self, layout: Layout) -> Accumulator | None:
        """What a component's updates are accumulated in, if this stage has a say in that; else the running mean."""
        return None

    # Combine, release and end, when the round has closed.

    def inspect(self, groups: Mapping[str, Group]) -> None:
        """Look at what all components were accumulated to, by scope, before they are combined."""

    def combine(self, group: Group, combination: Combination) -> Combination:
        """How the accumulators of one component become one.

        Raises:
            AggregationError: a class of the user's own answers with something else than it should.
        """
        return combination

    def release(self, base: Component, combined: Component) -> None:
        """Make the combined component what the model's becomes, in place.

        Raises:
            NonFiniteError: that isn't finite; the stage remembers what it did before.
        """

    def end(self, ending: Ending) -> Outcome:
        """Take up what the round has changed.

        Raises:
            AggregationError: a class of the user's own answers with something else than it should.
        """
        return Outcome()

    def table(self) -> SharingTable | None:
        """Who shares what from now on, if this stage decides it."""
        return None

    def keep(self, scopes: Collection[str]) -> None:
        """Drop the facts of components that are no more, when parts go to other scopes; `regroup` follows."""

    def regroup(self, regrouping: Regrouping) -> None:
        """Have the components that are remembered follow a model whose parts go to other scopes."""

    def record(self, record: RoundRecord) -> None:
        """Learn of a round that has ended, whether it changed the model or not; of all of them when resumed."""

    # What it sends and remembers.

    def broadcast(self) -> Broadcast:
        """What clients get beside the model."""
        return Broadcast()

    def state_layouts(self, layouts: Sequence[Layout]) -> list[Layout]:
        """The layouts of the components that it remembers of a model of some layouts."""
        return []

    def state(self) -> StageState:
        """What it remembers; empty if it has nothing to remember."""
        return StageState()

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        """Remember what was remembered when a run was left.

        Args:
            state: as `state` gave it, with components of other stages beside its own; empty for a run that has just
                begun.
            layouts: of the model that the run goes on with.

        Raises:
            LayoutMismatchError: a component is laid out otherwise; nothing has changed then.
        """
