"""The history of runs: their rounds, the outcome of each round, and the updates that counted; in a database.

The transaction that ends a round is its commit point: files are written before it and cleaned up after it, and the
history is what a restarted server relies on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import sqlalchemy as sa

from fedmtl_core.errors import StoreError
from fedmtl_core.tasks.plan import Purpose
from fedmtl_server.storage.database import Database
from fedmtl_server.storage.records import MetricRecord, RoundRecord, RunRecord, UpdateRecord
from fedmtl_server.storage.schema import METRICS, ROUNDS, RUNS, UPDATES


class History:
    """The runs in one database. Its methods may be called from any thread; a run is written by one process at a time.

    Args:
        database: with its tables up to date; it is closed with the history.

    Raises:
        StoreError: from every method, when the database can't be reached, read or written; a method that fails has
            written nothing.
    """

    def __init__(self, database: Database):
        self._database = database

    @classmethod
    def open(cls, database: str | Path, *, create: bool = True) -> History:
        """Connect to a database, and bring its tables up to date; see `Database.open`."""
        return cls(Database.open(database, create=create))

    @property
    def name(self) -> str:
        """Path or URL of the database, without its password."""
        return self._database.name

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    # Writing: each method is one transaction.

    def begin_run(self, run: RunRecord, checkpoint: Mapping[str, str]) -> None:
        """Insert a new run and its round 0.

        Args:
            run: a run that the database doesn't know yet.
            checkpoint: SHA-256 in hexadecimal by scope, of the model before the first round.

        Raises:
            StoreError: the database knows the run.
        """
        created = run.created_at_unix_ms
        start = RoundRecord(run.run_id, 0, "train", "committed", created, created, checkpoint=checkpoint)
        with self._database.transaction(f"begin run {run.run_id}") as connection:
            if _has_run(connection, run.run_id):
                raise StoreError(f"{self.name}: run {run.run_id} already exists")
            connection.execute(RUNS.insert(), [run.to_row()])
            connection.execute(ROUNDS.insert(), [start.to_row()])

    def open_round(
        self, run_id: str, round_: int, purpose: Purpose, opened_at_unix_ms: int, cohort: Mapping[str, str]
    ) -> None:
        """Insert an open round, in place of an earlier attempt at it that was not committed.

        Args:
            run_id: the run.
            round_: the number of the round.
            purpose: what the round is for.
            opened_at_unix_ms: when it opened.
            cohort: task by client id, in the order in which updates are aggregated.

        Raises:
            StoreError: the round is committed, or there is no such run.
        """
        record = RoundRecord(run_id, round_, purpose, "open", opened_at_unix_ms, cohort=cohort)
        with self._database.transaction(f"open round {round_} of run {run_id}") as connection:
            _require_run(connection, run_id, self.name)
            before = _find_round(connection, run_id, round_)
            if before is not None and before.outcome == "committed":
                raise StoreError(f"{self.name}: round {round_} of run {run_id} is committed, and can't open again")
            _replace_round(connection, record)

    def end_round(self, run_id: str, record: RoundRecord, updates: Sequence[UpdateRecord]) -> None:
        """Commit the end of a round, with its updates and the metrics of the model it began with.

        An earlier record of the round is replaced, and the updates that counted in it are rolled back. A retry with the
        same record changes nothing.

        Args:
            run_id: the run of the record.
            record: the round, committed or failed.
            updates: the updates that counted, were discarded or were refused.

        Raises:
            StoreError: the record is of another run, or there is no such run.
        """
        if record.run_id != run_id:
            raise StoreError(f"{self.name}: a round of run {record.run_id} can't end in run {run_id}")
        with self._database.transaction(f"end round {record.round} of run {run_id}") as connection:
            _require_run(connection, run_id, self.name)
            before = _find_round(connection, run_id, record.round)
            if before is not None and _same_end(before, record):
                return
            _replace_round(connection, record)
            _roll_back_updates(connection, (UPDATES.c.run_id == run_id) & (UPDATES.c.round == record.round))
            if updates:
                connection.execute(UPDATES.insert(), [update.to_row(run_id) for update in updates])
            _replace_metrics(connection, run_id, record.metrics())

    def roll_back(self, run_id: str, to_round: int) -> None:
        """Return a run to the state after a round. The rounds after it may be repeated.

        Rounds that had ended and their updates are kept, marked as rolled back. What these rounds measured is deleted:
        the metrics of the models from `to_round` on. A finished run is running again.
        """
        with self._database.transaction(f"roll back run {run_id} to round {to_round}") as connection:
            _require_run(connection, run_id, self.name)
            later = (ROUNDS.c.run_id == run_id) & (ROUNDS.c.round > to_round)
            connection.execute(ROUNDS.delete().where(later, ROUNDS.c.outcome == "open"))
            ended = connection.execute(ROUNDS.update().where(later).values(outcome="rolled_back"))
            _roll_back_updates(connection, (UPDATES.c.run_id == run_id) & (UPDATES.c.round > to_round))
            connection.execute(METRICS.delete().where(METRICS.c.run_id == run_id, METRICS.c.round >= to_round))
            if ended.rowcount:
                unfinished = {"state": "running", "finished_at_unix_ms": None}
                connection.execute(RUNS.update().where(RUNS.c.run_id == run_id).values(unfinished))

    def finish_run(self, run_id: str, at_unix_ms: int) -> None:
        """Mark a run as finished. A run that is finished already keeps its time."""
        with self._database.transaction(f"finish run {run_id}") as connection:
            _require_run(connection, run_id, self.name)
            running = (RUNS.c.run_id == run_id) & (RUNS.c.state == "running")
            finished = {"state": "finished", "finished_at_unix_ms": at_unix_ms}
            connection.execute(RUNS.update().where(running).values(finished))

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its rounds, updates and metrics. An unknown run is no error."""
        with self._database.transaction(f"delete run {run_id}") as connection:
            connection.execute(RUNS.delete().where(RUNS.c.run_id == run_id))

    # Reading.

    def find_run(self, run_id: str) -> RunRecord | None:
        """Return one run; None if the database doesn't know it."""
        rows = self._database.select(RUNS.select().where(RUNS.c.run_id == run_id))
        return RunRecord.from_row(rows[0]) if rows else None

    def runs(self) -> list[RunRecord]:
        """Return all runs, the newest first."""
        order = (RUNS.c.created_at_unix_ms.desc(), RUNS.c.run_id)
        return [RunRecord.from_row(row) for row in self._database.select(RUNS.select().order_by(*order))]

    def rounds(self, run_id: str) -> list[RoundRecord]:
        """Return a run's rounds in order, from round 0 to the open one."""
        query = ROUNDS.select().where(ROUNDS.c.run_id == run_id).order_by(ROUNDS.c.round)
        return [RoundRecord.from_row(row) for row in self._database.select(query)]

    def num_committed(self, run_id: str) -> int:
        """Return the number of a run's training rounds that are committed, without round 0."""
        done = (ROUNDS.c.run_id == run_id, ROUNDS.c.round > 0, ROUNDS.c.purpose == "train")
        query = sa.select(sa.func.count().label("n")).where(*done, ROUNDS.c.outcome == "committed")
        return int(self._database.select(query)[0]["n"])

    def last_training_round(self, run_id: str) -> int | None:
        """Return the last training round of a run; None until the final model has been evaluated."""
        evaluated = (ROUNDS.c.run_id == run_id, ROUNDS.c.purpose == "evaluate", ROUNDS.c.outcome == "committed")
        query = sa.select(ROUNDS.c.round).where(*evaluated).order_by(ROUNDS.c.round.desc()).limit(1)
        rows = self._database.select(query)
        return int(rows[0]["round"]) - 1 if rows else None

    def updates(self, run_id: str) -> list[UpdateRecord]:
        """Return a run's updates, in the order in which they were inserted."""
        query = UPDATES.select().where(UPDATES.c.run_id == run_id).order_by(UPDATES.c.id)
        return [UpdateRecord.from_row(row) for row in self._database.select(query)]

    def metrics(self, run_id: str) -> list[MetricRecord]:
        """Return the metrics of a run's models, by round, task and name."""
        columns = [METRICS.c[one.name] for one in fields(MetricRecord)]
        query = sa.select(*columns).where(METRICS.c.run_id == run_id).order_by(*columns[:3])
        return [MetricRecord.from_row(row) for row in self._database.select(query)]

    def last_counted(self, run_id: str) -> dict[str, tuple[str, int]]:
        """Return, by client id, the id of its newest counted update and the round in which it counted."""
        mine = (UPDATES.c.run_id == run_id) & (UPDATES.c.outcome == "counted")
        newest = sa.select(sa.func.max(UPDATES.c.id)).where(mine).group_by(UPDATES.c.client_id)
        columns = (UPDATES.c.client_id, UPDATES.c.update_id, UPDATES.c.round)
        query = sa.select(*columns).where(UPDATES.c.id.in_(newest)).order_by(UPDATES.c.client_id)
        return {row["client_id"]: (row["update_id"], row["round"]) for row in self._database.select(query)}

    def has_counted(self, run_id: str, client_id: str, update_id: str) -> bool:
        """Return whether an update counted in any round."""
        table = UPDATES.c
        this = (table.run_id == run_id) & (table.client_id == client_id) & (table.update_id == update_id)
        return bool(self._database.select(sa.select(table.id).where(this & (table.outcome == "counted")).limit(1)))


def _has_run(connection: sa.Connection, run_id: str) -> bool:
    return connection.execute(sa.select(RUNS.c.run_id).where(RUNS.c.run_id == run_id)).first() is not None


def _require_run(connection: sa.Connection, run_id: str, name: str) -> None:
    if not _has_run(connection, run_id):
        raise StoreError(f"{name}: there is no run {run_id}")


def _find_round(connection: sa.Connection, run_id: str, round_: int) -> RoundRecord | None:
    query = ROUNDS.select().where(ROUNDS.c.run_id == run_id, ROUNDS.c.round == round_)
    row = connection.execute(query).mappings().first()
    return None if row is None else RoundRecord.from_row(row)


def _same_end(before: RoundRecord, record: RoundRecord) -> bool:
    """Return whether two records describe the same end of a round: a caller retries if it lost the first answer."""
    when = (record.opened_at_unix_ms, record.ended_at_unix_ms)
    return before.outcome == record.outcome and (before.opened_at_unix_ms, before.ended_at_unix_ms) == when


def _replace_round(connection: sa.Connection, record: RoundRecord) -> None:
    here = (ROUNDS.c.run_id == record.run_id, ROUNDS.c.round == record.round)
    connection.execute(ROUNDS.delete().where(*here))
    connection.execute(ROUNDS.insert(), [record.to_row()])


def _roll_back_updates(connection: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    counted = UPDATES.c.outcome == "counted"
    connection.execute(UPDATES.update().where(where, counted).values(outcome="rolled_back"))


def _replace_metrics(connection: sa.Connection, run_id: str, metrics: Sequence[MetricRecord]) -> None:
    for one in metrics:
        key = {"run_id": run_id, "round": one.round, "task": one.task, "name": one.name}
        connection.execute(METRICS.delete().where(*(METRICS.c[column] == value for column, value in key.items())))
        connection.execute(METRICS.insert(), [one.to_row(run_id)])
