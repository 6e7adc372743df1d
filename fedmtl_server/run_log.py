"""What the log says of a run and its rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from fedmtl_core.identifiers import name_some, shown
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import blocks_text
from fedmtl_core.tasks.plan import round_title
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.report import ComponentReport, RoundReport, TaskReport
from fedmtl_server.rounds.view import RoundView
from fedmtl_server.rounds.waiting import waiting_for

MAX_METRICS_LOGGED = 16
"""Metrics of one task in one log line; the report has all of them."""


def title(view: RoundView) -> dict[str, str]:
    """The fields that name the round in progress in each line about it."""
    return {"progress": round_title(view.purpose, view.round, view.rules.num_rounds)}


class RunLog:
    """Writes the log of one run: a method for each event, which is given the round in progress as a view."""

    def __init__(self) -> None:
        self._log = get_logger()

    # The run.

    def resumed(self, view: RoundView, acknowledged: Sequence[Update]) -> None:
        """Say where a run goes on, and which updates of the open round are there already."""
        self._log.info(
            "run.resumed",
            **title(view),
            phase=view.phase.value,
            num_acknowledged=len(acknowledged),
            acknowledged=name_some([update.client_id for update in acknowledged]),
        )

    def finished(self, num_rounds: int) -> None:
        """Say that the run is over, and how many rounds of training were planned."""
        self._log.info("run.finished", rounds=num_rounds)

    def training_stopped(self, patience: int | None) -> None:
        """Say that training ends early, because no task got better for `patience` rounds."""
        self._log.warning("training.stopped", reason=f"no better for {patience} rounds")

    def commit_failed(self, error: BaseException) -> None:
        """Say that the last commit couldn't be written."""
        self._log.error("commit.failed", reason=str(error))

    # A round.

    def waiting(self, view: RoundView, now: float) -> None:
        """Say what the round waits for, if it waits for anything."""
        if text := waiting_for(view, now):
            self._log.info("round.waiting", **title(view), waiting_for=text)

    def opens_without(self, view: RoundView) -> None:
        """Warn of the expected clients that the round no longer waited for, if there are any."""
        if view.opened_without:
            missing, waited_s = name_some(view.opened_without), view.rules.rounds.await_clients_s
            self._log.warning("round.opens_without", **title(view), missing=missing, waited_s=waited_s)

    def opened(self, view: RoundView) -> None:
        """Say who takes part in a round."""
        self._log.info(
            "round.opened",
            **title(view),
            cohort_size=len(view.cohort),
            cohort=name_some([f"{member.client_id} ({member.task})" for member in view.cohort.values()]),
            deadline_s=view.rules.rounds.deadline_s,
        )

    def extended(self, view: RoundView) -> None:
        """Warn that the round lacks its quorum, and gets more time."""
        self._log.warning("round.extended", **title(view), missing=missing_quorum(view))

    def failed(self, view: RoundView) -> None:
        """Say that the round lacks its quorum, and is given up."""
        self._log.error("round.failed", **title(view), missing=missing_quorum(view))

    def abandoned(self, view: RoundView) -> None:
        """Warn that the round is given up because nobody sent an update."""
        self._log.warning("round.abandoned", **title(view), reason="no update arrived")

    def damaged_model(self, view: RoundView, client_id: str, reason: str) -> None:
        """Say that a client can't compute with the model that the round began with."""
        self._log.error(
            "model.damaged",
            **title(view),
            client_id=client_id,
            reason=reason,
            hint="take the run back: fedmtl-server runs rollback RUN --to-round N",
        )

    def committed(self, view: RoundView, report: RoundReport) -> None:
        """Say what came of a round: component by component, task by task, and in all."""
        names = title(view)
        for component in report.components:
            self._component(names, component)
        for task in report.tasks:
            self._task(names, task)
        for warning in report.warnings:
            clients = name_some(warning.client_ids)
            self._log.warning("round.doubtful", **names, kind=warning.kind, clients=clients, reason=warning.message)
        for layer, before in report.moved.items():
            after = report.sharing[layer]
            self._log.info("layer.moved", **names, part=layer, before=blocks_text(before), after=blocks_text(after))
        self._log.info(
            "round.committed",
            **names,
            seconds=report.duration_s,
            bytes_in=report.bytes_received,
            bytes_out=report.bytes_sent,
            missing=name_some(report.missing_clients),
            refused=report.num_refused,
            heads_unchanged=list(report.unchanged_tasks),
            **({"discarded": [one.scope for one in report.discarded]} if report.discarded else {}),
        )

    def _component(self, names: Mapping[str, str], component: ComponentReport) -> None:
        self._log.info(
            "component.averaged",
            **names,
            scope=component.scope,
            tensors=component.num_tensors,
            clients=len(component.contributions),
            **_norm_facts(component),
        )
        for part in component.contributions:
            if part.clipped_to is not None:
                self._log.warning(
                    "update.clipped",
                    **names,
                    scope=component.scope,
                    client_id=part.client_id,
                    norm=part.norm,
                    bound=part.clipped_to,
                )

    def _task(self, names: Mapping[str, str], task: TaskReport) -> None:
        self._log.info(
            "task.reported",
            **names,
            task=task.task,
            updates=task.num_updates,
            examples=task.num_examples,
            encoder_share=task.encoder_share,
            **({} if task.auxiliary_weight is None else {"auxiliary_weight": task.auxiliary_weight}),
            received=_shown_metrics(task.received_metrics),
            trained=_shown_metrics(task.trained_metrics),
            **_undefined_facts(task),
        )


def _shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The first metrics of a task, under names fit for a log line: each of its clients may send 64 of its own."""
    return {shown(name): value for name, value in list(metrics.items())[:MAX_METRICS_LOGGED]}


def _undefined_facts(task: TaskReport) -> dict[str, list[str]]:
    """Which metrics are undefined for a task, if any."""
    facts = {
        "received_undefined": [shown(name) for name in task.received_reports if name not in task.received_metrics],
        "trained_undefined": [shown(name) for name in task.trained_reports if name not in task.trained_metrics],
    }
    return {key: names[:MAX_METRICS_LOGGED] for key, names in facts.items() if names}


def _norm_facts(component: ComponentReport) -> dict[str, float]:
    """The norms that updates had in a component, in short."""
    norms = sorted(part.norm for part in component.contributions if part.norm is not None)
    return {"norm_median": median(norms), "norm_max": norms[-1]} if norms else {}
