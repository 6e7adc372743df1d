"""Rounds of a run with `sharing.adaptive.policy: validated`, without a server; and its sums in plain numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmtl_core.config import Config
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation
from fedmtl_server.aggregation.aggregator import ClientUpdate
from fedmtl_server.aggregation.values import Aggregate
from fedmtl_server.aggregation.variants import VariantResult, is_finite, require_valid, with_chosen
from fedmtl_server.aggregation_rules import AggregationRules
from fedmtl_server.aggregation_setup import make_pipeline
from fedmtl_server.model import MTLServerModel
from fedmtl_server.sharing.source_mixing import SourceMixing
from fedmtl_server.sharing.source_selection import SHORTER
from tests.server.aggregation.updates import BlocksInMemory
from tests.server.sharing.test_shared_layers import Layered
from tests.support import specs

Deltas = Mapping[str, np.ndarray]
"""By parameter name, float64, with the parameter's shape."""

BETTER = PairedLoss(1000, 0.5, -0.5, 0.1)
WORSE = PairedLoss(1000, 1.5, 0.5, 0.1)
CONTROL = PairedLoss(1000, 1.1, 0.1, 0.1)
"""Losses of a variant beside a model with a loss of 1; `CONTROL` is of a control that clients say nothing else of."""


def config_of(
    tasks: Sequence[str],
    adaptive: Mapping[str, Any] = MappingProxyType({}),
    auxiliary: Mapping[str, Any] = MappingProxyType({}),
    **sections: Any,
) -> Config:
    """A configuration with the policy.

    Args:
        tasks: the run's tasks.
        adaptive: of the section `sharing.adaptive`.
        auxiliary: by auxiliary task, its key `auxiliary`.
        sections: other sections.
    """
    sharing = {"adaptive": {"policy": "validated", **adaptive}, **sections.pop("sharing", {})}
    of_tasks = {task: {"auxiliary": auxiliary[task]} if task in auxiliary else {} for task in tasks}
    return Config.model_validate({"tasks": of_tasks, "sharing": sharing, **sections})


class Rounds:
    """A model and its aggregation, round by round.

    Args:
        config: the configuration.
        encoder: the encoder; `Layered` from fixed random values if None.
    """

    def __init__(self, config: Config, encoder: nn.Module | None = None):
        torch.manual_seed(0)
        self.model = MTLServerModel(
            encoder or Layered(), specs(*config.tasks), hidden_size=4, sharing=config.sharing.rules()
        )
        self.pipeline = make_pipeline(config, self.model, AggregationRules.of(config))
        stage = self.pipeline.find(SourceMixing)
        assert stage is not None
        self.stage = stage
        self.offered: dict[str, list[str]] = {}
        self.controls: dict[str, dict[str, np.ndarray]] = {}

    def parameters(self, task: str) -> dict[str, np.ndarray]:
        """A task's encoder now, in float64, by parameter name."""
        values = self.model.get_model_slice_for_task(task)
        return {name: tensor.double().numpy() for name, tensor in values.items() if name.startswith("encoder.")}

    def offer(self, purpose: str = "train") -> dict[str, dict[str, dict[str, np.ndarray]]]:
        """Open a round; what its candidates have, by task, name and parameter. `controls` has their controls."""
        offered = self.pipeline.variants(self.model.components, purpose)
        for task, variants in offered.items():
            require_valid(task, variants, self.model.components, self.model.sharing)
        self.offered = {task: [one.name for one in variants if is_finite(one)] for task, variants in offered.items()}
        values = {
            task: {one.name: {name: view.double().numpy() for name, view in one.views().items()} for one in variants}
            for task, variants in offered.items()
        }
        self.controls = {task: mine.pop(SHORTER) for task, mine in values.items() if SHORTER in mine}
        return values

    def hold(
        self,
        round_: int,
        deltas: Mapping[str, Deltas],
        says: Mapping[tuple[str, str], PairedLoss | None] = MappingProxyType({}),
    ) -> Aggregate:
        """Offer variants, average one update of each task with a delta, and commit.

        Args:
            round_: the round.
            deltas: by task.
            says: by task and variant, what the task's client found; None if the variant diverged.
        """
        self.offer()
        aggregation = self.pipeline.begin(self.model.components, round_)
        updates = []
        for task, delta in deltas.items():
            components = {scope: self.model.components[scope].clone() for scope in self.model.scopes_for(task)}
            for component in components.values():
                for name, view in component.views().items():
                    if name in delta:
                        view.copy_(view.double() + torch.as_tensor(delta[name]))
            updates.append(ClientUpdate(f"of-{task}", task, 10, components).screened(round_))
        for one in updates:
            self.pipeline.count(one.update, one.components)
        self.pipeline.complete()
        for one in updates:
            aggregation.add(one)
        aggregate = aggregation.close(BlocksInMemory(updates), self.results(says))
        self._install(aggregate)
        return aggregate

    def conclude(
        self, round_: int, says: Mapping[tuple[str, str], PairedLoss | None] = MappingProxyType({})
    ) -> Aggregate:
        """The evaluation round."""
        self.offer("evaluate")
        aggregate = self.pipeline.conclude(round_, self.results(says))
        self._install(aggregate)
        return aggregate

    def results(self, says: Mapping[tuple[str, str], PairedLoss | None]) -> dict[str, list[VariantResult]]:
        says = {(task, SHORTER): CONTROL for task in self.offered} | dict(says)
        return {
            task: [
                VariantResult(
                    name, {"client": VariantEvaluation(name, says[task, name])} if (task, name) in says else {}
                )
                for name in names
            ]
            for task, names in self.offered.items()
        }

    def _install(self, aggregate: Aggregate) -> None:
        components = {**self.model.components, **aggregate.components}
        replaced = {**aggregate.adjusted, **aggregate.chosen}
        self.model.install(with_chosen(components, self.model.sharing, replaced))

    def restarted(self, config: Config, encoder: nn.Module | None = None) -> Rounds:
        """Another server with this one's model and saved state."""
        again = Rounds(config, encoder)
        again.model.install({scope: one.clone() for scope, one in self.model.components.items()})
        layouts = [one.layout for one in self.model.components.values()]
        components = {scope: one.clone() for scope, one in self.pipeline.components().items()}
        saved = self.pipeline.state_layouts(layouts, self.pipeline.metadata())
        assert {one.scope: one for one in saved} == {scope: one.layout for scope, one in components.items()}
        again.pipeline.restore(components, self.pipeline.metadata(), layouts)
        return again


def random_deltas(model: MultiTaskModel | MTLServerModel, tasks: Sequence[str], seed: int) -> dict[str, Deltas]:
    """Deltas of each task's encoder from random numbers, of another length for each task."""
    generator = np.random.default_rng(seed)
    return {
        task: {
            name: (1 + place) * generator.standard_normal(tuple(tensor.shape))
            for name, tensor in model.get_model_slice_for_task(task).items()
            if name.startswith("encoder.")
        }
        for place, task in enumerate(tasks)
    }


def mean_of(deltas: Mapping[str, Deltas], sources: Sequence[str], parts: Mapping[str, Sequence[str]]) -> Deltas:
    """The mean of the sources' deltas; each part as long as the sources' deltas are in the mean, if it can be."""
    result: dict[str, np.ndarray] = {}
    for names in parts.values():
        vectors = [np.concatenate([deltas[one][name].ravel() for name in names]) for one in sources]
        mean = sum(vectors) / len(vectors)
        wanted = sum(np.sqrt((one**2).sum()) for one in vectors) / len(vectors)
        got = np.sqrt((mean**2).sum())
        factor = min(wanted / got, len(vectors) ** 0.5) if got > 0 else 1.0
        first = 0
        for name in names:
            shape = deltas[sources[0]][name].shape
            size = int(np.prod(shape))
            result[name] = factor * mean[first : first + size].reshape(shape)
            first += size
    return result


def close_to(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], atol: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=atol, err_msg=name)
