"""The status of a run at a given moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedmtl_server.model_parts import ModelSummary
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.rounds.view import RoundView
from fedmtl_server.rounds.waiting import waiting_for
from fedmtl_server.rounds.warnings import RoundWarning


@dataclass(frozen=True)
class TaskStatus:
    """The status of one task."""

    task: str
    min_clients: int
    connected_clients: int
    cohort_size: int
    reported_clients: int
    last_metrics: Mapping[str, float]
    auxiliary: bool = False


@dataclass(frozen=True)
class ClientStatus:
    """The status of one client."""

    client_id: str
    task: str
    """The client's task in the round, or its preferred task for the next round.

    It is empty for a client of several tasks that has neither."""
    connected: bool
    in_cohort: bool
    reported: bool
    tasks: Sequence[str] = ()
    """All tasks that the client has data for, if it is connected."""


@dataclass(frozen=True)
class Status:
    """The status of a run."""

    run_id: str
    phase: Phase
    round: int
    num_rounds: int
    waiting_for: str
    tasks: Sequence[TaskStatus]
    clients: Sequence[ClientStatus]
    last_report: RoundReport | None
    model: ModelSummary
    uptime_s: float
    warnings: Sequence[RoundWarning] = ()
    """The warnings of the round in progress and of the previous round."""

    @classmethod
    def of(
        cls,
        run_id: str,
        view: RoundView,
        now: float,
        model: ModelSummary,
        *,
        last_metrics: Mapping[str, Mapping[str, float]],
        last_report: RoundReport | None,
        warnings: Sequence[RoundWarning],
        uptime_s: float,
    ) -> Status:
        """Return the current status of a run.

        Args:
            run_id: the id of the run.
            view: the round in progress.
            now: the current time of the clock that the view uses, in seconds.
            model: the size of the model.
            last_metrics: the metrics of the newest measured model, by task.
            last_report: the report of the previous round; None if there was none.
            warnings: the warnings of the round in progress.
            uptime_s: how long the server has been running, in seconds.
        """
        return cls(
            run_id=run_id,
            phase=view.phase,
            round=view.round,
            num_rounds=view.rules.num_rounds,
            waiting_for=waiting_for(view, now),
            tasks=_task_statuses(list(model.head_parameters), view, last_metrics),
            clients=_client_statuses(view),
            last_report=last_report,
            model=model,
            uptime_s=uptime_s,
            warnings=[*warnings, *(last_report.warnings if last_report else ())],
        )


def _task_statuses(
    tasks: Sequence[str], view: RoundView, last_metrics: Mapping[str, Mapping[str, float]]
) -> list[TaskStatus]:
    members, present = view.cohort.values(), view.clients.values()
    return [
        TaskStatus(
            task=task,
            min_clients=view.rules.min_clients[task],
            connected_clients=sum(task in client.tasks for client in present),
            cohort_size=sum(member.task == task for member in members),
            reported_clients=sum(member.task == task and member.reported for member in members),
            last_metrics=last_metrics.get(task, {}),
            auxiliary=task in view.rules.auxiliary,
        )
        for task in tasks
    ]


def _client_statuses(view: RoundView) -> list[ClientStatus]:
    """Return the status of every client that is connected or in the cohort."""
    members, present, clients = view.cohort, view.present, view.clients
    return [
        ClientStatus(
            client_id=client_id,
            task=present[client_id] if client_id in present else members[client_id].task,
            connected=client_id in present,
            in_cohort=client_id in members,
            reported=client_id in members and members[client_id].reported,
            tasks=clients[client_id].tasks if client_id in clients else (),
        )
        for client_id in sorted(present.keys() | members.keys())
    ]
