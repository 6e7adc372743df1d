"""The server's model with adapters: what it counts, what it gives and takes, and what it refuses at the start."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, LayoutMismatchError
from fedmtl_core.tasks.adapters import AdapterSettings
from fedmtl_server.assembly import Assembly
from fedmtl_server.model import MTLServerModel
from tests.support import model_bytes, specs

FACTOR = 2 * 2 * (5 * 64 + 256)  # parameters of A, and of B: rank 2, two layers, five widths of 64 and one of 256


def config(pooling: str = "cls", **adapters: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"server_model": "builtin:toy", "pooling": pooling, "adapters": {"rank": 2, **adapters}},
            "tasks": {"sst2": {}, "qqp": {}},
        }
    )


@pytest.mark.parametrize(
    ("aggregation", "shared", "frozen"),
    [("freeze_a", FACTOR, 118144 + FACTOR), ("average", 2 * FACTOR, 118144), ("alternate", 2 * FACTOR, 118144)],
)
def test_trained_and_frozen_parameters_are_counted_apart(aggregation, shared, frozen):
    summary = MTLServerModel.from_config(config(aggregation=aggregation)).summary()
    assert (summary.shared_parameters, summary.frozen_parameters) == (shared, frozen)
    assert summary.total_parameters == shared + 130 + 130


@pytest.mark.parametrize("aggregation", ["freeze_a", "alternate"])
def test_shared_factors_set_are_factors_got_whichever_component_they_are_in(aggregation):
    model = MTLServerModel.from_config(config(aggregation=aggregation))
    base = model.base["frozen"].digest()
    shared = {name: torch.full_like(tensor, 2.0) for name, tensor in model.get_shared_parameters().items()}
    assert sum(one.numel() for one in shared.values()) == model.summary().shared_parameters
    model.set_shared_parameters(shared)
    assert all(torch.equal(one, shared[name]) for name, one in model.get_shared_parameters().items())
    assert model.base["frozen"].digest() == base
    before = model_bytes(model)
    name = next(iter(shared))
    others = {one: tensor for one, tensor in shared.items() if one != name}
    for wrong in ({**others, name: torch.zeros(3)}, others, {**shared, "encoder.other": torch.zeros(3)}):
        with pytest.raises(LayoutMismatchError):
            model.set_shared_parameters({one: tensor + 1 for one, tensor in wrong.items()})
    assert model_bytes(model) == before


def test_an_adapter_that_no_round_would_train_is_refused_when_a_run_begins_and_not_later():
    """An earlier run can be resumed and exported all the same."""
    given = config("mean", targets=["dense"])
    with pytest.raises(ConfigError, match=r"never be trained.*: pooler\.dense;"):
        MTLServerModel.from_config(given)
    MTLServerModel.from_config(given, weights=False)


def test_a_model_of_the_callers_own_is_checked_too(tmp_path):
    encoder = BertModel(BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=1, num_hidden_layers=1))
    adapters = AdapterSettings(rank=1, alpha=1.0, targets=("dense",))
    model = MTLServerModel(encoder, specs("sst2"), hidden_size=4, pooling="mean", adapters=adapters)
    given = Config.model_validate({"tasks": {"sst2": {}}, "server": {"runs_dir": str(tmp_path)}})
    with pytest.raises(ConfigError, match=r"never be trained"):
        Assembly(given, None, model, finished=False)


def test_factors_that_clients_keep_can_be_checked_although_the_server_has_no_values():
    sharing = {"sharing": {"adapters": {"a": "local"}}}
    given = Config.model_validate(config(aggregation="average").model_dump(exclude_none=True) | sharing)
    assert MTLServerModel.from_config(given).sharing.local_for("sst2")


def test_a_missing_peft_is_said_before_the_encoder_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    given = config()
    missing = given.model_copy(update={"model": given.model.model_copy(update={"server_model": "/no/such/folder"})})
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[adapters\]'"):
        MTLServerModel.from_config(missing)
