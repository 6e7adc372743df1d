"""Some elements of an encoded component are what decoding all of it gives there."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.wire.encoded import EncodedLayout
from fedmtl_core.wire.encoded_ranges import decode_range
from fedmtl_core.wire.encodings import decode, encode
from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_core.wire.layout import Component

ODD = Component.pack(
    "shared",
    {
        "scale": torch.tensor(3.0),
        "matrix": torch.randn((5, 7), generator=torch.Generator().manual_seed(1)),
        "empty": torch.empty(0, 3),
        "halves": torch.tensor([1.5, -65504.0, 0.25], dtype=torch.float16),
        "brain": torch.randn((2, 3, 3), generator=torch.Generator().manual_seed(2)).to(torch.bfloat16),
        "doubles": torch.tensor([[0.1, -1e200], [3.0, 1e-3]], dtype=torch.float64),
        "vector": torch.linspace(-2, 2, 11),
    },
)
"""Scalars, tensors without elements, rows of several lengths, all dtypes, and padding between them."""


def encoded(component, encoding):
    """Its bytes, and what they are."""
    data = encode(component, encoding, 0.3)
    return EncodedLayout(component.layout, encoding, len(data)), data


def noting(data, read_bytes):
    """Gives bytes in memory of their own, and notes how many."""

    def read(start, stop):
        assert 0 <= start <= stop <= len(data)
        read_bytes.append(stop - start)
        return data[start:stop].clone()

    return read


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_range_of_every_run_is_what_decoding_the_whole_gives(encoding):
    part, data = encoded(ODD, encoding)
    whole = decode(part.layout, encoding, data).runs()
    for number, run in enumerate(whole):
        for start in range(len(run) + 1):
            for stop in range(start, len(run) + 1):
                got = decode_range(part, lambda a, b: data[a:b], number, start, stop)
                assert got.dtype == run.dtype
                assert torch.equal(got, run[start:stop]), (encoding, number, start, stop)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    st.sampled_from(ENCODINGS),
    st.integers(1, 9),
    st.integers(0, 2**32),
)
def test_blocks_of_any_size_join_to_the_whole(shapes, encoding, size, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"t{place}": torch.randn(shape, generator=generator) for place, shape in enumerate(shapes)}
    part, data = encoded(Component.pack("shared", tensors), encoding)
    for number, run in enumerate(decode(part.layout, encoding, data).runs()):
        blocks = [
            decode_range(part, noting(data, []), number, start, min(start + size, len(run)))
            for start in range(0, len(run), size)
        ]
        assert torch.equal(torch.cat(blocks), run)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_more_is_read_than_the_range_needs(encoding):
    part, data = encoded(Component.pack("shared", {"w": torch.randn(1000, 100)}), encoding)
    read_bytes = []
    decode_range(part, noting(data, read_bytes), 0, 50_000, 51_000)
    assert max(read_bytes) <= 4 * 1000
    assert sum(read_bytes) <= 9 * 1000
