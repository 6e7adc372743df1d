"""Families of encoders: each works from its folder to an export, or is refused in words."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from fedmtl_client.data import EncodedRows, Rows
from fedmtl_client.synchronizer import ClientModelSynchronizer
from fedmtl_client.trainer import Trainer
from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import ModelUnavailableError
from fedmtl_core.model.encoders import load_encoder, load_tokenizer, save_encoder
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.model.pretrained import LoadedWeights
from fedmtl_core.wire.layout import Component
from fedmtl_server.export.folders import export_all, export_task
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import open_run
from fedmtl_server.storage.store import RunStore
from tests import families

TEXTS = ("zaba dilo well", "moku tare pine luvo seki rano ill", "fimo well", "gadu hile joka zaba dilo ill")
LABELS = ("well", "ill", "well", "ill")
WORKING = [name for name, family in families.FAMILIES.items() if not family.refused]
REFUSED = [name for name, family in families.FAMILIES.items() if family.refused]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A family's folder, written once."""
    return cache(lambda name: families.write(name, tmp_path_factory.mktemp("family")))


@pytest.fixture(scope="module")
def loaded(folder_of):
    """A family's encoder, its width and its tokenizer, loaded once; not to be changed."""

    def load(name: str) -> tuple[Any, int, Any]:
        folder = str(folder_of(name))
        tokenizer = load_tokenizer(folder)
        assert len({tuple(ids) for ids in tokenizer(list(families.WORDS))["input_ids"]}) == len(families.WORDS)
        return *load_encoder(folder, weights=True), tokenizer

    return cache(load)


def configured(folder: Path, **model: Any) -> Config:
    return configuration.resolve(
        {
            "model": {"server_model": str(folder), "pooling": "mean", **model},
            "training": {"max_length": 16, "local_epochs": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3},
            "tasks": {
                "mood": {
                    "type": "classification",
                    "labels": ["ill", "well"],
                    "text_columns": ["text"],
                    "label_column": "label",
                    "data": {"train": "rows.csv", "validation": "rows.csv"},
                }
            },
        }
    )


def trained(config: Config, tokenizer: Any, slice_: dict[str, Component], *, share: bool) -> list[Component]:
    """What a client sends after one round of training."""
    source, (spec,) = config.model.server_model, config.task_specs()
    encoder, width = load_encoder(source, weights=False, num_hidden_layers=config.model.num_hidden_layers)
    model = MultiTaskModel(encoder, [spec], hidden_size=width, pooling="mean")
    synchronizer = ClientModelSynchronizer("mood")
    synchronizer.load(model, slice_, share=share)
    targets = [spec.labels.index(label) for label in LABELS]
    rows = EncodedRows(Rows([(text,) for text in TEXTS], targets), spec, tokenizer, 16)
    trainer = Trainer(spec, config.plan("mood"), torch.device("cpu"))
    assert math.isfinite(trainer.train(model, rows, 1, seed=1).loss)
    assert math.isfinite(trainer.evaluate(model, rows)["loss"])
    return synchronizer.update(model, "parameters")


def logits_of(model: Any, tokenizer: Any, task: str | None = None) -> Tensor:
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs: Tensor = model(**inputs).logits if task is None else model(task, inputs)
    return outputs


def states_of(encoder: Any, tokenizer: Any) -> Tensor:
    inputs = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        states: Tensor = encoder.eval()(**inputs).last_hidden_state
    return states


@pytest.mark.parametrize("name", WORKING)
def test_a_family_is_trained_by_a_client_averaged_by_the_server_and_exported(name, folder_of, loaded, tmp_path):
    config, (_, _, tokenizer) = configured(folder_of(name)), loaded(name)
    server = MTLServerModel.from_config(config)
    slices = [{scope: one.clone() for scope, one in server.components.items()} for _ in range(2)]
    shared, copied = (trained(config, tokenizer, slices[share], share=bool(share)) for share in (1, 0))
    assert [one.digest() for one in shared] == [one.digest() for one in copied]
    assert shared[0].digest() != server.components["shared"].digest()  # something was learnt
    server.install({one.scope: one for one in shared})
    RunStore.create(config, "0" * 32, server.components, server.summary(), tmp_path / "run").close()

    export_task(open_run(tmp_path / "run"), "mood", tmp_path / "task")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "task", trust_remote_code=True).eval()
    expected = logits_of(server.module.eval(), tokenizer, "mood")
    assert expected.isfinite().all()
    assert torch.allclose(logits_of(exported, AutoTokenizer.from_pretrained(tmp_path / "task")), expected, atol=1e-5)

    export_all(open_run(tmp_path / "run"), tmp_path / "all")
    reported: list[LoadedWeights] = []
    again, width = load_encoder(str(tmp_path / "all" / "encoder"), weights=True, on_weights=reported.append)
    assert [(one.num_wanted, one.missing) for one in reported] == [(len(again.state_dict()), ())]
    ours = server.module.encoder.state_dict()
    assert width == server.module.hidden_size
    assert again.state_dict().keys() == ours.keys()
    assert all(torch.equal(value, ours[key]) for key, value in again.state_dict().items())
    theirs: Any = AutoModel.from_pretrained(tmp_path / "all" / "encoder")
    theirs = theirs.get_encoder() if type(theirs) is not type(again) else theirs
    assert torch.equal(states_of(theirs, tokenizer), states_of(again, tokenizer))


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_trained_is_refused_in_words(name, folder_of):
    folder = str(folder_of(name))
    for weights in (True, False):  # a server, a client
        with pytest.raises(ModelUnavailableError, match=families.FAMILIES[name].refused):
            load_encoder(folder, weights=weights)


@pytest.mark.parametrize("name", WORKING)
def test_a_family_keeps_its_first_layers_or_says_that_it_cannot(name, folder_of, loaded, tmp_path):
    folder, refusal = str(folder_of(name)), families.FAMILIES[name].cut
    if refusal:
        with pytest.raises(ModelUnavailableError, match=rf"num_hidden_layers.*{refusal}|{refusal}.*num_hidden_layers"):
            load_encoder(folder, weights=True, num_hidden_layers=2)
        return
    original, _, tokenizer = loaded(name)
    whole = original.state_dict()
    encoder, _ = load_encoder(folder, weights=True, num_hidden_layers=2)
    kept = encoder.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in kept.items())
    gone = {key for key in whole if key not in kept}
    assert families.FAMILIES[name].layers == 0 or gone
    assert all(re.search(rf"\.{families.LAYERS - 1}\.", f".{key}") for key in gone)  # of the last layer alone

    save_encoder(encoder, tmp_path / "cut")
    again, _ = load_encoder(str(tmp_path / "cut"), weights=True)
    assert again.state_dict().keys() == kept.keys()
    assert torch.equal(states_of(again, tokenizer), states_of(encoder, tokenizer))


@pytest.mark.parametrize("name", WORKING)
def test_a_layer_of_a_family_is_all_modules_of_its_number(name, folder_of, loaded):
    family, (encoder, width, _) = families.FAMILIES[name], loaded(name)
    (spec,) = configured(folder_of(name)).task_specs()
    parts = MultiTaskModel(encoder, [spec], hidden_size=width).shape().parts
    layers = {part for part in parts.values() if part.isdecimal()}
    assert layers == {str(number) for number in range(family.layers)}
    names = {re.sub(r"\d+", "N", key) for key, part in parts.items() if part == "1"}
    outside = [key for key, part in parts.items() if not part.isdecimal() and re.sub(r"\d+", "N", key) in names]
    assert family.kind != "encoder-decoder" or not [key for key in parts if "decoder" in key.split(".")]
    assert not outside  # nothing that a layer has under its number is in no layer


@pytest.mark.parametrize("name", WORKING)
def test_the_first_token_sees_the_last_unless_a_family_is_causal(name, loaded):
    encoder, _, tokenizer = loaded(name)
    inputs = tokenizer(["zaba dilo well", "zaba dilo ill"], return_tensors="pt", padding=True)
    with torch.inference_mode():
        first = encoder.eval()(**inputs).last_hidden_state[:, 0]
    assert torch.allclose(first[0], first[1], atol=1e-6) == (families.FAMILIES[name].kind == "causal")


def test_the_documentation_has_the_table_of_families():
    page = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text(encoding="utf-8")
    assert len(families.FAMILIES) >= 35
    assert families.table() in page
