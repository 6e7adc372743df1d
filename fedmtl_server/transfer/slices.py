"""Publishes the model to clients: the chunk messages of each component are made once per round for all clients.

Each encoding of a component is computed once. Messages are cut from the model's own bytes on request, and the newest
messages are cached for the next client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cachetools import LRUCache
from torch import Tensor

from fedmtl_core.errors import NonFiniteError
from fedmtl_core.model.scopes import stack_scope
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, ChunkedBytes
from fedmtl_core.wire.controls import control_scope
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import DEFAULT_DENSITY, DELTA_ENCODINGS, Compression, Encoding
from fedmtl_core.wire.layout import Component, Layout, joint_digest
from fedmtl_server.aggregation.ranks import Ranks, has_factors
from fedmtl_server.aggregation.values import Broadcast


@dataclass(frozen=True)
class CachedVersion:
    """A version of a component that a client has, completely or only its first bytes."""

    digest: bytes
    encoding: Encoding
    num_bytes: int
    """The number of leading bytes of the encoded form that the client has."""


@dataclass(frozen=True)
class SlicePart:
    """One component of a slice, as one client gets it."""

    layout: EncodedLayout
    digest: bytes
    """The digest of the decoded component."""
    base_digest: bytes
    """The digest of the version that the client adds a delta to; empty if the component is not a delta."""
    chunks: ChunkedBytes
    chunk_bytes: int
    """The size of a chunk in bytes."""

    @property
    def offsets(self) -> range:
        """The start offsets of the chunks to send."""
        return self.chunks.offsets(self.layout.start, self.chunk_bytes)


@dataclass(frozen=True)
class _Form:
    """One encoded form of a version."""

    encoding: Encoding
    chunks: ChunkedBytes
    base_digest: bytes = b""


@dataclass(frozen=True)
class _Version:
    """The version of a component that clients have after they received one encoding of it."""

    component: Component
    """The decoded component: the model's own, or the model's own after rounding."""
    digest: bytes
    whole: _Form
    delta: _Form | None = None


@dataclass(eq=False)
class PublishedComponent:
    """One component of one commit. It stays unchanged until its last user has released it.

    A client that downloads deltas does not get the exact model, but the version that the deltas add up to. Each delta
    is computed from that version to the current model, so it also contains what earlier deltas lost to rounding.
    """

    component: Component
    digest: bytes
    before: Mapping[Encoding, _Version] = field(default_factory=dict)
    """The version that clients have from the deltas before this commit, by encoding."""
    on_free: Callable[[Tensor], None] = lambda buffer: None
    """Called with the component's buffer after the last user has released it."""
    cuts_before: Mapping[int, Mapping[Encoding, _Version]] = field(default_factory=dict)
    """The same as `before` for the clients of smaller ranks, by rank."""
    _cuts: dict[int, PublishedComponent] = field(default_factory=dict)
    _versions: dict[Encoding, _Version] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tensor_digests: Sequence[bytes] = ()
    _num_users: int = 0

    def __post_init__(self) -> None:
        whole = _Form("float32", ChunkedBytes(self.layout.scope, self.component.buffer))
        self._versions["float32"] = _Version(self.component, self.digest, whole)

    @property
    def layout(self) -> Layout:
        return self.component.layout

    @property
    def followed(self) -> dict[Encoding, _Version]:
        """The versions that the next commit's differences can start from."""
        return {encoding: version for encoding, version in self._versions.items() if encoding in DELTA_ENCODINGS}

    @property
    def followed_cuts(self) -> dict[int, Mapping[Encoding, _Version]]:
        """The same as `followed` for the clients of smaller ranks, by rank."""
        with self._lock:
            return {rank: cut.followed for rank, cut in self._cuts.items()}

    def cut_to(self, rank: int, ranks: Ranks) -> PublishedComponent:
        """Return the component for the clients of a smaller rank; the component itself if it has no factors.

        It is made once for all clients of the rank. This is slow, and may run in any thread.
        """
        if not has_factors(self.layout):
            return self
        with self._lock:
            if rank not in self._cuts:
                cut = ranks.cut(self.component, rank)
                self._cuts[rank] = PublishedComponent(cut, cut.digest(), self.cuts_before.get(rank, {}))
            return self._cuts[rank]

    def acquire(self) -> None:
        """Add a user of the component's bytes."""
        self._num_users += 1

    def release(self) -> None:
        """Remove a user of the component's bytes. The last one frees the buffer, unless later deltas start from it."""
        self._num_users -= 1
        followed = any(version.component is self.component for version in self.followed.values())
        if not self._num_users and not followed:
            self.on_free(self.component.buffer)

    def is_ready(self, encoding: Encoding) -> bool:
        return encoding in self._versions

    def version(self, encoding: Encoding) -> Component:
        """Return the component that clients have after they received an encoding; `prepare` must have been called."""
        return self._versions[encoding].component

    def tensor_digests(self) -> Sequence[bytes]:
        """Return the SHA-256 of each tensor's bytes, in their order. The first call is slow."""
        with self._lock:
            if not self._tensor_digests:
                self._tensor_digests = self.component.tensor_digests()
        return self._tensor_digests

    def prepare(self, encoding: Encoding, density: float = DEFAULT_DENSITY) -> None:
        """Encode the component for the clients that use an encoding. This is slow, and may run in any thread."""
        with self._lock:
            if encoding not in self._versions:
                make = self._follow if encoding in DELTA_ENCODINGS else self._round
                self._versions[encoding] = make(encoding, density)

    def part(
        self, encoding: Encoding, cached: Sequence[CachedVersion], chunk_bytes: int = MAX_CHUNK_BYTES
    ) -> SlicePart:
        """Return the part of the component that a client needs, given the versions that it has cached.

        Args:
            encoding: the encoding that the client asks for; `prepare` must have been called with it.
            cached: the versions of the component that the client has.
            chunk_bytes: the size of the client's chunks in bytes.
        """
        version = self._versions[encoding]
        has = {one.digest for one in cached if one.encoding == "float32" and one.num_bytes == self.layout.num_bytes}
        if version.digest in has:
            whole = _Form("float32", ChunkedBytes(self.layout.scope, version.component.buffer))
            return self._part(version, whole, self.layout.num_bytes, chunk_bytes)
        form = version.delta if version.delta and version.delta.base_digest in has else version.whole
        started = [one for one in cached if one.digest == version.digest and one.encoding == form.encoding]
        arrived = max((one.num_bytes for one in started), default=0)
        return self._part(version, form, min(arrived, form.chunks.num_bytes), chunk_bytes)

    def _part(self, version: _Version, form: _Form, arrived: int, chunk_bytes: int) -> SlicePart:
        whole = arrived == form.chunks.num_bytes
        start = arrived if whole else arrived // chunk_bytes * chunk_bytes
        layout = EncodedLayout(self.layout, form.encoding, form.chunks.num_bytes, start)
        return SlicePart(layout, version.digest, form.base_digest, form.chunks, chunk_bytes)

    def _round(self, encoding: Encoding, density: float) -> _Version:
        """Return the version whose numbers are all rounded to the encoding."""
        data = encode(self.component, encoding)
        component = decode(self.layout, encoding, data)
        return _Version(component, component.digest(), _Form(encoding, self._chunks(data)))

    def _follow(self, encoding: Encoding, density: float) -> _Version:
        """Return the version that clients with the previous one reach by a delta. Other clients get it in float32."""
        exact = _Version(self.component, self.digest, _Form("float32", self._chunks(self.component.buffer)))
        before = self.before.get(encoding)
        if before is None:
            return exact
        difference = self.component.clone()
        difference.subtract(before.component)
        try:
            data = encode(difference, encoding, density)
            component = decode(self.layout, encoding, data, into=difference)
            component.add(before.component)
            component.require_finite()
        except NonFiniteError:  # the difference of two huge numbers can overflow
            return exact
        whole = _Form("float32", self._chunks(component.buffer))
        return _Version(component, component.digest(), whole, _Form(encoding, self._chunks(data), before.digest))

    def _chunks(self, data: Tensor) -> ChunkedBytes:
        return ChunkedBytes(self.layout.scope, data)


class PublishedModel:
    """The model of one commit, from which slices are sent.

    Args:
        round_: the round that trains on this model.
        components: the components by scope, with those that are sent in addition to the model.
        base: by scope, the parameters beside adapters, which only a request for them gets; empty without adapters.
        control_since: the round in which the control variates among the components began; 0 if there are none.
        stack_base_digest: the digest of the component `merged` that the stack among the components is added to; empty
            without a stack.
    """

    def __init__(
        self,
        round_: int,
        components: Mapping[str, PublishedComponent],
        base: Mapping[str, PublishedComponent],
        control_since: int,
        stack_base_digest: bytes,
    ):
        self.round = round_
        self.components = components
        self.base = base
        self.control_since = control_since
        self.stack_base_digest = stack_base_digest

    @classmethod
    def publish(
        cls,
        round_: int,
        components: Mapping[str, Component],
        base: Mapping[str, Component],
        beside: Broadcast,
        before: PublishedModel | None = None,
        on_free: Callable[[Tensor], None] = lambda buffer: None,
    ) -> PublishedModel:
        """Publish a model: compute its digests, and reuse unchanged components of the model published before.

        Args:
            round_: the round that trains on this model.
            components: the whole model by scope. Components must stay unchanged until their last user releases them.
            base: the parameters beside adapters by scope; their bytes never change.
            beside: the components that are sent in addition to the model.
            before: the model published before.
            on_free: called with the buffer of a component after its last user has released it.
        """
        kept = before.components if before else {}
        published = {}
        for scope, component in {**components, **beside.components}.items():
            if scope in kept and kept[scope].component is component:
                published[scope] = kept[scope]
            else:
                same = scope in kept and kept[scope].layout == component.layout
                followed, cuts = (kept[scope].followed, kept[scope].followed_cuts) if same else ({}, {})
                published[scope] = PublishedComponent(component, component.digest(), followed, on_free, cuts)
        earlier = before.base if before else {}
        published_base = {
            scope: earlier[scope]
            if scope in earlier and earlier[scope].component is component
            else PublishedComponent(component, component.digest())
            for scope, component in base.items()
        }
        return cls(round_, published, published_base, beside.since, beside.stack_base)

    @property
    def base_digest(self) -> bytes:
        """The digest of the base; empty without adapters."""
        return joint_digest(one.digest for one in self.base.values()) if self.base else b""

    def scopes_beside(self, scopes: Sequence[str], purpose: Purpose) -> list[str]:
        """Return the scopes that are sent in addition to some of the model's.

        These are control variates, which only training needs, and the stack of adapters that the base contains.

        Args:
            scopes: the scopes of a task's slice.
            purpose: the purpose of the round.
        """
        beside = [*map(control_scope, scopes if purpose == "train" else ()), *map(stack_scope, scopes)]
        return [scope for scope in beside if scope in self.components]

    def for_round(self, round_: int) -> PublishedModel:
        """Return the same model for another round. It has the same components, and so the same users."""
        return PublishedModel(round_, self.components, self.base, self.control_since, self.stack_base_digest)

    def cut_to(self, rank: int, ranks: Ranks) -> PublishedModel:
        """Return the model for the clients of a smaller rank. The caller must be a user of this model meanwhile."""
        components = {scope: one.cut_to(rank, ranks) for scope, one in self.components.items()}
        return PublishedModel(self.round, components, self.base, self.control_since, self.stack_base_digest)

    def acquire(self) -> None:
        """Add a user of every component's bytes."""
        for component in self.components.values():
            component.acquire()

    def release(self) -> None:
        """Remove a user of every component's bytes."""
        for component in self.components.values():
            component.release()


class MessageCache:
    """Caches the messages sent last, for clients that download the same slice a little later.

    Args:
        max_bytes: the maximum size of the cache in bytes; at least the size of one message.
    """

    def __init__(self, max_bytes: int):
        self._messages: LRUCache[tuple[ChunkedBytes, int, int, Compression], bytes] = LRUCache(max_bytes, getsizeof=len)

    def find(self, part: SlicePart, offset: int, compression: Compression) -> bytes | None:
        return self._messages.get((part.chunks, part.chunk_bytes, offset, compression))

    def keep(self, part: SlicePart, offset: int, compression: Compression, message: bytes) -> None:
        self._messages[part.chunks, part.chunk_bytes, offset, compression] = message
