"""What `fedmtl-server doctor` finds: every check with real broken inputs, and a configuration that is fine."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import sys

import pytest
import structlog
from typer.testing import CliRunner

from fedmtl_core.config import Config
from fedmtl_core.runtime.doctor import Level, findings
from fedmtl_server import doctor, model_doctor
from fedmtl_server.access.certs import make_authority, make_client, make_server
from fedmtl_server.access.clients import ClientRegistry
from fedmtl_server.commands.app import app
from fedmtl_server.storage.history import History
from fedmtl_server.storage.schema import VERSION_TABLE
from tests.tiny_encoders import save

OK, WARN, FAIL = Level.ok, Level.warn, Level.fail


def config_of(tmp_path, **sections) -> Config:
    server = {"port": 0, "runs_dir": str(tmp_path / "runs")} | sections.pop("server", {})
    base = {
        "model": {"server_model": "builtin:toy"},
        "training": {"max_length": 48},
        "tasks": {"sst2": {}, "qqp": {}},
        "server": server,
    }
    return Config.model_validate(base | sections)


@pytest.fixture(autouse=True)
def logs_as_before():
    """The commands quieten the log for the process that they are."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def look(check, *arguments):
    """A check's findings as the command has them."""
    return findings("check", lambda: check(*arguments))


def of_level(found, level):
    return [one for one in found if one.level is level]


def test_a_configuration_that_is_fine_has_nothing_but_ok(tmp_path):
    found = doctor.examine(config_of(tmp_path))
    assert {one.level for one in found} == {OK}
    assert {one.check for one in found} >= {"address", "tls", "clients", "model", "tokenizer", "disk", "database"}
    assert not (tmp_path / "runs").exists()  # nothing was made


class TestAddress:
    def test_a_port_that_is_taken(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            (found,) = look(doctor.address, config_of(tmp_path, server={"port": port}))
        assert found.level is FAIL
        assert f"can't listen on 127.0.0.1:{port}: port {port} is in use" in found.found

    def test_an_address_of_another_machine(self, tmp_path):
        config = config_of(tmp_path, server={"host": "192.0.2.1"}, security={"insecure": True})
        (found,) = look(doctor.address, config)
        assert (found.level, "192.0.2.1 is not an address of this machine" in found.found) == (FAIL, True)

    def test_a_host_that_doesnt_exist(self, tmp_path):
        config = config_of(tmp_path, server={"host": "no-such-host.invalid"}, security={"insecure": True})
        (found,) = look(doctor.address, config)
        assert (found.level, "can't listen on no-such-host.invalid:0" in found.found) == (FAIL, True)

    def test_everybodys_network_without_tls(self, tmp_path):
        (found,) = look(doctor.address, config_of(tmp_path, server={"host": "0.0.0.0"}))
        assert (found.level, "everything would go over the network in the clear" in found.found) == (FAIL, True)
        insecure = config_of(tmp_path, server={"host": "0.0.0.0"}, security={"insecure": True})
        (found,) = look(doctor.address, insecure)
        assert found.level is WARN


class TestTls:
    def files(self, tmp_path, *, days=365.0, hosts=("fedmtl.example.org",)):
        authority = make_authority("trial", days=days)
        pair = make_server(authority, hosts, days=days)
        for name, content in {
            "server.pem": pair.certificate_pem,
            "server.key": pair.key_pem,
            "ca.pem": authority.certificate_pem,
            "other.key": make_client(authority, "a", days=1).key_pem,
        }.items():
            (tmp_path / name).write_bytes(content)
            (tmp_path / name).chmod(0o600)

    def config(self, tmp_path, key="server.key", certificate="server.pem", ca=None, **server):
        tls = {"certificate": str(tmp_path / certificate), "key": str(tmp_path / key)}
        tls |= {"client_ca": str(tmp_path / ca)} if ca else {}
        return config_of(tmp_path, security={"tls": tls}, server=server)

    def test_good_files(self, tmp_path):
        self.files(tmp_path)
        found = look(doctor.certificates, self.config(tmp_path, ca="ca.pem"))
        assert {one.level for one in found} == {OK}
        assert any("localhost, 127.0.0.1, ::1, fedmtl.example.org" in one.found for one in found)

    def test_a_certificate_for_this_machine_alone_on_every_address(self, tmp_path):
        self.files(tmp_path, hosts=())
        *_, found = look(doctor.certificates, self.config(tmp_path, host="0.0.0.0"))
        assert (found.level, found.found) == (
            WARN,
            "the certificate names only this machine: localhost, 127.0.0.1, ::1",
        )

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"key": "other.key"}, "isn't that of the certificate"),
            ({"key": "nothing.key"}, "can't read"),
            ({"certificate": "server.key"}, "expected certificates in PEM"),
            ({"ca": "server.key"}, "security.tls.client_ca: expected certificates in PEM"),
        ],
    )
    def test_files_that_dont_do(self, tmp_path, options, said):
        self.files(tmp_path)
        (found,) = look(doctor.certificates, self.config(tmp_path, **options))
        assert (found.level, said in found.found) == (FAIL, True), found

    def test_a_certificate_that_has_expired_or_soon_will_have(self, tmp_path):
        self.files(tmp_path, days=-1 / 1440)
        (found,) = look(doctor.certificates, self.config(tmp_path))
        assert (found.level, "which isn't now" in found.found) == (FAIL, True)
        self.files(tmp_path, days=2)
        (found,) = of_level(look(doctor.certificates, self.config(tmp_path)), WARN)
        assert (found.advice, "(1 days)" in found.found) == ("renew it in time", True)

    def test_a_certificate_with_another_name_and_a_key_for_all(self, tmp_path):
        self.files(tmp_path)
        (tmp_path / "server.key").chmod(0o644)
        config = self.config(tmp_path, host="192.0.2.7")
        names, key = of_level(look(doctor.certificates, config), WARN)
        assert "but not the server's address 192.0.2.7" in names.found
        assert "other users of this machine can read" in key.found

    def test_a_certificate_without_any_name(self, tmp_path):
        (found,) = doctor.names("127.0.0.1", make_authority("trial", days=1).certificate)
        assert (found.level, "names no host" in found.found) == (FAIL, True)


class TestClients:
    def config(self, tmp_path, **sections):
        return config_of(tmp_path, security={"authentication": True}, **sections)

    def test_nobody_was_added_yet(self, tmp_path):
        (found,) = look(doctor.clients, self.config(tmp_path))
        assert found.level is WARN
        assert "clients.sqlite does not exist, so no client is registered yet" in found.found

    def test_tls_without_authentication_on_this_machine_is_a_warning_unless_it_is_said(self, tmp_path):
        tls = {"certificate": "server.pem", "key": "server.key"}
        (found,) = look(doctor.clients, config_of(tmp_path, security={"tls": tls}))
        assert (found.level, "authentication is off" in found.found, "although TLS is on" in found.found) == (
            WARN,
            True,
            True,
        )
        (said,) = look(doctor.clients, config_of(tmp_path, security={"tls": tls, "authentication": False}))
        assert said.level is OK

    def test_a_client_with_a_certificate_cannot_connect_to_a_server_that_reads_none(self, tmp_path):
        (tmp_path / "runs").mkdir()
        with contextlib.closing(ClientRegistry.open(tmp_path / "runs" / "clients.sqlite")) as registry:
            registry.add("a", None, with_token=True)
            registry.add("b", None, with_token=False)
        security = {"authentication": True}
        first, _ = look(doctor.clients, config_of(tmp_path, security=security))
        assert (first.level, first.found) == (WARN, "the server reads no client certificates, so b can't connect")
        security["tls"] = {"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"}
        (found,) = look(doctor.clients, config_of(tmp_path, security=security))
        assert found.level is OK

    def test_a_task_that_nobody_has(self, tmp_path):
        (tmp_path / "runs").mkdir()
        with contextlib.closing(ClientRegistry.open(tmp_path / "runs" / "clients.sqlite")) as registry:
            registry.add("a", ["sst2"], with_token=True)
            registry.add("gone", None, with_token=True)
            registry.revoke("gone")
        (found,) = look(doctor.clients, self.config(tmp_path))
        assert (found.level, "1 active in" in found.found, "no client has qqp" in found.found) == (
            WARN,
            True,
            True,
        )

    def test_a_database_that_is_no_database(self, tmp_path):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "clients.sqlite").write_text("not a database at all, however long it is" * 20)
        (found,) = look(doctor.clients, self.config(tmp_path))
        assert found.level is FAIL


class TestDatabase:
    def test_a_new_file_and_one_that_is_up_to_date(self, tmp_path):
        url = f"sqlite:///{tmp_path}/h.sqlite"
        config = config_of(tmp_path, store={"url": url})
        assert {one.level for one in look(doctor.database, config)} == {OK}
        assert not (tmp_path / "h.sqlite").exists()
        History.open(url).close()
        (found,) = look(doctor.database, config)
        assert (found.level, "has the newest schema" in found.found) == (OK, True)

    def test_one_that_a_run_s_folder_should_have_is_missing(self, tmp_path):
        (tmp_path / "run.json").write_text('{"run_id": "cafe"}')
        (found,) = look(doctor.database, config_of(tmp_path), tmp_path)
        assert (found.level, "history.sqlite is missing" in found.found) == (FAIL, True)
        assert not (tmp_path / "history.sqlite").exists()

    def test_one_that_is_behind_is_left_as_it_is(self, tmp_path):
        path = tmp_path / "h.sqlite"
        History.open(path).close()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(f"UPDATE {VERSION_TABLE} SET version_num = '0001'")
            database.commit()
        before = path.read_bytes()
        (found,) = look(doctor.database, config_of(tmp_path, store={"url": f"sqlite:///{path}"}))
        assert (found.level, "has schema 0001" in found.found) == (WARN, True)
        assert path.read_bytes() == before

    def test_one_of_a_newer_version(self, tmp_path):
        path = tmp_path / "h.sqlite"
        History.open(path).close()
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
            database.commit()
        (found,) = look(doctor.database, config_of(tmp_path, store={"url": f"sqlite:///{path}"}))
        assert (found.level, "was written by a newer FedMTL" in found.found) == (FAIL, True)

    def test_one_that_nobody_answers_for(self, tmp_path):
        url = "postgresql+psycopg://someone:secret@127.0.0.1:1/nothing"
        (found,) = look(doctor.database, config_of(tmp_path, store={"url": url}))
        assert found.level is FAIL
        assert "secret" not in found.found

    def test_a_folder_that_cant_be_made(self, tmp_path):
        (tmp_path / "file").write_text("x")
        (found,) = look(doctor.database, config_of(tmp_path, store={"url": f"sqlite:///{tmp_path}/file/h.sqlite"}))
        assert (found.level, "can't write to" in found.found) == (FAIL, True)


class TestAdapters:
    def found(self, tmp_path, adapters=None, **sections):
        model = {"server_model": "builtin:toy", "adapters": adapters or {"rank": 2}} | sections.pop("model", {})
        return doctor.examine(config_of(tmp_path, model=model, **sections))

    def test_what_is_trained_and_how_large_components_and_checkpoints_are(self, tmp_path):
        found = self.found(tmp_path)
        assert {one.level for one in found} == {OK}
        said = {one.check: one.found for one in found}
        b = 2 * 2 * (4 * 64 + 256 + 64)  # rank 2 in two layers: four matrices of 64 outputs, one of 256, one of 64
        a = 2 * 2 * (5 * 64 + 256)
        assert f"12 layers, {b:,} trained parameters beside {118144 + a:,} that no round changes" in said["adapters"]
        kib = f"{4 * b / 2**10:.1f} KiB"
        assert said["sharing"].startswith(f"the encoder's adapters and the heads: shared {kib}, task:sst2 0.5 KiB")
        assert said["disk"].partition("needed: ")[2].startswith("0.5 MiB for the base of the adapters, ")

    def test_an_update_has_the_factor_that_its_round_trains(self, tmp_path):
        model = {"server_model": "builtin:toy", "adapters": {"rank": 2, "aggregation": "alternate"}}
        updates = model_doctor.update_bytes(config_of(tmp_path, model=model))
        factor = 2 * 2 * (4 * 64 + 256 + 64)  # A and B have as many parameters
        assert updates["sst2"] == 4 * (factor + 130)
        assert updates[""] == 4 * (2 * factor + 130 + 130)

    def test_layers_that_are_never_trained_are_named_and_end_the_checks(self, tmp_path):
        found = self.found(tmp_path, {"targets": ["dense"]}, model={"pooling": "mean"})
        (failed,) = of_level(found, FAIL)
        assert (failed.check, "pooler.dense;" in failed.found + ";") == ("adapters", True)
        assert "disk" not in {one.check for one in found}

    def test_targets_that_the_encoder_hasnt(self, tmp_path):
        (failed,) = of_level(self.found(tmp_path, {"targets": ["q_proj"]}), FAIL)
        assert (failed.check, "no linear layer 'q_proj'" in failed.found) == ("adapters", True)

    def test_a_missing_peft_with_the_way_to_install_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        (failed,) = of_level(self.found(tmp_path), FAIL)
        assert failed.check == "adapters"
        assert "pip install 'fedmtl[adapters]'" in failed.found


def test_a_disk_that_is_too_small_for_the_models_checkpoints(tmp_path):
    """The numbers are those of the toy model: its encoder, and 130 of each head."""
    config = config_of(tmp_path)
    sizes = model_doctor.update_bytes(config)
    assert sizes[""] == 4 * (118144 + 130 + 130)
    assert sizes["sst2"] == 4 * (118144 + 130)
    huge = config.model_copy(update={"store": config.store.model_copy(update={"keep_checkpoints": 10**12})})
    (found,) = look(model_doctor.disk, huge, tmp_path)
    assert (found.level, "1000000000003 checkpoints of 0.5 MiB" in found.found) == (FAIL, True)


def test_the_sizes_before_and_after_each_entry_of_a_schedule(tmp_path):
    """A layer of the toy model, 64 wide: four maps 64 x 64, two of 64 x 256, all with biases, and two norms."""
    entries = [{"after_round": 1, "layers": {"1": "task"}}, {"after_round": 2, "layers": {"1": "shared"}}]
    config = config_of(tmp_path, sharing={"schedule": entries})
    found = [one.found for one in look(model_doctor.sharing, config)]
    assert [one.partition(":")[0] for one in found[1:]] == ["after round 1", "after round 2"]
    assert found[2].partition(": ")[2] == found[0]
    plain = model_doctor.update_bytes(config_of(tmp_path))[""]
    assert model_doctor.update_bytes(config)[""] == plain + 4 * (
        4 * 65 * 64 + 65 * 256 + 257 * 64 + 4 * 64
    )  # the largest: one copy of the layer more
    bad = [{"after_round": 1, "layers": {"1-2": "task"}}]
    (fails,) = of_level(look(model_doctor.sharing, config_of(tmp_path, sharing={"schedule": bad})), FAIL)
    assert "sharing.schedule[0].layers: the encoder has no layer 2; it has 0, 1, embeddings, pooler" in fails.found


def test_layers_that_the_encoder_has_not_and_what_there_is_of_those_it_has(tmp_path):
    shared = {"groups": {"pairs": ["qqp"]}, "layers": {"1": "task"}, "norms": "local"}
    (found, kept) = look(model_doctor.sharing, config_of(tmp_path, sharing=shared))
    assert [part.split()[0] for part in found.found.split(", ")] == ["shared", "task:sst2", "task:qqp"]
    assert "10 tensors of sst2, 10 tensors of qqp" in kept.found  # two of each of five norms
    found = doctor.examine(config_of(tmp_path, sharing={"layers": {"2": "task"}}))
    (bad,) = of_level(found, FAIL)
    assert (bad.check, bad.found) == (
        "sharing",
        "sharing.layers: the encoder has no layer 2; it has 0, 1, embeddings, pooler",
    )


def test_no_tasks(tmp_path):
    (found,) = look(doctor.tasks, config_of(tmp_path, tasks={}))
    assert found.level is FAIL


def test_a_class_of_the_users_is_loaded_and_a_wrong_one_is_a_failure(tmp_path, monkeypatch):
    (tmp_path / "rules_for_doctor.py").write_text(
        "from fedmtl_server.aggregation.rules import BlockRule\n\n"
        "class First(BlockRule):\n"
        "    def aggregate(self, values, weights, context):\n"
        "        return values[0]\n"
    )
    monkeypatch.chdir(tmp_path)
    (fine,) = look(doctor.plug_ins, config_of(tmp_path, aggregation={"rule": "rules_for_doctor:First"}))
    assert (fine.level, fine.found) == (OK, "rules_for_doctor:First")
    (none,) = look(doctor.plug_ins, config_of(tmp_path))
    assert (none.level, none.found) == (OK, "none for the server")
    wrong = doctor.examine(config_of(tmp_path, aggregation={"rule": "rules_for_doctor:Last"}))
    (failed,) = of_level(wrong, FAIL)
    assert failed.check == "plug-ins"
    assert "aggregation.rule: the module 'rules_for_doctor'" in failed.found
    assert "it has First" in failed.found


def test_a_model_that_isnt_there_leaves_out_what_needs_it(tmp_path):
    found = doctor.examine(config_of(tmp_path, model={"server_model": "/no/such/folder"}))
    assert [one.check for one in of_level(found, FAIL)] == ["model"]
    assert not {"disk", "tokenizer"} & {one.check for one in found}


def test_an_encoder_that_cannot_be_trained_as_asked_is_a_failure_beside_the_other_findings(tmp_path):
    found = doctor.examine(config_of(tmp_path, model={"server_model": save(tmp_path / "model", "gpt2")}))
    (failed,) = of_level(found, FAIL)
    assert (failed.check, "the model is causal" in failed.found) == ("encoder", True)
    assert failed.advice == "set model.pooling to last, or to mean"
    assert {"disk", "tokenizer"} <= {one.check for one in found}


def test_a_tokenizer_that_only_clients_need_is_a_warning(tmp_path):
    config = config_of(tmp_path, model={"server_model": "builtin:toy", "client_model": "/no/such/folder"})
    (found,) = look(doctor.clients_tokenizer, config)
    assert (found.level, found.advice.startswith("clients need it")) == (WARN, True)


class TestCommand:
    def run(self, tmp_path, text, *options):
        (tmp_path / "c.yaml").write_text(text)
        return CliRunner().invoke(app, ["doctor", "--config", str(tmp_path / "c.yaml"), *options])

    GOOD = "model: {server_model: 'builtin:toy'}\ntraining: {max_length: 48}\ntasks: {sst2: {}}\n"

    def test_all_is_well(self, tmp_path):
        options = ("--set", f"server.runs_dir={tmp_path}", "--set", "server.port=0")
        result = self.run(tmp_path, self.GOOD, *options)
        assert result.exit_code == 0, result.output
        assert result.output.splitlines()[-1].endswith("ok, 0 warnings, 0 failures")
        result = self.run(tmp_path, self.GOOD, *options, "--json")
        assert {one["level"] for one in json.loads(result.output)} == {"ok"}

    def test_a_configuration_that_cant_be_read_is_a_finding_and_an_exit_code(self, tmp_path):
        result = self.run(tmp_path, "tasks: {sst2: {}}\ntraning: {}\n")
        assert result.exit_code == 1
        assert "fail  configuration" in result.output
        assert "traning" in result.output
