"""Round settings: opening and closing of rounds, their participants, and early stopping."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedmtl_core.config.section import SERVER_AND_LAUNCHER, Section, require_known_or_reference

MissingQuorum = Literal["commit", "extend", "fail"]
CohortSelection = Literal["all", "fraction", "over_select"]
TASK_SELECTIONS = ("round_robin", "loss", "quorum")


class RoundsConfig(Section):
    """Participants of a round, and the conditions for opening and closing a round. docs/rounds.md explains them."""

    read_by = ("server",)

    deadline_s: float = Field(
        600.0,
        gt=0,
        description="Seconds after which an open round closes. An upload in progress delays the end to at most twice "
        "that time.",
    )
    quorum_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Seconds that a round waits for each task's `min_clients` before it opens with the connected "
        "clients, of which at least one needs a task that isn't auxiliary. The first round waits without limit.",
    )
    rejoin_grace_s: float = Field(
        10.0,
        ge=0,
        description="Seconds that an open round waits for a disconnected client to return before it continues without "
        "that client.",
    )
    await_clients_s: Annotated[float | None, SERVER_AND_LAUNCHER] = Field(
        None,
        ge=0,
        description="Seconds without a further arrival after which the first round that a server opens, also after a "
        "resume, stops waiting for absent clients of the list `clients`. It needs each task's `min_clients` as well. "
        "If not given, `fedmtl-local` uses 180 s, and `fedmtl-server` waits for each task's `min_clients` only.",
    )
    on_missing_quorum: MissingQuorum = Field(
        "commit",
        description="Action when a round closes without a task's quorum of updates, although its cohort had enough "
        "clients: `commit` the updates received, `extend` the deadline by its own length, or `fail` the round.",
    )
    max_extensions: int = Field(
        3,
        ge=1,
        description="Number of times that `on_missing_quorum: extend` extends a round, which then commits the updates "
        "received.",
    )
    cohort: CohortSelection = Field(
        "all",
        description="Client selection for a round: `all`, `fraction` or `over_select`. `fraction` selects a random "
        "share of each task's connected clients. `over_select` selects `cohort_size + cohort_extra` random clients of "
        "each task, of which `cohort_size` updates are enough.",
    )
    cohort_fraction: float = Field(
        0.5, gt=0, le=1, description="Share of each task's clients that a round with `cohort: fraction` selects."
    )
    cohort_size: int = Field(
        1, ge=1, description="Number of updates of each task that are enough for a round with `cohort: over_select`."
    )
    cohort_extra: int = Field(
        0,
        ge=0,
        description="Number of clients of each task that `cohort: over_select` selects in addition to `cohort_size`.",
    )
    task_selection: str = Field(
        "round_robin",
        description="Policy that assigns the round's task to a client that has several tasks and doesn't choose "
        f"itself: {', '.join(TASK_SELECTIONS)}, or your own class as `module:Name`. Every policy fills quorums first; "
        "see docs/task-selection.md.",
    )
    mode: Literal["sync", "async"] = Field(
        "sync",
        description="Round mode: with `sync` all clients start from the round's model; with `async` (FedBuff) a round "
        "commits as soon as it has `buffer_size` updates.",
    )
    buffer_size: int = Field(
        10, ge=1, description="Number of updates in a commit with `mode: async`, at most one of each client."
    )
    staleness_exponent: float = Field(
        0.5,
        ge=0,
        description="Exponent a in the weight (1 + s)^-a of an update that started s commits ago, with `mode: async`.",
    )
    max_staleness: int = Field(
        10,
        ge=0,
        description="Largest number of commits since an update started, with `mode: async`; staler updates are "
        "refused.",
    )
    transfer_timeout_s: float = Field(
        30.0, gt=0, description="Seconds without progress after which the server gives up a transfer."
    )
    report_interval_s: float = Field(
        10.0, gt=0, description="Seconds between the log lines that name the clients a round is waiting for."
    )

    @field_validator("task_selection")
    @classmethod
    def _known_selection(cls, name: str) -> str:
        return require_known_or_reference(name, TASK_SELECTIONS)


class EarlyStoppingConfig(Section):
    """The condition under which training ends before its last round."""

    read_by = ("server",)

    patience: int | None = Field(
        None,
        ge=1,
        description="Number of rounds without an improvement of any watched task's main metric after which training "
        "stops. If not given, all rounds are run.",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        description="Improvement that a main metric must exceed to reset `early_stopping.patience`, in the metric's "
        "unit.",
    )
    watch: list[str] | None = Field(
        None,
        description="Names of the tasks whose main metrics count for `early_stopping.patience`. If not given, all "
        "tasks count, except auxiliary ones.",
    )
