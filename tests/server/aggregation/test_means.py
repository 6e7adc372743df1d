"""Running means that were made apart become one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.errors import LayoutMismatchError
from fedmtl_core.wire.layout import DTYPES, Component
from fedmtl_server.aggregation.means import ComponentMean


def component(values, dtype=torch.float32):
    return Component.pack("shared", {"encoder.w": torch.tensor(values, dtype=dtype)})


def mean_of(*weighted, dtype=torch.float32):
    mean = ComponentMean(component([0.0, 0.0], dtype).layout)
    for weight, values in weighted:
        mean.add(component(values, dtype), weight)
    return mean


def values(mean):
    return mean.result().views()["encoder.w"].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_means_merge_to_the_mean_of_all_weighted_by_what_is_in_each(dtype):
    first = mean_of((1, [4.0, 0.0]), (1, [0.0, 8.0]), dtype=dtype)
    second = mean_of((2, [6.0, -4.0]), dtype=dtype)
    first.merge(second)
    assert values(first) == [4.0, 0.0]  # (4 + 0 + 2 * 6) / 4, (0 + 8 - 2 * 4) / 4


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=2)),
        min_size=2,
        max_size=8,
    ),
    st.data(),
)
def test_halves_merge_to_what_one_mean_of_all_is_up_to_rounding(weighted, data):
    cut = data.draw(st.integers(1, len(weighted) - 1))
    first, second = mean_of(*weighted[:cut]), mean_of(*weighted[cut:])
    first.merge(second)
    assert values(first) == pytest.approx(values(mean_of(*weighted)), rel=1e-5, abs=1e-3)


def test_equal_means_merge_to_exactly_themselves():
    drawn = torch.randn(2).tolist()
    first = mean_of((3, drawn))
    first.merge(mean_of((7, drawn), (11, drawn)))
    assert values(first) == torch.tensor(drawn).tolist()


def test_merging_goes_on_with_the_weight_of_both():
    first = mean_of((1, [4.0, 4.0]))
    first.merge(mean_of((2, [1.0, 1.0])))
    first.add(component([6.0, 6.0]), 1)
    assert values(first) == [3.0, 3.0]  # (4 + 2 * 1 + 6) / 4


def test_a_mean_of_nothing_changes_nothing_and_takes_another_as_it_is():
    nothing, weightless = mean_of(), mean_of((0, [9.0, 9.0]))
    something = mean_of((5, [0.1, 0.2]))
    something.merge(mean_of())
    something.merge(weightless)
    nothing.merge(something)
    assert values(nothing) == values(something) == torch.tensor([0.1, 0.2]).tolist()


def test_the_mean_that_is_merged_stays_as_it_is():
    other = mean_of((2, [1.0, 2.0]))
    mean_of((1, [5.0, 5.0])).merge(other)
    assert values(other) == [1.0, 2.0]


def test_means_of_different_layouts_do_not_merge():
    with pytest.raises(LayoutMismatchError):
        mean_of((1, [1.0, 1.0])).merge(ComponentMean(component([1.0, 1.0, 1.0]).layout))
