"""What a client shows, and how it is told what is wrong with it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.credentials import Credentials, load, why_unreachable
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, UnreachableError
from fedmtl_server.access.certs import make_authority, make_client
from fedmtl_server.access.identities import make_token

CA = make_authority("ca", days=2)
ALICE = make_client(CA, "alice", days=1)
TOKEN = make_token("alice")


@pytest.fixture
def files(tmp_path):
    contents = {
        "tls_ca": CA.certificate_pem,
        "tls_certificate": ALICE.certificate_pem,
        "tls_key": ALICE.key_pem,
        "token_file": TOKEN.encode() + b"\n",
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    return {name: str(tmp_path / name) for name in contents}


def config(**client) -> Config:
    return Config.model_validate({"client": client})


def test_what_the_configuration_names_is_read(files):
    loaded = load(config(**files), {"FEDMTL_TOKEN": "another-token-that-is-not-used"})
    assert loaded == Credentials(CA.certificate_pem, ALICE.certificate_pem, ALICE.key_pem, TOKEN)
    assert loaded.metadata == (("authorization", f"Bearer {TOKEN}"),)


def test_the_token_may_be_in_the_environment():
    assert load(config(), {"FEDMTL_TOKEN": f" {TOKEN} "}).token == TOKEN
    assert load(config(), {}).metadata == ()
    assert load(config(), {"FEDMTL_TOKEN": ""}).token is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token_file": b""}, r"client\.token_file: .*expected one token .*, got 0 characters"),
        ({"token_file": b"hunter2 hunter2 hunter2"}, "got 23 characters of another form"),
        ({"token_file": "hunter2-hunter2-h\u00fcnter2".encode()}, "of another form"),
        ({"tls_ca": b"hunter2"}, r"client\.tls_ca: expected certificates in PEM"),
        ({"tls_key": b"hunter2"}, r"client\.tls_key: expected a private key in PEM"),
        ({"tls_key": CA.key_pem}, r"client\.tls_key: the key in .* isn't that of the certificate"),
        ({"tls_key": None}, r"client\.tls_key: can't read .*: No such file"),
        ({"token_file": None}, r"client\.token_file: can't read .*: No such file"),
    ],
)
def test_what_cannot_be_used_is_named_and_not_shown(files, tmp_path, change, why):
    for name, data in change.items():
        (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=why) as error:
        load(config(**files), {})
    assert "hunter2" not in str(error.value)


def test_a_token_in_the_environment_that_is_none_is_not_shown():
    with pytest.raises(ConfigError, match="the environment variable FEDMTL_TOKEN: expected one token") as error:
        load(config(), {"FEDMTL_TOKEN": "hunter2\nhunter2hunter2"})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("tls_ca", "tls_certificate"), r"client\.tls_certificate: needs client\.tls_key too"),
        (("tls_ca", "tls_key"), r"client\.tls_key: needs client\.tls_certificate too"),
        (("tls_certificate", "tls_key"), r"client\.tls_certificate: needs client\.tls_ca"),
    ],
)
def test_files_that_go_together_are_asked_for(files, given, why):
    with pytest.raises(ConfigError, match=why):
        load(config(**{name: files[name] for name in given}), {})


@pytest.mark.parametrize("address", ["10.0.0.1:1", "fedmtl.example.org:50051", "[fe80::1]:1", "0.0.0.0:1"])
def test_a_client_does_not_connect_to_another_machine_in_the_clear(address):
    with pytest.raises(ConfigError, match=r"--server: .*in the clear.*--tls-ca, or pass --insecure"):
        FederationApi(address, client_id="a", task="sst2")


@pytest.mark.parametrize(
    ("address", "credentials"),
    [
        ("127.0.0.1:1", Credentials()),
        ("[::1]:1", Credentials(token=TOKEN)),
        ("10.0.0.1:1", Credentials(insecure=True)),
        ("10.0.0.1:1", Credentials(ca=CA.certificate_pem)),
    ],
)
def test_it_does_where_that_is_safe_or_said_aloud(address, credentials):
    with capture_logs() as logs:
        FederationApi(address, client_id="a", task="sst2", connection=ConnectionSettings(credentials)).close()
    assert logs == []


def test_a_token_that_goes_over_the_network_in_the_clear_is_a_warning_without_the_token():
    with capture_logs() as logs:
        shown = ConnectionSettings(Credentials(token=TOKEN, insecure=True))
        FederationApi("10.0.0.1:1", client_id="a", task="sst2", connection=shown).close()
    assert [(line["event"], line["log_level"]) for line in logs] == [("token.sent_in_the_clear", "warning")]
    assert TOKEN not in str(logs)


def test_secrets_are_not_in_what_python_shows_of_credentials():
    shown = repr(Credentials(CA.certificate_pem, ALICE.certificate_pem, ALICE.key_pem, TOKEN))
    assert TOKEN not in shown
    assert "PRIVATE" not in shown


@pytest.mark.parametrize(
    ("details", "cause"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:5: Failed to connect to remote "
            "host: Connection refused",
            "Connection refused",
        ),
        (
            "errors resolving h:5: [field:hostname lookup error:address lookup failed for h:5: Domain name not found]",
            "Domain name not found",
        ),
        (
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:5: Socket closed",
            "Socket closed; does the server ask for TLS (--tls-ca), or for another certificate (--tls-certificate)?",
        ),
    ],
)
def test_why_nobody_answers_is_the_last_cause(details, cause):
    error = why_unreachable("h:5", details)
    assert isinstance(error, UnreachableError)
    assert str(error) == cause


def test_what_a_server_itself_says_stays_as_it_is():
    error = why_unreachable("h:5", "the server is stopping: come back")
    assert not isinstance(error, UnreachableError)
    assert str(error) == "the server is stopping: come back"
