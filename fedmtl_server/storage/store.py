"""What survives: the run's folder and its history.

RUN_DIR/
  run.json                 the run's id: from here on the folder holds a run
  beginning.json           the same, until the history knows of the run
  config.yaml              the configuration as used, without the password of `store.url`
  lock                     held by the server that serves the run
  server.json              address, process id and run id of the server, while and after it serves
  history.sqlite           the run's history, unless `store.url` names another database
  checkpoints/             round-0003.safetensors: the model after a round; the newest few, and each task's best;
                           round-0003.state.safetensors: what the server's optimiser remembers then, if it has one,
                           and the server's control variates
  staging/                 acknowledged updates of the round in progress
  results.json, metrics.png    when the run is over

A commit is the history's transaction. What it needs (checkpoint, updates) is on disk before, and what it makes
superfluous goes afterwards; so whenever a server ends, the history says where the run stands.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fedmtl_core import config as configuration
from fedmtl_core.config import Config, Durability
from fedmtl_core.errors import CorruptCheckpointError, StoreError
from fedmtl_core.logs import get_logger
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.layout import Component, Layout
from fedmtl_server.model import ModelSummary
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.storage.checkpoints import read_safetensors, write_safetensors
from fedmtl_server.storage.engines import without_password
from fedmtl_server.storage.folders import read_run_id
from fedmtl_server.storage.history import FILE_NAME, History
from fedmtl_server.storage.lock import FILE_NAME as LOCK_NAME
from fedmtl_server.storage.missing import missing_history
from fedmtl_server.storage.permissions import make_run_folder
from fedmtl_server.storage.records import RoundRecord, RunRecord, UpdateRecord
from fedmtl_server.storage.rollback import DAMAGED, checkpoint_path, clear_rolled_back, set_aside, state_path
from fedmtl_server.storage.spool import Spool
from fedmtl_server.storage.syncing import sync_folder

_LOCK_WAIT_S = 2.0
"""`runs list` takes a run's lock for a moment, to see whether it is served."""


@dataclass(frozen=True)
class LeftOff:
    """Where a run stood when the server before this one ended."""

    round: int
    """The first that isn't dealt with."""
    cohort: Mapping[str, str] | None
    """Task by client id, if that round was open."""
    opened_at_unix_ms: int
    counted: Mapping[str, tuple[str, int]]
    """By client id, its last counted update and the round."""
    last_clients: Collection[str]
    """Those that reported in the round before."""
    reports: Sequence[RoundReport]
    components: Mapping[str, Component]
    """The model."""
    state: Mapping[str, Component] = field(default_factory=dict)
    """What the server's optimiser remembers, by `SCOPE/SLOT`, and its control variates, by `control:SCOPE`; none before
    the first step."""


class RunStore:
    """One run's folder, locked, and the run's history.

    Args:
        run_dir: the folder.
        run_id: the run.
        config: as the run is served now.
        is_new: whether the run begins here; the history of another one has to exist.

    Raises:
        StoreError: from every method, when something can't be written or read.
    """

    def __init__(self, run_dir: Path, run_id: str, config: Config, *, is_new: bool):
        self.run_dir = run_dir
        self.run_id = run_id
        self._keep = config.store.keep_checkpoints
        self._durability: Durability = config.store.durability
        self._checkpoints = run_dir / "checkpoints"
        self._log = get_logger()
        self.spool = Spool(run_dir / "staging", sync=self._durability == "power")
        self._make_folders(config)
        self._lock = _locked(run_dir)
        self._idle = threading.Condition()
        self._num_working = 0
        self._closed = False
        try:
            self._history = History.open(config.store.url or run_dir / FILE_NAME, create=is_new)
        except BaseException:
            self._lock.release()
            raise

    @property
    def writes_behind(self) -> bool:
        """Whether a commit may be told of before it is on disk: with durability `memory`."""
        return self._durability == "memory"

    @classmethod
    def create(
        cls,
        config: Config,
        run_id: str,
        components: Mapping[str, Component],
        summary: ModelSummary,
        run_dir: Path | None = None,
    ) -> RunStore:
        """Make a new run's folder, by default one named after the time within `server.runs_dir`.

        Args:
            config: the run's.
            run_id: names it for good.
            components: the model it begins with, by scope.
            summary: of that model.
            run_dir: the folder.

        Raises:
            StoreError: another server has the folder, or a run is in it, or it can't be made.
        """
        if run_dir is None:
            run_dir = config.server.runs_dir / f"{datetime.now():%Y%m%d-%H%M%S}-{run_id[:8]}"
        store = cls(run_dir, run_id, config, is_new=True)
        try:
            store._begin(without_secrets(config), components, summary)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def resume(cls, config: Config, run_id: str, run_dir: Path, *, finished: bool = False) -> RunStore:
        """Open the folder of a run that was begun.

        Args:
            config: as the run is served now.
            run_id: the run.
            run_dir: the folder.
            finished: whether it may be over.

        Raises:
            StoreError: another server has the folder, the run is over, its history is missing, or the database
                doesn't know it.
        """
        if config.store.url is None and not (run_dir / FILE_NAME).is_file():
            raise StoreError(missing_history(run_dir))
        store = cls(run_dir, run_id, config, is_new=False)
        record = store._history.find_run(run_id)
        if record is not None and (record.state == "running" or finished):
            return store
        store.close()
        if record is None:
            raise StoreError(f"the database doesn't know run {run_id} of {run_dir}; was store.url changed?")
        url = f" --url {without_password(config.store.url)}" if config.store.url else ""
        raise StoreError(
            f"the run in {run_dir} is over: see it with `fedmtl-server runs show {run_dir}{url}`, hand out its model "
            "with --keep-serving, or choose another folder with --run-dir"
        )

    def left_off(
        self,
        layouts: Iterable[Layout],
        state_layouts: Iterable[Layout] = (),
        moved: Callable[[Mapping[str, Any]], tuple[Sequence[Layout], Sequence[Layout]]] | None = None,
    ) -> LeftOff:
        """Where the run stands.

        A checkpoint that isn't what was written is refused, and the one before it used; the rounds since then are
        held again.

        Args:
            layouts: of the whole model.
            state_layouts: of what the server's optimiser remembers, and of control variates.
            moved: both, when layers have moved as a report's `sharing` says; None if they can't.

        Raises:
            StoreError: no checkpoint can be used.
        """
        layouts, state_layouts = list(layouts), list(state_layouts)
        rounds = self._history.rounds(self.run_id)
        self._finish_rollback(rounds)
        committed = [one for one in rounds if one.outcome == "committed" and one.checkpoint is not None]
        refused: list[int] = []
        reason = ""
        for record in reversed(committed):
            sharing = (record.report or {}).get("sharing")
            mine = moved(sharing) if moved and sharing else (layouts, state_layouts)
            try:
                components = self._read(self._checkpoint(record.round), record, mine[0])
                state = self._read_state(record, mine[1])
                break
            except CorruptCheckpointError as error:
                reason = reason or str(error)
                expected = record in committed[-self._keep :]  # older ones were removed
                if expected or self._checkpoint(record.round).exists():
                    self._log.error("checkpoint.refused", round=record.round, reason=str(error))
                    refused.append(record.round)
        else:
            raise StoreError(
                f"no checkpoint in {self._checkpoints} can be used: those of rounds {refused} are missing or damaged, "
                f"or the model that the configuration names isn't the run's: {reason}"
            )
        if refused:
            self._log.error("run.rolled_back", to_round=record.round, reason=f"the checkpoints {refused} can't be used")
            self._set_aside(record.round)  # first: if the server ends now, the next one finds them missing, and goes on
            self._history.roll_back(self.run_id, record.round)
            rounds = self._history.rounds(self.run_id)
        ended = [one for one in rounds if one.outcome in ("committed", "failed")]
        round_ = max(one.round for one in ended) + 1
        open_round = next((one for one in rounds if one.outcome == "open" and one.round == round_), None)
        return LeftOff(
            round=round_,
            cohort=open_round.cohort if open_round else None,
            opened_at_unix_ms=open_round.opened_at_unix_ms if open_round else 0,
            counted=self._history.last_counted(self.run_id),
            last_clients=ended[-1].cohort.keys() - set((ended[-1].report or {}).get("missing_clients", ())),
            reports=[RoundReport.from_dict(one.report) for one in ended if one.report is not None],
            components=components,
            state=state,
        )

    def _finish_rollback(self, rounds: Sequence[RoundRecord]) -> None:
        """Put away the files that a rollback has left which was cut short."""
        if not self.is_over():
            with _writing(self._checkpoints):
                clear_rolled_back(self.run_dir, [one.round for one in rounds if one.outcome == "rolled_back"])

    def reports(self) -> list[RoundReport]:
        """Of the rounds that have ended, in their order."""
        with self._working():
            rounds = self._history.rounds(self.run_id)
        ended = [one for one in rounds if one.outcome in ("committed", "failed")]
        return [RoundReport.from_dict(one.report) for one in ended if one.report is not None]

    def announce(self, address: str) -> None:
        """Write down where the server listens, for those who look for it."""
        self._write_json("server.json", {"run_id": self.run_id, "address": address, "pid": os.getpid()})

    def open_round(self, round_: int, purpose: Purpose, opened_at_unix_ms: int, cohort: Mapping[str, str]) -> None:
        """Note who takes part in a round, before they are told."""
        with self._working():
            self._history.open_round(self.run_id, round_, purpose, opened_at_unix_ms, cohort)

    def write_model(
        self,
        components: Mapping[str, Component],
        round_: int,
        state: Mapping[str, Component] | None = None,
        sharing: Mapping[str, Sequence[Sequence[str]]] | None = None,
    ) -> None:
        """Put a model on disk; it is of no account until `end_round` says so.

        Args:
            components: the whole model by scope.
            round_: the round that made it.
            state: what the server's optimiser remembers and its control variates, if it has them. It is there before
                the model is.
            sharing: by part of the encoder that has moved, who shares it.
        """
        metadata = self._metadata(round_, sharing)
        if state:
            self._write_components(self._state(round_), state, metadata)
        self._write_components(self._checkpoint(round_), components, metadata)

    def _write_components(self, path: Path, components: Mapping[str, Component], metadata: Mapping[str, str]) -> None:
        with self._working(), _writing(path):
            scratch = path.with_suffix(".tmp")
            with scratch.open("wb", buffering=0) as file:
                write_safetensors(file, components.values(), metadata)
            _replace(scratch, path, sync=self._durability == "power")

    def end_round(
        self,
        report: RoundReport,
        cohort: Mapping[str, str],
        updates: Sequence[UpdateRecord],
        digests: Mapping[str, bytes] | None = None,
    ) -> None:
        """Make a round's end the truth: its commit, or its failure.

        Args:
            report: how it came about.
            cohort: task by client id.
            updates: what became of each.
            digests: of what was written for it, the model by scope and the optimiser's state by `SCOPE/SLOT`; None
                if the model is as it was.
        """
        record = RoundRecord(
            run_id=self.run_id,
            round=report.round,
            purpose=report.purpose,
            outcome="failed" if report.failed else "committed",
            opened_at_unix_ms=report.opened_at_unix_ms,
            ended_at_unix_ms=_now_ms(),
            cohort=cohort,
            report=report.to_dict(),
            checkpoint={scope: digest.hex() for scope, digest in digests.items()} if digests else None,
        )
        with self._working():
            self._history.end_round(self.run_id, record, updates)

    def has_counted(self, client_id: str, update_id: str) -> bool:
        """Whether an update counts in any round."""
        with self._working():
            return self._history.has_counted(self.run_id, client_id, update_id)

    def prune(self, best_rounds: Collection[int]) -> None:
        """Remove the checkpoints that are neither among the newest nor of one of the best rounds."""
        with self._working(), _writing(self._checkpoints):
            rounds = self._checkpoint_rounds()
            for old in rounds[: -self._keep]:
                if old not in best_rounds:
                    self._checkpoint(old).unlink(missing_ok=True)
                    self._state(old).unlink(missing_ok=True)

    def is_over(self) -> bool:
        """Whether `finish` has been called, by this server or one before it, and no rollback since."""
        with self._working():
            record = self._history.find_run(self.run_id)
            return record is not None and record.state == "finished"

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write down what the run came to; what a run that was over already came to stays."""
        if not self.is_over():
            with self._working():
                self._write_json("results.json", results)

    def finish(self) -> None:
        """Note that the run is over and everybody knows: there is nothing to be taken up any more.

        The end of a run that was over already stays.
        """
        with self._working():
            self._history.finish_run(self.run_id, _now_ms())

    def close(self) -> None:
        """Let others have the folder, when what is being written is written. Nothing can be written afterwards."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: self._num_working == 0)
        self.spool.close()
        self._history.close()
        self._lock.release()

    def _begin(self, config: Config, components: Mapping[str, Component], summary: ModelSummary) -> None:
        """Make the folder hold the run.

        The history knows of it a moment before `run.json` is there. What lies in between is undone by the next that
        begins here: it finds the run's id in `beginning.json`.
        """
        if (self.run_dir / "run.json").exists():
            raise StoreError(f"{self.run_dir} holds a run already")
        beginning = self.run_dir / "beginning.json"
        if beginning.exists():
            self._history.delete_run(read_run_id(beginning))
        self._write("config.yaml", configuration.dump(config))
        self.write_model(components, 0)
        self._write_json(beginning.name, {"run_id": self.run_id})
        record = RunRecord(
            run_id=self.run_id,
            created_at_unix_ms=_now_ms(),
            run_dir=str(self.run_dir.absolute()),
            base_model=summary.base_model,
            tasks=tuple(summary.head_parameters),
            num_rounds=config.training.num_rounds,
            config=config.model_dump(mode="json"),
        )
        self._history.begin_run(record, {scope: one.digest().hex() for scope, one in components.items()})
        with _writing(self.run_dir / "run.json"):
            _replace(beginning, self.run_dir / "run.json")

    def _make_folders(self, config: Config) -> None:
        _make_folder(self.run_dir.parent)
        if not self.run_dir.exists():
            with _writing(self.run_dir):
                make_run_folder(self.run_dir, config.store.readable_by)
                sync_folder(self.run_dir.parent)
        for folder in (self._checkpoints, self.spool.folder):
            _make_folder(folder)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Keep the store open: a thread's work goes on when the task that waited for it is cancelled."""
        with self._idle:
            if self._closed:
                raise StoreError(f"{self.run_dir} is no longer this server's to write to")
            self._num_working += 1
        try:
            yield
        finally:
            with self._idle:
                self._num_working -= 1
                self._idle.notify_all()

    def _metadata(self, round_: int, sharing: Mapping[str, Sequence[Sequence[str]]] | None = None) -> dict[str, str]:
        return {"run_id": self.run_id, "round": str(round_)} | (
            {"sharing": json.dumps(sharing, sort_keys=True)} if sharing else {}
        )

    def _checkpoint(self, round_: int) -> Path:
        return checkpoint_path(self._checkpoints, round_)

    def _state(self, round_: int) -> Path:
        return state_path(self._checkpoint(round_))

    def _checkpoint_rounds(self) -> list[int]:
        """The rounds whose checkpoints are there."""
        numbers = (path.stem.removeprefix("round-") for path in self._checkpoints.glob("round-*.safetensors"))
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _set_aside(self, to_round: int) -> None:
        """Rename the checkpoints of rounds that were rolled back: the ones to come are not older than they."""
        with _writing(self._checkpoints):
            set_aside(self._checkpoints, [one for one in self._checkpoint_rounds() if one > to_round], DAMAGED)

    def _read(self, path: Path, record: RoundRecord, layouts: Sequence[Layout]) -> dict[str, Component]:
        """What a round's commit says is in a file."""
        try:
            metadata = self._metadata(record.round, (record.report or {}).get("sharing"))
            components = read_safetensors(path, layouts, metadata)
        except FileNotFoundError:
            raise CorruptCheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise StoreError(f"can't read {path}: {error.strerror or error}") from error
        expected = record.checkpoint or {}
        if damaged := [scope for scope, one in components.items() if one.digest().hex() != expected.get(scope)]:
            raise CorruptCheckpointError(f"{path}: {', '.join(damaged)}: the bytes aren't those that were written")
        return components

    def _read_state(self, record: RoundRecord, layouts: Sequence[Layout]) -> dict[str, Component]:
        """What the optimiser remembered after a round; nothing after one that was before its first step."""
        committed = record.checkpoint or {}
        if not any(layout.scope in committed for layout in layouts):
            return {}
        return self._read(self._state(record.round), record, layouts)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        path = self.run_dir / name
        with _writing(path):
            scratch = path.with_suffix(".tmp")
            scratch.write_text(text, encoding="utf-8")
            _replace(scratch, path)


def without_secrets(config: Config) -> Config:
    """A configuration as it is kept where others may read it."""
    if config.store.url is None:
        return config
    store = config.store.model_copy(update={"url": without_password(config.store.url)})
    return config.model_copy(update={"store": store})


def _make_folder(folder: Path) -> None:
    """Make a folder and those that it is in, such that their names are on disk too."""
    with _writing(folder):
        for one in (*reversed(folder.parents), folder):
            if not one.exists():
                one.mkdir(exist_ok=True)
                sync_folder(one.parent)


def _locked(run_dir: Path) -> FileLock:
    lock = FileLock(run_dir / LOCK_NAME, timeout=_LOCK_WAIT_S, thread_local=False)
    with _writing(run_dir):
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(f"another server is serving the run in {run_dir}") from None
    return lock


def _replace(scratch: Path, path: Path, *, sync: bool = True) -> None:
    """Rename a finished file into place: it is there whole or not at all, with `sync` also after a power cut."""
    if sync:
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
    scratch.replace(path)
    if sync:
        sync_folder(path.parent)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror or error}") from error
