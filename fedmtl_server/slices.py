"""The model as it goes out: every component's chunk messages, encoded once a round and shared by all clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.chunks import MAX_CHUNK_BYTES, split
from fedmtl_core.layout import Component, Layout


@dataclass(frozen=True)
class EncodedComponent:
    """One component of one commit, ready to be sent. It stays as it is, whatever the model becomes."""

    layout: Layout
    digest: bytes
    messages: Sequence[bytes]
    """Serialised `GetSliceResponse` messages, one for each chunk."""

    @classmethod
    def encode(cls, component: Component) -> EncodedComponent:
        messages = [pb.GetSliceResponse(chunk=chunk).SerializeToString() for chunk in split(component)]
        return cls(component.layout, component.digest(), messages)

    def start_after(self, num_bytes: int) -> int:
        """The first byte of the first chunk that a holder of so many leading bytes still needs."""
        if num_bytes >= self.layout.num_bytes:
            return self.layout.num_bytes
        return num_bytes // MAX_CHUNK_BYTES * MAX_CHUNK_BYTES

    def messages_from(self, offset: int) -> Sequence[bytes]:
        """The messages of the chunks from `offset` on, which must be one that `start_after` gave."""
        return self.messages[-(-offset // MAX_CHUNK_BYTES) :]


@dataclass(frozen=True)
class PublishedModel:
    """The model of one commit, as slices are cut from it."""

    round: int
    """The round that trains on it."""
    components: Mapping[str, EncodedComponent]

    @classmethod
    def publish(
        cls,
        round_: int,
        components: Mapping[str, Component],
        before: PublishedModel | None = None,
        changed: Iterable[str] | None = None,
    ) -> PublishedModel:
        """Encode a model; of a model published before, the components that haven't changed are taken over.

        Args:
            round_: the round that trains on it.
            components: the whole model by scope.
            before: what was published before.
            changed: scopes that differ from it; all if None.
        """
        kept = before.components if before else {}
        differs = set(components) if changed is None else set(changed)
        return cls(
            round_,
            {
                scope: kept[scope] if scope in kept and scope not in differs else EncodedComponent.encode(component)
                for scope, component in components.items()
            },
        )
