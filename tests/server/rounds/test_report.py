"""Round reports and results."""

import dataclasses
import io
import json
import math

import pytest
from rich.console import Console

from fedmtl_core.runtime.tables import results_table
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.values import Aggregate, Contribution
from fedmtl_server.rounds.membership import Member
from fedmtl_server.rounds.metric_reports import MetricReport
from fedmtl_server.rounds.report import RoundReport, task_reports
from fedmtl_server.storage.results import Measurements, TaskResult, plot

SLICES = {"sst2": ("shared", "task:sst2"), "qqp": ("shared", "task:qqp")}


def member(client_id, task, num_examples, num_eval, accuracy, base_round=1, trained=None) -> Member:
    received, own = Evaluation({"accuracy": accuracy}, num_eval), Evaluation(trained or {}, num_eval)
    update = Update(
        client_id, task, base_round, "u", "parameters", num_examples=num_examples, received=received, trained=own
    )
    return Member(client_id, task, update)


def report(round_, **accuracy) -> RoundReport:
    cohort = [member(task, task, 1, 1, value, base_round=round_) for task, value in accuracy.items()]
    tasks = task_reports(SLICES, cohort, Aggregate(), round_)
    return RoundReport(round_, "train", 0, 1.0, [], tasks, [], [], 0, 0, 0, [])


def measured(*reports, tasks=("sst2", "qqp")) -> Measurements:
    measurements = Measurements([PRESETS[task] for task in tasks])
    for one in reports:
        measurements.add(one)
    return measurements


def test_a_tasks_metric_is_weighted_by_what_its_clients_evaluated_on():
    cohort = [member("a", "sst2", 5, 100, 0.5), member("b", "sst2", 5, 300, 0.9), Member("gone", "sst2")]
    (sst2,) = task_reports({"sst2": SLICES["sst2"]}, cohort, Aggregate(), 1)
    assert sst2.num_updates == 2
    assert sst2.num_examples == 10
    assert sst2.received_metrics["accuracy"] == pytest.approx(0.8)  # (100*0.5 + 300*0.9) / 400


def test_who_began_with_an_older_model_says_nothing_of_the_rounds_own():
    """It counts in everything else."""
    stale = member("a", "sst2", 5, 100, 0.5, base_round=2, trained={"accuracy": 0.6})
    fresh = member("b", "sst2", 7, 300, 0.9, base_round=3, trained={"accuracy": 1.0})
    (sst2,) = task_reports({"sst2": SLICES["sst2"]}, [stale, fresh], Aggregate(), 3)
    assert (sst2.num_updates, sst2.num_examples) == (2, 12)
    assert sst2.received_metrics == {"accuracy": 0.9}
    assert sst2.trained_metrics["accuracy"] == pytest.approx(0.9)  # (100*0.6 + 300*1.0) / 400


def test_a_tasks_share_of_the_encoder_is_the_sum_of_its_clients():
    parts = [Contribution("a", "sst2", 1, 0.1), Contribution("b", "qqp", 6, 0.6), Contribution("c", "sst2", 3, 0.3)]
    reports = task_reports(SLICES, [], Aggregate({}, {"shared": parts}), 1)
    shares = {one.task: one.encoder_share for one in reports}
    assert shares == {"sst2": pytest.approx(0.4), "qqp": 0.6}


def test_the_encoder_of_factors_that_are_trained_in_turn_is_the_factor_of_the_round():
    scopes = {"sst2": ("factor_a:shared", "factor_b:task:sst2", "task:sst2")}
    parts = [Contribution("a", "sst2", 1, 0.25)]
    for trained, others in (("factor_a:shared", {}), ("factor_b:task:sst2", {"task:sst2": parts * 2})):
        (sst2,) = task_reports(scopes, [], Aggregate({}, {trained: parts, **others}), 1)
        assert sst2.encoder_share == 0.25


def test_of_factors_in_several_components_the_one_that_most_clients_share_counts():
    scopes = {"sst2": ("factor_a:shared", "factor_b:shared", "factor_a:task:sst2", "factor_b:task:sst2", "task:sst2")}
    whole, part = [Contribution("a", "sst2", 1, 1.0)], [Contribution("a", "sst2", 1, 0.25)]
    for factor in "ab":
        aggregate = Aggregate({}, {f"factor_{factor}:shared": part, f"factor_{factor}:task:sst2": whole})
        (sst2,) = task_reports(scopes, [], aggregate, 1)
        assert sst2.encoder_share == 0.25


def test_results_are_before_the_first_after_the_last_and_the_best():
    reports = [report(1, sst2=0.5, qqp=0.4), report(2, sst2=0.9, qqp=0.6), report(3, sst2=0.8, qqp=0.7)]
    measurements = measured(*reports)
    results = measurements.results()
    assert results["sst2"].by_round == {0: 0.5, 1: 0.9, 2: 0.8}
    assert (results["sst2"].first, results["sst2"].last, results["sst2"].best_round) == (0.5, 0.8, 1)
    assert results["qqp"].to_dict()["best"] == 0.7
    assert measurements.best_rounds() == {1, 2}
    assert measurements.last == {"sst2": {"accuracy": 0.8}, "qqp": {"accuracy": 0.7}}


def test_a_task_that_was_never_measured_has_no_results():
    measurements = measured(report(1, sst2=0.5), tasks=["stsb"])
    result = measurements.results()["stsb"]
    assert (measurements.best_rounds(), measurements.last) == (set(), {})
    assert (result.first, result.last, result.best_round, result.to_dict()["best"]) == (None, None, None, None)


def test_a_report_is_read_back_as_it_was_written_and_older_ones_do_not_say_what_metrics_were_taken_over():
    written = report(1, sst2=0.5)
    assert written.tasks[0].received_reports == {"accuracy": MetricReport(False, 1, 1, 0)}
    values = json.loads(json.dumps(written.to_dict()))
    assert RoundReport.from_dict(values) == written
    for task in values["tasks"]:
        del task["received_reports"], task["trained_reports"]
    assert RoundReport.from_dict(values).tasks[0].received_metrics == {"accuracy": 0.5}
    assert RoundReport.from_dict(values).tasks[0].received_reports == {}


REMEMBERED = {
    "task_weighting": {"shared": {"log_variances": [0.5]}},
    "sharing": {"blocks": {"1": [["sst2"], ["qqp"]]}, "policy": {"cosines": {"1": {}}}},
    "control_variates": {"since": 3, "known": {"a": {"task": "sst2", "round": 3, "num_examples": 7}}},
}
STORED = {
    "weighting_states": REMEMBERED["task_weighting"],
    "sharing": REMEMBERED["sharing"]["blocks"],
    "sharing_state": REMEMBERED["sharing"]["policy"],
    "control_variates": REMEMBERED["control_variates"],
}


def test_what_stages_remember_is_stored_by_the_keys_that_reports_have_always_had():
    stored = dataclasses.replace(report(1, sst2=0.5), stages=REMEMBERED).to_dict()
    assert {key: stored[key] for key in STORED} == STORED
    assert "stages" not in stored
    assert RoundReport.from_dict(json.loads(json.dumps(stored))).stages == REMEMBERED
    assert RoundReport.from_dict(stored).sharing == {"1": [["sst2"], ["qqp"]]}


def test_a_stored_report_of_stages_that_remember_nothing_says_so_under_every_key():
    stored = report(1, sst2=0.5).to_dict()
    assert {key: stored[key] for key in STORED} == {key: {} for key in STORED}
    assert RoundReport.from_dict(stored).stages == {}


def test_a_stage_without_a_key_of_its_own_is_stored_beside_the_others():
    stored = dataclasses.replace(report(1, sst2=0.5), stages={"ledger": {"spent": 1.5}}).to_dict()
    assert stored["stages"] == {"ledger": {"spent": 1.5}}
    assert RoundReport.from_dict(stored).stages == {"ledger": {"spent": 1.5}}


def test_results_are_read_back_as_they_were_written_and_older_ones_do_not_say_what_they_were_taken_over():
    (result,) = measured(report(1, sst2=0.5), tasks=["sst2"]).results().values()
    values = json.loads(json.dumps(result.to_dict()))
    assert TaskResult.from_dict(values) == result
    del values["measured"]
    assert TaskResult.from_dict(values) == TaskResult("accuracy", {0: 0.5})


def test_the_table_of_results_says_undefined_where_a_metric_is_and_nothing_where_it_was_not_measured(tmp_path):
    text, taken = io.StringIO(), MetricReport(True, 1, 1, 1)
    results = {
        "stsb": TaskResult("pearson", {1: 0.5}, measured={0: taken, 1: taken, 2: taken}),
        "cola": TaskResult("matthews", {}, measured={0: taken}),
        "sst2": TaskResult("accuracy", {}),
    }
    results_table({task: one.to_dict() for task, one in results.items()}, tmp_path, Console(file=text, width=120))
    rows = {line.split()[1]: line.replace("│", " ").split()[2:] for line in text.getvalue().splitlines() if "│" in line}
    assert rows["stsb"] == ["undefined", "undefined", "0.500", "1"]
    assert rows["cola"] == ["undefined", "undefined", "-", "-"]
    assert rows["sst2"] == ["-", "-", "-", "-"]
    plot(results, tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_is_a_png(tmp_path):
    plot(measured(report(1, sst2=0.5), report(2, sst2=0.9)).results(), tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_is_not_a_number_is_not_the_best_whatever_came_first():
    for values in ({0: math.nan, 1: 0.5, 2: 0.25}, {0: 0.25, 1: 0.5, 2: math.nan}):
        assert TaskResult("accuracy", values).best_round == 1
    assert TaskResult("accuracy", {0: math.nan}).best_round is None
