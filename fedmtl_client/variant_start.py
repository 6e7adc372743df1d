"""A start of training from a variant: the update has what training changed, relative to the received model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedmtl_core.model.modeling import MultiTaskModel


@dataclass(frozen=True)
class Start:
    """A variant from which training starts in place of the received model."""

    name: str
    difference: float
    """Mean paired loss of the variant minus that of the received model; below 0."""
    tensors: Mapping[str, Tensor]
    """The variant's tensors by name, on CPU."""

    def enter(self, model: MultiTaskModel) -> dict[str, Tensor]:
        """Overwrite a model's tensors with the variant's, and return the differences from the old values."""
        own = model.exchanged()
        differences = {}
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                differences[name] = tensor.to(own[name].device) - own[name]
                own[name].copy_(tensor)
        return differences


def leave(model: MultiTaskModel, differences: Mapping[str, Tensor]) -> None:
    """Subtract the differences that `Start.enter` returned from a trained model's tensors."""
    own = model.exchanged()
    with torch.no_grad():
        for name, difference in differences.items():
            own[name].sub_(difference)
