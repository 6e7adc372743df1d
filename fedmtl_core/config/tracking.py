"""Who is told of a run: trackers, and OpenTelemetry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from fedmtl_core.config.section import Section, require_no_password

TrackerName = Literal["tensorboard", "mlflow"]


class TrackingConfig(Section):
    """Where the server reports its rounds to. docs/trackers.md says what is there."""

    report_to: list[TrackerName] = Field(
        [],
        description="Trackers that are told of every round: `tensorboard`, `mlflow`, a list of them, or `none`; each "
        "is an extra of its name",
    )
    tensorboard_dir: Path | None = Field(
        None, description="Folder that gets one of each run's id; `tensorboard` in the run's folder if not given"
    )
    mlflow_uri: str | None = Field(
        None,
        description="MLflow's tracking server or database, such as `http://127.0.0.1:5000` or `sqlite:///mlflow.db`; "
        "if not given, as MLFLOW_TRACKING_URI says",
    )
    mlflow_experiment: str = Field("fedmtl", min_length=1, description="MLflow's experiment that the run is in")

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
    """OpenTelemetry's traces, on both sides. Its own OTEL_… variables say what isn't said here."""

    enabled: bool = Field(False, description="Whether spans are recorded and exported; takes the extra `otel`")
    endpoint: str | None = Field(
        None,
        description="Where they go, by OTLP over gRPC, such as `http://127.0.0.1:4317`; if not given, as "
        "OTEL_EXPORTER_OTLP_ENDPOINT says",
    )

    @field_validator("endpoint")
    @classmethod
    def _no_password(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not re.match(r"https?://[^/\s]", endpoint):
            raise ValueError("expected a URL such as http://127.0.0.1:4317")
        return None if endpoint is None else require_no_password(endpoint, "OTEL_EXPORTER_OTLP_HEADERS")
