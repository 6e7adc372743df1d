"""What `fedmtl-client doctor` finds: rows, credentials and servers as people have them, broken ones above all."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace

import pytest
import structlog
from fedmtl.v1 import federation_pb2 as pb
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from fedmtl_client import __main__ as command
from fedmtl_client import doctor, model_doctor
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.runtime.doctor import Level, findings
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.access.certs import make_authority, make_client, make_server
from fedmtl_server.model import MTLServerModel
from tests.support import serving, tiny_model, watching
from tests.tiny_encoders import save

OK, WARN, FAIL = Level.ok, Level.warn, Level.fail
SPEC = TaskSpec("mood", "classification", ("text",), "label", ("bad", "good"))


@pytest.fixture(autouse=True)
def logs_as_before():
    """The commands quieten the log for the process that they are."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def look(check, *arguments):
    """A check's findings as the command has them."""
    return findings("check", lambda: check(*arguments))


def tried(*arguments):
    """What is found about an encoder."""
    return look(model_doctor.encoder, *arguments)


def of_level(found, level):
    return [one for one in found if one.level is level]


class TestRows:
    def rows(self, tmp_path, text, spec=SPEC, shard=(1, 1), name="rows.tsv"):
        (tmp_path / name).write_text(text)
        source = DataConfig(train=str(tmp_path / name), validation=str(tmp_path / name))
        return look(doctor.rows, spec, source, "train", shard)

    def test_good_rows_with_how_many_there_are_of_each_label(self, tmp_path):
        (found,) = self.rows(tmp_path, "text\tlabel\na\tgood\nb\tbad\nc\t1\n")
        assert (found.level, found.found) == (OK, "3, using the columns text, label; bad 1, good 2")

    def test_unknown_labels_are_told_by_value(self, tmp_path):
        text = "text\tlabel\na\tgood\nb\tbad\nc\tso-so\nd\tso-so\ne\t7\n"
        (found,) = of_level(self.rows(tmp_path, text), FAIL)
        assert found.found == "label: expected one of bad, good; got 'so-so' in 2 rows, '7' in 1 rows"
        assert "tasks.mood.labels" in found.advice

    def test_numbers_that_are_none_are_told_by_value(self, tmp_path):
        spec = TaskSpec("score", "regression", ("text",), "label")
        (found,) = of_level(self.rows(tmp_path, "text\tlabel\na\t1.5\nb\tn/a\n", spec), FAIL)
        assert found.found == "label: expected a finite number; got 'n/a' in 1 rows"

    def test_a_label_without_rows_and_empty_texts_are_warnings(self, tmp_path):
        missing, empty = of_level(self.rows(tmp_path, "text\tlabel\na\tgood\n \tgood\n"), WARN)
        assert missing.found == "no row has the label bad"
        assert empty.found == "1 rows have an empty text"

    @pytest.mark.parametrize(
        ("text", "name", "said"),
        [
            ("words\tlabel\na\tgood\n", "rows.tsv", "there is no column 'text'; the columns are words, label"),
            ("text\tlabel\n", "rows.tsv", "has no rows"),
            ("text,label\n", "rows.docx", "expected a file ending in .tsv"),
            ('{"text": 3, "label": "good"}\n', "rows.jsonl", "expected text, got 3"),
        ],
    )
    def test_files_that_cant_be_used(self, tmp_path, text, name, said):
        (found,) = self.rows(tmp_path, text, name=name)
        assert (found.level, said in found.found) == (FAIL, True), found

    def test_a_file_that_isnt_there(self, tmp_path):
        source = DataConfig(train=str(tmp_path / "no.tsv"), validation="x.tsv")
        (found,) = look(doctor.rows, SPEC, source, "train", (1, 1))
        assert (found.level, "there is no file" in found.found) == (FAIL, True)

    def test_a_shard_of_too_few_rows(self, tmp_path):
        (found,) = self.rows(tmp_path, "text\tlabel\na\tgood\n", shard=(2, 2))
        assert (found.level, found.found) == (FAIL, "shard 2/2 of 1 rows is empty")
        found = self.rows(tmp_path, "text\tlabel\na\tgood\nb\tbad\nc\tbad\n", shard=(1, 2))
        assert found[0].found.startswith("2 of 3, ")


class TestCredentials:
    def config(self, **client):
        return Config.model_validate({"client": {key: str(path) for key, path in client.items()}})

    def test_another_machine_in_the_clear(self):
        (found,) = look(doctor.credentials, Config(), "fedmtl.example.org:50051")
        assert (found.level, "in the clear" in found.found) == (FAIL, True)
        insecure = Config.model_validate({"security": {"insecure": True}})
        (found,) = look(doctor.credentials, insecure, "fedmtl.example.org:50051")
        assert found.level is WARN

    def test_a_token_that_is_none(self, tmp_path):
        (tmp_path / "token").write_text("short")
        (found,) = look(doctor.credentials, self.config(token_file=tmp_path / "token"), "127.0.0.1:1")
        assert (found.level, "expected one token" in found.found, "short" in found.found) == (FAIL, True, False)

    def test_certificates_that_are_good_end_soon_or_have_ended(self, tmp_path):
        for name, days in (("ca.pem", 3), ("old.pem", -1 / 1440)):
            (tmp_path / name).write_bytes(make_authority("trial", days=days).certificate_pem)
        found = look(doctor.credentials, self.config(tls_ca=tmp_path / "ca.pem"), "127.0.0.1:1")
        assert [one.level for one in found] == [OK, WARN]
        (found,) = of_level(look(doctor.credentials, self.config(tls_ca=tmp_path / "old.pem"), "127.0.0.1:1"), FAIL)
        assert "which isn't now" in found.found

    def test_a_key_of_another_certificate(self, tmp_path):
        authority = make_authority("trial", days=1)
        (tmp_path / "ca.pem").write_bytes(authority.certificate_pem)
        (tmp_path / "a.pem").write_bytes(make_client(authority, "a", days=1).certificate_pem)
        (tmp_path / "b.key").write_bytes(make_client(authority, "b", days=1).key_pem)
        config = self.config(tls_ca=tmp_path / "ca.pem", tls_certificate=tmp_path / "a.pem", tls_key=tmp_path / "b.key")
        (found,) = look(doctor.credentials, config, "127.0.0.1:1")
        assert (found.level, "isn't that of the certificate" in found.found) == (FAIL, True)


class TestServer:
    async def reach(self, server, spec=PRESETS["sst2"], client_id="a", config=None):
        plans = []
        address = server if isinstance(server, str) else server.address
        found = await asyncio.to_thread(look, doctor.reach, config or Config(), client_id, [spec], address, plans, [])
        return found, plans

    async def test_a_server_that_takes_this_client(self, tmp_path):
        async with serving(tmp_path, tiny_model("sst2")) as server:
            found, plans = await self.reach(server)
            assert [one.client_id for one in server.federation.status().clients] == []  # it took no part
        assert [one.level for one in found] == [OK, OK, OK]
        assert found[1].found.endswith("is at round 1 of 1, waiting for 1 more sst2 client")
        assert plans[0].labels == ("negative", "positive")

    async def test_nobody_there(self):
        found, plans = await self.reach("127.0.0.1:1")
        assert (found[0].level, "no server at 127.0.0.1:1" in found[0].found, plans) == (FAIL, True, [])

    async def test_a_task_that_the_server_hasnt_or_has_otherwise(self, tmp_path):
        async with serving(tmp_path, tiny_model("sst2")) as server:
            unknown, _ = await self.reach(server, PRESETS["cola"])
            swapped = TaskSpec("sst2", "classification", ("sentence",), "label", ("positive", "negative"))
            other, plans = await self.reach(server, swapped)
        assert "expected one of sst2, got 'cola'" in of_level(unknown, FAIL)[0].found
        assert "this client has positive, negative" in of_level(other, FAIL)[0].found
        assert plans  # the tokenizer can be looked at all the same

    async def test_a_client_id_that_is_in_use(self, tmp_path):
        async with serving(tmp_path, tiny_model("sst2")) as server, watching(server, a="sst2"):
            found, _ = await self.reach(server)
        assert of_level(found, WARN)[0].found == "a client 'a' is connected already"

    async def test_credentials_that_the_server_doesnt_take(self, tmp_path):
        settings = {"runs_dir": str(tmp_path)}
        security = {"security": {"authentication": True}}
        async with serving(tmp_path / "run", tiny_model("sst2"), settings=settings, sections=security) as server:
            found, _ = await self.reach(server)
        (refused,) = of_level(found, FAIL)
        assert "expected a client's certificate or its token, got neither" in refused.found

    async def test_a_server_whose_certificate_is_another_cas(self, tmp_path):
        pair = make_server(make_authority("theirs", days=1), (), days=1)
        for name, content in {
            "server.pem": pair.certificate_pem,
            "server.key": pair.key_pem,
            "mine.pem": make_authority("mine", days=1).certificate_pem,
        }.items():
            (tmp_path / name).write_bytes(content)
        tls = {"certificate": str(tmp_path / "server.pem"), "key": str(tmp_path / "server.key")}
        config = Config.model_validate({"client": {"tls_ca": str(tmp_path / "mine.pem")}})
        sections = {"security": {"tls": tls}}
        async with serving(tmp_path / "run", tiny_model("sst2"), sections=sections) as server:
            found, _ = await self.reach(server, config=config)
        assert "shows a certificate that isn't trusted" in of_level(found, FAIL)[0].found

    def test_a_clock_that_is_ahead_is_seen_by_the_last_rounds_end(self):
        status = pb.GetStatusResponse(last_report=pb.RoundReport(opened_at_unix_ms=1_000_000, duration_seconds=30))
        (found,) = doctor.clock(status, now=900.0)
        assert (found.level, "at least 130 s ahead" in found.found) == (WARN, True)
        assert list(doctor.clock(status, now=2000.0)) == []
        assert list(doctor.clock(pb.GetStatusResponse(), now=900.0)) == []


def test_what_a_client_is_to_keep_needs_values_to_begin_with_and_may_outlast_it(tmp_path):
    BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=1).save_pretrained(tmp_path / "bare")
    plan = Config.model_validate({"tasks": {"sst2": {}}}).plan("sst2")
    norms, head = replace(plan, local=("encoder.norm.weight",)), replace(plan, local=("heads.sst2.bias",))
    bare = str(tmp_path / "bare")
    (found,) = look(model_doctor.own_parameters, Config(), norms, bare)
    assert found.level is FAIL
    assert found.found.startswith("1 local tensors of the encoder start from the weights of")
    assert [one.level for one in look(model_doctor.own_parameters, Config(), norms, "builtin:toy")] == [OK]
    (found,) = look(model_doctor.own_parameters, Config(), head, bare)
    assert (found.level, found.found) == (OK, "1 tensors, in memory only; client.state_dir would keep them")
    (tmp_path / "file").touch()
    kept = Config.model_validate({"client": {"state_dir": str(tmp_path / "file" / "state")}})
    assert [one.level for one in look(model_doctor.own_parameters, kept, head, bare)] == [FAIL]


def test_an_encoder_is_tried_as_the_servers_plan_says(tmp_path):
    source = save(tmp_path, "gpt2", "left")
    plan = Config.model_validate({"training": {"max_length": 64}, "tasks": {"sst2": {}}}).plan("sst2")
    (found,) = tried(Config(), plan, source, [PRESETS["sst2"]])
    assert (found.level, found.check, "the model is causal" in found.found) == (FAIL, "encoder", True)
    (found,) = tried(Config(), replace(plan, pooling="last"), source, [PRESETS["sst2"]])
    assert found.level is OK
    (found,) = look(
        model_doctor.encoder, Config(), replace(plan, pooling="last", max_length=65), source, [PRESETS["sst2"]]
    )
    assert (found.level, "takes at most 64 tokens" in found.found) == (FAIL, True)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")  # a client that takes all values from the server has no use for weights
    (found,) = tried(Config(), replace(plan, pooling="last"), source, [PRESETS["sst2"]])
    assert found.level is OK


def test_a_device_that_this_machine_hasnt():
    (found,) = look(doctor.device, Config.model_validate({"training": {"device": "cuda:99"}}))
    assert (found.level, "this machine has no cuda:99" in found.found) == (FAIL, True)


class TestCommand:
    def run(self, monkeypatch, capsys, *options):
        monkeypatch.setattr(sys, "argv", ["fedmtl-client", "doctor", "--client-id", "a", *options])
        capsys.readouterr()  # what a server in this process has said until now
        with pytest.raises(SystemExit) as ended:
            command.main()
        return ended.value.code, capsys.readouterr().out

    async def test_all_is_well(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "c.yaml").write_text(
            "tasks: {sst2: {data: {builtin: sst2}}}\nmodel: {server_model: 'builtin:toy'}\n"
        )
        async with serving(tmp_path / "run", tiny_model("sst2")) as server:
            options = ("--task", "sst2", "--server", server.address, "--config", str(tmp_path / "c.yaml"), "--json")
            code, out = await asyncio.to_thread(self.run, monkeypatch, capsys, *options)
        assert code == 0, out
        found = json.loads(out)
        assert {one["level"] for one in found} == {"ok"}
        assert {one["check"] for one in found} >= {
            "configuration",
            "train rows",
            "server",
            "task",
            "tokenizer",
            "encoder",
        }

    async def with_adapters(self, tmp_path, monkeypatch, capsys, mine, *options, adapters=None):
        """The exit code and findings about adapters and base, against a server with adapters on `source`."""
        given = {
            "model": {"server_model": str(tmp_path / "source"), "adapters": adapters or {"rank": 2}},
            "training": {"max_length": 20},
            "tasks": {"sst2": {}},
        }
        if not (tmp_path / "source").exists():
            save(tmp_path / "source", "bert")
        model = MTLServerModel.from_config(Config.model_validate(given))
        (tmp_path / "c.yaml").write_text(
            f"tasks: {{sst2: {{data: {{builtin: sst2}}}}}}\nmodel: {{client_model: '{mine}'}}\n"
        )
        async with serving(tmp_path / "run", model, sections=given) as server:
            address = ("--server", server.address, "--config", str(tmp_path / "c.yaml"))
            code, out = await asyncio.to_thread(
                self.run, monkeypatch, capsys, "--task", "sst2", *address, "--json", *options
            )
        found = {one["check"]: one for one in json.loads(out)}
        return code, found, model

    async def test_the_servers_weights_and_the_size_of_an_update(self, tmp_path, monkeypatch, capsys):
        code, found, model = await self.with_adapters(tmp_path, monkeypatch, capsys, tmp_path / "source")
        assert code == 0, found
        size = sum(one.layout.num_bytes for one in model.components.values())
        assert size == 4 * (2 * 2 * (4 * 32 + 64 + 32) + 2 * 32 + 2)  # B of six layers in two, and the head
        assert (
            f"lora of rank 2: a slice and an update have at most {size / 2**10:.1f} KiB each"
            in found["adapters"]["found"]
        )
        assert found["base"]["found"].endswith("are those that the server's adapters were made for")

    async def test_other_weights_by_the_first_tensor_and_what_a_download_would_take(
        self, tmp_path, monkeypatch, capsys
    ):
        other = save(tmp_path / "other", "bert")
        weights = load_file(tmp_path / "other" / "model.safetensors")
        weights["encoder.layer.0.output.dense.bias"][3] += 1
        save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
        code, found, model = await self.with_adapters(tmp_path, monkeypatch, capsys, other)
        assert (code, found["base"]["level"]) == (1, "fail")
        assert (
            "encoder.encoder.layer.0.output.dense.bias is the first of 1 tensors that differ" in found["base"]["found"]
        )
        assert (
            f"downloads {model.base['frozen'].layout.num_bytes / 2**10:.1f} KiB from the server once"
            in found["base"]["advice"]
        )

    async def test_weights_that_arent_here_or_are_to_be_downloaded(self, tmp_path, monkeypatch, capsys):
        save(tmp_path / "bare", "bert")
        (tmp_path / "bare" / "model.safetensors").unlink()
        code, found, _ = await self.with_adapters(tmp_path, monkeypatch, capsys, tmp_path / "bare")
        assert (code, found["base"]["level"]) == (1, "fail")
        assert "aren't on this machine" in found["base"]["found"]
        (tmp_path / "again").mkdir()
        code, found, model = await self.with_adapters(
            tmp_path / "again", monkeypatch, capsys, tmp_path / "bare", "--set", "client.fetch_base=true"
        )
        assert (code, found["base"]["level"]) == (0, "ok")
        assert f"{model.base['frozen'].layout.num_bytes / 2**10:.1f} KiB are downloaded" in found["base"]["found"]

    def test_a_server_that_isnt_there_is_an_exit_code(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "c.yaml").write_text("tasks: {sst2: {data: {builtin: sst2}}}\n")
        options = ("--task", "sst2", "--server", "127.0.0.1:1", "--config", str(tmp_path / "c.yaml"))
        code, out = self.run(monkeypatch, capsys, *options)
        assert code == 1
        assert "fail  server" in out
        assert "warn  tokenizer" in out

    def test_a_task_that_isnt_in_the_configuration_is_a_finding(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "c.yaml").write_text("tasks: {sst2: {}}\n")
        code, out = self.run(monkeypatch, capsys, "--task", "qqp", "--config", str(tmp_path / "c.yaml"))
        assert code == 1
        assert "has the tasks sst2, got 'qqp'" in out
