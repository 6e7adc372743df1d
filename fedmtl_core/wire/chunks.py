"""Cuts encoded components into chunk messages, and reassembles chunks: the codec of the wire, without a socket.

This module writes and reads chunk messages byte by byte, in protobuf's format. `GetSliceResponse` and
`PushUpdateRequest` have the chunk in the same field, so one message serves both directions. Protobuf itself would copy
the data twice on each side, which costs a third of a fast stream's throughput.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import google_crc32c
import numpy as np
import zstandard
from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import Tensor

from fedmtl_core.errors import ChecksumError, LimitExceededError, MalformedStreamError
from fedmtl_core.identifiers import quoted
from fedmtl_core.wire.formats import Compression

MAX_CHUNK_BYTES = 2 * 1024 * 1024
"""The maximum size of a chunk's data: one gRPC stream is fastest with it, and it is below the 4 MiB message limit of
every client."""

MIN_CHUNK_BYTES = 32 * 1024
"""The minimum chunk size, for the slowest links: a chunk of this size takes half a minute at 1 KB/s."""

_ZSTD_LEVEL = 1
_WORTHWHILE = 0.9  # a chunk that compression doesn't shrink below this share is sent uncompressed

_M = TypeVar("_M", pb.GetSliceResponse, pb.PushUpdateRequest)

# Field numbers and wire types of `…{chunk: Chunk{scope, offset, data, crc32c, uncompressed_bytes}}`.
_CHUNK, _SCOPE, _OFFSET, _DATA, _CRC, _UNCOMPRESSED = 0x12, 0x0A, 0x10, 0x1A, 0x25, 0x28


@dataclass(frozen=True, slots=True)
class Chunk:
    """A contiguous range of one component's encoded bytes, as a message carries it."""

    scope: str
    offset: int
    """The chunk's first byte, from the start of the encoded component."""
    data: NDArray[np.uint8]
    """The chunk's bytes, as a view into its message."""
    crc32c: int
    """The CRC32C of `data`."""
    uncompressed_bytes: int = 0
    """The size of `data` after decompression; 0 if the chunk isn't compressed."""

    @property
    def num_bytes(self) -> int:
        """The number of encoded bytes in the chunk, after decompression."""
        return self.uncompressed_bytes or len(self.data)


def chunk_bytes_for(wanted: int) -> int:
    """Return the chunk size for a slice: a power of two, so that small chunk sizes divide large ones.

    Args:
        wanted: the maximum size that the caller asks for; 0 for the largest size.
    """
    bounded = min(max(wanted or MAX_CHUNK_BYTES, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
    return 1 << (bounded.bit_length() - 1)


class ChunkedBytes:
    """An encoded component as messages of one chunk each.

    Args:
        scope: the component's scope.
        buffer: the encoded bytes, uint8 `(n,)`. `message` cuts a message from it on each call.
    """

    def __init__(self, scope: str, buffer: Tensor):
        self._bytes: NDArray[np.uint8] = buffer.numpy()
        self._scope = _length_delimited(_SCOPE, scope.encode())
        self._checksums: dict[tuple[int, int], int] = {}

    @property
    def num_bytes(self) -> int:
        return len(self._bytes)

    def offsets(self, start: int = 0, chunk_bytes: int = MAX_CHUNK_BYTES) -> range:
        """Return the offsets of the chunks, beginning with `start`."""
        return range(start, len(self._bytes), chunk_bytes)

    def message(self, offset: int, compression: Compression = "none", chunk_bytes: int = MAX_CHUNK_BYTES) -> bytes:
        """Return the serialized message of the chunk that begins at `offset`."""
        data = self._bytes[offset : offset + chunk_bytes]
        if compression == "zstd":
            packed = zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(data.data)
            if len(packed) < _WORTHWHILE * len(data):
                return self._joined(offset, packed, google_crc32c.value(packed), len(data))
        place = offset, len(data)
        crc = self._checksums.get(place)
        if crc is None:
            crc = self._checksums[place] = google_crc32c.value(data)
        return self._joined(offset, data.data, crc)

    def _joined(self, offset: int, data: bytes | memoryview, crc: int, uncompressed_bytes: int = 0) -> bytes:
        before = self._scope
        if offset:  # protobuf leaves zeros out
            before += bytes([_OFFSET]) + _varint(offset)
        before += bytes([_DATA]) + _varint(len(data))
        after = bytes([_CRC]) + crc.to_bytes(4, "little") if crc else b""
        if uncompressed_bytes:
            after += bytes([_UNCOMPRESSED]) + _varint(uncompressed_bytes)
        size = len(before) + len(data) + len(after)
        return b"".join((bytes([_CHUNK]), _varint(size), before, data, after))


def read_message(message: bytes, kind: type[_M]) -> _M | Chunk:
    """Read a message of a slice's or an update's stream: return its chunk, or the message if it has no chunk.

    Raises:
        MalformedStreamError: the bytes are not a message of this type.
    """
    chunk = _read_chunk(message)
    if chunk is not None:
        return chunk
    try:
        parsed = kind.FromString(message)
    except DecodeError:
        raise MalformedStreamError(f"expected a {kind.DESCRIPTOR.name}, got {len(message)} other bytes") from None
    if parsed.WhichOneof("part") != "chunk":
        return parsed
    part: pb.Chunk = parsed.chunk
    data = np.frombuffer(part.data, np.uint8)
    return Chunk(part.scope, part.offset, data, part.crc32c, part.uncompressed_bytes)


class Assembler:
    """Copies one stream's chunks to their places, and checks that they are exactly as long as declared.

    The chunks of one component must come by ascending offset, without gaps. A chunk that is refused leaves the bytes
    unchanged.

    Args:
        buffers: by scope, the buffer for the encoded bytes: uint8 `(encoded bytes,)`.
        start_offsets: by scope, the number of leading bytes that the buffer already has; 0 by default.
        compression: the compression that chunks may use.
    """

    def __init__(
        self,
        buffers: Mapping[str, Tensor],
        start_offsets: Mapping[str, int] | None = None,
        compression: Compression = "none",
    ):
        starts = start_offsets or {}
        self._bytes: dict[str, NDArray[np.uint8]] = {scope: buffer.numpy() for scope, buffer in buffers.items()}
        self._next = {scope: starts.get(scope, 0) for scope in self._bytes}
        self._compression = compression
        self.bytes_received = 0
        """The number of encoded bytes received; compressed chunks count with their decompressed size."""

    @property
    def offsets(self) -> dict[str, int]:
        """By scope, the number of leading bytes received. The mapping changes with each chunk."""
        return self._next

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return all(self._next[scope] == len(target) for scope, target in self._bytes.items())

    def add(self, chunk: Chunk) -> None:
        """Copy one chunk to its place.

        Raises:
            MalformedStreamError: the chunk is empty, has an unexpected component, overlaps another chunk, leaves a
                gap, runs past the end, or doesn't decompress to the size that it claims.
            LimitExceededError: the chunk is larger than `MAX_CHUNK_BYTES`.
            ChecksumError: the chunk's checksum is wrong.
        """
        target = self._bytes.get(chunk.scope)
        if target is None:
            raise MalformedStreamError(
                f"chunk of component {quoted(chunk.scope)}, expected one of {', '.join(self._bytes)}", field="scope"
            )
        self._check_place(chunk, len(target))
        crc = google_crc32c.value(chunk.data)
        if crc != chunk.crc32c:
            raise ChecksumError(
                f"{chunk.scope}: the {len(chunk.data)} bytes at byte {chunk.offset} have CRC32C {crc:08x}, "
                f"expected {chunk.crc32c:08x}",
                scope=chunk.scope,
                offset=chunk.offset,
            )
        end = chunk.offset + chunk.num_bytes
        target[chunk.offset : end] = self._decompressed(chunk) if chunk.uncompressed_bytes else chunk.data
        self._next[chunk.scope] = end
        self.bytes_received += chunk.num_bytes

    def _check_place(self, chunk: Chunk, total: int) -> None:
        scope, offset, size, expected = chunk.scope, chunk.offset, chunk.num_bytes, self._next[chunk.scope]
        if len(chunk.data) == 0:
            raise MalformedStreamError(f"{scope}: the chunk at byte {offset} is empty", field="data")
        if max(size, len(chunk.data)) > MAX_CHUNK_BYTES:
            raise LimitExceededError(
                f"{scope}: a chunk of {max(size, len(chunk.data))} bytes, at most {MAX_CHUNK_BYTES} are allowed",
                field="data",
                allowed=MAX_CHUNK_BYTES,
                got=max(size, len(chunk.data)),
            )
        if offset + size > total:
            raise MalformedStreamError(
                f"{scope}: a chunk ends at byte {offset + size}, but the component has {total} bytes", field="data"
            )
        if offset < expected:
            raise MalformedStreamError(
                f"{scope}: the chunk at byte {offset} overlaps what has arrived, expected byte {expected}",
                field="offset",
                expected=expected,
                got=offset,
            )
        if offset > expected:
            raise MalformedStreamError(
                f"{scope}: the chunk at byte {offset} leaves a gap, expected byte {expected}",
                field="offset",
                expected=expected,
                got=offset,
            )

    def _decompressed(self, chunk: Chunk) -> NDArray[np.uint8]:
        """Decompress a chunk to exactly the size that it claims, which `_check_place` has bounded."""
        where = f"{chunk.scope}: the compressed chunk at byte {chunk.offset}"
        if self._compression != "zstd":
            raise MalformedStreamError(
                f"{where} is not announced: the header says no compression", field="uncompressed_bytes"
            )
        try:
            stated = zstandard.frame_content_size(chunk.data.data)  # the library allocates this much memory
            if stated != chunk.uncompressed_bytes:
                raise MalformedStreamError(
                    f"{where} states {'no size' if stated < 0 else f'{stated} bytes'}, "
                    f"expected {chunk.uncompressed_bytes}",
                    field="uncompressed_bytes",
                )
            data = zstandard.ZstdDecompressor().decompress(chunk.data.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise MalformedStreamError(f"{where} is not a Zstandard frame: {error}", field="data") from None
        return np.frombuffer(data, np.uint8)

    def finish(self) -> None:
        """Check that every byte has arrived.

        Raises:
            MalformedStreamError: a component is incomplete.
        """
        for scope, target in self._bytes.items():
            if self._next[scope] != len(target):
                raise MalformedStreamError(f"{scope}: {self._next[scope]} of {len(target)} bytes arrived")


def _read_chunk(message: bytes) -> Chunk | None:
    """Read the chunk of a message in the usual form: every field at most once, in order, and nothing else.

    Return None for any other form, which is left to protobuf. Nearly every message has the usual form.
    """
    reader = _Reader(message)
    if not reader.tag(_CHUNK) or reader.varint() != len(message) - reader.position:
        return None
    if not reader.tag(_SCOPE):
        return None
    try:
        scope = str(reader.block(), "utf-8")
    except UnicodeDecodeError:
        return None
    offset = reader.varint() if reader.tag(_OFFSET) else 0
    if not reader.tag(_DATA):
        return None
    data = reader.block()
    crc = int.from_bytes(reader.take(4), "little") if reader.tag(_CRC) else 0
    uncompressed_bytes = reader.varint() if reader.tag(_UNCOMPRESSED) else 0
    if reader.position != len(message) or uncompressed_bytes >= 2**32:
        return None
    return Chunk(scope, offset, np.frombuffer(data, np.uint8), crc, uncompressed_bytes)


class _Reader:
    """Reads protobuf's primitives from a message. After the end or an overlong number, `position` is past the end."""

    def __init__(self, message: bytes):
        self._message = message
        self._view = memoryview(message)
        self.position = 0

    def tag(self, expected: int) -> bool:
        here = self.position
        if here < len(self._message) and self._message[here] == expected:
            self.position += 1
            return True
        return False

    def varint(self) -> int:
        value = shift = 0
        while self.position < len(self._message) and shift < 63:
            byte = self._message[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        self.position = len(self._message) + 1
        return 0

    def block(self) -> memoryview:
        return self.take(self.varint())

    def take(self, size: int) -> memoryview:
        start, self.position = self.position, self.position + size
        return self._view[start : self.position]


def _length_delimited(tag: int, data: bytes) -> bytes:
    return bytes([tag]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
