"""Folders with tiny encoders of several families, from random values, and tokenizers that know a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    GPT2Config,
    MPNetConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    RobertaConfig,
    XLNetConfig,
)

from fedmtl_core.randomness import drawing_from

WORDS = ("zaba", "dilo", "moku", "tare", "pine", "luvo", "seki", "rano", "well", "ill")
SHORT, LONGER, CHANGED = "zaba well", "moku tare pine luvo seki rano ill", "zaba ill"

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_WIDE = {"initializer_range": 0.4}  # so that texts make a difference
_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_XLNET = {"unk": "<unk>", "pad": "<pad>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>"}
_CAUSAL = {"unk": "<unk>", "eos": "<end>", "pad": "<pad>"}

Family = Literal["bert", "roberta", "mpnet", "xlnet", "gpt2", "qwen3"]

_SPECIAL: dict[Family, dict[str, str]] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "mpnet": _ROBERTA,
    "xlnet": _XLNET,
    "gpt2": _CAUSAL,
    "qwen3": _CAUSAL,
}
_TEMPLATES: dict[Family, tuple[str, str]] = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "mpnet": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "xlnet": ("$A <sep> <cls>", "$A <sep> $B <sep> <cls>"),
}


def save(folder: Path, family: Family, side: str = "right", rows_missing: int = 0, without: str = "") -> str:
    """Write a folder as `save_pretrained` does.

    Args:
        side: where its tokenizer pads.
        rows_missing: so many tokens have no word embedding.
        without: a special token that the tokenizer hasn't got, such as `pad`.
    """
    special = {name: token for name, token in _SPECIAL[family].items() if name != without}
    tokenizer = _tokenizer(special, _TEMPLATES.get(family), side)
    with drawing_from(1):
        AutoModel.from_config(_config(family, len(tokenizer) - rows_missing)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _config(family: Family, size: int) -> Any:
    if family == "bert":
        return BertConfig(vocab_size=size, max_position_embeddings=64, **_SIZES, **_WIDE)
    if family == "roberta":
        return RobertaConfig(vocab_size=size, max_position_embeddings=34, pad_token_id=1, **_SIZES, **_WIDE)
    if family == "mpnet":
        return MPNetConfig(vocab_size=size, max_position_embeddings=34, pad_token_id=1, **_SIZES, **_WIDE)
    if family == "xlnet":
        return XLNetConfig(vocab_size=size, d_model=32, n_layer=2, n_head=2, d_inner=64, pad_token_id=1, **_WIDE)
    if family == "gpt2":
        return GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=2, n_positions=64, **_WIDE)
    return Qwen3Config(vocab_size=size, num_key_value_heads=1, head_dim=16, **_SIZES, **_WIDE)


def _tokenizer(special: dict[str, str], templates: tuple[str, str] | None, side: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate((*special.values(), *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if templates:
        tokens = [(token, vocabulary[token]) for token in special.values()]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=templates[0], pair=templates[1], special_tokens=tokens
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=side,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in special.items()},
    )


def batch_of(tokenizer: Any, *texts: str) -> dict[str, torch.Tensor]:
    return dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
