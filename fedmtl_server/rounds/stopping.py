"""When a run's training ends before its last round: the metrics it watches have stopped improving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedmtl_core.config import EarlyStoppingConfig


@dataclass(frozen=True)
class EarlyStopping:
    """Ends training when no watched task has improved for `patience` rounds in a row; never without a `patience`.

    As with `EarlyStoppingCallback` of transformers, an improvement is one by more than `threshold`.
    """

    section: EarlyStoppingConfig

    @property
    def patience(self) -> int | None:
        """Rounds in a row."""
        return self.section.patience

    def is_due(self, by_round: Mapping[str, Mapping[int, float]]) -> bool:
        """Whether training should end.

        Args:
            by_round: by task, its main metric by the number of the model measured; more is better.
        """
        watch, patience = self.section.watch, self.section.patience
        if patience is None:
            return False
        watched = [measured for task, measured in by_round.items() if measured and (not watch or task in watch)]
        latest = max((round_ for measured in by_round.values() for round_ in measured), default=0)
        return bool(watched) and all(latest - self._best_round(measured) >= patience for measured in watched)

    def _best_round(self, measured: Mapping[int, float]) -> int:
        """The last round that improved a task's metric; the first one if none did."""
        best, best_round = float("-inf"), min(measured)
        for round_ in sorted(measured):
            if measured[round_] > best + self.section.threshold:
                best, best_round = measured[round_], round_
        return best_round
