"""Auxiliary tasks: what they count for in the encoder, and for what they don't count."""

import dataclasses
import io
import json
import math

import numpy as np
import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from fedmtl_core.config import AggregationConfig, AuxiliaryConfig, Config, validated
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime.tables import results_table
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.updates import Update
from fedmtl_server import doctor
from fedmtl_server.aggregation.aggregator import ClientUpdate, MTLAggregator
from fedmtl_server.aggregation.stages.auxiliary import AuxiliaryTasks, factor, scaled
from fedmtl_server.aggregation.task_weighting import make_weighting
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.monitoring.tracking import round_point
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.engine import RoundEngine
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.transitions import Phase, Step
from fedmtl_server.rounds.waiting import waiting_for
from fedmtl_server.server import Server
from fedmtl_server.storage.results import Measurements, TaskResult
from tests.server.aggregation.updates import averaged, round_of, update_of
from tests.server.playing import model, push
from tests.server.rounds.driven import round_rules
from tests.support import WireClient, full_of, reports_of, serving, tiny_model, watching

# Auxiliary clients connect first in what follows: no round waits for them to come.
AUXILIARY = {"tasks": {"sst2": {}, "qqp": {"auxiliary": {"weight": 0.5, "decay": 0.5}}}}


# What it counts for.


def update(client_id, task, num_examples, encoder, head=(0.0,), kind="parameters"):
    parameters = {"encoder.w": torch.tensor(encoder), f"heads.{task}.weight": torch.tensor(list(head))}
    return update_of(client_id, task, num_examples, parameters, kind)


def fold_of(*updates, round_=1, weighting=None, base=None, weight=0.5, decay=1.0):
    """What a round comes to in which qqp is auxiliary."""
    rule = {"qqp": AuxiliaryConfig(weight=weight, decay=decay)}
    made = None if weighting is None else make_weighting(AggregationConfig(task_weighting=weighting))
    pipeline = MTLAggregator(weighting=made, seed=7, auxiliary=rule).pipeline
    return round_of(pipeline, *updates, base=base, round_=round_)


def encoder_of(aggregate):
    return aggregate.components["shared"].views()["encoder.w"].tolist()


def test_a_weight_decays_from_round_to_round_and_ends_at_nothing():
    section = AuxiliaryConfig(weight=0.5, decay=0.25)
    stage = AuxiliaryTasks({"qqp": section})
    assert [stage.factors(round_) for round_ in (1, 2, 3)] == [{"qqp": 0.5}, {"qqp": 0.125}, {"qqp": 0.03125}]
    assert factor(section, 10_000) == 0.0  # 4^-9999 is no number of float64
    assert factor(AuxiliaryConfig(weight=0.0), 1) == 0.0


def test_an_auxiliary_example_counts_its_weight_in_the_encoder_and_whole_in_its_own_head():
    result = fold_of(
        update("a", "sst2", 1, [4.0], [1.0]), update("b", "qqp", 4, [1.0], [8.0]), update("c", "qqp", 2, [1.0], [2.0])
    )
    assert encoder_of(result) == [1.75]  # (1*4 + 0.5*4*1 + 0.5*2*1) / (1 + 2 + 1)
    assert result.components["task:qqp"].views()["heads.qqp.weight"].tolist() == [6.0]  # (4*8 + 2*2) / 6
    parts = {one.client_id: (one.num_examples, one.weight) for one in result.contributions["shared"]}
    assert parts == {"a": (1, 0.25), "b": (4, 0.5), "c": (2, 0.25)}
    assert {one.client_id: one.weight for one in result.contributions["task:qqp"]} == {"b": 4 / 6, "c": 2 / 6}


def test_its_weight_is_that_of_the_round():
    updates = update("a", "sst2", 1, [8.0]), update("b", "qqp", 2, [0.0])
    assert encoder_of(fold_of(*updates, weight=1.5, decay=1 / 3)) == [2.0]  # 1*8 / (1 + 2*1.5)
    assert encoder_of(fold_of(*updates, weight=1.5, decay=1 / 3, round_=2)) == [4.0]  # 1*8 / (1 + 2*0.5)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 7.7, 1e-300])
def test_equal_updates_average_to_exactly_themselves_whatever_they_count_for(weight):
    values = torch.randn(1000).tolist()
    updates = [update(f"c{i}", ("sst2", "qqp")[i % 2], 3 + i, values) for i in range(7)]
    assert torch.equal(torch.tensor(encoder_of(fold_of(*updates, weight=weight))), torch.tensor(values))


def test_with_a_weight_of_1_the_model_is_to_the_last_bit_what_it_is_without_auxiliary_tasks():
    generator = torch.Generator().manual_seed(3)
    updates = [
        update(f"c{i}", ("sst2", "qqp")[i % 2], 3 + i, torch.randn(1000, generator=generator).tolist())
        for i in range(7)
    ]
    plain = averaged(*updates)
    assert encoder_of(fold_of(*updates, weight=1.0)) == plain["shared"]["encoder.w"].tolist()


@pytest.mark.parametrize("weighting", [None, "uniform", "pcgrad"])
@pytest.mark.parametrize(("weight", "round_"), [(0.0, 1), (0.5, 5000)])
def test_one_that_counts_for_nothing_leaves_the_encoder_to_the_others_and_trains_its_head(weighting, weight, round_):
    base = update("", "sst2", 1, [1.0]).components | update("", "qqp", 1, [1.0]).components
    updates = update("a", "sst2", 1, [0.3], [1.0]), update("b", "qqp", 9, [-5.0], [2.0])
    result = fold_of(*updates, weighting=weighting, base=base, weight=weight, decay=0.5, round_=round_)
    kept = 0.5 if weighting == "pcgrad" else 1.0  # its coefficients are no shares: the other's stays what it is
    assert encoder_of(result) == pytest.approx([1.0 + kept * (0.3 - 1.0)])
    assert result.components["task:qqp"].views()["heads.qqp.weight"].tolist() == [2.0]


@pytest.mark.parametrize("weighting", [None, "uniform", "gradnorm"])
def test_one_that_counts_for_nothing_and_is_alone_leaves_the_encoder_as_it_is(weighting):
    base = update("", "qqp", 1, [1.0]).components
    result = fold_of(update("b", "qqp", 9, [5.0], [2.0]), weighting=weighting, base=base, weight=0.0)
    assert set(result.components) == set(result.contributions) == {"task:qqp"}


def test_auxiliary_tasks_alone_count_against_one_another():
    assert encoder_of(fold_of(update("b", "qqp", 1, [4.0]), update("c", "qqp", 3, [0.0]), weight=1e-3)) == [1.0]


def test_a_share_is_multiplied_and_what_it_lost_goes_to_the_others():
    assert scaled({"a": 0.5, "b": 0.25, "c": 0.25}, {"c": 0.5}, are_shares=True) == pytest.approx(
        {"a": 4 / 7, "b": 2 / 7, "c": 1 / 7}  # of 0.5 + 0.25 + 0.125
    )
    assert scaled({"a": 1.5, "c": 0.5}, {"c": 0.5}, are_shares=False) == {"a": 1.5, "c": 0.25}
    assert scaled({"a": 0.0, "c": 1.0}, {"c": 0.0}, are_shares=True) == {"a": 0.0, "c": 0.0}


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("uniform", {"a": 2 / 3, "b": 1 / 3}),
        ("temperature", {"a": 1 / 2, "b": 1 / 2}),  # 1 to 4 examples: 1 to 2, halved
        ("cagrad", {"a": 1 / 2, "b": 1 / 4}),  # without conflict the mean
    ],
)
def test_a_task_weightings_coefficients_are_multiplied(weighting, expected):
    base = update("", "sst2", 1, [0.0, 0.0]).components | update("", "qqp", 1, [0.0, 0.0]).components
    updates = update("a", "sst2", 1, [1.0, 0.0]), update("b", "qqp", 4, [1.0, 0.0])
    result = fold_of(*updates, weighting=weighting, base=base)
    assert {one.client_id: one.weight for one in result.contributions["shared"]} == pytest.approx(expected, abs=1e-6)
    assert encoder_of(result) == pytest.approx([sum(expected.values()), 0.0], abs=1e-6)


@given(
    st.lists(
        st.tuples(st.sampled_from(["sst2", "qqp"]), st.integers(1, 10**6), st.floats(-100, 100, width=32)),
        min_size=1,
        max_size=8,
    ),
    st.floats(1e-6, 1e6),
)
def test_the_encoder_is_the_weighted_mean_in_any_mixture(given_, weight):
    updates = [update(f"c{i}", task, n, [value]) for i, (task, n, value) in enumerate(given_)]
    weights = np.array([n * (weight if task == "qqp" else 1) for task, n, _ in given_])
    expected = float(weights @ np.array([value for *_, value in given_]) / weights.sum())
    assert encoder_of(fold_of(*updates, weight=weight)) == pytest.approx([expected], rel=1e-4, abs=1e-3)


# For what it doesn't count.


def engine(**rules):
    defaults = {"deadline_s": 100.0, "quorum_timeout_s": 30.0, "rejoin_grace_s": 5.0}
    return RoundEngine(
        round_rules(
            num_rounds=9, min_clients={"sst2": 1, "qqp": 0}, auxiliary=frozenset({"qqp"}), **(defaults | rules)
        ),
        0.0,
    )


def auxiliary_run(num_rounds, min_clients, round_=1):
    auxiliary = frozenset({"qqp"})
    rules = round_rules(num_rounds=num_rounds, min_clients=min_clients, auxiliary=auxiliary, quorum_timeout_s=30.0)
    return RoundEngine(rules, 0.0, round_)


def opened(clients=("a", "x", "y"), **rules):
    """Round 1 of a, whose task is sst2, and of x and y, whose task is auxiliary."""
    rounds = engine(**rules)
    for client_id in clients:
        rounds.join(client_id, "sst2" if client_id < "x" else "qqp", 0.0)
    assert rounds.advance(0.0) is Step.OPENED
    return rounds


def claim(client_id, kind="parameters", round_=1):
    return Update(client_id, "sst2" if client_id < "x" else "qqp", round_, f"{client_id}1", kind, num_examples=1)


def test_a_round_opens_without_auxiliary_clients():
    assert list(opened("a").cohort) == ["a"]


def test_auxiliary_clients_alone_open_no_round_in_any_time():
    rounds = engine()
    rounds.join("x", "qqp", 0.0)
    assert rounds.advance(0.0) is None
    assert waiting_for(rounds.view, 0.0) == "1 more sst2 client"
    rounds.join("a", "sst2", 1.0)
    assert rounds.advance(1.0) is Step.OPENED
    rounds.count(claim("a"))
    rounds.count(claim("x"))
    assert rounds.advance(2.0) is Step.CLOSED
    rounds.committed(2.0)
    rounds.leave("a", 2.0)
    assert rounds.next_wakeup(3.0) is None
    assert rounds.advance(1e6) is None


def test_where_no_task_needs_a_client_one_of_a_task_that_is_not_auxiliary_is_waited_for():
    rounds = auxiliary_run(9, {"sst2": 0, "qqp": 0})
    rounds.join("x", "qqp", 0.0)
    assert rounds.advance(0.0) is None
    assert waiting_for(rounds.view, 0.0) == "a client of a task that isn't auxiliary"


def test_the_time_for_a_quorum_begins_when_somebody_comes_who_counts_for_it():
    rounds = auxiliary_run(9, {"sst2": 2, "qqp": 0}, round_=2)
    rounds.join("x", "qqp", 0.0)
    rounds.join("a", "sst2", 1000.0)
    assert rounds.advance(1029.0) is None
    assert rounds.advance(1030.0) is Step.OPENED


def test_auxiliary_clients_are_waited_for_as_others_are():
    rounds = opened()
    rounds.count(claim("a"))
    rounds.count(claim("x"))
    assert waiting_for(rounds.view, 10.0) == "1 of 3 updates: y (qqp), 90 s left"
    assert rounds.advance(99.0) is None
    assert rounds.advance(100.0) is Step.CLOSED


@pytest.mark.parametrize("rule", ["extend", "fail"])
def test_a_round_without_its_auxiliary_updates_is_complete(rule):
    rounds = opened(on_missing_quorum=rule)
    rounds.count(claim("a"))
    assert missing_quorum(rounds.view) == {}
    assert rounds.advance(100.0) is Step.CLOSED


def test_auxiliary_updates_fill_no_buffer_and_are_taken_along():
    rounds = opened(("a", "b", "x", "y"), mode="async", buffer_size=2)
    for client_id in ("x", "a", "y"):
        rounds.count(claim(client_id, "delta"))
    assert waiting_for(rounds.view, 1.0).startswith("1 of 2 updates: b (sst2)")
    assert rounds.advance(1.0) is None
    rounds.count(claim("b", "delta"))
    assert rounds.advance(1.0) is Step.CLOSED
    assert sum(member.reported for member in rounds.cohort.values()) == 4


def test_the_final_evaluation_takes_place_without_anybody_who_counts():
    rounds = auxiliary_run(1, {"sst2": 1, "qqp": 0}, round_=2)
    rounds.join("x", "qqp", 0.0)
    assert rounds.advance(29.0) is None
    assert rounds.advance(30.0) is Step.OPENED
    assert (rounds.purpose, rounds.phase) == ("evaluate", Phase.OPEN)


def test_early_stopping_does_not_look_at_auxiliary_tasks_nor_count_the_rounds_they_were_measured_in():
    measured = Measurements([PRESETS["sst2"], PRESETS["qqp"]], {"qqp"})
    measured.by_round["sst2"] |= {0: 0.5, 1: 0.6}
    measured.by_round["qqp"] |= {0: 0.1, 1: 0.2, 2: 0.3, 9: 0.4}
    assert measured.that_may_stop() == {"sst2": {0: 0.5, 1: 0.6}}
    results = measured.results()
    assert (results["sst2"].auxiliary, results["qqp"].auxiliary) == (False, True)
    assert TaskResult.from_dict(json.loads(json.dumps(results["qqp"].to_dict()))) == results["qqp"]


# Whole runs.


async def test_a_run_weighs_auxiliary_updates_and_says_so_everywhere(tmp_path, monkeypatch):
    async with serving(tmp_path / "run", model(), num_rounds=2, sections=AUXILIARY) as server:
        async with watching(server, b="qqp", a="sst2") as clients:
            for round_, expected in ((1, 2.0), (2, 1.2)):
                for client_id, value, number in (("a", 0.0, 1), ("b", 6.0, 1)):
                    header, data = await clients[client_id].get_slice(round=round_)
                    metrics = {"num_eval_examples": 1, "received_metrics": {"accuracy": 0.25}}
                    await clients[client_id].push(
                        clients[client_id].update(header, full_of(data, value), num_examples=number, **metrics)
                    )
                event = await clients["a"].until(pb.ROUND_EVENT_KIND_COMMITTED, round_)
                encoder = server.federation.model.get_shared_parameters()["encoder.dense.bias"].tolist()
                assert encoder == pytest.approx([expected] * 4)  # 6 of 1 + 0.5, then of 1 + 0.25
                assert server.federation.model.get_task_head_parameters("qqp")["heads.qqp.bias"].tolist() == [6.0, 6.0]
            told = {one.task: one for one in event.report.tasks}
            assert (told["sst2"].HasField("auxiliary_weight"), told["qqp"].auxiliary_weight) == (False, 0.25)
            status = await clients["a"].stub.GetStatus(pb.GetStatusRequest())
            assert {one.task: (one.auxiliary, one.min_clients) for one in status.tasks} == {
                "sst2": (False, 1),
                "qqp": (True, 0),
            }
    first, second = reports_of(tmp_path / "run")[:2]
    assert [one.auxiliary_weight for one in (*first.tasks, *second.tasks)] == [None, 0.5, None, 0.25]
    assert RoundReport.from_dict(json.loads(json.dumps(first.to_dict()))) == first
    numbers = round_point(second).metrics
    assert numbers["auxiliary_weight/qqp"] == 0.25
    assert "auxiliary_weight/sst2" not in numbers
    assert numbers["encoder_share/qqp"] == pytest.approx(0.2)

    monkeypatch.setenv("COLUMNS", "220")
    shown = [
        CliRunner().invoke(runs_app, [*words, "--runs-dir", str(tmp_path)]).stdout
        for words in (["list"], ["show", "run"], ["show", "run", "--round", "2"])
    ]
    assert all("qqp (auxiliary" in text for text in shown)
    assert "qqp (auxiliary, weight 0.25 per example)" in shown[2]
    assert not any("sst2 (auxiliary" in text for text in shown)
    exported = CliRunner().invoke(runs_app, ["export", "run", "--what", "rounds", "--runs-dir", str(tmp_path)]).stdout
    assert "qqp.auxiliary_weight" in exported.splitlines()[0].split(",")


async def test_a_run_ends_by_itself_with_auxiliary_tasks_that_nobody_has(tmp_path):
    async with serving(tmp_path, model(), num_rounds=1, sections=AUXILIARY) as server:
        async with watching(server, a="sst2") as clients:
            await push(clients["a"], 1)
            await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, 2)
            header, _ = await clients["a"].get_slice(round=2)
            metrics = {"num_eval_examples": 1, "received_metrics": {"accuracy": 0.5}}
            await clients["a"].push(
                clients["a"].update(header, {}, kind=pb.UPDATE_KIND_METRICS, components=[], **metrics)
            )
            await clients["a"].until(pb.ROUND_EVENT_KIND_FINISHED)
        assert (await server.run_task)["sst2"].last == 0.5


async def test_training_ends_early_however_much_better_an_auxiliary_task_gets(tmp_path):
    sections = AUXILIARY | {"early_stopping": {"patience": 2}}
    async with serving(tmp_path, model(), num_rounds=9, sections=sections) as server:
        async with watching(server, b="qqp", a="sst2") as clients:
            for round_ in (1, 2, 3):
                for client_id, value in (("a", 0.5), ("b", round_ / 10)):
                    await push(clients[client_id], round_, received_metrics={"accuracy": value})
                event = await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
            assert event.purpose == pb.ROUND_PURPOSE_EVALUATE  # rounds 2 and 3 were no better for sst2 than round 1


async def test_a_run_goes_on_after_a_restart_with_the_weight_of_its_round(tmp_path):
    async def play(server, rounds):
        async with watching(server, b="qqp", a="sst2") as clients:
            for round_ in rounds:
                await push(clients["a"], round_)
                await push(clients["b"], round_)
                await clients["a"].until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
        return {scope: one.buffer.numpy().tobytes() for scope, one in server.federation.model.components.items()}

    async with serving(tmp_path / "whole", model(), num_rounds=4, sections=AUXILIARY) as server:
        expected = await play(server, (1, 2, 3))
    for round_ in (1, 2, 3):
        async with serving(tmp_path / "parts", model(seed=round_ - 1), num_rounds=4, sections=AUXILIARY) as server:
            got = await play(server, [round_])
    assert got == expected
    other = {"tasks": {"sst2": {}, "qqp": {"auxiliary": {"weight": 0.5, "decay": 0.25}}}}
    with pytest.raises(ConfigError, match=r"tasks\.qqp\.auxiliary\.decay: the run has 0\.5, got 0\.25"):
        async with serving(tmp_path / "parts", model(), num_rounds=4, sections=other):
            pass


async def test_an_auxiliary_client_that_is_alone_is_told_what_is_waited_for(tmp_path):
    async with serving(tmp_path, model(), sections=AUXILIARY) as server, WireClient(server, "b", "qqp") as client:
        event = await client.watch()
        assert (event.kind, event.waiting_for) == (pb.ROUND_EVENT_KIND_WAITING, "1 more sst2 client")


# What is refused, and how results look.


def test_auxiliary_is_yes_no_or_what_it_counts_for():
    config = Config.model_validate(
        {"tasks": {"sst2": {"auxiliary": False}, "qqp": {"auxiliary": True}, "stsb": {"auxiliary": {"decay": 0.5}}}}
    )
    assert config.auxiliary_tasks() == {"qqp", "stsb"}
    assert [task.min_clients for task in config.tasks.values()] == [1, 0, 0]
    assert config.tasks["stsb"].auxiliary.weight == 1.0
    assert Config.model_validate(config.model_dump(mode="json", exclude_none=True)) == config


@pytest.mark.parametrize(
    ("qqp", "message"),
    [
        ({"auxiliary": True, "min_clients": 2}, r"`min_clients` can't be combined with `auxiliary`: .* min_clients: 2"),
        ({"auxiliary": {"weight": -1}}, r"auxiliary\.weight: input should be greater than or equal to 0"),
        ({"auxiliary": {"weight": 1e300}}, r"auxiliary\.weight: input should be less than or equal to 1000000"),
        ({"auxiliary": {"decay": 0}}, r"auxiliary\.decay: input should be greater than 0"),
        ({"auxiliary": {"decay": 1.5}}, r"auxiliary\.decay: input should be less than or equal to 1"),
        ({"auxiliary": {"wieght": 1}}, r"auxiliary\.wieght: unknown key; did you mean 'weight'\?"),
        ({"auxiliary": "often"}, r"auxiliary: expected true, false, or a weight and a decay.*'often'"),
    ],
)
def test_what_cannot_be_meant_by_auxiliary_is_refused_in_words(qqp, message):
    with pytest.raises(ConfigError, match=message):
        validated({"tasks": {"sst2": {}, "qqp": qqp}}, "c.yaml")


def test_early_stopping_cannot_watch_an_auxiliary_task():
    with pytest.raises(ConfigError, match=r"early_stopping\.watch: 'qqp' is auxiliary, and auxiliary tasks"):
        validated(AUXILIARY | {"early_stopping": {"patience": 1, "watch": ["qqp"]}}, "c.yaml")


def test_a_server_needs_a_task_that_is_not_auxiliary(tmp_path):
    config = Config.model_validate({"tasks": {"sst2": {"auxiliary": True}}})
    with pytest.raises(ConfigError, match=r"tasks: expected at least one task that isn't auxiliary, got .*: sst2"):
        Server(config, tmp_path / "run", tiny_model("sst2"))
    assert [one.level for one in doctor.tasks(config)] == ["fail"]
    (finding,) = doctor.tasks(Config.model_validate(AUXILIARY))
    assert finding.found == "clients needed per round: sst2 1, qqp 0 (auxiliary)"


def test_the_table_of_results_says_which_task_is_auxiliary(tmp_path):
    text = io.StringIO()
    results = {
        "sst2": TaskResult("accuracy", {0: 0.5, 1: 0.6}),
        "qqp": TaskResult("accuracy", {0: 0.5, 1: 0.6}, auxiliary=True),
    }
    results_table({task: one.to_dict() for task, one in results.items()}, tmp_path, Console(file=text, width=120))
    assert "qqp (auxiliary)" in text.getvalue()
    assert "sst2 (auxiliary)" not in text.getvalue()
    assert math.isclose(results["qqp"].last, 0.6)


def test_steps_of_an_auxiliary_task_count_in_the_effective_number_as_its_examples_do():
    """1 and ½ · 1 examples: p = 2/3 and 1/3, τ_eff = 2/3 · 2 + 1/3 · 8 = 4; 4 (2/3 · 6/2 + 1/3 · 8/8) = 28/3."""
    deltas = {"sst2": (6.0, 2), "mlm": (8.0, 8)}
    updates = [
        dataclasses.replace(
            ClientUpdate.from_parameters(task, task, 1, {"encoder.w": torch.tensor([delta])}, "delta"),
            extras={"normalization": {"num_steps": steps}},
        )
        for task, (delta, steps) in deltas.items()
    ]
    base = ClientUpdate.from_parameters("", "", 1, {"encoder.w": torch.tensor([0.0])}).components
    aggregator = MTLAggregator(auxiliary={"mlm": AuxiliaryConfig(weight=0.5)}, normalization="fednova")
    result = aggregator.aggregate_mtl_updates(updates, base)
    assert result["shared"]["encoder.w"].item() == pytest.approx(28 / 3)
