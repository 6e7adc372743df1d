"""What makes a round's result doubtful, told in its report and the log."""

import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs
from typer.testing import CliRunner

from fedmtl_server.aggregation.values import Contribution
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.monitoring.tracking import round_point
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.warnings import warnings_of
from tests.server.monitoring.test_metrics import scrape
from tests.support import TinyEncoder, full_of, reports_of, serving, tiny_model, watching

COMMITTED, OPENED = pb.ROUND_EVENT_KIND_COMMITTED, pb.ROUND_EVENT_KIND_OPENED


def part(client_id, weight, norm=None, clipped_to=None):
    return Contribution(client_id, "sst2", 1, weight, norm=norm, clipped_to=clipped_to)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([0.91, 0.09], ["c0"]),
        ([0.9, 0.1], []),
        ([1.0], []),
        ([0.455, 0.045], ["c0"]),
        ([0.0, 0.0], []),
        ([0.0, 1.0], ["c1"]),
    ],
)
def test_one_of_several_clients_with_more_than_nine_tenths_is_told_of(weights, told):
    parts = [part(f"c{number}", weight) for number, weight in enumerate(weights)]
    assert [one.client_ids for one in warnings_of({"shared": parts}, {})] == [[one] for one in told]


def test_an_update_of_more_than_a_thousand_times_the_model_s_norm_is_told_of_as_it_counted():
    parts = [part("a", 0.5, 2001.0), part("b", 0.5, 1999.0), part("c", 0.0, 1e9, 10.0)]
    (warning,) = warnings_of({"shared": parts}, {"shared": 2.0})
    assert (warning.kind, warning.scope, warning.client_ids) == ("large_update", "shared", ["a"])
    assert warnings_of({"shared": parts}, {}) == []


async def test_warnings_are_told_wherever_a_round_is(tmp_path):
    model = tiny_model("sst2", "qqp", encoder=TinyEncoder())
    with capture_logs() as logs:
        async with serving(tmp_path, model, num_rounds=2, settings={"metrics_port": 0}) as server:
            async with watching(server, a="sst2", b="qqp") as clients:
                await clients["b"].until(OPENED)
                for name, value, num_examples in (("a", 1.0, 95), ("b", 1e5, 5)):
                    header, data = await clients[name].get_slice()
                    await clients[name].push(
                        clients[name].update(header, full_of(data, value), num_examples=num_examples)
                    )
                report = (await clients["a"].until(COMMITTED)).report
                await clients["a"].until(OPENED, 2)
                status = await clients["a"].stub.GetStatus(pb.GetStatusRequest())
                samples = await scrape(server)
    found = {(pb.RoundWarningKind.Name(one.kind), one.scope, *one.client_ids) for one in report.warnings}
    assert found == {
        ("ROUND_WARNING_KIND_DOMINANT_CLIENT", "shared", "a"),
        ("ROUND_WARNING_KIND_LARGE_UPDATE", "shared", "b"),
        ("ROUND_WARNING_KIND_LARGE_UPDATE", "task:qqp", "b"),
    }
    assert list(status.warnings) == list(report.warnings) == list(status.last_report.warnings)
    assert samples['fedmtl_round_warnings_total{kind="large_update"}'] == 2
    assert samples['fedmtl_round_warnings_total{kind="damaged_model"}'] == 0
    told = [line for line in logs if line["event"] == "round.doubtful"]
    assert [(line["kind"], line["clients"]) for line in told] == [
        ("dominant_client", "a"),
        ("large_update", "b"),
        ("large_update", "b"),
    ]
    (stored,) = reports_of(tmp_path)
    assert RoundReport.from_dict(stored.to_dict()) == stored
    assert round_point(stored).metrics["round/warnings"] == 3
    shown = CliRunner().invoke(runs_app, ["show", str(tmp_path), "--round", "1"], env={"COLUMNS": "300"}).output
    assert "client a is 95.0% of shared, shared by 2 clients" in " ".join(shown.split())
