"""When rounds open and close, who is in them, and when training ends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from fedmtl_core.config.section import Section, require_known_or_reference

MissingQuorum = Literal["commit", "extend", "fail"]
CohortSelection = Literal["all", "fraction", "over_select"]
TASK_SELECTIONS = ("round_robin", "loss", "quorum")


class RoundsConfig(Section):
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
    await_clients_s: float | None = Field(
        None,
        ge=0,
        description="The first round that a server opens also waits for all of `clients`, until none of them has come "
        "for so long; `fedmtl-local` waits 180 s, `fedmtl-server` for each task's quorum alone if not given",
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
        return require_known_or_reference(name, TASK_SELECTIONS)


class EarlyStoppingConfig(Section):
    """When training ends before its last round."""

    patience: int | None = Field(
        None,
        ge=1,
        description="Stop when no watched task's main metric got better for so many rounds; never if not given",
    )
    threshold: float = Field(0.0, ge=0, description="By how much it has to")
    watch: list[str] | None = Field(None, description="The watched tasks; all if not given")
