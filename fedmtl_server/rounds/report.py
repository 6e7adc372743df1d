"""The round report: contributions and their weights, the result, and refused updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedmtl_core.config.stages import ADAPTERS
from fedmtl_core.json_types import JsonObject
from fedmtl_core.model.scopes import factor_in
from fedmtl_core.tasks.evaluation import task_metrics
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.updates import Update
from fedmtl_server.aggregation.values import Aggregate, Contribution, DiscardedComponent, RoundRecord
from fedmtl_server.rounds.membership import Member
from fedmtl_server.rounds.metric_reports import MetricReport, metric_reports, values_of
from fedmtl_server.rounds.variant_reports import VariantReport, variant_reports
from fedmtl_server.rounds.warnings import RoundWarning


@dataclass(frozen=True)
class ComponentReport:
    """The contributions to one component."""

    scope: str
    num_tensors: int
    contributions: Sequence[Contribution]
    scaling: Mapping[str, float] = field(default_factory=dict)
    """By part of the encoder, the factor on its combined delta; empty unless the norm of the deltas is preserved."""


@dataclass(frozen=True)
class TaskReport:
    """One task in one round."""

    task: str
    num_updates: int
    num_examples: int
    encoder_share: float
    """The weight of the task's delta in the encoder: its share of the average, or the weight from a task weighting. If
    the encoder has several components, the weight in the one that most tasks share."""
    received_metrics: Mapping[str, float]
    """Metrics of the model that the round began with, over the evaluation rows of the task's clients. Metrics without a
    value are absent."""
    trained_metrics: Mapping[str, float]
    """Metrics of the clients' own models after training, over the same rows. Metrics without a value are absent."""
    auxiliary_weight: float | None = None
    """The weight of one example in the encoder if the task is auxiliary; None if it isn't."""
    received_reports: Mapping[str, MetricReport] = field(default_factory=dict)
    """By name, how each received metric was computed, including undefined metrics."""
    trained_reports: Mapping[str, MetricReport] = field(default_factory=dict)
    """By name, how each trained metric was computed, including undefined metrics."""
    variants: Sequence[VariantReport] = field(default_factory=list)
    """The results of the variants that the round offered, in the order of the offer."""

    @property
    def chosen(self) -> VariantReport | None:
        """The variant whose values the task's model has after the round; None if there is none."""
        return next((one for one in self.variants if one.chosen), None)

    @classmethod
    def from_dict(cls, values: JsonObject) -> TaskReport:
        """Return the report that `asdict` was made of; older reports don't say how metrics were computed, nor have
        variants."""
        reports = {
            key: {name: MetricReport(**one) for name, one in values.get(key, {}).items()}
            for key in ("received_reports", "trained_reports")
        }
        variants = [VariantReport.from_dict(one) for one in values.get("variants", ())]
        return cls(**{**values, **reports, "variants": variants})


@dataclass(frozen=True)
class RefusedUpdate:
    """An update that did not count, and the reason."""

    client_id: str
    task: str
    code: str
    reason: str
    # The update's own header, as far as it could be read.
    update_id: str = ""
    base_round: int = 0
    kind: str = ""
    num_examples: int = 0


@dataclass(frozen=True)
class RoundReport:
    """The course and result of one round."""

    round: int
    purpose: Purpose
    opened_at_unix_ms: int
    duration_s: float
    components: Sequence[ComponentReport]
    tasks: Sequence[TaskReport]
    missing_clients: Sequence[str]
    refused: Sequence[RefusedUpdate]
    """The first refused updates."""
    num_refused: int
    bytes_received: int
    bytes_sent: int
    unchanged_tasks: Sequence[str]
    """Tasks whose head no update changed."""
    aggregation_s: float = 0.0
    """Seconds from the end of the round's last exchange to its average; part of `duration_s`."""
    failed: bool = False
    """Whether the round failed for lack of its quorum: no update counts, and the model is unchanged."""
    stages: Mapping[str, JsonObject] = field(default_factory=dict)
    """By stage of the aggregation, its state after the round, as JSON; see `StageState`."""
    moved: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """By part of the encoder that moved in this round, the blocks of tasks that shared it before."""
    moved_by: Mapping[str, str] = field(default_factory=dict)
    """By part of the encoder that moved in this round, the setting that moved it; older reports lack it."""
    discarded: Sequence[DiscardedComponent] = field(default_factory=list)
    """The components left unchanged although updates of them counted."""
    warnings: Sequence[RoundWarning] = field(default_factory=list)
    """The warnings about the round's result."""

    @property
    def makes_final_model(self) -> bool:
        """Whether this round evaluated the model of the last training round, and then changed it for some task."""
        return self.purpose == "evaluate" and any(task.chosen for task in self.tasks)

    @property
    def sharing(self) -> Mapping[str, Sequence[Sequence[str]]]:
        """By part of the encoder that has moved in the run, the blocks of tasks that share it after this round."""
        blocks: Mapping[str, Sequence[Sequence[str]]] = self.stages.get("sharing", {}).get("blocks", {})
        return blocks

    @property
    def inexactness(self) -> Mapping[str, float]:
        """By scope, the relative error of the adapters' products against the clients' mean products; empty if it wasn't
        measured."""
        errors: Mapping[str, float] = self.stages.get(ADAPTERS.name, {}).get("inexactness", {})
        return errors

    def to_dict(self) -> dict[str, Any]:
        """Return the report as the history stores it."""
        values = asdict(self)
        stages = values.pop("stages")
        return values | _stored(stages)

    @classmethod
    def from_dict(cls, values: JsonObject) -> RoundReport:
        """Return the report that `to_dict` was made of, by this version or an earlier one."""
        components = [
            ComponentReport(**{**one, "contributions": [Contribution(**part) for part in one["contributions"]]})
            for one in values["components"]
        ]
        tasks = [TaskReport.from_dict(one) for one in values["tasks"]]
        refused = [RefusedUpdate(**one) for one in values["refused"]]
        discarded = [DiscardedComponent(**one) for one in values.get("discarded", ())]  # older reports lack it
        parts = {"components": components, "tasks": tasks, "refused": refused, "discarded": discarded}
        warnings = [RoundWarning(**one) for one in values.get("warnings", ())]  # older reports lack it too
        fields = {key: value for key, value in values.items() if key not in _STORED_KEYS}
        return cls(**{**fields, **parts, "warnings": warnings, "stages": _from_stored(values)})


_STORED_KEYS = {
    "weighting_states": ("task_weighting", ""),
    "sharing": ("sharing", "blocks"),
    "sharing_state": ("sharing", "policy"),
    "control_variates": ("control_variates", ""),
}
"""By key of a stored report, the stage whose state it holds, and the part of that state; an empty name means the whole
state. The state of other stages is stored under `stages`."""


def _stored(stages: Mapping[str, JsonObject]) -> dict[str, JsonObject]:
    """Return the state of stages under the keys of a stored report."""
    values: dict[str, JsonObject] = {}
    for key, (stage, part) in _STORED_KEYS.items():
        state = stages.get(stage, {})
        values[key] = state.get(part, {}) if part else state
    known = {stage for stage, _ in _STORED_KEYS.values()}
    others = {stage: state for stage, state in stages.items() if stage not in known}
    return values | ({"stages": others} if others else {})


def _from_stored(values: JsonObject) -> dict[str, JsonObject]:
    """Return, by stage, the state in a stored report; stages without state are absent."""
    stages: dict[str, JsonObject] = {stage: dict(state) for stage, state in values.get("stages", {}).items()}
    for key, (stage, part) in _STORED_KEYS.items():
        if state := values.get(key):
            stages[stage] = {**stages.get(stage, {}), part: state} if part else dict(state)
    return stages


def counted_norms(report: RoundReport) -> dict[str, list[float]]:
    """Return, by scope, the norms that updates counted with."""
    return {
        component.scope: [part.counted_norm for part in component.contributions if part.counted_norm is not None]
        for component in report.components
    }


def round_record(report: RoundReport) -> RoundRecord:
    """Return the record of an ended round for the stages of the aggregation."""
    return RoundRecord(counted_norms(report), is_regrouped=bool(report.moved))


def counted_examples(report: RoundReport) -> dict[str, float]:
    """Return, by task, the examples that its updates counted as: the smallest number over the components that they are
    in."""
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
    """Return the reports of the components in a round's aggregate."""
    return [
        ComponentReport(
            scope,
            len(aggregate.components[scope].layout.tensors),
            contributions,
            aggregate.scaling.get(scope, {}),
        )
        for scope, contributions in aggregate.contributions.items()
    ]


def task_reports(
    scopes: Mapping[str, Sequence[str]],
    cohort: Iterable[Member],
    aggregate: Aggregate,
    round_: int,
    factors: Mapping[str, float] | None = None,
) -> list[TaskReport]:
    """Return the reports of a round's tasks. Updates from an older model don't contribute to its `received_metrics`.

    Args:
        scopes: by task, the scopes of its slice.
        cohort: the round's members.
        aggregate: the result of the round's aggregation.
        round_: the round's number.
        factors: by auxiliary task, the weight of one of its examples in the encoder; None if no task is auxiliary.
    """
    updates = [answer for member in cohort for answer in member.answers if isinstance(answer, Update)]
    reports = []
    for task in scopes:
        encoder = [part for scope in _widest(scopes[task]) for part in aggregate.contributions.get(scope, ())]
        mine = [update for update in updates if update.task == task]
        received = task_metrics(update.received for update in mine if update.base_round == round_)
        trained = task_metrics(update.trained for update in mine)
        reports.append(
            TaskReport(
                task=task,
                num_updates=len(mine),
                num_examples=sum(update.num_examples for update in mine),
                encoder_share=sum(part.weight for part in encoder if part.task == task),
                received_metrics=values_of(received),
                trained_metrics=values_of(trained),
                auxiliary_weight=(factors or {}).get(task),
                received_reports=metric_reports(received),
                trained_reports=metric_reports(trained),
                variants=variant_reports(aggregate.variants.get(task, ()), aggregate.chosen.get(task)),
            )
        )
    return reports


def _widest(scopes: Sequence[str]) -> list[str]:
    """Return the scope of a slice that most clients share, which comes first. If factors of adapters are trained in
    turn, return one scope for each factor, of which a round trains only one."""
    firsts = {factor: scope for scope in reversed(scopes) if (factor := factor_in(scope)) is not None}
    return list(firsts.values()) or list(scopes[:1])
