"""FedNova, against its formula in numbers that can be checked by hand, and the fixed points of quadratics."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_core.config import AggregationConfig, NormsConfig
from fedmtl_core.errors import AggregationError
from fedmtl_core.wire.layout import Component
from fedmtl_server.aggregation.aggregator import ClientUpdate, MTLAggregator
from fedmtl_server.aggregation.stages.normalization import RoundSteps, Steps
from fedmtl_server.aggregation.task_weighting import make_weighting
from tests.federations import loaded, run
from tests.quadratics import Quadratic, optimum
from tests.server.aggregation.updates import changed, round_of, update_of
from tests.server.playing import TASKS, model, play, push
from tests.support import WireClient, model_bytes, reports_of, serving, watching

FEDNOVA = MTLAggregator(normalization="fednova")
BY_STEP = {"aggregation": {"normalization": "fednova"}}
STEPS = {"a": 7, "b": 2}


def update(client_id, task, num_examples, num_steps, encoder, head=(0.0,), kind="delta"):
    parameters = {
        "encoder.w": torch.tensor(list(encoder)),
        f"heads.{task}.weight": torch.tensor(list(head)),
    }
    extras = {"normalization": {"num_steps": num_steps}}
    return update_of(client_id, task, num_examples, parameters, kind, extras=extras)


BASE = update("", "sst2", 1, 1, [10.0], [1.0]).components | update("", "qqp", 1, 1, [10.0], [2.0]).components


def fold(aggregator, *updates, base=BASE):
    return round_of(aggregator.pipeline, *updates, base=base)


def encoder_of(aggregate):
    return aggregate.components["shared"].views()["encoder.w"].tolist()


@pytest.mark.parametrize("kind", ["delta", "parameters"])
def test_deltas_are_averaged_by_step_and_multiplied_by_the_effective_number_of_steps(kind):
    start = 10.0 if kind == "parameters" else 0.0
    aggregate = fold(
        FEDNOVA,
        update("a", "sst2", 1, 10, [start + 5.0], [start * 0.1 + 3.0], kind),
        update("b", "sst2", 3, 2, [start + 4.0], [start * 0.1 + 1.0], kind),
    )
    # p = 1/4, 3/4; effective 1/4 * 10 + 3/4 * 2 = 4; 10 + 4 * (1/4 * 5/10 + 3/4 * 4/2)
    assert encoder_of(aggregate) == pytest.approx([16.5])
    # 1 + 4 * (1/4 * 3/10 + 3/4 * 1/2)
    assert aggregate.components["task:sst2"].views()["heads.sst2.weight"].tolist() == pytest.approx([2.8])
    # 1/4 * 4/10, 3/4 * 4/2
    assert [one.weight for one in aggregate.contributions["shared"]] == pytest.approx([0.1, 1.5])


def test_each_component_has_the_effective_steps_of_those_who_share_it():
    aggregate = fold(FEDNOVA, update("a", "sst2", 1, 10, [5.0], [3.0]), update("b", "qqp", 1, 2, [4.0], [1.0]))
    # effective 6; 10 + 6 * (1/2 * 5/10 + 1/2 * 4/2)
    assert encoder_of(aggregate) == pytest.approx([17.5])
    # a head of one client moves by its delta
    assert aggregate.components["task:sst2"].views()["heads.sst2.weight"].tolist() == [4.0]
    assert aggregate.components["task:qqp"].views()["heads.qqp.weight"].tolist() == [3.0]


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.lists(st.floats(-9, 9, width=32), min_size=3, max_size=3)), min_size=1
    ),
    st.integers(1, 10**6),
)
def test_with_equal_steps_it_is_the_plain_average_to_the_last_bit(clients, num_steps):
    updates = [update(f"c{i}", "sst2", n, num_steps, values) for i, (n, values) in enumerate(clients)]
    base = update("", "sst2", 1, 1, [0.1, -7.0, 3.0]).components
    got, expected = (encoder_of(fold(one, *updates, base=base)) for one in (FEDNOVA, MTLAggregator()))
    assert got == expected


QUADRATICS = (Quadratic([1.0, 2.0], [4.0, -1.0]), Quadratic([3.0, 0.5], [-2.0, 3.0]), Quadratic([0.5, 1.0], [1.0, 9.0]))
EXAMPLES, LOCAL_STEPS = (1, 4, 5), (20, 4, 1)
RATE = 2e-3


def where_rounds_end(aggregator, start):
    """After many rounds of gradient descent, whose steps from w lead to b + (1 - rate a)^τ (w - b)."""
    w = torch.tensor(start, dtype=torch.float64)
    for _ in range(1500):
        updates = []
        for name, q, n, steps in zip("abc", QUADRATICS, EXAMPLES, LOCAL_STEPS, strict=True):
            a, b = (torch.tensor(values, dtype=torch.float64) for values in (q.curvature, q.minimum))
            reached = {"encoder.w": b + (1 - RATE * a) ** steps * (w - b)}
            updates.append(
                replace(
                    ClientUpdate.from_parameters(name, "sst2", n, reached),
                    extras={"normalization": {"num_steps": steps}},
                )
            )
        w = aggregator.aggregate_mtl_updates(updates, {"shared": Component.pack("shared", {"encoder.w": w})})["shared"][
            "encoder.w"
        ].clone()
    return w.tolist()


def fixed_point(rate, scale):
    """Where Σ p s(τ) (1 - (1 - rate a)^τ) (b - w) = 0, with p the shares of the examples.

    Args:
        scale: by a client's steps, what its delta is multiplied with.
    """
    ends = []
    for i in range(2):
        pulls = [
            n * scale(steps) * (1 - (1 - rate * q.curvature[i]) ** steps)
            for q, n, steps in zip(QUADRATICS, EXAMPLES, LOCAL_STEPS, strict=True)
        ]
        ends.append(sum(pull * q.minimum[i] for pull, q in zip(pulls, QUADRATICS, strict=True)) / sum(pulls))
    return ends


def test_rounds_of_unequal_steps_end_at_the_true_optimum_where_the_plain_average_ends_elsewhere():
    best = optimum(QUADRATICS, [n / 10 for n in EXAMPLES])
    by_step, plain = (where_rounds_end(one, best) for one in (FEDNOVA, MTLAggregator()))
    assert by_step == pytest.approx(fixed_point(RATE, lambda steps: 1 / steps), abs=1e-5)
    assert plain == pytest.approx(fixed_point(RATE, lambda steps: 1), abs=1e-5)
    assert max(map(abs, np.subtract(by_step, best))) < 0.06
    assert min(map(abs, np.subtract(plain, best))) > 0.9
    # The shorter the steps, the closer to the optimum FedNova comes, and the other to where Σ p τ f is least.
    assert fixed_point(1e-6, lambda steps: 1 / steps) == pytest.approx(best, abs=1e-4)
    by_all_steps = optimum(QUADRATICS, [n * steps for n, steps in zip(EXAMPLES, LOCAL_STEPS, strict=True)])
    assert fixed_point(1e-6, lambda steps: 1) == pytest.approx(by_all_steps, abs=1e-4)


def test_a_stale_delta_is_discounted_and_one_beyond_the_bound_is_clipped_before_it_counts_by_step():
    late = changed(update("a", "sst2", 1, 10, [5.0]), staleness=3, discount=0.5)
    on_time = update("b", "sst2", 3, 2, [4.0])
    assert encoder_of(fold(FEDNOVA, late, on_time)) == pytest.approx([10 + 4 * (0.25 * 2.5 / 10 + 0.75 * 4 / 2)])
    clipping = MTLAggregator(NormsConfig(action="clip", bound=1.0), normalization="fednova")  # of both remains 1
    assert encoder_of(fold(clipping, late, on_time)) == pytest.approx([10 + 4 * (0.25 * 0.5 / 10 + 0.75 * 1 / 2)])


def test_tasks_that_are_weighted_have_one_effective_number_of_steps_by_the_examples_of_all():
    aggregator = MTLAggregator(
        weighting=make_weighting(AggregationConfig(task_weighting="uniform")), normalization="fednova"
    )
    updates = (
        update("a", "sst2", 1, 10, [5.0]),
        update("b", "sst2", 1, 5, [5.0]),
        update("c", "qqp", 2, 2, [4.0]),
    )
    aggregate = fold(aggregator, *updates)
    # effective (10 + 5 + 2 * 2) / 4 = 4.75; by step sst2 moves by (5/10 + 5/5) / 2 = 0.75, qqp by 4/2
    assert encoder_of(aggregate) == pytest.approx([10 + 4.75 * (0.75 / 2 + 2 / 2)])
    # half of half of 4.75/10, of 4.75/5, and half of 4.75/2
    assert [one.weight for one in aggregate.contributions["shared"]] == pytest.approx([0.11875, 0.2375, 1.1875])


def test_a_weighting_that_looks_at_deltas_sees_those_that_are_counted_by_step():
    aggregator = MTLAggregator(
        weighting=make_weighting(AggregationConfig(task_weighting="pcgrad")), normalization="fednova"
    )
    base = update("", "sst2", 1, 1, [0.0, 0.0]).components | update("", "qqp", 1, 1, [0.0, 0.0]).components
    # effective 3; the tasks' deltas are 3 (4, 0) / 4 = (3, 0) and 3 (-2, 2) / 2 = (-3, 3), whose product is -9: of the
    # first stays (3, 0) + 9/18 (-3, 3) = (1.5, 1.5), of the second (-3, 3) + 9/9 (3, 0) = (0, 3)
    aggregate = fold(
        aggregator, update("a", "sst2", 1, 4, [4.0, 0.0]), update("b", "qqp", 1, 2, [-2.0, 2.0]), base=base
    )
    assert encoder_of(aggregate) == pytest.approx([0.75, 2.25])


def test_the_factor_at_the_close_is_never_below_one_and_exactly_one_for_equal_steps():
    assert RoundSteps((Steps("x", 1, 7), Steps("y", 5, 7))).factor() == 1
    parts = RoundSteps((Steps("x", 1, 10), Steps("x", 3, 2)))
    assert (parts.effective, parts.factor()) == (4, Fraction(4) * (Fraction(1, 40) + Fraction(3, 8)))


def test_an_update_without_steps_is_not_averaged_by_step():
    with pytest.raises(AggregationError, match="a: expected num_steps of at least 1, got 0"):
        fold(FEDNOVA, update("a", "sst2", 1, 0, [5.0]))


def test_parameters_of_what_the_model_has_not_cannot_count_by_step():
    with pytest.raises(
        AggregationError, match="averaging per step in 'shared' needs the parameters from which training started"
    ):
        fold(FEDNOVA, update("a", "sst2", 1, 2, [5.0], kind="parameters"), base={})


async def test_over_grpc_the_model_moves_by_the_formula_also_when_the_server_was_killed_between_the_updates(tmp_path):
    async def whole(folder, sections):
        async with serving(tmp_path / folder, model(), num_rounds=2, sections=sections) as server:
            before = model_bytes(server.federation.model)
            async with watching(server, **TASKS) as clients:
                for name, client in clients.items():
                    await push(client, 1, num_steps=STEPS[name])
                await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
            return before, model_bytes(server.federation.model)

    before, after = await whole("whole", BY_STEP)
    _, plain = await whole("plain", {})
    async with serving(tmp_path / "parts", model(), num_rounds=2, sections=BY_STEP) as server:
        async with watching(server, **TASKS) as clients:
            await push(clients["b"], 1, num_steps=STEPS["b"])
    async with serving(tmp_path / "parts", model(seed=3), num_rounds=2, sections=BY_STEP) as server:
        async with watching(server, **TASKS) as clients:
            await push(clients["a"], 1, num_steps=STEPS["a"])
            await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
        assert model_bytes(server.federation.model) == after
    # a and b have 2 and 3 examples: effective (2 * 7 + 3 * 2) / 5 = 4
    weights = {one.client_id: one.weight for one in reports_of(tmp_path / "whole")[0].components[0].contributions}
    assert weights == pytest.approx({"a": 2 / 5 * 4 / 7, "b": 3 / 5 * 4 / 2})
    moved = {scope: _numbers(after[scope]) - _numbers(before[scope]) for scope in after}
    plainly = {scope: _numbers(plain[scope]) - _numbers(before[scope]) for scope in after}
    for task in ("task:sst2", "task:qqp"):  # of one client each
        assert torch.equal(moved[task], plainly[task])
    deltas = {name: await _delta(tmp_path, name) for name in TASKS}
    expected = sum(weights[name] * deltas[name] for name in TASKS)
    assert torch.allclose(moved["shared"], expected, atol=1e-6)
    assert not torch.allclose(moved["shared"], plainly["shared"], atol=1e-3)


async def _delta(tmp_path, name):
    """What one client alone moves the encoder by."""
    alone = {name: TASKS[name]}
    async with serving(tmp_path / name, model(), num_rounds=2, min_clients={TASKS[name]: 1}) as server:
        before = model_bytes(server.federation.model)
        return _numbers((await play(server, [1], alone))["shared"]) - _numbers(before["shared"])


def _numbers(data):
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


async def test_an_update_that_does_not_say_its_steps_is_refused_by_name_where_they_count(tmp_path):
    async with serving(tmp_path, model(), min_clients={"sst2": 1}, sections=BY_STEP) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await push(client, 1)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert (
                "num_steps: this server averages deltas per step (aggregation.normalization)" in caught.value.details()
            )
            await push(client, 1, num_steps=1)


def test_fedmtls_client_says_the_steps_that_it_took(tmp_path):
    rows = "{train_samples: %d, val_samples: 10, data: {builtin: %s}}"
    config = loaded(
        Path(__file__).parents[3] / "configs" / "demo.yaml",
        *("training.num_rounds=1", "training.local_epochs=1", "aggregation.normalization=fednova"),
        f"tasks={{sst2: {rows % (64, 'sst2')}, qqp: {rows % (32, 'qqp')}}}",
        "clients=[{client_id: a, task: sst2}, {client_id: b, task: qqp}]",
    )
    run(config, tmp_path)
    weights = {one.client_id: one.weight for one in reports_of(tmp_path)[0].components[0].contributions}
    # 2 steps and 1, of 64 and 32 rows: effective 5/3
    assert weights == pytest.approx({"a": 2 / 3 * 5 / 3 / 2, "b": 1 / 3 * 5 / 3})
