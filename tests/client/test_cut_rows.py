"""How many rows are longer than what the model sees of them."""

import asyncio
import json
import sys

import pytest
import structlog
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from transformers import PreTrainedTokenizer

from fedmtl_client import __main__ as command
from fedmtl_client import doctor
from fedmtl_client.api import FederationApi
from fedmtl_client.data import EncodedRows, Rows, load_task_data, survey
from fedmtl_client.session import ClientSession
from fedmtl_client.task_state import ClientTask, WorkerSettings
from fedmtl_client.worker import RoundWorker
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.runtime.doctor import Level
from fedmtl_core.tasks.glue import PRESETS
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.model import MTLServerModel
from tests.support import serving


@pytest.fixture(autouse=True)
def logs_as_before():
    """The command quietens the log for the process that it is."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


SST2 = PRESETS["sst2"]
TOKENIZER = load_tokenizer(TOY_MODEL)
TEXTS = st.integers(0, 14).map(lambda count: " ".join(["film"] * count))  # one token each


@settings(deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12), st.integers(8, 20), st.sampled_from(["pair", "text"])
)
def test_a_row_is_cut_if_its_words_and_special_tokens_are_more_than_max_length(pairs, max_length, columns):
    texts = [pair if columns == "pair" else pair[:1] for pair in pairs]
    spec = TaskSpec("t", "regression", ("a", "b")[: len(texts[0])], "label")
    rows = EncodedRows(Rows(texts, [0.0] * len(texts)), spec, TOKENIZER, max_length)
    whole = [sum(len(text.split()) for text in row) + 1 + len(row) for row in texts]  # [CLS], and [SEP] after each
    assert rows.num_cut == sum(length > max_length for length in whole)
    inputs, _ = rows.collator(0)([rows[i] for i in range(len(rows))])
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert inputs["input_ids"].shape[1] == min(max(whole), max_length)


def test_masked_texts_are_counted_too():
    spec = TaskSpec("t", "masked_lm", ("text",), "")
    rows = EncodedRows(Rows([("film " * 6,), ("film " * 7,)], [None, None]), spec, TOKENIZER, 8)
    assert rows.num_cut == 1
    rows.collator(0)([rows[0], rows[1]])


def test_no_rows_are_none_that_are_cut():
    assert EncodedRows(Rows([], []), SST2, TOKENIZER, 8).num_cut == 0


class InPython(PreTrainedTokenizer):
    """A tokenizer without the library in Rust: a word is a token."""

    vocab_size = 3

    def get_vocab(self):
        return {"[PAD]": 0, "[UNK]": 1, "film": 2}

    def _tokenize(self, text):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 1)


def test_a_tokenizer_that_does_not_say_what_it_cut_leaves_it_unknown():
    tokenizer = InPython(pad_token="[PAD]", unk_token="[UNK]")
    rows = EncodedRows(Rows([("film " * 9,)], [1]), SST2, tokenizer, 8)
    assert (rows.num_cut, rows.lengths) == (None, [8])


CONFIG = Config.model_validate(
    {
        "model": {"server_model": TOY_MODEL},
        "training": {"local_epochs": 1, "num_rounds": 1, "max_length": 8},
        "tasks": {"sst2": {"data": {"builtin": "sst2"}}},
    }
)


def longer_than(rows: list[tuple[str, ...]], max_length: int) -> int:
    """Rows with more tokens, by a tokenisation that cuts nothing."""
    return sum(len(ids) > max_length for ids in TOKENIZER([text for (text,) in rows])["input_ids"])


async def test_a_client_logs_how_many_of_the_rows_that_it_uses_are_cut(tmp_path):
    data = load_task_data(SST2, DataConfig(builtin="sst2"))
    task = ClientTask(SST2, data, train_samples=40, val_samples=30)
    async with serving(
        tmp_path, MTLServerModel.from_config(CONFIG), sections={"training": {"max_length": 8}}
    ) as server:
        api = FederationApi(server.address, client_id="a", task="sst2", reconnect_s=20)
        worker = RoundWorker("a", [task], WorkerSettings(torch.device("cpu"), model=TOY_MODEL))
        session = ClientSession(api, worker)
        with capture_logs() as logs:
            await asyncio.to_thread(session.run)
    (ready,) = [one for one in logs if one["event"] == "data.ready"]
    cut = [longer_than(data.train.texts[:40], 8), longer_than(data.validation.texts[:30], 8)]
    assert 0 < cut[0] < 40
    assert [ready[key] for key in ("train_rows", "train_rows_cut", "validation_rows", "validation_rows_cut")] == [
        40,
        cut[0],
        30,
        cut[1],
    ]
    assert ready["max_length"] == 8


@pytest.mark.parametrize(
    ("lengths", "level", "found"),
    [
        ([3] * 99 + [7], Level.ok, "1 of 100 rows (1.0%) are cut at 8 tokens"),
        ([3] * 90 + [7] * 10, Level.warn, "10 of 100 rows (10.0%) are cut at 8 tokens"),
        ([6], Level.ok, "0 of 1 rows (0.0%) are cut at 8 tokens"),
    ],
)
def test_the_doctor_says_which_share_of_the_rows_is_cut(lengths, level, found, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"sentence": "film " * length, "label": 1}) + "\n" for length in lengths))
    seen = survey(SST2, DataConfig(train=str(path), validation=str(path)), "train")
    (one,) = doctor.lengths(SST2, seen, TOY_MODEL, 8, "train rows")
    assert (one.level, one.found) == (level, found)


def test_of_many_rows_the_doctor_tokenises_some_from_the_whole_file(monkeypatch):
    monkeypatch.setattr(doctor, "MAX_TOKENIZED", 1000)
    seen = survey(SST2, DataConfig(builtin="sst2"), "train")
    (one,) = doctor.lengths(SST2, seen, TOY_MODEL, 12, "train rows")
    assert one.found.startswith(f"{longer_than(seen.texts[::6], 12):,} of 1,000 sampled rows")


@pytest.mark.parametrize("reached", [True, False])
async def test_the_doctors_command_goes_by_the_servers_plan_or_its_own_configuration(
    reached, tmp_path, monkeypatch, capsys
):
    config = tmp_path / "c.yaml"
    config.write_text(
        "tasks: {sst2: {data: {builtin: sst2}}}\nmodel: {server_model: 'builtin:toy'}\ntraining: {max_length: 9}\n"
    )
    async with serving(
        tmp_path / "run", MTLServerModel.from_config(CONFIG), sections={"training": {"max_length": 8}}
    ) as server:
        address = server.address if reached else "127.0.0.1:1"
        options = [
            "doctor",
            "--client-id",
            "a",
            "--task",
            "sst2",
            "--server",
            address,
            "--config",
            str(config),
            "--json",
        ]
        monkeypatch.setattr(sys, "argv", ["fedmtl-client", *options])
        capsys.readouterr()
        with pytest.raises(SystemExit):
            await asyncio.to_thread(command.main)
    length = 8 if reached else 9
    count = longer_than(load_task_data(SST2, DataConfig(builtin="sst2")).validation.texts, length)
    found = {one["found"] for one in json.loads(capsys.readouterr().out) if one["check"] == "validation rows"}
    assert f"{count:,} of 1,000 rows ({count / 1000:.1%}) are cut at {length} tokens" in found
