"""Averaging of a round's updates in memory, without a server, for programs that use FedMTL as a library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from torch import Tensor

from fedmtl_core.config import AuxiliaryConfig, Normalization, NormsConfig
from fedmtl_core.model.scopes import group_of, is_shared, scope_of, task_of
from fedmtl_core.tasks.plan import UpdateKind
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.updates import Extras, Update
from fedmtl_server.aggregation.order import CohortOrder
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks
from fedmtl_server.aggregation.stages.base import Stage
from fedmtl_server.aggregation.stages.client_shares import ClientShares
from fedmtl_server.aggregation.stages.normalization import FedNova
from fedmtl_server.aggregation.stages.norms import NO_NORMS, NormScreening
from fedmtl_server.aggregation.stages.preserved_norm import PreservedNorm
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting.base import TaskWeighting
from fedmtl_server.aggregation.values import ScreenedUpdate


class NamedTensors(TypedDict):
    """Tensors by name, grouped by the tasks that share them."""

    shared: dict[str, Tensor]
    """The tensors that all tasks share."""
    groups: dict[str, dict[str, Tensor]]
    """By group of tasks, the tensors that the group shares."""
    task_heads: dict[str, dict[str, Tensor]]
    """By task, the tensors that only this task has."""


@dataclass(frozen=True)
class ClientUpdate:
    """One client's update of one round."""

    client_id: str
    task: str
    num_examples: int
    """Number of training examples, the weight of the update."""
    components: Mapping[str, Component]
    """By scope, the trained parameters, or with kind `delta` trained minus received parameters."""
    kind: UpdateKind = "parameters"
    extras: Extras = field(default_factory=dict)
    """Numbers that stages need, by stage, such as `{"normalization": {"num_steps": 63}}`."""

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
        """Create an update from tensors, under their names in the multi-task model (`encoder.…`, `heads.TASK.…`).

        Components are laid out in the order of names, so updates created by this method have compatible layouts.

        Args:
            client_id: the client's id.
            task: the client's task.
            num_examples: the number of training examples.
            parameters: by name, the trained parameters, or with kind `delta` trained minus received parameters.
            kind: whether `parameters` are parameters or a delta.
            scopes: by name, the scopes of tensors whose scope differs from the result of `scope_of`.
        """
        by_scope: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(parameters.items()):
            by_scope.setdefault((scopes or {}).get(name) or scope_of(name), {})[name] = tensor
        components = {scope: Component.pack(scope, tensors) for scope, tensors in by_scope.items()}
        return cls(client_id, task, num_examples, components, kind)

    def screened(self, round_: int) -> ScreenedUpdate:
        """Return the update in the form that the stages of a round receive."""
        update = Update(
            self.client_id,
            self.task,
            round_,
            update_id=self.client_id,
            kind=self.kind,
            num_examples=self.num_examples,
            extras=self.extras,
        )
        return ScreenedUpdate(update, self.components)


class MTLAggregator:
    """Task-aware averaging: each component is the mean over the updates that contain it, weighted by `num_examples`.

    Args:
        norms: the treatment of updates by the norm of their delta.
        weighting: the weighting of tasks in components that several tasks share; None to weight by examples. If its
            settings have `scaling: preserve`, each component is scaled as a whole.
        seed: the run's seed, for weightings with a random choice.
        auxiliary: by auxiliary task, its section of the configuration, with its weight and decay.
        normalization: `fednova` to average deltas by optimizer step.
        max_client_share: the largest share of one client in a component with several clients; None for no limit.
    """

    def __init__(
        self,
        norms: NormsConfig = NO_NORMS,
        weighting: TaskWeighting | None = None,
        seed: int = 0,
        auxiliary: Mapping[str, AuxiliaryConfig] | None = None,
        normalization: Normalization = "none",
        max_client_share: float | None = None,
    ):
        stages: list[Stage] = [NormScreening(norms)]
        stages += [ClientShares(max_client_share)] if max_client_share is not None else []
        stages += [FedNova()] if normalization == "fednova" else []
        stages += [TaskWeights(weighting, seed)] if weighting else []
        stages += [AuxiliaryTasks(auxiliary)] if auxiliary else []
        stages += [PreservedNorm()] if weighting and weighting.settings.preserves_norm else []
        self.pipeline = Pipeline(stages)
        """The stages that process an update."""

    def aggregate_mtl_updates(
        self, client_updates: Iterable[ClientUpdate], base: Mapping[str, Component] | None = None, round_: int = 1
    ) -> NamedTensors:
        """Average a round's updates.

        Args:
            client_updates: in any order; the result is the same to the last bit.
            base: the model's components by scope; needed if an update is a delta, tasks are weighted, or deltas are
                normalized by steps.
            round_: the round's number, counted from 1.

        Returns:
            `{"shared": {name: tensor}, "groups": {group: {name: tensor}}, "task_heads": {task: {name: tensor}}}` in
            the updates' dtypes. `task_heads` contains all tensors that only one task has. A group or task without
            updates is absent.

        Raises:
            AggregationError: there are no updates, a client occurs twice, or weights sum to zero.
        """
        updates = sorted(client_updates, key=lambda update: update.client_id)
        CohortOrder([update.client_id for update in updates])  # checks that no client occurs twice
        return named_tensors(self._averaged([update.screened(round_) for update in updates], base or {}, round_))

    def _averaged(
        self, updates: Sequence[ScreenedUpdate], base: Mapping[str, Component], round_: int
    ) -> Mapping[str, Component]:
        aggregation = self.pipeline.begin(base, round_)
        for one in updates:
            self.pipeline.count(one.update, one.components)
        self.pipeline.complete()
        for one in updates:
            aggregation.add(one)
        return aggregation.combine()[0]


def named_tensors(components: Mapping[str, Component]) -> NamedTensors:
    """Return the components' tensors as `MTLAggregator.aggregate_mtl_updates` returns them."""
    named = NamedTensors(shared={}, groups={}, task_heads={})
    for scope, component in components.items():
        if is_shared(scope):
            named["shared"] |= component.views()
        elif (group := group_of(scope)) is not None:
            named["groups"].setdefault(group, {}).update(component.views())
        elif (task := task_of(scope)) is not None:
            named["task_heads"].setdefault(task, {}).update(component.views())
    return named
