"""The chunk codec, and hostile streams."""

import google_crc32c
import numpy as np
import pytest
import torch
import zstandard
from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmtl_core.errors import ChecksumError, LimitExceededError, MalformedStreamError
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, Assembler, Chunk, ChunkedBytes, read_message


def numbered(size: int) -> Tensor:
    """`size` bytes that don't repeat soon."""
    return (torch.arange(size, dtype=torch.int64) * 2654435761 >> 7).to(torch.uint8)


def chunk(data: bytes, offset: int = 0, scope: str = "shared", crc: int | None = None, uncompressed: int = 0) -> Chunk:
    crc = google_crc32c.value(data) if crc is None else crc
    return Chunk(scope, offset, np.frombuffer(data, np.uint8), crc, uncompressed)


PACKED = zstandard.ZstdCompressor().compress(b"12345678")
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(b"12345678")


@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("size", [0, 1, 7, MAX_CHUNK_BYTES, MAX_CHUNK_BYTES + 4, 3 * MAX_CHUNK_BYTES])
@pytest.mark.parametrize("chunks_held", [0, 1])
def test_bytes_cut_into_messages_and_put_together_are_the_same(size, chunks_held, compression):
    source = numbered(size)
    source[: size // 2] = 7  # half of it is worth compressing
    start = min(chunks_held * MAX_CHUNK_BYTES, size)
    target = torch.zeros_like(source)
    target[:start] = source[:start]
    assembler = Assembler({"shared": target}, {"shared": start}, compression)
    chunks = ChunkedBytes("shared", source)
    for offset in chunks.offsets(start):
        message = chunks.message(offset, compression)
        parsed = pb.GetSliceResponse.FromString(message)
        assert 0 < len(parsed.chunk.data) <= MAX_CHUNK_BYTES
        assert google_crc32c.value(parsed.chunk.data) == parsed.chunk.crc32c
        assert parsed.SerializeToString() == message == pb.PushUpdateRequest.FromString(message).SerializeToString()
        assembler.add(read_message(message, pb.PushUpdateRequest))
    assembler.finish()
    assert torch.equal(target, source)
    assert assembler.bytes_received == size - start


def test_only_a_chunk_that_shrinks_is_compressed():
    chunks = ChunkedBytes("shared", torch.cat([torch.zeros(MAX_CHUNK_BYTES, dtype=torch.uint8), _noise(1000)]))
    first, second = (read_message(chunks.message(o, "zstd"), pb.GetSliceResponse) for o in chunks.offsets())
    assert first.uncompressed_bytes == first.num_bytes == MAX_CHUNK_BYTES
    assert len(first.data) < 1000
    assert second.uncompressed_bytes == 0
    assert len(second.data) == 1000


chunk_messages = st.builds(
    pb.Chunk,
    scope=st.text(max_size=20),
    offset=st.integers(0, 2**64 - 1),
    data=st.binary(max_size=300),
    crc32c=st.integers(0, 2**32 - 1),
    uncompressed_bytes=st.integers(0, 2**32 - 1),
)


@settings(max_examples=300)
@given(st.sampled_from([pb.GetSliceResponse, pb.PushUpdateRequest]), chunk_messages)
def test_a_chunk_message_is_read_as_protobuf_reads_it(kind, message):
    _same_as_protobuf(kind, kind(chunk=message).SerializeToString())


@settings(max_examples=500)
@given(chunk_messages, st.data())
def test_a_damaged_or_unusual_message_is_read_as_protobuf_reads_it(message, data):
    """Bytes changed, cut off, added or doubled: last values win, unknown fields are skipped, nonsense is refused."""
    whole = bytearray(pb.PushUpdateRequest(chunk=message).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        if whole:
            whole[data.draw(st.integers(0, min(len(whole), 30) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    pieces = data.draw(
        st.sampled_from([[whole], [whole[:cut]], [whole, whole], [whole, b"\x78\x01"], [b"\x78\x01", whole]])
    )
    _same_as_protobuf(pb.PushUpdateRequest, b"".join(bytes(piece) for piece in pieces))


def _same_as_protobuf(kind, message):
    try:
        expected = kind.FromString(message)
    except DecodeError:
        with pytest.raises(MalformedStreamError, match=r"expected a \w+, got \d+ other bytes"):
            read_message(message, kind)
        return
    got = read_message(message, kind)
    if expected.WhichOneof("part") != "chunk":
        assert got == expected
        return
    values = (got.scope, got.offset, bytes(got.data), got.crc32c, got.uncompressed_bytes)
    part = expected.chunk
    assert values == (part.scope, part.offset, part.data, part.crc32c, part.uncompressed_bytes)


def test_components_may_take_turns():
    first, second = numbered(8), numbered(12)
    targets = {"shared": torch.zeros_like(first), "task:a": torch.zeros_like(second)}
    assembler = Assembler(targets)
    a, b = first.numpy().tobytes(), second.numpy().tobytes()
    for part in (chunk(a[:4]), chunk(b[:5], 0, "task:a"), chunk(a[4:], 4), chunk(b[5:], 5, "task:a")):
        assembler.add(part)
    assembler.finish()
    assert torch.equal(targets["shared"], first)
    assert torch.equal(targets["task:a"], second)


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (chunk(b""), MalformedStreamError, "the chunk at byte 0 is empty"),
        (chunk(b"1234", scope="task:b"), MalformedStreamError, "chunk of component 'task:b', expected one of shared"),
        (
            chunk(b"1234", offset=2),
            MalformedStreamError,
            "the chunk at byte 2 overlaps what has arrived, expected byte 4",
        ),
        (chunk(b"1234", offset=6), MalformedStreamError, "the chunk at byte 6 leaves a gap, expected byte 4"),
        (chunk(b"x" * 9, offset=4), MalformedStreamError, "ends at byte 13, but the component has 12 bytes"),
        (chunk(b"1234", offset=2**63), MalformedStreamError, "but the component has 12 bytes"),
        (chunk(b"x" * (MAX_CHUNK_BYTES + 1)), LimitExceededError, "at most 2097152 are allowed"),
        (chunk(b"1234", offset=4, crc=1), ChecksumError, "have CRC32C .*, expected 00000001"),
        (chunk(PACKED, 4, uncompressed=9), MalformedStreamError, "ends at byte 13, but the component has 12 bytes"),
        (chunk(PACKED, 4, uncompressed=8, crc=1), ChecksumError, "have CRC32C .*, expected 00000001"),
        (chunk(PACKED, 4, uncompressed=7), MalformedStreamError, "states 8 bytes, expected 7"),
        (chunk(b"not a frame", 4, uncompressed=8), MalformedStreamError, "is not a Zstandard frame"),
        (chunk(PACKED[:-1], 4, uncompressed=8), MalformedStreamError, "is not a Zstandard frame"),
        (chunk(PACKED + b"x", 4, uncompressed=8), MalformedStreamError, "is not a Zstandard frame"),
        (chunk(UNSIZED, 4, uncompressed=8), MalformedStreamError, "states no size, expected 8"),
        (chunk(PACKED, 4, uncompressed=2**32 - 1), LimitExceededError, "at most 2097152 are allowed"),
    ],
)
def test_a_chunk_out_of_place_is_refused_and_leaves_no_trace(part, error, message):
    target = torch.zeros(12, dtype=torch.uint8)
    assembler = Assembler({"shared": target}, compression="zstd")
    assembler.add(chunk(b"\x01\x02\x03\x04"))
    before = target.clone()
    with pytest.raises(error, match=message):
        assembler.add(part)
    assert torch.equal(target, before)
    assert assembler.offsets == {"shared": 4}


def test_a_short_stream_is_refused():
    assembler = Assembler({"shared": torch.zeros(12, dtype=torch.uint8)})
    assembler.add(chunk(b"12345678"))
    with pytest.raises(MalformedStreamError, match="shared: 8 of 12 bytes arrived"):
        assembler.finish()


def test_a_compressed_chunk_that_was_not_announced_is_refused():
    assembler = Assembler({"shared": torch.zeros(12, dtype=torch.uint8)})
    with pytest.raises(MalformedStreamError, match="is not announced: the header says no compression"):
        assembler.add(chunk(PACKED, uncompressed=8))


def test_a_frame_that_would_fill_the_memory_is_refused_before_it_is_decompressed(monkeypatch):
    """A gigabyte of zeros is a frame of some 30 kB; what it states is compared with what its chunk may be."""
    bomb = zstandard.ZstdCompressor(1).compress(bytes(2**30))
    assert len(bomb) < 100_000

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was decompressed")

    monkeypatch.setattr(zstandard, "ZstdDecompressor", never)
    assembler = Assembler({"shared": torch.zeros(MAX_CHUNK_BYTES, dtype=torch.uint8)}, compression="zstd")
    with pytest.raises(MalformedStreamError, match=f"states {2**30} bytes, expected {MAX_CHUNK_BYTES}"):
        assembler.add(chunk(bomb, uncompressed=MAX_CHUNK_BYTES))
    with pytest.raises(LimitExceededError, match="at most 2097152"):
        assembler.add(chunk(bomb, uncompressed=2**30))


def _noise(size: int) -> Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
