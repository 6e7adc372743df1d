"""The stage that combines adapters by their products B A (`model.adapters.aggregation`).

The mean of the clients' factors isn't the factors' mean product: mean(B) mean(A) contains every client's B with every
other client's A. With `average`, the stage measures that error. With `svd` (FlexLoRA; Bai et al. 2024,
arXiv:2402.11505), it replaces the means by the factors of the product of the model's rank that is nearest to mean(B A).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from fedmtl_core.config.stages import ADAPTERS
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.adapters import factor_names
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.low_rank import Product, inexactness, truncated, weighted_sum
from fedmtl_server.aggregation.stages.base import Combination, Ending, Group, Outcome, Stage
from fedmtl_server.aggregation.values import RoundContext, ScreenedUpdate, StageState
from fedmtl_server.aggregation.wide import counted_values


class AdapterProducts(Stage):
    """Keeps the factors of a round's updates, and compares or replaces their means by their mean product.

    Only adapters whose two factors lie in the same component have a mean product.

    Args:
        aggregation: `average` to measure the error of the means, `svd` to replace the means.
    """

    rule = ADAPTERS

    def __init__(self, aggregation: Literal["average", "svd"]):
        self._aggregation = aggregation
        self._base: Mapping[str, Component] = {}
        self._factors: dict[str, dict[str, Mapping[str, Tensor]]] = {}
        self._weights: dict[str, dict[str, float]] = {}
        self._errors: dict[str, float] = {}
        self._inexactness: dict[str, float] = {}

    def begin(self, context: RoundContext) -> None:
        self._base = context.base
        self._factors, self._weights, self._errors = {}, {}, {}

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        for scope, component in update.components.items():
            names = [name for pair in _pairs(component.layout).values() for name in pair]
            if not names:
                continue
            views = component.views()
            origins = self._base[scope].views() if update.needs_base_in(scope) else {}
            self._factors.setdefault(scope, {})[update.client_id] = {
                name: counted_values(
                    views[name].flatten(),
                    origins[name].flatten() if name in origins else None,
                    update.scale_in(scope),
                    update.kind == "delta",
                )
                .view(views[name].shape)
                .clone()
                for name in names
            }
        return update

    def combine(self, group: Group, combination: Combination) -> Combination:
        if group.is_by_task:
            shares = [
                combination.shares.get(one.task, 0.0) * one.examples_in(group.scope) / (group.examples[one.task] or 1)
                for one in group.updates
            ]
        else:
            shares = [float(weight) for weight in group.weights]
        total = math.fsum(shares)
        self._weights[group.scope] = {
            one.client_id: float(share) / total for one, share in zip(group.updates, shares, strict=True) if share
        }
        return combination

    def release(self, base: Component, combined: Component) -> None:
        kept, weights = self._factors.get(base.scope, {}), self._weights.get(base.scope, {})
        views = combined.views()
        wrong, whole = 0.0, 0.0
        for a, b in _pairs(combined.layout).values():
            products = [Product(kept[client][b], kept[client][a]) for client in weights]
            if self._aggregation == "svd":
                nearest = truncated(weighted_sum(products, list(weights.values())), len(views[a]))
                views[a].copy_(nearest.a)
                views[b].copy_(nearest.b)
            error, norm = inexactness(products, list(weights.values()), Product(views[b], views[a]))
            wrong, whole = math.hypot(wrong, error), math.hypot(whole, norm)
        if kept:
            self._errors[base.scope] = wrong / whole if whole else 0.0

    def end(self, ending: Ending) -> Outcome:
        if ending.committed:
            self._inexactness = {scope: error for scope, error in self._errors.items() if scope in ending.committed}
        self._factors = {}
        return Outcome()

    def state(self) -> StageState:
        metadata: JsonObject = {"inexactness": dict(self._inexactness)} if self._inexactness else {}
        return StageState(metadata=metadata)


def _pairs(layout: Layout) -> dict[str, tuple[str, str]]:
    """Return, by adapted layer, the names of its factors A and B, if a component has both."""
    return factor_names([spec.name for spec in layout.tensors])
