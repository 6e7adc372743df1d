"""Parameters that a client keeps for itself."""

from __future__ import annotations

import asyncio
import dataclasses
import stat

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from safetensors.torch import load_file

from fedmtl_client import Client
from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_client.local_state import LocalParameters
from fedmtl_client.trainer import Trainer
from fedmtl_client.worker import round_seed
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.model.modeling import TOY_MODEL, HeadSettings, MultiTaskModel, load_encoder, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_server.model import MTLServerModel
from tests.support import TinyEncoder, WireClient, serving, specs

HEAD = ("heads.sst2.weight", "heads.sst2.bias")


def tiny(seed=0):
    return MultiTaskModel(TinyEncoder(), specs("sst2"), hidden_size=4, heads=HeadSettings(seed=seed))


def set_head(model, value):
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.fill_(value)


def test_a_round_that_does_not_count_leaves_no_trace():
    model = tiny()
    first = model.heads["sst2"].weight.detach().clone()
    local = LocalParameters(model, HEAD, "run")
    set_head(model, 1.0)
    local.put(model)
    assert torch.equal(model.heads["sst2"].weight, first)
    set_head(model, 2.0)
    local.keep(model, 1)
    set_head(model, 3.0)
    local.put(model)
    assert model.heads["sst2"].weight.eq(2.0).all()


def test_a_client_that_starts_again_takes_up_its_file_in_the_same_run_alone(tmp_path):
    model, path = tiny(), tmp_path / "state" / "c.safetensors"
    local = LocalParameters(model, HEAD, "run", path)
    set_head(model, 2.0)
    local.keep(model, 1)
    assert load_file(path)["heads.sst2.bias"].tolist() == [2.0, 2.0]
    assert [one.name for one in path.parent.iterdir()] == ["c.safetensors"]
    modes = [stat.S_IMODE(one.stat().st_mode) for one in (path.parent, path)]
    assert modes == [0o700, 0o600]  # trained on its own rows: nobody else's to read

    again, other = tiny(), tiny()
    LocalParameters(again, HEAD, "run", path).put(again)
    assert again.heads["sst2"].bias.tolist() == [2.0, 2.0]
    LocalParameters(other, HEAD, "another run", path).put(other)
    assert torch.equal(other.heads["sst2"].weight, tiny().heads["sst2"].weight)


def test_a_folder_that_cannot_be_is_refused_in_words(tmp_path):
    with pytest.raises(DataError, match=r"client\.state_dir: can't read .*x{300}.*File name too long"):
        LocalParameters(tiny(), HEAD, "run", tmp_path / ("x" * 300) / "c.safetensors")


def test_a_file_that_is_damaged_or_of_another_model_is_refused_in_words(tmp_path):
    path = tmp_path / "c.safetensors"
    LocalParameters(tiny(), HEAD, "run", path).keep(tiny(), 1)
    with pytest.raises(DataError, match=r"has other parameters than this client's local ones \(heads\.sst2\.bias\)"):
        LocalParameters(tiny(), HEAD[1:], "run", path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"client\.state_dir: can't read .*; remove the file to start from the initial values"
    ):
        LocalParameters(tiny(), HEAD, "run", path)


def test_a_folder_that_can_not_be_written_is_told_and_the_values_are_kept(tmp_path):
    (tmp_path / "file").touch()
    model = tiny()
    local = LocalParameters(model, HEAD, "run", tmp_path / "file" / "c.safetensors")
    set_head(model, 2.0)
    with pytest.raises(DataError, match=r"client\.state_dir: can't write"):
        local.keep(model, 1)
    set_head(model, 3.0)
    local.put(model)
    assert model.heads["sst2"].bias.tolist() == [2.0, 2.0]


def test_a_plan_for_another_encoder_is_refused_in_words():
    with pytest.raises(
        ConfigError, match=r"makes encoder\.norm\.weight local to this client, but its model has no such parameters"
    ):
        LocalParameters(tiny(), ["encoder.norm.weight"], "run")


# Over real gRPC.

CONFIG = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL, "head_dropout": 0},  # both clients' threads would draw from one generator
        "training": {"local_epochs": 1, "num_rounds": 1, "learning_rate": 1e-3, "max_length": 32},
        "sharing": {"head": "local", "norms": "local"},
        "tasks": {"sst2": {"data": {"builtin": "sst2"}, "train_samples": 48, "val_samples": 20, "min_clients": 2}},
    }
)


def config_of(tmp_path, **training):
    sections = CONFIG.model_dump(mode="json", exclude_unset=True)
    sections["training"] |= training
    return Config.model_validate(sections | {"client": {"state_dir": str(tmp_path / "state")}})


SHARDS = {"a": (1, 2), "b": (2, 2)}


def bench_of(client_id, config):
    """A client's model, trainer and rows, without a server."""
    encoder, width = load_encoder(TOY_MODEL, weights=True, seed=42)
    model = MultiTaskModel(encoder, specs("sst2"), hidden_size=width, heads=HeadSettings(dropout=0))
    data = load_task_data(PRESETS["sst2"], DataConfig(builtin="sst2"), SHARDS[client_id])
    tokenizer = load_tokenizer(TOY_MODEL)
    train, validation = (
        EncodedRows(rows, PRESETS["sst2"], tokenizer, 32) for rows in (data.train.head(48), data.validation.head(20))
    )
    return model, Trainer(PRESETS["sst2"], config.plan("sst2"), torch.device("cpu")), train, validation


def trained_alone(client_id, config):
    """What a client's first round comes to."""
    model, trainer, train, _ = bench_of(client_id, config)
    trainer.train(model, train, 1, seed=round_seed(42, client_id, 1))
    return model.state_dict()


def measured_alone(client_id, config, state):
    """What a client's evaluation of a model comes to."""
    model, trainer, _, validation = bench_of(client_id, config)
    model.load_state_dict(state)
    return trainer.evaluate(model, validation)


def is_local(name):
    return name.startswith("heads.") or ".LayerNorm." in name


@pytest.mark.parametrize("head_epochs", [0, 1])
async def test_local_heads_and_norms_are_trained_kept_and_never_sent(tmp_path, head_epochs):
    """FedPer's head, FedBN's norms, and with `head_epochs` FedRep's order; against the same training without gRPC."""
    config = config_of(tmp_path, head_epochs=head_epochs)
    model = MTLServerModel.from_config(config)
    sections = config.model_dump(mode="json", exclude_unset=True)
    async with serving(tmp_path / "run", model, sections=sections, min_clients=2) as server:
        async with WireClient(server, "observer", "sst2") as observer:
            header, _ = await observer.get_slice()
        runs = [
            asyncio.to_thread(
                Client(config, task="sst2", client_id=name, server=server.address, shard=f"{shard}/2").run
            )
            for name, (shard, _) in SHARDS.items()
        ]
        results = await asyncio.gather(*runs)
        averaged = model.get_model_slice_for_task("sst2")
    sent = [spec.name for component in header.components for spec in component.tensors]
    assert sent
    assert not any(map(is_local, sent))
    assert header.plan.local
    assert all(map(is_local, header.plan.local))
    assert header.plan.head_epochs == head_epochs
    assert [component.scope for component in header.components] == ["shared"]

    alone = {name: trained_alone(name, config) for name in SHARDS}
    for name in ("a", "b"):
        kept = load_file(tmp_path / "state" / f"{name}.sst2.safetensors")
        assert kept.keys() == set(header.plan.local)
        for one, value in kept.items():
            torch.testing.assert_close(value, alone[name][one])
    assert not torch.equal(alone["a"]["heads.sst2.weight"], alone["b"]["heads.sst2.weight"])
    for one, value in averaged.items():
        torch.testing.assert_close(value, (alone["a"][one] + alone["b"][one]) / 2)
    for result in results:  # in the end each measures what is shared with what is its own
        own = alone[result.client_id] | averaged
        assert result.rounds[2].received_metrics == pytest.approx(
            measured_alone(result.client_id, config, own), rel=1e-4
        )


def test_a_plan_with_what_is_local_crosses_the_wire():
    from fedmtl_core.wire.messages import plan_from_proto, plan_to_proto

    plan = dataclasses.replace(CONFIG.plan("sst2"), local=("heads.sst2.bias",), head_epochs=3)
    message = pb.TrainingPlan.FromString(plan_to_proto(plan).SerializeToString())
    assert (list(message.local), message.head_epochs) == (["heads.sst2.bias"], 3)
    assert plan_from_proto(message) == plan
