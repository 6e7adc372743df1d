"""Training the word embeddings of a client's own words alone: it has to come to the same."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from fedmtl_client.data import EncodedRows, Rows, load_task_data
from fedmtl_client.trainer import Trainer, local_optimizer
from fedmtl_client.vocabulary import restrict_embeddings
from fedmtl_core.config import Config, DataConfig
from fedmtl_core.model.modeling import TOY_MODEL, MultiTaskModel, load_tokenizer
from fedmtl_core.tasks.spec import PRESETS

CPU = torch.device("cpu")
SPEC = PRESETS["sst2"]
PLAN = dataclasses.replace(
    Config.model_validate({"model": {"server_model": TOY_MODEL}, "tasks": {"sst2": {}}}).plan("sst2"),
    learning_rate=1e-2,
    weight_decay=0.1,
    local_epochs=2,
    num_rounds=2,
)
TOKENIZER = load_tokenizer(TOY_MODEL)
VOCABULARY = 5_000
"""Of an encoder that knows many more words than the toy language has."""


def new_model():
    torch.manual_seed(3)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=VOCABULARY, pad_token_id=TOKENIZER.pad_token_id, **size)
    return MultiTaskModel(BertModel(config), [SPEC], hidden_size=16, pooling="mean")


def rows(number=40):
    data = load_task_data(SPEC, DataConfig(builtin="sst2"))
    return EncodedRows(data.train.head(number), SPEC, TOKENIZER, 48)


class Whole(Trainer):
    """Trains the whole table, as every trainer of one's own does."""


def trained(kind, plan=PLAN, **changes):
    model = new_model()
    kind(SPEC, plan, CPU).train(model, rows(), 1, seed=1, **changes)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture
def tables(monkeypatch):
    """The numbers of words that the lookup had while a model was trained."""
    seen = set()
    monkeypatch.setattr(
        Trainer,
        "loss",
        lambda self, model, *batch, loss=Trainer.loss: (
            seen.add(len(model.encoder.get_input_embeddings().weight)) or loss(self, model, *batch)
        ),
    )
    return seen


@pytest.mark.parametrize("plan", [{}, {"optimizer": "sgd"}, {"head_epochs": 1}, {"weight_decay": 0.0}])
def test_it_comes_to_the_same_as_training_the_whole_table(plan, tables):
    plan = dataclasses.replace(PLAN, **plan)
    narrow = trained(Trainer, plan)
    assert tables == {len(rows().vocabulary)}
    whole = trained(Whole, plan)
    assert tables == {len(rows().vocabulary), VOCABULARY}
    for name, values in whole.items():
        torch.testing.assert_close(narrow[name], values, rtol=0, atol=2e-6, msg=name)


def test_words_that_no_row_has_decay_and_do_nothing_else():
    before = new_model().encoder.get_input_embeddings().weight.detach()
    after = trained(Trainer)["encoder.embeddings.word_embeddings.weight"]
    unseen = torch.ones(VOCABULARY, dtype=torch.bool)
    unseen[rows().vocabulary] = False
    # Warm-up over 0.1 of 8 steps is one step, at a rate of 0; then the rate falls from its peak to 0 in 7.
    steps = [0.0, 1.0, 6 / 7, 5 / 7]
    factor = torch.tensor([1 - 1e-2 * share * 0.1 for share in steps], dtype=torch.float64).prod()
    torch.testing.assert_close(after[unseen], (before[unseen].double() * factor).float())
    assert not torch.allclose(after[~unseen], (before[~unseen].double() * factor).float(), atol=1e-3)


def test_the_model_is_whole_again_whatever_ends_the_training():
    model = new_model()
    lookup = model.encoder.get_input_embeddings()
    parameter, memory, padding = lookup.weight, lookup.weight.data_ptr(), lookup.padding_idx
    optimizer = local_optimizer(model, PLAN)
    with pytest.raises(KeyboardInterrupt), restrict_embeddings(model.encoder, rows().vocabulary, optimizer):
        assert len(lookup.weight) < VOCABULARY
        raise KeyboardInterrupt
    assert lookup.weight is parameter
    assert (len(parameter), parameter.data_ptr(), lookup.padding_idx) == (VOCABULARY, memory, padding)
    assert not lookup._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert torch.equal(parameter, new_model().encoder.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("plan", "correct"),
    [({"proximal_mu": 0.1}, None), ({"optimizer": "sgd"}, lambda: None)],
    ids=["FedProx", "SCAFFOLD"],
)
def test_where_other_words_move_too_the_table_stays_whole(plan, correct, tables):
    trained(Trainer, dataclasses.replace(PLAN, **plan), correct=correct)
    assert tables == {VOCABULARY}


def test_token_ids_may_come_by_name():
    model, ids = new_model(), rows().vocabulary[:3]
    lookup = model.encoder.get_input_embeddings()
    expected = lookup(ids)
    with restrict_embeddings(model.encoder, rows().vocabulary, local_optimizer(model, PLAN)):
        assert torch.equal(lookup(input=ids), expected)


def test_embeddings_that_are_frozen_or_anothers_too_stay_whole():
    frozen, tied = new_model(), new_model()
    frozen.encoder.get_input_embeddings().weight.requires_grad_(False)
    tied.encoder.decoder = nn.Linear(16, VOCABULARY)
    tied.encoder.decoder.weight = tied.encoder.get_input_embeddings().weight
    for model in (frozen, tied):
        with restrict_embeddings(model.encoder, rows().vocabulary, local_optimizer(model, PLAN)):
            assert len(model.encoder.get_input_embeddings().weight) == VOCABULARY


def test_of_a_vocabulary_that_is_mostly_used_all_of_it_is_trained():
    model = new_model()
    ids = torch.arange(VOCABULARY // 2 + 1)
    with restrict_embeddings(model.encoder, ids, local_optimizer(model, PLAN)):
        assert len(model.encoder.get_input_embeddings().weight) == VOCABULARY


def test_the_vocabulary_is_all_ids_that_a_batch_can_have():
    some = EncodedRows(Rows([("the film",), ("the the the film",)], [0, 1]), SPEC, TOKENIZER, 48)
    inputs, _ = some.collator(0)([some[0], some[1]])
    assert some.vocabulary.tolist() == inputs["input_ids"].unique().tolist()
    assert TOKENIZER.pad_token_id in some.vocabulary


def test_rows_whose_tokens_are_masked_have_no_vocabulary():
    spec = dataclasses.replace(SPEC, name="texts", type="masked_lm", labels=(), label_column="", metrics=())
    assert EncodedRows(Rows([("the film",)], [None]), spec, TOKENIZER, 48).vocabulary is None
