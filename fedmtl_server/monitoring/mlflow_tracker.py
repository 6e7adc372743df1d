"""Reports a run to MLflow: a tracking server, or a store that MLflow's client writes to by itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import urlsplit

# Before the import, and only where the user hasn't chosen: a failure is ours to wait out, not the client's for minutes;
# and what a server of private runs does is reported to nobody else.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from fedmtl_core.errors import ConfigError
from fedmtl_server.monitoring.tracking import MARKS, Outcome, RoundPoint, TrackedRun, Tracker

_Item = TypeVar("_Item")

RUN_TAG = "fedmtl.run_id"
"""The tag by which a server that takes a run up finds it."""

MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's limits for one batch."""

MAX_PARAM_TEXT = 6000
"""MLflow's limit for a parameter's value. Longer ones are cut."""

_STATUS_OF: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker(Tracker):
    """Writes parameters and metrics.

    Args:
        uri: of the server or store; as MLflow's environment variables say if None.
        experiment: made if it isn't there.

    Raises:
        ConfigError: MLflow refuses such a store.
    """

    name = "mlflow"

    def __init__(self, uri: str | None, experiment: str):
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        require_store(uri)
        self._uri = uri
        self._experiment = experiment
        self._client: MlflowClient
        """From `begin` on."""
        self._run_id = ""
        """MLflow's own."""

    def begin(self, run: TrackedRun) -> None:
        self._client = MlflowClient(self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        query = f"tags.`{RUN_TAG}` = '{run.run_id}'"
        runs = self._client.search_runs([experiment], query, max_results=1)
        if runs:
            self._run_id = runs[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: run.run_id, "fedmtl.run_dir": str(run.run_dir.absolute())}
            self._run_id = self._client.create_run(experiment, run_name=run.run_id, tags=tags).info.run_id
        self._note_settings(run, runs[0].data.params if runs else {})

    def _note_settings(self, run: TrackedRun, held: dict[str, str]) -> None:
        """Write the settings as parameters. Those have one value for good: another one that came later is a tag."""
        texts = {key: _text(value)[:MAX_PARAM_TEXT] for key, value in run.settings.items() if value is not None}
        new = [Param(key, text) for key, text in texts.items() if key not in held]
        for batch in _batches(new, MAX_PARAMS):
            self._client.log_batch(self._run_id, params=batch)
        changed = [RunTag(key, text) for key, text in texts.items() if held.get(key, text) != text]
        for tags in _batches(changed, MAX_PARAMS):
            self._client.log_batch(self._run_id, tags=tags)

    def lacks(self, points: Sequence[RoundPoint]) -> Sequence[RoundPoint]:
        marks = (one for name in MARKS for one in self._client.get_metric_history(self._run_id, name))
        held = {(one.step, one.timestamp) for one in marks}
        return [point for point in points if point.mark not in held]

    def round(self, point: RoundPoint) -> None:
        """Write a round. Its time is the round's own, so that MLflow takes a second attempt for the same."""
        metrics = [Metric(name, value, point.ended_at_unix_ms, point.round) for name, value in point.metrics.items()]
        for batch in _batches(metrics, MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=batch)

    def end(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run_id, _STATUS_OF[outcome])


def require_store(uri: str | None) -> None:
    """Check that MLflow takes a store of this kind. Nothing is connected to or written.

    Args:
        uri: of the server or store; as MLflow's environment variables say if None.

    Raises:
        ConfigError: it doesn't, such as files with MLflow 3.17.
    """
    given, uri = uri, uri or mlflow.get_tracking_uri()
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https") or scheme.partition("+")[0] in DATABASE_ENGINES or uri == "databricks":
        return
    is_of_files = scheme in ("", "file")
    try:
        with TemporaryDirectory() as folder:  # to open a store of files makes its folder
            MlflowClient(Path(folder).as_uri() if is_of_files else uri)
    except MlflowException as error:
        what = f"the store of files {uri}" if is_of_files else f"a store with the scheme {scheme!r}"
        origin = "" if given else ", which it takes as none is given"
        reason = f". MLflow says: {' '.join(str(error).split())}" if is_of_files else ""
        raise ConfigError(
            f"tracking.mlflow_uri: MLflow {mlflow.__version__} refuses {what}{origin}; give a database, such as "
            f"sqlite:///mlflow.db, or a tracking server, such as http://127.0.0.1:5000{reason}"
        ) from None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _batches(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
