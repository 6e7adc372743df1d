"""The history of runs on PostgreSQL: a private server, started from the binaries that Debian installs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmtl_core.errors import StoreError, UnauthenticatedError
from fedmtl_server.access.clients import ClientRegistry
from fedmtl_server.access.identities import Credentials, Identity
from fedmtl_server.storage.engines import without_password
from fedmtl_server.storage.history import History
from fedmtl_server.storage.rollback import roll_back
from fedmtl_server.storage.runs import find_run
from tests.server.storage.test_history import (
    HistoryBehaviour,
    begun,
    end,
    outcomes,
    require_whole_rounds,
    update,
    write_and_die,
)
from tests.server.storage.test_store import bytes_of, left_off, model_of, resume, run_of
from tests.support import model_bytes

PASSWORD = "hunter2"


@dataclass(frozen=True)
class Postgres:
    """A server of our own, which nobody else can reach."""

    binaries: Path
    folder: Path
    port: int

    @property
    def user(self) -> list[str]:
        """How to run a command as who may serve: PostgreSQL refuses to be root."""
        return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []

    def run(self, program: str, *arguments: str) -> None:
        command = [*self.user, str(self.binaries / program), *arguments]
        # Into a file: the server keeps its standard output, and a pipe would never end.
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=60, check=False, cwd="/"
            )
            output.seek(0)
            assert result.returncode == 0, output.read()

    def make(self) -> None:
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        options = ("-U", "fedmtl", "-A", "scram-sha-256", "--pwfile", str(secret), "-E", "UTF8", "--no-locale", "-N")
        self.run("initdb", "-D", str(self.folder / "data"), *options)

    def start(self) -> None:
        options = f"-F -p {self.port} -h 127.0.0.1 -k {self.folder}"  # -F: no fsync; nothing here is to last
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", log, "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.folder / "data"))

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://fedmtl:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        import psycopg

        name = f"history_{uuid.uuid4().hex}"
        admin = f"host=127.0.0.1 port={self.port} user=fedmtl password={PASSWORD} dbname=postgres"
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.url(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not found:
        pytest.skip("PostgreSQL isn't installed: there is no /usr/lib/postgresql/*/bin/initdb")
    folder = Path(tempfile.mkdtemp(prefix="fedmtl-pg-", dir="/tmp"))  # short: a socket's path is at most 107 bytes
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Postgres(found[-1].parent, folder, port)
    try:
        if server.user:
            shutil.chown(folder, "postgres")
        server.make()
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgres: Postgres) -> str:
    return postgres.new_database()


class TestPostgresql(HistoryBehaviour):
    """The same behaviour, on a server."""


@pytest.fixture(scope="session")
def pooler(postgres: Postgres) -> Iterator[int]:
    """The port of a PgBouncer that gives each transaction the connection that was used longest ago, of three."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("PgBouncer isn't installed: there is no pgbouncer")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    settings = postgres.folder / "pgbouncer.ini"
    settings.write_text(
        f"""[databases]
* = host=127.0.0.1 port={postgres.port} user=fedmtl password={PASSWORD}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
server_round_robin = 1
logfile = {postgres.folder / "pgbouncer.log"}
"""
    )
    settings.chmod(0o644)
    user = ["-u", "postgres"] if os.geteuid() == 0 else []
    process = subprocess.Popen([program, "-q", *user, str(settings)], cwd="/")
    try:
        _await_port(port, process)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError(f"PgBouncer doesn't listen on port {port}; its exit code is {process.poll()}")


def through(pooler: int, database: str) -> str:
    """The URL of a database behind the pooler."""
    return f"postgresql+psycopg://fedmtl@127.0.0.1:{pooler}/{database.rpartition('/')[2]}"


class TestPooler(HistoryBehaviour):
    """The same behaviour, where each transaction may have another connection to the server."""

    @pytest.fixture
    def database(self, postgres: Postgres, pooler: int) -> str:
        return through(pooler, postgres.new_database())


def test_a_url_without_a_driver_means_psycopg(database):
    History.open(database.replace("+psycopg", "")).close()


def test_a_socket_is_as_good_as_an_address(postgres, database):
    name = database.rpartition("/")[2]
    url = f"postgresql+psycopg://fedmtl:{PASSWORD}@/{name}?host={postgres.folder}&port={postgres.port}"
    history = History.open(url)
    assert str(postgres.folder) in history.name.replace("%2F", "/")
    assert PASSWORD not in history.name
    history.close()


@pytest.mark.parametrize("where", ["user", "query"])
def test_what_the_server_refuses_is_told_in_words_without_the_password(postgres, where):
    wrong = postgres.url("postgres", "wrong-secret")
    if where == "query":
        wrong = f"postgresql+psycopg://fedmtl@127.0.0.1:{postgres.port}/postgres?password=wrong-secret"
    with pytest.raises(
        StoreError, match=r"^postgresql\+psycopg://fedmtl.*can't read: .*authentication failed"
    ) as caught:
        History.open(wrong)
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(StoreError, match=r'can\'t read: .*database "nowhere" does not exist'):
        History.open(postgres.url("nowhere"))


def test_a_password_that_is_missing_is_told_with_where_to_give_it(database, monkeypatch):
    """So a run is taken up whose folder keeps none."""
    kept = without_password(database)
    assert PASSWORD not in kept
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", "/nowhere")
    with pytest.raises(StoreError, match=r"no password supplied; .*PGPASSWORD.*\.pgpass.*URL \(store\.url, --url\)"):
        History.open(kept)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    History.open(kept).close()


def test_a_server_that_was_away_is_connected_to_again(postgres, database):
    history = History.open(database)
    begun(history)
    end(history, 1)
    postgres.stop()
    try:
        with pytest.raises(StoreError, match="can't end round 2 of run run-1"):
            end(history, 2)
    finally:
        postgres.start()
    end(history, 2)
    assert outcomes(history) == {0: "committed", 1: "committed", 2: "committed"}
    history.close()


def test_two_that_open_an_empty_database_at_once_make_it_once(database):
    errors = []

    def attempt() -> None:
        try:
            History.open(database).close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_another_programs_migrations_do_not_disturb(database):
    import psycopg

    with psycopg.connect(database.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.execute("INSERT INTO alembic_version VALUES ('5f3a')")
    history = History.open(database)
    begun(history)
    history.close()


def test_a_run_is_shared_by_readers_while_it_is_written(database):
    history, reader = History.open(database), History.open(database, create=False)
    begun(history)
    end(history, 1, [update(1, "a")])
    assert reader.updates("run-1") == [update(1, "a")]
    history.close()
    reader.close()


def test_a_process_killed_before_its_commit_leaves_nothing_of_the_round(database):
    assert write_and_die(database, last=3) == 2
    assert require_whole_rounds(database) == 2


@pytest.mark.parametrize("kill_after_s", [0.02, 0.05, 0.1])
def test_a_process_killed_at_any_moment_leaves_whole_rounds_and_all_it_knew_of(database, kill_after_s):
    known = write_and_die(database, kill_after_s=kill_after_s)
    assert require_whole_rounds(database) in (known, known + 1)


def test_a_run_is_rolled_back_there_too(database, tmp_path):
    run_of(tmp_path, 4, url=database, keep_checkpoints=9).close()
    assert roll_back(find_run("run", tmp_path, database), 2) == [3, 4]
    store = resume(tmp_path, url=database)
    left = left_off(store)
    store.close()
    assert (bytes_of(left), left.round, left.counted["a"]) == (model_bytes(model_of(2)), 3, ("a-2", 2))


def test_clients_are_added_and_revoked_there_too(database):
    """Two processes' registries on one database: what one writes the other knows."""
    with (
        contextlib.closing(ClientRegistry.open(database)) as mine,
        contextlib.closing(ClientRegistry.open(database, create=False)) as theirs,
    ):
        token = mine.add("alice", ["sst2"], with_token=True)
        mine.add("bob", None, with_token=False)
        known = theirs.known()
        assert known.identify(Credentials(token=token)) == Identity("alice", frozenset({"sst2"}))
        assert known.identify(Credentials("bob")) == Identity("bob", None)
        assert PASSWORD not in theirs.name
        mine.revoke("alice")
        with pytest.raises(UnauthenticatedError):
            theirs.known().identify(Credentials(token=token))
