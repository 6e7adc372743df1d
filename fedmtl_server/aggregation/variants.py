"""Variants of tasks' models that stages offer to clients for comparison, and the results.

A variant has other values for some tensors of one task's model. The clients of the task evaluate it beside the model on
the same rows. A result is a function of the evaluations alone: neither the order nor the time of their arrival matters.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedmtl_core.errors import AggregationError, InvalidRequestError, NonFiniteError
from fedmtl_core.identifiers import name_some, require_identifier
from fedmtl_core.model.sharing import SharingTable
from fedmtl_core.tasks.evaluation import ROUNDING, Evaluation, TaskMetric, task_metrics
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Update
from fedmtl_core.wire.variant_messages import MAX_VARIANTS


@dataclass(frozen=True)
class Variant:
    """Other values for some tensors of one task's model."""

    name: str
    """1 to 64 letters, digits, `.`, `_` or `-`; a task has each name once in a round."""
    components: Sequence[Component]
    """Components with any tensors of the task's model, each tensor at most once. Their bytes stay unchanged. Their
    scopes tell them apart, also in a checkpoint; see `variant_scope`."""
    start_margin: float = 0.0
    """A client starts its training from the variant if its loss is lower by at least this many standard errors on the
    client's own rows; 0 to start from the model in any case."""

    def views(self) -> dict[str, Tensor]:
        """Return the variant's tensors by name, as views of its components."""
        return {name: view for component in self.components for name, view in component.views().items()}


def variant_scope(task: str, name: str) -> str:
    """Return the scope of the only component of a variant, such as `variant:stsb/own`."""
    return f"variant:{task}/{name}"


def make_variant(task: str, name: str, tensors: Mapping[str, Tensor], start_margin: float = 0.0) -> Variant:
    """Return a variant with one component, which has copies of the given tensors."""
    return Variant(name, (Component.pack(variant_scope(task, name), tensors),), start_margin)


@dataclass(frozen=True)
class VariantResult:
    """The evaluations of one variant by the clients of its task, in one round."""

    name: str
    clients: Mapping[str, VariantEvaluation] = field(default_factory=dict)
    """By client id, in the order of the cohort."""
    models: Mapping[str, Evaluation] = field(default_factory=dict)
    """By client id, the evaluation of the model with which the client compared the variant."""

    @property
    def num_diverged(self) -> int:
        """The number of clients for which the variant's loss or outputs aren't finite."""
        return sum(one.paired is None for one in self.clients.values())

    @property
    def finite(self) -> Mapping[str, PairedLoss]:
        """By client with a finite loss, its paired loss."""
        return {client: one.paired for client, one in self.clients.items() if one.paired is not None}

    @property
    def paired(self) -> PairedLoss | None:
        """The paired loss over all examples of the clients with a finite loss; None if there is no such client."""
        return PairedLoss.pooled(list(self.finite.values())) if self.finite else None

    @property
    def difference(self) -> float:
        """The mean over all examples of the variant's calibrated loss minus the model's; below 0 if the variant is
        better. Infinite if the variant diverged for a client, or if no client evaluated it."""
        if self.num_diverged or self.paired is None:
            return math.inf
        return self.paired.difference

    @property
    def metrics(self) -> Mapping[str, TaskMetric]:
        """The task's metrics of the variant by name, including the plain mean `loss` if clients report it."""
        return task_metrics(one.evaluation for one in self.clients.values() if one.paired is not None)

    def lowers(self, metric: str) -> bool:
        """Whether a metric is lower for the variant than for the model, or undefined while the model has a value.

        Only clients count that report the metric for both. It is then computed for both in the same way.
        """
        pairs = [
            (self.models[client], one.evaluation)
            for client, one in self.clients.items()
            if one.paired is not None and client in self.models
        ]
        pairs = [pair for pair in pairs if all(metric in one or metric in one.undefined for one in pair)]
        if not pairs:
            return False
        has_sums = all(one.has_sums_for(metric) for pair in pairs for one in pair)
        model, variant = (
            task_metrics(one if has_sums else replace(one, sums=None) for one in side)[metric].value
            for side in zip(*pairs, strict=True)
        )
        return model is not None and (variant is None or variant < model - ROUNDING)


Results = Mapping[str, Sequence[VariantResult]]
"""By task, the results of the variants that a round offered for it, in the order of the offer."""


def results_of(
    offered: Mapping[str, Collection[str]], updates: Iterable[Update], round_: int
) -> dict[str, list[VariantResult]]:
    """Return the results of a round's variants.

    Updates from an older model than the round's, and evaluations of variants that weren't offered, are ignored.

    Args:
        offered: by task, the names of its variants.
        updates: the counted updates, in the order of the cohort.
        round_: the round.
    """
    clients: dict[tuple[str, str], dict[str, VariantEvaluation]] = {}
    models: dict[str, Evaluation] = {}
    for update in updates:
        for one in update.variants if update.base_round == round_ else ():
            clients.setdefault((update.task, one.name), {})[update.client_id] = one
            models[update.client_id] = update.received

    def result(task: str, name: str) -> VariantResult:
        evaluations = clients.get((task, name), {})
        return VariantResult(name, evaluations, {client: models[client] for client in evaluations})

    return {task: [result(task, name) for name in names] for task, names in offered.items()}


def require_valid(
    task: str, variants: Sequence[Variant], components: Mapping[str, Component], table: SharingTable
) -> None:
    """Check that variants can be offered for a task.

    Args:
        task: the task.
        variants: its variants.
        components: the model's components by scope.
        table: the scopes of the model's tensors.

    Raises:
        AggregationError: there are too many variants, a name is malformed, or a tensor isn't as the task's model has
            it.
    """
    if task not in table.by_task:
        raise AggregationError(f"variants: expected one of the tasks {', '.join(table.by_task)}, got {task!r}")
    if len(variants) > MAX_VARIANTS:
        raise AggregationError(f"{task}: at most {MAX_VARIANTS} variants are allowed, got {len(variants)}")
    for variant in variants:
        try:
            require_identifier(f"{task}: the name of a variant", variant.name)
        except InvalidRequestError as error:
            raise AggregationError(str(error)) from None
        _require_tensors(task, variant, components, table)


def _require_tensors(task: str, variant: Variant, components: Mapping[str, Component], table: SharingTable) -> None:
    """Check that a variant's tensors are tensors of a task's model, with the same shapes and dtypes.

    Raises:
        AggregationError: a tensor isn't, or occurs twice; or there is none.
    """
    where = f"{task}: the variant {variant.name!r}"
    scopes = {one.scope for one in variant.components}
    names = [spec.name for one in variant.components for spec in one.layout.tensors]
    if not names or len(set(names)) < len(names) or len(scopes) < len(variant.components):
        raise AggregationError(f"{where}: expected at least one tensor, each once, in components of different scopes")
    expected = {spec.name: str(spec) for scope in table.scopes_for(task) for spec in components[scope].layout.tensors}
    for component in variant.components:
        for spec in component.layout.tensors:
            if expected.get(spec.name) != str(spec):
                raise AggregationError(f"{where}: {spec.name}: expected {expected.get(spec.name)}, got {spec}")


def is_finite(variant: Variant) -> bool:
    """Return whether all values of a variant are finite."""
    try:
        for component in variant.components:
            component.require_finite()
    except NonFiniteError:
        return False
    return True


def with_chosen(
    components: Mapping[str, Component], table: SharingTable, chosen: Mapping[str, Variant]
) -> dict[str, Component]:
    """Return a model whose tasks have the tensors of the variants that were chosen for them.

    Args:
        components: the model's components by scope; they stay unchanged.
        table: the scopes of the model's tensors.
        chosen: the variants by task.

    Returns:
        All components. A component without a chosen tensor is the given object itself.

    Raises:
        AggregationError: a tensor isn't the task's own, isn't as the task's model has it, or isn't finite.
    """
    result = dict(components)
    for task, variant in chosen.items():
        require_valid(task, [variant], components, table)
        for name, value in variant.views().items():
            scope = table.by_task[task][name]
            if tuple(table.members(scope)) != (task,):
                others = name_some([one for one in table.members(scope) if one != task])
                raise AggregationError(
                    f"{task}: the variant {variant.name!r} can't be chosen: {name} is shared with {others}"
                )
            if result[scope] is components[scope]:
                result[scope] = components[scope].clone()
            result[scope].views()[name].copy_(value)
        if not is_finite(variant):
            raise AggregationError(f"{task}: the variant {variant.name!r} can't be chosen: its values aren't finite")
    return result


def merged(offers: Iterable[Mapping[str, Sequence[Variant]]]) -> dict[str, list[Variant]]:
    """Return the variants of several stages together, by task; tasks without variants are absent.

    Raises:
        AggregationError: two variants of one task have the same name.
    """
    variants: dict[str, list[Variant]] = {}
    for offer in offers:
        for task, mine in offer.items():
            if mine:
                variants.setdefault(task, []).extend(mine)
    for task, offered in variants.items():
        names = [one.name for one in offered]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise AggregationError(f"{task}: expected variants with different names, got {name_some(twice)} twice")
    return variants
