"""What trackers hold of real runs, read back with their own packages."""

import shutil
import sys
import threading
import time
from dataclasses import replace

import pytest
from fedmtl.v1 import federation_pb2 as pb
from mlflow import MlflowClient
from structlog.testing import capture_logs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, StoreError
from fedmtl_core.runtime.doctor import Level, findings
from fedmtl_server import doctor
from fedmtl_server.federation import Federation
from fedmtl_server.monitoring import tracking
from fedmtl_server.monitoring.mlflow_tracker import RUN_TAG, MlflowTracker
from fedmtl_server.monitoring.tensorboard_tracker import TensorBoardTracker
from fedmtl_server.monitoring.tracking import MAX_WAITING, RoundPoint, TrackedRun, Tracker, Tracking, round_point
from fedmtl_server.server import Server
from tests.server.rounds.test_report import report as a_report
from tests.support import eventually, full_of, reports_of, serving, tiny_model, watching

EVALUATE = pb.ROUND_PURPOSE_EVALUATE


async def take_part(server, clients, rounds):
    """Have two clients take part in some rounds, with metrics and weights that can be checked by hand."""
    federation = server.federation
    for round_ in rounds:
        await eventually(lambda: (federation.status().phase.value, federation.status().round) == ("open", round_))  # noqa: B023
        for number, client in enumerate(clients.values()):
            header, data = await client.get_slice(round=round_)
            fields = {"received_metrics": {"accuracy": round_ / 10}, "num_eval_examples": 5}
            if header.purpose == EVALUATE:
                fields |= {"kind": pb.UPDATE_KIND_METRICS, "components": []}
                data = {}
            else:
                fields |= {"num_examples": 3 - 2 * number, "trained_metrics": {"accuracy": round_ / 5}}
            await client.push(client.update(header, full_of(data, round_), **fields))
        await eventually(lambda: federation.last_report and federation.last_report.round == round_)  # noqa: B023


async def hold_rounds(server, rounds):
    """Hold some rounds of a run with clients that come for them; after its last, see it end."""
    async with watching(server, a="sst2", b="qqp") as clients:
        await take_part(server, clients, rounds)
        if rounds[-1] > server.federation.rules.num_rounds:
            await server.run_task


def tracked(*names, **section):
    return {"tracking": {"report_to": list(names), **section}}


def tensorboard_of(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def scalars(folder, tag):
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in tensorboard_of(folder).Scalars(tag)]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """MLflow takes seconds to make a database; a copy of one takes none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def mlflow_run(uri, experiment="fedmtl"):
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def history_of(client, run, name):
    history = client.get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


async def test_tensorboard_has_every_round_of_a_run_and_its_settings(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp"), num_rounds=2, sections=tracked("tensorboard")) as server:
        await hold_rounds(server, (1, 2, 3))
        run_id = server.federation.run_id
    folder = tmp_path / "tensorboard" / run_id
    assert scalars(folder, "received/sst2/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert scalars(folder, "trained/qqp/accuracy") == [(1, 0.2), (2, 0.4)]
    assert scalars(folder, "encoder_share/sst2") == [(1, 0.75), (2, 0.75)]  # 3 examples to 1
    *reports, evaluation = reports_of(tmp_path)
    assert scalars(folder, "round/bytes_in") == [(one.round, one.bytes_received) for one in reports]
    assert scalars(folder, "round/seconds") == [(one.round, one.duration_s) for one in reports]
    assert scalars(folder, "evaluation/seconds") == [(3, evaluation.duration_s)]
    assert scalars(folder, "round/cohort_size") == [(1, 2), (2, 2)]
    norms = sorted(part.norm for part in reports[1].components[0].contributions)
    assert dict(scalars(folder, "norm/encoder/max"))[2] == norms[1]
    assert dict(scalars(folder, "norm/encoder/median"))[2] == sum(norms) / 2
    assert "norm/head/qqp/max" in tensorboard_of(folder).Tags()["scalars"]
    plugin = tensorboard_of(folder).summary_metadata["_hparams_/session_start_info"]
    assert b"training.num_rounds" in plugin.plugin_data.content


async def test_mlflow_has_every_round_of_a_run_and_its_settings(uri, tmp_path):
    sections = tracked("mlflow", mlflow_uri=uri, mlflow_experiment="ours")
    async with serving(tmp_path / "run", tiny_model("sst2", "qqp"), num_rounds=2, sections=sections) as server:
        await hold_rounds(server, (1, 2, 3))
        run_id = server.federation.run_id
    client, run = mlflow_run(uri, "ours")
    assert (run.info.run_name, run.info.status) == (run_id, "FINISHED")
    assert run.data.params["training.num_rounds"] == "2"
    assert run.data.params["tracking.report_to"] == '["mlflow"]'
    assert history_of(client, run, "received/sst2/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert history_of(client, run, "trained/qqp/accuracy") == [(1, 0.2), (2, 0.4)]
    *reports, _ = reports_of(tmp_path / "run")
    assert history_of(client, run, "round/bytes_out") == [(one.round, one.bytes_sent) for one in reports]
    assert history_of(client, run, "round/aggregation_seconds") == [(one.round, one.aggregation_s) for one in reports]


async def test_a_run_that_is_taken_up_goes_on_where_its_trackers_left_off(uri, tmp_path):
    sections = tracked("tensorboard", "mlflow", mlflow_uri=uri)
    settings = {"num_rounds": 3, "rejoin_grace_s": 30.0, "sections": sections}
    async with serving(tmp_path / "run", tiny_model("sst2", "qqp"), **settings) as server:
        await hold_rounds(server, (1,))
    client, run = mlflow_run(uri)
    assert run.info.status == "KILLED"
    to_nobody = settings | {"sections": {}}
    async with serving(tmp_path / "run", tiny_model("sst2", "qqp"), **to_nobody) as server:
        await hold_rounds(server, (2,))
    async with serving(tmp_path / "run", tiny_model("sst2", "qqp"), **settings) as server:
        await hold_rounds(server, (3, 4))
        run_id = server.federation.run_id
    client, run = mlflow_run(uri)
    assert (run.info.status, run.data.tags[RUN_TAG]) == ("FINISHED", run_id)
    expected = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert history_of(client, run, "received/sst2/accuracy") == expected
    assert scalars(tmp_path / "run" / "tensorboard" / run_id, "received/sst2/accuracy") == expected


def test_the_last_evaluation_has_no_figures_of_training_which_would_all_be_zero():
    evaluated = round_point(replace(a_report(3, sst2=0.5, qqp=0.75), purpose="evaluate", duration_s=2.0))
    assert list(evaluated.metrics.items()) == [
        ("received/sst2/accuracy", 0.5),
        ("received/qqp/accuracy", 0.75),
        ("evaluation/seconds", 2.0),
    ]
    trained = round_point(a_report(3, sst2=0.5, qqp=0.75))
    assert trained.metrics.keys() > {"received/sst2/accuracy", "encoder_share/qqp", "examples/sst2", "round/bytes_in"}


def test_a_metric_that_is_undefined_is_no_point_of_a_curve():
    report = a_report(3, sst2=0.5)
    (task,) = (one for one in report.tasks if one.task == "sst2")
    undefined = replace(task, received_metrics={}, trained_metrics={})
    point = round_point(replace(report, tasks=[undefined]))
    assert not [name for name in point.metrics if name.startswith(("received/", "trained/"))]


def test_the_error_of_adapters_is_a_curve_for_each_component():
    stages = {"adapters": {"inexactness": {"shared": 0.25, "task:sst2": 0.0}}}
    point = round_point(replace(a_report(3, sst2=0.5), stages=stages))
    found = {name: value for name, value in point.metrics.items() if name.startswith("adapters/")}
    assert found == {"adapters/shared/inexactness": 0.25, "adapters/task/sst2/inexactness": 0.0}


def points_to(last: int, ended_at: int = 1_700_000_000_000) -> list[RoundPoint]:
    return [
        RoundPoint(number, ended_at + number, {"received/sst2/accuracy": number / 10, "round/seconds": 1.0})
        for number in range(1, last + 1)
    ]


def a_run(tmp_path, **settings) -> TrackedRun:
    return TrackedRun("a-run", tmp_path, {"training.num_rounds": 3, **settings})


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_what_a_tracker_has_it_does_not_lack(name, uri, tmp_path):
    def begun():
        tracker = TensorBoardTracker() if name == "tensorboard" else MlflowTracker(uri, "e")
        tracker.begin(a_run(tmp_path))
        return tracker

    tracker = begun()
    points = points_to(3)
    assert tracker.lacks(points) == points
    for point in points[:2]:
        tracker.round(point)
    tracker.end("stopped")
    tracker = begun()
    assert tracker.lacks(points) == points[2:]
    tracker.round(points[2])
    evaluation = RoundPoint(4, 1_700_000_000_004, {"received/sst2/accuracy": 0.4, "evaluation/seconds": 1.0})
    assert begun().lacks([*points, evaluation]) == [evaluation]
    tracker.round(evaluation)
    assert begun().lacks([*points, evaluation]) == []


def test_tensorboard_shows_a_round_that_was_cut_off_or_rolled_back_once(tmp_path):
    tracker = TensorBoardTracker()
    tracker.begin(a_run(tmp_path))
    points = points_to(3)
    for point in points[:2]:
        tracker.round(point)
    half = {name: value for name, value in points[2].metrics.items() if name != "round/seconds"}
    tracker.round(replace(points[2], metrics=half))  # as if the server had been killed within it
    tracker = TensorBoardTracker()
    tracker.begin(a_run(tmp_path))
    rest = tracker.lacks(points)
    assert rest == points[2:]
    tracker.round(rest[0])
    assert scalars(tmp_path / "tensorboard" / "a-run", "received/sst2/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]

    again = [points[0], replace(points[1], ended_at_unix_ms=1_800_000_000_000, metrics={"round/seconds": 9.0})]
    tracker = TensorBoardTracker()
    tracker.begin(a_run(tmp_path))
    rest = tracker.lacks(again)
    assert rest == again[1:]
    tracker.round(rest[0])
    assert scalars(tmp_path / "tensorboard" / "a-run", "round/seconds") == [(1, 1.0), (2, 9.0)]


def test_a_setting_that_changed_is_no_failure_for_mlflow(uri, tmp_path):
    for port in (0, 50051):
        tracker = MlflowTracker(uri, "e")
        tracker.begin(a_run(tmp_path, **{"server.port": port}))
        tracker.end("stopped")
    _, run = mlflow_run(uri, "e")
    assert (run.data.params["server.port"], run.data.tags["server.port"]) == ("0", "50051")


def test_no_password_reaches_a_tracker(tmp_path):
    from fedmtl_server.storage.store import without_secrets

    config = Config.model_validate({"store": {"url": "postgresql+psycopg://me:hunter2@db/fedmtl"}})
    run = TrackedRun.of("a-run", tmp_path, without_secrets(config))
    assert run.settings["store.url"] == "postgresql+psycopg://me@db/fedmtl"
    assert "hunter2" not in repr(run)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tracking.report_to=wandb", r"tracking.report_to\[0\]: input should be 'tensorboard' or 'mlflow'"),
        ("tracking.mlflow_uri=http://me:hunter2@host", "give the password in MLFLOW_TRACKING_PASSWORD"),
        ("tracing.endpoint=http://me:hunter2@host", "give the password in OTEL_EXPORTER_OTLP_HEADERS"),
        ("tracing.endpoint=host", "expected a URL such as http://127.0.0.1:4317"),
    ],
)
def test_what_trackers_cannot_be_told_is_refused(override, told):
    with pytest.raises(ConfigError, match=told) as refused:
        configuration.load(None, [override])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(("given", "names"), [("none", []), ("mlflow", ["mlflow"]), ("[tensorboard, mlflow]", None)])
def test_trackers_are_named_as_elsewhere(given, names):
    config = configuration.load(None, [f"tracking.report_to={given}"])
    assert config.tracking.report_to == (["tensorboard", "mlflow"] if names is None else names)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_is_not_installed_is_an_error_that_says_how(name, monkeypatch):
    monkeypatch.setitem(sys.modules, f"fedmtl_server.monitoring.{name}_tracker", None)
    config = Config.model_validate({"tracking": {"report_to": [name]}, "tasks": {"sst2": {}}})
    with pytest.raises(ConfigError, match=rf"{name} can't be used: .*pip install 'fedmtl\[{name}\]'"):
        Server(config, model=tiny_model("sst2"))


@pytest.mark.parametrize("given", ["file://{folder}", "{folder}", None])
def test_a_store_of_files_that_mlflow_refuses_is_told_before_a_run_begins(given, tmp_path, monkeypatch):
    files = tmp_path / "mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{files}")
    uri = given and given.format(folder=files)
    config = Config.model_validate({"tasks": {"sst2": {}}, **tracked("mlflow", mlflow_uri=uri)})
    with pytest.raises(ConfigError) as refused:
        Server(config, tmp_path / "run", tiny_model("sst2"))
    text = str(refused.value)
    assert text.startswith("tracking.mlflow_uri: MLflow ")
    assert f"refuses the store of files {uri or f'file://{files}'}" in text
    assert "give a database, such as sqlite:///mlflow.db, or a tracking server" in text
    assert ("its default as no URI is given" in text) == (given is None)
    assert list(tmp_path.iterdir()) == []
    (finding,) = findings("trackers", lambda: doctor.trackers(config))
    assert (finding.level, finding.found) == (Level.fail, text)


@pytest.mark.parametrize("given", ["mlruns", "sqlite:///mlflow.db", "http://127.0.0.1:9", "postgresql+psycopg://h/db"])
def test_a_store_that_mlflow_takes_is_neither_written_to_nor_called_before_a_run_begins(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = Config.model_validate({"tasks": {"sst2": {}}, **tracked("mlflow", mlflow_uri=given)})
    (finding,) = doctor.trackers(config)
    assert (finding.level, finding.found) == (Level.ok, "rounds are reported to mlflow")
    assert list(tmp_path.iterdir()) == []


def test_a_kind_of_store_that_mlflow_does_not_know_is_told_without_what_is_secret_in_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlit://me:hunter2@host/db")
    with pytest.raises(ConfigError, match="refuses a store with the scheme 'sqlit', its default as no URI") as refused:
        MlflowTracker(None, "e")
    assert "hunter2" not in str(refused.value)


class Unreliable(Tracker):
    """Remembers rounds; fails, or hangs, when told to."""

    name = "unreliable"

    def __init__(self):
        self.rounds = []
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()
        self.outcome = None
        self.num_begun = 0
        self.num_failures = 0

    def begin(self, run):
        self._may_fail()
        self.num_begun += 1

    def lacks(self, points):
        self._may_fail()
        return [point for point in points if point.round not in self.rounds]

    def round(self, point):
        self._may_fail()
        self.rounds.append(point.round)

    def end(self, outcome):
        self._may_fail()
        self.outcome = outcome

    def _may_fail(self):
        self.hangs.wait()
        if self.fails:
            self.num_failures += 1
            raise OSError("no space left on device")


@pytest.fixture
def unreliable(monkeypatch):
    tracker = Unreliable()
    monkeypatch.setattr("fedmtl_server.assembly.trackers_for", lambda config: [tracker])
    monkeypatch.setattr(tracking, "RETRY_S", 0.05)
    return tracker


async def test_a_tracker_that_fails_is_one_warning_and_gets_what_it_missed_when_it_works_again(unreliable, tmp_path):
    with capture_logs() as logs:
        async with (
            serving(tmp_path, tiny_model("sst2", "qqp"), num_rounds=4) as server,
            watching(server, a="sst2", b="qqp") as clients,
        ):
            await take_part(server, clients, (1,))
            await eventually(lambda: unreliable.rounds == [1])
            unreliable.fails = True
            await take_part(server, clients, (2, 3))
            await eventually(lambda: unreliable.num_failures > 3)
            unreliable.fails = False
            await eventually(lambda: unreliable.rounds == [1, 2, 3])
            unreliable.num_failures, unreliable.fails = 0, True
            await take_part(server, clients, (4,))
            await eventually(lambda: unreliable.num_failures > 0)
            unreliable.fails = False
            await take_part(server, clients, (5,))
            await server.run_task
    assert unreliable.rounds == [1, 2, 3, 4, 5]
    assert unreliable.outcome == "finished"
    events = [log["event"] for log in logs if log["event"].startswith("tracker.")]
    assert events == ["tracker.failed", "tracker.works_again"] * 2
    failed = next(log for log in logs if log["event"] == "tracker.failed")
    assert (failed["log_level"], failed["tracker"], failed["reason"]) == (
        "warning",
        "unreliable",
        "no space left on device",
    )


async def test_a_tracker_that_hangs_slows_no_round_and_is_left_at_the_end(unreliable, tmp_path, monkeypatch):
    unreliable.hangs.clear()
    monkeypatch.setattr(Tracking.close, "__defaults__", (0.2,))
    try:
        with capture_logs() as logs:
            async with serving(tmp_path, tiny_model("sst2", "qqp"), num_rounds=2) as server:
                await hold_rounds(server, (1, 2, 3))
                began = time.monotonic()
            assert time.monotonic() - began < 4
    finally:
        unreliable.hangs.set()
    assert [log["event"] for log in logs if log["event"].startswith("tracker.")] == ["tracker.left_behind"]
    assert len(reports_of(tmp_path)) == 3


async def test_what_waits_for_a_slow_tracker_is_bounded_and_nothing_is_lost(tmp_path):
    points = points_to(3 * MAX_WAITING)
    tracker = Unreliable()
    history = []
    told = Tracking([tracker], a_run(tmp_path), lambda: list(history))
    (worker,) = told._workers
    told.start()
    await eventually(lambda: tracker.num_begun == 1)
    tracker.hangs.clear()
    for point in points:
        history.append(point)
        worker.tell(point)
        assert len(worker._waiting) <= MAX_WAITING
    tracker.hangs.set()
    await told.close("finished")
    assert sorted(tracker.rounds) == [point.round for point in points]
    assert len(set(tracker.rounds)) == len(points)


async def test_mlflow_that_is_away_is_a_warning_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sections = tracked("mlflow", mlflow_uri="http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(Tracking.close, "__defaults__", (1.0,))
    with capture_logs() as logs:
        async with serving(tmp_path, tiny_model("sst2", "qqp"), sections=sections) as server:
            await hold_rounds(server, (1, 2))
    assert [log["event"] for log in logs if log["event"].startswith("tracker.")][:1] == ["tracker.failed"]
    assert len(reports_of(tmp_path)) == 2


def test_a_round_that_failed_counts_no_updates(tmp_path):
    failed = round_point(replace(a_report(1, sst2=0.5), failed=True))
    assert failed.metrics["round/updates_counted"] == 0
    assert failed.metrics["round/failed"] == 1
    assert list(failed.metrics)[-1] == "round/seconds"


def test_tensorboard_on_a_full_disk_fails_and_goes_on_in_a_file_of_its_own(tmp_path, monkeypatch):
    tracker = TensorBoardTracker()
    tracker.begin(a_run(tmp_path))
    points = points_to(3)
    tracker.round(points[0])

    class Full:
        """A file that takes half of what it is given, as a disk does that fills up."""

        def __init__(self, file):
            self._file = file

        def write(self, data):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise OSError(28, "No space left on device")

        def close(self):
            self._file.close()
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tracker._writer, "_writer", Full(tracker._writer._writer))
    with pytest.raises(OSError, match="No space left"):
        tracker.round(points[1])
    tracker.begin(a_run(tmp_path))
    rest = tracker.lacks(points)
    assert rest == points[1:]
    for point in rest:
        tracker.round(point)
    tracker.end("finished")
    folder = tmp_path / "tensorboard" / "a-run"
    assert scalars(folder, "received/sst2/accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert len(list(folder.iterdir())) == 2


async def test_a_run_that_fails_is_said_to_have_failed_and_one_that_is_stopped_to_have_been_stopped(
    unreliable, tmp_path, monkeypatch
):
    async def fail(self):
        raise StoreError("the disk is gone")

    async with serving(tmp_path / "stopped", tiny_model("sst2")):
        pass
    assert unreliable.outcome == "stopped"
    monkeypatch.setattr(Federation, "run", fail)
    async with serving(tmp_path / "failed", tiny_model("sst2")) as server:
        with pytest.raises(StoreError):
            await server.run_task
    assert unreliable.outcome == "failed"
