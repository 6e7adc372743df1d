"""Encoded components cut into chunk messages, and chunks put back in place: the codec of the wire, without a socket.

A chunk message is written and read here byte by byte, as protobuf would: `GetSliceResponse` and `PushUpdateRequest`
have the chunk in the same field, so one message serves both directions. Protobuf itself would copy the data twice on
either side, which costs a third of a fast stream.
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
"""Most bytes of data in one chunk: where one gRPC stream peaks, and under every client's 4 MiB message limit."""

MIN_CHUNK_BYTES = 32 * 1024
"""What chunks are cut to on the slowest links: one takes half a minute at 1 KB/s."""

_ZSTD_LEVEL = 1
_WORTHWHILE = 0.9  # a chunk that shrinks less than this is sent as it is

_M = TypeVar("_M", pb.GetSliceResponse, pb.PushUpdateRequest)

# Field numbers and wire types of `…{chunk: Chunk{scope, offset, data, crc32c, uncompressed_bytes}}`.
_CHUNK, _SCOPE, _OFFSET, _DATA, _CRC, _UNCOMPRESSED = 0x12, 0x0A, 0x10, 0x1A, 0x25, 0x28


@dataclass(frozen=True, slots=True)
class Chunk:
    """A contiguous run of one component's encoded bytes, as it travels."""

    scope: str
    offset: int
    """Where it begins, in encoded bytes."""
    data: NDArray[np.uint8]
    """A view into the message it came in."""
    crc32c: int
    """Of `data`."""
    uncompressed_bytes: int = 0
    """What `data` decompresses to; 0 if it isn't compressed."""

    @property
    def num_bytes(self) -> int:
        """How many encoded bytes it stands for."""
        return self.uncompressed_bytes or len(self.data)


def chunk_bytes_for(wanted: int) -> int:
    """The size of the chunks that a slice is cut into: a power of two, so that smaller ones divide larger ones.

    Args:
        wanted: the most bytes that the caller asks for; 0 for as many as may be.
    """
    bounded = min(max(wanted or MAX_CHUNK_BYTES, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)
    return 1 << (bounded.bit_length() - 1)


class ChunkedBytes:
    """An encoded component, as messages of one chunk each.

    Args:
        scope: which component.
        buffer: its encoded bytes, uint8 `(n,)`. Messages are cut from it when they are asked for.
    """

    def __init__(self, scope: str, buffer: Tensor):
        self._bytes: NDArray[np.uint8] = buffer.numpy()
        self._scope = _length_delimited(_SCOPE, scope.encode())
        self._checksums: dict[tuple[int, int], int] = {}

    @property
    def num_bytes(self) -> int:
        return len(self._bytes)

    def offsets(self, start: int = 0, chunk_bytes: int = MAX_CHUNK_BYTES) -> range:
        """Where the chunks begin, from a first one on."""
        return range(start, len(self._bytes), chunk_bytes)

    def message(self, offset: int, compression: Compression = "none", chunk_bytes: int = MAX_CHUNK_BYTES) -> bytes:
        """The serialised message of the chunk that begins at `offset`."""
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
    """A message of a slice's or an update's stream: its chunk, or the whole message if it holds none.

    Raises:
        MalformedStreamError: the bytes are no such message.
    """
    chunk = _read_chunk(message)
    if chunk is not None:
        return chunk
    try:
        parsed = kind.FromString(message)
    except DecodeError:
        raise MalformedStreamError(f"{len(message)} bytes that are no {kind.DESCRIPTOR.name}") from None
    if parsed.WhichOneof("part") != "chunk":
        return parsed
    part: pb.Chunk = parsed.chunk
    data = np.frombuffer(part.data, np.uint8)
    return Chunk(part.scope, part.offset, data, part.crc32c, part.uncompressed_bytes)


class Assembler:
    """Puts one stream's chunks into their places and keeps the declared lengths from both sides.

    Chunks of one component must come by ascending offset without gaps. A chunk that is refused leaves the bytes
    as they were.

    Args:
        buffers: by scope, where the encoded bytes go: uint8 `(encoded bytes,)`.
        start_offsets: by scope, the bytes that are in place already. 0 where not given.
        compression: what chunks may be compressed with.
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
        """Encoded bytes put in place; compressed ones count as what they decompressed to."""

    @property
    def offsets(self) -> dict[str, int]:
        """By scope, how many leading bytes are in place; it goes on changing."""
        return self._next

    @property
    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return all(self._next[scope] == len(target) for scope, target in self._bytes.items())

    def add(self, chunk: Chunk) -> None:
        """Put one chunk in its place.

        Raises:
            MalformedStreamError: the chunk is empty or of no expected component, overlaps another, leaves a gap,
                runs past the end, or doesn't decompress to what it claims.
            LimitExceededError: it is larger than `MAX_CHUNK_BYTES`.
            ChecksumError: its bytes aren't those that were sent.
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
        """What a chunk decompresses to: exactly as much as it claims, which `_check_place` has bounded."""
        where = f"{chunk.scope}: the compressed chunk at byte {chunk.offset}"
        if self._compression != "zstd":
            raise MalformedStreamError(
                f"{where} is not announced: the header says no compression", field="uncompressed_bytes"
            )
        try:
            stated = zstandard.frame_content_size(chunk.data.data)  # the library takes this for the memory to get
            if stated != chunk.uncompressed_bytes:
                raise MalformedStreamError(
                    f"{where} states {'no size' if stated < 0 else f'{stated} bytes'}, "
                    f"expected {chunk.uncompressed_bytes}",
                    field="uncompressed_bytes",
                )
            data = zstandard.ZstdDecompressor().decompress(chunk.data.data, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise MalformedStreamError(f"{where} is no Zstandard frame: {error}", field="data") from None
        return np.frombuffer(data, np.uint8)

    def finish(self) -> None:
        """Check that every byte has arrived.

        Raises:
            MalformedStreamError: a component is short.
        """
        for scope, target in self._bytes.items():
            if self._next[scope] != len(target):
                raise MalformedStreamError(f"{scope}: {self._next[scope]} of {len(target)} bytes arrived")


def _read_chunk(message: bytes) -> Chunk | None:
    """The chunk in a message written the usual way: every field at most once, in order, nothing else.

    Anything else is left to protobuf, None says so; here is only what nearly every message looks like.
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
    """Takes protobuf's primitives off a message; past its end, or at an overlong number, `position` leaves it."""

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
