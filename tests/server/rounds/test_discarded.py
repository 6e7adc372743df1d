"""A component whose new value is discarded is named wherever a round is told of, with reason and contributors."""

from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs
from typer.testing import CliRunner

from fedmtl_server.aggregation.values import DiscardedComponent
from fedmtl_server.commands.runs import runs_app
from fedmtl_server.monitoring.tracking import round_point
from fedmtl_server.rounds.report import RoundReport
from tests.server.monitoring.test_metrics import scrape
from tests.server.playing import model, push
from tests.support import model_bytes, reports_of, serving, watching

COMMITTED, OPENED = pb.ROUND_EVENT_KIND_COMMITTED, pb.ROUND_EVENT_KIND_OPENED
STEP_OUT_OF_RANGE = {"server_optimizer": {"name": "fedavgm", "learning_rate": 1e39}}
EXPECTED = {"shared": ["a", "b"], "task:sst2": ["a"], "task:qqp": ["b"]}


async def test_a_discarded_component_is_named_everywhere_with_reason_and_contributors(tmp_path):
    rules = {"num_rounds": 2, "sections": STEP_OUT_OF_RANGE, "settings": {"metrics_port": 0}}
    with capture_logs() as logs:
        async with serving(tmp_path, model(), min_clients=1, **rules) as server:
            before = model_bytes(server.federation.model)
            async with watching(server, a="sst2", b="qqp") as clients:
                for client in clients.values():
                    await push(client, 1)
                event = await clients["a"].until(COMMITTED, 1)
                await clients["a"].until(OPENED, 2)
                status = await clients["a"].stub.GetStatus(pb.GetStatusRequest())
                samples = await scrape(server)
            assert model_bytes(server.federation.model) == before
    for report in (event.report, status.last_report):
        assert {one.scope: list(one.client_ids) for one in report.discarded} == EXPECTED
        assert report.discarded[0].reason.startswith("its server_optimizer's step isn't finite: shared: ")
        assert not report.components
    for scope in EXPECTED:
        assert samples[f'fedmtl_components_discarded_total{{scope="{scope}"}}'] == 1
    (report,) = reports_of(tmp_path)
    assert {one.scope: list(one.contributors) for one in report.discarded} == EXPECTED
    assert round_point(report).metrics["round/components_discarded"] == 3
    told = {line["scope"]: line["contributors"] for line in logs if line["event"] == "component.discarded"}
    assert told == {scope: ", ".join(names) for scope, names in EXPECTED.items()}
    (line,) = [line for line in logs if line["event"] == "round.committed"]
    assert line["discarded"] == list(EXPECTED)

    whole = CliRunner().invoke(runs_app, ["show", str(tmp_path)], env={"COLUMNS": "200"}).output
    assert "committed, 3 components discarded" in whole
    shown = CliRunner().invoke(runs_app, ["show", str(tmp_path), "--round", "1"], env={"COLUMNS": "200"}).output
    assert "discarded" in shown
    assert "shared: its server_optimizer's step isn't finite" in shown
    assert "(updates of a, b)" in shown


def test_a_report_remembers_what_was_discarded_and_an_older_one_says_nothing_of_it():
    report = RoundReport(
        1, "train", 0, 1.0, [], [], [], [], 0, 0, 0, [], discarded=[DiscardedComponent("shared", "why", ["a"])]
    )
    values = report.to_dict()
    assert RoundReport.from_dict(values) == report
    del values["discarded"]
    assert RoundReport.from_dict(values).discarded == []
