"""Trust between real processes: certificates and tokens as the command lines make them, and a whole run behind them."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

CONFIG = """
model: {{server_model: "builtin:toy"}}
training: {{num_rounds: {num_rounds}, local_epochs: 1, learning_rate: 1e-3, max_length: 48}}
rounds: {{deadline_s: 60, quorum_timeout_s: 2, rejoin_grace_s: 1}}
server: {{port: 0, runs_dir: runs}}
client: {{reconnect_s: 60}}
tasks:
  sst2: {{min_clients: {min_clients}, train_samples: 60, val_samples: 30, data: {{builtin: sst2}}}}
  stsb: {{min_clients: {min_clients}, train_samples: 60, val_samples: 30, data: {{builtin: stsb}}}}
"""
TLS = ("--set", "security.tls.certificate=certs/server.pem", "--set", "security.tls.key=certs/server.key")


class Site:
    """A folder in which commands are run, as in a terminal. What they say is kept."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, num_rounds: int = 1, min_clients: int = 1):
        self.folder = folder
        self._stack = stack
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
        (folder / "c.yaml").write_text(CONFIG.format(num_rounds=num_rounds, min_clients=min_clients))

    def run(self, module: str, *arguments: str, code: int = 0) -> str:
        """A command's output, once it has ended with an exit code."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        with (self.folder / "commands.log").open("a") as log:
            log.write(done.stderr)
        return done.stdout if code == 0 else done.stderr

    def start(self, name: str, module: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.folder / f"{name}.log").open("w"))
        process = subprocess.Popen(
            [sys.executable, "-m", module, "--config", "c.yaml", *arguments],
            cwd=self.folder,
            env=self._environment | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def serve(self, *arguments: str) -> tuple[subprocess.Popen[bytes], str]:
        """A server, and its address."""
        server = self.start("server", "fedmtl_server", "--run-dir", "runs/mine", *arguments)
        give_up = time.monotonic() + 90
        while not (announcement := self.folder / "runs/mine/server.json").exists():
            assert server.poll() is None, self.log("server")
            assert time.monotonic() < give_up, "the server doesn't start"
            time.sleep(0.05)
        return server, json.loads(announcement.read_text())["address"]

    def client(self, client_id: str, task: str, address: str, *arguments: str, **environment: str):
        who = ("--client-id", client_id, "--task", task, "--server", address)
        return self.start(client_id, "fedmtl_client", *who, *arguments, **environment)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def ended(self, name: str, process: subprocess.Popen[bytes], timeout_s: float = 120) -> int:
        """A process's exit code."""
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} doesn't end: {self.log(name)}") from None

    def until_said(self, name: str, text: str) -> None:
        give_up = time.monotonic() + 90
        while text not in self.log(name):
            assert time.monotonic() < give_up, self.log(name)
            time.sleep(0.05)

    def files(self) -> Iterator[Path]:
        return (path for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def own(name: str) -> tuple[str, ...]:
    """A client's options for mutual TLS."""
    certificate = ("--tls-certificate", f"certs/clients/{name}.pem", "--tls-key", f"certs/clients/{name}.key")
    return ("--tls-ca", "certs/ca.pem", *certificate)


@pytest.mark.long
def test_a_whole_run_over_mutual_tls_and_nobody_else_in_it(tmp_path, stack):
    site = Site(tmp_path, stack, min_clients=1)
    made = site.run("fedmtl_server", "certs", "init", "certs", *(f"--client={name}" for name in ("ann", "ben", "eve")))
    assert "certs/clients/ann.pem" in made
    assert stat.S_IMODE((tmp_path / "certs/server.key").stat().st_mode) == 0o600
    for name, task in (("ann", "sst2"), ("ben", "stsb")):
        added = site.run("fedmtl_server", "clients", "add", name, "--task", task, "--certificate", "--config", "c.yaml")
        assert added == ""  # no token
    server, address = site.serve(*TLS, "--set", "security.tls.client_ca=certs/ca.pem")
    assert "transport='mutual TLS'" in site.log("server")

    ann = site.client("ann", "sst2", address, *own("ann"))
    eve = site.client("eve", "sst2", address, *own("eve"))  # of the CA, but not added
    assert site.ended("eve", eve) == 1
    assert "error: the certificate names 'eve', which isn't a client of this server" in site.log("eve")
    thief = site.client("ben", "stsb", address, *own("ann"))
    assert site.ended("ben", thief) == 1
    assert "error: client_id: these credentials are client 'ann''s, got 'ben'" in site.log("ben")
    nobody = site.client("nobody", "stsb", address, "--set", "client.reconnect_s=1")
    assert site.ended("nobody", nobody) == 1
    assert "does the server ask for TLS (--tls-ca)" in site.log("nobody")

    ben = site.client("ben", "stsb", address, *own("ben"))
    assert site.ended("server", server) == 0, site.log("server")
    assert (site.ended("ann", ann), site.ended("ben", ben)) == (0, 0), site.log("ann") + site.log("ben")
    shown = json.loads(site.run("fedmtl_server", "runs", "show", "runs/mine", "--round", "1", "--json"))
    assert sorted(one["client_id"] for one in shown["updates"]) == ["ann", "ben"]
    keys = [line for path in tmp_path.rglob("certs/**/*.key") for line in path.read_text().splitlines()[1:-1]]
    assert len(keys) > 8
    said = "".join(path.read_bytes().decode("latin-1") for path in site.files() if path.suffix not in (".key", ".pem"))
    assert not [line for line in keys if line in said]


@pytest.mark.long
def test_a_run_with_tokens_in_which_one_is_revoked_and_no_token_is_ever_said(tmp_path, stack):
    site = Site(tmp_path, stack, num_rounds=200)
    add = ("fedmtl_server", "clients", "add")
    printed = site.run(*add, "ann", "--task", "sst2", "--config", "c.yaml")
    site.run(*add, "ben", "--task", "stsb", "--token-file", "ben.token", "--config", "c.yaml")
    site.run(*add, "dash", "--observer", "--config", "c.yaml")
    assert stat.S_IMODE((tmp_path / "ben.token").stat().st_mode) == 0o600
    tokens = [printed.strip(), (tmp_path / "ben.token").read_text().strip()]
    assert all(token.startswith("fedmtl.") and len(token) > 50 for token in tokens)

    server, address = site.serve("--set", "security.authentication=true", "--log-format", "json")
    ann = site.client("ann", "sst2", address, FEDMTL_TOKEN=tokens[0])
    ben = site.client("ben", "stsb", address, "--token-file", "ben.token")
    site.until_said("ann", "update.sent")
    for process in (server, ann, ben):
        assert tokens[0] not in Path(f"/proc/{process.pid}/cmdline").read_text()
    site.run("fedmtl_server", "clients", "revoke", "ann", "--config", "c.yaml")
    assert site.ended("ann", ann) == 1
    assert "error: client 'ann' was revoked" in site.log("ann")
    assert "Traceback" not in site.log("ann")
    assert (server.poll(), ben.poll()) == (None, None)  # the others go on
    listed = site.run("fedmtl_server", "clients", "list", "--config", "c.yaml")
    assert [line.split()[:2] for line in listed.splitlines()[1:]] == [["ann", "sst2"], ["ben", "stsb"], ["dash", "no"]]
    facts = json.loads(site.run("fedmtl_server", "clients", "list", "--config", "c.yaml", "--json"))
    assert [one["revoked_at_unix_ms"] is not None for one in facts] == [True, False, False]

    ben.terminate()
    intruder = site.client("mallory", "sst2", address, FEDMTL_TOKEN=tokens[1][:-4] + "AAAA")
    assert site.ended("mallory", intruder) == 1
    assert "error: the token isn't valid on this server" in site.log("mallory")
    server.terminate()
    server.wait(30)
    assert '"event": "call.refused"' in site.log("server")
    for path in site.files():
        for token in tokens:
            secret = token.rpartition(".")[2].encode()
            assert path.name == "ben.token" or secret not in path.read_bytes(), path


@pytest.mark.long
def test_a_local_federation_behind_tls_and_tokens(tmp_path, stack):
    site = Site(tmp_path, stack)
    site.run("fedmtl_server", "certs", "init", "certs")
    for name, what in {"a": "--task=sst2", "b": "--task=stsb", "observer": "--observer"}.items():
        site.run("fedmtl_server", "clients", "add", name, what, "--token-file", f"{name}.token")
    clients = [
        {"client_id": name, "task": task, "token_file": f"{name}.token"}
        for name, task in (("a", "sst2"), ("b", "stsb"))
    ]
    secured = json.dumps(
        {"tls": {"certificate": "certs/server.pem", "key": "certs/server.key"}, "authentication": True}
    )
    settings = {
        "clients": json.dumps(clients),
        "security": secured,
        "client.tls_ca": "certs/ca.pem",
        "client.token_file": "observer.token",
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    shown = site.run("fedmtl_local", "--config", "c.yaml", "--run-dir", "runs/local", *options)
    assert "2 of 2 clients" in shown
    assert "transport=TLS authentication=on" in (tmp_path / "runs/local/logs/server.log").read_text()


MISTAKES = {
    "a server for others in the clear": (
        ("fedmtl_server", "--config", "c.yaml", "--host", "0.0.0.0"),
        "error: server.host: 0.0.0.0 can be reached from other machines",
    ),
    "a client to another machine in the clear": (
        ("fedmtl_client", "--client-id", "a", "--task", "sst2", "--server", "10.0.0.1:50051", "--config", "c.yaml"),
        "error: --server: 10.0.0.1:50051 may be another machine",
    ),
    "a certificate without a key": (
        ("fedmtl_server", "--config", "c.yaml", *TLS[:2]),
        "security.tls: `certificate` and `key` go together, got only a certificate",
    ),
    "a certificate that isn't there": (
        ("fedmtl_server", "--config", "c.yaml", *TLS),
        "error: security.tls: can't read certs/server.pem: No such file",
    ),
    "a CA that isn't there": (
        ("fedmtl_client", "--client-id", "a", "--task", "sst2", "--config", "c.yaml", "--tls-ca", "ca.pem"),
        "error: client.tls_ca: can't read ca.pem: No such file",
    ),
    "a client without tasks": (("fedmtl_server", "clients", "add", "a"), "error: expected one of --task TASK"),
    "a task that the server hasn't": (
        ("fedmtl_server", "clients", "add", "a", "--task", "rte", "--config", "c.yaml"),
        "error: --task: c.yaml has the tasks sst2, stsb, got 'rte'",
    ),
    "a list of nothing": (("fedmtl_server", "clients", "list"), "clients.sqlite: no such file"),
    "a key of TLS that doesn't exist": (
        ("fedmtl_server", "--config", "c.yaml", "--set", "security.tls.certficate=x"),
        "security.tls.certficate: unknown key; did you mean 'certificate'?",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_words(case, tmp_path, stack):
    arguments, text = MISTAKES[case]
    said = Site(tmp_path, stack).run(*arguments, code=2)
    assert text in said
    assert not (tmp_path / "runs").exists()


def test_a_server_for_others_in_the_clear_starts_when_it_is_said_aloud_and_warns(tmp_path, stack):
    site = Site(tmp_path, stack)
    site.serve("--host", "0.0.0.0", "--insecure")
    site.until_said("server", "server.insecure")


def test_a_token_file_that_is_there_is_not_overwritten_and_the_client_not_added(tmp_path, stack):
    site = Site(tmp_path, stack)
    (tmp_path / "a.token").write_text("mine")
    said = site.run("fedmtl_server", "clients", "add", "a", "--task", "sst2", "--token-file", "a.token", code=2)
    assert "error: --token-file: can't create a.token: File exists" in said
    assert (tmp_path / "a.token").read_text() == "mine"
    assert site.run("fedmtl_server", "clients", "list").startswith("There are no clients in ")
