"""Control variates as both sides know them (SCAFFOLD; Karimireddy et al. 2020, arXiv:1910.06378).

The variate of a component is a component of its own: the same tensors in the same order, all float32, without padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component, Layout

_PREFIX = "control:"
_NAME_PREFIX = "control/"


def control_scope(scope: str) -> str:
    """The name of a component's control variate: `control:shared`."""
    return _PREFIX + scope


def is_control(scope: str) -> bool:
    """Whether a component is a control variate."""
    return scope.startswith(_PREFIX)


def control_layout(layout: Layout) -> Layout:
    """The layout of a component's control variate; a parameter's tensor is `control/NAME`."""
    tensors = {f"{_NAME_PREFIX}{spec.name}": torch.empty(spec.shape, device="meta") for spec in layout.tensors}
    return Layout.of(control_scope(layout.scope), tensors)


def parameter_of(name: str) -> str:
    """The parameter that a variate's tensor is for."""
    return name.removeprefix(_NAME_PREFIX)


def vector(control: Component) -> Tensor:
    """A variate's numbers, float32 `(num_elements,)`, as a view. They are in the order of the component's runs."""
    return control.buffer.view(torch.float32)


def without_controls(components: Mapping[str, Component]) -> tuple[dict[str, Component], dict[str, Component]]:
    """A slice's components by scope, and apart from them the control variates, by the scope that each is for."""
    model = {scope: one for scope, one in components.items() if not is_control(scope)}
    controls = {scope.removeprefix(_PREFIX): one for scope, one in components.items() if is_control(scope)}
    return model, controls
