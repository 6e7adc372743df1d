"""Encoders, heads and tokenizers."""

import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModel, BertConfig, DistilBertConfig

from fedmtl_core.errors import ConfigError, ModelUnavailableError, UnknownTaskError
from fedmtl_core.model.modeling import TOY_MODEL, HeadSettings, MultiTaskModel, load_encoder, load_tokenizer
from tests.support import OddEncoder, specs


def small(config_class=BertConfig, **fields):
    sizes = {"vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    if config_class is DistilBertConfig:
        sizes = {"vocab_size": 50, "dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 16}
    return config_class(**sizes, **fields)


def inputs_of(length: int = 6) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(length)[None], "attention_mask": torch.ones(1, length, dtype=torch.int64)}


def test_an_encoder_of_a_local_folder_has_its_weights(tmp_path):
    original = AutoModel.from_config(small())
    original.save_pretrained(tmp_path)
    encoder, width = load_encoder(str(tmp_path), weights=True)
    assert width == 8
    for name, value in original.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)


def test_only_the_first_layers_are_kept(tmp_path):
    original = AutoModel.from_config(small())
    original.save_pretrained(tmp_path)
    encoder, _ = load_encoder(str(tmp_path), weights=True, num_hidden_layers=2)
    names = {name for name, _ in encoder.named_parameters()}
    assert any("layer.1." in name for name in names)
    assert not any("layer.2." in name for name in names)
    with pytest.raises(ModelUnavailableError, match=r"has 3 layers, got 4"):
        load_encoder(str(tmp_path), weights=True, num_hidden_layers=4)


def test_an_encoder_without_a_pooler_gives_its_first_token(tmp_path):
    small(DistilBertConfig).save_pretrained(tmp_path)
    encoder, width = load_encoder(str(tmp_path), weights=False)
    model = MultiTaskModel(encoder, specs("sst2"), hidden_size=width).eval()
    hidden = encoder(**inputs_of()).last_hidden_state[:, 0]
    expected = hidden @ model.heads["sst2"].weight.T + model.heads["sst2"].bias
    assert torch.allclose(model("sst2", inputs_of()), expected)


def test_random_values_depend_on_the_seed_alone(tmp_path):
    small().save_pretrained(tmp_path)
    first, second, other = (
        load_encoder(str(tmp_path), weights=True, random_init=True, seed=seed)[0] for seed in (1, 1, 2)
    )
    weights = [next(encoder.parameters()) for encoder in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def heads_of(init, *tasks):
    encoder, width = load_encoder(TOY_MODEL, weights=True)
    model = MultiTaskModel(encoder, specs(*tasks), hidden_size=width, heads=HeadSettings(init=init))
    return {task: torch.cat([value.flatten() for value in model.heads[task].state_dict().values()]) for task in tasks}


def test_heads_of_tasks_of_one_form_start_with_the_same_values_if_asked():
    """QQP and MRPC are classifications of pairs with two labels, SST-2 is one of single texts."""
    tasks = ("qqp", "sst2", "mrpc", "stsb")
    apart, alike = heads_of("task", *tasks), heads_of("form", *tasks)
    assert not torch.equal(apart["qqp"], apart["mrpc"])
    assert torch.equal(alike["mrpc"], alike["qqp"])
    for task in ("qqp", "sst2", "stsb"):  # the first task of a form has the values that it has by itself
        assert torch.equal(alike[task], apart[task])
        assert torch.equal(heads_of("task", task)[task], apart[task])


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder, width = load_encoder(TOY_MODEL, weights=True)
    MultiTaskModel(encoder, specs("sst2", "stsb"), hidden_size=width)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", r"there is no such folder \(/.*nowhere\)"),
        ("builtin:big", "there is no built-in model 'builtin:big'; expected 'builtin:toy'"),
        ("python:no_such_package/model", "'no_such_package' is not installed; try: pip install no-such-package"),
        ("python:no_such.package/model", "'no_such.package' is not installed"),
        ("python:yaml/model", "the package .* has no folder 'model'"),
        (
            "no-such-org/no-such-model",
            "is not a local folder, and can't be loaded from the model hub .*--config configs/demo",
        ),
    ],
)
def test_a_model_that_cannot_be_had_is_told_what_to_do_instead(source, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=message):
        load_encoder(source, weights=True)


def test_a_folder_without_weights_says_how_to_go_without(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailableError, match=r"Set model\.random_init to true"):
        load_encoder(str(tmp_path), weights=True)


def test_an_empty_folder_says_what_it_needs(tmp_path):
    with pytest.raises(ModelUnavailableError, match=r"config\.json, weights.* tokenizer"):
        load_encoder(str(tmp_path), weights=True)


def test_a_model_in_an_installed_package_is_found(tmp_path, monkeypatch):
    folder = tmp_path / "carrier" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    small().save_pretrained(folder)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert load_encoder("python:carrier/model", weights=False)[1] == 8


def test_the_toy_tokenizer_marks_the_second_text_of_a_pair():
    encoded = load_tokenizer(TOY_MODEL)("the film was great", "a movie")
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert len(encoded["input_ids"]) == 9
    assert 1 not in encoded["input_ids"]  # [UNK]


def test_exchanged_are_parameters_and_floating_point_state():
    model = MultiTaskModel(OddEncoder(), specs("sst2", "stsb"), hidden_size=4)
    names = list(model.exchanged())
    assert "encoder.running" in names
    assert "encoder.steps" not in names
    assert [name for name in names if name.startswith("heads.stsb")] == ["heads.stsb.weight", "heads.stsb.bias"]


@pytest.mark.parametrize(("value_range", "middle"), [((0.0, 5.0), 2.5), ((-3.0, -1.0), -2.0), (None, 0.0)])
def test_a_regression_begins_in_the_middle_of_its_values(value_range, middle):
    (spec,) = specs("stsb")
    model = MultiTaskModel(OddEncoder(), [replace(spec, value_range=value_range)], hidden_size=4)
    assert model.heads["stsb"].bias.tolist() == [middle]


def test_a_task_without_a_head_is_named():
    model = MultiTaskModel(OddEncoder(), specs("sst2"), hidden_size=4)
    with pytest.raises(UnknownTaskError, match="expected one of the tasks sst2, got 'qqp'"):
        model("qqp", {})


@pytest.mark.parametrize("name", ["type", "keys", "training", "sst2"])
def test_a_task_name_that_is_taken_is_refused_in_words(name):
    task = replace(specs("sst2")[0], name=name)
    with pytest.raises(ConfigError, match=f"'{name}' can't be a task's name"):
        MultiTaskModel(OddEncoder(), [*specs("sst2"), task], hidden_size=4)


def test_the_mean_over_tokens_leaves_padding_out():
    encoder, width = load_encoder(TOY_MODEL, weights=False)
    model = MultiTaskModel(encoder, specs("sst2"), hidden_size=width, pooling="mean").eval()
    tokenizer = load_tokenizer(TOY_MODEL)
    alone = tokenizer(["the film was great"], return_tensors="pt")
    padded = tokenizer(["the film was great"], return_tensors="pt", padding="max_length", max_length=20)
    hidden = encoder(**alone).last_hidden_state[0].mean(dim=0)
    expected = hidden @ model.heads["sst2"].weight.T + model.heads["sst2"].bias
    assert torch.allclose(model("sst2", alone)[0], expected, atol=1e-6)
    assert torch.allclose(model("sst2", padded)[0], expected, atol=1e-5)


def test_dropout_before_a_head_acts_in_training_only():
    encoder, width = load_encoder(TOY_MODEL, weights=False)
    model = MultiTaskModel(encoder, specs("sst2"), hidden_size=width, heads=HeadSettings(dropout=0.5))
    inputs = load_tokenizer(TOY_MODEL)(["the film was great"], return_tensors="pt")
    model.eval()
    assert torch.equal(model("sst2", inputs), model("sst2", inputs))
    model.train()
    assert not torch.equal(model("sst2", inputs), model("sst2", inputs))
