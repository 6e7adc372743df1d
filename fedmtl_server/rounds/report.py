"""The round report: who counted, with what weight, what came of it, and what was refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedmtl_core.json_types import JsonObject
from fedmtl_core.tasks.evaluation import TaskMetric, task_metrics
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.values import Aggregate, Contribution, DiscardedComponent, RoundRecord
from fedmtl_server.rounds.membership import Member
from fedmtl_server.rounds.warnings import RoundWarning


@dataclass(frozen=True)
class ComponentReport:
    """Who counted in one component."""

    scope: str
    num_tensors: int
    contributions: Sequence[Contribution]


@dataclass(frozen=True)
class MetricReport:
    """What a task's metric was taken over."""

    is_pooled: bool
    """Whether it is the metric of all rows together; else it is the clients' mean, weighted by their rows."""
    num_clients: int
    """Clients that it was taken over."""
    num_eval_examples: int
    """Their evaluation rows."""
    num_undefined: int
    """Clients for which it is undefined."""


@dataclass(frozen=True)
class TaskReport:
    """One task in one round."""

    task: str
    num_updates: int
    num_examples: int
    encoder_share: float
    """What its delta counts for in the encoder: its share of the average, or what a task weighting makes of it. Where
    the encoder has several components, in the one that most tasks share."""
    received_metrics: Mapping[str, float]
    """Of the model the round began with, over the evaluation rows of the task's clients. Those that have a value."""
    trained_metrics: Mapping[str, float]
    """Of the clients' own models after training; otherwise as `received_metrics`."""
    auxiliary_weight: float | None = None
    """What an example of it counted for in the encoder, if the task is auxiliary; None if it isn't."""
    received_reports: Mapping[str, MetricReport] = field(default_factory=dict)
    """How each of `received_metrics` was taken, by name; also of those that are undefined."""
    trained_reports: Mapping[str, MetricReport] = field(default_factory=dict)
    """How each of `trained_metrics` was taken, by name; also of those that are undefined."""

    @classmethod
    def from_dict(cls, values: JsonObject) -> TaskReport:
        """The report that `asdict` was made of; older ones don't say how metrics were taken."""
        reports = {
            key: {name: MetricReport(**one) for name, one in values.get(key, {}).items()}
            for key in ("received_reports", "trained_reports")
        }
        return cls(**{**values, **reports})


@dataclass(frozen=True)
class RefusedUpdate:
    """An update that did not count, and why."""

    client_id: str
    task: str
    code: str
    reason: str
    # What it said of itself, as far as that could be read.
    update_id: str = ""
    base_round: int = 0
    kind: str = ""
    num_examples: int = 0


@dataclass(frozen=True)
class RoundReport:
    """How one round came about."""

    round: int
    purpose: Purpose
    opened_at_unix_ms: int
    duration_s: float
    components: Sequence[ComponentReport]
    tasks: Sequence[TaskReport]
    missing_clients: Sequence[str]
    refused: Sequence[RefusedUpdate]
    """The first of them."""
    num_refused: int
    bytes_received: int
    bytes_sent: int
    unchanged_tasks: Sequence[str]
    """Tasks whose head nobody changed."""
    aggregation_s: float = 0.0
    """From the round's end to its average; part of `duration_s`."""
    failed: bool = False
    """Whether it lacked its quorum and was given up: nothing counts, the model is as it was."""
    stages: Mapping[str, JsonObject] = field(default_factory=dict)
    """By stage of the aggregation, what it remembers after the round, as JSON has it; see `StageState`."""
    moved: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """By part that moved in this round, the blocks that shared it before."""
    discarded: Sequence[DiscardedComponent] = field(default_factory=list)
    """The components that stay as they were, although updates of them counted."""
    warnings: Sequence[RoundWarning] = field(default_factory=list)
    """What makes its result doubtful."""

    @property
    def sharing(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """By part of the encoder that has moved in the run, the blocks of tasks that share it after this round."""
        blocks: Mapping[str, Sequence[Sequence[str]]] = self.stages.get("sharing", {}).get("blocks", {})
        return blocks

    def to_dict(self) -> dict[str, Any]:
        """What the history stores."""
        values = asdict(self)
        stages = values.pop("stages")
        return values | _stored(stages)

    @classmethod
    def from_dict(cls, values: JsonObject) -> RoundReport:
        """The report that `to_dict` was made of, by this version or one before it."""
        components = [
            ComponentReport(**{**one, "contributions": [Contribution(**part) for part in one["contributions"]]})
            for one in values["components"]
        ]
        tasks = [TaskReport.from_dict(one) for one in values["tasks"]]
        refused = [RefusedUpdate(**one) for one in values["refused"]]
        discarded = [DiscardedComponent(**one) for one in values.get("discarded", ())]  # older reports don't say
        parts = {"components": components, "tasks": tasks, "refused": refused, "discarded": discarded}
        warnings = [RoundWarning(**one) for one in values.get("warnings", ())]  # nor of this
        fields = {key: value for key, value in values.items() if key not in _STORED_KEYS}
        return cls(**{**fields, **parts, "warnings": warnings, "stages": _from_stored(values)})


_STORED_KEYS = {
    "weighting_states": ("task_weighting", ""),
    "sharing": ("sharing", "blocks"),
    "sharing_state": ("sharing", "policy"),
    "control_variates": ("control_variates", ""),
}
"""By key of a stored report, the stage whose memory it has, and which part of that; with an empty name all of it. The
memory of other stages is stored as `stages`."""


def _stored(stages: Mapping[str, JsonObject]) -> dict[str, JsonObject]:
    """What stages remember, by the keys under which a report has it."""
    values: dict[str, JsonObject] = {}
    for key, (stage, part) in _STORED_KEYS.items():
        facts = stages.get(stage, {})
        values[key] = facts.get(part, {}) if part else facts
    known = {stage for stage, _ in _STORED_KEYS.values()}
    others = {stage: facts for stage, facts in stages.items() if stage not in known}
    return values | ({"stages": others} if others else {})


def _from_stored(values: JsonObject) -> dict[str, JsonObject]:
    """By stage, what it remembers, as a stored report has it; stages that remember nothing are absent."""
    stages: dict[str, JsonObject] = {stage: dict(facts) for stage, facts in values.get("stages", {}).items()}
    for key, (stage, part) in _STORED_KEYS.items():
        if facts := values.get(key):
            stages[stage] = {**stages.get(stage, {}), part: facts} if part else dict(facts)
    return stages


def counted_norms(report: RoundReport) -> dict[str, list[float]]:
    """By scope, the norms that updates counted with."""
    return {
        component.scope: [part.counted_norm for part in component.contributions if part.counted_norm is not None]
        for component in report.components
    }


def round_record(report: RoundReport) -> RoundRecord:
    """What the stages of the aggregation learn of a round that has ended."""
    return RoundRecord(counted_norms(report), is_regrouped=bool(report.moved))


def counted_examples(report: RoundReport) -> dict[str, float]:
    """By task, the examples that its updates counted as in a component: the least of those that they are in."""
    counted = {task.task: [float(task.num_examples)] for task in report.tasks}
    for component in report.components:
        by_task: dict[str, float] = {}
        for part in component.contributions:
            examples = part.num_examples if part.counted_examples is None else part.counted_examples
            by_task[part.task] = by_task.get(part.task, 0) + examples
        for task, examples in by_task.items():
            counted.setdefault(task, []).append(examples)
    return {task: min(examples) for task, examples in counted.items()}


def component_reports(aggregate: Aggregate) -> list[ComponentReport]:
    """What a round's average says of each component."""
    return [
        ComponentReport(scope, len(aggregate.components[scope].layout.tensors), contributions)
        for scope, contributions in aggregate.contributions.items()
    ]


def task_reports(
    scopes: Mapping[str, Sequence[str]],
    cohort: Iterable[Member],
    aggregate: Aggregate,
    round_: int,
    factors: Mapping[str, float] | None = None,
) -> list[TaskReport]:
    """What a round's cohort reported, task by task. Who began with an older model says nothing of the round's own.

    Args:
        scopes: by task, those of its slice.
        cohort: the round's.
        aggregate: what came of it.
        round_: its number.
        factors: by auxiliary task, what an example of it counts for in the encoder; none are auxiliary if None.
    """
    updates = [answer for member in cohort for answer in member.answers if isinstance(answer, Update)]
    reports = []
    for task in scopes:
        encoder = aggregate.contributions.get(scopes[task][0], ())
        mine = [update for update in updates if update.task == task]
        received = task_metrics(update.received for update in mine if update.base_round == round_)
        trained = task_metrics(update.trained for update in mine)
        reports.append(
            TaskReport(
                task=task,
                num_updates=len(mine),
                num_examples=sum(update.num_examples for update in mine),
                encoder_share=sum(part.weight for part in encoder if part.task == task),
                received_metrics=_values(received),
                trained_metrics=_values(trained),
                auxiliary_weight=(factors or {}).get(task),
                received_reports=_metric_reports(received),
                trained_reports=_metric_reports(trained),
            )
        )
    return reports


def _values(metrics: Mapping[str, TaskMetric]) -> dict[str, float]:
    """Those that have a value."""
    return {name: one.value for name, one in metrics.items() if one.value is not None}


def _metric_reports(metrics: Mapping[str, TaskMetric]) -> dict[str, MetricReport]:
    return {
        name: MetricReport(one.is_pooled, one.num_clients, one.num_examples, one.num_undefined)
        for name, one in metrics.items()
    }
