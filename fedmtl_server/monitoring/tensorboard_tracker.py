"""Reports a run to TensorBoard: event files in a folder, written without TensorFlow and without torch's threads.

A folder holds one run. A server that resumes the run adds a file. Its first event makes TensorBoard drop the rounds of
earlier files from that round on, so each round is shown once.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary as summaries

from fedmtl_server.monitoring.tracking import MARKS, Outcome, RoundPoint, TrackedRun, Tracker

# TensorBoard doesn't type these.
_hparams: Callable[[Mapping[str, object], Mapping[str, float]], tuple[Summary, ...]] = summaries.hparams
_text: Callable[[str, str], Summary] = summaries.text


class TensorBoardTracker(Tracker):
    """Writes event files.

    Args:
        folder: gets a folder named after the run's id; if None, `tensorboard` in the run's folder does.
    """

    name = "tensorboard"

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._run_folder = Path()
        self._run: TrackedRun | None = None
        self._writer: RecordWriter | None = None

    def begin(self, run: TrackedRun) -> None:
        with suppress(OSError):  # values that couldn't be written to this file are written to the next
            self._close()
        self._run = run
        self._run_folder = (self._folder or run.run_dir / "tensorboard") / run.run_id
        self._run_folder.mkdir(parents=True, exist_ok=True)

    def lacks(self, points: Sequence[RoundPoint]) -> Sequence[RoundPoint]:
        """Return all rounds from the first missing one on: writing a round makes TensorBoard drop the rounds after
        it."""
        held = self._held()
        known = {point.mark for point in points}
        stray = min((round_ for round_, ended_at in held if (round_, ended_at) not in known), default=None)
        first = next((i for i, point in enumerate(points) if point.mark not in held), len(points))
        if stray is not None:  # written before the run was rolled back
            first = min(first, next((i for i, point in enumerate(points) if point.round >= stray), len(points)))
        return points[first:]

    def round(self, point: RoundPoint) -> None:
        writer = self._writer or self._open(point.round)
        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.metrics.items()]
        self._write(writer, point, Summary(value=values))
        writer.flush()

    def end(self, outcome: Outcome) -> None:
        self._close()

    def _held(self) -> set[tuple[int, int]]:
        """Return the marks of the rounds in the folder."""
        events = EventAccumulator(str(self._run_folder), size_guidance={"scalars": 0})
        events.Reload()
        marks = (event for name in MARKS if name in events.Tags()["scalars"] for event in events.Scalars(name))
        return {(event.step, round(event.wall_time * 1000)) for event in marks}

    def _open(self, from_round: int) -> RecordWriter:
        """Start a file that continues with a round."""
        assert self._run is not None
        # Files are read in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010}.{time.time_ns() % 10**9:09}"
        path = self._run_folder / f"{name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        writer = self._writer = RecordWriter(path.open("ab"))
        now = time.time()
        self._write_event(writer, Event(wall_time=now, file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write_event(writer, Event(wall_time=now, step=from_round, session_log=start))
        settings = {key: _plain(value) for key, value in self._run.settings.items() if value is not None}
        for summary in (*_hparams(settings, {}), _text("settings", _table(settings))):
            self._write_event(writer, Event(wall_time=now, step=0, summary=summary))
        return writer

    def _write(self, writer: RecordWriter, point: RoundPoint, summary: Summary) -> None:
        self._write_event(writer, Event(wall_time=point.ended_at_unix_ms / 1000, step=point.round, summary=summary))

    @staticmethod
    def _write_event(writer: RecordWriter, event: Event) -> None:
        writer.write(event.SerializeToString())

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _plain(value: object) -> object:
    return json.dumps(value) if isinstance(value, list) else value


def _table(settings: Mapping[str, object]) -> str:
    rows = [f"| `{key}` | `{value}` |" for key, value in settings.items()]
    return "\n".join(["| key | value |", "| --- | --- |", *rows])
