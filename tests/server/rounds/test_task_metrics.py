"""A task's metrics of what its clients send, over real gRPC: pooled, averaged or undefined."""

import json

import grpc
import numpy as np
import pytest
from fedmtl.v1 import federation_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedmtl_core.tasks import metrics
from fedmtl_core.tasks.evaluation import Evaluation, EvaluationDetails
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.wire.evaluation_messages import details_from_proto, details_to_proto
from fedmtl_server.storage.history import History
from fedmtl_server.storage.paths import HISTORY_FILE
from tests.support import eventually, reports_of, serving, tiny_model, watching

CODE = grpc.StatusCode
COMMITTED, OPENED = pb.ROUND_EVENT_KIND_COMMITTED, pb.ROUND_EVENT_KIND_OPENED

DRAW = np.random.default_rng(11)
TARGETS = [DRAW.uniform(0, 5, 30), np.full(40, 3.0)]
"""Those of the second client are all the same: it has no correlation of its own."""
PREDICTIONS = [targets + DRAW.uniform(-0.5, 0.5, len(targets)) for targets in TARGETS]


def measured(number, **fields):
    """What a client of the regression says of its evaluation."""
    x, y = PREDICTIONS[number], TARGETS[number]
    pearson = metrics.moments(y, x).metric("pearson")
    spearman = metrics.spearman(y, x)
    evaluation = Evaluation.of({"pearson": pearson, "spearman": spearman}, len(x), sums=metrics.moments(y, x))
    return {
        "received_metrics": dict(evaluation),
        "received_details": details_to_proto(evaluation),
        "num_eval_examples": len(x),
    } | fields


async def push(client, **fields):
    header, data = await client.get_slice()
    return await client.push(client.update(header, data, **fields))


async def report_of(tmp_path, task, **fields_by_client):
    """The task's report in a round in which clients say so."""
    async with (
        serving(tmp_path, tiny_model(task), min_clients=len(fields_by_client)) as server,
        watching(server, **dict.fromkeys(fields_by_client, task)) as clients,
    ):
        await eventually(lambda: server.federation.status().phase.value == "open")
        for client_id, client in clients.items():
            await push(client, **fields_by_client[client_id])
        event = await client.until(COMMITTED)
        status = await client.stub.GetStatus(pb.GetStatusRequest())
    assert status.last_report.tasks[0] == event.report.tasks[0]
    assert status.tasks[0].last_metrics == event.report.tasks[0].received_metrics
    return event.report.tasks[0]


async def test_a_tasks_correlation_is_scipys_of_all_of_its_clients_rows_also_of_those_without_one(tmp_path):
    report = await report_of(tmp_path, "stsb", a=measured(0), b=measured(1))
    pooled = stats.pearsonr(np.concatenate(TARGETS), np.concatenate(PREDICTIONS))[0]
    assert report.received_metrics["pearson"] == pytest.approx(pooled, abs=1e-12)
    assert report.received_metric_reports["pearson"] == pb.MetricReport(
        basis=pb.METRIC_BASIS_POOLED, num_clients=2, num_eval_examples=70, num_undefined=1
    )
    alone = stats.spearmanr(TARGETS[0], PREDICTIONS[0])[0]
    assert report.received_metrics["spearman"] == pytest.approx(alone, abs=1e-12)
    assert report.received_metric_reports["spearman"] == pb.MetricReport(
        basis=pb.METRIC_BASIS_MEAN, num_clients=1, num_eval_examples=30, num_undefined=1
    )


async def test_a_client_without_sums_makes_its_tasks_correlation_a_mean_and_the_report_says_so(tmp_path):
    without = {"received_metrics": {"pearson": 0.25}, "num_eval_examples": 10}
    report = await report_of(tmp_path, "stsb", a=measured(0), b=measured(1), c=without)
    alone = stats.pearsonr(TARGETS[0], PREDICTIONS[0])[0]
    assert report.received_metrics["pearson"] == pytest.approx((30 * alone + 10 * 0.25) / 40, abs=1e-12)
    assert report.received_metric_reports["pearson"] == pb.MetricReport(
        basis=pb.METRIC_BASIS_MEAN, num_clients=2, num_eval_examples=40, num_undefined=1
    )


async def test_a_metric_that_no_client_has_is_undefined_for_the_task_and_nowhere_zero(tmp_path):
    undefined = pb.EvaluationDetails(undefined=["pearson", "loss"])
    fields = {"received_details": undefined, "trained_details": undefined, "num_eval_examples": 5}
    report = await report_of(tmp_path, "stsb", a=fields, b=fields)
    assert (dict(report.received_metrics), dict(report.trained_metrics)) == ({}, {})
    of_none = pb.MetricReport(basis=pb.METRIC_BASIS_MEAN, num_undefined=2)
    assert dict(report.received_metric_reports) == {"pearson": of_none, "loss": of_none}
    assert dict(report.trained_metric_reports) == {"pearson": of_none, "loss": of_none}


async def test_trained_metrics_are_pooled_as_received_ones(tmp_path):
    def of(rows):
        counts = pb.ClassCounts(correct=rows, predicted=rows, actual=rows)
        details = pb.EvaluationDetails(class_counts=counts, undefined=["f1"] if not rows[1] else [])
        return {"trained_details": details, "num_eval_examples": sum(rows)}

    positives = of([0, 30]) | {"trained_metrics": {"f1": 1.0}}
    report = await report_of(tmp_path, "qqp", a=positives, b=of([35, 0]))
    assert report.trained_metrics == {"f1": 1.0}  # the mean would be 30/65
    assert report.trained_metric_reports["f1"] == pb.MetricReport(
        basis=pb.METRIC_BASIS_POOLED, num_clients=2, num_eval_examples=65, num_undefined=1
    )


async def test_sums_that_were_acknowledged_are_pooled_after_a_restart(tmp_path):
    settings = {"min_clients": 2, "rejoin_grace_s": 30.0}
    async with serving(tmp_path, tiny_model("stsb"), **settings) as server:
        async with watching(server, a="stsb", b="stsb") as clients:
            await eventually(lambda: server.federation.status().phase.value == "open")
            await push(clients["a"], **measured(0))
    async with serving(tmp_path, tiny_model("stsb"), **settings) as server:
        async with watching(server, a="stsb", b="stsb") as clients:
            await push(clients["b"], **measured(1))
            event = await clients["b"].until(COMMITTED)
    pooled = stats.pearsonr(np.concatenate(TARGETS), np.concatenate(PREDICTIONS))[0]
    assert event.report.tasks[0].received_metrics["pearson"] == pytest.approx(pooled, abs=1e-12)


async def test_an_undefined_metric_is_no_tasks_first_last_or_best_and_left_out_of_the_history(tmp_path):
    nothing = {"received_details": pb.EvaluationDetails(undefined=["pearson"]), "num_eval_examples": 5}
    metric = {"received_metrics": {"pearson": -0.5}, "num_eval_examples": 5}
    async with (
        serving(tmp_path, tiny_model("stsb"), num_rounds=2) as server,
        watching(server, a="stsb") as clients,
    ):
        for round_, fields in enumerate((nothing, metric, nothing), start=1):
            await clients["a"].until(OPENED, round_)
            kind = {"kind": pb.UPDATE_KIND_METRICS, "components": []} if round_ == 3 else {}
            header, data = await clients["a"].get_slice()
            await clients["a"].push(clients["a"].update(header, {} if kind else data, **fields, **kind))
        (result,) = (await server.run_task).values()
    assert (result.first, result.last, result.last_round, result.best_round) == (None, None, 2, 1)
    assert result.by_round == {1: -0.5}
    assert {round_: one.num_undefined for round_, one in result.measured.items()} == {0: 1, 1: 0, 2: 1}
    stored = json.loads((tmp_path / "results.json").read_text())["stsb"]
    assert (stored["first"], stored["best"], stored["measured"]["2"]["num_undefined"]) == (None, -0.5, 1)
    history = History.open(tmp_path / HISTORY_FILE, create=False)
    assert [(one.round, one.value, one.num_clients) for one in history.metrics(history.runs()[0].run_id)] == [
        (1, -0.5, 1)
    ]
    history.close()
    assert reports_of(tmp_path)[2].tasks[0].received_reports["pearson"].num_undefined == 1


def counts(correct=(3, 4), predicted=(5, 5), actual=(4, 6)):
    return pb.EvaluationDetails(class_counts=pb.ClassCounts(correct=correct, predicted=predicted, actual=actual))


def moments(**changes):
    """Of the rows (x, y): (1, 2) and (3, 3)."""
    sums = {"num_examples": 2, "sum_x": 4, "sum_y": 5, "sum_xx": 10, "sum_yy": 13, "sum_xy": 11}
    return pb.EvaluationDetails(moments=pb.Moments(**(sums | changes)))


def named(*names):
    return pb.EvaluationDetails(undefined=names)


NAN, INF = float("nan"), float("inf")

IMPOSSIBLE = {
    "huge accuracy": ("qqp", {"accuracy": 1e100}, None, "accuracy: expected a number from 0 to 1, got 1e+100"),
    "accuracy over 1": ("qqp", {"accuracy": 1.001}, None, "accuracy: expected a number from 0 to 1, got 1.001"),
    "negative F1": ("qqp", {"f1": -0.5}, None, "f1: expected a number from 0 to 1, got -0.5"),
    "correlation": ("qqp", {"matthews": 2.0}, None, "matthews: expected a number from -1 to 1, got 2"),
    "Pearson": ("stsb", {"pearson": -1.5}, None, "pearson: expected a number from -1 to 1, got -1.5"),
    "negative loss": ("qqp", {"loss": -0.1}, None, "loss: expected a number from 0 to 3.40282e+38, got -0.1"),
    "no float32": ("qqp", {"loss": 1e39}, None, "loss: expected a number from 0 to 3.40282e+38, got 1e+39"),
    "another name": ("qqp", {"perplexity": 1e101}, None, "perplexity: expected a number from -1e+100 to 1e+100"),
    "both": (
        "qqp",
        {"f1": 0.5},
        named("f1"),
        "undefined: expected metrics without a value, got 'f1', which has a value",
    ),
    "many undefined": ("qqp", {}, named(*(f"m{i}" for i in range(65))), "undefined: at most 64 metrics are allowed"),
    "long name": ("qqp", {}, named("m" * 65), "undefined: a name has 1 to 64 characters, got 65"),
    "too few classes": ("qqp", {}, counts(correct=[3]), "correct: expected 2 numbers, one for each label, got 1"),
    "too many": ("qqp", {}, counts(actual=[1] * 100_000), "actual: expected 2 numbers, one for each label, got 100000"),
    "negative count": ("qqp", {}, counts(predicted=[-1, 11]), "predicted: expected no negative number, got -1"),
    "other rows": ("qqp", {}, counts(actual=[4, 5]), "actual: expected the sum 10, as in num_eval_examples, got 9"),
    "more correct": ("qqp", {}, counts(correct=[5, 4]), "correct: class 0: expected at most 4, the smaller of"),
    "counts of scores": ("stsb", {}, counts(), "class_counts: expected none, because the task stsb is a regression"),
    "moments of classes": ("qqp", {}, moments(), "moments: expected none, because the task qqp is a classification"),
    "moments of other rows": (
        "stsb",
        {},
        moments(num_examples=3),
        "num_examples: expected 10, as in num_eval_examples",
    ),
    "NaN sum": ("stsb", {}, moments(num_examples=10, sum_x=NAN), "sum_x: expected a number from -1e+200 to 1e+200"),
    "infinite sum": ("stsb", {}, moments(num_examples=10, sum_yy=INF), "sum_yy: expected a number from 0 to 1e+200"),
    "negative square": ("stsb", {}, moments(num_examples=10, sum_xx=-1), "sum_xx: expected a number from 0 to 1e+200"),
    "negative variance": ("stsb", {}, moments(num_examples=10, sum_x=11), "sum_xx: expected sums that rows can have"),
    "large covariance": ("stsb", {}, moments(num_examples=10, sum_xy=12), "sum_xy: expected sums that rows can have"),
}


FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(FLOAT32, FLOAT32), min_size=1, max_size=30), st.sampled_from([0.0, 1e4, -1e30]))
def test_the_sums_of_any_rows_are_accepted_and_come_as_they_were_sent(rows, offset):
    x, y = (np.array(column) + offset for column in zip(*rows, strict=True))
    sent = Evaluation({}, len(rows), {"pearson": "why"}, metrics.moments(y, x))
    came = details_from_proto("details", details_to_proto(sent), (), len(rows), PRESETS["stsb"])
    assert came == EvaluationDetails(("pearson",), sent.sums)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_the_counts_of_any_rows_are_accepted_and_come_as_they_were_sent(rows):
    targets, predictions = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    sent = Evaluation({"accuracy": 0.5}, len(rows), {}, metrics.class_counts(targets, predictions, 3))
    came = details_from_proto("details", details_to_proto(sent), sent, len(rows), PRESETS["mnli"])
    assert came == EvaluationDetails((), sent.sums)


@pytest.mark.parametrize("which", ["received", "trained"])
@pytest.mark.parametrize("case", IMPOSSIBLE)
async def test_an_impossible_evaluation_is_refused_by_name_and_changes_nothing(case, which, tmp_path):
    task, values, details, text = IMPOSSIBLE[case]
    async with serving(tmp_path, tiny_model(task)) as server, watching(server, a=task) as clients:
        await eventually(lambda: server.federation.status().phase.value == "open")
        fields = {f"{which}_metrics": values, f"{which}_details": details, "num_eval_examples": 10}
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await push(clients["a"], **fields)
        assert refusal.value.code() is CODE.RESOURCE_EXHAUSTED if "64" in text else CODE.INVALID_ARGUMENT
        assert text in refusal.value.details()
        assert refusal.value.details().startswith(f"{which}_")
        await push(clients["a"], received_metrics={"accuracy": 0.5}, num_eval_examples=10)
        event = await clients["a"].until(COMMITTED)
    assert event.report.tasks[0].received_metrics == {"accuracy": 0.5}


async def test_details_need_the_rows_that_they_are_of(tmp_path):
    async with serving(tmp_path, tiny_model("qqp")) as server, watching(server, a="qqp") as clients:
        await eventually(lambda: server.federation.status().phase.value == "open")
        with pytest.raises(grpc.aio.AioRpcError, match="num_eval_examples: expected 1 to 9007199254740992"):
            await push(clients["a"], received_details=named("f1"))


async def test_a_value_that_rounding_takes_over_its_bound_is_the_bound(tmp_path):
    fields = {"received_metrics": {"pearson": 1 + 1e-12}, "num_eval_examples": 10}
    report = await report_of(tmp_path, "stsb", a=fields)
    assert report.received_metrics == {"pearson": 1.0}
