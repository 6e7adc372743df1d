"""Reports a run to MLflow: to a tracking server, or to a store that MLflow's client writes directly."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import urlsplit

# Defaults before the import, if the user hasn't set them. The tracker's thread handles retries, so that MLflow's client
# doesn't retry for minutes. The use of a server with private runs isn't reported to MLflow's makers.
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
"""The tag by which a server that resumes a run finds it."""

MAX_METRICS, MAX_PARAMS = 1000, 100
"""MLflow's limits for one batch."""

MAX_PARAM_TEXT = 6000
"""MLflow's limit for a parameter's value, in characters. Longer values are cut."""

_STATUS_OF: dict[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker(Tracker):
    """Writes parameters and metrics.

    Args:
        uri: the URI of the server or store; from MLflow's environment variables if None.
        experiment: the name of the experiment, which is created if it doesn't exist.

    Raises:
        ConfigError: MLflow refuses this kind of store.
    """

    name = "mlflow"

    def __init__(self, uri: str | None, experiment: str):
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        require_store(uri)
        self._uri = uri
        self._experiment = experiment
        self._client: MlflowClient
        """Set by `begin`."""
        self._run_id = ""
        """MLflow's own id of the run."""

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
        """Write the settings as parameters. A parameter's value can't change, so a changed setting becomes a tag."""
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
        """Write a round with its own time, so that MLflow identifies a second attempt with the first."""
        metrics = [Metric(name, value, point.ended_at_unix_ms, point.round) for name, value in point.metrics.items()]
        for batch in _batches(metrics, MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=batch)

    def end(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run_id, _STATUS_OF[outcome])


def require_store(uri: str | None) -> None:
    """Check that MLflow accepts this kind of store, without a connection and without writing.

    Args:
        uri: the URI of the server or store; from MLflow's environment variables if None.

    Raises:
        ConfigError: it doesn't accept the store, such as files with MLflow 3.17.
    """
    given, uri = uri, uri or mlflow.get_tracking_uri()
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https") or scheme.partition("+")[0] in DATABASE_ENGINES or uri == "databricks":
        return
    is_of_files = scheme in ("", "file")
    try:
        with TemporaryDirectory() as folder:  # opening a store of files creates its folder
            MlflowClient(Path(folder).as_uri() if is_of_files else uri)
    except MlflowException as error:
        what = f"the store of files {uri}" if is_of_files else f"a store with the scheme {scheme!r}"
        origin = "" if given else ", its default as no URI is given"
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
