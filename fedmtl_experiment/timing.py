"""The parts of a cell's wall time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedmtl_core.logs import EVALUATED, TRAINED, event_of, value_in
from fedmtl_server.storage.stored_reports import StoredReport


@dataclass(frozen=True)
class WallTime:
    """The wall seconds of a cell by part. The parts add up to the total."""

    total: float
    """From the drawing of the rows to the result."""
    start_up: float
    """The start and the end of all processes, loading and tokenizing, and everything else that no other part has."""
    training: float
    """Training in clients: in each round, that of the client that was busy longest."""
    evaluation: float
    """Evaluations by clients: in each round, those of the client that was busy longest."""
    exchange: float
    """The rest of the rounds: transfers, aggregation, and what clients wait for each other."""
    reporting: float
    """Evaluation of the reported rows."""


@dataclass(frozen=True)
class RoundTimes:
    """The wall seconds of a run's rounds by part."""

    training: float = 0.0
    evaluation: float = 0.0
    exchange: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all rounds."""
        return self.training + self.evaluation + self.exchange


def wall_time(total: float, rounds: Iterable[RoundTimes], reporting: float) -> WallTime:
    """Return the parts of a cell's time.

    Args:
        total: seconds of the cell.
        rounds: the rounds of each of the cell's runs, which ran one after the other.
        reporting: seconds of the evaluation on the reported rows.
    """
    runs = list(rounds)
    parts = {name: sum(getattr(one, name) for one in runs) for name in ("training", "evaluation", "exchange")}
    return WallTime(
        total=total, start_up=max(0.0, total - sum(parts.values()) - reporting), reporting=reporting, **parts
    )


def mean_wall_time(times: Sequence[WallTime]) -> WallTime:
    """Return the mean of each part over at least one cell."""
    return WallTime(**{name: sum(asdict(one)[name] for one in times) / len(times) for name in asdict(times[0])})


def round_times(reports: Sequence[StoredReport], client_logs: Iterable[Path]) -> RoundTimes:
    """Return the times of a finished run.

    In each round, the client with the longest training and evaluation decides how long the round takes. The rest of
    the round's duration is the exchange.

    Args:
        reports: the reports of all rounds; the last one is of the final evaluation.
        client_logs: the clients' logs, in console format.
    """
    busy: dict[int, tuple[float, float]] = {}
    for path in client_logs:
        for line in path.read_text(encoding="utf-8").splitlines():
            if event_of(line) in (TRAINED, EVALUATED):
                training, evaluation = _seconds(line, "seconds"), _seconds(line, "evaluation_seconds")
                round_ = _round_of(line) or reports[-1]["round"]
                busy[round_] = max(busy.get(round_, (0.0, 0.0)), (training, evaluation), key=sum)
    durations: Mapping[int, float] = {report["round"]: report["duration_s"] for report in reports}
    known = {round_: busy.get(round_, (0.0, 0.0)) for round_ in durations}
    return RoundTimes(
        training=sum(training for training, _ in known.values()),
        evaluation=sum(evaluation for _, evaluation in known.values()),
        exchange=sum(max(0.0, durations[round_] - sum(both)) for round_, both in known.items()),
    )


def _seconds(line: str, key: str) -> float:
    return float(value_in(line, key) or 0.0)


def _round_of(line: str) -> int | None:
    """Return the number in `progress='Round 3/10'`; None for the final evaluation."""
    words = (value_in(line, "progress") or "").replace("/", " ").split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None
