"""The configuration: one YAML file, read by the server, by clients and by `fedmtl-local` alike.

Every key has a default, an unknown key is an error that names it, and `reference()` is the documentation.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fedmtl_core import plugins
from fedmtl_core.errors import ConfigError, InvalidRequestError
from fedmtl_core.formats import DEFAULT_DENSITY, ENCODINGS, Compression, Encoding
from fedmtl_core.identifiers import require_identifier
from fedmtl_core.plan import LocalOptimizer, Pooling, TrainingPlan
from fedmtl_core.sharing import NAMED_PARTS, SharingRules, movable_parts, require_rules
from fedmtl_core.tasks import METRICS, METRICS_OF, PRESETS, TaskSpec, traits_of

DEFAULT_MODEL = "prajjwal1/bert-tiny"
WHOLE = "1/1"
"""The shard that is all rows."""
MAX_LABELS = 10_000

MissingQuorum = Literal["commit", "extend", "fail"]
CohortSelection = Literal["all", "fraction", "over_select"]
Durability = Literal["memory", "process", "power"]
NormAction = Literal["none", "report", "clip", "refuse"]
Normalization = Literal["none", "fednova"]
ClientSelection = Literal["server", "round_robin", "random"]
TrackerName = Literal["tensorboard", "mlflow"]
TASK_SELECTIONS = ("round_robin", "loss", "quorum")
OPTIMIZERS = ("fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
TASK_WEIGHTINGS = (
    "examples",
    "uniform",
    "fixed",
    "temperature",
    "uncertainty",
    "gradnorm",
    "pcgrad",
    "cagrad",
    "famo",
)

_FREE_TO_CHANGE = re.compile(
    r"server\.|store\.|security\.|limits\.|tracking\.|tracing\.|client\.|clients$|training\.device$"
    r"|tasks\.[^.]+\.data(\.|$)"
    r"|rounds\.(deadline_s|quorum_timeout_s|rejoin_grace_s|transfer_timeout_s|report_interval_s|max_extensions)$"
    r"|tasks\.[^.]+\.deadline_s$"
)
"""Settings that a run may be taken up with another value of: they don't change what it computes."""
_QUORUM = re.compile(r"tasks\.[^.]+\.min_clients$")
"""As free, unless cohorts are drawn: so many of a task's clients are drawn at least."""

_SECRET = "secret"  # nosec B105
"""The type of an error whose value isn't shown."""
_RENAMED = {"batch_size": "per_device_train_batch_size"}
"""Keys that other names are given for, in the hints of errors alone."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 100, 100

_UINT32 = 2**32 - 1  # what the contract can carry
_CHUNK_BYTES = 2 * 2**20  # the most data in a chunk, likewise


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """The shared encoder and what sits on it."""

    server_model: str = Field(
        DEFAULT_MODEL, description="Encoder: a hub name, a local folder, `python:PACKAGE/FOLDER`, or `builtin:toy`"
    )
    client_model: str | None = Field(
        None, description="Where clients take architecture and tokenizer from; `server_model` if not given"
    )
    num_hidden_layers: int | None = Field(None, ge=1, le=_UINT32, description="Keep only the encoder's first layers")
    pooling: Pooling = Field(
        "cls", description="What a head sees: `cls`, the pooled first token, or `mean`, all tokens"
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before each head")
    random_init: bool = Field(False, description="Start from random values, where a folder has no weights")


class TrainingConfig(_Section):
    """How the run goes, and what clients do in a round; it reaches them in the slice's header.

    What `transformers.TrainingArguments` has with the same meaning has its name. `local_epochs` isn't its
    `num_train_epochs`, which are those of a whole run.
    """

    num_rounds: int = Field(10, ge=1, le=_UINT32, description="Rounds of training")
    local_epochs: int = Field(3, ge=1, le=_UINT32, description="Passes over a client's rows in one round")
    head_epochs: int = Field(
        0,
        ge=0,
        le=_UINT32,
        description="Passes over them before that with the head alone, which then stays as it is in `local_epochs` "
        "(FedRep); 0 to train all together",
    )
    optimizer: LocalOptimizer = Field(
        "adamw", description="What clients take their steps with: `adamw`, or `sgd`, plain and without momentum"
    )
    control_variates: bool = Field(
        False,
        description="SCAFFOLD: clients correct their gradients by how theirs have differed from all clients'; with "
        "`optimizer: sgd`",
    )
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of the clients' optimiser")
    per_device_train_batch_size: int = Field(32, ge=1, le=_UINT32, description="Rows in one optimiser step")
    weight_decay: float = Field(0.01, ge=0, description="The clients' optimiser's weight decay")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the run's steps with a rising learning rate")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 for no clipping")
    proximal_mu: float = Field(
        0.0,
        ge=0,
        description="FedProx's mu: the loss has half the squared distance to the received model in it, times this",
    )
    max_length: int = Field(128, ge=8, le=_UINT32, description="Longest input in tokens")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of everything random")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; a client's own setting")
    update: Literal["parameters", "delta"] = Field("parameters", description="What clients send back")
    trainer: str | None = Field(
        None, description="`module:Name`, a trainer of your own, a subclass of `fedmtl_client.trainer.Trainer`"
    )
    trainer_options: dict[str, Any] | None = Field(None, description="What it is made with, besides")

    @field_validator("trainer")
    @classmethod
    def _names_a_class(cls, trainer: str | None) -> str | None:
        return trainer and _reference(trainer)

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device):
            raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
        return device


class RoundsConfig(_Section):
    """When a round opens and when it closes."""

    deadline_s: float = Field(
        600.0,
        gt=0,
        description="A round closes this long after it opened; an upload in progress may take it to twice that",
    )
    quorum_timeout_s: float = Field(
        60.0, gt=0, description="After the first round, wait this long for a quorum, then go on with who is there"
    )
    rejoin_grace_s: float = Field(
        10.0, ge=0, description="A client that disconnects is waited for this long before the round goes on without it"
    )
    on_missing_quorum: MissingQuorum = Field(
        "commit",
        description="A round that lacks a task's quorum of updates at its deadline: `commit` what is there, `extend` "
        "the deadline by its own length, or `fail` the round",
    )
    max_extensions: int = Field(3, ge=1, description="How often `extend` does; then what is there is committed")
    cohort: CohortSelection = Field(
        "all",
        description="Who takes part: `all` clients, a random `fraction` of each task's, or with `over_select` "
        "`cohort_size + cohort_extra` of each task's, of which `cohort_size` updates are enough",
    )
    cohort_fraction: float = Field(0.5, gt=0, le=1, description="For `fraction`: its share")
    cohort_size: int = Field(1, ge=1, description="For `over_select`: updates of each task that are enough")
    cohort_extra: int = Field(0, ge=0, description="For `over_select`: clients of each task that are asked besides")
    task_selection: str = Field(
        "round_robin",
        description="Which task a client has in a round that has several and leaves it to the server: "
        f"{', '.join(TASK_SELECTIONS)}, or a class of your own as `module:Name`; each keeps quorums first. "
        "docs/task-selection.md says how",
    )
    mode: Literal["sync", "async"] = Field(
        "sync", description="`sync`: all start from the round's model; `async`: a round is so many updates (FedBuff)"
    )
    buffer_size: int = Field(10, ge=1, description="For `async`: updates, at most one of each client, in a commit")
    staleness_exponent: float = Field(
        0.5, ge=0, description="For `async`: an update that started s commits ago counts (1 + s)^-a; this is a"
    )
    max_staleness: int = Field(10, ge=0, description="For `async`: updates that started more commits ago are refused")
    transfer_timeout_s: float = Field(30.0, gt=0, description="A transfer without progress for this long is given up")
    report_interval_s: float = Field(10.0, gt=0, description="How often the log says what a round is waiting for")

    @field_validator("task_selection")
    @classmethod
    def _known_selection(cls, name: str) -> str:
        return _known_or_plugin(name, TASK_SELECTIONS)


class NormsConfig(_Section):
    """What becomes of updates by how far they move the model."""

    action: NormAction = Field(
        "report",
        description="The L2 norm of what an update changes is measured for each component, to `report` it, to `clip` "
        "(scale down) what is beyond a bound before it is averaged, or to `refuse` such an update; or it isn't: `none`",
    )
    bound: float | None = Field(None, gt=0, description="For `clip` and `refuse`: the largest norm of a component")
    median_factor: float | None = Field(
        None,
        gt=1,
        description="Likewise, as so many times the median of the norms that counted in recent rounds; of both the "
        "smaller one holds",
    )
    window: int = Field(5, ge=1, description="For `median_factor`: over so many rounds, the last that changed it")

    @model_validator(mode="after")
    def _has_its_bound(self) -> NormsConfig:
        given = [name for name in ("bound", "median_factor") if getattr(self, name) is not None]
        bounded = self.action in ("clip", "refuse")
        if bounded and not given:
            raise ValueError(f"`action: {self.action}` needs `bound` or `median_factor`")
        if given and not bounded:
            raise ValueError(f"`{given[0]}` needs `action: clip` or `action: refuse`, got {self.action!r}")
        return self


class RobustnessConfig(_Section):
    """What protects the model from updates that would harm it."""

    norms: NormsConfig = NormsConfig()


class ServerOptimizerConfig(_Section):
    """How the model moves, once it is known where the updates' average lies. docs/aggregation.md has the formulas."""

    name: str = Field(
        "fedavg",
        description=f"What the average is to the model: {', '.join(OPTIMIZERS)}, or a class of your own as "
        "`module:Name`; with `fedavg` the average is the model",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="The server's; if not given, 1 for `fedavgm` and 0.01 for the others"
    )
    beta_1: float | None = Field(
        None, ge=0, lt=1, description="Momentum; if not given, 0 for `fedadagrad` and 0.9 for the others"
    )
    beta_2: float = Field(0.99, ge=0, lt=1, description="For `fedadam` and `fedyogi`: decay of the second moment")
    tau: float = Field(
        1e-3, gt=0, description="For all but `fedavgm`: degree of adaptivity, added to the second moment's root"
    )

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_or_plugin(name, OPTIMIZERS)


class AggregationConfig(_Section):
    """What each task counts for in the encoder, and each client's steps. docs/aggregation.md has the formulas."""

    task_weighting: str = Field(
        "examples",
        description=f"Each task's weight in the encoder's average: {', '.join(TASK_WEIGHTINGS)}, or a class of your "
        "own as `module:Name`; with `examples` a task weighs what its clients have trained on",
    )
    task_weights: dict[str, float] | None = Field(None, description="For `fixed`: every task's weight")
    scaling: float = Field(
        1.0,
        gt=0,
        description="What the tasks' weighted deltas are multiplied with before the encoder moves by them, but with no "
        "more than the number of tasks that share in the round: then each moves it as far as it would alone",
    )
    temperature: float = Field(
        2.0, gt=0, description="For `temperature`: its T; 1 is `examples`, and the larger, the closer to `uniform`"
    )
    conflict_aversion: float = Field(
        0.5, ge=0, lt=1, description="For `cagrad`: its c, how far from the tasks' mean it may go; 0 is the mean"
    )
    asymmetry: float = Field(1.5, ge=0, description="For `gradnorm`: its alpha, how much slow tasks are favoured")
    learning_rate: float = Field(
        0.025, gt=0, description="For `uncertainty`, `gradnorm` and `famo`: how fast the weights follow the losses"
    )
    decay: float = Field(0.001, ge=0, description="For `famo`: its gamma, how fast the weights forget")
    normalization: Normalization = Field(
        "none",
        description="With `fednova` deltas are averaged by optimiser step, so that clients who take more of them "
        "don't pull the model to themselves",
    )

    @field_validator("task_weighting")
    @classmethod
    def _known(cls, name: str) -> str:
        return _known_or_plugin(name, TASK_WEIGHTINGS)

    @model_validator(mode="after")
    def _has_its_weights(self) -> AggregationConfig:
        fixed = self.task_weighting == "fixed"
        if fixed and not self.task_weights:
            raise ValueError("`task_weighting: fixed` needs `task_weights`, a weight for every task")
        if self.task_weights and not fixed:
            raise ValueError(f"`task_weights` needs `task_weighting: fixed`, got {self.task_weighting!r}")
        for task, weight in (self.task_weights or {}).items():
            if not weight > 0:
                raise ValueError(f"`task_weights`: expected a weight above 0 for {task!r}, got {weight}")
        return self


class AdaptiveConfig(_Section):
    """Whether, and how, what tasks share changes while they train."""

    policy: str | None = Field(
        None,
        description="What says when layers change hands: `cosine`, how alike the tasks' updates are, or a "
        "class of your own as `module:Name`; never if not given",
    )
    split_below: float = Field(
        -0.2, ge=-1, le=1, description="For `cosine`: tasks part where the cosine of their updates is below this"
    )
    merge_above: float = Field(
        0.1, ge=-1, le=1, description="Likewise: and come together again where it is no longer below this"
    )
    patience: int = Field(3, ge=1, description="Likewise: after so many rounds in a row that say the same")
    smoothing: float = Field(
        0.5, ge=0, lt=1, description="Likewise: what the cosine of the rounds before counts for, 0 for nothing"
    )
    max_parameters: float = Field(
        2.0, ge=1, description="The most parameters of encoders that the server keeps, as a multiple of one encoder's"
    )
    layers: list[str] | None = Field(
        None, description="What may move, as in `sharing.layers`; if not given, all that isn't named there"
    )

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str | None) -> str | None:
        return None if policy is None else _known_or_plugin(policy, ["cosine"])

    @field_validator("layers", mode="before")
    @classmethod
    def _text(cls, layers: Any) -> Any:
        """YAML has a layer's number as a number."""
        return [str(one) for one in layers] if isinstance(layers, list) else layers

    @model_validator(mode="after")
    def _apart(self) -> AdaptiveConfig:
        if self.split_below >= self.merge_above:
            raise ValueError(
                f"`merge_above` has to be above `split_below`, or layers would move to and fro; got {self.merge_above} "
                f"and {self.split_below}"
            )
        return self


class SharingConfig(_Section):
    """Which tasks share which part of the model. docs/sharing.md says what is worth what."""

    groups: dict[str, list[str]] = Field(
        {}, description="Groups of tasks by name: each a list of tasks and of other groups; a task or group is in one"
    )
    layers: dict[str, str] = Field(
        {},
        description=f"Who shares a part of the encoder, by a layer's number, a range such as `2-5`, or "
        f"{', '.join(f'`{part}`' for part in NAMED_PARTS)}: `shared`, all tasks; `group`, those of the same innermost "
        "group; a group's name, all within it; `task`, each for itself; `local`, each client. What isn't named, all do",
    )
    head: Literal["task", "local"] = Field(
        "task", description="Who shares a head: the clients of its `task`; with `local` each client keeps its own"
    )
    norms: str | None = Field(
        None, description="Who shares the encoder's normalisation layers, if not those who share what they are in"
    )
    adaptive: AdaptiveConfig = AdaptiveConfig()

    @field_validator("layers", mode="before")
    @classmethod
    def _text_keys(cls, layers: Any) -> Any:
        """YAML has a layer's number as a number."""
        return {str(key): level for key, level in layers.items()} if isinstance(layers, dict) else layers

    @field_validator("groups")
    @classmethod
    def _named_groups(cls, groups: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in groups:
            _identifier(name, "a group's name")
        return groups

    def rules(self) -> SharingRules:
        """What the table of scopes is made by."""
        return SharingRules(self.groups, self.layers, self.head, self.norms)


class ServerConfig(_Section):
    """Where the server listens and what it keeps."""

    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 for any free one")
    runs_dir: Path = Field(Path("runs"), description="Each run gets a folder of its own in here")
    staging_memory_mb: int = Field(
        64,
        ge=0,
        description="Updates are staged in this many MiB of memory, two of them in any case; others wait, or lie in "
        "files in the run's folder",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of `/metrics` for Prometheus, 0 for any free one; no such port if not given",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="Address that `/metrics` listens on. It is plain HTTP, and asks nobody who they are"
    )


class TrackingConfig(_Section):
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
        description="MLflow's tracking server or store, such as `http://127.0.0.1:5000` or `sqlite:///mlflow.db`; if "
        "not given, as MLFLOW_TRACKING_URI says",
    )
    mlflow_experiment: str = Field("fedmtl", min_length=1, description="MLflow's experiment that the run is in")

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_none(cls, report_to: Any) -> Any:
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
            None if uri is None else _without_secret(uri, "MLFLOW_TRACKING_PASSWORD, or the URI in MLFLOW_TRACKING_URI")
        )


class TracingConfig(_Section):
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
        return None if endpoint is None else _without_secret(endpoint, "OTEL_EXPORTER_OTLP_HEADERS")


class StoreConfig(_Section):
    """What survives."""

    url: str | None = Field(
        None,
        description="Database of the run's history, such as `postgresql+psycopg://user@host/name`, its password best "
        "in `PGPASSWORD` or `~/.pgpass`; if not given, SQLite in the run's folder",
    )
    durability: Durability = Field(
        "power",
        description="What acknowledged updates and commits survive: the end of the `process`, a cut of `power`, or "
        "with `memory` neither: updates stay in memory, and the disk follows a round later",
    )
    keep_checkpoints: int = Field(3, ge=1, description="Checkpoints kept, newest first, besides each task's best")


class TlsConfig(_Section):
    """The server's side of TLS; a client's is in the section `client`. All files are PEM."""

    certificate: Path | None = Field(
        None, description="The server's certificate, followed by those between it and its CA; with `key`, TLS is on"
    )
    key: Path | None = Field(None, description="Its private key. Renewed files are taken up without a restart")
    client_ca: Path | None = Field(
        None, description="The CA of the clients' certificates; with it, nobody connects without one (mutual TLS)"
    )

    @model_validator(mode="after")
    def _pair(self) -> TlsConfig:
        if bool(self.certificate) != bool(self.key):
            raise ValueError(
                "`certificate` and `key` go together, got only " + ("a certificate" if self.certificate else "a key")
            )
        if self.client_ca and not self.certificate:
            raise ValueError("`client_ca` needs the server's own `certificate` and `key`")
        return self


class SecurityConfig(_Section):
    """Who may take part. docs/security.md says what it protects from."""

    tls: TlsConfig = TlsConfig()
    authentication: bool | None = Field(
        None,
        description="Whether callers must be clients that `fedmtl-server clients` knows; if not given, they must with "
        "`tls.client_ca` and on any address but loopback, unless `insecure`",
    )
    insecure: bool = Field(
        False, description="Serve, or connect to, other addresses than loopback without TLS; `--insecure`"
    )
    refresh_s: float = Field(
        1.0, gt=0, le=60, description="How often the server looks for clients that were added or revoked"
    )
    open_health: bool = Field(True, description="Whether gRPC's health check answers callers that nobody knows")
    open_reflection: bool = Field(False, description="Whether gRPC's reflection does")


class LimitsConfig(_Section):
    """What callers may have. docs/security.md says what becomes of those who want more."""

    message_bytes: int = Field(
        _CHUNK_BYTES + 128 * 1024,
        ge=_CHUNK_BYTES + 64 * 1024,
        lt=2**31,
        description="The largest message the server takes; it has to hold a chunk",
    )
    window_bytes: int = Field(
        65_536,
        ge=65_536,
        lt=2**31,
        description="What the server takes of a call that it doesn't read yet; more is faster over long distances",
    )
    request_bytes: int = Field(2**20, ge=1024, description="The largest request, or header of an update")
    metadata_bytes: int = Field(8192, ge=1024, lt=2**31, description="The most a call's gRPC metadata may take")
    connections: int = Field(2048, ge=1, lt=2**31, description="Connections in all; further ones are closed at once")
    handshake_s: float = Field(10.0, gt=0, le=86_400, description="A connection has so long to begin as gRPC's do")
    connection_idle_s: float = Field(
        300.0, gt=0, le=86_400, description="A connection without a call is closed after so long"
    )
    streams_per_connection: int = Field(
        100, ge=4, lt=2**31, description="Calls at once on one connection; a client's further ones wait on its own side"
    )
    requests_per_s: float = Field(20.0, gt=0, description="Calls a second for each client")
    request_burst: int = Field(200, ge=1, description="Calls at once, after a quiet time")
    refusals: int = Field(
        100, ge=1, description="Refusals after which a connection is closed; they are forgotten at `requests_per_s`"
    )
    request_s: float = Field(10.0, gt=0, description="A call's request, or an update's header, comes within so long")
    half_open_calls: int = Field(32, ge=1, description="Calls in all whose request isn't there yet")
    uploads: int = Field(1024, ge=1, description="Uploads at once in all")
    uploads_per_client: int = Field(4, ge=1, description="Uploads at once for each client")
    upload_s: float = Field(1200.0, gt=0, description="The longest one upload may take")
    downloads: int = Field(
        64, ge=1, description="Downloads at once in all; others wait. One takes 2 MiB while its client is slow"
    )
    downloads_per_client: int = Field(4, ge=1, description="Downloads at once for each client")
    stall_s: float = Field(
        2.0, gt=0, description="A download that nobody reads for so long gives way to one that waits"
    )
    watches: int = Field(4096, ge=1, description="Clients' event streams at once in all")
    watches_per_client: int = Field(4, ge=1, description="Event streams at once for each client, or observer")
    observers: int = Field(64, ge=1, description="Event streams of observers at once in all")
    other_calls: int = Field(64, ge=1, description="Other calls at once in all")

    @model_validator(mode="after")
    def _fits(self) -> LimitsConfig:
        if self.request_bytes > self.message_bytes:
            raise ValueError(f"`request_bytes` can't be more than `message_bytes` ({self.message_bytes})")
        return self


class EarlyStoppingConfig(_Section):
    """When training ends before its last round."""

    patience: int | None = Field(
        None,
        ge=1,
        description="Stop when no watched task's main metric got better for so many rounds; never if not given",
    )
    threshold: float = Field(0.0, ge=0, description="By how much it has to")
    watch: list[str] | None = Field(None, description="The watched tasks; all if not given")


class ClientConfig(_Section):
    """How a client behaves on its own machine."""

    tasks: list[str] | None = Field(
        None, description="The tasks it has rows for, where neither `--task` nor its entry in `clients` says"
    )
    selection: ClientSelection = Field(
        "server",
        description="With several tasks, who says which it has in a round: the `server` (`rounds.task_selection`), or "
        "the client itself, one after the other (`round_robin`) or at `random`",
    )
    reconnect_s: float = Field(300.0, ge=0, description="How long to try to reach a server that is away")
    num_threads: int | None = Field(None, ge=1, description="Threads PyTorch may use; its own choice if not given")
    state_dir: Path | None = Field(
        None,
        description="Folder for the parameters that a client keeps for itself (`sharing`), so that they outlast it; in "
        "memory alone if not given",
    )
    token_file: Path | None = Field(
        None, description="File with this client's token; the environment variable FEDMTL_TOKEN if not given"
    )
    tls_ca: Path | None = Field(None, description="The CA of the server's certificate, a PEM file; with it, TLS is on")
    tls_certificate: Path | None = Field(None, description="This client's certificate, for mutual TLS")
    tls_key: Path | None = Field(None, description="Its private key")

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[str] | None) -> list[str] | None:
        return None if tasks is None else _each_task_once(tasks)


class WireConfig(_Section):
    """How tensors travel; a client's own choice, uploads and downloads apart. docs/wire.md has the encodings."""

    upload: Encoding = Field("float32", description=f"Encoding of updates: {', '.join(ENCODINGS)}")
    download: Encoding = Field("float32", description="Encoding of slices, likewise")
    compression: Compression = Field("none", description="`none`, or `zstd` for the chunks that it shrinks")
    topk_density: float = Field(
        DEFAULT_DENSITY,
        gt=0,
        le=0.5,
        description="Share of the elements that `topk` keeps, in what this side sends",
    )


class DataConfig(_Section):
    """Where a task's rows are: `builtin`, `hub` (with `subset`), `plugin`, or the files `train` and `validation`."""

    builtin: str | None = Field(None, description="A generated task of the toy language: `sst2`, `qqp` or `stsb`")
    plugin: str | None = Field(None, description="`module:Name`, a class of your own that gives the rows")
    options: dict[str, Any] | None = Field(None, description="What that class is made with")
    hub: str | None = Field(None, description="A data set on the hub")
    subset: str | None = Field(None, description="Its configuration there")
    train: str | None = Field(None, description="TSV, CSV, JSONL or Parquet file; with `hub`, the split's name")
    validation: str | None = Field(None, description="Likewise, for evaluation")

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if self.builtin and (self.hub or self.subset or self.train or self.validation):
            raise ValueError("`builtin` takes no other key beside it")
        if self.plugin and (self.builtin or self.hub or self.subset or self.train or self.validation):
            raise ValueError("`plugin` takes no other key but `options` beside it")
        if self.options and not self.plugin:
            raise ValueError("`options` needs `plugin`")
        if self.subset and not self.hub:
            raise ValueError("`subset` needs `hub`")
        if not (self.builtin or self.hub or self.plugin or (self.train and self.validation)):
            raise ValueError("expected `builtin`, or `hub`, or `plugin`, or both files `train` and `validation`")
        return self

    @field_validator("plugin")
    @classmethod
    def _names_a_class(cls, plugin: str | None) -> str | None:
        return plugin and _reference(plugin)


class AuxiliaryConfig(_Section):
    """A task that shapes the encoder and is waited for by nobody. docs/auxiliary.md says when that is wanted."""

    weight: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="With it the task is auxiliary (`auxiliary: true` for the defaults): it counts neither for quorum "
        "nor for early stopping, and in the encoder's average an example of it counts so many times",
    )
    decay: float = Field(1.0, gt=0, le=1, description="From round to round the weight is multiplied with it")


class TaskConfig(_Section):
    """One task. For a GLUE task (sst2, qqp, stsb, mrpc, cola, rte, qnli, mnli) every key is optional."""

    type: str | None = Field(
        None,
        description="Kind of problem: `classification`, `regression`, `masked_lm` (words of a text, no labels), or "
        "`module:Name`, a class of your own, which the server and the task's clients need alike",
    )
    labels: list[str] | int | None = Field(None, description="Names of the classes by number, or how many there are")
    text_columns: list[str] | None = Field(None, description="One column of text, or two that are read as a pair")
    label_column: str | None = Field(None, description="Column of the label; none for `masked_lm`")
    metrics: list[str] | None = Field(
        None, description=f"Of {', '.join(METRICS)}; the first is the main one. f1 is for two labels"
    )
    min_clients: int = Field(1, ge=0, description="Clients of this task that a round needs; 0 if it may have none")
    deadline_s: float | None = Field(None, gt=0, description="Its clients' deadline, instead of `rounds.deadline_s`")
    train_samples: int | None = Field(None, ge=1, lt=2**63, description="Rows a client trains on, at most")
    val_samples: int | None = Field(None, ge=1, lt=2**63, description="Rows a client evaluates on, at most")
    data: DataConfig | None = Field(None, description="Where the rows are; for a GLUE task the hub if not given")
    auxiliary: AuxiliaryConfig | None = None

    @field_validator("auxiliary", mode="before")
    @classmethod
    def _yes_or_no(cls, auxiliary: Any) -> Any:
        if isinstance(auxiliary, bool):
            return {} if auxiliary else None
        if auxiliary is not None and not isinstance(auxiliary, (dict, AuxiliaryConfig)):
            raise ValueError("expected true, false, or what it counts for, such as {weight: 0.5, decay: 0.9}")
        return auxiliary

    @model_validator(mode="before")
    @classmethod
    def _needed_by_no_round(cls, values: Any) -> Any:
        """An auxiliary task's quorum is 0, however it is given."""
        if not isinstance(values, dict) or values.get("auxiliary") in (None, False):
            return values
        if values.get("min_clients", 0) != 0:
            raise ValueError(
                "`min_clients` and `auxiliary` don't go together: no round needs an auxiliary task's clients, "
                f"got min_clients: {_shown(values['min_clients'])}"
            )
        return values | {"min_clients": 0}

    @field_validator("type")
    @classmethod
    def _known_type(cls, type_: str | None) -> str | None:
        if type_ is not None and type_ not in METRICS_OF:
            return _reference(type_, f"{', '.join(METRICS_OF)}, or a class of your own as {plugins.FORM}")
        return type_

    @field_validator("labels", mode="before")
    @classmethod
    def _named_labels(cls, labels: Any) -> Any:
        if isinstance(labels, list):
            for label in labels:
                if not isinstance(label, str):
                    raise ValueError(
                        f"expected names; put quotes around {str(label).lower()}, which YAML takes for none"
                    )
        elif not isinstance(labels, int) or isinstance(labels, bool) or not 2 <= labels <= MAX_LABELS:
            raise ValueError(f"expected a list of names, or a number from 2 to {MAX_LABELS}")
        return labels

    def spec(self, name: str) -> TaskSpec:
        """The task this section describes.

        Raises:
            ConfigError: something is missing or doesn't fit.
        """
        preset = PRESETS.get(name)
        is_labelled = self.type is None or traits_of(name, self.type).is_labelled
        if preset is None:
            for key in ("type", "text_columns", *(["label_column"] if is_labelled else [])):
                if getattr(self, key) is None:
                    raise ConfigError(
                        f"tasks.{name}.{key}: needed, since {name!r} is not one of the GLUE tasks {', '.join(PRESETS)}"
                    )
        labels = tuple(map(str, range(self.labels))) if isinstance(self.labels, int) else self.labels
        kind = self.type or (preset.type if preset else "classification")
        same_kind = preset is not None and preset.type == kind and labels is None
        return TaskSpec(
            name=name,
            type=kind,
            text_columns=tuple(self.text_columns or (preset.text_columns if preset else ())),
            label_column=self.label_column or (preset.label_column if preset and is_labelled else ""),
            labels=tuple(labels or (preset.labels if preset and same_kind else ())),
            metrics=tuple(self.metrics or (preset.metrics if preset and same_kind else ())),
            hub=preset.hub if preset else None,
            hub_splits=preset.hub_splits if preset else ("train", "validation"),
        )


class PartitionConfig(_Section):
    """How the parts of a task's training rows differ in their labels, instead of not at all."""

    dirichlet: float = Field(
        gt=0,
        description="`shard` then takes parts of unequal label distributions, drawn from a Dirichlet distribution of "
        "this concentration (Hsu et al. 2019): the smaller, the fewer labels a part has. For training rows only; "
        "values count by the fifth of the rows that they lie in",
    )
    seed: int = Field(0, ge=0, le=_UINT32, description="Its seed; a task's clients need the same for disjoint parts")


class LocalClient(_Section):
    """One client: `fedmtl-local` starts it, and `fedmtl-client` with its id takes from here what isn't the others'."""

    client_id: str = Field(description="Its name")
    task: str | None = Field(None, description="Its task")
    tasks: list[str] | None = Field(None, description="Instead, if it has rows for several: its tasks")
    shard: str = Field(WHOLE, description="`K/N`: the K-th of N disjoint parts of the task's rows")
    partition: PartitionConfig | None = None
    token_file: Path | None = Field(None, description="Its token, instead of `client.token_file`")
    tls_certificate: Path | None = Field(None, description="Its certificate, instead of `client.tls_certificate`")
    tls_key: Path | None = Field(None, description="Its key, instead of `client.tls_key`")

    @field_validator("client_id")
    @classmethod
    def _identifier(cls, client_id: str) -> str:
        return _identifier(client_id)

    @field_validator("shard")
    @classmethod
    def _valid_shard(cls, shard: str) -> str:
        parse_shard(shard)
        return shard

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: list[str] | None) -> list[str] | None:
        return None if tasks is None else _each_task_once(tasks)

    @model_validator(mode="after")
    def _has_a_task(self) -> LocalClient:
        if (self.task is None) == (self.tasks is None):
            raise ValueError(
                "expected `task`, or `tasks` for several, got " + ("neither" if self.task is None else "both")
            )
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Its tasks, one or several, in the file's order."""
        return tuple(self.tasks) if self.tasks is not None else (self.task or "",)


class Config(_Section):
    """A whole configuration file."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    rounds: RoundsConfig = RoundsConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    sharing: SharingConfig = SharingConfig()
    aggregation: AggregationConfig = AggregationConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    security: SecurityConfig = SecurityConfig()
    limits: LimitsConfig = LimitsConfig()
    tracking: TrackingConfig = TrackingConfig()
    tracing: TracingConfig = TracingConfig()
    client: ClientConfig = ClientConfig()
    wire: WireConfig = WireConfig()
    tasks: dict[str, TaskConfig] = Field(default_factory=dict, description="The run's tasks by name")
    clients: list[LocalClient] = Field(
        default_factory=list, description="What `fedmtl-local` starts, and what each client has for itself"
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _named_tasks(cls, tasks: Any) -> Any:
        if not isinstance(tasks, dict):
            return tasks
        for name in tasks:
            if not isinstance(name, str):
                raise ValueError(f"a task's name is text; put quotes around {name!r}")
        return {name: {} if task is None else task for name, task in tasks.items()}

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        """`training:` with nothing under it is a section of defaults."""
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for name in self.tasks:
            _identifier(name, "a task's name")
            if "." in name:
                raise ValueError(f"a task's name can't have a '.', got {name!r}")
        for client in self.clients:
            for task in client.task_names:
                if task not in self.tasks:
                    raise ValueError(f"client {client.client_id!r} has the task {task!r}, which isn't in `tasks`")
        for task in self.early_stopping.watch or ():
            if task not in self.tasks:
                raise ValueError(f"early_stopping.watch: {task!r} isn't in `tasks`")
            if task in self.auxiliary_tasks():
                raise ValueError(f"early_stopping.watch: {task!r} is auxiliary, and ends no run")
        self._require_task_weights()
        self._require_sharing()
        self._require_what_control_variates_need()
        if self.rounds.mode == "async" and self.rounds.cohort != "all":
            raise ValueError(f"rounds.cohort: asynchronous rounds are for all clients, got {self.rounds.cohort!r}")
        ids = [client.client_id for client in self.clients]
        if len(set(ids)) != len(ids):
            raise ValueError(f"client ids must differ, got {', '.join(ids)}")
        for task in self.tasks:
            _require_one_partition(task, [client for client in self.clients if task in client.task_names])
        return self

    def _require_task_weights(self) -> None:
        weights = self.aggregation.task_weights
        if weights is None:
            return
        for task in weights:
            if task not in self.tasks:
                raise ValueError(f"aggregation.task_weights: {task!r} isn't in `tasks`")
        for task in self.tasks:
            if task not in weights:
                raise ValueError(f"aggregation.task_weights: expected a weight for every task, got none for {task!r}")

    def _require_sharing(self) -> None:
        if self.tasks or self.sharing != SharingConfig():
            try:
                require_rules(tuple(self.tasks), self.sharing.rules())
                movable_parts(self.sharing.rules(), self.sharing.adaptive.layers)
            except ValueError as error:
                raise ValueError(f"sharing.{error}") from None
        if self.sharing.adaptive.policy is not None and self.rounds.mode == "async":
            raise ValueError(
                "sharing.adaptive: layers can't move with `rounds.mode: async`, whose updates start from older models"
            )

    def _require_what_control_variates_need(self) -> None:
        if not self.training.control_variates:
            return
        for key, got, needed, why in (
            ("training.optimizer", self.training.optimizer, "sgd", "they are sums of its steps"),
            ("rounds.mode", self.rounds.mode, "sync", "all clients have to start from the same ones"),
            ("aggregation.task_weighting", self.aggregation.task_weighting, "examples", "they weigh clients alike"),
            ("aggregation.scaling", self.aggregation.scaling, 1.0, "likewise"),
            ("training.head_epochs", self.training.head_epochs, 0, "every step has to be of all parameters"),
            ("sharing.adaptive.policy", self.sharing.adaptive.policy, None, "they are of components that stay"),
        ):
            if got != needed:
                raise ValueError(f"training.control_variates: needs `{key}: {needed}`, got {got!r}: {why}")
        for name, task in self.tasks.items():
            if task.auxiliary is not None and task.auxiliary != AuxiliaryConfig():
                raise ValueError(
                    f"training.control_variates: `tasks.{name}.auxiliary` has to have a weight and a decay of 1: they "
                    "weigh clients by their examples"
                )
        if several := [client.client_id for client in self.clients if len(client.task_names) > 1]:
            raise ValueError(f"training.control_variates: are of clients of one task each; {several[0]!r} has several")
        if self.robustness.norms.action == "clip":
            raise ValueError(
                "training.control_variates: can't go with `robustness.norms.action: clip`: they are of whole updates"
            )

    def task_specs(self) -> list[TaskSpec]:
        """The run's tasks, in the file's order."""
        return [task.spec(name) for name, task in self.tasks.items()]

    def auxiliary_tasks(self) -> frozenset[str]:
        """The tasks that no round needs and that end no run."""
        return frozenset(name for name, task in self.tasks.items() if task.auxiliary is not None)

    def plan(self, task: str) -> TrainingPlan:
        """What a client of this task is asked to do."""
        training, section = self.training, self.tasks[task]
        spec = section.spec(task)
        return TrainingPlan(
            local_epochs=training.local_epochs,
            batch_size=training.per_device_train_batch_size,
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            warmup_ratio=training.warmup_ratio,
            max_grad_norm=training.max_grad_norm,
            max_length=training.max_length,
            seed=training.seed,
            client_model=self.model.client_model or self.model.server_model,
            num_hidden_layers=self.model.num_hidden_layers or 0,
            pooling=self.model.pooling,
            head_dropout=self.model.head_dropout,
            update="delta" if self.rounds.mode == "async" or training.control_variates else training.update,
            train_samples=section.train_samples or 0,
            val_samples=section.val_samples or 0,
            num_rounds=training.num_rounds,
            task_type=spec.kind,
            labels=spec.labels,
            proximal_mu=training.proximal_mu,
            optimizer=training.optimizer,
            head_epochs=training.head_epochs,
        )


def _require_one_partition(task: str, clients: Sequence[LocalClient]) -> None:
    """Check that a task's clients take their shards of the same parts, without which they'd share rows unawares."""
    if not any(client.partition for client in clients):
        return
    first = clients[0]
    for client in clients[1:]:
        if (client.partition, parse_shard(client.shard)[1]) != (first.partition, parse_shard(first.shard)[1]):
            raise ValueError(
                f"clients: those of {task!r} need the same `partition` and the same N in `shard: K/N`, or their rows "
                f"would overlap; {first.client_id!r} and {client.client_id!r} differ"
            )


def contradictions(stored: Config, given: Config) -> list[str]:
    """What keeps a run from being taken up with another configuration: for each key `key: the run has X, got Y`."""
    problems = []
    if stored.tasks.keys() != given.tasks.keys():
        problems.append(f"tasks: the run has {', '.join(stored.tasks)}, got {', '.join(given.tasks)}")
    mine, theirs = (dict(flattened(config.model_dump(mode="json"))) for config in (stored, given))
    is_drawn = stored.rounds.cohort != "all"
    return problems + [
        f"{key}: the run has {mine.get(key)!r}, got {theirs.get(key)!r}"
        for key in dict.fromkeys([*mine, *theirs])
        if mine.get(key) != theirs.get(key) and not _FREE_TO_CHANGE.match(key) and (is_drawn or not _QUORUM.match(key))
    ]


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested sections by dotted key. Lists are values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parse_shard(text: str) -> tuple[int, int]:
    """`K/N` as `(K, N)`, with 1 <= K <= N.

    Raises:
        ValueError: it is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"expected K/N with 1 <= K <= N, such as 1/2, got {text!r}")
    return int(match[1]), int(match[2])


def parse_address(text: str) -> str:
    """`HOST:PORT`, as it is.

    Raises:
        ValueError: it is anything else.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):([0-9]{1,5})", text)
    if not match or not 1 <= int(match[2]) <= 65535:
        raise ValueError(f"expected HOST:PORT, such as 127.0.0.1:50051, got {text!r}")
    return text


def load(path: Path | None, overrides: Sequence[str] = (), named: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Read a configuration file.

    Args:
        path: a YAML file, or None for defaults alone.
        overrides: `KEY=VALUE` each, where KEY is a dotted path such as `training.num_rounds`; they win.
        named: by KEY, the command line's option that an override came from where it isn't `--set`, for messages.

    Raises:
        ConfigError: the file can't be read, or a key or value is wrong; the message gives the key's path,
            the value and what is allowed.
    """
    values = read_yaml(path) if path else {}
    source = str(path) if path else "the command line"
    for override in overrides:
        _apply(values, override)
    options = {key: f"--set {key}" for key in (override.partition("=")[0] for override in overrides)} | dict(named)
    return validated(values, source, options)


def resolve(given: Config | Mapping[str, Any] | Path | str | None) -> Config:
    """A configuration however a program gives it: as it is, as nested dictionaries, or as a YAML file's path.

    Raises:
        ConfigError: as for `load`.
    """
    if isinstance(given, Config):
        given.task_specs()
        return given
    if isinstance(given, Mapping):
        return validated(given, "the configuration")
    if given is None or isinstance(given, (Path, str)):
        return load(None if given is None else Path(given))
    raise ConfigError(f"expected a Config, a dictionary or a YAML file's path, got {type(given).__name__}")


def validated(values: Mapping[str, Any], source: str, options: Mapping[str, str] = MappingProxyType({})) -> Config:
    """A configuration of sections that are at hand.

    Args:
        values: the sections.
        source: where they come from, for messages.
        options: by key, the option that set it instead.

    Raises:
        ConfigError: a key or value is wrong, as for `load`.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, source, options))) from None
    config.task_specs()
    return config


def dump(config: Config) -> str:
    """The configuration as YAML, defaults written out, such that `load` gives the same again."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)


class Setting(NamedTuple):
    """One key of the configuration."""

    key: str
    default: str
    description: str


def reference() -> list[Setting]:
    """Every key there is, with its default."""
    return list(_settings(Config, ""))


def _settings(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    nested: Mapping[str, tuple[type[BaseModel], str]] = {
        "data": (DataConfig, prefix + "data."),
        "auxiliary": (AuxiliaryConfig, prefix + "auxiliary."),
        "partition": (PartitionConfig, prefix + "partition."),
    }
    if not prefix:  # elsewhere `tasks` are names
        nested = {**nested, "tasks": (TaskConfig, "tasks.NAME."), "clients": (LocalClient, "clients[].")}
    for name, field in section.model_fields.items():
        if isinstance(field.default, _Section):
            yield from _settings(type(field.default), f"{prefix}{name}.")
        elif name in nested:
            yield from _settings(*nested[name])
        else:
            default = "required" if field.is_required() else "" if field.default is None else str(field.default)
            yield Setting(prefix + name, default, field.description or "")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice is an error and not the loss of the first, and so is every text that
    has the form of a date or a number and is none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError):
            text = _shown(node.value) if isinstance(node, yaml.ScalarNode) else "what is there"
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            reason = f"{text} can't be read as YAML's {kind}; put quotes around text"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep=True) for key in own]
            counts = Counter(key for key in keys if isinstance(key, (str, int, float)))
            if twice := [key for key, count in counts.items() if count > 1]:
                reason = f"the key {_shown(twice[0])} is there twice"
                raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    """A YAML document's value.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.load(text, _Loader)  # nosec B506
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's sections, as they stand there.

    Raises:
        ConfigError: it can't be read, or holds no sections.
    """
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't read the configuration: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `training:`, got {type(values).__name__}")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set: expected KEY=VALUE, such as training.num_rounds=5, got {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            inner = values[section] = {}
        values = inner
    try:
        values[last] = _parse(text)
    except yaml.YAMLError:
        values[last] = text


def _explain(error: ValidationError, source: str, options: Mapping[str, str]) -> Iterator[str]:
    """Each problem with what it came from.

    Args:
        error: the problems.
        source: where the values came from.
        options: by key, the option that set it instead.
    """
    for problem in error.errors():
        path = _path(problem["loc"])
        is_unknown = problem["type"] == "extra_forbidden"
        place = next(
            (
                text + path.removeprefix(key) if f"{path}.".startswith(f"{key}.") else text
                for key, text in options.items()
                if f"{path}.".startswith(f"{key}.") or (is_unknown and key.startswith(f"{path}."))
            ),
            f"{source}: {path}" if path else source,
        )
        if is_unknown:
            yield f"{place}: unknown key; {_suggest(problem['loc'])}"
        elif problem["type"] == "missing":
            yield f"{place}: needed, and not given"
        else:
            message = problem["msg"].removeprefix("Value error, ")
            is_silent = problem["type"] == _SECRET or isinstance(problem["input"], (dict, BaseModel))
            got = "" if is_silent else f" (got {_shown(problem['input'])})"
            yield f"{place}: {message[:1].lower()}{message[1:]}{got}"


def _suggest(location: tuple[int | str, ...]) -> str:
    known = _keys_beside(location)
    name = str(location[-1])[:100]
    close = [_RENAMED[name]] if _RENAMED.get(name) in known else difflib.get_close_matches(name, known, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"Allowed: {', '.join(known)}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Names of the keys allowed in the section that a location lies in."""
    path = _path(location[:-1])
    if not path:
        return list(Config.model_fields)
    parts = path.split(".")
    if parts[0] == "tasks":
        inner: Mapping[str, type[BaseModel]] = {"data": DataConfig, "auxiliary": AuxiliaryConfig}
        return list((inner.get(parts[-1], TaskConfig) if len(parts) > 2 else TaskConfig).model_fields)
    if parts[0].startswith("clients"):
        return list((PartitionConfig if parts[-1] == "partition" else LocalClient).model_fields)
    section: type[BaseModel] = Config
    for part in parts:
        section = type(section.model_fields[part].default)
    return list(section.model_fields)


def _without_secret(url: str, instead: str) -> str:
    """A URL that is shown, and kept in the run's folder.

    Raises:
        PydanticCustomError: it has a password.
    """
    try:
        has_password = urlsplit(url).password is not None
    except ValueError:  # such as a bracket that isn't closed
        has_password = False
    if has_password:
        raise PydanticCustomError(_SECRET, f"a password in it would be kept where others read it; give it in {instead}")
    return url


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _reference(value: str, expected: str = f"a class of your own as {plugins.FORM}") -> str:
    if not plugins.is_reference(value):
        raise ValueError(f"expected {expected}")
    return value


def _known_or_plugin(name: str, known: Sequence[str]) -> str:
    if name not in known and not plugins.is_reference(name):
        close = difflib.get_close_matches(name[:100], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{hint}expected {', '.join(known)}, or module:Name for a class of your own")
    return name


def _each_task_once(tasks: list[str]) -> list[str]:
    if not tasks:
        raise ValueError("expected the name of one task at least")
    if twice := [task for task, count in Counter(tasks).items() if count > 1]:
        raise ValueError(f"expected each task once; {twice[0]!r} is there twice")
    return tasks


def _identifier(value: str, what: str = "a client id") -> str:
    try:
        return require_identifier(what, value)
    except InvalidRequestError as error:
        raise ValueError(str(error)) from None


def _shown(value: object) -> str:
    """A value in a message: short, however large or deep it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer of too many digits
        return f"a very large {type(value).__name__}"


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
