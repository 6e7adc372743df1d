"""The run's folder."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import StoreError
from fedmtl_server.model import MTLServerModel
from fedmtl_server.report import RoundReport, TaskReport
from fedmtl_server.store import RunStore
from tests.support import OddEncoder, model_bytes, tiny_model


def report(round_: int) -> RoundReport:
    task = TaskReport("sst2", 2, 10, 1.0, {"accuracy": 0.5}, {"accuracy": 0.75})
    return RoundReport(round_, "train", 0, 1.5, [], [task], ["c"], [], 0, 10, 20, ["qqp"])


def commit(store: RunStore, model: MTLServerModel, round_: int) -> None:
    """Both halves of a commit, with the digests of the model's bytes."""
    store.write_model(model.components, round_)
    facts = {scope: (len(data), hashlib.sha256(data).digest()) for scope, data in model_bytes(model).items()}
    store.commit(facts, report(round_))


def test_a_checkpoint_holds_the_model_bit_for_bit(tmp_path):
    model = tiny_model("sst2", "qqp", encoder=OddEncoder())
    commit(RunStore(tmp_path, "run"), model, 3)
    path = tmp_path / "checkpoints" / "round-0003.safetensors"
    with safe_open(path, "pt") as checkpoint:
        assert checkpoint.metadata() == {"format": "pt", "run_id": "run", "round": "3"}
        for component in model.components.values():
            for name, view in component.views().items():
                stored = checkpoint.get_tensor(name)
                assert stored.dtype == view.dtype
                assert torch.equal(stored, view)
    facts = json.loads(path.with_suffix(".json").read_text())
    digests = {scope: hashlib.sha256(data).hexdigest() for scope, data in model_bytes(model).items()}
    assert {scope: entry["digest"] for scope, entry in facts["components"].items()} == digests


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    store = RunStore(tmp_path, "run", keep_checkpoints=2)
    for round_ in (8, 9, 9999, 10000):
        commit(store, tiny_model("sst2"), round_)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {f"round-{n}.{kind}" for n in (9999, 10000) for kind in ("json", "safetensors")}


def test_reports_and_metrics_are_json_lines(tmp_path):
    store = RunStore(tmp_path, "run")
    commit(store, tiny_model("sst2"), 1)
    store.record(report(2))
    reports = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [one["round"] for one in reports] == [1, 2]
    assert reports[0]["missing_clients"] == ["c"]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(one["round"], one["task"], one["metrics"]["accuracy"]) for one in metrics] == [
        (0, "sst2", 0.5),  # what round 1 received is the model before it
        (1, "sst2", 0.5),
    ]


def test_a_new_run_writes_down_its_configuration_and_takes_no_used_folder(tmp_path):
    config = Config.model_validate({"tasks": {"sst2": {}}, "server": {"runs_dir": str(tmp_path)}})
    store = RunStore.create(config, "abcdef0123456789")
    assert store.run_dir.parent == tmp_path
    assert store.run_dir.name.endswith("-abcdef01")
    assert configuration.load(store.run_dir / "config.yaml") == config
    with pytest.raises(StoreError, match="holds another run already; choose an empty folder with --run-dir"):
        RunStore.create(config, "x", store.run_dir)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"can't write .*file.*: Not a directory"):
        RunStore(tmp_path / "file" / "run", "run")


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_leaves_the_last_one(tmp_path, monkeypatch):
    store = RunStore(tmp_path, "run")
    commit(store, tiny_model("sst2"), 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedmtl_server.store.write_safetensors", full)
    with pytest.raises(StoreError, match=r"round-0002\.safetensors: .*No space left on device"):
        commit(store, tiny_model("sst2"), 2)
    assert (tmp_path / "checkpoints" / "round-0001.safetensors").exists()
    assert not (tmp_path / "checkpoints" / "round-0002.safetensors").exists()
