"""Logs the events of a run and its rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from fedmtl_core.config.stages import SOURCES
from fedmtl_core.identifiers import name_some, shown
from fedmtl_core.logs import get_logger
from fedmtl_core.model.sharing import blocks_text
from fedmtl_core.tasks.plan import round_title
from fedmtl_core.wire.updates import Update
from fedmtl_server.rounds.completion import missing_quorum
from fedmtl_server.rounds.report import ComponentReport, RoundReport, TaskReport
from fedmtl_server.rounds.variant_reports import VariantReport
from fedmtl_server.rounds.view import RoundView
from fedmtl_server.rounds.waiting import waiting_for
from fedmtl_server.sharing.source_changes import SourceState, source_changes

MAX_METRICS_LOGGED = 16
"""The maximum number of a task's metrics in one log line; the report has all of them."""


def title(view: RoundView) -> dict[str, str]:
    """Return the fields that name the round in progress in each of its log lines."""
    return {"progress": round_title(view.purpose, view.round, view.rules.num_rounds)}


class RunLog:
    """Writes the log of one run. Each event has a method, most of which take a view of the round in progress."""

    def __init__(self) -> None:
        self._log = get_logger()

    # The run.

    def resumed(self, view: RoundView, acknowledged: Sequence[Update]) -> None:
        """Log the round at which a run resumes, and the open round's acknowledged updates."""
        self._log.info(
            "run.resumed",
            **title(view),
            phase=view.phase.value,
            num_acknowledged=len(acknowledged),
            acknowledged=name_some([update.client_id for update in acknowledged]),
        )

    def finished(self, num_rounds: int) -> None:
        """Log the end of the run, with the number of planned training rounds."""
        self._log.info("run.finished", rounds=num_rounds)

    def training_stopped(self, patience: int | None) -> None:
        """Log that training stops early, because no task improved for `patience` rounds."""
        self._log.warning("training.stopped", reason=f"no improvement for {patience} rounds")

    def commit_failed(self, error: BaseException) -> None:
        """Log that the last commit couldn't be written."""
        self._log.error("commit.failed", reason=str(error))

    # A round.

    def waiting(self, view: RoundView, now: float) -> None:
        """Log the wait condition of the round; nothing if it does not wait."""
        if text := waiting_for(view, now):
            self._log.info("round.waiting", **title(view), waiting_for=text)

    def clients_missing(self, view: RoundView) -> None:
        """Warn that the round opens without some of the expected clients; nothing if all have joined."""
        if view.opened_without:
            missing, waited_s = name_some(view.opened_without), view.rules.rounds.await_clients_s
            self._log.warning("round.clients_missing", **title(view), missing=missing, waited_s=waited_s)

    def opened(self, view: RoundView) -> None:
        """Log the opening of a round, with its cohort."""
        self._log.info(
            "round.opened",
            **title(view),
            cohort_size=len(view.cohort),
            cohort=name_some([f"{member.client_id} ({member.task})" for member in view.cohort.values()]),
            deadline_s=view.rules.rounds.deadline_s,
        )

    def extended(self, view: RoundView) -> None:
        """Warn that the round is extended, because its quorum is missing."""
        self._log.warning("round.extended", **title(view), missing=missing_quorum(view))

    def failed(self, view: RoundView) -> None:
        """Log that the round failed, because its quorum is missing."""
        self._log.error("round.failed", **title(view), missing=missing_quorum(view))

    def abandoned(self, view: RoundView) -> None:
        """Warn that the round is abandoned, because no client sent an update."""
        self._log.warning("round.abandoned", **title(view), reason="no update arrived")

    def damaged_model(self, view: RoundView, client_id: str, reason: str) -> None:
        """Log that a client can't compute with the model that the round began with."""
        self._log.error(
            "model.damaged",
            **title(view),
            client_id=client_id,
            reason=reason,
            hint="roll the run back: fedmtl-server runs rollback RUN --to-round N",
        )

    def committed(self, view: RoundView, report: RoundReport, previous: RoundReport | None = None) -> None:
        """Log the result of a round: each component, task, warning and change of the sharing, then the totals.

        Args:
            view: the round.
            report: its report.
            previous: the report of the previous round; None for the first round.
        """
        names = title(view)
        for component in report.components:
            self._component(names, component, report.inexactness.get(component.scope))
        for task in report.tasks:
            self._task(names, task)
            for variant in task.variants:
                self._variant(names, task.task, variant)
        for warning in report.warnings:
            clients = name_some(warning.client_ids)
            self._log.warning("round.doubtful", **names, kind=warning.kind, clients=clients, reason=warning.message)
        for layer, before in report.moved.items():
            after = report.sharing[layer]
            by = {"by": report.moved_by[layer]} if layer in report.moved_by else {}
            self._log.info(
                "layer.moved", **names, part=layer, before=blocks_text(before), after=blocks_text(after), **by
            )
        self._sources(names, report, previous)
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

    def _component(self, names: Mapping[str, str], component: ComponentReport, inexactness: float | None) -> None:
        self._log.info(
            "component.averaged",
            **names,
            scope=component.scope,
            tensors=component.num_tensors,
            clients=len(component.contributions),
            **_norm_fields(component),
            **({"scaling": dict(component.scaling)} if component.scaling else {}),
            **({} if inexactness is None else {"inexactness": inexactness}),
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
            **_undefined_fields(task),
        )

    def _variant(self, names: Mapping[str, str], task: str, variant: VariantReport) -> None:
        facts = {
            "loss_difference": math.inf if variant.num_diverged else variant.loss_difference,
            "standard_error": variant.standard_error,
        }
        self._log.info(
            "variant.reported",
            **names,
            task=task,
            variant=variant.name,
            **{key: value for key, value in facts.items() if value is not None},
            examples=variant.num_examples,
            clients=variant.num_clients,
            **({"diverged": variant.num_diverged} if variant.num_diverged else {}),
            **({"chosen": True} if variant.chosen else {}),
        )

    def _sources(self, names: Mapping[str, str], report: RoundReport, previous: RoundReport | None) -> None:
        """Log each change of the tasks whose updates a task takes, with the comparison that decided it."""
        if SOURCES.name not in report.stages:
            return
        tasks = [one.task for one in report.tasks]
        earlier = SourceState.of(previous.stages.get(SOURCES.name, {}) if previous else {}, tasks)
        variants = {one.task: one.variants for one in report.tasks}
        for change in source_changes(earlier, SourceState.of(report.stages[SOURCES.name], tasks)):
            decided_by = next((one for one in variants[change.task] if one.chosen), None)
            compared = {} if decided_by is None else _compared(decided_by)
            self._log.info(
                "sources.changed",
                **names,
                task=change.task,
                sources=list(change.after),
                before=list(change.before),
                why=change.reason,
                **compared,
            )


def _compared(variant: VariantReport) -> dict[str, float]:
    """Return the log fields of a comparison that decided a change."""
    fields = {
        "loss_difference": variant.loss_difference,
        "standard_error": variant.standard_error,
        "examples": variant.num_examples,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a task's first metrics, with names cleaned for the log: each client may send 64 metrics of its own."""
    return {shown(name): value for name, value in list(metrics.items())[:MAX_METRICS_LOGGED]}


def _undefined_fields(task: TaskReport) -> dict[str, list[str]]:
    """Return the log fields that name a task's undefined metrics; empty if there are none."""
    fields = {
        "received_undefined": [shown(name) for name in task.received_reports if name not in task.received_metrics],
        "trained_undefined": [shown(name) for name in task.trained_reports if name not in task.trained_metrics],
    }
    return {key: names[:MAX_METRICS_LOGGED] for key, names in fields.items() if names}


def _norm_fields(component: ComponentReport) -> dict[str, float]:
    """Return the median and maximum of the update norms in a component; empty if none was measured."""
    norms = sorted(part.norm for part in component.contributions if part.norm is not None)
    return {"norm_median": median(norms), "norm_max": norms[-1]} if norms else {}
