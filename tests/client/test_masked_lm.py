"""Masked-language modelling: what is masked, what is learned of it, and which rows it takes."""

import json

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2Model

from fedmtl_client import doctor
from fedmtl_client.data import EncodedRows, Rows, RowSource, load_task_data, survey
from fedmtl_client.partition import LabelSkew
from fedmtl_client.trainer import Trainer
from fedmtl_core.config import Config, DataConfig, validated
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.model.modeling import TOY_MODEL, MultiTaskModel, load_encoder, load_tokenizer
from fedmtl_core.runtime import doctor as core_doctor
from fedmtl_core.tasks.kinds import IGNORED
from fedmtl_core.tasks.registry import kind_of, traits_of
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_core.wire.messages import plan_from_proto, plan_to_proto

CPU = torch.device("cpu")
SPEC = TaskSpec("texts", "masked_lm", ("sentence",), "")
PAIRS = TaskSpec("texts", "masked_lm", ("question1", "question2"), "")
CONFIG = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL},
        "training": {"num_rounds": 4, "local_epochs": 2, "learning_rate": 1e-3, "max_length": 48},
        "tasks": {
            "texts": {"type": "masked_lm", "text_columns": ["sentence"], "data": {"builtin": "sst2"}},
        },
    }
)
PLAN = CONFIG.plan("texts")


def encoded(count, spec=SPEC, builtin="sst2", max_length=48):
    rows = load_task_data(spec, DataConfig(builtin=builtin)).train.head(count)
    return EncodedRows(rows, spec, load_tokenizer(TOY_MODEL), max_length)


def toy_model(spec=SPEC):
    encoder, width = load_encoder(TOY_MODEL, weights=False)
    return MultiTaskModel(encoder, [spec], hidden_size=width)


def batch_of(rows, seed=0):
    return rows.collator(seed)([rows[i] for i in range(len(rows))])


def test_loss_and_gradients_are_those_of_transformers_bert_with_tied_words():
    rows = encoded(40, PAIRS, "qqp")
    inputs, targets = batch_of(rows)
    settings = BertConfig(
        vocab_size=len(load_tokenizer(TOY_MODEL)),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(1)
    model = MultiTaskModel(BertModel(settings), [PAIRS], hidden_size=16)
    theirs = BertForMaskedLM(settings)
    assert theirs.cls.predictions.decoder.weight is theirs.bert.embeddings.word_embeddings.weight
    transform = theirs.cls.predictions.transform
    pairs = dict(model.encoder.named_parameters())
    same = {name: (pairs[name], other) for name, other in theirs.bert.named_parameters()}
    head = model.heads["texts"]
    same |= {
        "dense.weight": (head.dense.weight, transform.dense.weight),
        "dense.bias": (head.dense.bias, transform.dense.bias),
        "norm.weight": (head.norm.weight, transform.LayerNorm.weight),
        "norm.bias": (head.norm.bias, transform.LayerNorm.bias),
        "bias": (head.bias, theirs.cls.predictions.bias),
    }
    with torch.no_grad():
        for ours, other in same.values():
            ours.copy_(torch.randn(ours.shape) * 0.3)
            other.copy_(ours)
    loss = Trainer(PAIRS, PLAN, CPU).loss(model, inputs, targets)
    expected = theirs(**inputs, labels=targets).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert len(same) == len(pairs) - 2 + 5  # all but the pooler's
    for name, (ours, other) in same.items():
        assert torch.allclose(ours.grad, other.grad, rtol=1e-4, atol=1e-6), name


def test_of_the_tokens_15_percent_are_masked_and_replaced_as_bert_does():
    rows = encoded(3000)
    inputs, targets = batch_of(rows)
    ids = torch.full_like(inputs["input_ids"], 0)
    for one, row in zip(ids, (rows[i] for i in range(len(rows))), strict=True):
        one[: len(row["input_ids"])] = torch.tensor(row["input_ids"])
    tokenizer = load_tokenizer(TOY_MODEL)
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id) | (inputs["attention_mask"] == 0)
    masked = targets != IGNORED
    assert not (masked & special).any()
    assert torch.equal(targets[masked], ids[masked])
    assert torch.equal(inputs["input_ids"][~masked], ids[~masked])
    # Of about 20,000 tokens 3,000: a standard deviation of 0.0025, of 0.007 for what becomes of them.
    assert masked.sum().item() / (~special).sum().item() == pytest.approx(0.15, abs=0.01)
    now = inputs["input_ids"][masked]
    replaced = (now == tokenizer.mask_token_id).float().mean().item()
    unchanged = (now == targets[masked]).float().mean().item()
    by_chance = 0.1 / len(tokenizer)
    assert replaced == pytest.approx(0.8 + by_chance, abs=0.03)
    assert unchanged == pytest.approx(0.1 + by_chance, abs=0.03)


def test_training_masks_anew_in_every_epoch_and_an_evaluation_as_the_one_before():
    rows = encoded(64)
    collate = rows.collator(7)
    everything = [rows[i] for i in range(64)]
    first, second = collate(everything)[1], collate(everything)[1]
    assert not torch.equal(first, second)
    assert torch.equal(rows.collator(7)(everything)[1], first)
    model = toy_model()
    trainer = Trainer(SPEC, PLAN, CPU)
    assert trainer.evaluate(model, rows) == trainer.evaluate(model, rows)


def test_nothing_but_the_masked_tokens_goes_through_the_head():
    rows, seen = encoded(32), []
    inputs, targets = batch_of(rows)
    model = toy_model()
    model.heads["texts"].register_forward_hook(lambda head, given, outputs: seen.append((given, outputs)))
    Trainer(SPEC, PLAN, CPU).loss(model, inputs, targets)
    ((states, words), outputs) = seen[0]
    count = int((targets != IGNORED).sum())
    assert states.shape == (count, 64)
    assert outputs.shape == (count, len(load_tokenizer(TOY_MODEL)))
    assert words is model.encoder.embeddings.word_embeddings.weight  # tied: the encoder's own


def test_the_head_is_small_and_the_words_are_the_encoders():
    tensors = toy_model().exchanged()
    vocabulary = len(load_tokenizer(TOY_MODEL))
    shapes = {name: tuple(one.shape) for name, one in tensors.items() if name.startswith("heads.")}
    assert {name.removeprefix("heads.texts."): shape for name, shape in shapes.items()} == {
        "bias": (vocabulary,),
        "dense.weight": (64, 64),
        "dense.bias": (64,),
        "norm.weight": (64,),
        "norm.bias": (64,),
    }
    assert "encoder.embeddings.word_embeddings.weight" in tensors


def test_training_finds_more_of_the_masked_words():
    rows, model = encoded(512), toy_model()
    trainer = Trainer(SPEC, PLAN, CPU)
    before = trainer.evaluate(model, rows)
    assert before.keys() == {"masked_accuracy", "loss"}
    for round_ in (1, 2, 3):
        trainer.train(model, rows, round_, seed=round_)
    after = trainer.evaluate(model, rows)
    assert after["loss"] < before["loss"]
    assert after["masked_accuracy"] > before["masked_accuracy"]


def test_the_loss_and_the_accuracy_of_an_evaluation_are_means_over_its_masked_tokens():
    rows, model = encoded(50), toy_model().eval()
    shortest_first = sorted((rows[number] for number in range(len(rows))), key=lambda row: len(row["input_ids"]))
    inputs, targets = rows.collator(0)(shortest_first)  # one batch of an evaluation, with its seed
    with torch.no_grad():
        states = model.encoder(**inputs).last_hidden_state
        logits = model.heads["texts"](states.flatten(0, 1), model.encoder.embeddings.word_embeddings.weight)
    flat = targets.flatten()
    expected = torch.nn.functional.cross_entropy(logits, flat, ignore_index=IGNORED).item()
    found = (logits.argmax(dim=1) == flat)[flat != IGNORED].double().mean().item()
    measured = Trainer(SPEC, PLAN, CPU).evaluate(model, rows)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    assert measured["masked_accuracy"] == pytest.approx(found)


def test_a_batch_in_which_nothing_was_masked_teaches_nothing_and_breaks_nothing():
    rows = EncodedRows(Rows([("a",)], [None]), SPEC, load_tokenizer(TOY_MODEL), 8)
    seed = next(seed for seed in range(99) if (batch_of(rows, seed)[1] == IGNORED).all())
    model = toy_model()
    loss = Trainer(SPEC, PLAN, CPU).loss(model, *batch_of(rows, seed))
    loss.backward()
    assert loss.item() == 0
    assert all(one.grad is None or not one.grad.any() for one in model.parameters())


def test_an_evaluation_in_which_nothing_was_masked_is_told():
    rows = EncodedRows(Rows([("",)] * 3, [None] * 3), SPEC, load_tokenizer(TOY_MODEL), 8)
    with pytest.raises(DataError, match="texts: none of the 3 evaluation rows has a token with a target"):
        Trainer(SPEC, PLAN, CPU).evaluate(toy_model(), rows)


def test_a_subclass_with_a_name_of_its_own_masks_otherwise(tmp_path, monkeypatch):
    body = "class Half(MaskedLM):\n    name = 'half'\n    mask_probability = 0.5\n"
    (tmp_path / "half_masked.py").write_text(f"from fedmtl_core.tasks.masked_lm import MaskedLM\n{body}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    spec = TaskSpec("texts", "half_masked:Half", ("sentence",), "", traits=traits_of("texts", "half_masked:Half"))
    assert (spec.kind, spec.metrics) == ("half", ("masked_accuracy",))
    rows = encoded(500, spec)
    inputs, targets = batch_of(rows)
    tokens = inputs["attention_mask"].sum().item() - 2 * len(rows)
    assert (targets != IGNORED).sum().item() / tokens == pytest.approx(0.5, abs=0.04)


# Rows without labels.


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_texts_without_labels_are_read_and_a_label_column_is_not_looked_at(tmp_path):
    alone = write(tmp_path / "a.jsonl", {"sentence": "the film"}, {"sentence": "the meal"})
    labelled = write(tmp_path / "b.jsonl", {"sentence": "the car", "label": "no class of anybody"})
    data = load_task_data(SPEC, DataConfig(train=alone, validation=labelled))
    assert sorted(data.train.texts) == [("the film",), ("the meal",)]
    assert (data.validation.texts, data.validation.labels) == ([("the car",)], [None])
    seen = survey(SPEC, DataConfig(train=alone, validation=labelled), "train")
    assert (seen.num_rows, seen.labels, seen.unknown) == (2, {}, {})
    (finding,) = doctor.judge(SPEC, seen, "train rows", (1, 1))
    assert finding.found == "2, using the columns sentence"


def test_texts_come_from_every_source(tmp_path, monkeypatch):
    assert len(load_task_data(PAIRS, DataConfig(builtin="qqp"), (1, 2)).train) == 3000
    (tmp_path / "own_texts.py").write_text(
        "from fedmtl_client.data import RowSource\nclass Texts(RowSource):\n"
        "  def train(self): yield {'sentence': 'the film'}\n  def validation(self): return list(self.train())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_task_data(SPEC, DataConfig(plugin="own_texts:Texts")).train.texts == [("the film",)]
    assert issubclass(__import__("own_texts").Texts, RowSource)
    tsv = tmp_path / "t.tsv"
    tsv.write_text("sentence\tother\nthe film\t1\n")
    assert load_task_data(SPEC, DataConfig(train=str(tsv), validation=str(tsv))).train.texts == [("the film",)]


def test_a_missing_column_of_text_is_told_without_a_word_of_labels(tmp_path):
    path = write(tmp_path / "a.jsonl", {"text": "the film"})
    with pytest.raises(
        DataError, match=r"no column 'sentence'; the columns are text\. Set tasks\.texts\.text_columns to "
    ):
        load_task_data(SPEC, DataConfig(train=path, validation=path))


def test_parts_that_differ_in_labels_need_labels():
    with pytest.raises(DataError, match="texts: partition: the rows of a masked_lm have no label to distribute by"):
        load_task_data(SPEC, DataConfig(builtin="sst2"), (1, 2), LabelSkew(0.5, 0))


# What a configuration may say, and what the two sides tell one another.


def test_a_glue_tasks_texts_are_known_by_its_name():
    spec = Config.model_validate({"tasks": {"qqp": {"type": "masked_lm"}}}).tasks["qqp"].spec("qqp")
    assert (spec.text_columns, spec.label_column, spec.labels) == (("question1", "question2"), "", ())
    assert spec.metrics == ("masked_accuracy",)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"label_column": "label"}, r"tasks\.texts: a masked_lm task has no `label_column`, got 'label'"),
        ({"labels": ["a", "b"]}, r"tasks\.texts: a masked_lm task has no labels, got \['a', 'b'\]"),
        ({"metrics": ["accuracy"]}, r"metric 'accuracy' doesn't fit a masked_lm task; expected one of masked_accuracy"),
        ({"text_columns": None}, r"tasks\.texts\.text_columns: required"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(section, message):
    with pytest.raises(ConfigError, match=message):
        validated({"tasks": {"texts": {"type": "masked_lm", "text_columns": ["sentence"]} | section}}, "c.yaml")


def test_a_labelled_kind_still_needs_its_column():
    section = {"type": "regression", "text_columns": ["sentence"]}
    with pytest.raises(ConfigError, match=r"tasks\.texts\.label_column: required"):
        validated({"tasks": {"texts": section}}, "c.yaml")


def test_the_plan_says_what_kind_it_is():
    sent = plan_to_proto(PLAN)
    assert (sent.task_type, list(sent.labels)) == (pb.TASK_TYPE_MASKED_LM, [])
    assert plan_from_proto(sent) == PLAN
    SPEC.require_same("masked_lm", ())
    with pytest.raises(ConfigError, match="the server has the task type classification; this client has masked_lm"):
        SPEC.require_same("classification", ("a", "b"))


def test_a_tokenizer_without_a_mask_is_refused():
    tokenizer = load_tokenizer(TOY_MODEL)
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match=r"tasks\.texts\.type: masked_lm needs a tokenizer with a mask token"):
        EncodedRows(Rows([("the film",)], [None]), SPEC, tokenizer, 8)


def test_the_doctor_finds_a_tokenizer_without_a_mask(tmp_path):
    tokenizer = load_tokenizer(TOY_MODEL)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    labelled = TaskSpec("scores", "regression", ("sentence",), "score")
    assert [one.level for one in core_doctor.tokenizer(str(tmp_path), [labelled])] == ["ok"]
    (found,) = core_doctor.findings("tokenizer", lambda: core_doctor.tokenizer(str(tmp_path), [labelled, SPEC]))
    assert (found.level, "needs a tokenizer with a mask token" in found.found) == ("fail", True)


def test_an_encoder_without_words_is_refused():
    with pytest.raises(ConfigError, match=r"tasks\.texts\.type: masked_lm needs an encoder with word embeddings"):
        MultiTaskModel(torch.nn.Linear(4, 4), [SPEC], hidden_size=4)


def test_the_head_takes_after_its_encoder():
    settings = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = MultiTaskModel(GPT2Model(settings), [SPEC], hidden_size=8)
    head = model.heads["texts"]
    assert (head.bias.shape, head.dense.weight.shape) == ((30,), (8, 8))
    assert kind_of(SPEC).sees == "tokens"
