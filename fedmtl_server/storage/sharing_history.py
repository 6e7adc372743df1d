"""The sharing of a run by round, read from the reports in its history. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from fedmtl_core.config.stages import SOURCES
from fedmtl_core.model.sharing import Partition, blocks_of
from fedmtl_core.tasks.paired import PairedLoss
from fedmtl_server.sharing.selection_rules import Comparison, SelectionRules, beyond_control
from fedmtl_server.sharing.source_changes import SourceChange, SourceState, source_changes
from fedmtl_server.sharing.source_selection import OWN, SHORTER
from fedmtl_server.storage.paths import checkpoint_path, checkpoint_rounds
from fedmtl_server.storage.records import RoundRecord
from fedmtl_server.storage.stored_reports import StoredReport, StoredVariant

_ALL = "all"
"""A candidate of older runs, with the updates of all tasks."""


@dataclass(frozen=True)
class Move:
    """Parts of the encoder whose sharing changed in the same way in a round."""

    parts: Sequence[str]
    before: Partition
    after: Partition
    cause: str
    """The setting that changed it; empty in older reports."""


@dataclass(frozen=True)
class Trial:
    """The comparison of a candidate's model with a task's model in a round."""

    task: str
    candidate: str
    """`own`, `with.TASK`, `without.TASK`, or `shorter`, the control."""
    chosen: bool
    """Whether the task's model has the candidate's values after the round."""
    num_diverged: int
    """Clients for which the candidate's loss or outputs aren't finite."""
    num_examples: int
    """Rows on which the two models were compared."""
    loss: float | None
    """Mean calibrated loss of the candidate's model; None if no client has a finite one."""
    loss_difference: float | None
    """Mean difference of the losses; below 0 if the candidate is better. None if no client has a finite one."""
    standard_error: float | None
    """Standard error of `loss_difference`; None if it is unknown."""
    lowers_metric: bool = False
    """Whether the candidate's model has a lower main metric than the task's model."""
    clients: Mapping[str, PairedLoss] = field(default_factory=dict)
    """By client with a finite loss, its part of the comparison."""

    @property
    def comparison(self) -> Comparison | None:
        """The comparison as the policy uses it; None if the policy can't use it."""
        if self.num_diverged or self.loss is None or self.loss_difference is None or self.standard_error is None:
            return None
        numbers = self.loss, self.loss_difference, self.standard_error, self.num_examples
        return Comparison(*numbers, lowers_metric=self.lowers_metric)

    @property
    def is_control(self) -> bool:
        """Whether it is the control, which is never accepted."""
        return self.candidate == SHORTER

    @property
    def has_fewer_sources(self) -> bool:
        """Whether the candidate takes fewer tasks' updates than the task did."""
        return self.candidate == OWN or self.candidate.startswith("without.")

    @property
    def name(self) -> str:
        """The candidate in words."""
        names = {OWN: "own updates only", SHORTER: "a shorter update", _ALL: "all tasks' updates"}
        return names.get(self.candidate, self.candidate.replace(".", " ", 1))


@dataclass(frozen=True)
class DecidedChange:
    """A change of a task's sources, with the trial that decided it."""

    change: SourceChange
    trial: Trial | None
    """None if no comparison decided the change."""


@dataclass(frozen=True)
class RoundSharing:
    """The sharing after one round, and its changes in that round."""

    round: int
    is_evaluation: bool
    state: SourceState
    blocks: Mapping[str, Partition]
    """By part of the encoder whose sharing has changed in the run, the blocks of tasks that share it now."""
    moves: Sequence[Move] = ()
    changes: Sequence[DecidedChange] = ()
    trials: Sequence[Trial] = field(default_factory=list)
    """All trials of the round, of accepted candidates too."""

    def rejected(self) -> list[Trial]:
        """Return the trials whose candidates weren't accepted."""
        return [one for one in self.trials if not one.chosen]

    def reason(self, trial: Trial, rules: SelectionRules | None) -> str:
        """Return the reason why a candidate wasn't accepted.

        Args:
            trial: one of the rejected trials.
            rules: the policy's margins; None if they are unknown.
        """
        if trial.is_control:
            return "control"
        if trial.num_diverged:
            return "loss not finite"
        if trial.loss_difference is None:
            return "not evaluated"
        compared = trial.comparison
        if compared is None:
            return "no standard error"
        if compared.difference >= 0:
            return "not better"
        if rules is not None and compared.z > -(rules.z_leave if trial.has_fewer_sources else rules.z_join):
            return "not significant"
        if rules is not None and compared.gain < rules.min_gain:
            return "gain too small"
        control = next((one for one in self.trials if one.task == trial.task and one.is_control), None)
        if rules is not None and not trial.has_fewer_sources and control is not None:
            beyond = beyond_control(trial.clients, control.clients)
            if beyond is None:
                return "control not compared"
            if beyond.z > -rules.z_leave:
                return "a shorter update is as good"
            if compared.lowers_metric:
                return "main metric lower"
        chosen = next((one.name for one in self.trials if one.task == trial.task and one.chosen), None)
        return f"{chosen} was better" if chosen else "within the margins"


def sharing_history(
    records: Iterable[RoundRecord], tasks: Sequence[str], main_metrics: Mapping[str, str] = MappingProxyType({})
) -> list[RoundSharing]:
    """Return the sharing after each round that has ended, in order.

    Args:
        records: the run's rounds, in order.
        tasks: the run's tasks.
        main_metrics: by task, the name of its main metric.
    """
    state, history = SourceState.start(tasks), []
    for record in records:
        if not record.has_ended or record.report is None:
            continue
        report = record.report
        saved = report.get("stages", {}).get(SOURCES.name)
        after = state if saved is None else SourceState.of(saved, tasks)
        trials = [] if saved is None else _trials(report, main_metrics)
        changes = [DecidedChange(one, _deciding(one, trials)) for one in source_changes(state, after)]
        blocks = {part: blocks_of(one) for part, one in record.sharing.items()}
        is_evaluation = record.purpose == "evaluate"
        history.append(RoundSharing(record.round, is_evaluation, after, blocks, _moves(report), changes, trials))
        state = after
    return history


def num_encoders(run_dir: Path) -> float | None:
    """Return the encoder parameters of all copies in the newest checkpoint, divided by those of one encoder.

    Returns:
        None if the folder has no readable checkpoint, or the clients keep the whole encoder.
    """
    from safetensors import SafetensorError, safe_open

    rounds = checkpoint_rounds(run_dir)
    if not rounds:
        return None
    kept, sizes = 0, {}
    try:
        with safe_open(checkpoint_path(run_dir, rounds[-1]), framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                name = key.rpartition("/")[2]
                if name.startswith("encoder."):
                    shape = file.get_slice(key).get_shape()
                    size = 1
                    for length in shape:
                        size *= length
                    kept, sizes[name] = kept + size, size
    except (OSError, SafetensorError):
        return None
    return kept / sum(sizes.values()) if sizes else None


def _trials(report: StoredReport, main_metrics: Mapping[str, str]) -> list[Trial]:
    return [
        _trial(task["task"], one, main_metrics.get(task["task"], ""))
        for task in report["tasks"]
        for one in task.get("variants", ())
    ]


def _trial(task: str, variant: StoredVariant, main_metric: str) -> Trial:
    return Trial(
        task,
        variant["name"],
        variant["chosen"],
        variant["num_diverged"],
        variant["num_examples"],
        variant["loss"],
        variant["loss_difference"],
        variant["standard_error"],
        main_metric in variant.get("lowered_metrics", ()),
        {client: PairedLoss(**one) for client, one in variant["clients"].items() if one is not None},
    )


def _deciding(change: SourceChange, trials: Sequence[Trial]) -> Trial | None:
    """Return the trial that decided a change."""
    return next((one for one in trials if one.task == change.task and one.chosen), None)


def _moves(report: StoredReport) -> list[Move]:
    """Return the changes of layers in a round, with equal changes of several parts together."""
    causes, sharing = report.get("moved_by") or {}, report.get("sharing") or {}
    parts: dict[tuple[Partition, Partition, str], list[str]] = {}
    for part, before in (report.get("moved") or {}).items():
        key = (blocks_of(before), blocks_of(sharing[part]), causes.get(part, ""))
        parts.setdefault(key, []).append(part)
    return [Move(names, *key) for key, names in parts.items()]
