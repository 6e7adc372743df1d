"""Certificates for trials, judged by OpenSSL and by the operating system's file modes."""

from __future__ import annotations

import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedmtl_core.errors import ConfigError, FedMTLError
from fedmtl_server.access import certs
from fedmtl_server.commands.certs import certs_app

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def run(*arguments: str | Path) -> str:
    """The command's output; its error, if it has one, is raised."""
    result = CliRunner().invoke(certs_app, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path):
    run(
        "init",
        tmp_path / "certs",
        "--client",
        "alice",
        "--client",
        "bob",
        "--host",
        "fedmtl.example.org",
        "--host",
        "10.1.2.3",
    )
    return tmp_path / "certs"


@needs_openssl
def test_openssl_accepts_each_certificate_for_its_purpose_and_no_other(folder):
    for name, purpose, other in [("server", "sslserver", "sslclient"), ("clients/alice", "sslclient", "sslserver")]:
        verify = ("verify", "-x509_strict", "-CAfile", folder / "ca.pem")
        assert openssl(*verify, "-purpose", purpose, folder / f"{name}.pem").endswith("OK\n")
        assert "unsuitable certificate purpose" in openssl(*verify, "-purpose", other, folder / f"{name}.pem")


@needs_openssl
def test_the_server_is_named_as_loopback_and_as_it_was_asked(folder):
    def matches(option: str, value: str) -> bool:
        return "does match" in openssl("x509", "-in", folder / "server.pem", "-noout", option, value)

    for host in ("localhost", "fedmtl.example.org"):
        assert matches("-checkhost", host)
    for address in ("127.0.0.1", "::1", "10.1.2.3"):
        assert matches("-checkip", address)
    assert not matches("-checkhost", "example.org")
    assert not matches("-checkip", "10.1.2.4")


@needs_openssl
def test_a_client_is_named_by_its_common_name(folder):
    assert "CN = alice" in openssl("x509", "-in", folder / "clients/alice.pem", "-noout", "-subject").replace(
        "CN=", "CN = "
    )


@needs_openssl
def test_a_client_cannot_sign_for_another(folder, tmp_path):
    alice = certs.KeyPair.from_pem(
        (folder / "clients/alice.pem").read_bytes(), (folder / "clients/alice.key").read_bytes()
    )
    forged = tmp_path / "forged.pem"
    forged.write_bytes(certs.make_client(alice, "bob", days=1).certificate_pem)
    shown = openssl("verify", "-CAfile", folder / "ca.pem", "-untrusted", folder / "clients/alice.pem", forged)
    assert "verification failed" in shown


def test_keys_are_for_their_owner_alone(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    stems = ("ca", "server", "clients/alice", "clients/bob")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("pem", "key")}
    for path in folder.rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_ca_that_is_there_is_not_replaced(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    with pytest.raises(FedMTLError, match="already contains a CA; renew or add"):
        run("init", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.pem")} == before


@needs_openssl
def test_a_renewed_server_keeps_its_hosts_and_its_ca_and_gets_a_new_key(folder):
    key = (folder / "server.key").read_bytes()
    run("issue", folder, "--server", "--host", "other.example.org", "--days", "2")
    assert (folder / "server.key").read_bytes() != key
    assert stat.S_IMODE((folder / "server.key").stat().st_mode) == 0o600
    shown = openssl("x509", "-in", folder / "server.pem", "-noout", "-ext", "subjectAltName")
    for host in ("localhost", "fedmtl.example.org", "10.1.2.3", "other.example.org"):
        assert host in shown
    assert openssl("verify", "-CAfile", folder / "ca.pem", folder / "server.pem").endswith("OK\n")
    assert "will not expire" in openssl("x509", "-in", folder / "server.pem", "-noout", "-checkend", str(86400))
    assert "will expire" in openssl("x509", "-in", folder / "server.pem", "-noout", "-checkend", str(3 * 86400))


def test_a_later_client_is_of_the_same_ca(folder):
    run("issue", folder, "--client", "carol")
    ca, carol = (
        certs.x509.load_pem_x509_certificate((folder / name).read_bytes()) for name in ("ca.pem", "clients/carol.pem")
    )
    assert certs.is_signed_by(carol, ca)
    assert not certs.is_signed_by(carol, certs.make_authority("other", days=1).certificate)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("issue", "nowhere", "--server"), "create a CA with `fedmtl-server certs init`"),
        (("issue", "nowhere"), "expected --client NAME"),
        (("issue", "nowhere", "--client", "a", "--host", "b"), "--host: requires --server"),
        (("init", "new", "--client", "../a"), "a client's name: expected 1 to 64 letters"),
        (("init", "new", "--host", "http://x"), "expected a host's name or IP address, got 'http://x'"),
        (("init", "new", "--host", ""), "expected a host's name or IP address, got ''"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_no_file(arguments, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedMTLError, match=why):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_is_valid_from_now_for_as_long_as_it_was_asked():
    now = datetime(2030, 1, 1, tzinfo=UTC)
    pair = certs.make_server(certs.make_authority("ca", days=10), [], days=1.5, now=now)
    assert pair.certificate.not_valid_after_utc == now + timedelta(days=1, hours=12)
    assert now - timedelta(minutes=10) < pair.certificate.not_valid_before_utc < now


def test_a_key_of_another_certificate_is_refused():
    one, other = (certs.make_authority(name, days=1) for name in "ab")
    with pytest.raises(ConfigError, match="the key isn't the certificate's"):
        certs.KeyPair.from_pem(one.certificate_pem, other.key_pem)
