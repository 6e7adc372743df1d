"""Which rows come in a batch together."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmtl_client import batches
from fedmtl_client.data import EncodedRows, Rows
from fedmtl_core.config import Config
from fedmtl_core.model.modeling import TOY_MODEL, load_tokenizer
from fedmtl_core.tasks.glue import PRESETS

PLAN = Config.model_validate({"model": {"server_model": TOY_MODEL}, "tasks": {"sst2": {}}}).plan("sst2")
TOKENIZER = load_tokenizer(TOY_MODEL)
GROUPED = dataclasses.replace(PLAN, batch_size=4, group_by_length=True)


def encoded(lengths):
    """Rows of so many words, each with its number as its label."""
    texts = [(" ".join(["the"] * length),) for length in lengths]
    spec = dataclasses.replace(PRESETS["sst2"], labels=tuple(map(str, range(max(2, len(lengths))))))
    return EncodedRows(Rows(texts, list(range(len(lengths)))), spec, TOKENIZER, 64)


def orders(loader, times=1):
    """By pass, the rows' numbers in the order in which they came."""
    return [[number for _, labels in loader for number in labels.tolist()] for _ in range(times)]


def padding(loader):
    """Places that hold no token, in one pass."""
    return sum(int((inputs["attention_mask"] == 0).sum()) for inputs, _ in loader)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.booleans(), st.integers(0, 2**32))
def test_every_row_comes_once_in_a_pass_whichever_come_together(lengths, group_by_length, seed):
    plan = dataclasses.replace(GROUPED, group_by_length=group_by_length)
    for order in orders(batches.to_train_on(encoded(lengths), plan, seed), times=2):
        assert sorted(order) == list(range(len(lengths)))


def test_a_seed_gives_the_same_batches_and_each_pass_others():
    rows = encoded(range(1, 41))
    first, second = (orders(batches.to_train_on(rows, GROUPED, seed=3), times=2) for _ in range(2))
    assert first == second
    assert first[0] != first[1]
    assert orders(batches.to_train_on(rows, GROUPED, seed=4)) != first[:1]


def test_rows_of_like_length_together_are_hardly_filled_up():
    lengths = torch.randint(1, 40, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = encoded(lengths)
    mixed = padding(batches.to_train_on(rows, dataclasses.replace(GROUPED, group_by_length=False), seed=1))
    grouped = padding(batches.to_train_on(rows, GROUPED, seed=1))
    assert grouped < mixed / 5


def test_rows_without_token_ids_come_in_random_order(monkeypatch):
    rows = encoded(range(1, 41))
    as_asked_for = orders(batches.to_train_on(rows, dataclasses.replace(GROUPED, group_by_length=False), seed=1))
    monkeypatch.setattr(EncodedRows, "lengths", None)
    assert orders(batches.to_train_on(rows, GROUPED, seed=1)) == as_asked_for


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_an_evaluation_takes_every_row_once_and_the_shortest_first(lengths):
    rows = encoded(lengths)
    loader = batches.to_evaluate_on(rows, GROUPED)
    (order,) = orders(loader)
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[number] for number in order] == sorted(lengths)
    assert orders(loader) == [order]


def test_an_evaluation_draws_nothing_from_the_global_generator():
    rows = encoded([3, 1, 2])
    before = torch.get_rng_state()
    orders(batches.to_evaluate_on(rows, GROUPED))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_plan_says_what_the_configuration_asks_for(strategy):
    config = Config.model_validate(
        {"model": {"server_model": TOY_MODEL}, "training": {"train_sampling_strategy": strategy}, "tasks": {"sst2": {}}}
    )
    assert config.plan("sst2").group_by_length == (strategy == "group_by_length")
