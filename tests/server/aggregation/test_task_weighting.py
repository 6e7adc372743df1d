"""What each task counts for in the encoder: by hand, against computations of their own, and laws."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.config import AggregationConfig, NormsConfig
from fedmtl_core.errors import AggregationError, ConfigError, LayoutMismatchError
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation import delta_products as combining
from fedmtl_server.aggregation.delta_products import combine, inner_products
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.norms import NO_NORMS, NormScreening
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.aggregation.task_weighting.base import RoundWeighting, TaskRound, TaskStats, TaskWeighting, Weighed
from fedmtl_server.aggregation.values import StageState
from tests.server.aggregation.updates import begun, changed, combined, evaluation, update_of
from tests.support import OddEncoder

NAMES = ("uniform", "fixed", "temperature", "uncertainty", "gradnorm", "pcgrad", "cagrad", "famo")
BASE = [10.0, 20.0]


def weighting(name, **given):
    if name == "fixed":
        given = {"task_weights": {"qqp": 3.0, "sst2": 1.0, "stsb": 4.0}} | given
    made = make_weighting(AggregationConfig(task_weighting=name, **given))
    assert made is not None
    return made


def update(client_id, task, delta, n=1, *, kind="delta", base=BASE, received_loss=None, train_loss=None, **fields):
    values = delta if kind == "delta" else np.add(base, delta).tolist()
    parameters = {"encoder.w": torch.tensor(values), f"heads.{task}.weight": torch.tensor([float(n)])}
    received = {} if received_loss is None else {"loss": received_loss, "accuracy": 0.5}
    trained = {} if train_loss is None else {"loss": 77.0, "train_loss": train_loss}
    metrics = {"received": evaluation(**received), "trained": evaluation(**trained)}
    return update_of(client_id, task, n, parameters, kind, **metrics, **fields)


def base_of(*tasks, base=BASE):
    parameters = {"encoder.w": torch.tensor(base)} | {f"heads.{task}.weight": torch.tensor([0.0]) for task in tasks}
    return update_of("", "", 1, parameters).components


def folded(updates, name="examples", *, state=None, round_=1, bound=None, seed=7, base=BASE, **given):
    """What a round of updates comes to, with what the weighting remembers of it."""
    made = weighting(name, **given) if isinstance(name, str) and (name != "examples" or given) else None
    if isinstance(name, TaskWeighting):
        made = name
    weights = TaskWeights(made, seed) if made else None
    norms = NO_NORMS if bound is None else NormsConfig(action="clip", bound=bound)
    pipeline = Pipeline([NormScreening(norms), *([weights] if weights else [])])
    if weights and state is not None:
        weights.restore(StageState(metadata={"shared": state}), [])
    aggregation = begun(pipeline, updates, base_of("qqp", "sst2", "stsb", base=base), round_)
    for one in updates:
        aggregation.add(one)
    aggregate = aggregation.close()
    return Result(aggregate.components, aggregate.contributions, weights.state().metadata if weights else {})


@dataclasses.dataclass(frozen=True)
class Result:
    """A round's."""

    components: dict
    contributions: dict
    weighting_states: dict


def moved(aggregate, base=BASE):
    """How far the encoder moved."""
    return (aggregate.components["shared"].views()["encoder.w"].double().numpy() - base).tolist()


def share(aggregate):
    """What each task counts for."""
    parts = aggregate.contributions["shared"]
    return {task: sum(one.weight for one in parts if one.task == task) for task in sorted({one.task for one in parts})}


def direction(name, *deltas, **given):
    """How far one client of each task moves the encoder."""
    tasks = ("qqp", "sst2", "stsb")
    base = given.get("base", BASE)
    updates = [
        update(f"c{i}", task, list(delta), base=base)
        for i, (task, delta) in enumerate(zip(tasks, deltas, strict=False))
    ]
    return moved(folded(updates, name, **given), base)


# Weights that nothing changes.


def test_uniform_counts_every_task_the_same_however_many_examples_it_has():
    updates = [update("a", "sst2", [4.0, 0.0], 900), update("b", "qqp", [0.0, 8.0], 100)]
    assert moved(folded(updates, "uniform")) == [2.0, 4.0]
    assert share(folded(updates, "uniform")) == {"qqp": 0.5, "sst2": 0.5}


def test_within_a_task_its_clients_count_as_their_examples_do():
    updates = [
        update("a", "sst2", [4.0, 0.0], 3),
        update("b", "sst2", [8.0, 0.0], 1),
        update("c", "qqp", [0.0, 8.0], 100),
    ]
    result = folded(updates, "uniform")
    assert moved(result) == [2.5, 4.0]  # (3 * 4 + 1 * 8) / 4 = 5, half of it
    assert [one.weight for one in result.contributions["shared"]] == [0.375, 0.125, 0.5]


def test_a_head_is_not_weighted():
    updates = [update("a", "sst2", [4.0, 0.0], 3), update("b", "sst2", [8.0, 0.0], 1), update("c", "qqp", [0.0, 8.0])]
    result = folded(updates, "uniform")
    assert result.components["task:sst2"].views()["heads.sst2.weight"].tolist() == [2.5]  # (3 * 3 + 1 * 1) / 4
    assert [one.weight for one in result.contributions["task:sst2"]] == [0.75, 0.25]


def test_fixed_weights_hold_in_proportion_among_the_tasks_that_take_part():
    updates = [update("a", "sst2", [8.0, 0.0], 900), update("b", "qqp", [0.0, 8.0], 100)]
    assert moved(folded(updates, "fixed")) == [2.0, 6.0]  # 1 to 3; stsb, with a weight of 4, isn't there


def test_temperature_by_hand():
    updates = [update("a", "sst2", [8.0, 0.0], 900), update("b", "qqp", [0.0, 8.0], 100)]
    assert moved(folded(updates, "temperature", temperature=2)) == pytest.approx([6.0, 2.0])  # √900 to √100


def test_a_temperature_of_1_is_examples_and_an_infinite_one_uniform():
    updates = [update("a", "sst2", [8.0, 0.0], 900), update("b", "qqp", [0.0, 8.0], 100)]
    assert moved(folded(updates, "temperature", temperature=1)) == pytest.approx(moved(folded(updates)))
    assert moved(folded(updates, "temperature", temperature=1e9)) == pytest.approx(moved(folded(updates, "uniform")))


# Weights that follow the losses.


def facts(**losses):
    return [TaskStats(task, 10, received, trained) for task, (received, trained) in sorted(losses.items())]


def test_uncertainty_by_hand():
    """s += 0.5 * ½ (L/1 - 1): 0.5 for L = 3 and -0.125 for L = 0.5. Only then p ∝ exp(-s)."""
    method = weighting("uncertainty", learning_rate=0.5)
    first = method.weigh(TaskRound(facts(qqp=(9, 3.0), sst2=(9, 0.5))))
    assert list(first.coefficients) == [0.5, 0.5]
    assert first.state["log_variances"] == pytest.approx({"qqp": 0.5, "sst2": -0.125})
    second = method.weigh(TaskRound(facts(qqp=(9, 3.0), sst2=(9, 0.5)), state=first.state))
    assert second.coefficients[1] / second.coefficients[0] == pytest.approx(math.exp(0.625))
    assert second.state["log_variances"]["qqp"] == pytest.approx(0.5 + 0.25 * (3 * math.exp(-0.5) - 1))


def test_uncertainty_comes_to_the_losses_themselves():
    """Where the papers' objective is least: σ² = L, so that p ∝ 1/L."""
    method, state = weighting("uncertainty", learning_rate=0.5), {}
    for _ in range(200):
        weighed = method.weigh(TaskRound(facts(qqp=(9, 3.0), sst2=(9, 0.5)), state=state))
        state = weighed.state
    assert list(weighed.coefficients) == pytest.approx([1 / 7, 6 / 7])


def test_gradnorm_by_hand():
    """‖Δ‖ = 1 and 3, relative to their mean 0.5 and 1.5, which is each G; Ḡ = 1. In the second round the losses have
    fallen to 1 and to ½ of the first: r = 4/3 and 2/3, so that with α = 1 the first task is below its target, and the
    second above."""
    method = weighting("gradnorm", learning_rate=0.1, asymmetry=1)
    products = np.array([[1.0, 0.5], [0.5, 9.0]])
    first = method.weigh(TaskRound(facts(qqp=(9, 2.0), sst2=(9, 4.0)), products))
    assert list(first.coefficients) == [0.5, 0.5]
    assert first.state["first_losses"] == {"qqp": 2.0, "sst2": 4.0}
    w = np.array([1 + 0.1 * 0.5, 1 - 0.1 * 1.5])  # r = 1 for both: 0.5 < 1 < 1.5
    w = 2 * w / w.sum()
    assert list(first.state["weights"].values()) == pytest.approx(w.tolist())
    second = method.weigh(TaskRound(facts(qqp=(9, 2.0), sst2=(9, 2.0)), products, first.state))
    assert list(second.coefficients) == pytest.approx((w / 2).tolist())
    mean = (0.5 * w[0] + 1.5 * w[1]) / 2
    assert 0.5 * w[0] < mean * 4 / 3
    assert 1.5 * w[1] > mean * 2 / 3
    w = w + np.array([0.05, -0.15])
    assert list(second.state["weights"].values()) == pytest.approx((2 * w / w.sum()).tolist())


def test_gradnorm_brings_the_norms_to_its_targets():
    method, state = weighting("gradnorm", learning_rate=0.002, asymmetry=1), {}
    products = np.diag([1.0, 4.0, 25.0])
    losses = [
        {"qqp": (9, 1.0), "sst2": (9, 1.0), "stsb": (9, 1.0)},
        {"qqp": (9, 0.9), "sst2": (9, 0.5), "stsb": (9, 0.1)},
    ]
    for number in range(4000):
        weighed = method.weigh(TaskRound(facts(**losses[min(number, 1)]), products, state))
        state = weighed.state
    reached = np.array(weighed.coefficients) * [1, 2, 5]
    target = np.array([0.9, 0.5, 0.1])  # Ḡ r
    assert (reached / reached.sum()).tolist() == pytest.approx((target / target.sum()).tolist(), abs=0.01)


def test_famo_by_hand():
    """p ∝ z/ℓ, with z = ½ each at first. In the second round log ℓ before minus after is log 2 and 0, so
    δ = ½ (log 2 - ½ log 2) = ¼ log 2 for the first and the opposite for the second."""
    method = weighting("famo", learning_rate=2.0, decay=0.25)
    first = method.weigh(TaskRound(facts(qqp=(3.0, 9), sst2=(1.0, 9))))
    assert list(first.coefficients) == pytest.approx([0.25, 0.75])  # 1/3 to 1
    second = method.weigh(TaskRound(facts(qqp=(1.5, 9), sst2=(1.0, 9)), state=first.state))
    xi = 2.0 * 0.25 * math.log(2)
    assert second.state["logits"] == pytest.approx({"qqp": -xi, "sst2": xi})
    z = np.exp([-xi, xi]) / np.exp([-xi, xi]).sum()
    expected = z / [1.5, 1.0]
    assert list(second.coefficients) == pytest.approx((expected / expected.sum()).tolist())
    third = method.weigh(TaskRound(facts(qqp=(1.5, 9), sst2=(1.0, 9)), state=second.state))
    assert third.state["logits"] == pytest.approx({"qqp": -xi / 2, "sst2": xi / 2})  # 1 - 2 * 0.25: nothing but decay


@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "famo"])
def test_losses_come_from_the_updates(name):
    """The training loss weighted by examples, the received one by evaluation examples, of fresh updates only."""
    seen = []

    class Seeing(TaskWeighting):
        def weigh(self, round_):
            seen.append(round_.tasks)
            return Weighed([1.0] * len(round_.tasks))

    updates = [
        update("a", "sst2", [1.0, 0.0], 3, received_loss=1.0, train_loss=2.0),
        update("b", "sst2", [1.0, 0.0], 1, received_loss=4.0, train_loss=6.0),
        update("c", "sst2", [1.0, 0.0], 4, received_loss=1e9, train_loss=3.0, staleness=1, discount=0.5),
        update("d", "qqp", [0.0, 1.0], 5),
    ]
    folded(updates, Seeing(weighting(name).settings))
    assert seen == [[TaskStats("qqp", 5, None, None), TaskStats("sst2", 8, 2.5, 3.0)]]


@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "famo"])
def test_tasks_that_report_no_losses_count_alike(name):
    updates = [update("a", "sst2", [4.0, 0.0]), update("b", "qqp", [0.0, 4.0])]
    first = folded(updates, name)
    second = folded(updates, name, state=first.weighting_states["shared"])
    assert moved(first) == moved(second) == [2.0, 2.0]


@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "famo"])
@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(st.lists(st.none() | st.floats(-1e100, 1e100), min_size=3, max_size=3), min_size=1, max_size=4),
    there=st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=4, max_size=4),
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6),
)
def test_whatever_clients_report_the_shares_are_shares(name, losses, there, values):
    """Also of tasks that come and go; what is remembered is fit for JSON."""
    state = {}
    for row, present in zip(losses, there, strict=False):
        updates = [
            update(
                f"c{i}", ("qqp", "sst2", "stsb")[i], values[2 * i : 2 * i + 2], received_loss=row[i], train_loss=row[i]
            )
            for i in sorted(present)
        ]
        result = folded(updates, name, state=state, learning_rate=1.0)
        state = result.weighting_states["shared"]
        assert sum(share(result).values()) == pytest.approx(1)
        assert all(value >= 0 for value in share(result).values())


# Weights that look at the deltas.


def test_pcgrad_by_hand():
    """g₁ = (1, 0) and g₂ = (-1, 1): their product is -1. g₁ - (-1/2) g₂ = (½, ½), g₂ - (-1) g₁ = (0, 1)."""
    updates = [update("a", "qqp", [1.0, 0.0]), update("b", "sst2", [-1.0, 1.0])]
    result = folded(updates, "pcgrad")
    assert moved(result) == pytest.approx([0.25, 0.75])
    assert share(result) == pytest.approx({"qqp": 1.0, "sst2": 0.75})  # (1 + 1)/2 of g₁, (½ + 1)/2 of g₂


def test_pcgrad_of_tasks_that_go_opposite_ways_stays_where_it_is():
    assert direction("pcgrad", [2.0, 0.0], [-1.0, 0.0]) == [0.0, 0.0]


def surgery(deltas, orders):
    """The paper's algorithm 1 on the vectors themselves, its mean instead of its sum."""
    result = np.zeros(len(deltas[0]))
    for i, order in enumerate(orders):
        g = deltas[i].copy()
        for j in order:
            if g @ deltas[j] < 0:
                g -= (g @ deltas[j]) / (deltas[j] @ deltas[j]) * deltas[j]
        result += g / len(deltas)
    return result


small = st.floats(-4, 4, width=16).map(lambda value: round(value, 2))
three = st.lists(st.lists(small, min_size=3, max_size=3), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(three)
def test_pcgrad_is_the_papers_algorithm_in_one_of_its_orders(deltas):
    vectors = [np.array(np.float32(delta), dtype=np.float64) for delta in deltas]
    got = direction("pcgrad", *deltas, base=[0.0, 0.0, 0.0])
    orders = itertools.product(*([*itertools.permutations([j for j in range(3) if j != i])] for i in range(3)))
    assert any(np.allclose(got, surgery(vectors, order), atol=1e-4) for order in orders)


def test_pcgrads_order_is_the_runs_seeds_and_the_rounds():
    deltas = [[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -2.0, 1.0]]
    drawn = {
        seed: [tuple(direction("pcgrad", *deltas, base=[0.0] * 3, round_=n, seed=seed)) for n in range(12)]
        for seed in (1, 2)
    }
    assert len(set(drawn[1])) > 1
    assert drawn[1] != drawn[2]
    again = [tuple(direction("pcgrad", *deltas, base=[0.0] * 3, round_=n, seed=1)) for n in range(12)]
    assert drawn[1] == again


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0, 4, width=16), min_size=3, max_size=3), min_size=3, max_size=3))
def test_without_conflict_pcgrad_is_the_mean_of_the_tasks(deltas):
    assert direction("pcgrad", *deltas, base=[0.0] * 3) == pytest.approx(np.mean(deltas, axis=0).tolist(), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(three)
def test_cagrad_with_c_0_is_the_mean_of_the_tasks(deltas):
    got = direction("cagrad", *deltas, base=[0.0] * 3, conflict_aversion=0)
    assert got == pytest.approx(np.mean(np.float32(deltas), axis=0).tolist(), abs=1e-5)


def test_cagrad_by_hand():
    """g = (2, 0) and (0, 2): g₀ = (1, 1), and so is the best g_w. (1 + c √2/√2)(1, 1), divided by 1 + c."""
    assert direction("cagrad", [2.0, 0.0], [0.0, 2.0], conflict_aversion=0.5) == pytest.approx([1.0, 1.0], abs=1e-5)


def test_cagrad_by_hand_where_tasks_conflict():
    """g = (4, 0) and (-2, 2): g₀ = (1, 1), c ‖g₀‖ = ½ √2. What minimises is found on the line between the two."""
    got = np.array(direction("cagrad", [4.0, 0.0], [-2.0, 2.0], conflict_aversion=0.5))
    w = np.linspace(0, 1, 200_001)[:, None]
    mixed = w * [4.0, 0.0] + (1 - w) * [-2.0, 2.0]
    best = mixed[np.argmin(mixed @ [1.0, 1.0] + math.sqrt(0.5) * np.linalg.norm(mixed, axis=1))]
    assert got.tolist() == pytest.approx(
        ((np.array([1.0, 1.0]) + math.sqrt(0.5) * best / np.linalg.norm(best)) / 1.5).tolist(), abs=1e-4
    )
    assert got @ [-2.0, 2.0] > np.array([1.0, 1.0]) @ [-2.0, 2.0] / 1.5  # it serves the worse of the two better


@settings(max_examples=40, deadline=None)
@given(three, st.floats(0.05, 0.95))
def test_no_direction_as_near_serves_the_worst_task_better_than_cagrads(deltas, c):
    """What the paper is after: max over ‖d - g₀‖ <= c ‖g₀‖ of the least g_i · d. Tried out in many directions."""
    vectors = np.float32(deltas).astype(np.float64)
    mean = vectors.mean(axis=0)
    reach = c * np.linalg.norm(mean)
    got = np.array(direction("cagrad", *deltas, base=[0.0] * 3, conflict_aversion=c)) * (1 + c)
    scale = max(1.0, float(np.abs(vectors).max()) ** 2)
    if np.allclose(got, mean * (1 + c), atol=1e-4 * scale):  # they cancel out, and the mean is taken
        return
    assert np.linalg.norm(got - mean) <= reach * (1 + 1e-3) + 1e-4
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    tried = mean + reach * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert (vectors @ got).min() >= (tried @ vectors.T).min(axis=1).max() - 2e-3 * scale


# What they are all multiplied with.


def test_scaled_by_their_number_the_tasks_deltas_add_up():
    updates = [update("a", "sst2", [4.0, 0.0], 900), update("b", "qqp", [0.0, 8.0], 100)]
    result = folded(updates, "uniform", scaling=2.0)
    assert moved(result) == [4.0, 8.0]
    assert share(result) == {"qqp": 1.0, "sst2": 1.0}


def test_the_plain_average_is_scaled_too():
    updates = [update("a", "sst2", [4.0, 0.0], 3), update("b", "qqp", [0.0, 8.0], 1)]
    assert moved(folded(updates, "examples", scaling=2.0)) == [6.0, 4.0]  # 2 * (3 * 4, 1 * 8) / 4


def test_the_scaling_is_the_number_of_tasks_at_most():
    updates = [update("a", "sst2", [4.0, 0.0], 900), update("b", "qqp", [0.0, 8.0], 100)]
    assert moved(folded(updates, "uniform", scaling=3.0)) == [4.0, 8.0]
    assert moved(folded(updates[:1], "uniform", scaling=3.0)) == [4.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_scaling_multiplies_whatever_the_weights_are(name):
    plain, scaled = (folded(same_examples(name), name, scaling=scaling) for scaling in (1.0, 3.0))
    assert moved(scaled) == pytest.approx([3 * one for one in moved(plain)], rel=1e-5)


def test_a_head_is_not_scaled():
    updates = [update("a", "sst2", [4.0, 0.0], 3), update("b", "qqp", [0.0, 8.0], 1)]
    result = folded(updates, "uniform", scaling=2.0)
    assert result.components["task:sst2"].views()["heads.sst2.weight"].tolist() == [3.0]


# What holds for all of them.


def same_examples(name):
    return [update("a", "sst2", [4.0, 1.0], 7), update("b", "qqp", [-1.0, 8.0], 7), update("c", "stsb", [2.0, 2.0], 7)]


@pytest.mark.parametrize("name", ["uniform", "temperature", "uncertainty"])
def test_tasks_of_as_many_examples_count_as_with_examples(name):
    assert moved(folded(same_examples(name), name)) == pytest.approx(moved(folded(same_examples(name))), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_tasks_that_come_to_the_same_come_to_exactly_that(name):
    updates = [update(f"c{i}", task, [4.0, -8.0], 1 + i, received_loss=1.0) for i, task in enumerate(("qqp", "sst2"))]
    assert moved(folded(updates, name)) == pytest.approx([4.0, -8.0], rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_no_task_moves_stays_to_the_last_bit(name):
    base = torch.randn(2, generator=torch.Generator().manual_seed(3)).tolist()
    updates = [update(f"c{i}", task, [0.0, 0.0], base=base) for i, task in enumerate(("qqp", "sst2", "stsb"))]
    assert moved(folded(updates, name, base=base), np.float32(base).astype(float)) == [0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_one_task_alone_counts_whole(name):
    result = folded([update("a", "sst2", [4.0, 2.0], 3), update("b", "sst2", [8.0, 2.0], 1)], name)
    assert moved(result) == pytest.approx([5.0, 2.0])
    assert share(result) == pytest.approx({"sst2": 1.0})


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_deltas_come_to_the_same(name):
    deltas = {"qqp": [3.0, -1.0], "sst2": [-2.0, 5.0], "stsb": [0.5, 0.25]}
    losses = {"received_loss": 0.5, "train_loss": 2.0}
    as_deltas, as_parameters = (
        folded([update(task, task, delta, 3, kind=kind, **losses) for task, delta in deltas.items()], name)
        for kind in ("delta", "parameters")
    )
    assert moved(as_deltas) == pytest.approx(moved(as_parameters), rel=1e-5)
    assert share(as_deltas) == pytest.approx(share(as_parameters))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_arrival_among_tasks_changes_nothing_of_their_weights(name):
    """Nor does what is kept of the updates' memory: to the last bit."""
    generator = torch.Generator().manual_seed(0)
    drawn = {task: torch.randn(2, generator=generator).tolist() for task in ("qqp", "sst2", "stsb")}

    def result(order, may_keep):
        aggregation = Pipeline([TaskWeights(weighting(name), 7)]).begin(base_of("qqp", "sst2", "stsb"))
        for task in order:
            aggregation.add(update(task, task, drawn[task], received_loss=0.5), may_keep=may_keep)
        return combined(aggregation).components["shared"].buffer.numpy().tobytes()

    results = {result(order, keep) for order in itertools.permutations(drawn) for keep in (False, True)}
    assert len(results) == 1


@pytest.mark.parametrize("name", ["uniform", "pcgrad", "cagrad"])
def test_a_stale_delta_counts_less_and_a_clipped_one_too(name):
    """As if they had been sent so short: 0.5 * (8, 0) and (0, 6) at a bound of 3."""
    stale = update("a", "sst2", [8.0, 0.0], staleness=1, discount=0.5)
    long = update("b", "qqp", [0.0, 6.0])
    result = folded([stale, long], name, bound=100.0)
    clipped = folded([stale, long], name, bound=3.0)
    assert moved(result) == pytest.approx(direction(name, [0.0, 6.0], [4.0, 0.0]), rel=1e-5)
    # 8 is clipped to 3 and discounted to 1.5
    assert moved(clipped) == pytest.approx(direction(name, [0.0, 3.0], [1.5, 0.0]), rel=1e-5)
    parts = {one.client_id: one for one in clipped.contributions["shared"]}
    assert (parts["a"].norm, parts["a"].clipped_to, parts["b"].clipped_to) == (8.0, 3.0, 3.0)


def test_who_counted_is_told_with_what_its_tasks_delta_was_multiplied_with():
    updates = [
        update("a", "qqp", [1.0, 0.0], 3),
        update("b", "qqp", [1.0, 0.0], 1),
        update("c", "sst2", [-1.0, 1.0], 9, staleness=1, discount=1.0),
    ]
    parts = {one.client_id: one.weight for one in folded(updates, "pcgrad").contributions["shared"]}
    assert parts == pytest.approx({"a": 0.75, "b": 0.25, "c": 0.75})


def test_a_task_without_weight_counts_for_nothing():
    nothing = update("a", "sst2", [4.0, 0.0], 0)
    nothing = changed(nothing, components={"shared": nothing.components["shared"]})
    result = folded([nothing, update("b", "qqp", [0.0, 4.0], 2)], "uniform")
    assert moved(result) == [0.0, 4.0]
    assert {one.client_id: one.weight for one in result.contributions["shared"]} == {"a": 0.0, "b": 1.0}
    with pytest.raises(AggregationError, match="of its 1 updates sum to zero"):
        folded([nothing], "uniform")


def test_weighting_needs_the_parameters_that_tasks_start_from_and_their_layout():
    aggregation = Pipeline([TaskWeights(weighting("uniform"))]).begin({})
    with pytest.raises(AggregationError, match="a: weighting tasks in 'shared' needs the parameters"):
        aggregation.add(update("a", "sst2", [1.0, 1.0], kind="parameters"))
    with pytest.raises(LayoutMismatchError, match=r"encoder\.w: expected float32 \[2\], got float32 \[3\]"):
        folded([update("a", "sst2", [1.0, 1.0, 1.0], kind="parameters", base=[0.0] * 3)], "uniform")


def test_what_nobody_needs_after_the_close_is_given_back():
    aggregation = Pipeline([TaskWeights(weighting("uniform"))]).begin(base_of("qqp", "sst2", "stsb"))
    updates = [update("a", "sst2", [1.0, 0.0]), update("b", "qqp", [1.0, 0.0]), update("c", "stsb", [1.0, 0.0])]
    mine = {one.components["shared"].buffer.data_ptr() for one in updates}
    assert [aggregation.add(one, may_keep=True) for one in updates] == [
        {"shared", f"task:{one.task}"} for one in updates
    ]
    result = aggregation.close()
    spare = {buffer.data_ptr() for buffer in result.spare}
    assert len(spare) == 2
    assert spare | {result.components["shared"].buffer.data_ptr()} == mine


# The arithmetic of deltas.


def odd(seed):
    return Component.pack("shared", {name: p.detach() for name, p in OddEncoder(seed).named_parameters()})


def runs_of(component):
    """As a mean has them: two bytes an element are too few to compute with."""
    return [run.float() if run.dtype not in (torch.float32, torch.float64) else run.clone() for run in component.runs()]


def flat(component):
    return np.concatenate([run.double().numpy() for run in component.runs()])


def test_inner_products_are_those_in_float64_for_every_dtype(monkeypatch):
    monkeypatch.setattr(combining, "_BLOCK", 2**16)
    base, *others = (odd(seed) for seed in range(4))
    deltas = np.stack([flat(one) - flat(base) for one in others])
    got = inner_products(base, [runs_of(one) for one in others])
    assert got == pytest.approx(deltas @ deltas.T, rel=1e-6, abs=1)
    assert (got == got.T).all()


def test_inner_products_do_not_depend_on_the_number_of_threads():
    base, *others = (odd(seed) for seed in range(3))
    results, before = set(), torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.add(inner_products(base, [runs_of(one) for one in others]).tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("size", [1e-30, 1e25])
def test_inner_products_of_tiny_and_of_huge_deltas_are_right(size):
    base = Component.pack("shared", {"encoder.w": torch.zeros(3)})
    values = np.float32([[size, 0, 0], [-size, size, 0]])
    got = inner_products(base, [[torch.tensor(row)] for row in values])
    wide = values.astype(np.float64)
    assert got.tolist() == (wide @ wide.T).tolist()


@pytest.mark.parametrize("block", [3, 2**19])
def test_deltas_add_up_in_every_dtype(block, monkeypatch):
    monkeypatch.setattr(combining, "_BLOCK", block)
    names = [name for name, _ in OddEncoder().named_parameters() if name != "large"]
    base, one, other = (
        Component.pack("shared", {name: dict(OddEncoder(seed).named_parameters())[name].detach() for name in names})
        for seed in range(3)
    )
    means = [runs_of(one), runs_of(other)]
    for run, *vectors in zip(base.runs(), *means, strict=True):
        combine(run, vectors, [0.5, -2.0])
    expected = flat(base) + 0.5 * (flat(one) - flat(base)) - 2 * (flat(other) - flat(base))
    assert np.concatenate([run.double().numpy() for run in means[0]]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert all(torch.equal(got, kept) for got, kept in zip(means[1], runs_of(other), strict=True))


# A class of the user's own.


class Loudest(TaskWeighting):
    """The task with the longest delta counts alone, and it is remembered."""

    needs_products = True

    def weigh(self, round_):
        longest = int(np.argmax(np.diag(round_.products)))
        seen = [*round_.state.get("seen", ()), round_.tasks[longest].task]
        return Weighed(np.eye(len(round_.tasks))[longest], {"seen": seen})


class TooFew(TaskWeighting):
    def weigh(self, round_):
        return Weighed([1.0])


class NotANumber(TaskWeighting):
    def weigh(self, round_):
        return Weighed([math.nan] * len(round_.tasks))


class Unwritable(TaskWeighting):
    def weigh(self, round_):
        return Weighed([1.0] * len(round_.tasks), {"x": math.inf})


class Raises(TaskWeighting):
    def weigh(self, round_):
        return round_.nothing


class Unfinished(TaskWeighting):
    pass


def test_a_class_of_ones_own_weighs_the_tasks():
    updates = [update("a", "sst2", [4.0, 0.0]), update("b", "qqp", [0.0, 8.0])]
    result = folded(updates, f"{__name__}:Loudest", state={"seen": ["stsb"]})
    assert moved(result) == [0.0, 8.0]
    assert result.weighting_states == {"shared": {"seen": ["stsb", "qqp"]}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TooFew", r"task_weighting: expected 2 finite coefficients, got \[1.0\]"),
        ("NotANumber", r"task_weighting: expected 2 finite coefficients, got \[nan, nan\]"),
        ("Unwritable", "task_weighting: expected numbers and a JSON state: .*JSON"),
        ("Raises", "task_weighting: .*:Raises raised AttributeError"),
    ],
)
def test_a_class_that_answers_with_something_else_is_told_what_was_expected(name, message):
    updates = [update("a", "sst2", [4.0, 0.0]), update("b", "qqp", [0.0, 8.0])]
    with pytest.raises((AggregationError, ConfigError), match=rf"aggregation\.{message}"):
        folded(updates, f"{__name__}:{name}")


def test_a_class_that_cannot_be_had_is_named_with_its_key():
    with pytest.raises(ConfigError, match=r"aggregation\.task_weighting: .*Unfinished lacks the methods weigh"):
        weighting(f"{__name__}:Unfinished")
    with pytest.raises(ConfigError, match=r"aggregation\.task_weighting: there is no module 'no_such_module'"):
        weighting("no_such_module:Name")


def test_what_is_remembered_is_as_json_gives_it_back():
    class Tuples(TaskWeighting):
        def weigh(self, round_):
            return Weighed([1.0], {"pair": (1, 0.1)})

    one = RoundWeighting(Tuples(weighting("uniform").settings))
    assert one.weigh("shared", [TaskStats("sst2", 1)], None).state == {"pair": [1, 0.1]}
