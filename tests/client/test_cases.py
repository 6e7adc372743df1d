"""The small files of ../shared/cases that real exports look like, where they are at hand."""

import re
from pathlib import Path

import pytest
import yaml

from fedmtl_client.data import load_task_data
from fedmtl_core.config import DataConfig, TaskConfig
from fedmtl_core.errors import DataError

CASES = Path(__file__).parents[3] / "shared" / "cases"
NAMES = [path.name for path in sorted(CASES.glob("data-*"))]
"""What labels mean has tests of its own."""

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not at hand (../shared/cases)")


def outcome(task, file):
    """The rows that a client would train on, or the words in which they are refused."""
    source = DataConfig(train=file, validation=file)
    try:
        read = load_task_data(TaskConfig.model_validate(task).spec("case"), source).train
    except DataError as error:
        return str(error)
    return sorted([*texts, label] for texts, label in zip(read.texts, read.labels, strict=True))


@pytest.mark.parametrize("case", NAMES)
def test_a_file_is_read_as_its_owner_meant_it_or_refused_in_words(case):
    right = yaml.safe_load((CASES / case / "case.yaml").read_text())
    found = outcome(right["task"], right["file"] if "://" in right["file"] else str(CASES / case / right["file"]))
    if isinstance(found, str):
        assert right["expect"] in ("refused", "either"), found
        assert all(re.search(words, found) for words in right["says"]), found
    else:
        assert right["expect"] in ("rows", "either"), found
        assert found == sorted(right["rows"])


def test_texts_with_a_comma_that_nobody_quoted_are_refused_at_the_first_row():
    case = CASES / "csv-one-field-more"
    for name, section in yaml.safe_load((case / "config.yaml").read_text())["tasks"].items():
        files = {split: str(case / file) for split, file in section["data"].items()}
        spec = TaskConfig.model_validate(section | {"data": files}).spec(name)
        with pytest.raises(DataError, match=r"line 2: expected \d fields?, as in the header .*, found \d"):
            load_task_data(spec, DataConfig(**files))


def test_texts_that_look_like_dates_are_texts():
    case = CASES / "jsonl-dates"
    section = yaml.safe_load((case / "config.yaml").read_text())["tasks"]["forms"]
    files = {split: str(case / file) for split, file in section["data"].items()}
    read = load_task_data(TaskConfig.model_validate(section | {"data": files}).spec("forms"), DataConfig(**files)).train
    assert sorted(zip(read.texts, read.labels, strict=True)) == [(("2021-03-04",), 0), (("2021-05-06",), 0)]
