"""What both sides' doctors look at: versions, generated code, folders, disks, models; each with its failing case."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import runtime_version
from transformers import BertConfig, BertModel

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime import doctor
from fedmtl_core.runtime.doctor import Finding, Level
from fedmtl_server.access.certs import make_authority
from tests.tiny_encoders import save

OK, WARN, FAIL = Level.ok, Level.warn, Level.fail


def levels(found):
    return [one.level for one in found]


def only(found) -> Finding:
    (one,) = found
    return one


def test_this_environment_is_fine():
    assert levels(doctor.environment()) == [OK, OK, OK]


def test_an_old_python_is_told():
    found = only(doctor.python(">=3.11", "3.9.1"))
    assert (found.level, found.found) == (FAIL, "expected >=3.11, got 3.9.1")


def test_packages_out_of_bounds_or_missing_are_told_one_by_one():
    found = list(doctor.packages(["torch>=999", "no-such-package-at-all>=1", "numpy>=1", "psycopg>=99; extra == 'x'"]))
    assert levels(found) == [FAIL, FAIL]
    assert found[0].found.startswith("torch: expected >=999, got 2.")
    assert found[1].found == "no-such-package-at-all: expected >=1, but it isn't installed"
    assert found[1].advice == "run pip install 'no-such-package-at-all>=1'"


def test_packages_for_other_machines_dont_count():
    found = only(doctor.packages(["no-such-package-at-all>=1; sys_platform == 'amiga'", "numpy>=1"]))
    assert (found.level, found.found) == (OK, "all 1 required packages are within their bounds")


def test_generated_code_of_a_newer_protobuf_is_told(tmp_path, monkeypatch):
    """As protoc writes it: the file asks for the version that made it."""
    call = "ValidateProtobufRuntimeVersion(runtime_version.Domain.PUBLIC, 99, 1, 0, '', 'newer_pb2.py')"
    (tmp_path / "newer_pb2.py").write_text(f"from google.protobuf import runtime_version\nruntime_version.{call}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = only(doctor.generated_code(["newer_pb2"]))
    sys.modules.pop("newer_pb2", None)
    assert found.level is FAIL
    assert found.found.startswith(f"newer_pb2 doesn't work with protobuf {runtime_version.MAJOR}.")
    assert "gencode 99.1.0" in found.found


def test_generated_code_that_is_missing_is_told():
    assert only(doctor.generated_code(["fedmtl.v9.nothing_pb2"])).level is FAIL


def test_a_folder_that_a_file_stands_in_for_cant_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    found = only(doctor.writable("run folder", tmp_path / "file" / "runs"))
    assert found.level is FAIL
    assert f"can't write to {tmp_path / 'file'}: Not a directory" in found.found
    assert only(doctor.writable("run folder", tmp_path / "a" / "b")).level is OK
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # nothing was made, and nothing is left


def test_a_disk_without_room_is_told_with_numbers(tmp_path):
    found = only(doctor.room("disk", tmp_path / "not there", 2**60, "a great deal"))
    assert found.level is FAIL
    assert found.found.endswith("free, about 1073741824.0 GiB needed: a great deal")
    assert only(doctor.room("disk", tmp_path, 2**20, "little")).level is OK


def test_a_disk_that_gets_full_is_a_warning(tmp_path):
    import shutil

    free = shutil.disk_usage(tmp_path).free
    assert only(doctor.room("disk", tmp_path, int(free * 0.8), "most of it")).level is WARN


def a_model(tmp_path, *, weights=True, positions=512):
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=positions,
    )
    BertModel(config).save_pretrained(tmp_path)
    if not weights:
        (tmp_path / "model.safetensors").unlink()
    return str(tmp_path)


def of_model(source, **training):
    config = Config.model_validate({"model": {"server_model": source}, "training": training})
    return doctor.findings("model", lambda: doctor.model(config))


def test_a_model_is_found_where_it_is(tmp_path):
    found, tried = of_model("builtin:toy", max_length=48)
    assert found.found == "builtin:toy: 118,144 parameters, built in, random at first"
    assert (tried.level, tried.check) == (OK, "encoder")
    found, tried = of_model(a_model(tmp_path))
    assert (found.level, f"parameters, in {tmp_path}" in found.found) == (OK, True)
    assert (tried.level, tried.found) == (OK, "not tried on texts, since its tokenizer isn't on this machine")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/no/such/folder", "there is no such folder (/no/such/folder)"),
        ("builtin:nothing", "expected 'builtin:toy'"),
        ("python:no_such_package/model", "the Python package 'no_such_package' is not installed"),
    ],
)
def test_a_model_that_isnt_there_is_told(source, said):
    found = only(of_model(source))
    assert found.level is FAIL
    assert said in found.found


def test_a_model_without_weights_or_with_too_few_positions_is_told(tmp_path):
    found, _ = of_model(a_model(tmp_path / "a", weights=False))
    assert (found.level, found.found.endswith("without weights")) == (FAIL, True)
    _, found = of_model(a_model(tmp_path / "b", positions=16), max_length=48)
    assert (found.level, found.check) == (FAIL, "encoder")
    assert "takes at most 16 tokens, got 48" in found.found


def test_each_thing_that_is_wrong_with_an_encoder_is_a_line_of_its_own(tmp_path):
    source = save(tmp_path, "roberta", without="pad", rows_missing=2)
    model, *found = of_model(source, max_length=33)
    assert model.level is OK
    assert [(one.level, one.check) for one in found] == [(FAIL, "encoder")] * 3
    assert [one.found.split(", ")[0].removeprefix(f"{source}: ") for one in found] == [
        f"training.max_length: {source} takes at most 32 tokens",
        "its tokenizer has no padding token",
        "its tokenizer has token ids up to 13",
    ]
    assert all(one.advice for one in found)


def test_a_tokenizer_is_tried(tmp_path):
    assert only(doctor.tokenizer("builtin:toy")).found == "builtin:toy: 87 tokens"
    found = only(doctor.findings("tokenizer", lambda: doctor.tokenizer(a_model(tmp_path))))
    assert found.level is FAIL  # transformers makes one of special tokens alone where the folder has none
    assert (
        "no vocabulary was found, only 5 special tokens. The folder needs the files that save_pretrained" in found.found
    )


@pytest.mark.parametrize(("days", "level"), [(3, WARN), (300, OK)])
def test_a_certificate_that_ends_soon_is_a_warning(tmp_path, days, level):
    certificate = make_authority("trial", days=days, now=datetime.now(UTC) + timedelta(hours=1)).certificate
    found = only(doctor.expiry("tls", tmp_path / "c.pem", certificate))
    assert (found.level, f"({days} days)" in found.found) == (level, True)


def test_a_check_that_raises_has_failed_and_keeps_what_it_found_before():
    def look():
        yield doctor.ok("one", "fine")
        raise ConfigError("expected a, got b")

    assert doctor.findings("two", look) == [Finding(OK, "one", "fine"), Finding(FAIL, "two", "expected a, got b")]


def test_findings_are_lines_for_people_and_dicts_for_programs(capsys):
    found = [doctor.ok("a", "fine"), doctor.fail("long name", "one [x]\ntwo", "do it")]
    doctor.show(found)
    assert capsys.readouterr().out.splitlines() == [
        "ok    a          fine",
        "fail  long name  one [x]",
        "                 two",
        "                 → do it",
        "1 ok, 0 warnings, 1 failures",
    ]
    assert json.loads(json.dumps(doctor.to_dicts(found)))[1] == {
        "level": "fail",
        "check": "long name",
        "found": "one [x]\ntwo",
        "advice": "do it",
    }
