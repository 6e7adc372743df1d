"""Components as they travel: what they are, how they are encoded, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedmtl_core.wire.formats import Encoding
from fedmtl_core.wire.layout import Component, Layout


@dataclass(frozen=True)
class EncodedLayout:
    """What a component is, and how it travels."""

    layout: Layout
    encoding: Encoding
    num_bytes: int
    """Of the encoded form."""
    start: int = 0
    """Where its chunks begin."""

    @property
    def scope(self) -> str:
        return self.layout.scope


@dataclass(frozen=True)
class EncodedComponent:
    """A component as it travels."""

    layout: EncodedLayout
    data: Tensor
    """Encoded, uint8 `(layout.num_bytes,)`."""

    @classmethod
    def exact(cls, component: Component) -> EncodedComponent:
        """A component that travels as it is; its bytes are shared."""
        layout = component.layout
        return cls(EncodedLayout(layout, "float32", layout.num_bytes), component.buffer)
