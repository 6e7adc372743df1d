"""Finds where a run resumes: at the newest round whose checkpoint is intact. Damaged checkpoints are set aside."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmtl_core.errors import CorruptCheckpointError, StoreError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.layout import Component
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.storage.checkpoint_folder import CheckpointFolder, CheckpointLayouts
from fedmtl_server.storage.files import write_errors
from fedmtl_server.storage.history import History
from fedmtl_server.storage.records import RoundRecord
from fedmtl_server.storage.rollback import clear_rolled_back

LayoutsOf = Callable[[RoundReport | None], CheckpointLayouts]
"""The layouts of a round's checkpoint by its report, which says which layers had moved by then; None is round 0."""


@dataclass(frozen=True)
class LeftOff:
    """The state of a run when the server before this one ended."""

    round: int
    """The first round that has not ended."""
    cohort: Mapping[str, str] | None
    """Task by client id, if that round was open."""
    opened_at_unix_ms: int
    counted: Mapping[str, tuple[str, int]]
    """By client id, the id of its last counted update and the round in which it counted."""
    last_clients: Collection[str]
    """The clients that reported in the round before."""
    reports: Sequence[RoundReport]
    """The reports of all rounds that have ended, in order."""
    components: Mapping[str, Component]
    """The model by scope."""
    state: Mapping[str, Component] = field(default_factory=dict)
    """The saved components of the aggregation stages: the server optimizer's state by `SCOPE/SLOT`, control variates by
    `control:SCOPE`, and others. Empty before the first step."""


@dataclass(frozen=True)
class _Restored:
    """A checkpoint that was read, and the newer ones that could not be used."""

    round: int
    model: Mapping[str, Component]
    state: Mapping[str, Component]
    refused: Sequence[int]


def find_left_off(
    run_dir: Path, run_id: str, history: History, checkpoints: CheckpointFolder, layouts_of: LayoutsOf
) -> LeftOff:
    """Return the state that a run resumes with.

    If the newest checkpoint differs from what was committed, the one before it is used, and the run is rolled back to
    that checkpoint's round. A rollback that was interrupted is completed.

    Args:
        run_dir: the run's folder, locked.
        run_id: the run.
        history: a history that contains the run.
        checkpoints: the run's checkpoints.
        layouts_of: returns the layouts of a checkpoint.

    Raises:
        StoreError: no checkpoint can be used, or the history or a file can't be read or written.
    """
    rounds = history.rounds(run_id)
    run = history.find_run(run_id)
    if run is None or not run.is_finished:
        with write_errors(checkpoints.path):
            clear_rolled_back(run_dir, [one.round for one in rounds if one.outcome == "rolled_back"])
    restored = _restore(rounds, checkpoints, layouts_of)
    if restored.refused:
        reason = f"the checkpoints {restored.refused} can't be used"
        get_logger().error("run.rolled_back", to_round=restored.round, reason=reason)
        # Before the transaction: if the server ends in between, the next one finds these checkpoints missing.
        checkpoints.set_aside_after(restored.round)
        history.roll_back(run_id, restored.round)
        rounds = history.rounds(run_id)
    return _left_off(rounds, history.last_counted(run_id), restored)


def _restore(rounds: Sequence[RoundRecord], checkpoints: CheckpointFolder, layouts_of: LayoutsOf) -> _Restored:
    """Read the newest checkpoint whose content is what was committed.

    Raises:
        StoreError: no checkpoint can be used.
    """
    with_model = [one for one in rounds if one.has_model]
    refused: list[int] = []
    reason = ""
    for record in reversed(with_model):
        report = None if record.report is None else RoundReport.from_dict(record.report)
        try:
            model, state = checkpoints.read(record, layouts_of(report))
            return _Restored(record.round, model, state, refused)
        except CorruptCheckpointError as error:
            reason = reason or str(error)
            is_kept = record in with_model[-checkpoints.keep :]  # older ones were removed
            if is_kept or checkpoints.has(record.round):
                get_logger().error("checkpoint.refused", round=record.round, reason=str(error))
                refused.append(record.round)
    raise StoreError(
        f"no checkpoint in {checkpoints.path} can be used: those of rounds {refused} are missing or damaged, "
        f"or the model that the configuration names isn't the run's: {reason}"
    )


def _left_off(rounds: Sequence[RoundRecord], counted: Mapping[str, tuple[str, int]], restored: _Restored) -> LeftOff:
    ended = [one for one in rounds if one.has_ended]
    round_ = max(one.round for one in ended) + 1
    open_round = next((one for one in rounds if one.outcome == "open" and one.round == round_), None)
    return LeftOff(
        round=round_,
        cohort=open_round.cohort if open_round else None,
        opened_at_unix_ms=open_round.opened_at_unix_ms if open_round else 0,
        counted=counted,
        last_clients=ended[-1].cohort.keys() - set(ended[-1].missing_clients),
        reports=reports_of(rounds),
        components=restored.model,
        state=restored.state,
    )


def reports_of(rounds: Sequence[RoundRecord]) -> list[RoundReport]:
    """Return the reports of the rounds that have ended, in order."""
    return [RoundReport.from_dict(one.report) for one in rounds if one.has_ended and one.report is not None]
