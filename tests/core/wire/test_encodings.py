"""Components to encoded bytes and back. What is expected is computed by NumPy and by hand."""

import math
import struct
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmtl_core.errors import LayoutMismatchError, LimitExceededError, MalformedStreamError, NonFiniteError
from fedmtl_core.wire.encodings import decode, encode, require_encoded_size, require_valid
from fedmtl_core.wire.formats import ENCODINGS
from fedmtl_core.wire.layout import DTYPES, Component, Layout
from fedmtl_core.wire.lossy import blocks
from fedmtl_core.wire.lossy.int8 import MAX_SCALE

MAX_FLOAT32 = 3.4028234663852886e38
MAX_BFLOAT16 = 3.3895313892515355e38
LARGEST = {
    torch.float16: 65504.0,
    torch.bfloat16: MAX_BFLOAT16,
    torch.float32: MAX_FLOAT32,
    torch.float64: 1.7976931348623157e308,
}
LOSSY = [encoding for encoding in ENCODINGS if encoding != "float32"]

numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1 + 2**-11, 1 + 2**-8, 65519.99, 65520.0, MAX_FLOAT32, -1e300, 2**-126, 2**-149]),
    st.floats(-1, 1, width=32),
    st.floats(width=16, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=64, allow_nan=False, allow_infinity=False),
    st.builds(lambda m, e: math.ldexp(m, e), st.floats(-1, 1), st.integers(-150, 128)),
)
arrays = hnp.arrays(np.float64, st.lists(st.integers(0, 5), max_size=3).map(tuple), elements=numbers)
components = st.lists(st.tuples(arrays, st.sampled_from(DTYPES)), max_size=5).map(
    lambda drawn: Component.pack("shared", {f"t{i}": tensor_of(*one) for i, one in enumerate(drawn)})
)
block_sizes = st.sampled_from([1, 2, 3, 7, 2**20])


def tensor_of(values, dtype):
    return torch.from_numpy(np.asarray(np.clip(values, -LARGEST[dtype], LARGEST[dtype]))).to(dtype)


def component_of(**tensors):
    return Component.pack("shared", {name: torch.as_tensor(values) for name, values in tensors.items()})


def encoded(*sections):
    """Encoded bytes of little-endian sections, each a `struct` format and its numbers."""
    raw = b"".join(struct.pack("<" + form, *given) for form, *given in sections)
    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy())


def float32s(component):
    """Every tensor's elements as float32, read from the component's bytes: [(spec, float32 of its shape)]."""
    raw = component.buffer.numpy().tobytes()
    read = []
    for spec in component.layout.tensors:
        section = raw[spec.offset : spec.end]
        if spec.dtype == torch.bfloat16:
            values = (np.frombuffer(section, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif spec.dtype == torch.float64:
            values = np.clip(np.frombuffer(section, "<f8"), -MAX_FLOAT32, MAX_FLOAT32).astype(np.float32)
        else:
            values = np.frombuffer(section, "<f2" if spec.dtype == torch.float16 else "<f4").astype(np.float32)
        read.append((spec, values.reshape(spec.shape)))
    return read


def flat(read):
    return np.concatenate([np.zeros(0, np.float32), *(values.ravel() for _, values in read)])


def in_dtype(values, dtype):
    """The bytes of float32 numbers in another dtype: to nearest, ties to even, saturated."""
    if dtype == torch.float16:
        return np.clip(values, -65504, 65504).astype("<f2").tobytes()
    if dtype == torch.bfloat16:
        bits = np.clip(values, -MAX_BFLOAT16, MAX_BFLOAT16).astype("<f4").view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f8" if dtype == torch.float64 else "<f4").tobytes()


def component_bytes(layout, values):
    """What a component has to consist of that was decoded from float32 numbers: padding is 0."""
    expected, start = bytearray(layout.num_bytes), 0
    for spec in layout.tensors:
        part = values[start : start + spec.num_elements]
        expected[spec.offset : spec.end] = in_dtype(part, spec.dtype)
        start += spec.num_elements
    return bytes(expected)


def rows_of(values):
    """A tensor's rows, by the words of the format."""
    return [] if values.size == 0 else list(values.reshape(-1, values.shape[-1] if values.shape else 1))


def quantised(row):
    """A row's scale and bytes, all of it float32 arithmetic."""
    scale = min(np.abs(row).max() / np.float32(127), np.float32(MAX_SCALE))
    if scale < 2.0**-126:
        return np.float32(0), np.zeros(len(row), np.int8)
    return scale, np.clip(np.rint(row / scale), -127, 127).astype(np.int8)


@given(components, st.sampled_from(ENCODINGS), st.floats(0.01, 1), block_sizes)
@settings(max_examples=100, deadline=None)
def test_what_is_encoded_has_a_size_that_is_taken_is_valid_and_decodes_to_finite_numbers(
    component, encoding, density, block_size
):
    before = component.clone()
    with mock.patch.object(blocks, "BLOCK", block_size):
        data = encode(component, encoding, density)
        assert data.dtype == torch.uint8
        require_encoded_size(component.layout, encoding, len(data))
        require_valid(component.layout, encoding, data)
        decoded = decode(component.layout, encoding, data)
        again = decode(component.layout, encoding, data)
    assert torch.equal(component.buffer, before.buffer)
    assert torch.equal(decoded.buffer, again.buffer)
    decoded.require_finite()


@given(components, st.sampled_from(ENCODINGS), block_sizes)
@settings(max_examples=60, deadline=None)
def test_decoding_into_a_component_overwrites_all_of_it(component, encoding, block_size):
    with mock.patch.object(blocks, "BLOCK", block_size):
        data = encode(component, encoding)
        into = Component(component.layout, torch.full((component.layout.num_bytes,), 0xFF, dtype=torch.uint8))
        assert decode(component.layout, encoding, data, into) is into
        assert torch.equal(into.buffer, decode(component.layout, encoding, data).buffer)


def test_decoding_into_another_layout_is_refused():
    component = component_of(a=[1.0, 2.0])
    with pytest.raises(LayoutMismatchError, match=r"a: expected float32 \[2\], got float32 \[3\]"):
        decode(component.layout, "float16", encode(component, "float16"), component_of(a=[1.0, 2.0, 3.0]))


def test_float32_is_the_component_itself_in_both_directions():
    component = component_of(h=torch.ones(1).half(), d=torch.ones(1).double())
    data = encode(component, "float32")
    assert data.data_ptr() == component.buffer.data_ptr()
    assert decode(component.layout, "float32", data).buffer.data_ptr() == data.data_ptr()
    into = decode(component.layout, "float32", data, Component(component.layout))
    assert into.buffer.data_ptr() != data.data_ptr()
    assert torch.equal(into.buffer, data)


@given(components, st.sampled_from([("float16", torch.float16), ("bfloat16", torch.bfloat16)]), block_sizes)
@settings(max_examples=100, deadline=None)
def test_halves_are_the_nearest_ties_to_even_and_saturate(component, half, block_size):
    encoding, dtype = half
    values = flat(float32s(component))
    with mock.patch.object(blocks, "BLOCK", block_size):
        data = encode(component, encoding)
        decoded = decode(component.layout, encoding, data)
    assert data.numpy().tobytes() == in_dtype(values, dtype)
    halves = np.frombuffer(in_dtype(values, dtype), "<u2")
    widened = (
        halves.view("<f2").astype(np.float32) if dtype == torch.float16 else (halves.astype("<u4") << 16).view("<f4")
    )
    assert decoded.buffer.numpy().tobytes() == component_bytes(component.layout, widened)


@pytest.mark.parametrize(
    ("encoding", "value", "half"),
    [
        ("float16", 1 + 2**-11, 0x3C00),  # a tie: down to the even 1
        ("float16", 1 + 3 * 2**-11, 0x3C02),  # a tie: up to the even 1 + 2^-9
        ("float16", 2**-24, 0x0001),  # the smallest denormal
        ("float16", 65519.0, 0x7BFF),
        ("float16", 65520.0, 0x7BFF),  # would round to infinity
        ("float16", -1e30, 0xFBFF),
        ("float16", -0.0, 0x8000),
        ("bfloat16", 1 + 2**-8, 0x3F80),
        ("bfloat16", 1 + 3 * 2**-8, 0x3F82),
        ("bfloat16", 2**-133, 0x0001),
        ("bfloat16", MAX_FLOAT32, 0x7F7F),
        ("bfloat16", -MAX_FLOAT32, 0xFF7F),
        ("bfloat16", -0.0, 0x8000),
    ],
)
def test_halves_by_hand(encoding, value, half):
    assert encode(component_of(a=[value]), encoding).numpy().tobytes() == struct.pack("<H", half)


@given(components, st.sampled_from(["float16", "bfloat16"]))
@settings(max_examples=60, deadline=None)
def test_what_was_rounded_to_halves_is_not_rounded_again(component, encoding):
    once = decode(component.layout, encoding, encode(component, encoding))
    twice = decode(component.layout, encoding, encode(once, encoding))
    assert torch.equal(once.buffer, twice.buffer)


@given(components, block_sizes)
@settings(max_examples=100, deadline=None)
def test_int8_is_scales_by_row_then_rounded_quotients(component, block_size):
    read = float32s(component)
    rows = [quantised(row) for _, values in read for row in rows_of(values)]
    scales = np.array([scale for scale, _ in rows], "<f4")
    quotients = np.concatenate([np.zeros(0, np.int8), *(row for _, row in rows)])
    with mock.patch.object(blocks, "BLOCK", block_size):
        data = encode(component, "int8")
        decoded = decode(component.layout, "int8", data)
    assert data.numpy().tobytes() == scales.tobytes() + quotients.tobytes()
    products = np.concatenate([np.zeros(0, np.float32), *(scale * row.astype(np.float32) for scale, row in rows)])
    expected = component_bytes(component.layout, products)
    assert decoded.buffer.numpy().tobytes() == expected


def int8_errors(values):
    """For each row of float32 values: the largest error, and half a step."""
    component = component_of(a=values)
    decoded = decode(component.layout, "int8", encode(component, "int8")).views()["a"].double().numpy()
    exact = values.astype(np.float64)
    return np.abs(exact - decoded).max(axis=1), np.abs(exact).max(axis=1) / 254


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=st.floats(-1, 1, width=32)),
    st.integers(-149, 127),
)
@settings(max_examples=100, deadline=None)
def test_int8_is_off_by_little_more_than_half_a_step(values, exponent):
    errors, half_steps = int8_errors(np.ldexp(values, exponent))
    assert (errors <= half_steps * (1 + 2**-15) + 2**-119).all()


def test_int8_is_off_by_no_more_next_to_every_tie():
    """Between two steps half a step is lost, and rounding the scale, the quotient and the product adds to it."""
    largest = np.random.default_rng(0).uniform(1, 2, 500).astype(np.float32)
    ties = largest[:, None] / np.float32(127) * (np.arange(127, dtype=np.float32) + np.float32(0.5))
    values = [np.nextafter(ties, np.float32(side) * ties) for side in (0, 1, 2)]
    errors, half_steps = int8_errors(
        np.concatenate([np.minimum(v, largest[:, None]) for v in values] + [largest[:, None]], 1)
    )
    assert (errors <= half_steps * (1 + 2**-15)).all()
    assert (errors > half_steps).any()  # so the bound could not be half a step itself


def test_int8_of_the_largest_float32_stays_finite():
    row = [MAX_FLOAT32, -MAX_FLOAT32, 0.0]
    component = component_of(a=row)
    data = encode(component, "int8")
    assert struct.unpack("<f3b", data.numpy().tobytes()) == (MAX_SCALE, 127, -127, 0)
    values = decode(component.layout, "int8", data).views()["a"].tolist()
    assert values == [16777214 * 2.0**104, -16777214 * 2.0**104, 0.0]  # MAX_FLOAT32 is 16777215 * 2^104


def test_the_largest_scale_is_the_last_that_127_of_are_finite():
    with np.errstate(over="ignore"):
        assert np.float32(MAX_SCALE) == MAX_SCALE
        assert np.isfinite(np.float32(MAX_SCALE) * np.float32(127))
        assert np.isinf(np.nextafter(np.float32(MAX_SCALE), np.float32(np.inf)) * np.float32(127))


def test_int8_takes_at_most_27_percent_of_float32_with_rows_of_128_or_more():
    for columns in (128, 384, 1000):
        layout = component_of(w=torch.zeros(10, columns), b=torch.zeros(columns)).layout
        require_encoded_size(layout, "int8", 11 * (columns + 4))
        assert 11 * (columns + 4) <= 0.27 * layout.num_bytes


@given(components, st.floats(0.01, 1), block_sizes)
@settings(max_examples=100, deadline=None)
def test_topk_keeps_the_largest_exactly_and_drops_the_rest(component, density, block_size):
    values = flat(float32s(component))
    total = len(values)
    with mock.patch.object(blocks, "BLOCK", block_size):
        data = encode(component, "topk", density).numpy().tobytes()
        decoded = decode(component.layout, "topk", encoded((f"{len(data)}s", data)))
    count = len(data) // 8
    assert count == (min(max(1, round(density * total)), (total + 1) // 2) if total else 0)
    indices, kept = np.frombuffer(data[: 4 * count], "<u4"), np.frombuffer(data[4 * count :], "<f4")
    assert (np.diff(indices.astype(np.int64)) > 0).all()
    assert kept.tobytes() == values[indices].tobytes()
    dropped = np.delete(values, indices)
    if len(dropped):
        assert np.abs(dropped).max() <= np.abs(kept).min()
    expected = np.zeros_like(values)
    expected[indices] = kept
    assert decoded.buffer.numpy().tobytes() == component_bytes(component.layout, expected)


@pytest.mark.parametrize(
    "kind", ["normal", "mostly zeros", "one magnitude", "ascending", "sampled too large", "outside the sample"]
)
def test_topk_of_many_elements_is_what_sorting_them_all_would_choose(kind):
    """With more elements than one block has, a sample tells which ones needn't be looked at."""
    random, total = np.random.default_rng(0), 60_000
    values = {
        "normal": random.standard_normal(total),
        "mostly zeros": random.standard_normal(total) * (random.random(total) < 0.01),
        "one magnitude": random.choice([-3.0, 3.0], total),
        "ascending": np.arange(total),
        "sampled too large": np.where(np.arange(total) % 61, 1.0, 100.0) * (1 + random.random(total)),
        "outside the sample": np.where(np.arange(total) % 61, 0.0, 1.0) * (1 + random.random(total)),
    }[kind].astype(np.float32)
    with mock.patch.object(blocks, "BLOCK", 61 * 128):
        data = encode(component_of(a=values), "topk", 0.05).numpy()
    largest_first = np.lexsort((np.arange(total), -np.abs(values)))  # of equal ones the first come first
    expected = np.sort(largest_first[:3000])
    assert data[:12_000].view("<u4").tolist() == expected.tolist()
    assert data[12_000:].view("<f4").tolist() == values[expected].tolist()


def test_topk_of_more_elements_than_an_index_can_count_is_refused():
    layout = Layout.of("shared", {"a": torch.empty(2**32, dtype=torch.float16, device="meta")})
    component = Component(layout, torch.zeros(1, dtype=torch.uint8).expand(layout.num_bytes))
    with pytest.raises(LimitExceededError, match="topk: 4294967296 elements, at most 4294967295"):
        encode(component, "topk")


@pytest.mark.parametrize(
    ("encoding", "fits", "expected", "unfit"),
    [
        ("float32", [24], "24", [0, 23, 25]),  # with padding
        ("float16", [14], "14", [0, 7, 13, 28]),  # 7 elements of 2 bytes
        ("bfloat16", [14], "14", [0, 7, 13, 28]),
        ("int8", [27], "27", [7, 23, 26, 28]),  # 1 + 1 + 3 scales of 4 bytes, 7 elements of one
        ("topk", [0, 8, 32], "a multiple of 8 up to 32", [-8, 4, 33, 40]),  # at most 4 elements of 7
    ],
)
def test_a_size_that_does_not_add_up_is_refused_with_what_was_expected(encoding, fits, expected, unfit):
    layout = component_of(
        a=torch.zeros(1, 3).half(), s=torch.tensor(1.0), e=torch.zeros(4, 0), b=torch.zeros(3, 1)
    ).layout
    assert [spec.offset for spec in layout.tensors] == [0, 8, 12, 12]
    for num_bytes in fits:
        require_encoded_size(layout, encoding, num_bytes)
    for num_bytes in unfit:
        with pytest.raises(
            LayoutMismatchError, match=f"^shared: {encoding}: expected {expected} bytes, got {num_bytes}$"
        ):
            require_encoded_size(layout, encoding, num_bytes)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_component_without_elements_is_encoded_as_nothing(encoding):
    component = component_of(e=torch.zeros(3, 0))
    data = encode(component, encoding)
    assert len(data) == 0
    require_encoded_size(component.layout, encoding, 0)
    require_valid(component.layout, encoding, data)
    assert decode(component.layout, encoding, data).buffer.tolist() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoding", LOSSY)
def test_a_value_that_is_not_finite_is_not_encoded_and_its_tensor_named(encoding, dtype, bad):
    component = component_of(a=torch.ones(3), b=torch.tensor([1.0, bad]).to(dtype))
    with pytest.raises(NonFiniteError, match="shared: b has 1 of 2 values NaN or infinite"):
        encode(component, encoding)


@pytest.mark.parametrize(
    ("encoding", "bits"), [("float16", (0x7C00, 0xFC00, 0x7E00)), ("bfloat16", (0x7F80, 0xFF80, 0x7FC0))]
)
def test_a_half_that_is_not_finite_is_refused_and_its_tensor_named(encoding, bits):
    layout = component_of(a=[1.0, 1.0], b=[1.0, 1.0, 1.0]).layout
    for bad in bits:
        with pytest.raises(NonFiniteError, match="shared: b has 1 of 3 values NaN or infinite"):
            require_valid(layout, encoding, encoded(("5H", 0, 0, 0, bad, 0)))


def test_a_float32_that_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match="a has 1 of 2 values NaN or infinite"):
        require_valid(component_of(a=[1.0, 1.0]).layout, "float32", encoded(("2f", 1.0, math.nan)))


@pytest.mark.parametrize(("encoding", "largest"), [("float16", 0x7BFF), ("bfloat16", 0x7F7F)])
def test_finite_halves_whose_sum_overflows_are_valid(encoding, largest):
    require_valid(component_of(a=torch.zeros(8)).layout, encoding, encoded(("8H", *[largest] * 8)))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, MAX_FLOAT32, 8454660 * 2.0**98])
def test_a_scale_that_could_decode_to_infinity_is_refused(scale):
    layout = component_of(a=torch.zeros(2, 2)).layout
    with pytest.raises(NonFiniteError, match=r"int8: 1 of 2 scales are NaN, infinite or above 2\.679e\+36"):
        require_valid(layout, "int8", encoded(("2f4b", 1.0, scale, 0, 0, 0, 0)))
    require_valid(layout, "int8", encoded(("2f4b", 1.0, MAX_SCALE, 127, -127, 127, -127)))


def test_a_negative_scale_is_refused():
    layout = component_of(a=torch.zeros(2, 2)).layout
    with pytest.raises(MalformedStreamError, match="int8: 1 of 2 scales are negative"):
        require_valid(layout, "int8", encoded(("2f4b", 1.0, -1.0, 0, 0, 0, 0)))


def test_the_byte_that_no_quotient_is_written_as_is_refused():
    layout = component_of(a=torch.zeros(2, 2)).layout
    with pytest.raises(MalformedStreamError, match="int8: expected bytes from -127 to 127, got -128"):
        require_valid(layout, "int8", encoded(("2f4b", 1.0, 1.0, 0, -127, -128, 0)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_kept_value_that_is_not_finite_is_refused(bad):
    layout = component_of(a=torch.zeros(4)).layout
    with pytest.raises(NonFiniteError, match="topk: 1 of 2 values are NaN or infinite"):
        require_valid(layout, "topk", encoded(("2I2f", 0, 1, 1.0, bad)))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ((1, 1), "expected ascending indices, got 1 after 1"),
        ((2, 0), "expected ascending indices, got 0 after 2"),
        ((2**32 - 1, 0), "expected ascending indices, got 0 after 4294967295"),
        ((0, 4), "expected indices below 4, got 4"),
        ((0, 2**32 - 1), "expected indices below 4, got 4294967295"),
    ],
)
def test_indices_that_repeat_fall_or_run_past_the_end_are_refused(indices, message):
    layout = component_of(a=torch.zeros(4)).layout
    require_valid(layout, "topk", encoded(("2I2f", 0, 3, 1.0, 1.0)))
    with pytest.raises(MalformedStreamError, match=f"^shared: topk: {message}$"):
        require_valid(layout, "topk", encoded(("2I2f", *indices, 1.0, 1.0)))


def test_huge_kept_values_saturate_in_small_tensors():
    """A sender may keep any float32 of a float16 tensor; it must not become infinite."""
    component = component_of(h=torch.zeros(2).half(), b=torch.zeros(2).bfloat16(), d=torch.zeros(1).double())
    data = encoded(("3I3f", 1, 2, 4, -1e30, MAX_FLOAT32, 1e-45))
    require_valid(component.layout, "topk", data)
    views = decode(component.layout, "topk", data).views()
    assert views["h"].tolist() == [0.0, -65504.0]
    assert views["b"].tolist() == [MAX_BFLOAT16, 0.0]
    assert views["d"].tolist() == [2.0**-149]


@pytest.mark.parametrize("encoding", LOSSY)
def test_a_long_row_is_encoded_alike_in_one_block_and_in_many(encoding):
    """A vector is one row, and may be longer than a block."""
    component = component_of(a=torch.arange(2**18, dtype=torch.float32))
    with mock.patch.object(blocks, "BLOCK", 2**12):
        whole = encode(component, encoding)
    assert torch.equal(whole, encode(component, encoding))
