"""The chunk codec, and hostile streams."""

import google_crc32c
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.chunks import MAX_CHUNK_BYTES, Assembler, split, verify_digests
from fedmtl_core.errors import ChecksumError, LimitExceededError, MalformedStreamError
from fedmtl_core.layout import Component, Layout


def component_of(size: int, scope: str = "shared") -> Component:
    """`size` float32 values 0, 1, 2, …"""
    return Component.pack(scope, {"a": torch.arange(size, dtype=torch.float32)})


def chunk(data: bytes, offset: int = 0, scope: str = "shared", crc: int | None = None) -> pb.Chunk:
    return pb.Chunk(scope=scope, offset=offset, data=data, crc32c=google_crc32c.value(data) if crc is None else crc)


@given(
    st.sampled_from([0, 1, 7, MAX_CHUNK_BYTES // 4, MAX_CHUNK_BYTES // 4 + 1, MAX_CHUNK_BYTES]),
    st.integers(0, 3),
)
def test_split_and_assembled_bytes_are_the_same(size, chunks_held):
    source = component_of(size)
    start = min(chunks_held * MAX_CHUNK_BYTES, source.layout.num_bytes)
    target = Component(source.layout)
    target.buffer[:start] = source.buffer[:start]
    assembler = Assembler([target], {"shared": start})
    for part in split(source, start):
        assert 0 < len(part.data) <= MAX_CHUNK_BYTES
        assembler.add(part)
    assembler.finish()
    assert torch.equal(target.buffer, source.buffer)
    assert assembler.bytes_received == source.layout.num_bytes - start


def test_components_may_take_turns():
    first, second = component_of(2), component_of(3, "task:a")
    targets = [Component(first.layout), Component(second.layout)]
    assembler = Assembler(targets)
    a, b = first.buffer.numpy().tobytes(), second.buffer.numpy().tobytes()
    for part in (chunk(a[:4]), chunk(b[:5], 0, "task:a"), chunk(a[4:], 4), chunk(b[5:], 5, "task:a")):
        assembler.add(part)
    assembler.finish()
    assert torch.equal(targets[0].buffer, first.buffer)
    assert torch.equal(targets[1].buffer, second.buffer)


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
    ],
)
def test_a_chunk_out_of_place_is_refused_and_leaves_no_trace(part, error, message):
    target = Component(Layout.of("shared", {"a": torch.zeros(3)}))
    assembler = Assembler([target])
    assembler.add(chunk(b"\x01\x02\x03\x04"))
    before = target.buffer.clone()
    with pytest.raises(error, match=message):
        assembler.add(part)
    assert torch.equal(target.buffer, before)
    assert assembler.offsets == {"shared": 4}


def test_a_short_stream_is_refused():
    assembler = Assembler([Component(Layout.of("shared", {"a": torch.zeros(3)}))])
    assembler.add(chunk(b"12345678"))
    with pytest.raises(MalformedStreamError, match="shared: 8 of 12 bytes arrived"):
        assembler.finish()


def test_digests_are_compared_where_they_are_given():
    component = component_of(3)
    verify_digests([component, component], [component.digest(), b""])
    with pytest.raises(ChecksumError, match="another digest"):
        verify_digests([component], [bytes(32)])
