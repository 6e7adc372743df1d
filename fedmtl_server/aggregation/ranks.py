"""Adapters of unequal ranks (`model.adapters.ranks`): a client's form of a component, and the way back.

The server's model has the largest rank R. A client of rank r has the first r rows of A and columns of B. With `svd`,
these are the largest terms of the product. The client's layers multiply B A by its own scale s_r = alpha / r, or
alpha / √r with `rslora`. So that the terms stay the same, its B is multiplied by s_R / s_r.

On the way back, B is multiplied by s_r / s_R, and both factors are filled up with zeros. All further computation
therefore has one layout and one scale, those of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedmtl_core.config import Config
from fedmtl_core.config.adapters import AdaptersConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.model.adapters import factor_of
from fedmtl_core.tasks.adapters import AdapterSettings, Factor
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.aggregation.values import ScreenedUpdate
from fedmtl_server.aggregation.wide import counted_values


@dataclass(frozen=True)
class Ranks:
    """The ranks of the clients' adapters."""

    model: AdapterSettings | None = None
    """The adapters of the server's model; None if all clients have their rank."""
    default: int = 0
    """The rank of clients that `by_client` doesn't contain, and of observers."""
    by_client: Mapping[str, int] = field(default_factory=dict)
    """Ranks by client id, at most the model's."""

    @classmethod
    def of_config(cls, config: Config) -> Ranks:
        """Return the ranks that a configuration gives to clients."""
        section = config.model.adapters
        if section is None or not section.ranks:
            return EQUAL_RANKS
        return cls(config.adapters(), section.rank, section.ranks)

    def of(self, client_id: str) -> int | None:
        """Return the rank of a client's adapters if it is below the model's; None for the model's."""
        settings = self.settings_of(client_id)
        return None if settings is None or settings == self.model else settings.rank

    def settings_of(self, client_id: str) -> AdapterSettings | None:
        """Return the settings of a client's adapters; None if all clients have the model's."""
        if self.model is None:
            return None
        return replace(self.model, rank=self.by_client.get(client_id, self.default))

    def layouts_of(self, client_id: str, layouts: Sequence[Layout]) -> Sequence[Layout]:
        """Return a client's layouts of components, from the model's."""
        rank = self.of(client_id)
        return layouts if rank is None else [cut_layout(layout, rank) for layout in layouts]

    def cut(self, component: Component, rank: int) -> Component:
        """Return a component as clients of a smaller rank have it; the component itself if it has no factors."""
        if not has_factors(component.layout):
            return component
        cut = Component(cut_layout(component.layout, rank))
        wide = component.views()
        for name, view in cut.views().items():
            view.copy_(_first(name, wide[name], rank))
            if _factor_of(name) == "b":
                view.mul_(1 / self._scale(rank))
        return cut

    def widened(
        self, update: ScreenedUpdate, received: Mapping[str, Component], model: Mapping[str, Component]
    ) -> ScreenedUpdate:
        """Return the update of a client with a smaller rank as parameters in the model's layouts.

        Args:
            update: the update, in the client's layouts; it stays unchanged.
            received: the components that the client received, from `cut`.
            model: the model's components.
        """
        rank = self.of(update.client_id)
        assert rank is not None
        components = {}
        for scope, component in update.components.items():
            origins = received[scope].views() if update.kind == "delta" else {}
            components[scope] = Component(model[scope].layout)
            views = components[scope].views()
            for name, sent in component.views().items():
                value = counted_values(sent, origins.get(name), 1.0, update.kind == "delta")
                _first(name, views[name], rank).copy_(value * self._scale(rank) if _factor_of(name) == "b" else value)
        return replace(update, update=replace(update.update, kind="parameters"), components=components)

    def _scale(self, rank: int) -> float:
        """Return the scale of a product of a rank, as a multiple of the model's scale."""
        assert self.model is not None
        return replace(self.model, rank=rank).scale / self.model.scale


EQUAL_RANKS = Ranks()
"""All clients have the rank of the server's model."""


def has_factors(layout: Layout) -> bool:
    """Return whether a component has factors of adapters."""
    return any(_factor_of(spec.name) is not None for spec in layout.tensors)


def cut_layout(layout: Layout, rank: int) -> Layout:
    """Return a component's layout for clients of a smaller rank."""
    if not has_factors(layout):
        return layout
    tensors = {spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta") for spec in layout.tensors}
    return Layout.of(layout.scope, {name: _first(name, tensor, rank) for name, tensor in tensors.items()})


def require_fitting(adapters: AdaptersConfig, layouts: Sequence[Layout]) -> None:
    """Check that each adapter's product can have the largest rank of the run.

    Raises:
        ConfigError: the rank is above the inputs or outputs of an adapted layer.
    """
    rank = adapters.largest_rank
    client = next((client for client, one in adapters.ranks.items() if one == rank != adapters.rank), None)
    for spec in (spec for layout in layouts for spec in layout.tensors):
        factor = _factor_of(spec.name)
        if factor is None:
            continue
        what, size = ("inputs", spec.shape[1]) if factor == "a" else ("outputs", spec.shape[0])
        if size < rank:
            layer = spec.name.removeprefix("encoder.").partition(".lora_")[0]
            raise ConfigError(
                f"model.adapters.{'rank' if client is None else f'ranks.{client}'}: expected at most {size}, since "
                f"{layer} has {size} {what}, and a product of its factors can have no larger rank; got {rank}"
            )


def _factor_of(name: str) -> Factor | None:
    """Return the factor that a tensor of a component is; None for other tensors, such as a head's."""
    return factor_of(name) if name.startswith("encoder.") else None


def _first(name: str, tensor: Tensor, rank: int) -> Tensor:
    """Return a view of a factor's part for a rank; of other tensors, the whole."""
    factor = _factor_of(name)
    if factor is None:
        return tensor
    return tensor[:rank] if factor == "a" else tensor[:, :rank]
