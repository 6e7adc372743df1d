"""Values of a round's aggregation: the screened updates, and the results."""

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
from fedmtl_server.aggregation.variants import Results, Variant


@dataclass(frozen=True)
class ScreenedUpdate:
    """An update as the stages of a round see it: its tensors, and the results of screening."""

    update: Update
    components: Mapping[str, Component] = field(default_factory=dict)
    """By scope, the trained parameters, or with kind `delta` trained minus received parameters."""
    staleness: int = 0
    """Number of commits since the model from which the update started."""
    discount: float = 1.0
    """Factor on a delta for its staleness (FedBuff; Nguyen et al. 2022, arXiv:2106.06639)."""
    norms: Mapping[str, float] = field(default_factory=dict)
    """By scope, the L2 norm of the update's delta, if it was measured."""
    clipped_to: Mapping[str, float] = field(default_factory=dict)
    """By scope, the norm to which the delta is scaled down, if that is less than its norm."""
    counted_examples: Mapping[str, Fraction] = field(default_factory=dict)
    """By scope, the number of examples that the update counts as, if its client reported more."""

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
        """The number of training examples, at most the task's limit."""
        return self.update.num_examples

    def examples_in(self, scope: str) -> int | Fraction:
        """Return the number of examples that the update counts as in a component."""
        return self.counted_examples.get(scope, self.update.num_examples)

    def cut_examples(self, scope: str) -> float | None:
        """Return the counted examples in a component if the client reported more; None otherwise."""
        is_cut = self.update.claimed_examples or scope in self.counted_examples
        return float(self.examples_in(scope)) if is_cut else None

    def scale_in(self, scope: str) -> float:
        """Return the factor on the update's delta of a component before averaging."""
        if scope in self.clipped_to:
            return self.clipped_to[scope] / self.norms[scope] * self.discount
        return self.discount

    def needs_base_in(self, scope: str) -> bool:
        """Return whether averaging needs the model's component, because the update is a delta or clipped."""
        return self.kind == "delta" or scope in self.clipped_to

    def without_tensors(self) -> ScreenedUpdate:
        """Return the update without its tensors, which have been accumulated."""
        return replace(self, components={})


@dataclass(frozen=True)
class TaskFactors:
    """Factors on the examples of auxiliary tasks; other tasks have the factor 1."""

    by_task: Mapping[str, float] = field(default_factory=dict)

    def of(self, scope: str, task: str) -> int | Fraction:
        """Return the factor of a task's examples in a component. It is always 1 in the task's own component."""
        factor = 1.0 if task_of(scope) is not None else self.by_task.get(task, 1.0)
        return 1 if factor == 1 else Fraction(factor)


@dataclass(frozen=True)
class RoundContext:
    """The information that every stage receives at the start of a round."""

    round: int = 1
    base: Mapping[str, Component] = field(default_factory=dict)
    """By scope, the model to which the round's deltas are added, and the part of adapters' base that rounds change."""
    factors: TaskFactors = field(default_factory=TaskFactors)
    contributors: Mapping[str, Collection[str]] | None = None
    """By client id, the scopes to which the client may contribute; None if any client may."""

    def require_base(self, update: ScreenedUpdate, scopes: Iterable[str], what: str) -> None:
        """Check that the model has the components that an operation needs.

        Args:
            update: the update.
            scopes: the scopes of the needed components.
            what: the operation that needs them, for the message.

        Raises:
            AggregationError: the model lacks one of the components.
            LayoutMismatchError: one of the components has another layout.
        """
        for scope in scopes:
            if scope not in self.base:
                raise AggregationError(
                    f"{update.client_id}: {what} in {scope!r} needs the parameters from which training started"
                )
            self.base[scope].layout.require_same(update.components[scope].layout)


@dataclass(frozen=True)
class Contribution:
    """One client's part in one component."""

    client_id: str
    task: str
    num_examples: int
    weight: float
    """The client's share of the average, times the discount of a stale delta. With a task weighting, the client's share
    of its task's coefficient; not all weightings have coefficients that add up to 1. With normalization by steps, the
    coefficient of the client's own delta. If parts of the component have factors (`Aggregate.scaling`), the coefficient
    in a part is the weight times the part's factor."""
    staleness: int = 0
    norm: float | None = None
    """The L2 norm of the delta as it was sent, before any discount; None if it wasn't measured."""
    clipped_to: float | None = None
    """The norm to which the delta was scaled down before averaging; None if it wasn't."""
    counted_examples: float | None = None
    """The number of examples that counted, if the client reported more; None otherwise."""

    @property
    def counted_norm(self) -> float | None:
        """The norm after clipping."""
        return self.norm if self.clipped_to is None else self.clipped_to


@dataclass(frozen=True)
class DiscardedComponent:
    """A component that keeps its old value, although updates of it counted."""

    scope: str
    reason: str
    contributors: Sequence[str]
    """The clients whose updates were in the component, in the order of accumulation."""


@dataclass(frozen=True)
class Notice:
    """A stage's warning for the log at the end of a round."""

    event: str
    reason: str


@dataclass(frozen=True)
class Aggregate:
    """The result of a round. A scope is absent without updates, or with updates only of tasks with a weight of 0."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """The new parameters by scope."""
    contributions: Mapping[str, Sequence[Contribution]] = field(default_factory=dict)
    """By scope, the contributions to the component, in the order of accumulation."""
    scaling: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By scope and part, the factor on the part's combined delta; a scope without such factors is absent."""
    discarded: Sequence[DiscardedComponent] = ()
    """The components whose new value isn't used; `components` and `contributions` don't contain them."""
    moved: Mapping[str, Partition] = field(default_factory=dict)
    """By part of the encoder whose sharing changes, the blocks of tasks that shared it before."""
    moved_by: Mapping[str, str] = field(default_factory=dict)
    """By part in `moved`, the setting that changed its sharing, such as `sharing.schedule[0]`."""
    variants: Results = field(default_factory=dict)
    """By task, the results of the variants that the round offered."""
    chosen: Mapping[str, Variant] = field(default_factory=dict)
    """By task, a variant whose tensors replace the model's, after `moved`."""
    adjusted: Mapping[str, Variant] = field(default_factory=dict)
    """By task, tensors that replace the model's as those of `chosen` do; the report doesn't list them."""
    base: Mapping[str, Component] = field(default_factory=dict)
    """By scope, new components of the base beside adapters."""
    must_save: bool = False
    """Whether the stages' components are saved even if the model doesn't change."""
    notices: Sequence[Notice] = ()
    """The stages' warnings for the log."""
    spare: Sequence[Tensor] = ()
    """Buffers of accumulators that are free again, including buffers of updates that were kept."""


@dataclass(frozen=True)
class RoundRecord:
    """The data of an ended round: at its end, or from its report when a run is resumed."""

    norms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By scope, the norms of the counted updates, after clipping."""
    is_regrouped: bool = False
    """Whether parts of the encoder changed their scopes at the end of the round."""


@dataclass(frozen=True)
class Regrouping:
    """The change of a model to another sharing table."""

    before: SharingTable
    after: SharingTable
    layouts: Sequence[Layout]
    """The model's layouts under the new table."""
    num_examples: Mapping[str, float]
    """By task, the counted examples of its clients in the round."""


@dataclass(frozen=True)
class Broadcast:
    """The components that a stage sends to clients in addition to the model."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """By scope; the scopes differ from the model's."""
    since: int = 0
    """The first round whose updates the control variates among the components include; 0 if there are none."""
    stack_base: bytes = b""
    """The digest of the component `merged` that the stack among the components is added to; empty without a stack."""


@dataclass(frozen=True)
class StageState:
    """The state that a stage saves from round to round."""

    components: Mapping[str, Component] = field(default_factory=dict)
    """By scope, for the checkpoint's state file. Their bytes stay unchanged through the next round."""
    metadata: JsonObject = field(default_factory=dict)
    """JSON values for the round's report."""
