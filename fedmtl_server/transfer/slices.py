"""The model as it goes out: each component's chunk messages, made once a round and shared by all clients.

Nothing is encoded twice and nothing is copied before it is asked for: messages are cut from the model's own bytes,
and the newest are kept for the next client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cachetools import LRUCache
from torch import Tensor

from fedmtl_core.errors import NonFiniteError
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, ChunkedBytes
from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import DEFAULT_DENSITY, DELTA_ENCODINGS, Compression, Encoding
from fedmtl_core.wire.layout import Component, Layout


@dataclass(frozen=True)
class Held:
    """The first bytes of one version of a component, in a client's hands."""

    digest: bytes
    encoding: Encoding
    num_bytes: int
    """Of the encoded form."""


@dataclass(frozen=True)
class SlicePart:
    """One component of a slice, as one client gets it."""

    layout: EncodedLayout
    digest: bytes
    """Of the component once it is decoded."""
    base_digest: bytes
    """Of what the client adds it to; empty if to nothing."""
    chunks: ChunkedBytes
    chunk_bytes: int
    """How large they are."""

    @property
    def offsets(self) -> range:
        """Where the chunks begin that are to be sent."""
        return self.chunks.offsets(self.layout.start, self.chunk_bytes)


@dataclass(frozen=True)
class _Form:
    """One encoded form of one version."""

    encoding: Encoding
    chunks: ChunkedBytes
    base_digest: bytes = b""


@dataclass(frozen=True)
class _Version:
    """What the clients that ask for one encoding hold, once they have it."""

    component: Component
    """Decoded: the model's own, or what is left of it after rounding."""
    digest: bytes
    whole: _Form
    delta: _Form | None = None


@dataclass(eq=False)
class PublishedComponent:
    """One component of one commit. It stays as it is while anybody holds it, whatever the model becomes.

    A client that asks for differences doesn't get the model itself but the version that those add up to; what was
    rounded away is in the next difference, since that is taken from there to the model as it is then.
    """

    component: Component
    digest: bytes
    before: Mapping[Encoding, _Version] = field(default_factory=dict)
    """What clients hold that asked for differences before this commit."""
    on_free: Callable[[Tensor], None] = lambda buffer: None
    """Told the bytes when nobody holds them any more."""
    _versions: dict[Encoding, _Version] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _holders: int = 0

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

    def hold(self) -> None:
        """Note one more who needs the bytes."""
        self._holders += 1

    def let_go(self) -> None:
        """Note one less."""
        self._holders -= 1
        followed = any(version.component is self.component for version in self.followed.values())
        if not self._holders and not followed:
            self.on_free(self.component.buffer)

    def is_ready(self, encoding: Encoding) -> bool:
        return encoding in self._versions

    def prepare(self, encoding: Encoding, density: float = DEFAULT_DENSITY) -> None:
        """Make the forms that clients of an encoding get. It takes a while; it may be called from any thread."""
        with self._lock:
            if encoding not in self._versions:
                make = self._follow if encoding in DELTA_ENCODINGS else self._round
                self._versions[encoding] = make(encoding, density)

    def part(self, encoding: Encoding, held: Sequence[Held], chunk_bytes: int = MAX_CHUNK_BYTES) -> SlicePart:
        """What a client gets that holds something already.

        Args:
            encoding: what it asks for; `prepare` was called with it.
            held: what it holds.
            chunk_bytes: the size of its chunks.
        """
        version = self._versions[encoding]
        has = {one.digest for one in held if one.encoding == "float32" and one.num_bytes == self.layout.num_bytes}
        if version.digest in has:
            whole = _Form("float32", ChunkedBytes(self.layout.scope, version.component.buffer))
            return self._part(version, whole, self.layout.num_bytes, chunk_bytes)
        form = version.delta if version.delta and version.delta.base_digest in has else version.whole
        started = [one for one in held if one.digest == version.digest and one.encoding == form.encoding]
        arrived = max((one.num_bytes for one in started), default=0)
        return self._part(version, form, min(arrived, form.chunks.num_bytes), chunk_bytes)

    def _part(self, version: _Version, form: _Form, arrived: int, chunk_bytes: int) -> SlicePart:
        whole = arrived == form.chunks.num_bytes
        start = arrived if whole else arrived // chunk_bytes * chunk_bytes
        layout = EncodedLayout(self.layout, form.encoding, form.chunks.num_bytes, start)
        return SlicePart(layout, version.digest, form.base_digest, form.chunks, chunk_bytes)

    def _round(self, encoding: Encoding, density: float) -> _Version:
        """A version whose every number is rounded."""
        data = encode(self.component, encoding)
        component = decode(self.layout, encoding, data)
        return _Version(component, component.digest(), _Form(encoding, self._chunks(data)))

    def _follow(self, encoding: Encoding, density: float) -> _Version:
        """The version that holders of the one before come to, by a difference; for others it comes exact."""
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
        except NonFiniteError:  # the difference of two huge numbers may be none
            return exact
        whole = _Form("float32", self._chunks(component.buffer))
        return _Version(component, component.digest(), whole, _Form(encoding, self._chunks(data), before.digest))

    def _chunks(self, data: Tensor) -> ChunkedBytes:
        return ChunkedBytes(self.layout.scope, data)


class PublishedModel:
    """The model of one commit, as slices are cut from it.

    Args:
        round_: the round that trains on it.
        components: by scope.
        control_since: the round in which the control variates among them began; 0 if there are none.
    """

    def __init__(self, round_: int, components: Mapping[str, PublishedComponent], control_since: int = 0):
        self.round = round_
        self.components = components
        self.control_since = control_since

    @classmethod
    def publish(
        cls,
        round_: int,
        components: Mapping[str, Component],
        before: PublishedModel | None = None,
        on_free: Callable[[Tensor], None] = lambda buffer: None,
        control_since: int = 0,
    ) -> PublishedModel:
        """Take digests of a model; of a model published before, the components that haven't changed are taken over.

        Args:
            round_: the round that trains on it.
            components: the whole model by scope. They must stay as they are until nobody holds them any more.
            before: what was published before.
            on_free: told the bytes of a component that nobody holds any more.
            control_since: as of the constructor.
        """
        kept = before.components if before else {}
        published = {}
        for scope, component in components.items():
            if scope in kept and kept[scope].component is component:
                published[scope] = kept[scope]
            else:
                same = scope in kept and kept[scope].layout == component.layout
                followed = kept[scope].followed if same else {}
                published[scope] = PublishedComponent(component, component.digest(), followed, on_free)
        return cls(round_, published, control_since)

    def for_round(self, round_: int) -> PublishedModel:
        """The same model, for another round to train on; who held this one holds that one."""
        return PublishedModel(round_, self.components, self.control_since)

    def hold(self) -> None:
        """Note one more who needs every component's bytes."""
        for component in self.components.values():
            component.hold()

    def let_go(self) -> None:
        """Note one less."""
        for component in self.components.values():
            component.let_go()


class MessageCache:
    """The messages that were sent last, for the clients that are a little behind.

    Args:
        max_bytes: the most to keep, at least one message.
    """

    def __init__(self, max_bytes: int):
        self._messages: LRUCache[tuple[ChunkedBytes, int, int, Compression], bytes] = LRUCache(max_bytes, getsizeof=len)

    def find(self, part: SlicePart, offset: int, compression: Compression) -> bytes | None:
        return self._messages.get((part.chunks, part.chunk_bytes, offset, compression))

    def keep(self, part: SlicePart, offset: int, compression: Compression, message: bytes) -> None:
        self._messages[part.chunks, part.chunk_bytes, offset, compression] = message
