"""A client's rows."""

import json

import pandas
import pytest
import torch

from fedmtl_client.data import EncodedRows, Rows, load_task_data
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.errors import DataError
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS

SST2 = PRESETS["sst2"]
ROWS = [('it\'s "great"', 1), ("NA", 0), ("", 1), ("1.5", 0), ("2020-01-01", 1)]


def files(tmp_path, ending, write):
    for split in ("train", "dev"):
        write(tmp_path / f"{split}{ending}")
    return DataConfig(train=str(tmp_path / f"train{ending}"), validation=str(tmp_path / f"dev{ending}"))


def as_tsv(path):
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS))


def as_csv(path):
    pandas.DataFrame(ROWS, columns=["sentence", "label"]).to_csv(path, index=False)


def as_jsonl(path):
    path.write_text("".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in ROWS))


def as_parquet(path):
    pandas.DataFrame(ROWS, columns=["sentence", "label"]).to_parquet(path)


@pytest.mark.parametrize(
    ("ending", "write"), [(".tsv", as_tsv), (".csv", as_csv), (".jsonl", as_jsonl), (".parquet", as_parquet)]
)
def test_rows_of_a_file_are_what_it_says_word_for_word(ending, write, tmp_path):
    data = load_task_data(SST2, files(tmp_path, ending, write))
    assert sorted(zip((text for (text,) in data.train.texts), data.train.labels, strict=True)) == sorted(ROWS)
    assert len(data.validation) == 5


def test_labels_may_be_names_numbers_or_numbers_as_text(tmp_path):
    def write(path):
        path.write_text("sentence\tlabel\na\tnegative\nb\tpositive\nc\t1\n")

    data = load_task_data(SST2, files(tmp_path, ".tsv", write))
    labels = {text: label for (text,), label in zip(data.train.texts, data.train.labels, strict=True)}
    assert labels == {"a": 0, "b": 1, "c": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\na\t1\n", r"no column 'sentence'; the columns are text, label.*tasks\.sst2\.text_columns"),
        (
            "sentence\tlabel\na\t1\nb\t2\n",
            r"sst2, train rows in /.*\.tsv: row 2: label: expected one of negative, positive, or a number from 0",
        ),
        ("sentence\tlabel\na\t1\nb\tgood\n", "row 2: label: expected one of negative, positive"),
        ("sentence\tlabel\na\t0.5\n", "row 1: label: expected one of negative"),
        ("sentence\tlabel\na\t-1\n", "row 1: label: expected one of negative"),
    ],
)
def test_rows_that_are_not_the_tasks_are_refused_with_place_and_value(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_task_data(SST2, files(tmp_path, ".tsv", lambda path: path.write_text(content)))


@pytest.mark.parametrize("labels", [(["1", "2", "3"]), (["True", "False"])])
def test_a_label_that_looks_like_a_number_is_a_name_first_in_every_kind_of_file(labels, tmp_path):
    config = Config.model_validate(
        {"tasks": {"t": {"type": "classification", "labels": labels, "text_columns": ["a"], "label_column": "y"}}}
    )
    frame = pandas.DataFrame({"a": [f"text {label}" for label in labels], "y": labels})
    found = []
    for ending, write in ((".csv", frame.to_csv), (".parquet", frame.to_parquet)):
        source = files(tmp_path, ending, lambda path, write=write: write(path, index=False))
        train = load_task_data(config.task_specs()[0], source).train
        found.append({text: label for (text,), label in zip(train.texts, train.labels, strict=True)})
    assert found[0] == found[1] == {f"text {label}": number for number, label in enumerate(labels)}


@pytest.mark.parametrize("score", ["many", "nan", "inf", ""])
def test_a_score_that_is_no_number_is_refused(score, tmp_path):
    def write(path):
        path.write_text(f"sentence1\tsentence2\tlabel\na\tb\t4.5\na\tc\t{score}\n")

    with pytest.raises(DataError, match=f"row 2: label: expected a finite number, got '{score}'"):
        load_task_data(PRESETS["stsb"], files(tmp_path, ".tsv", write))


def test_a_missing_file_is_named_with_where_it_was_looked_for_and_what_to_do(tmp_path):
    source = DataConfig(train="nowhere/train.tsv", validation="nowhere/dev.tsv")
    with pytest.raises(DataError, match=r"tasks\.sst2\.data\.train: there is no file .*looked for /.*nyu-mll/glue"):
        load_task_data(SST2, source)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "train.xlsx").write_text("")
    source = DataConfig(train=str(tmp_path / "train.xlsx"), validation=str(tmp_path / "train.xlsx"))
    with pytest.raises(DataError, match=r"expected a file ending in \.tsv, .*, got '.*train\.xlsx'"):
        load_task_data(SST2, source)


@pytest.mark.parametrize(
    ("ending", "content"),
    [(".csv", b""), (".csv", b"\xff\xfe\xfa"), (".jsonl", b"{no json"), (".parquet", b"x")],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(ending, content, tmp_path):
    with pytest.raises(DataError, match=rf"train: .*train{ending} can't be read as {ending[1:]}: \S"):
        load_task_data(SST2, files(tmp_path, ending, lambda path: path.write_bytes(content)))


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        (".tsv", lambda path: path.write_text("sentence\tlabel\n")),
        (".csv", lambda path: path.write_text("sentence,label\n")),
        (".jsonl", lambda path: path.write_text("")),
        (".jsonl", lambda path: path.write_text("\n")),
        (".json", lambda path: path.write_text("[]")),
        (".parquet", pandas.DataFrame({"sentence": [], "label": []}).to_parquet),
    ],
)
def test_a_file_of_a_header_alone_has_no_rows(ending, write, tmp_path):
    with pytest.raises(DataError, match=rf"^tasks\.sst2\.data\.train: .*train{ending} has no rows$"):
        load_task_data(SST2, files(tmp_path, ending, write))


def test_a_folder_with_brackets_in_its_name_is_a_folder(tmp_path):
    (tmp_path / "x[v2]").mkdir()
    assert len(load_task_data(SST2, files(tmp_path / "x[v2]", ".tsv", as_tsv)).train) == 5


@pytest.mark.parametrize(("ending", "write"), [(".tsv", as_tsv), (".jsonl", as_jsonl), (".parquet", as_parquet)])
def test_no_copy_of_the_rows_stays_behind(ending, write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", elsewhere)
    load_task_data(SST2, files(tmp_path, ending, write))
    assert list(elsewhere.rglob("*")) == []


def test_texts_and_labels_that_look_like_dates_are_what_they_are(tmp_path):
    task = {"type": "classification", "labels": ["2021-03-04", "n/a"], "text_columns": ["a"], "label_column": "y"}
    spec = Config.model_validate({"tasks": {"t": task}}).task_specs()[0]

    def write(path):
        path.write_text(json.dumps({"a": "2021-03-04", "y": "2021-03-04"}) + "\n")

    train = load_task_data(spec, files(tmp_path, ".jsonl", write)).train
    assert (train.texts, train.labels) == ([("2021-03-04",)], [0])


def test_a_file_without_header_is_read_by_column_numbers(tmp_path):
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tOur friends\nbc80\t0\t*\tThey drank the pub\n")
    file = str(tmp_path / "cola.tsv")
    data = {"train": file, "validation": file, "header": "none"}
    section = Config.model_validate({"tasks": {"cola": {"text_columns": [4], "label_column": 2, "data": data}}}).tasks
    train = load_task_data(section["cola"].spec("cola"), section["cola"].data).train
    assert sorted(zip(train.texts, train.labels, strict=True)) == [(("Our friends",), 1), (("They drank the pub",), 0)]
    without = section["cola"].data.model_copy(update={"header": "first_row"})
    with pytest.raises(DataError, match=r"no column '4'; the columns are gj04, 1, \(without a name\), Our friends"):
        load_task_data(section["cola"].spec("cola"), without)


def test_a_hub_out_of_reach_is_an_error_that_says_what_to_do_instead(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"'nyu-mll/glue' \(sst2\), split 'train', can't be loaded .*--config configs/demo"
    ):
        load_task_data(SST2, None)


def test_shards_are_disjoint_and_make_up_the_whole():
    source = DataConfig(builtin="sst2")
    whole = load_task_data(SST2, source)
    parts = [load_task_data(SST2, source, (k, 3)) for k in (1, 2, 3)]
    for split in ("train", "validation"):
        texts = [set(getattr(part, split).texts) for part in parts]
        assert sum(map(len, texts)) == len(set.union(*texts))
        assert set.union(*texts) == set(getattr(whole, split).texts)


def test_a_shard_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="sst2: shard 6/6 of 5 rows is empty"):
        load_task_data(SST2, files(tmp_path, ".tsv", as_tsv), (6, 6))


def test_an_unknown_builtin_task_is_named():
    with pytest.raises(DataError, match="no built-in task 'rte'; expected one of sst2, qqp, stsb"):
        load_task_data(PRESETS["rte"], DataConfig(builtin="rte"))


def test_a_task_of_ones_own_without_data_is_told_so():
    config = Config.model_validate(
        {"tasks": {"mine": {"type": "regression", "text_columns": ["a"], "label_column": "y"}}}
    )
    with pytest.raises(DataError, match=r"tasks\.mine\.data: required"):
        load_task_data(config.task_specs()[0], None)


def test_rows_become_padded_token_ids_and_labels_of_the_tasks_kind():
    tokenizer = load_tokenizer(TOY_MODEL)
    rows = Rows([("the film was great", "a movie"), ("the film", "a red car")], [1.5, 2.0])
    encoded = EncodedRows(rows, PRESETS["stsb"], tokenizer, max_length=8)
    inputs, labels = encoded.collator(0)([encoded[0], encoded[1]])
    assert inputs["input_ids"].shape == (2, 8)  # the longer one was cut from 9
    assert inputs["attention_mask"].sum(dim=1).tolist() == [8, 8]
    assert labels.dtype == torch.float32
    classes = EncodedRows(Rows([("the film",)], [1]), SST2, tokenizer, max_length=8)
    assert classes.collator(0)([classes[0]])[1].dtype == torch.int64


def test_rows_are_tokenised_once():
    calls = []
    tokenizer = load_tokenizer(TOY_MODEL)

    class Counting:
        def __call__(self, *args, **kwargs):
            calls.append(len(args[0]))
            return tokenizer(*args, **kwargs)

        def pad(self, *args, **kwargs):
            return tokenizer.pad(*args, **kwargs)

    rows = load_task_data(SST2, DataConfig(builtin="sst2")).train.head(10)
    encoded = EncodedRows(rows, SST2, Counting(), max_length=16)
    for _ in range(3):
        encoded.collator(0)([encoded[i] for i in range(10)])
    assert calls == [10]
