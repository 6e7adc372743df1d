"""Early stopping: a run's training ends before its last round if the watched metrics have stopped improving."""

from __future__ import annotations

from collections.abc import Mapping

from fedmtl_core.config import EarlyStoppingConfig


def should_stop(section: EarlyStoppingConfig, by_round: Mapping[str, Mapping[int, float]], since: int = 0) -> bool:
    """Return whether training should end: none of the watched tasks has improved for `patience` rounds in a row.

    As in `EarlyStoppingCallback` of transformers, only an increase by more than `threshold` is an improvement.

    Args:
        section: the watched tasks and the patience; without `patience` training never ends early.
        by_round: by task, its main metric by the number of the model measured; higher is better.
        since: the number of the first model that counts.
    """
    if section.patience is None:
        return False
    by_round = {
        task: {number: value for number, value in measured.items() if number >= since}
        for task, measured in by_round.items()
    }
    watched = [
        measured for task, measured in by_round.items() if measured and (not section.watch or task in section.watch)
    ]
    latest = max((round_ for measured in by_round.values() for round_ in measured), default=0)
    return bool(watched) and all(
        latest - _best_round(measured, section.threshold) >= section.patience for measured in watched
    )


def _best_round(measured: Mapping[int, float], threshold: float) -> int:
    """Return the last round in which a metric improved; the first one if it never did."""
    best, best_round = float("-inf"), min(measured)
    for round_ in sorted(measured):
        if measured[round_] > best + threshold:
            best, best_round = measured[round_], round_
    return best_round
