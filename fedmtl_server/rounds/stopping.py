"""When a run's training ends before its last round: the metrics it watches have stopped getting better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class EarlyStopping:
    """Ends training when none of the watched tasks has improved for `patience` rounds.

    As with `EarlyStoppingCallback` of transformers, an improvement is one by more than `threshold`.
    """

    patience: int
    """Rounds in a row."""
    threshold: float = 0.0
    tasks: frozenset[str] = frozenset()
    """Those that are watched; none for every task that is measured."""

    def is_due(self, by_round: Mapping[str, Mapping[int, float]]) -> bool:
        """Whether training should end.

        Args:
            by_round: by task, its main metric by the number of the model measured; more is better.
        """
        watched = [
            measured for task, measured in by_round.items() if measured and (not self.tasks or task in self.tasks)
        ]
        latest = max((round_ for measured in by_round.values() for round_ in measured), default=0)
        return bool(watched) and all(self._has_stalled(measured, latest) for measured in watched)

    def _has_stalled(self, measured: Mapping[int, float], latest: int) -> bool:
        best, best_round = float("-inf"), min(measured)
        for round_ in sorted(measured):
            if measured[round_] > best + self.threshold:
                best, best_round = measured[round_], round_
        return latest - best_round >= self.patience
