"""The norm of the tasks' deltas is preserved: by hand, against numpy, and laws."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmtl_core.config import AggregationConfig, AuxiliaryConfig, Config, NormsConfig
from fedmtl_core.config.aggregation import TASK_WEIGHTINGS
from fedmtl_server.aggregation.aggregator import MTLAggregator
from fedmtl_server.aggregation.delta_products import preserving_factor
from fedmtl_server.aggregation.optimizers import make_optimizer
from fedmtl_server.aggregation.pipeline import Pipeline
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks
from fedmtl_server.aggregation.stages.norms import NormScreening
from fedmtl_server.aggregation.stages.preserved_norm import PreservedNorm
from fedmtl_server.aggregation.stages.server_optimizer import OptimizerSteps
from fedmtl_server.aggregation.stages.task_weighting import TaskWeights
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.aggregation.task_weighting.base import TaskWeighting, Weighed
from tests.server.aggregation.updates import begun, changed, update_of

TASKS = ("qqp", "sst2", "stsb")
BASE = {"embeddings": [1.0, -2.0, 0.5], "0": [3.0, 4.0], "1": [0.25, 0.0, -1.0, 8.0]}
PARTS = {f"encoder.{part}.w": part for part in BASE}


def parameters(task, values, head):
    return {f"encoder.{part}.w": torch.tensor(one) for part, one in values.items()} | {
        f"heads.{task}.weight": torch.tensor([head])
    }


def update(client_id, task, deltas, n=1, **fields):
    """A delta of each part; parts that aren't given don't move."""
    deltas = {part: [0.0] * len(values) for part, values in BASE.items()} | deltas
    return update_of(client_id, task, n, parameters(task, deltas, 2.0), "delta", **fields)


def base():
    values = {f"encoder.{part}.w": torch.tensor(one) for part, one in BASE.items()}
    heads = {f"heads.{task}.weight": torch.tensor([1.0]) for task in TASKS}
    return update_of("", "", 1, values | heads).components


def pipeline_of(name="uniform", *stages, parts=PARTS, **given):
    section = AggregationConfig(task_weighting=name, scaling="preserve", **given)
    return Pipeline([TaskWeights(make_weighting(section), 7), PreservedNorm(parts), *stages])


def closed(updates, pipeline=None):
    pipeline = pipeline or pipeline_of()
    aggregation = begun(pipeline, updates, base())
    for one in updates:
        aggregation.add(one)
    return aggregation.close()


def moves(aggregate):
    """By part, how far the encoder moved."""
    views = aggregate.components["shared"].views()
    return {part: views[name].double().numpy() - BASE[part] for name, part in PARTS.items()}


def moved(*deltas, pipeline=None):
    """How far layer 1 moves by one delta of each task, and the factor."""
    updates = [update(task, task, {"1": delta}) for task, delta in zip(TASKS, deltas, strict=False)]
    result = closed(updates, pipeline)
    return moves(result)["1"], result.scaling.get("shared", {}).get("1")


# The factor.


def test_deltas_at_right_angles_move_the_encoder_as_far_as_each_of_them():
    delta, factor = moved([5.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 0, 0, 5.0])
    assert factor == pytest.approx(math.sqrt(3))
    assert delta == pytest.approx(np.array([5, 5, 0, 5]) / math.sqrt(3), rel=1e-6)
    assert np.linalg.norm(delta) == pytest.approx(5)


def test_identical_deltas_are_averaged():
    delta, factor = moved(*[[3.0, -4.0, 0, 1.0]] * 3)
    assert factor == pytest.approx(1)
    assert delta == pytest.approx([3, -4, 0, 1])


def test_the_norm_is_the_weighted_mean_of_the_norms():
    """Norms of 5 and 13 with an angle between them; 3 examples to 1."""
    one, other = np.array([3.0, 4.0, 0, 0]), np.array([5.0, 0, 12.0, 0])
    updates = [update("a", "sst2", {"1": one.tolist()}, 3), update("b", "qqp", {"1": other.tolist()}, 1)]
    result = closed(updates, pipeline_of("examples"))
    mean = 0.75 * one + 0.25 * other
    assert np.linalg.norm(moves(result)["1"]) == pytest.approx(0.75 * 5 + 0.25 * 13)
    assert moves(result)["1"] == pytest.approx(mean / np.linalg.norm(mean) * 7, rel=1e-6)


@pytest.mark.parametrize("rest", [0.0, 1e-6, 0.1])
def test_opposed_deltas_are_not_amplified_beyond_those_at_right_angles(rest):
    delta, factor = moved([1.0, 0, 0, rest], [-1.0, 0, 0, rest])
    assert factor == pytest.approx(math.sqrt(2))
    assert delta == pytest.approx([0, 0, 0, math.sqrt(2) * rest], abs=1e-6)


def test_a_delta_of_zero_is_a_task_that_does_not_move():
    """The mean of the norms is 2, that of the vectors is 2 as well."""
    delta, factor = moved([4.0, 0, 0, 0], [0.0] * 4)
    assert factor == 1
    assert delta.tolist() == [2, 0, 0, 0]


def test_tasks_that_do_not_move_leave_the_model_to_the_last_bit():
    result = closed([update(task, task, {}) for task in TASKS])
    assert result.components["shared"].buffer.tolist() == base()["shared"].buffer.tolist()
    assert set(result.scaling["shared"].values()) == {1}


def test_one_task_alone_is_averaged_without_a_factor():
    updates = [update("a", "sst2", {"1": [4.0, 0, 0, 0]}, 3), update("b", "sst2", {"1": [0, 8.0, 0, 0]}, 1)]
    result = closed(updates)
    assert moves(result)["1"].tolist() == [3, 2, 0, 0]
    assert result.scaling == {}


def test_a_head_is_not_scaled():
    result = closed([update("a", "sst2", {}, 3), update("b", "qqp", {})])
    assert result.components["task:sst2"].views()["heads.sst2.weight"].tolist() == [3.0]
    assert set(result.scaling) == {"shared"}


vectors = st.lists(
    st.lists(st.floats(-8, 8, width=16).map(lambda value: round(value, 2)), min_size=4, max_size=4),
    min_size=2,
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(vectors)
def test_the_move_is_that_of_numpy_for_any_deltas(given_):
    deltas = np.float32(given_).astype(np.float64)
    mean, norms = deltas.mean(axis=0), np.linalg.norm(deltas, axis=1)
    expected = 1.0
    if np.linalg.norm(mean) > 1e-4:
        expected = min(math.sqrt(len(deltas)), norms.mean() / np.linalg.norm(mean))
    delta, factor = moved(*given_)
    assert 1 <= factor <= math.sqrt(len(deltas))
    if np.linalg.norm(mean) > 1e-4:
        assert factor == pytest.approx(expected, rel=1e-4)
        assert delta == pytest.approx(expected * mean, rel=1e-4, abs=1e-5)
    assert np.linalg.norm(delta) <= norms.mean() + 1e-4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.floats(0, 8), min_size=3, max_size=3), min_size=2, max_size=5), st.randoms())
def test_without_opposed_deltas_the_limit_changes_nothing(deltas, random):
    shares = np.array([random.uniform(0.01, 1) for _ in deltas])
    shares /= shares.sum()
    deltas = np.array(deltas)
    factor = preserving_factor(shares, deltas @ deltas.T)
    norm = np.linalg.norm(shares @ deltas)
    assert factor * norm == pytest.approx(float(shares @ np.linalg.norm(deltas, axis=1)), rel=1e-9, abs=1e-150)


# Parts.


def test_each_part_has_its_own_factor():
    """The tasks agree in the embeddings, are at right angles in layer 0, and opposed in layer 1."""
    updates = [
        update("a", "sst2", {"embeddings": [1.0, 1, 0], "0": [6.0, 0], "1": [2.0, 0, 0, 1.0]}),
        update("b", "qqp", {"embeddings": [1.0, 1, 0], "0": [0, 2.0], "1": [-2.0, 0, 0, 1.0]}),
    ]
    result = closed(updates)
    factors = result.scaling["shared"]
    assert factors == pytest.approx({"embeddings": 1, "0": 4 / math.sqrt(10), "1": math.sqrt(2)})
    assert list(factors) == sorted(BASE)  # the order of the component's tensors
    got = moves(result)
    assert got["embeddings"] == pytest.approx([1, 1, 0])
    assert got["0"] == pytest.approx(np.array([3, 1]) * 4 / math.sqrt(10))
    assert got["1"] == pytest.approx([0, 0, 0, math.sqrt(2)])


def test_without_known_parts_a_component_is_scaled_as_a_whole():
    updates = [update("a", "sst2", {"0": [6.0, 0]}), update("b", "qqp", {"1": [0, 0, 8.0, 0]})]
    result = closed(updates, pipeline_of(parts={}))
    factor = 7 / 5  # the mean of the norms 6 and 8, and the norm of (3, 4)
    assert result.scaling == {"shared": pytest.approx({"encoder": factor})}
    assert moves(result)["0"] == pytest.approx([3 * factor, 0])
    assert moves(result)["1"] == pytest.approx([0, 0, 4 * factor, 0])


def test_the_aggregator_in_memory_preserves_the_norm_of_a_component():
    weighting = make_weighting(AggregationConfig(task_weighting="uniform", scaling="preserve"))
    pipeline = MTLAggregator(weighting=weighting).pipeline
    updates = [update("a", "sst2", {"0": [6.0, 0]}), update("b", "qqp", {"1": [0, 0, 8.0, 0]})]
    assert moves(closed(updates, pipeline))["0"] == pytest.approx([4.2, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_scaled(dtype):
    def component(*values):
        tensors = {"encoder.0.w": torch.tensor(values[:2]).to(dtype), "encoder.1.w": torch.tensor(values[2:])}
        return tensors | {"encoder.2.w": torch.zeros(0, dtype=dtype)}

    made = pipeline_of(parts={"encoder.0.w": "0"})
    updates = [
        update_of("a", "sst2", 1, component(8.0, 0.0, 1.0), "delta"),
        update_of("b", "qqp", 1, component(0.0, 8.0, 1.0), "delta"),
    ]
    aggregation = begun(made, updates, update_of("", "", 1, component(0.0, 0.0, 0.0)).components)
    for one in updates:
        aggregation.add(one)
    result = aggregation.close()
    views = result.components["shared"].views()
    assert views["encoder.0.w"].dtype == dtype
    assert views["encoder.0.w"].tolist() == pytest.approx([8 / math.sqrt(2)] * 2, rel=4e-3)
    assert views["encoder.1.w"].tolist() == [1.0]
    assert result.scaling["shared"] == pytest.approx({"0": math.sqrt(2), "encoder": 1})


# Reports.


def test_a_weight_times_the_factor_of_a_part_is_the_coefficient_of_the_clients_delta():
    deltas = {
        "a": {"0": [6.0, 1.0], "1": [1.0, 0, 0, 0]},
        "b": {"0": [-2.0, 5.0], "1": [0, 1.0, 0, 3.0]},
        "c": {"0": [0.0, 2.0], "1": [0, 0, 7.0, 0]},
    }
    tasks, examples = {"a": "sst2", "b": "sst2", "c": "qqp"}, {"a": 3, "b": 1, "c": 9}
    result = closed([update(one, tasks[one], deltas[one], examples[one]) for one in deltas])
    weights = {one.client_id: one.weight for one in result.contributions["shared"]}
    assert weights == pytest.approx({"a": 0.375, "b": 0.125, "c": 0.5})
    for part in ("0", "1"):
        expected = sum(result.scaling["shared"][part] * weights[one] * np.array(deltas[one][part]) for one in deltas)
        assert moves(result)[part] == pytest.approx(expected, rel=1e-5)


def test_a_discarded_component_has_no_factors():
    huge = [update("a", "sst2", {"0": [3e38, 3e38]}), update("b", "qqp", {"0": [3e38, -3e38]})]
    result = closed(huge)
    assert [one.scope for one in result.discarded] == ["shared"]
    assert result.scaling == {}


# With the other settings.


@pytest.mark.parametrize("name", TASK_WEIGHTINGS)
def test_with_every_weighting_the_norm_is_the_mean_of_the_norms_in_the_direction_of_the_weighting(name):
    given_ = {"task_weights": {"qqp": 3.0, "sst2": 1.0, "stsb": 4.0}} if name == "fixed" else {}
    deltas = {"qqp": [4.0, 1, 0, 0], "sst2": [-1.0, 8, 1, 0], "stsb": [2.0, 2, 0, 3.0]}
    updates = [update(task, task, {"1": delta}, 1 + i) for i, (task, delta) in enumerate(deltas.items())]
    plain = make_weighting(AggregationConfig(task_weighting=name, scaling=1.5, **given_))
    usual = closed(updates, Pipeline([TaskWeights(plain, 7)]))
    preserved = closed(updates, pipeline_of(name, **given_))
    before, after = moves(usual)["1"], moves(preserved)["1"]
    coefficients = np.array([one.weight for one in usual.contributions["shared"]])
    shares = coefficients / np.abs(coefficients).sum()
    norms = [np.linalg.norm(delta) for delta in deltas.values()]
    assert np.linalg.norm(after) == pytest.approx(float(np.abs(shares) @ norms), rel=1e-5)
    assert after / np.linalg.norm(after) == pytest.approx(before / np.linalg.norm(before), abs=1e-5)
    assert [one.weight for one in preserved.contributions["shared"]] == pytest.approx(shares.tolist())


def test_coefficients_of_a_class_of_the_users_own_give_the_direction_alone():
    class Against(TaskWeighting):
        def weigh(self, round_):
            return Weighed([6.0, -2.0])

    section = AggregationConfig(task_weighting="uniform", scaling="preserve")
    pipeline = Pipeline([TaskWeights(Against(section)), PreservedNorm(PARTS)])
    delta, factor = moved([4.0, 0, 0, 0], [0, 0, 0, 4.0], pipeline=pipeline)
    assert factor == pytest.approx(4 / math.sqrt(9 + 1))
    assert delta == pytest.approx(np.array([3, 0, 0, -1]) * factor)


def test_coefficients_of_zero_leave_the_encoder_as_it_is():
    class Nobody(TaskWeighting):
        def weigh(self, round_):
            return Weighed([0.0] * len(round_.tasks))

    section = AggregationConfig(task_weighting="uniform", scaling="preserve")
    pipeline = Pipeline([TaskWeights(Nobody(section)), PreservedNorm(PARTS)])
    assert moved([4.0, 0, 0, 0], [0, 0, 0, 4.0], pipeline=pipeline)[0].tolist() == [0, 0, 0, 0]


def auxiliary(weight):
    return AuxiliaryTasks({"stsb": AuxiliaryConfig(weight=weight)})


def test_an_auxiliary_task_counts_its_weight_in_the_norm():
    """Shares of 2/5, 2/5 and 1/5; norms of 1, 1 and 5 at right angles."""
    delta, factor = moved(
        [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 5.0, 0], pipeline=pipeline_of("uniform", auxiliary(0.5))
    )
    assert factor == pytest.approx(1.8 / math.sqrt(0.16 + 0.16 + 1))
    assert delta == pytest.approx(np.array([0.4, 0.4, 1, 0]) * factor, rel=1e-6)


@pytest.mark.parametrize("name", ["examples", "uniform", "pcgrad"])
def test_an_auxiliary_task_without_weight_counts_neither_in_the_norm_nor_in_the_limit(name):
    deltas = [1.0, 0, 0, 0.1], [-1.0, 0, 0, 0.1], [0, 0, 50.0, 0]
    delta, factor = moved(*deltas, pipeline=pipeline_of(name, auxiliary(0.0)))
    assert factor == pytest.approx(math.sqrt(2))
    assert delta == pytest.approx([0, 0, 0, 0.1 * math.sqrt(2)], rel=1e-3, abs=1e-6)


def test_norms_count_after_clipping_and_staleness():
    """As if they had been sent so short: 30 is clipped to 8, and 8 is halved."""
    stale = changed(update("a", "sst2", {"1": [8.0, 0, 0, 0]}), staleness=1, discount=0.5)
    long = update("b", "qqp", {"1": [0, 30.0, 0, 0]})
    clipping = NormScreening(NormsConfig(action="clip", bound=8.0))
    result = closed([stale, long], pipeline_of("uniform", clipping))
    expected, factor = moved([0, 8.0, 0, 0], [4.0, 0, 0, 0])
    assert factor == pytest.approx(6 / math.sqrt(16 + 4))
    assert result.scaling["shared"]["1"] == pytest.approx(factor)
    assert moves(result)["1"] == pytest.approx(expected)


def test_deltas_are_those_per_step_with_fednova():
    """Each task's delta per step, times the round's effective number of steps: of a 6/10, of b 6/2."""
    weighting = make_weighting(AggregationConfig(task_weighting="uniform", scaling="preserve"))
    steps = {"a": 10, "b": 2}
    deltas = {"a": [5.0, 0, 0, 0], "b": [0, 4.0, 0, 0]}
    tasks = {"a": "sst2", "b": "qqp"}
    updates = [
        update(one, tasks[one], {"1": deltas[one]}, extras={"normalization": {"num_steps": steps[one]}})
        for one in steps
    ]
    result = closed(updates, MTLAggregator(weighting=weighting, normalization="fednova").pipeline)
    own = np.array([[3.0, 0, 0, 0], [0, 12.0, 0, 0]])
    mean = own.mean(axis=0)
    assert moves(result)["1"] == pytest.approx(mean / np.linalg.norm(mean) * 7.5, rel=1e-6)


def test_the_server_optimizer_steps_along_the_scaled_delta():
    config = Config.model_validate({"server_optimizer": {"name": "fedavgm", "learning_rate": 0.5}})
    layouts = [component.layout for component in base().values()]
    steps = OptimizerSteps(make_optimizer(config.server_optimizer), layouts)
    delta, _ = moved([5.0, 0, 0, 0], [0, 5.0, 0, 0], pipeline=pipeline_of("uniform", steps))
    assert delta == pytest.approx([2.5 / math.sqrt(2)] * 2 + [0, 0], rel=1e-6)


def test_the_order_of_arrival_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    drawn = {task: {p: torch.randn(len(v), generator=generator).tolist() for p, v in BASE.items()} for task in TASKS}

    def result(order, may_keep):
        pipeline = pipeline_of()
        aggregation = pipeline.begin(base())
        for task in order:
            aggregation.add(update(task, task, drawn[task]), may_keep=may_keep)
        aggregate = aggregation.close()
        return aggregate.components["shared"].buffer.numpy().tobytes(), tuple(aggregate.scaling["shared"].items())

    assert len({result(order, keep) for order in itertools.permutations(drawn) for keep in (False, True)}) == 1
