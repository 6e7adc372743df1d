"""Encoded components: layout, encoding, and encoded bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedmtl_core.wire.formats import Encoding
from fedmtl_core.wire.layout import Component, Layout


@dataclass(frozen=True)
class EncodedLayout:
    """A component's layout and encoding."""

    layout: Layout
    encoding: Encoding
    num_bytes: int
    """The size of the encoded form."""
    start: int = 0
    """The encoded byte at which the chunks begin; above 0 in a transfer that is resumed."""

    @property
    def scope(self) -> str:
        return self.layout.scope


@dataclass(frozen=True)
class EncodedComponent:
    """A component's encoded bytes."""

    layout: EncodedLayout
    data: Tensor
    """The encoded bytes, uint8 `(layout.num_bytes,)`."""

    @classmethod
    def exact(cls, component: Component) -> EncodedComponent:
        """Encode a component as `float32`; the result shares its bytes."""
        layout = component.layout
        return cls(EncodedLayout(layout, "float32", layout.num_bytes), component.buffer)
