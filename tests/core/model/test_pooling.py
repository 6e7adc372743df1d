"""What a head sees of a text."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from fedmtl_core.model.modeling import MultiTaskModel, load_encoder, load_tokenizer
from fedmtl_core.model.pooling import encode_texts, encode_tokens
from tests.support import specs
from tests.tiny_encoders import CHANGED, LONGER, SHORT, batch_of, save

FAMILIES = ("bert", "roberta", "mpnet", "xlnet", "gpt2", "qwen3")


class Echo(nn.Module):
    """Gives each token its own number, and says what it was given."""

    def __init__(self, pad_token_id=None):
        super().__init__()
        self.config = SimpleNamespace(pad_token_id=pad_token_id)
        self.got = {}

    def forward(self, **inputs):
        self.got = inputs
        return SimpleNamespace(last_hidden_state=inputs["input_ids"][..., None].float())


LEFT = {
    "input_ids": torch.tensor([[0, 0, 7, 8, 9], [1, 2, 3, 4, 5]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
}


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_same_logits_alone_and_beside_a_longer_one(tmp_path, family, side, pooling):
    source = save(tmp_path, family, side)
    tokenizer, (encoder, width) = load_tokenizer(source), load_encoder(source, weights=True)
    model = MultiTaskModel(encoder, specs("sst2"), hidden_size=width, pooling=pooling).eval()
    nn.init.normal_(model.heads["sst2"].weight)
    with torch.inference_mode():
        alone = model("sst2", batch_of(tokenizer, SHORT))[0]
        beside = model("sst2", batch_of(tokenizer, SHORT, LONGER))[0]
    assert torch.allclose(alone, beside, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_sees_the_last_word(tmp_path, family):
    source = save(tmp_path, family, "left")
    tokenizer, (encoder, _) = load_tokenizer(source), load_encoder(source, weights=True)
    with torch.inference_mode():
        first, other = (encode_texts(encoder, batch_of(tokenizer, text), "last")[0] for text in (SHORT, CHANGED))
    assert (first - other).abs().max() > 0.01


def test_last_is_the_hidden_state_that_transformers_has_there(tmp_path):
    source = save(tmp_path, "gpt2")
    encoder, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    with torch.inference_mode():
        expected = encoder(**batch_of(tokenizer, SHORT)).last_hidden_state[0, -1]
        seen = encode_texts(encoder, batch_of(tokenizer, SHORT, LONGER), "last")[0]
    assert torch.allclose(seen, expected, atol=1e-5)


def test_cls_is_berts_own_pooled_output_whatever_the_padding_side(tmp_path):
    source = save(tmp_path, "bert", "left")
    encoder, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    with torch.inference_mode():
        expected = encoder(**batch_of(tokenizer, SHORT)).pooler_output[0]
        seen = encode_texts(encoder, batch_of(tokenizer, SHORT, LONGER), "cls")[0]
    assert torch.allclose(seen, expected, atol=1e-5)


@pytest.mark.parametrize(("pooling", "expected"), [("cls", [7, 1]), ("mean", [8, 3]), ("last", [9, 5])])
def test_padding_in_front_is_moved_behind_and_pooled_by_none(pooling, expected):
    encoder = Echo()
    assert encode_texts(encoder, LEFT, pooling)[:, 0].tolist() == expected
    assert encoder.got["input_ids"].tolist() == [[7, 8, 9, 0, 0], [1, 2, 3, 4, 5]]
    assert encoder.got["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_wanted_tokens_move_with_the_padding():
    wanted = torch.tensor([[False, False, True, False, True], [False, True, False, False, False]])
    assert encode_tokens(Echo(), LEFT, wanted)[:, 0].tolist() == [7, 9, 2]
    assert encode_tokens(Echo(), LEFT)[:, 0].tolist() == [7, 8, 9, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("padding", "expected"), [(0, [8, 3]), (None, [24 / 5, 3])])
def test_without_an_attention_mask_padding_is_told_by_its_id(padding, expected):
    seen = encode_texts(Echo(padding), {"input_ids": LEFT["input_ids"]}, "mean")
    assert seen[:, 0].tolist() == pytest.approx(expected)


def test_a_text_without_a_token_is_pooled_all_the_same():
    empty = {"input_ids": torch.tensor([[0, 0], [5, 6]]), "attention_mask": torch.tensor([[0, 0], [1, 1]])}
    for pooling, expected in (("cls", [0, 5]), ("mean", [0, 5.5]), ("last", [0, 6])):
        assert encode_texts(Echo(), empty, pooling)[:, 0].tolist() == expected
