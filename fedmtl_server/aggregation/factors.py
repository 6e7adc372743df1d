"""The factors of adapters in a component, and in an update of it."""

from __future__ import annotations

from torch import Tensor

from fedmtl_core.model.adapters import factor_names
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.values import ScreenedUpdate
from fedmtl_server.aggregation.wide import counted_values


def factor_pairs(layout: Layout) -> dict[str, tuple[str, str]]:
    """Return, by adapted layer, the names of its factors A and B, for the layers with both in the component."""
    return factor_names([spec.name for spec in layout.tensors])


def counted_factors(update: ScreenedUpdate, scope: str, base: Component) -> dict[str, Tensor]:
    """Return copies of an update's factors as parameters, as they count: with its difference from the model scaled.

    Args:
        update: the update.
        scope: the scope of the component that has the factors.
        base: the model's component of that scope.

    Returns:
        By name, the factors of the layers with both in the component, in the dtype of computation.
    """
    views = update.components[scope].views()
    origins = base.views() if update.needs_base_in(scope) else {}
    return {
        name: counted_values(
            views[name].flatten(),
            origins[name].flatten() if name in origins else None,
            update.scale_in(scope),
            update.kind == "delta",
        )
        .view(views[name].shape)
        .clone()
        for pair in factor_pairs(base.layout).values()
        for name in pair
    }
