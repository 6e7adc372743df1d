"""Error feedback for lossy uploads: the compression error of each upload is added to the next one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedmtl_core.wire.encoded import EncodedComponent, EncodedLayout
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import DEFAULT_DENSITY, Encoding
from fedmtl_core.wire.layout import Component


class ErrorFeedback:
    """Encodes a client's deltas, and adds the accumulated compression error of earlier deltas to each of them.

    So every change arrives in the end (Seide et al. 2014, doi:10.21437/Interspeech.2014-274; Karimireddy et al.
    2019, arXiv:1901.09847). The compression error of an update that didn't count is discarded, since nothing of that
    update arrived.

    Args:
        encoding: the encoding of updates; not `float32`, which is lossless.
        density: share of the elements that `topk` keeps.
    """

    def __init__(self, encoding: Encoding, density: float = DEFAULT_DENSITY):
        self._encoding = encoding
        self._density = density
        self._residuals: dict[str, Component] = {}
        self._next: dict[str, Component] = {}

    def encode(self, deltas: Sequence[Component]) -> list[EncodedComponent]:
        """Encode an update's deltas plus the accumulated compression error.

        Args:
            deltas: trained minus received parameters; their values are overwritten.

        Raises:
            NonFiniteError: a value is NaN or infinite, or becomes so when the compression error is added.
        """
        self._next = {}
        for delta in deltas:
            delta.require_finite()
        return [self._encode(delta) for delta in deltas]

    def counted(self) -> None:
        """Record that the last encoded update counts."""
        self._residuals |= self._next
        self._next = {}

    def forget(self, scopes: Iterable[str] | None = None) -> None:
        """Discard accumulated errors, since later deltas are of other parameters.

        Args:
            scopes: the components' scopes; None for all components, as at the start of another run.
        """
        for scope in list(self._residuals) if scopes is None else scopes:
            self._residuals.pop(scope, None)
        self._next = {}

    def _encode(self, delta: Component) -> EncodedComponent:
        owed = self._residuals.get(delta.scope)
        if owed is not None and owed.layout == delta.layout:
            delta.add(owed)
        data = encode(delta, self._encoding, self._density)
        delta.subtract(decode(delta.layout, self._encoding, data))
        self._next[delta.scope] = delta
        return EncodedComponent(EncodedLayout(delta.layout, self._encoding, len(data)), data)
