"""Real rows and the real vocabulary, where they are at hand."""

from pathlib import Path

import pytest

from fedmtl_client.data import EncodedRows, load_task_data
from fedmtl_core import config
from fedmtl_core.model.modeling import load_encoder, load_tokenizer
from fedmtl_server.model import MTLServerModel
from tests.support import specs

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
REAL = config.load(ROOT / "configs" / "real.yaml")

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real rows are not at hand (../shared/data)")


@pytest.mark.parametrize(
    ("task", "train", "validation"), [("sst2", 67_349, 872), ("qqp", 21_354, 5_000), ("stsb", 5_738, 1_500)]
)
def test_every_row_of_the_real_tasks_is_read(task, train, validation, monkeypatch):
    monkeypatch.chdir(ROOT)
    section = REAL.tasks[task]
    data = load_task_data(section.spec(task), section.data)
    assert (len(data.train), len(data.validation)) == (train, validation)
    if task == "stsb":
        assert 0 <= min(data.train.labels) < max(data.train.labels) <= 5
    else:
        assert set(data.train.labels) == {0, 1}
    encoded = EncodedRows(data.validation.head(10), section.spec(task), load_tokenizer(str(SHARED / "bert-tiny")), 64)
    inputs, labels = encoded.collator(0)([encoded[i] for i in range(10)])
    assert inputs["input_ids"].shape[0] == len(labels) == 10
    assert inputs["token_type_ids"].any().item() == (task != "sst2")  # a second text or none


def test_bert_tiny_from_its_folder_has_its_true_size():
    encoder, width = load_encoder(str(SHARED / "bert-tiny"), weights=True, random_init=True)
    summary = MTLServerModel(encoder, specs("sst2", "qqp", "stsb"), hidden_size=width).summary()
    assert summary.shared_parameters == 4_385_920
    assert summary.total_parameters == 4_385_920 + 258 + 258 + 129
