"""Averaging, against a computation of its own in float64 and numbers that can be checked by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.errors import AggregationError, LayoutMismatchError
from fedmtl_core.wire.layout import DTYPES, Component, Layout
from fedmtl_server.aggregation import means
from fedmtl_server.aggregation.means import ComponentMean
from fedmtl_server.aggregation.order import CohortOrder
from tests.server.aggregation.updates import PLAIN, averaged, changed, combined, update_of
from tests.support import TASKS


def update(client_id, task, num_examples, encoder, head=(0.0,), kind="parameters"):
    parameters = {"encoder.w": torch.tensor(encoder), f"heads.{task}.weight": torch.tensor(list(head))}
    return update_of(client_id, task, num_examples, parameters, kind)


finite_small = st.floats(-100, 100, width=32)


def aggregate(*updates, base=None):
    return averaged(*updates, base=base)


def test_the_encoder_moves_by_all_tasks_examples_and_a_head_by_its_own():
    result = aggregate(update("a", "sst2", 1, [4.0], [1.0]), update("b", "stsb", 3, [0.0], [5.0]))
    assert result["shared"]["encoder.w"].tolist() == [1.0]  # (1*4 + 3*0) / 4
    assert result["task_heads"]["sst2"]["heads.sst2.weight"].tolist() == [1.0]  # not 0.25
    assert result["task_heads"]["stsb"]["heads.stsb.weight"].tolist() == [5.0]


def test_a_head_is_weighted_by_its_own_tasks_examples():
    result = aggregate(
        update("a", "sst2", 1, [0.0], [1.0]), update("b", "sst2", 3, [0.0], [5.0]), update("c", "qqp", 96, [1.0])
    )
    assert result["task_heads"]["sst2"]["heads.sst2.weight"].tolist() == [4.0]  # (1*1 + 3*5) / 4
    assert result["shared"]["encoder.w"].tolist() == pytest.approx([0.96])


def test_a_task_without_updates_is_absent():
    result = aggregate(update("a", "sst2", 1, [4.0]))
    assert list(result["task_heads"]) == ["sst2"]


def test_equal_updates_average_to_exactly_themselves():
    values = torch.randn(1000).tolist()
    result = aggregate(*(update(f"c{i}", "sst2", 3 + i, values) for i in range(7)))
    assert torch.equal(result["shared"]["encoder.w"], torch.tensor(values))


def test_the_largest_finite_values_do_not_overflow():
    result = aggregate(*(update(f"c{i}", "sst2", 10**9, [3.4e38, -3.4e38]) for i in range(3)))
    assert torch.equal(result["shared"]["encoder.w"], torch.tensor([3.4e38, -3.4e38]))


def test_no_updates_is_an_error_that_says_so():
    with pytest.raises(AggregationError, match="no updates"):
        aggregate()


def test_weights_that_sum_to_zero_are_an_error_that_says_so():
    with pytest.raises(AggregationError, match="of its 2 updates sum to zero"):
        aggregate(update("a", "sst2", 0, [1.0]), update("b", "sst2", 0, [2.0]))


def test_a_weight_of_zero_counts_for_nothing_beside_others():
    result = aggregate(update("a", "sst2", 0, [1.0]), update("b", "sst2", 2, [2.0]))
    assert result["shared"]["encoder.w"].tolist() == [2.0]


def test_a_negative_weight_is_refused():
    with pytest.raises(AggregationError, match="at least 0, got -1"):
        aggregate(update("a", "sst2", -1, [1.0]))


def test_a_client_cannot_count_twice():
    with pytest.raises(AggregationError, match="client 'a' occurs twice"):
        aggregate(update("a", "sst2", 1, [1.0]), update("a", "sst2", 1, [2.0]))


def test_updates_of_different_layouts_are_never_averaged_together():
    other = update_of("b", "sst2", 1, {"encoder.v": torch.tensor([1.0]), "heads.sst2.weight": torch.tensor([0.0])})
    with pytest.raises(LayoutMismatchError, match=r"tensor 'encoder\.w' is missing"):
        aggregate(update("a", "sst2", 1, [1.0]), other)


def test_the_order_in_which_parameters_are_named_does_not_matter():
    first = {"encoder.a": torch.tensor([1.0]), "encoder.b": torch.tensor([10.0])}
    second = dict(reversed(first.items()))
    updates = [update_of(name, "sst2", 1, p) for name, p in (("x", first), ("y", second))]
    assert aggregate(*updates)["shared"]["encoder.a"].tolist() == [1.0]


def test_updates_come_back_unchanged():
    mine = update("a", "sst2", 1, [1.0, 2.0])
    before = mine.components["shared"].buffer.clone()
    aggregate(mine, update("b", "sst2", 1, [3.0, 5.0]))
    assert torch.equal(mine.components["shared"].buffer, before)


def test_a_delta_averages_to_the_same_model_as_the_parameters():
    base = update("", "sst2", 1, [10.0], [1.0]).components
    result = aggregate(update("a", "sst2", 1, [2.0], [0.5], "delta"), update("b", "sst2", 3, [14.0], [2.0]), base=base)
    assert result["shared"]["encoder.w"].tolist() == [13.5]  # (1*(10+2) + 3*14) / 4
    assert result["task_heads"]["sst2"]["heads.sst2.weight"].tolist() == [1.875]  # (1*1.5 + 3*2) / 4


def test_a_delta_without_a_base_is_refused():
    with pytest.raises(AggregationError, match="a delta of 'shared' needs the parameters it starts from"):
        aggregate(update("a", "sst2", 1, [2.0], kind="delta"))


def stale(update_, staleness, discount):
    return changed(update_, staleness=staleness, discount=discount)


def test_a_stale_delta_moves_the_model_by_its_discount():
    base = update("", "sst2", 1, [10.0], [1.0]).components
    fresh = update("a", "sst2", 1, [2.0], [0.5], "delta")
    late = stale(update("b", "sst2", 3, [4.0], [2.0], "delta"), 3, 0.5)
    result = aggregate(fresh, late, base=base)
    assert result["shared"]["encoder.w"].tolist() == [12.0]  # 10 + (1*1*2 + 3*0.5*4) / (1 + 3)
    assert result["task_heads"]["sst2"]["heads.sst2.weight"].tolist() == [1.875]  # 1 + (1*1*0.5 + 3*0.5*2) / 4


def test_a_lone_stale_delta_is_discounted_all_the_same():
    base = update("", "sst2", 1, [10.0], [1.0]).components
    result = aggregate(stale(update("a", "sst2", 7, [2.0], [4.0], "delta"), 3, 0.25), base=base)
    assert result["shared"]["encoder.w"].tolist() == [10.5]
    assert result["task_heads"]["sst2"]["heads.sst2.weight"].tolist() == [2.0]


def test_a_component_that_an_update_lacks_is_not_moved_by_it():
    base = update("", "sst2", 1, [10.0], [1.0]).components
    whole = update("a", "sst2", 1, [2.0], [0.5], "delta")
    late = stale(update("b", "sst2", 3, [4.0], [2.0], "delta"), 3, 0.5)
    late = changed(late, components={"shared": late.components["shared"]})
    result = aggregate(whole, late, base=base)
    assert result["shared"]["encoder.w"].tolist() == [12.0]
    assert result["task_heads"]["sst2"]["heads.sst2.weight"].tolist() == [1.5]  # the one of `a` alone


def test_who_counted_is_told_with_staleness_and_what_is_left_of_the_weight():
    base = update("", "sst2", 1, [10.0]).components
    aggregation = PLAIN.begin(base)
    aggregation.add(update("a", "sst2", 1, [2.0], kind="delta"))
    aggregation.add(stale(update("b", "sst2", 3, [4.0], kind="delta"), 3, 0.5))
    parts = combined(aggregation).contributions["shared"]
    assert [(part.client_id, part.num_examples, part.staleness, part.weight) for part in parts] == [
        ("a", 1, 0, 0.25),
        ("b", 3, 3, 0.375),  # 3/4 of the examples, half of it counts
    ]


def test_a_large_component_is_discounted_throughout(monkeypatch):
    monkeypatch.setattr(means, "_BLOCK", 2)
    base = update("", "sst2", 1, [0.0, 10.0, 20.0, 30.0, 40.0]).components
    result = aggregate(stale(update("a", "sst2", 1, [4.0] * 5, kind="delta"), 1, 0.5), base=base)
    assert result["shared"]["encoder.w"].tolist() == [2.0, 12.0, 22.0, 32.0, 42.0]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10), finite_small), min_size=1, max_size=6), st.booleans()
)
def test_the_model_moves_by_the_mean_of_what_the_deltas_are_worth(drawn, may_keep):
    """x + sum n_i d_i delta_i / sum n_i, with d_i = (1 + s_i)^-0.5."""
    aggregation = PLAIN.begin(update("", "sst2", 1, [10.0]).components)
    for number, (n, staleness, value) in enumerate(drawn):
        one = update(f"c{number}", "sst2", n, [value], kind="delta")
        aggregation.add(stale(one, staleness, (1 + staleness) ** -0.5), may_keep=may_keep)
    result = combined(aggregation)
    moved = sum(n * (1 + s) ** -0.5 * value for n, s, value in drawn) / sum(n for n, _, _ in drawn)
    assert result.components["shared"].views()["encoder.w"].item() == pytest.approx(10 + moved, rel=1e-5, abs=1e-4)
    assert sum(part.weight for part in result.contributions["shared"]) <= 1 + 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_averaged_in_at_least_float32_and_keeps_itself(dtype):
    layout = Layout.of("shared", {"a": torch.zeros(3, dtype=dtype)})
    mean = ComponentMean(layout)
    for value, weight in ((1.0, 1), (2.0, 1), (6.0, 2)):
        mean.add(Component.pack("shared", {"a": torch.full((3,), value, dtype=dtype)}), weight)
    (result,) = mean.result().views().values()
    assert result.dtype == dtype
    assert result.tolist() == [3.75] * 3


finite = st.floats(-1e6, 1e6, width=32)
rounds = st.integers(1, 4).flatmap(
    lambda num_tasks: st.integers(2, 7).flatmap(
        lambda num_clients: st.lists(
            st.tuples(
                st.sampled_from(TASKS[:num_tasks]),
                st.integers(1, 10**6),
                st.lists(finite, min_size=4, max_size=4),
                st.sampled_from(["parameters", "delta"]),
            ),
            min_size=num_clients,
            max_size=num_clients,
        )
    )
)
BASE = [0.5, -3.0, 1e5, 7.0]


def in_float64(drawn, values_of):
    """The weighted mean and the weighted mean of magnitudes, which bounds what rounding can do."""
    weights = np.array([n for _, n, _, _ in drawn], dtype=np.float64)
    values = np.array([values_of(d) for d in drawn], dtype=np.float64)
    return (weights @ values) / weights.sum(), (weights @ np.abs(values)) / weights.sum()


@settings(max_examples=150)
@given(rounds)
def test_the_average_is_the_weighted_mean_in_float64_for_any_clients_and_tasks(drawn):
    base = {}
    for task in TASKS:
        base |= update("", task, 1, BASE, BASE).components
    updates = [update(f"c{i}", task, n, v, v, kind) for i, (task, n, v, kind) in enumerate(drawn)]
    result = aggregate(*updates, base=base)

    def value(d):
        return np.array(d[2]) + (np.array(BASE) if d[3] == "delta" else 0.0)

    bases = np.abs(BASE) if any(d[3] == "delta" for d in drawn) else 0.0

    def close(got, those):
        expected, magnitude = in_float64(those, value)
        assert (np.abs(got.double().numpy() - expected) <= 1e-6 * (magnitude + bases) + 1e-30).all()

    close(result["shared"]["encoder.w"], drawn)
    assert set(result["task_heads"]) == {d[0] for d in drawn}
    for task, head in result["task_heads"].items():
        close(head[f"heads.{task}.weight"], [d for d in drawn if d[0] == task])


@settings(max_examples=60)
@given(rounds, st.randoms(use_true_random=False))
def test_the_result_is_bit_identical_under_any_order_of_arrival(drawn, rng):
    updates = [update(f"c{i}", task, n, v, v) for i, (task, n, v, _) in enumerate(drawn)]
    expected = _bytes(_fold(updates, updates))
    shuffled = list(updates)
    rng.shuffle(shuffled)
    assert _bytes(_fold(updates, shuffled)) == expected
    rng.shuffle(shuffled)
    result = aggregate(*shuffled)
    assert result["shared"]["encoder.w"].numpy().tobytes() == expected["shared"]


def test_the_result_is_bit_identical_under_every_order_of_arrival():
    generator = torch.Generator().manual_seed(0)
    updates = [
        update(f"c{i}", TASKS[i % 2], 7 * i + 1, torch.randn(50, generator=generator).tolist()) for i in range(5)
    ]
    expected = _bytes(_fold(updates, updates))
    for order in itertools.permutations(updates):
        assert _bytes(_fold(updates, order)) == expected


def test_a_clients_turn_comes_when_all_before_it_are_there():
    order = CohortOrder(["a", "b", "c"])
    assert order.arrive("b") == []
    assert order.arrive("a") == ["a", "b"]
    assert order.arrive("c") == ["c"]
    assert order.close() == []


def test_a_client_that_sent_nothing_is_passed_over_at_the_close():
    order = CohortOrder(["a", "b", "c", "d"])
    assert order.arrive("d") == order.arrive("b") == []
    assert order.close() == ["b", "d"]


def test_a_client_that_joins_an_open_round_comes_after_all_others():
    order = CohortOrder(["a", "b"])
    order.append("c")
    assert order.place("c") == 2
    assert order.arrive("c") == []
    assert order.arrive("a") == ["a"]
    assert order.arrive("b") == ["b", "c"]
    order.append("d")
    assert order.arrive("d") == ["d"]
    assert order.close() == []


def test_one_that_is_there_already_keeps_its_place_when_it_joins_again():
    order = CohortOrder(["a", "b"])
    order.append("a")
    assert (order.place("a"), order.place("b")) == (0, 1)
    assert order.arrive("a") == ["a"]
    order.append("a")
    with pytest.raises(AggregationError, match="another update of 'a'"):
        order.arrive("a")
    assert order.arrive("b") == ["b"]


def test_one_that_joined_and_sent_nothing_is_passed_over_at_the_close():
    order = CohortOrder(["a"])
    order.append("b")
    order.append("c")
    assert order.arrive("c") == []
    assert order.close() == ["c"]


@pytest.mark.parametrize(
    ("client_id", "message"), [("x", "no update of 'x' is expected"), ("a", "another update of 'a'")]
)
def test_an_update_nobody_expects_is_refused(client_id, message):
    order = CohortOrder(["a", "b"])
    order.arrive("a")
    with pytest.raises(AggregationError, match=message):
        order.arrive(client_id)


def test_a_second_update_that_waits_for_its_turn_is_refused():
    order = CohortOrder(["a", "b"])
    order.arrive("b")
    with pytest.raises(AggregationError, match="another update of 'b'"):
        order.arrive("b")


@settings(max_examples=60)
@given(rounds)
def test_updates_that_may_be_kept_average_to_the_same_bits(drawn):
    """The first of each scope becomes the mean in place, whatever its kind; the others are free again."""
    base = {}
    for task in TASKS:
        base |= update("", task, 1, BASE, BASE).components

    def updates():
        return [update(f"c{i}", task, n, v, v, kind) for i, (task, n, v, kind) in enumerate(drawn)]

    expected = PLAIN.begin(base)
    for one in updates():
        assert expected.add(one) == set()
    aggregation, seen = PLAIN.begin(base), set()
    for one in updates():
        kept = aggregation.add(one, may_keep=True)
        assert kept == set(one.components) - seen
        seen |= set(one.components)
    assert _bytes(combined(aggregation)) == _bytes(combined(expected))


@pytest.mark.parametrize("may_keep", [False, True])
def test_what_a_client_sends_as_padding_does_not_reach_the_model(may_keep):
    tensors = {"encoder.half": torch.ones(1, dtype=torch.float16), "encoder.w": torch.ones(1)}
    component = Component.pack("shared", tensors)
    component.buffer[2:4] = 77
    aggregation = PLAIN.begin({})
    aggregation.add(changed(update("a", "sst2", 1, [1.0]), components={"shared": component}), may_keep=may_keep)
    assert combined(aggregation).components["shared"].buffer.tolist() == [0, 0x3C, 0, 0, 0, 0, 0x80, 0x3F]


def test_an_update_of_no_weight_is_never_kept():
    aggregation = PLAIN.begin({})
    assert aggregation.add(update("a", "sst2", 0, [9.0]), may_keep=True) == set()
    assert aggregation.add(update("b", "sst2", 2, [1.0]), may_keep=True) == set()
    assert combined(aggregation).components["shared"].views()["encoder.w"].tolist() == [1.0]


def _fold(updates, arrivals):
    by_client = {one.client_id: one for one in updates}
    order, aggregation = CohortOrder([one.client_id for one in updates]), PLAIN.begin({})
    for arrival in arrivals:
        for client_id in order.arrive(arrival.client_id):
            aggregation.add(by_client[client_id])
    assert order.close() == []
    return combined(aggregation)


def _bytes(result):
    return {scope: component.buffer.numpy().tobytes() for scope, component in result.components.items()}


def test_factors_that_are_trained_in_turn_are_named_with_the_tasks_that_share_them():
    """Each factor has a component of its own; the tensors of both are those of the same tasks."""
    scopes = {
        "encoder.0.b": "factor_b:shared",
        "encoder.1.b": "factor_b:task:sst2",
        "encoder.2.b": "factor_b:group:pairs",
        "heads.sst2.weight": "task:sst2",
    }
    parameters = {name: torch.tensor([float(number)]) for number, name in enumerate(scopes)}
    result = aggregate(update_of("a", "sst2", 1, parameters, scopes=scopes))
    assert list(result["shared"]) == ["encoder.0.b"]
    assert list(result["groups"]["pairs"]) == ["encoder.2.b"]
    assert sorted(result["task_heads"]["sst2"]) == ["encoder.1.b", "heads.sst2.weight"]
