"""What the log and the status say of a run, as functions of its rounds: without a server."""

from __future__ import annotations

from dataclasses import replace

from structlog.testing import capture_logs

from fedmtl_server.model_parts import ModelSummary
from fedmtl_server.rounds.report import ComponentReport, RoundReport, TaskReport
from fedmtl_server.rounds.variant_reports import VariantReport
from fedmtl_server.rounds.warnings import RoundWarning
from fedmtl_server.run_log import RunLog, title
from fedmtl_server.status import Status
from tests.server.rounds.driven import claim, finish_round, opened

MODEL = ModelSummary("b", 5, {"sst2": 2, "qqp": 3}, {"shared": 5, "task:sst2": 2, "task:qqp": 3})


def status_of(rounds, now=0.0, **facts):
    given = {"last_metrics": {}, "last_report": None, "warnings": (), "uptime_s": 1.0} | facts
    return Status.of("run", rounds.view, now, MODEL, **given)


def test_each_line_about_a_round_names_it_and_the_final_evaluation_has_no_number():
    rounds = opened(num_rounds=1)
    assert title(rounds.view) == {"progress": "Round 1/1"}
    finish_round(rounds, 1)
    assert title(rounds.view) == {"progress": "Final evaluation"}


def test_a_round_that_opens_is_logged_with_its_cohort():
    rounds = opened()
    with capture_logs() as logs:
        RunLog().opened(rounds.view)
    (line,) = logs
    assert (line["event"], line["cohort_size"], line["cohort"]) == ("round.opened", 2, "a (sst2), b (qqp)")


def test_what_a_round_waits_for_is_logged_only_if_it_waits():
    rounds = opened()
    with capture_logs() as logs:
        RunLog().waiting(rounds.view, 1.0)
        RunLog().clients_missing(rounds.view)  # all clients have joined
        rounds.count(claim("a"))
        rounds.count(claim("b", "qqp"))
        RunLog().waiting(rounds.view, 1.0)
    assert [(line["event"], line["waiting_for"]) for line in logs] == [
        ("round.waiting", "2 of 2 updates: a (sst2), b (qqp), 99 s left")
    ]


def test_a_status_has_every_task_in_the_runs_order_and_every_client():
    rounds = opened()
    rounds.count(claim("b", "qqp"))
    status = status_of(rounds, 1.0, last_metrics={"sst2": {"accuracy": 0.5}})
    assert status.waiting_for == "1 of 2 updates: a (sst2), 99 s left"
    assert [(one.task, one.reported_clients, one.last_metrics) for one in status.tasks] == [
        ("sst2", 0, {"accuracy": 0.5}),
        ("qqp", 1, {}),
    ]
    assert [(one.client_id, one.in_cohort, one.reported) for one in status.clients] == [
        ("a", True, False),
        ("b", True, True),
    ]


def test_a_statuss_warnings_are_of_the_round_in_progress_when_there_is_no_report():
    warning = RoundWarning("damaged_model", "m")
    assert status_of(opened(), warnings=[warning]).warnings == [warning]


def report_of(round_, sources, *variants, **facts):
    """A round's report after which task sst2 has these sources."""
    selections = {"sst2": {"sources": sources}, "qqp": {"sources": ["qqp"]}}
    tasks = [
        TaskReport(task, 1, 1, 0.0, {}, {}, variants=variants if task == "sst2" else ()) for task in ("sst2", "qqp")
    ]
    stages = {"sources": {"selections": selections}, "sharing": {"blocks": {"1": [["sst2"], ["qqp"]]}}}
    lists = {name: [] for name in ("components", "missing_clients", "refused", "unchanged_tasks")}
    return RoundReport(
        round_,
        "train",
        0,
        1.0,
        tasks=tasks,
        num_refused=0,
        bytes_received=0,
        bytes_sent=0,
        stages=stages,
        **lists,
        **facts,
    )


def test_changed_sources_are_logged_against_the_round_before_beside_moved_layers():
    variants = [
        VariantReport("all", 1, 9, 0, 0.5, 0.25, None, chosen=False),
        VariantReport("with.qqp", 1, 9, 0, 0.5, -0.25, 0.125, chosen=True),
    ]
    first = report_of(1, ["sst2"])
    second = report_of(2, ["sst2", "qqp"], *variants, moved={"1": [["sst2", "qqp"]]})
    with capture_logs() as logs:
        RunLog().committed(opened().view, second, first)
        RunLog().committed(opened().view, second, second)
    (changed,) = (one for one in logs if one["event"].startswith("sources."))
    assert changed == {
        "event": "sources.changed",
        "log_level": "info",
        "progress": "Round 1/2",
        "task": "sst2",
        "before": ["sst2"],
        "sources": ["sst2", "qqp"],
        "why": "lower calibrated loss",
        "loss_difference": -0.25,
        "standard_error": 0.125,
        "examples": 9,
    }
    assert [one["event"] for one in logs].count("layer.moved") == 2


def test_the_error_of_adapters_is_logged_with_its_component():
    report = replace(
        report_of(1, ["sst2"]),
        components=[ComponentReport("shared", 4, []), ComponentReport("task:sst2", 2, [])],
        stages={"adapters": {"inexactness": {"shared": 0.125}}},
    )
    with capture_logs() as logs:
        RunLog().committed(opened().view, report)
    shown = {line["scope"]: line.get("inexactness") for line in logs if line["event"] == "component.averaged"}
    assert shown == {"shared": 0.125, "task:sst2": None}
