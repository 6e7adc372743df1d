"""What goes through the aggregation of a round: updates on their way in, what came of them on their way out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from torch import Tensor

from fedmtl_core.errors import AggregationError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import task_of
from fedmtl_core.model.sharing import Partition, SharingTable
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_core.wire.updates import Update


@dataclass(frozen=True)
class ScreenedUpdate:
    """An update as the stages of a round see it: with its tensors, and with what screening said of it."""

    update: Update
    components: Mapping[str, Component] = field(default_factory=dict)
    """By scope; trained parameters, or with kind `delta` trained minus received ones."""
    staleness: int = 0
    """Commits since the model that it started from."""
    discount: float = 1.0
    """How much of a delta counts, for its staleness (FedBuff; Nguyen et al. 2022, arXiv:2106.06639)."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """By scope, the L2 norm of its delta, where it was measured."""
    clipped_to: Mapping[str, float] = field(default_factory=dict)
    """By scope, the norm that its delta is scaled down to, where that is less than its norm."""
    counted_examples: Mapping[str, Fraction] = field(default_factory=dict)
    """By scope, the examples that it counts as, where that is less than what its client says."""

    @property
    def client_id(self) -> str:
        return self.update.client_id

    @property
    def task(self) -> str:
        return self.update.task

    @property
    def kind(self) -> UpdateKind:
        return self.update.kind

    @property
    def num_examples(self) -> int:
        """The examples that it was trained on, no more than its task's limit."""
        return self.update.num_examples

    def examples_in(self, scope: str) -> int | Fraction:
        """The examples that it counts as in a component."""
        return self.counted_examples.get(scope, self.update.num_examples)

    def cut_examples(self, scope: str) -> float | None:
        """What its examples count as in a component, where that is less than its client says; else None."""
        is_cut = self.update.claimed_examples or scope in self.counted_examples
        return float(self.examples_in(scope)) if is_cut else None

    def scale_in(self, scope: str) -> float:
        """What its delta of a component is multiplied with before it is averaged."""
        if scope in self.clipped_to:
            return self.clipped_to[scope] / self.norms[scope] * self.discount
        return self.discount

    def needs_base_in(self, scope: str) -> bool:
        """Whether what it counts as in a component is relative to the model: it is a delta, or clipped."""
        return self.kind == "delta" or scope in self.clipped_to

    def without_tensors(self) -> ScreenedUpdate:
        """What remains of it when its tensors have been taken in."""
        return replace(self, components={})


@dataclass(frozen=True)
class TaskFactors:
    """What an example of an auxiliary task counts for, against 1 of another task's."""

    by_task: Mapping[str, float] = field(default_factory=dict)

    def of(self, scope: str, task: str) -> int | Fraction:
        """What an example of a task counts for in a component. In its own head it is what it always is."""
        factor = 1.0 if task_of(scope) is not None else self.by_task.get(task, 1.0)
        return 1 if factor == 1 else Fraction(factor)


@dataclass(frozen=True)
class RoundContext:
    """What every stage knows of a round when it begins."""

    round: int = 1
    base: Mapping[str, Component] = field(default_factory=dict)
    """The model that the round's deltas are added to, by scope."""
    factors: TaskFactors = field(default_factory=TaskFactors)
    contributors: Mapping[str, Collection[str]] | None = None
    """By client id, the scopes of those who may contribute; None if anybody may."""

    def require_base(self, update: ScreenedUpdate, scopes: Iterable[str], what: str) -> None:
        """Check that the model has the components that an update is compared with.

        Args:
            update: the update.
            scopes: of its components.
            what: they are needed for.

        Raises:
            AggregationError: it hasn't got one of them.
            LayoutMismatchError: one of them is laid out otherwise.
        """
        for scope in scopes:
            if scope not in self.base:
                raise AggregationError(
                    f"{update.client_id}: {what} in {scope!r} needs the parameters that they start from"
                )
            self.base[scope].layout.require_same(update.components[scope].layout)


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
    """The clients whose updates were in it, in the order of accumulation."""


@dataclass(frozen=True)
class Notice:
    """Something that a stage has to say of a round's end: a warning for the log."""

    event: str
    reason: str


@dataclass(frozen=True)
class Aggregate:
    """What a round's updates came to. A scope is absent if nobody sent it, or only tasks that count for nothing."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """The new parameters by scope."""
    contributions: Mapping[str, Sequence[Contribution]] = field(default_factory=dict)
    """By scope, who counted in it, in the order of accumulation."""
    discarded: Sequence[DiscardedComponent] = ()
    """The components whose new value isn't used; they are in neither of the above."""
    moved: Mapping[str, Partition] = field(default_factory=dict)
    """By part of the encoder that other tasks share from now on, the blocks of tasks that shared it before."""
    notices: Sequence[Notice] = ()
    spare: Sequence[Tensor] = ()
    """Buffers of accumulators that nobody needs any more, some of them of updates that were kept."""


@dataclass(frozen=True)
class RoundRecord:
    """What is known of a round that has ended: now, or from its report when a run is resumed."""

    norms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By scope, the norms that updates counted with."""
    is_regrouped: bool = False
    """Whether parts of the encoder went to other scopes at its end."""


@dataclass(frozen=True)
class Regrouping:
    """A model that goes over to another sharing table."""

    before: SharingTable
    after: SharingTable
    layouts: Sequence[Layout]
    """Of the model by the table after."""
    num_examples: Mapping[str, float]
    """By task, what its clients trained on in the round, as far as it counts."""


@dataclass(frozen=True)
class Broadcast:
    """What a stage sends to clients beside the model."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """By scope, which is none of the model's."""
    since: int = 0
    """The first round whose updates are in them; 0 if there are none."""


@dataclass(frozen=True)
class StageState:
    """What a stage remembers from round to round."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """By scope, for the checkpoint's state file. Their bytes stay as they are until the next round but one."""
    facts: JsonObject = field(default_factory=dict)
    """What JSON can carry, for the round's report."""
