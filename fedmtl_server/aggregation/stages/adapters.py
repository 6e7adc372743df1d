"""The stage that combines adapters by their products B A (`model.adapters.aggregation`).

The mean of the clients' factors isn't the factors' mean product: mean(B) mean(A) contains every client's B with every
other client's A. With `average`, the stage measures that error. With `svd` (FlexLoRA; Bai et al. 2024,
arXiv:2402.11505), it replaces the means by the factors of the product of the model's rank that is nearest to mean(B A).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedmtl_core.config.stages import ADAPTERS
from fedmtl_core.json_types import JsonObject
from fedmtl_core.runtime.threads import in_one_thread
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.factors import counted_factors, factor_pairs
from fedmtl_server.aggregation.low_rank import Product, distance, truncated, weighted_sum
from fedmtl_server.aggregation.stages.base import Combination, Ending, Group, Outcome, Stage
from fedmtl_server.aggregation.values import RoundContext, ScreenedUpdate, StageState

_LEAST_COEFFICIENT = 1e-12
"""The coefficient of the model's own product below which it is a rounding error of coefficients that add up to 1."""


@dataclass(frozen=True)
class _Weights:
    """The coefficients with which the changes of the clients' products count in a component."""

    clients: Mapping[str, float]
    """By client id, without those of 0."""
    parts: Mapping[str, float]
    """By tensor, the factor on its part's combined change; empty if there are no such factors."""


class AdapterProducts(Stage):
    """Keeps the factors of a round's updates, and compares or replaces their means by their mean product.

    Like any parameter, a product changes by the weighted sum of the clients' changes: P + Σ c (B A - P), where P is the
    model's own product. If the coefficients c add up to 1, this is the weighted mean Σ c B A.

    Only adapters whose two factors lie in the same component have a mean product. The factors of all updates stay in
    memory until the round ends.

    Args:
        aggregation: `average` to measure the error of the means, `svd` to replace the means.
    """

    rule = ADAPTERS

    def __init__(self, aggregation: Literal["average", "svd"]):
        self._aggregation = aggregation
        self._base: Mapping[str, Component] = {}
        self._factors: dict[str, dict[str, Mapping[str, Tensor]]] = {}
        self._weights: dict[str, _Weights] = {}
        self._errors: dict[str, float] = {}
        self._inexactness: dict[str, float] = {}

    def begin(self, context: RoundContext) -> None:
        self._base = context.base
        self._factors, self._weights, self._errors, self._inexactness = {}, {}, {}, {}

    def screen(self, update: ScreenedUpdate) -> ScreenedUpdate:
        for scope, component in update.components.items():
            if factor_pairs(component.layout):
                factors = counted_factors(update, scope, self._base[scope])
                self._factors.setdefault(scope, {})[update.client_id] = factors
        return update

    def combine(self, group: Group, combination: Combination) -> Combination:
        clients = [one.client_id for one in group.updates]
        coefficients = zip(clients, combination.coefficients(group), strict=True)
        parts = {name: part.factor for part in combination.scaled_parts for name in part.names}
        self._weights[group.scope] = _Weights({client: one for client, one in coefficients if one}, parts)
        return combination

    def release(self, base: Component, combined: Component) -> None:
        """Measure the error of the component's products; with `svd`, replace the products' factors before.

        Raises:
            NonFiniteError: a factor from the decomposition is beyond the range of its dtype.
        """
        pairs = factor_pairs(combined.layout)
        if not pairs or base.scope not in self._factors:
            return
        views, before = combined.views(), base.views()
        wrong, whole = 0.0, 0.0
        with in_one_thread():
            for a, b in pairs.values():
                wanted = self._product(base.scope, a, b, Product(before[b], before[a]))
                served = Product(views[b], views[a])
                if self._aggregation == "svd":
                    nearest = truncated(wanted, Product(before[b], before[a]))
                    served.a.copy_(nearest.product.a)
                    served.b.copy_(nearest.product.b)
                    rounded, _ = distance(served, nearest.product)
                    error, norm = math.hypot(nearest.lost, rounded), nearest.norm
                else:
                    error, norm = distance(served, wanted)
                wrong, whole = math.hypot(wrong, error), math.hypot(whole, norm)
        combined.require_finite()
        self._errors[base.scope] = wrong / whole if whole else 0.0

    def _product(self, scope: str, a: str, b: str, before: Product) -> Product:
        """Return the product that an adapter should have after the round, in float64.

        Args:
            scope: the component's scope.
            a: the name of the adapter's factor A.
            b: the name of the adapter's factor B.
            before: the model's product in the round.
        """
        kept, weights = self._factors[scope], self._weights[scope]
        factor = weights.parts.get(b, 1.0)
        products = [Product(kept[client][b], kept[client][a]) for client in weights.clients]
        coefficients = [factor * one for one in weights.clients.values()]
        rest = 1 - math.fsum(coefficients)
        if abs(rest) > _LEAST_COEFFICIENT:
            products, coefficients = [before, *products], [rest, *coefficients]
        return weighted_sum(products, coefficients)

    def end(self, ending: Ending) -> Outcome:
        self._inexactness = {scope: error for scope, error in self._errors.items() if scope in ending.committed}
        self._factors = {}
        return Outcome()

    def state(self) -> StageState:
        """Return, as metadata, the relative error of the round's products by scope; empty before the round's end.

        The error is the Frobenius norm of served minus wanted products over that of the wanted ones, over all adapters
        of a component. The server optimizer's step isn't part of it.
        """
        metadata: JsonObject = {"inexactness": dict(self._inexactness)} if self._inexactness else {}
        return StageState(metadata=metadata)
