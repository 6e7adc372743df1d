"""A stage for tests: it offers other heads, remembers what clients say of them, and may choose one at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pytest
import torch

import fedmtl_server.assembly
from fedmtl_core.config.stages import StageRule
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.base import Ending, Outcome, Stage
from fedmtl_server.aggregation.values import StageState
from fedmtl_server.aggregation.variants import Results, Variant, make_variant, variant_scope


class Offering(Stage):
    """Offers heads of random numbers, others in each round, which it saves as its state.

    Args:
        layouts: the model's layouts.
        offers: by task, the names of its variants.
        chooses: whether each task gets the variant with the smallest loss at the end, if that is below the model's.
        accepts: whether it gets such a variant at the end of a training round too.
        saves: whether the stage's state is saved after the evaluation round, though nothing changes.
    """

    rule = StageRule("offering", "tests.offering")

    def __init__(
        self,
        layouts: Sequence[Layout],
        offers: Mapping[str, Sequence[str]] = MappingProxyType({"sst2": ("own", "mixed")}),
        *,
        chooses: bool = False,
        accepts: bool = False,
        saves: bool = False,
    ):
        self._heads = {task: layout for task in offers for layout in layouts if layout.scope == f"task:{task}"}
        self._offers, self._chooses, self._accepts, self._saves = offers, chooses, accepts, saves
        self.seen: dict[int, Results] = {}
        """By round, what it was told."""
        self.num_concluded = 0
        self._round = 0
        self._made = self._make()

    def _make(self) -> dict[str, list[Variant]]:
        """The variants of the round after the last one that ended."""
        return {task: [self._variant(task, name) for name in names] for task, names in self._offers.items()}

    def _variant(self, task: str, name: str) -> Variant:
        generator = torch.Generator().manual_seed(self._round * 1000 + len(name))
        tensors = {
            spec.name: torch.randn(spec.shape, generator=generator).to(spec.dtype) for spec in self._heads[task].tensors
        }
        return make_variant(task, name, tensors)

    def variants(self, model, purpose):
        return self._made

    def end(self, ending: Ending) -> Outcome:
        self.seen[ending.round] = ending.variants
        chosen = self._best(ending) if self._accepts else {}
        self._round = ending.round
        self._made = self._make()
        return Outcome(chosen=chosen)

    def conclude(self, ending: Ending) -> Outcome:
        self.seen[ending.round] = ending.variants
        self.num_concluded += 1
        return Outcome(chosen=self._best(ending) if self._chooses else {}, must_save=self._saves)

    def _best(self, ending: Ending) -> dict[str, Variant]:
        chosen = {}
        for task, results in ending.variants.items():
            best = min(results, key=lambda one: one.difference)
            if best.difference < 0:
                chosen[task] = next(one for one in self._made[task] if one.name == best.name)
        return chosen

    def state_layouts(self, layouts, metadata):
        return [
            Layout(variant_scope(task, name), self._heads[task].tensors)
            for task, names in metadata.get("offers", {}).items()
            for name in names
        ]

    def state(self) -> StageState:
        components = {one.scope: one for variants in self._made.values() for v in variants for one in v.components}
        return StageState(components, {"round": self._round, "offers": {k: list(v) for k, v in self._offers.items()}})

    def restore(self, state: StageState, layouts: Sequence[Layout]) -> None:
        if not state.metadata:
            return
        self._round = state.metadata["round"]
        self._made = {
            task: [self._restored(task, name, state.components) for name in names]
            for task, names in self._offers.items()
        }

    def _restored(self, task: str, name: str, components: Mapping[str, Component]) -> Variant:
        return Variant(name, (components[variant_scope(task, name)],))


def install(monkeypatch: pytest.MonkeyPatch, **options) -> list[Offering]:
    """Let every server that starts from now on have the stage; returns those stages, the newest last."""
    made: list[Offering] = []
    make_pipeline = fedmtl_server.assembly.make_pipeline

    def with_stage(config, model, rules):
        made.append(Offering(model.layouts_for(None), **options))
        return Pipeline([*make_pipeline(config, model, rules).stages, made[-1]])

    monkeypatch.setattr(fedmtl_server.assembly, "make_pipeline", with_stage)
    return made
