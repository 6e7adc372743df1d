"""The history of runs, on SQLite; `test_history_postgresql.py` asks the same of PostgreSQL."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from fedmtl_core.errors import StoreError
from fedmtl_server.storage import database as database_module
from fedmtl_server.storage.engines import without_password
from fedmtl_server.storage.history import History, _replace_round
from fedmtl_server.storage.records import MetricRecord, RoundOutcome, RoundRecord, RunRecord, UpdateRecord
from fedmtl_server.storage.schema import CLIENTS, METADATA, VERSION_TABLE

RUN = RunRecord("run-1", 1_000, "runs/one", "builtin:toy", ("sst2", "qqp"), 3, {"training": {"num_rounds": 3}})
COHORT = {"b": "qqp", "a": "sst2"}
"""Not by name: the order of folding is to be kept."""


def begun(history: History, *run_ids: str) -> None:
    for run_id in run_ids or ("run-1",):
        history.begin_run(replace(RUN, run_id=run_id), {"shared": "00"})


def ended(round_: int, outcome: RoundOutcome = "committed", accuracy: float = 0.5, play: int = 0) -> RoundRecord:
    """A round's end; another play of it opened later."""
    tasks = [
        {"task": "sst2", "num_updates": 1, "received_metrics": {"accuracy": accuracy}},
        {"task": "qqp", "num_updates": 2, "received_metrics": {"accuracy": 0.25, "f1": 0.125}},
    ]
    opened = 2_000 * round_ + play
    checkpoint = {"shared": f"{round_:02x}"} if outcome == "committed" else None
    return RoundRecord("run-1", round_, "train", outcome, opened, opened + 500, COHORT, {"tasks": tasks}, checkpoint)


def update(round_: int, client_id: str, update_id: str = "", **facts: Any) -> UpdateRecord:
    received, trained = {"accuracy": 0.5}, {"accuracy": 0.75}
    update_id = update_id or f"{client_id}-{round_}"
    base = UpdateRecord(
        round_, client_id, COHORT[client_id], round_, update_id, "delta", 10, 400, received, trained, "counted"
    )
    return replace(base, **facts)


def end(history: History, round_: int, updates: Sequence[UpdateRecord] | None = None, **facts: Any) -> None:
    both = [update(round_, "b"), update(round_, "a")]
    history.end_round("run-1", ended(round_, **facts), both if updates is None else updates)


def outcomes(history: History) -> dict[int, str]:
    return {one.round: one.outcome for one in history.rounds("run-1")}


def became(history: History) -> list[tuple[str, str]]:
    return [(one.update_id, one.outcome) for one in history.updates("run-1")]


class HistoryBehaviour:
    """What holds on every database."""

    @pytest.fixture
    def history(self, database: str | Path) -> Iterator[History]:
        history = History.open(database)
        yield history
        history.close()

    def test_a_run_is_there_with_its_round_0_as_it_was_begun(self, history, database):
        history.begin_run(RUN, {"shared": "00", "task:sst2": "01"})
        history.close()
        again = History.open(database)
        assert again.find_run("run-1") == RUN
        start = RoundRecord(
            "run-1", 0, "train", "committed", 1_000, 1_000, {}, None, {"shared": "00", "task:sst2": "01"}
        )
        assert again.rounds("run-1") == [start]
        assert again.find_run("run-2") is None
        assert again.rounds("run-2") == again.updates("run-2") == again.metrics("run-2") == []
        again.close()

    def test_a_run_is_begun_once(self, history):
        begun(history)
        with pytest.raises(StoreError, match="run run-1 already exists"):
            begun(history)

    def test_runs_are_listed_newest_first(self, history):
        for run_id, created in (("old", 1), ("new", 3), ("middle", 2)):
            history.begin_run(replace(RUN, run_id=run_id, created_at_unix_ms=created), {})
        assert [run.run_id for run in history.runs()] == ["new", "middle", "old"]

    def test_an_open_round_keeps_its_cohort_in_order_and_a_new_opening_replaces_it(self, history):
        begun(history)
        history.open_round("run-1", 1, "train", 2_000, COHORT)
        record = history.rounds("run-1")[1]
        assert record == RoundRecord("run-1", 1, "train", "open", 2_000, None, COHORT, None, None)
        assert list(record.cohort) == ["b", "a"]
        history.open_round("run-1", 1, "evaluate", 3_000, {"a": "sst2"})
        assert history.rounds("run-1")[1:] == [RoundRecord("run-1", 1, "evaluate", "open", 3_000, None, {"a": "sst2"})]

    def test_a_committed_round_is_not_opened_anew(self, history):
        begun(history)
        end(history, 1)
        with pytest.raises(StoreError, match="round 1 of run run-1 is committed, and can't open again"):
            history.open_round("run-1", 1, "train", 9_000, {})
        assert outcomes(history) == {0: "committed", 1: "committed"}

    def test_a_round_ends_with_its_updates_and_the_metrics_of_the_model_before_it(self, history):
        begun(history)
        history.open_round("run-1", 1, "train", 2_000, {"a": "sst2"})
        refused = update(1, "a", "late", outcome="refused", code="ABORTED", reason="round 1 has closed")
        end(history, 1, [update(1, "b"), refused])
        assert history.rounds("run-1")[1] == ended(1)
        assert history.updates("run-1") == [update(1, "b"), refused]
        assert history.metrics("run-1") == [
            MetricRecord(0, "qqp", "accuracy", 0.25, 2),
            MetricRecord(0, "qqp", "f1", 0.125, 2),
            MetricRecord(0, "sst2", "accuracy", 0.5, 1),
        ]
        assert history.num_committed("run-1") == 1

    def test_a_round_ends_also_if_its_opening_was_never_written(self, history):
        begun(history)
        end(history, 1, outcome="failed", updates=[update(1, "a", outcome="discarded", code="QUORUM")])
        assert outcomes(history) == {0: "committed", 1: "failed"}
        assert became(history) == [("a-1", "discarded")]
        assert history.num_committed("run-1") == 0

    def test_a_retried_end_counts_once(self, history):
        begun(history)
        end(history, 1)
        end(history, 1)  # the answer to the first was lost
        assert became(history) == [("b-1", "counted"), ("a-1", "counted")]

    def test_an_update_counts_once_whatever_the_server_thinks(self, history):
        begun(history)
        end(history, 1, [update(1, "a", "same")])
        with pytest.raises(StoreError, match=r"can't end round 2 of run run-1: .*(UNIQUE|unique)"):
            end(history, 2, [update(2, "b"), update(2, "a", "same")])
        assert became(history) == [("same", "counted")]  # of round 2 there is nothing
        assert outcomes(history) == {0: "committed", 1: "committed"}
        assert [one.round for one in history.metrics("run-1")] == [0, 0, 0]
        end(history, 2, [update(2, "b", "same"), update(2, "a", "same", outcome="refused")])  # another client; refused

    def test_the_same_update_id_in_another_run_is_another_update(self, history):
        begun(history, "run-1", "run-2")
        end(history, 1)
        history.end_round("run-2", replace(ended(1), run_id="run-2"), [update(1, "a")])
        assert len(history.updates("run-2")) == 1

    def test_a_roll_back_takes_back_all_that_came_after_a_round(self, history):
        begun(history)
        for round_ in (1, 2, 3):
            end(history, round_, accuracy=round_ / 8)
        refused = update(4, "a", "bad", outcome="refused", code="INVALID_ARGUMENT", reason="NaN")
        end(history, 4, [refused], outcome="failed")
        history.open_round("run-1", 5, "train", 10_000, COHORT)
        history.roll_back("run-1", 1)
        expected = {0: "committed", 1: "committed", 2: "rolled_back", 3: "rolled_back", 4: "rolled_back"}
        assert outcomes(history) == expected  # 5 was only open
        assert [one.outcome for one in history.updates("run-1")] == ["counted"] * 2 + ["rolled_back"] * 4 + ["refused"]
        # Round 2 measured model 1 and is rolled back: `results.json` has only what the reports of kept rounds have.
        assert {one.round for one in history.metrics("run-1")} == {0}
        assert history.last_counted("run-1") == {"a": ("a-1", 1), "b": ("b-1", 1)}
        assert history.num_committed("run-1") == 1

    def test_a_round_that_was_rolled_back_is_played_anew_with_the_same_updates(self, history):
        begun(history)
        for round_ in (1, 2):
            end(history, round_)
        history.roll_back("run-1", 1)
        history.open_round("run-1", 2, "train", 9_000, COHORT)
        end(history, 2, accuracy=0.625, play=5_000)
        assert outcomes(history) == {0: "committed", 1: "committed", 2: "committed"}
        assert became(history)[2:] == [
            ("b-2", "rolled_back"),
            ("a-2", "rolled_back"),
            ("b-2", "counted"),
            ("a-2", "counted"),
        ]
        metrics = [one for one in history.metrics("run-1") if (one.round, one.task) == (1, "sst2")]
        assert metrics == [MetricRecord(1, "sst2", "accuracy", 0.625, 1)]

    def test_another_end_of_a_committed_round_rolls_its_updates_back(self, history):
        begun(history)
        end(history, 1)
        end(history, 1, [update(1, "a")], play=100)
        assert became(history) == [("b-1", "rolled_back"), ("a-1", "rolled_back"), ("a-1", "counted")]

    def test_a_run_is_finished_until_it_is_rolled_back(self, history):
        begun(history)
        end(history, 1)
        history.finish_run("run-1", 7_000)
        assert history.find_run("run-1") == replace(RUN, state="finished", finished_at_unix_ms=7_000)
        history.roll_back("run-1", 1)
        assert history.find_run("run-1") == replace(RUN, state="finished", finished_at_unix_ms=7_000)
        history.roll_back("run-1", 0)
        assert history.find_run("run-1") == RUN

    def test_a_run_is_finished_once(self, history):
        begun(history)
        history.finish_run("run-1", 7_000)
        history.finish_run("run-1", 9_000)
        assert history.find_run("run-1") == replace(RUN, state="finished", finished_at_unix_ms=7_000)

    def test_the_last_counted_update_is_each_clients_newest(self, history):
        begun(history)
        end(history, 1)
        end(history, 2, [update(2, "a"), update(2, "b", "no", outcome="discarded")])
        assert history.last_counted("run-1") == {"a": ("a-2", 2), "b": ("b-1", 1)}
        assert history.last_counted("run-2") == {}

    def test_a_deleted_run_leaves_nothing_and_others_as_they_were(self, history, database):
        begun(history, "run-1", "run-2")
        end(history, 1)
        history.delete_run("run-1")
        history.delete_run("run-1")
        assert [run.run_id for run in history.runs()] == ["run-2"]
        assert len(history.rounds("run-2")) == 1
        assert row_counts(history) == {"runs": 1, "rounds": 1, "updates": 0, "metrics": 0}

    @pytest.mark.parametrize(
        "call",
        [
            lambda history: history.open_round("run-2", 1, "train", 0, {}),
            lambda history: history.end_round("run-2", replace(ended(1), run_id="run-2"), []),
            lambda history: history.roll_back("run-2", 0),
            lambda history: history.finish_run("run-2", 0),
        ],
    )
    def test_what_is_written_of_an_unknown_run_is_an_error(self, history, call):
        with pytest.raises(StoreError, match="there is no run run-2"):
            call(history)

    def test_a_round_of_another_run_is_an_error(self, history):
        begun(history, "run-1", "run-2")
        with pytest.raises(StoreError, match="a round of run run-1 can't end in run run-2"):
            history.end_round("run-2", ended(1), [])

    def test_what_no_column_can_hold_is_an_error_and_nothing_is_written(self, history):
        begun(history)
        for wrong in ({"received_metrics": {"accuracy": float("nan")}}, {"num_examples": 2**63}):
            with pytest.raises(StoreError, match="can't end round 1 of run run-1"):
                end(history, 1, [update(1, "b"), update(1, "a", **wrong)])
        assert row_counts(history) == {"runs": 1, "rounds": 1, "updates": 0, "metrics": 0}
        end(history, 1, [update(1, "a", num_examples=2**63 - 1)])

    def test_anything_a_refused_client_sends_can_be_written(self, history):
        begun(history)
        odd = "\0\x1b[2J'\";--{é}\u2028😀"
        refused = update(1, "a", odd, outcome="refused", task=odd, reason=odd, trained_metrics={odd: 1e100})
        report = {"tasks": [{"task": "sst2", "num_updates": 1, "received_metrics": {odd: 0.5}}], "text": odd}
        history.end_round("run-1", replace(ended(1), report=report), [replace(refused, client_id=odd)])
        kept = odd.replace("\0", "\\x00")
        (stored,) = history.updates("run-1")
        assert (stored.client_id, stored.task, stored.update_id, stored.reason) == (kept,) * 4
        assert stored.trained_metrics == {odd: 1e100}
        assert history.rounds("run-1")[1].report == report
        assert [one.name for one in history.metrics("run-1")] == [kept]

    def test_any_mapping_is_taken(self, history):
        history.begin_run(replace(RUN, config=MappingProxyType({"a": MappingProxyType({"b": 1})})), {})
        assert history.runs()[0].config == {"a": {"b": 1}}

    def test_threads_take_turns(self, history):
        begun(history)
        errors = []

        def write(first: int) -> None:
            try:
                for round_ in range(first, 41, 4):
                    end(history, round_)
                    history.rounds("run-1")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(first,)) for first in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert history.num_committed("run-1") == 40
        assert row_counts(history) == {"runs": 1, "rounds": 41, "updates": 80, "metrics": 120}

    def test_an_empty_database_becomes_exactly_the_tables_that_the_code_knows(self, history):
        with history._database._engine.connect() as connection:
            options = {"version_table": VERSION_TABLE, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, METADATA) == []
            where = "SELECT sql FROM sqlite_master WHERE name = 'uq_updates_counted_once'"
            if connection.dialect.name == "postgresql":
                where = "SELECT indexdef FROM pg_indexes WHERE indexname = 'uq_updates_counted_once'"
            (index,) = connection.exec_driver_sql(where).one()
            assert "CREATE UNIQUE INDEX" in index  # the comparison doesn't look at conditions
            assert "WHERE" in index
            assert "outcome" in index.partition("WHERE")[2]
            assert "'counted'" in index.partition("WHERE")[2]

    def test_an_older_database_is_brought_up_to_date_and_keeps_its_rows(self, history, database, tmp_path, monkeypatch):
        begun(history)
        end(history, 1)
        before = (history.runs(), history.rounds("run-1"), history.updates("run-1"), history.metrics("run-1"))
        history.close()
        monkeypatch.setattr(database_module, "MIGRATIONS", with_another_revision(tmp_path))
        later = History.open(database, create=False)
        assert (later.runs(), later.rounds("run-1"), later.updates("run-1"), later.metrics("run-1")) == before
        with later._database._engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT note FROM runs").all() == [("none",)]
            assert connection.exec_driver_sql("SELECT version_num FROM fedmtl_version").all() == [("0003",)]
        later.close()

    def test_a_newer_database_is_refused_in_words(self, history, database, tmp_path, monkeypatch):
        begun(history)
        history.close()
        with monkeypatch.context() as patch:
            patch.setattr(database_module, "MIGRATIONS", with_another_revision(tmp_path))
            History.open(database).close()
        words = r"was written by a newer FedMTL \(schema 0003; this one knows up to 0002\); update FedMTL"
        for create in (True, False):
            with pytest.raises(StoreError, match=words):
                History.open(database, create=create)

    def test_another_programs_tables_are_left_alone(self, database):
        history = History.open(database)
        with history._database._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE fedmtl_version")
        history.close()
        with pytest.raises(
            StoreError,
            match="isn't a history: its tables known_clients, metrics, rounds, runs, updates belong to another program",
        ):
            History.open(database)

    def test_what_is_not_there_is_not_made_where_it_is_only_to_be_read(self, database):
        with pytest.raises(StoreError, match=r"there is no such file|holds no history"):
            History.open(database, create=False)
        if isinstance(database, Path):
            assert not database.exists()

    def test_alembic_says_nothing(self, database, caplog, capfd):
        caplog.set_level(logging.DEBUG)
        handlers = list(logging.getLogger().handlers)
        History.open(database).close()
        assert [record for record in caplog.records if record.name.startswith("alembic")] == []
        assert capfd.readouterr() == ("", "")
        assert logging.getLogger().handlers == handlers


def row_counts(history: History) -> dict[str, int]:
    with history._database._engine.connect() as connection:
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in METADATA.tables.items()
            if table is not CLIENTS
        }


def with_another_revision(tmp_path: Path) -> Path:
    """The migrations of a FedMTL to come: the real ones, and one that adds a column."""
    folder = tmp_path / "migrations"
    shutil.copytree(database_module.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0003_note.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        "revision, down_revision = '0003', '0002'\n"
        "def upgrade():\n"
        "    op.add_column('runs', sa.Column('note', sa.Text(), nullable=False, server_default='none'))\n"
    )
    return folder


class TestSqlite(HistoryBehaviour):
    """The same behaviour, in a file."""

    @pytest.fixture
    def database(self, tmp_path: Path) -> Path:
        return tmp_path / "history ?%.sqlite"


def test_sqlite_writes_ahead_waits_for_the_disk_and_keeps_foreign_keys(tmp_path):
    history = History.open(tmp_path / "history.sqlite")
    with history._database._engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}  # 2 is FULL
    history.close()
    assert [path.name for path in tmp_path.iterdir()] == ["history.sqlite"]  # nothing is left beside it


def test_a_newer_file_is_left_byte_for_byte_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "runs" / "history.sqlite"
    path.parent.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(database_module, "MIGRATIONS", with_another_revision(tmp_path))
        history = History.open(path)
        begun(history)
        history.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer"):
        History.open(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_reading_changes_no_byte(tmp_path):
    path = tmp_path / "history.sqlite"
    history = History.open(path)
    begun(history)
    history.close()
    before = path.read_bytes()
    reader = History.open(path, create=False)
    assert reader.runs() == [RUN]
    reader.close()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_history_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    path = tmp_path / "history.sqlite"
    history = History.open(path)
    begun(history)
    history.close()
    monkeypatch.setattr("os.access", lambda folder, _: folder != tmp_path)  # root may write anywhere
    reader = History.open(path, create=False)
    assert reader.runs() == [RUN]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StoreError, match="can't delete run run-1: attempt to write a readonly database"):
        reader.delete_run("run-1")
    reader.close()


def test_a_reader_sees_whole_rounds_while_the_writer_writes(tmp_path):
    path = tmp_path / "history.sqlite"
    history = History.open(path)
    begun(history)
    reader = History.open(path, create=False)
    with history._database.transaction("write") as connection:
        _replace_round(connection, ended(1))
        assert outcomes(reader) == {0: "committed"}
    assert outcomes(reader) == {0: "committed", 1: "committed"}
    reader.close()
    history.close()


def test_an_upgrade_that_fails_leaves_the_older_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "history.sqlite"
    History.open(path).close()
    folder = with_another_revision(tmp_path)
    script = folder / "versions" / "0003_note.py"
    script.write_text(script.read_text() + "    op.execute('INSERT INTO nowhere VALUES (1)')\n")
    monkeypatch.setattr(database_module, "MIGRATIONS", folder)
    with pytest.raises(StoreError, match="can't bring its tables up to date: no such table: nowhere"):
        History.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM fedmtl_version").fetchall() == [("0002",)]
        assert "note" not in [row[1] for row in connection.execute("PRAGMA table_info(runs)")]


WRONG = {
    "no URL": ("history", "not a database URL: expected sqlite:///PATH or postgresql"),
    "a port that is none": ("postgresql://me:hunter2@host:port/db", "not a database URL"),
    "another kind of database": ("mysql://me:hunter2@host/db", "mysql: can't hold a history"),
    "another driver": ("postgresql+psycopg2://me:hunter2@host/db", r"postgresql\+psycopg2: can't hold a history"),
    "memory": ("sqlite://", "a history in SQLite must be a file"),
    "memory by name": ("sqlite:///:memory:", "a history in SQLite must be a file"),
    "options": ("sqlite:///a?mode=memory", "a history in SQLite must be a file"),
    "a folder that isn't there": ("sqlite:////nowhere/a.sqlite", "^/nowhere/a.sqlite: can't read: unable to open"),
    "nobody there": (
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/db?password=hunter2",
        r"^postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db: can't read: .*(refused|failed)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_database_is_told_in_words_without_its_password(case):
    url, words = WRONG[case]
    with pytest.raises(StoreError, match=words) as caught:
        History.open(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("postgresql+psycopg://me:hunter2@host/db", "postgresql+psycopg://me@host/db"),
        ("postgresql://me:a%40b%2Fc@host:5433/db?sslmode=require", "postgresql://me@host:5433/db?sslmode=require"),
        ("postgresql://me@/db?host=/run/pg&password=hunter2", "postgresql://me@/db?host=%2Frun%2Fpg"),
        ("postgresql://me@host/db?sslpassword=hunter2", "postgresql://me@host/db"),
        ("postgresql+psycopg://me@/db?host=/run/pg", "postgresql+psycopg://me@/db?host=/run/pg"),
        ("sqlite:///a folder/history.sqlite", "sqlite:///a folder/history.sqlite"),
    ],
)
def test_a_url_is_kept_without_its_password_and_otherwise_as_it_is(url, kept):
    assert without_password(url) == kept
    assert without_password(kept) == kept


def test_without_psycopg_its_installation_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"needs psycopg: pip install 'fedmtl\[postgresql\]'"):
        History.open("postgresql://host/db")


def test_a_file_that_is_no_database_is_an_error_and_is_left_alone(tmp_path):
    path = tmp_path / "history.sqlite"
    path.write_text("this is not a database, and longer than its header would be" * 10)
    with pytest.raises(StoreError, match=r"history\.sqlite: can't read: file is not a database"):
        History.open(path)
    assert path.read_text().startswith("this is not a database")


def test_a_damaged_row_is_an_error_in_words(tmp_path):
    path = tmp_path / "history.sqlite"
    history = History.open(path)
    begun(history)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET config = '{'")
    with pytest.raises(StoreError, match=r"history\.sqlite: can't read: "):
        history.runs()
    history.close()


WRITER = """
import os, signal, sys
import sqlalchemy as sa
from fedmtl_server.storage.history import History
from tests.server.storage.test_history import begun, end
history = History.open(sys.argv[1])
begun(history)
last = int(sys.argv[2])
for round_ in range(1, 10_000):
    if round_ == last:
        sa.event.listen(history._database._engine, "commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    end(history, round_)
    print(round_, flush=True)
"""


def write_and_die(database: str | Path, last: int = 0, kill_after_s: float | None = None) -> int:
    """Write rounds in a process of its own until it is killed: before the commit of round `last`, or after a time.

    Returns:
        The last round whose end was written, as the process knew.
    """
    url = database if isinstance(database, str) else f"sqlite:///{database}"
    command = [sys.executable, "-c", WRITER, url, str(last)]
    folder = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        known = int(process.stdout.readline())
        if kill_after_s is not None:
            timer = threading.Timer(kill_after_s, process.kill)
            timer.start()
        known = max([known, *map(int, process.stdout.read().split())])
    assert process.returncode == -signal.SIGKILL
    return known


def require_whole_rounds(database: str | Path) -> int:
    """Check that every round that is there is there with all that belongs to it.

    Returns:
        The last of them.
    """
    history = History.open(database)
    rounds = [one for one in history.rounds("run-1") if one.round > 0]
    assert [one.round for one in rounds] == list(range(1, len(rounds) + 1))
    for record in rounds:
        assert record == ended(record.round)
    assert history.updates("run-1") == [update(n + 1, client) for n in range(len(rounds)) for client in ("b", "a")]
    assert len(history.metrics("run-1")) == 3 * len(rounds)
    history.close()
    return len(rounds)


def test_a_process_killed_before_its_commit_leaves_nothing_of_the_round(tmp_path):
    path = tmp_path / "history.sqlite"
    assert write_and_die(path, last=3) == 2
    assert require_whole_rounds(path) == 2


@pytest.mark.parametrize("attempt", range(5))
def test_a_process_killed_at_any_moment_leaves_whole_rounds_and_all_it_knew_of(tmp_path, attempt):
    path = tmp_path / "history.sqlite"
    known = write_and_die(path, kill_after_s=random.Random(attempt).uniform(0, 0.2))
    assert require_whole_rounds(path) in (known, known + 1)  # the last may be there without its word


def test_the_history_needs_no_pytorch():
    code = "import sys, fedmtl_server.storage.history, fedmtl_server.commands.runs; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
