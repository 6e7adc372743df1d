"""Settings of trackers and OpenTelemetry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from fedmtl_core.config.section import Section, require_no_password

TrackerName = Literal["tensorboard", "mlflow"]


class TrackingConfig(Section):
    """Trackers to which the server reports its rounds. docs/trackers.md lists the reported values."""

    read_by = ("server",)

    report_to: list[TrackerName] = Field(
        [],
        description="Trackers that record every round: `tensorboard`, `mlflow`, a list of trackers, or `none`. Each "
        "needs the extra of its name, such as `fedmtl[mlflow]`.",
    )
    tensorboard_dir: Path | None = Field(
        None,
        description="Folder for TensorBoard, in which each run gets a folder named by its id. If not given, the folder "
        "`tensorboard` in the run's folder.",
    )
    mlflow_uri: str | None = Field(
        None,
        description="Tracking server or database of MLflow, such as `http://127.0.0.1:5000` or `sqlite:///mlflow.db`. "
        "If not given, the environment variable MLFLOW_TRACKING_URI applies.",
    )
    mlflow_experiment: str = Field(
        "fedmtl", min_length=1, description="Name of the MLflow experiment that gets the run."
    )

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, report_to: object) -> object:
        if report_to in ("none", ["none"], None):
            return []
        return [report_to] if isinstance(report_to, str) else report_to

    @field_validator("report_to")
    @classmethod
    def _once(cls, report_to: list[TrackerName]) -> list[TrackerName]:
        return list(dict.fromkeys(report_to))

    @field_validator("mlflow_uri")
    @classmethod
    def _no_password(cls, uri: str | None) -> str | None:
        return (
            None
            if uri is None
            else require_no_password(uri, "MLFLOW_TRACKING_PASSWORD, or the URI in MLFLOW_TRACKING_URI")
        )


class TracingConfig(Section):
    """OpenTelemetry traces of server and clients. The OTEL_… environment variables configure everything else."""

    read_by = ("server", "client")

    enabled: bool = Field(
        False, description="Whether OpenTelemetry spans are recorded and exported; needs the extra `otel`."
    )
    endpoint: str | None = Field(
        None,
        description="Address of the OTLP receiver (gRPC) that gets the spans, such as `http://127.0.0.1:4317`. If not "
        "given, the environment variable OTEL_EXPORTER_OTLP_ENDPOINT applies.",
    )

    @field_validator("endpoint")
    @classmethod
    def _no_password(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.match(r"https?://[^/\s]", endpoint):
            raise ValueError("expected a URL such as http://127.0.0.1:4317")
        return None if endpoint is None else require_no_password(endpoint, "OTEL_EXPORTER_OTLP_HEADERS")
