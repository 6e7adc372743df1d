"""What is written down of a round: gathered while it lasts, and then its report, the history's records, the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fedmtl_core.identifiers import name_some, shown
from fedmtl_core.logs import Logger
from fedmtl_core.model.scopes import task_scope
from fedmtl_core.model.sharing import Partition, blocks_text
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.aggregator import Aggregate
from fedmtl_server.rounds.report import (
    ComponentReport,
    RefusedUpdate,
    RoundReport,
    TaskReport,
    component_reports,
    task_reports,
)
from fedmtl_server.rounds.view import RoundView
from fedmtl_server.rounds.warnings import RoundWarning, damaged_model, warnings_of
from fedmtl_server.storage.history import UpdateRecord

MAX_REFUSALS_REPORTED = 100
MAX_METRICS_LOGGED = 16
"""Of a task in a round; the report has all of them."""


@dataclass
class RoundFacts:
    """What is gathered while a round lasts."""

    opened_at_unix_ms: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    refused: list[RefusedUpdate] = field(default_factory=list)
    """The first of them."""
    num_refused: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    """By client id, what clients say of a model that gives values that aren't finite."""

    def warnings(self, round_: int) -> list[RoundWarning]:
        """What is doubtful about the round so far."""
        return [damaged_model(round_, self.damaged)] if self.damaged else []

    def note_refusal(self, refusal: RefusedUpdate) -> None:
        self.num_refused += 1
        if len(self.refused) < MAX_REFUSALS_REPORTED:
            self.refused.append(refusal)


def round_report(
    facts: RoundFacts,
    view: RoundView,
    aggregate: Aggregate,
    scopes: Mapping[str, Sequence[str]],
    factors: Mapping[str, float],
    *,
    weighting_states: Mapping[str, Mapping[str, Any]],
    sharing: Mapping[str, Partition],
    moved: Mapping[str, Partition],
    sharing_state: Mapping[str, Any],
    control_variates: Mapping[str, Any],
    model_norms: Mapping[str, float],
    duration_s: float,
    aggregation_s: float,
    failed: bool,
) -> RoundReport:
    """The report of a round that has closed.

    Args:
        facts: what was gathered.
        view: the round, with its cohort.
        aggregate: what came of it.
        scopes: by task, those of its slice.
        factors: by auxiliary task, what an example of it counts for in the encoder.
        weighting_states: by scope, what the task weighting remembers now.
        sharing: by part that has moved in the run, who shares it now.
        moved: by part that moves now, who shared it before.
        sharing_state: what the sharing policy remembers now.
        control_variates: whose control variates are in the server's now.
        model_norms: by scope, the norm of the model that the round began with; empty where it isn't known.
        duration_s: from its opening to now.
        aggregation_s: how much of that its average took.
        failed: whether it was given up.
    """
    members = view.cohort.values()
    return RoundReport(
        round=view.round,
        purpose=view.purpose,
        opened_at_unix_ms=facts.opened_at_unix_ms,
        duration_s=duration_s,
        components=component_reports(aggregate),
        tasks=task_reports(scopes, members, aggregate, view.round, factors),
        missing_clients=[member.client_id for member in members if not member.reported],
        refused=list(facts.refused),
        num_refused=facts.num_refused,
        bytes_received=facts.bytes_received,
        bytes_sent=facts.bytes_sent,
        unchanged_tasks=[task for task in scopes if task_scope(task) in {*scopes[task]} - aggregate.components.keys()],
        aggregation_s=aggregation_s,
        failed=failed,
        weighting_states=weighting_states,
        sharing=sharing,
        moved=moved,
        sharing_state=sharing_state,
        control_variates=control_variates,
        discarded=list(aggregate.discarded),
        warnings=[*facts.warnings(view.round), *warnings_of(aggregate.contributions, model_norms)],
    )


def update_records(report: RoundReport, reported: Iterable[Update]) -> list[UpdateRecord]:
    """What became of every update of a round, for the history.

    Args:
        report: the round's.
        reported: those that were acknowledged.
    """
    acknowledged = [
        UpdateRecord(
            round=report.round,
            client_id=update.client_id,
            task=update.task,
            base_round=update.base_round,
            update_id=update.update_id,
            kind=update.kind,
            num_examples=update.claimed_examples or update.num_examples,
            num_bytes=update.num_bytes,
            received_metrics=update.received.metrics,
            trained_metrics=update.trained.metrics,
            outcome="discarded" if report.failed else "counted",
            reason="the round lacked its quorum" if report.failed else "",
        )
        for update in reported
    ]
    refused = [
        UpdateRecord(
            round=report.round,
            client_id=one.client_id,
            task=one.task,
            base_round=one.base_round,
            update_id=one.update_id,
            kind=one.kind,
            num_examples=one.num_examples,
            num_bytes=0,
            received_metrics={},
            trained_metrics={},
            outcome="refused",
            code=one.code,
            reason=one.reason,
        )
        for one in report.refused
    ]
    return acknowledged + refused


def log_report(log: Logger, title: Mapping[str, str], report: RoundReport) -> None:
    """Tell the log of a round that was committed."""
    for component in report.components:
        log.info(
            "component.averaged",
            **title,
            scope=component.scope,
            tensors=component.num_tensors,
            clients=len(component.contributions),
            **_norm_facts(component),
        )
        for part in component.contributions:
            if part.clipped_to is not None:
                log.warning(
                    "update.clipped",
                    **title,
                    scope=component.scope,
                    client_id=part.client_id,
                    norm=part.norm,
                    bound=part.clipped_to,
                )
    for task in report.tasks:
        log.info(
            "task.reported",
            **title,
            task=task.task,
            updates=task.num_updates,
            examples=task.num_examples,
            encoder_share=task.encoder_share,
            **({} if task.auxiliary_weight is None else {"auxiliary_weight": task.auxiliary_weight}),
            received=_shown_metrics(task.received_metrics),
            trained=_shown_metrics(task.trained_metrics),
            **_undefined_facts(task),
        )
    for warning in report.warnings:
        log.warning(
            "round.doubtful", **title, kind=warning.kind, clients=name_some(warning.client_ids), reason=warning.message
        )
    for layer, before in report.moved.items():
        after = report.sharing[layer]
        log.info("layer.moved", **title, part=layer, before=blocks_text(before), after=blocks_text(after))
    log.info(
        "round.committed",
        **title,
        seconds=report.duration_s,
        bytes_in=report.bytes_received,
        bytes_out=report.bytes_sent,
        missing=name_some(report.missing_clients),
        refused=report.num_refused,
        heads_unchanged=list(report.unchanged_tasks),
        **({"discarded": [one.scope for one in report.discarded]} if report.discarded else {}),
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
