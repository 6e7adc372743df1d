"""Control variates on the wire (SCAFFOLD; Karimireddy et al. 2020, arXiv:1910.06378).

The control variate of a component is another component: the same tensors in the same order, all float32, without
padding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedmtl_core.wire.layout import Component, Layout

_PREFIX = "control:"
_NAME_PREFIX = "control/"


def control_scope(scope: str) -> str:
    """Return the scope of a component's control variate, such as `control:shared`."""
    return _PREFIX + scope


def is_control(scope: str) -> bool:
    """Whether a component is a control variate."""
    return scope.startswith(_PREFIX)


def control_layout(layout: Layout) -> Layout:
    """Return the layout of a component's control variate; the tensor of parameter NAME is `control/NAME`."""
    tensors = {f"{_NAME_PREFIX}{spec.name}": torch.empty(spec.shape, device="meta") for spec in layout.tensors}
    return Layout.of(control_scope(layout.scope), tensors)


def parameter_of(name: str) -> str:
    """Return the name of the parameter that a control variate's tensor belongs to."""
    return name.removeprefix(_NAME_PREFIX)


def vector(control: Component) -> Tensor:
    """Return a control variate's numbers as a view, float32 `(num_elements,)`, in the order of the component's runs."""
    return control.buffer.view(torch.float32)


def without_controls(components: Mapping[str, Component]) -> tuple[dict[str, Component], dict[str, Component]]:
    """Split a slice into the model's components by scope, and the control variates by the scope of their component."""
    model = {scope: one for scope, one in components.items() if not is_control(scope)}
    controls = {scope.removeprefix(_PREFIX): one for scope, one in components.items() if is_control(scope)}
    return model, controls
