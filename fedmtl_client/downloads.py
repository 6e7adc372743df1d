"""Receives a slice into a client's memory, from messages. Opens no socket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from fedmtl.v1 import federation_pb2 as pb
from torch import Tensor

from fedmtl_client.component_cache import ComponentCache, OwnVersion
from fedmtl_core.errors import ChecksumError, MalformedStreamError
from fedmtl_core.wire.chunks import Assembler
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import decode, require_valid
from fedmtl_core.wire.layout import Component
from fedmtl_core.wire.messages import component_from_proto, compression_from_proto, encoding_to_proto


@dataclass
class _Arriving:
    """One component during its download."""

    layout: EncodedLayout
    digest: bytes
    base_digest: bytes
    data: Tensor
    """The encoded bytes; the component's own memory if the encoding is the component's own."""

    def is_same(self, layout: EncodedLayout, digest: bytes, base_digest: bytes) -> bool:
        return (self.digest, self.base_digest, self.layout.encoding, self.layout.num_bytes) == (
            digest,
            base_digest,
            layout.encoding,
            layout.num_bytes,
        )


class Download:
    """The download of one slice, or of one variant of a slice, across reconnections.

    Args:
        cache: stores the components.
        others: further components that the client has, whose bytes are copied instead of downloaded; None for none.
        own: by scope, versions that the client has and doesn't need. The result leaves out a component of one of them.
    """

    def __init__(
        self,
        cache: ComponentCache,
        others: ComponentCache | None = None,
        own: Mapping[str, OwnVersion] = MappingProxyType({}),
    ):
        self._cache = cache
        self._own = own
        self._others = others or ComponentCache()
        self._arriving: dict[str, _Arriving] = {}
        self._assembler: Assembler | None = None
        self._scopes: list[str] = []
        self._received_before = 0

    @property
    def bytes_received(self) -> int:
        """Encoded bytes received in all streams."""
        return self._received_before + (self._assembler.bytes_received if self._assembler else 0)

    @property
    def position(self) -> int:
        """Encoded bytes present of those that the newest stream's header announced."""
        return sum(self._assembler.offsets.values()) if self._assembler else 0

    def held(self) -> list[pb.HeldComponent]:
        """Return the components and parts of components that the server needn't send."""
        offsets = self._assembler.offsets if self._assembler else {}
        partly = [
            pb.HeldComponent(
                scope=scope,
                digest=one.digest,
                num_bytes=offsets[scope],
                encoding=encoding_to_proto(one.layout.encoding),
            )
            for scope, one in self._arriving.items()
            if offsets.get(scope)
        ]
        whole = [
            pb.HeldComponent(
                scope=scope,
                digest=digest,
                num_bytes=cache.num_bytes(scope),
                encoding=pb.ENCODING_FLOAT32,
            )
            for cache in (self._cache, self._others)
            for scope, digest in cache.versions().items()
        ]
        own = [
            pb.HeldComponent(scope=scope, digest=one.digest, num_bytes=one.num_bytes, encoding=pb.ENCODING_FLOAT32)
            for scope, one in self._own.items()
        ]
        return partly + whole + own

    def begin(self, header: pb.SliceHeader) -> Assembler:
        """Prepare for the components that a stream's header announces; bytes received before are kept.

        Returns:
            The assembler for the stream's chunks.

        Raises:
            MalformedStreamError: the stream continues from bytes that this client doesn't have.
            InvalidRequestError: the header is inconsistent.
        """
        arrived = dict(self._assembler.offsets) if self._assembler else {}
        self._received_before = self.bytes_received
        parts = [(component_from_proto(one), one) for one in header.components if not self._is_own(one)]
        for layout, component in parts:
            self._expect(layout, component, arrived)
        self._scopes = [layout.scope for layout, _ in parts]
        self._assembler = Assembler(
            {scope: self._arriving[scope].data for scope in self._scopes},
            {layout.scope: layout.start for layout, _ in parts},
            compression_from_proto(header.compression),
        )
        return self._assembler

    def finish(self) -> dict[str, Component]:
        """Decode the received bytes.

        Returns:
            The slice's components without the client's own, in the header's order. They are the cache's components.

        Raises:
            MalformedStreamError: bytes are missing.
            ChecksumError: the base plus the received difference isn't the server's version; the cache is cleared.
        """
        assert self._assembler is not None
        self._assembler.finish()
        return {scope: self._decoded(scope, self._arriving[scope]) for scope in self._scopes}

    def _is_own(self, component: pb.Component) -> bool:
        """Return whether a component has a version that the client doesn't need, so that no bytes of it follow."""
        own = self._own.get(component.scope)
        return own is not None and own == OwnVersion(component.digest, component.start_offset)

    def _expect(self, layout: EncodedLayout, component: pb.Component, arrived: Mapping[str, int]) -> None:
        scope, digest, base_digest = layout.scope, component.digest, component.base_digest
        known = self._arriving.get(scope)
        goes_on = known is not None and known.is_same(layout, digest, base_digest)
        here = arrived.get(scope, 0) if goes_on else 0
        held = self._others.find(digest) if layout.encoding == "float32" else None
        is_held = held is not None and held.layout.num_bytes == layout.num_bytes
        if layout.encoding == "float32" and (is_held or self._cache.is_version(scope, digest)):
            here = layout.num_bytes
        if layout.start > here:
            raise MalformedStreamError(
                f"{scope}: the server continues at byte {layout.start}, but this client has only {here} bytes"
            )
        if base_digest and not self._cache.is_version(scope, base_digest):
            raise MalformedStreamError(f"{scope}: the server sends a difference from a version that this client lacks")
        if known is not None and goes_on:
            known.layout = layout
        else:
            self._arriving[scope] = _Arriving(layout, digest, base_digest, self._room(layout))
        if held is not None and layout.start == layout.num_bytes:
            self._arriving[scope].data.copy_(held.buffer)

    def _room(self, layout: EncodedLayout) -> Tensor:
        if layout.encoding != "float32":
            return torch.empty(layout.num_bytes, dtype=torch.uint8)
        component = self._cache.component(layout.layout)
        if layout.start < layout.num_bytes:
            self._cache.invalidate([layout.scope])
        return component.buffer

    def _decoded(self, scope: str, arriving: _Arriving) -> Component:
        layout = arriving.layout
        component = self._cache.component(layout.layout)
        if layout.encoding != "float32":
            require_valid(layout.layout, layout.encoding, arriving.data)
            self._cache.invalidate([scope])
            if arriving.base_digest:
                component.add(decode(layout.layout, layout.encoding, arriving.data))
                self._verify(component, arriving.digest)
            else:
                decode(layout.layout, layout.encoding, arriving.data, into=component)
        self._cache.set_version(scope, arriving.digest)
        return component

    def _verify(self, component: Component, digest: bytes) -> None:
        """Check the sum of base and difference: an undetected error would also corrupt all later versions."""
        if component.digest() != digest:
            self._cache.clear()
            self._arriving.clear()
            raise ChecksumError(f"{component.scope}: the base plus the received difference isn't the server's version")
