"""A kind of one's own whose head sees tokens: the one that the documentation shows."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from fedmtl_client import doctor
from fedmtl_client.data import EncodedRows, load_task_data, survey
from fedmtl_client.trainer import Trainer
from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, DataError
from fedmtl_core.model.modeling import TOY_MODEL, HeadSettings, MultiTaskModel, load_encoder, load_tokenizer
from fedmtl_core.tasks.kinds import IGNORED
from fedmtl_core.tasks.spec import TaskSpec

GOOD = ("great", "lovely")


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    """A task of that kind: which words are opinions, of which there are two."""
    pages = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", pages, re.DOTALL) if "class Tagging" in code)
    (tmp_path / "shown.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "shown", raising=False)
    texts = [f"the {noun} was {word}" for noun in ("film", "meal", "song", "book") for word in (*GOOD, "awful", "dull")]
    rows = [
        {"text": text, "tags": " ".join("yes" if word in GOOD else "no" for word in text.split())} for text in texts
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return Config.model_validate(
        {
            "model": {"server_model": TOY_MODEL, "head_dropout": 0.0},
            "training": {"num_rounds": 1, "local_epochs": 8, "learning_rate": 5e-3, "max_length": 16},
            "tasks": {
                "tags": {
                    "type": "shown:Tagging",
                    "labels": ["no", "yes"],
                    "text_columns": ["text"],
                    "label_column": "tags",
                    "data": {"train": "rows.jsonl", "validation": "rows.jsonl"},
                }
            },
        }
    )


def parts(config: Config) -> tuple[TaskSpec, MultiTaskModel, EncodedRows]:
    (spec,) = config.task_specs()
    encoder, width = load_encoder(TOY_MODEL, weights=False)
    model = MultiTaskModel(encoder, [spec], hidden_size=width, heads=HeadSettings(dropout=0))
    rows = load_task_data(spec, config.tasks["tags"].data).train
    return spec, model, EncodedRows(rows, spec, load_tokenizer(TOY_MODEL), 16)


def test_each_token_has_its_words_label_and_what_the_tokenizer_adds_has_none(config):
    _, _, rows = parts(config)
    inputs, targets = rows.collator(0)([rows[i] for i in range(len(rows))])
    assert inputs["input_ids"].shape == targets.shape == (16, 6)  # [CLS] the film was great [SEP]
    assert targets.dtype == torch.int64
    assert (targets[:, [0, 5]] == IGNORED).all()
    assert (targets[:, 1:4] == 0).all()
    assert targets[:, 4].sum() == 8  # half of the texts end with an opinion that is good


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_has_no_target_on_whichever_side_it_is(config, side):
    spec, _, _ = parts(config)
    tokenizer = load_tokenizer(TOY_MODEL)
    tokenizer.padding_side = side
    kind = Trainer(spec, config.plan("tags"), torch.device("cpu"))._kind
    columns = kind.encode([("great",), ("the film was dull",)], [[1], [0, 0, 0, 1]], tokenizer, 16)
    rows = [{name: values[i] for name, values in columns.items()} for i in range(2)]
    targets = kind.collator(tokenizer, 0)(rows)[1].tolist()
    none = IGNORED
    short = [none, none, none, none, 1, none] if side == "left" else [none, 1, none, none, none, none]
    assert targets == [short, [none, 0, 0, 0, 1, none]]


def test_such_a_kind_trains_and_is_measured_over_its_tokens(config):
    spec, model, rows = parts(config)
    trainer = Trainer(spec, config.plan("tags"), torch.device("cpu"))
    with torch.no_grad():
        model.heads["tags"].weight.zero_()
        model.heads["tags"].bias.copy_(torch.tensor([1.0, 0.0]))  # says "no" of every word
    measured = trainer.evaluate(model, rows)
    assert measured["accuracy"] == 1 - 8 / 64  # of 64 words 8 are good
    expected = (56 * torch.log1p(torch.tensor(-1.0).exp()) + 8 * (1 + torch.log1p(torch.tensor(-1.0).exp()))) / 64
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-5)
    no = torch.log1p(torch.tensor(-1.0).exp()).item()  # the loss of a word that is none; a good word's is higher by 1
    assert sorted(measured.losses) == pytest.approx([no] * 8 + [no + 1 / 4] * 8, rel=1e-5)  # four words a row
    trainer.train(model, rows, 1, seed=1)
    assert trainer.evaluate(model, rows)["accuracy"] == 1.0


def test_encoded_rows_have_to_be_as_many_as_the_texts(config, tmp_path):
    (code,) = tmp_path.glob("shown.py")
    code.write_text(code.read_text().replace("for i in range(len(words))]", "for i in range(1)]"))
    (spec,) = config.task_specs()
    with pytest.raises(
        ConfigError,
        match=r"tasks\.tags\.type: .*: encode\(\) must return one value per row: expected 16 targets, got 1",
    ):
        EncodedRows(load_task_data(spec, config.tasks["tags"].data).train, spec, load_tokenizer(TOY_MODEL), 16)


def test_labels_that_are_none_are_told_with_their_row(config, tmp_path):
    (spec,) = config.task_specs()
    (tmp_path / "rows.jsonl").write_text('{"text": "a b", "tags": "yes no"}\n{"text": "a b", "tags": "yes nope"}\n')
    with pytest.raises(
        DataError, match=r"tags, train rows in rows\.jsonl: row 2: tags: expected one of no, yes.*'nope'"
    ):
        load_task_data(spec, config.tasks["tags"].data)
    seen = survey(spec, config.tasks["tags"].data, "train")
    assert (seen.labels, seen.unknown) == ({"yes": 1, "no": 1}, {"yes nope": 1})
    assert [one.level for one in doctor.judge(spec, seen, "train rows", (1, 1))] == ["ok", "fail"]
