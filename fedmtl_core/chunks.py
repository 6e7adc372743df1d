"""Components cut into chunks, and chunks put back into components: the codec of the wire, without a socket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import google_crc32c
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.errors import ChecksumError, LimitExceededError, MalformedStreamError
from fedmtl_core.layout import Component

MAX_CHUNK_BYTES = 2 * 1024 * 1024
"""Most bytes of data in one chunk: where one gRPC stream peaks, and under every client's 4 MiB message limit."""


def split(component: Component, start: int = 0) -> Iterator[pb.Chunk]:
    """Cut a component's bytes from `start` on into chunks, each with its checksum."""
    memory = component.memory()
    for offset in range(start, len(memory), MAX_CHUNK_BYTES):
        data = bytes(memory[offset : offset + MAX_CHUNK_BYTES])
        yield pb.Chunk(scope=component.scope, offset=offset, data=data, crc32c=google_crc32c.value(data))


class Assembler:
    """Puts one stream's chunks into their components and keeps the declared lengths from both sides.

    Chunks of one component must come by ascending offset without gaps. A chunk that is refused leaves the
    components as they were.

    Args:
        components: where the bytes go; their layouts say how many are expected.
        start_offsets: by scope, the bytes that are in place already. 0 where not given.
    """

    def __init__(self, components: Iterable[Component], start_offsets: dict[str, int] | None = None):
        starts = start_offsets or {}
        self._memory = {component.scope: component.memory() for component in components}
        self._next = {scope: starts.get(scope, 0) for scope in self._memory}
        self.bytes_received = 0

    @property
    def offsets(self) -> dict[str, int]:
        """By scope, how many leading bytes are in place."""
        return dict(self._next)

    def add(self, chunk: pb.Chunk) -> None:
        """Put one chunk in its place.

        Raises:
            MalformedStreamError: the chunk is empty or of no expected component, overlaps another, leaves a gap, or
                runs past the end.
            LimitExceededError: it is larger than `MAX_CHUNK_BYTES`.
            ChecksumError: its bytes aren't those that were sent.
        """
        memory = self._memory.get(chunk.scope)
        if memory is None:
            raise MalformedStreamError(f"chunk of component {chunk.scope!r}, expected one of {', '.join(self._memory)}")
        data = chunk.data
        self._check_place(chunk.scope, chunk.offset, len(data), len(memory))
        crc = google_crc32c.value(data)
        if crc != chunk.crc32c:
            raise ChecksumError(
                f"{chunk.scope}: the {len(data)} bytes at byte {chunk.offset} have CRC32C {crc:08x}, "
                f"expected {chunk.crc32c:08x}"
            )
        memory[chunk.offset : chunk.offset + len(data)] = data
        self._next[chunk.scope] = chunk.offset + len(data)
        self.bytes_received += len(data)

    def _check_place(self, scope: str, offset: int, size: int, total: int) -> None:
        expected = self._next[scope]
        if size == 0:
            raise MalformedStreamError(f"{scope}: the chunk at byte {offset} is empty")
        if size > MAX_CHUNK_BYTES:
            raise LimitExceededError(f"{scope}: a chunk of {size} bytes, at most {MAX_CHUNK_BYTES} are allowed")
        if offset + size > total:
            raise MalformedStreamError(
                f"{scope}: a chunk ends at byte {offset + size}, but the component has {total} bytes"
            )
        if offset < expected:
            raise MalformedStreamError(
                f"{scope}: the chunk at byte {offset} overlaps what has arrived, expected byte {expected}"
            )
        if offset > expected:
            raise MalformedStreamError(f"{scope}: the chunk at byte {offset} leaves a gap, expected byte {expected}")

    def finish(self) -> None:
        """Check that every byte has arrived.

        Raises:
            MalformedStreamError: a component is short.
        """
        for scope, memory in self._memory.items():
            if self._next[scope] != len(memory):
                raise MalformedStreamError(f"{scope}: {self._next[scope]} of {len(memory)} bytes arrived")


def verify_digests(components: Sequence[Component], digests: Sequence[bytes]) -> None:
    """Check components against the SHA-256 digests that came with them; an empty digest is not checked.

    Raises:
        ChecksumError: one differs.
    """
    for component, digest in zip(components, digests, strict=True):
        if digest and component.digest() != digest:
            raise ChecksumError(
                f"{component.scope}: the bytes received have another digest than the one sent with them"
            )
