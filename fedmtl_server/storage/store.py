"""Writes one run's folder and its history, as the server that serves the run.

`paths` lists the files in the folder. A round's commit point is the transaction of the history that ends it. The
checkpoint and the updates that it refers to are on disk before it, and files that it makes superfluous are removed
after it. The history therefore has the run's state, whenever a server ends.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import StoreError
from fedmtl_core.json_types import JsonObject
from fedmtl_core.runtime.clock import now_ms
from fedmtl_core.tasks.plan import Purpose
from fedmtl_core.wire.layout import Component
from fedmtl_server.model_parts import ModelSummary
from fedmtl_server.rounds.report import RoundReport
from fedmtl_server.storage.checkpoint_folder import CheckpointFolder, Sharing
from fedmtl_server.storage.engines import without_password
from fedmtl_server.storage.files import (
    WriteGate,
    make_folder,
    move_into_place,
    sync_folder,
    write_errors,
    write_json,
    write_text,
)
from fedmtl_server.storage.folders import read_run_id
from fedmtl_server.storage.history import History
from fedmtl_server.storage.missing import missing_history
from fedmtl_server.storage.paths import (
    BEGINNING_FILE,
    CONFIG_FILE,
    HISTORY_FILE,
    LOCK_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SERVER_FILE,
    STAGING,
)
from fedmtl_server.storage.permissions import make_run_folder
from fedmtl_server.storage.records import RoundRecord, RunRecord, UpdateRecord
from fedmtl_server.storage.resume import LayoutsOf, LeftOff, find_left_off, reports_of
from fedmtl_server.storage.spool import Spool
from fedmtl_server.storage.stored_reports import stored_report

_LOCK_WAIT_S = 2.0
"""`runs list` holds a run's lock for a moment, to find out whether a server is serving the run."""


class RunStore:
    """One run's folder, locked, and the run's history. Its methods may be called from any thread.

    Args:
        run_dir: the folder.
        run_id: the run.
        config: the configuration that the run is served with.
        is_new: whether the run begins here; otherwise its history must exist.

    Raises:
        StoreError: from every method, when something can't be written or read.
    """

    def __init__(self, run_dir: Path, run_id: str, config: Config, *, is_new: bool):
        self.run_dir = run_dir
        self.run_id = run_id
        durability = config.store.durability
        self.writes_behind = durability == "memory"
        """Whether a commit may be announced before it is on disk."""
        self.spool = Spool(run_dir / STAGING, sync=durability == "power")
        """The files of acknowledged updates."""
        self._checkpoints = CheckpointFolder(
            run_dir, run_id, keep=config.store.keep_checkpoints, sync=durability == "power"
        )
        self._make_folders(config)
        self._lock = _locked(run_dir)
        self._gate = WriteGate(f"{run_dir} is no longer this server's to write to")
        try:
            self._history = History.open(config.store.url or run_dir / HISTORY_FILE, create=is_new)
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(
        cls,
        config: Config,
        run_id: str,
        components: Mapping[str, Component],
        summary: ModelSummary,
        run_dir: Path | None = None,
        started_from: JsonObject | None = None,
        base: Component | None = None,
    ) -> RunStore:
        """Begin a run in a folder.

        Args:
            config: the configuration of the run.
            run_id: the id of the run, globally unique.
            components: the model before the first round, by scope, without `base`.
            summary: the summary of that model.
            run_dir: the folder; if None, one in `server.runs_dir` that is named after the time.
            started_from: the facts about the run that the model comes from, if it comes from one.
            base: the parameters that never change; None without adapters.

        Raises:
            StoreError: another server is using the folder, it holds a run, or it can't be created.
        """
        if run_dir is None:
            run_dir = config.server.runs_dir / f"{datetime.now():%Y%m%d-%H%M%S}-{run_id[:8]}"
        store = cls(run_dir, run_id, config, is_new=True)
        try:
            store._begin(without_secrets(config), components, summary, started_from, base)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def resume(cls, config: Config, run_id: str, run_dir: Path, *, finished: bool = False) -> RunStore:
        """Open the folder of a run that has begun.

        Args:
            config: the configuration that the run is served with.
            run_id: the run.
            run_dir: the folder.
            finished: whether the run may be over.

        Raises:
            StoreError: another server is using the folder, the run is over, its history is missing, or the database
                doesn't know it.
        """
        if config.store.url is None and not (run_dir / HISTORY_FILE).is_file():
            raise StoreError(missing_history(run_dir))
        store = cls(run_dir, run_id, config, is_new=False)
        record = store._history.find_run(run_id)
        if record is not None and (finished or not record.is_finished):
            return store
        store.close()
        if record is None:
            raise StoreError(f"the database doesn't know run {run_id} of {run_dir}; was store.url changed?")
        url = f" --url {without_password(config.store.url)}" if config.store.url else ""
        raise StoreError(
            f"the run in {run_dir} is over: see it with `fedmtl-server runs show {run_dir}{url}`, serve its model "
            "with --keep-serving, or choose another folder with --run-dir"
        )

    def left_off(self, layouts_of: LayoutsOf) -> LeftOff:
        """Return the state that the run resumes with; see `find_left_off`.

        Args:
            layouts_of: returns the layouts of a checkpoint.

        Raises:
            StoreError: no checkpoint can be used.
        """
        return find_left_off(self.run_dir, self.run_id, self._history, self._checkpoints, layouts_of)

    def read_base(self, base: Component) -> None:
        """Read the parameters that never change.

        Args:
            base: the component to overwrite; without meaning after an error.

        Raises:
            CorruptCheckpointError: they are missing, or aren't those that the run began with.
        """
        with self._gate.entered():
            first = next(one for one in self._history.rounds(self.run_id) if one.round == 0)
            self._checkpoints.read_base(base, first.checkpoint or {})

    def reports(self) -> list[RoundReport]:
        """Return the reports of the rounds that have ended, in order."""
        with self._gate.entered():
            return reports_of(self._history.rounds(self.run_id))

    def announce(self, address: str) -> None:
        """Write `server.json`, which says where the server listens."""
        write_json(self.run_dir / SERVER_FILE, {"run_id": self.run_id, "address": address, "pid": os.getpid()})

    def open_round(self, round_: int, purpose: Purpose, opened_at_unix_ms: int, cohort: Mapping[str, str]) -> None:
        """Record a round and its cohort, task by client id, before the clients are notified."""
        with self._gate.entered():
            self._history.open_round(self.run_id, round_, purpose, opened_at_unix_ms, cohort)

    def write_model(
        self,
        components: Mapping[str, Component],
        round_: int,
        state: Mapping[str, Component] | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        """Write a checkpoint. It is not the run's until `end_round` commits it.

        Args:
            components: the whole model by scope.
            round_: the round that made it.
            state: the server optimizer's state by `SCOPE/SLOT` and control variates by `control:SCOPE`, if the run has
                any. It is written before the model.
            sharing: the tasks that share the parts of the encoder that have moved.
        """
        with self._gate.entered():
            self._checkpoints.write(round_, components, state or {}, sharing)

    def end_round(
        self,
        report: RoundReport,
        cohort: Mapping[str, str],
        updates: Sequence[UpdateRecord],
        digests: Mapping[str, bytes] | None = None,
    ) -> None:
        """Commit the end of a round, whether it succeeded or failed.

        Args:
            report: the report of the round.
            cohort: task by client id.
            updates: the outcome of each update.
            digests: SHA-256 of the written components, the model's by scope and the optimizer state's by `SCOPE/SLOT`;
                None if the model is unchanged.
        """
        record = RoundRecord(
            run_id=self.run_id,
            round=report.round,
            purpose=report.purpose,
            outcome="failed" if report.failed else "committed",
            opened_at_unix_ms=report.opened_at_unix_ms,
            ended_at_unix_ms=now_ms(),
            cohort=cohort,
            report=stored_report(report.to_dict()),
            checkpoint={scope: digest.hex() for scope, digest in digests.items()} if digests else None,
        )
        with self._gate.entered():
            self._history.end_round(self.run_id, record, updates)

    def has_counted(self, client_id: str, update_id: str) -> bool:
        """Return whether an update counted in any round."""
        with self._gate.entered():
            return self._history.has_counted(self.run_id, client_id, update_id)

    def prune(self, best_rounds: Collection[int]) -> None:
        """Remove the checkpoints that are neither among the newest nor of one of the best rounds."""
        with self._gate.entered():
            self._checkpoints.prune(best_rounds)

    def is_over(self) -> bool:
        """Return whether this server or an earlier one has called `finish`, and the run was not rolled back since."""
        with self._gate.entered():
            record = self._history.find_run(self.run_id)
            return record is not None and record.is_finished

    def write_results(self, results: JsonObject) -> None:
        """Write `results.json`; the results of a run that was over already are kept."""
        if not self.is_over():
            with self._gate.entered():
                write_json(self.run_dir / RESULTS_FILE, results)

    def finish(self) -> None:
        """Record that the run is over and all clients know it, so that no server resumes it.

        The end of a run that was over already is kept.
        """
        with self._gate.entered():
            self._history.finish_run(self.run_id, now_ms())

    def close(self) -> None:
        """Release the folder, once the writes in progress are done. Nothing can be written afterwards."""
        self._gate.close()
        self.spool.close()
        self._history.close()
        self._lock.release()

    def _begin(
        self,
        config: Config,
        components: Mapping[str, Component],
        summary: ModelSummary,
        started_from: JsonObject | None,
        base: Component | None,
    ) -> None:
        """Make the folder hold the run.

        The history knows the run a moment before `run.json` is there. If the server ends in between, the next run that
        begins here finds the run's id in `beginning.json` and deletes it from the history.
        """
        if (self.run_dir / RUN_FILE).exists():
            raise StoreError(f"{self.run_dir} already holds a run")
        beginning = self.run_dir / BEGINNING_FILE
        if beginning.exists():
            self._history.delete_run(read_run_id(beginning))
        write_text(self.run_dir / CONFIG_FILE, configuration.dump(config))
        if base is not None:
            self._checkpoints.write_base(base)
        self.write_model(components, 0)
        write_json(beginning, {"run_id": self.run_id} | ({"started_from": started_from} if started_from else {}))
        record = RunRecord(
            run_id=self.run_id,
            created_at_unix_ms=now_ms(),
            run_dir=str(self.run_dir.absolute()),
            base_model=summary.base_model,
            tasks=tuple(summary.head_parameters),
            num_rounds=config.training.num_rounds,
            config=config.model_dump(mode="json"),
        )
        written = [*components.values(), *([base] if base is not None else [])]
        self._history.begin_run(record, {one.scope: one.digest().hex() for one in written})
        with write_errors(self.run_dir / RUN_FILE):
            move_into_place(beginning, self.run_dir / RUN_FILE)

    def _make_folders(self, config: Config) -> None:
        make_folder(self.run_dir.parent)
        if not self.run_dir.exists():
            with write_errors(self.run_dir):
                make_run_folder(self.run_dir, config.store.readable_by)
                sync_folder(self.run_dir.parent)
        for folder in (self._checkpoints.path, self.spool.folder):
            make_folder(folder)


def without_secrets(config: Config) -> Config:
    """Return a configuration without the password of `store.url`, so that others may read it."""
    if config.store.url is None:
        return config
    store = config.store.model_copy(update={"url": without_password(config.store.url)})
    return config.model_copy(update={"store": store})


def _locked(run_dir: Path) -> FileLock:
    lock = FileLock(run_dir / LOCK_FILE, timeout=_LOCK_WAIT_S, thread_local=False)
    with write_errors(run_dir):
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(f"another server is serving the run in {run_dir}") from None
    return lock
