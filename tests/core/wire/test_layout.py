"""The flat buffer and its table of contents."""

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.errors import LayoutMismatchError, NonFiniteError
from fedmtl_core.wire.layout import DTYPES, Component, Layout, require_scopes

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=8).map(
    lambda drawn: {
        f"t{i}": torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype)
        for i, (shape, dtype) in enumerate(drawn)
    }
)


def test_component_is_the_tensors_little_endian_bytes_with_padding_to_the_element_size():
    component = Component.pack(
        "shared",
        {
            "a": torch.tensor([1.0, -2.0], dtype=torch.float16),
            "b": torch.tensor(3.0),
            "c": torch.tensor([0.5]).double(),
        },
    )
    assert component.buffer.numpy().tobytes() == (
        struct.pack("<2e", 1.0, -2.0) + struct.pack("<f", 3.0) + struct.pack("<d", 0.5)
    )
    assert [spec.offset for spec in component.layout.tensors] == [0, 4, 8]
    odd = Layout.of("shared", {"h": torch.zeros(1, dtype=torch.float16), "d": torch.zeros(1, dtype=torch.float64)})
    assert [spec.offset for spec in odd.tensors] == [0, 8]
    assert odd.num_bytes == 16


@given(tensors)
def test_packed_tensors_come_back_bit_for_bit(given_tensors):
    views = Component.pack("shared", given_tensors).views()
    assert list(views) == list(given_tensors)
    for name, tensor in given_tensors.items():
        assert views[name].dtype == tensor.dtype
        assert views[name].shape == tensor.shape
        assert torch.equal(views[name], tensor)


@given(tensors)
def test_tensors_are_aligned_do_not_overlap_and_runs_cover_all_of_them(given_tensors):
    layout = Layout.of("shared", given_tensors)
    end = 0
    for spec in layout.tensors:
        assert spec.offset % spec.dtype.itemsize == 0
        assert end <= spec.offset < end + spec.dtype.itemsize
        end = spec.end
    assert layout.num_bytes == end
    covered = sum((run.end - run.start) // run.dtype.itemsize for run in layout.runs)
    assert covered == layout.num_elements == sum(t.numel() for t in given_tensors.values())


def test_adopted_parameters_are_views_of_the_buffer():
    linear = torch.nn.Linear(3, 2)
    before = linear.weight.detach().clone()
    component = Component.adopt("shared", dict(linear.named_parameters()))
    assert torch.equal(linear.weight, before)
    component.buffer.zero_()
    assert linear.weight.abs().sum() == 0
    assert linear.weight.requires_grad


def test_float32_tensors_form_one_run():
    layout = Layout.of("shared", {"a": torch.zeros(3, 2), "e": torch.zeros(0), "b": torch.zeros(())})
    assert [(run.start, run.end) for run in layout.runs] == [(0, 28)]


def test_an_integer_tensor_is_refused_by_name():
    with pytest.raises(LayoutMismatchError, match=r"steps: expected one of float32, .*, got int64"):
        Layout.of("shared", {"steps": torch.tensor(1)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": torch.zeros(2, 3)}, "tensor 'b' is missing"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(1), "c": torch.zeros(1)}, "the layout has no tensor 'c'"),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(1)}, r"a: expected float32 \[2, 3\], got float32 \[3, 2\]"),
        ({"a": torch.zeros(2, 3).half(), "b": torch.zeros(1)}, r"expected float32 \[2, 3\], got float16 \[2, 3\]"),
        ({"b": torch.zeros(1), "a": torch.zeros(2, 3)}, "expected a at byte 0, got b at byte 0"),
    ],
)
def test_a_different_layout_is_refused_with_what_was_expected_and_what_came(changed, message):
    layout = Layout.of("shared", {"a": torch.zeros(2, 3), "b": torch.zeros(1)})
    with pytest.raises(LayoutMismatchError, match=message):
        layout.require_same(Layout.of("shared", changed))


def test_a_refused_copy_changes_nothing():
    component = Component.pack("shared", {"a": torch.ones(2), "b": torch.ones(2)})
    with pytest.raises(LayoutMismatchError):
        component.copy_from({"a": torch.zeros(2), "b": torch.zeros(3)})
    assert component.views()["a"].tolist() == [1.0, 1.0]


def test_copying_takes_names_in_any_order():
    component = Component.pack("shared", {"a": torch.zeros(1), "b": torch.zeros(1)})
    component.copy_from({"b": torch.tensor([2.0]), "a": torch.tensor([1.0])})
    assert component.buffer.numpy().tobytes() == struct.pack("<2f", 1.0, 2.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_not_finite_is_found_and_its_tensor_named(bad, dtype):
    component = Component.pack("shared", {"a": torch.ones(3, dtype=dtype), "b": torch.tensor([1.0, bad], dtype=dtype)})
    with pytest.raises(NonFiniteError, match="b has 1 of 2 values NaN or infinite"):
        component.require_finite()


def test_huge_values_whose_sum_overflows_are_finite():
    component = Component.pack("shared", {"a": torch.full((4,), 3e38)})
    assert component.runs()[0].sum().isinf()
    component.require_finite()


def test_the_digest_is_sha256_of_the_bytes():
    component = Component.pack("shared", {"a": torch.tensor([1.0])})
    assert component.digest() == hashlib.sha256(struct.pack("<f", 1.0)).digest()


def test_components_must_be_the_same_in_the_same_order():
    with pytest.raises(LayoutMismatchError, match="expected the components shared, task:a, got shared"):
        require_scopes(["shared", "task:a"], ["shared"])
