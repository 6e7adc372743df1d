"""Averaging a round's updates that are all at hand, without a server: for programs that use FedMTL as a library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from torch import Tensor

from fedmtl_core.config import AuxiliaryConfig, Normalization, NormsConfig
from fedmtl_core.model.scopes import SHARED, group_of, scope_of, task_of
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
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting.base import TaskWeighting
from fedmtl_server.aggregation.values import ScreenedUpdate


class NamedTensors(TypedDict):
    """Tensors by name, sorted by who shares them."""

    shared: dict[str, Tensor]
    """What all tasks share."""
    groups: dict[str, dict[str, Tensor]]
    """By group of tasks, what they share."""
    task_heads: dict[str, dict[str, Tensor]]
    """By task, all that it has for itself."""


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
    extras: Extras = field(default_factory=dict)
    """Numbers for single stages, such as `{"normalization": {"num_steps": 63}}`."""

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
            client_id: the client's.
            task: the client's.
            num_examples: examples trained on.
            parameters: by name; trained parameters, or with kind `delta` trained minus received ones.
            kind: which of the two.
            scopes: by name, the scopes of tensors that are of another than `scope_of` says.
        """
        by_scope: dict[str, dict[str, Tensor]] = {}
        for name, tensor in sorted(parameters.items()):
            by_scope.setdefault((scopes or {}).get(name) or scope_of(name), {})[name] = tensor
        components = {scope: Component.pack(scope, tensors) for scope, tensors in by_scope.items()}
        return cls(client_id, task, num_examples, components, kind)

    def screened(self, round_: int) -> ScreenedUpdate:
        """The update as the stages of a round get it."""
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
    """Task-aware averaging: who counts in a component is who sent it, weighted by `num_examples`.

    Args:
        norms: what becomes of updates by how far they move the model.
        weighting: what each task counts for in what several share; None for its examples.
        seed: the run's, for what the weighting leaves to chance.
        auxiliary: by auxiliary task, what it counts for in what several share.
        normalization: whether a client's delta counts by the steps that it took.
        max_client_share: the most that one of several clients may be of a component; None for no limit.
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
        self.pipeline = Pipeline(stages)
        """The stages that an update goes through."""

    def aggregate_mtl_updates(
        self, client_updates: Iterable[ClientUpdate], base: Mapping[str, Component] | None = None, round_: int = 1
    ) -> NamedTensors:
        """Average a round's updates.

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
    """What components consist of, by name, sorted by who shares it; see `MTLAggregator.aggregate_mtl_updates`."""
    return {
        "shared": components[SHARED].views() if SHARED in components else {},
        "groups": {group: component.views() for scope, component in components.items() if (group := group_of(scope))},
        "task_heads": {task: component.views() for scope, component in components.items() if (task := task_of(scope))},
    }
