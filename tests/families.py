"""Tiny encoders of the families in `transformers`: folders with a configuration, random weights and a tokenizer.

What a family needs to be small stands in `FAMILIES`; its classes, names and quirks are the library's own. What FedMTL
does with it stands there too, and in the documentation's table, which `python -m tests.families` prints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, T5EncoderModel

from fedmtl_core.randomness import drawing_from

WORDS = (
    *("zaba", "dilo", "moku", "tare", "pine", "luvo", "seki"),
    *("rano", "fimo", "gadu", "hile", "joka", "well", "ill"),
)
LAYERS = 3

_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
_XLNET = {"unk": "<unk>", "pad": "<pad>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>"}
_T5 = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
_CAUSAL = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>", "bos": "<s>"}

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
_DECODER = {**_SMALL, "num_key_value_heads": 1, "head_dim": 16}
_XLM = {"emb_dim": 32, "n_layers": LAYERS, "n_heads": 2, "max_position_embeddings": 64}
_T5_SIZE = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": LAYERS, "num_decoder_layers": 2, "num_heads": 2}
_BART = {
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Family:
    """One family, by its `model_type`; `t5-encoder` is a `t5` without its decoder."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=lambda: _SMALL)
    """Of its configuration, beside the vocabulary's size and the special tokens' ids."""
    tokens: str = "bert"
    """Whose special tokens its tokenizer has."""
    kind: str = "encoder"
    """`encoder`, `encoder-decoder`, or `causal`, whose tokens see the ones before them alone."""
    refused: str = ""
    """Words of the refusal, where it can't be loaded."""
    cut: str = ""
    """Words of the refusal, where `num_hidden_layers` can't keep its first two layers."""
    layers: int = LAYERS
    """How many layers `sharing.layers` knows."""
    pooling: str = ""
    """Advice in the table, where its kind's isn't right."""
    note: str = ""
    """In the table."""


def _roberta(name: str, settings: Mapping[str, Any] = _SMALL, **more: Any) -> Family:
    return Family(name, settings, "roberta", **more)


def _encoder_decoder(name: str, settings: Mapping[str, Any], tokens: str, **more: Any) -> Family:
    return Family(name, settings, tokens, "encoder-decoder", **more)


def _causal(name: str, settings: Mapping[str, Any] = _DECODER, **more: Any) -> Family:
    return Family(name, settings, "causal", "causal", **more)


_FUNNEL = {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 2], "block_repeats": [1, 1]}
_MOBILE = {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2}
_GROUPS = ("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups")
_SQUEEZE = {"embedding_size": 32, "post_attention_groups": 1, **dict.fromkeys(_GROUPS, 2)}
_EMBEDDING_GEMMA = {
    "embedding_dim": 48,
    "sliding_window": 8,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
_REFORMER = {
    "hidden_size": 32,
    "attn_layers": ["local", "lsh", "local"],
    "num_attention_heads": 2,
    "attention_head_size": 16,
    "feed_forward_size": 64,
    "max_position_embeddings": 64,
    "axial_pos_shape": [8, 8],
    "axial_pos_embds_dim": [16, 16],
    "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4,
    "num_buckets": 2,
}
_LED = {
    **{name: value for name, value in _BART.items() if name != "max_position_embeddings"},
    "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 64,
    "attention_window": [4] * LAYERS,
}
_PROPHETNET = {
    "hidden_size": 32,
    "num_encoder_layers": LAYERS,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "num_decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
_GPT2 = {"n_embd": 32, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
_GPT_NEO = {
    "hidden_size": 32,
    "num_layers": LAYERS,
    "num_heads": 2,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local", "global"], 1]],
    "window_size": 8,
}
_ONE_KEY = {**_SMALL, "num_key_value_heads": 1}

_SAME_LAYER = "all layers share their weights, so `sharing.layers` can't number them"
_NO_ENCODER = "its encoder can't be used without the decoder"
_MIXES = "mixes padding into the tokens: a text's output depends on longer texts in its batch"
_NO_DECODER = "only the encoder is used; the decoder is neither loaded into the model nor sent"

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("albert", {**_SMALL, "embedding_size": 16}, layers=0, note=_SAME_LAYER),
        Family("bert"),
        _roberta(
            "big_bird",
            {**_SMALL, "block_size": 4, "num_random_blocks": 1},
            note="a batch of short texts permanently switches its sparse attention to full attention",
        ),
        _roberta("camembert"),
        Family(
            "canine",
            {**_SMALL, "num_hash_buckets": 64, "num_hash_functions": 4},
            note="reads characters and has no word embeddings, so it supports no `masked_lm` task",
        ),
        Family("convbert", {**_SMALL, "embedding_size": 32}, note=_MIXES),
        _roberta("data2vec-text"),
        Family("deberta", {**_SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        Family("deberta-v2", {**_SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        Family("distilbert", {"dim": 32, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 64}),
        Family("electra", {**_SMALL, "embedding_size": 16}),
        Family(
            "embedding_gemma2_text",
            {**_DECODER, **_EMBEDDING_GEMMA},
            "causal",
            cut="don't fit its configuration: expected ple.per_layer_model_projection.weight",
            note="the output width is `embedding_dim`",
        ),
        Family("ernie"),
        Family(
            "esm",
            {**_SMALL, "position_embedding_type": "rotary", "token_dropout": True},
            cut="don't fit its configuration: expected contact_head.regression.weight",
        ),
        _roberta("eurobert", _DECODER),
        _roberta("flaubert", _XLM),
        Family(
            "fnet",
            {name: value for name, value in _SMALL.items() if name != "num_attention_heads"},
            "fnet",
            note=_MIXES,
        ),
        Family(
            "funnel", {**_FUNNEL, "architectures": ["FunnelModel"]}, cut="does not support the setting", note=_MIXES
        ),
        Family("gte", {**_SMALL, "type_vocab_size": 2}),
        _roberta("ibert", note="the ranges of its activations are sent too"),
        _roberta("jina_embeddings_v3"),
        Family("layoutlm", note="used without page layout"),
        Family("lilt", {**_SMALL, "hidden_size": 24, "intermediate_size": 48}, note="used without page layout"),
        _roberta("longformer", {**_SMALL, "attention_window": [4] * LAYERS}, note="used without global attention"),
        _roberta("luke", {**_SMALL, "entity_vocab_size": 5, "entity_emb_size": 8}, note="used without entities"),
        Family("megatron-bert"),
        Family("mobilebert", {**_SMALL, **_MOBILE}),
        Family("modernbert", {**_SMALL, "local_attention": 8}),
        _roberta("mpnet"),
        _roberta(
            "mra",
            {**_SMALL, "block_per_row": 1},
            refused="computes no attention on this machine",
            note="without code compiled for a GPU, its attention returns zeros",
        ),
        Family("nomic_bert"),
        Family("nystromformer", {**_SMALL, "segment_means_seq_len": 16, "num_landmarks": 16}, note=_MIXES),
        _roberta(
            "reformer",
            _REFORMER,
            refused="can't be trained on texts of any length",
            note="trains only on texts whose length is a multiple of its chunk length",
        ),
        Family("rembert", {**_SMALL, "input_embedding_size": 16, "output_embedding_size": 16}),
        _roberta("roberta"),
        _roberta("roberta-prelayernorm"),
        Family("roc_bert", {**_SMALL, "pronunciation_vocab_size": 5, "shape_vocab_size": 5}),
        Family("roformer", {**_SMALL, "embedding_size": 32}),
        Family("squeezebert", {**_SMALL, **_SQUEEZE}),
        _roberta("xlm", _XLM),
        _roberta("xlm-roberta"),
        _roberta("xlm-roberta-xl"),
        Family(
            "xlnet",
            {"d_model": 32, "n_layer": LAYERS, "n_head": 2, "d_inner": 64},
            "xlnet",
            pooling="`last`, `mean`",
            note="the CLS token is the last token",
        ),
        _roberta("xmod", {**_SMALL, "languages": ["en_XX"], "default_language": "en_XX"}),
        Family("yoso", {**_SMALL, "type_vocab_size": 2}, note=_MIXES),
        _encoder_decoder("bart", _BART, "roberta", note=_NO_DECODER),
        _encoder_decoder("bigbird_pegasus", {**_BART, "block_size": 4, "num_random_blocks": 1}, "t5", note=_NO_DECODER),
        _encoder_decoder("blenderbot", _BART, "roberta", note=_NO_DECODER),
        _encoder_decoder(
            "fsmt",
            {**_BART, "langs": ["en", "de"], "src_vocab_size": 19, "tgt_vocab_size": 19},
            "roberta",
            refused="whose encoder can't be used alone",
            note=_NO_ENCODER,
        ),
        _encoder_decoder("led", _LED, "roberta", note=_NO_DECODER),
        _encoder_decoder("longt5", {**_T5_SIZE, "local_radius": 7, "global_block_size": 4}, "t5", note=_NO_DECODER),
        _encoder_decoder("m2m_100", _BART, "roberta", note=_NO_DECODER),
        _encoder_decoder("marian", {**_BART, "decoder_start_token_id": 1}, "roberta", note=_NO_DECODER),
        _encoder_decoder("mbart", _BART, "roberta", note=_NO_DECODER),
        _encoder_decoder("mt5", _T5_SIZE, "t5", note=_NO_DECODER),
        _encoder_decoder("pegasus", _BART, "t5", note=_NO_DECODER),
        _encoder_decoder("plbart", _BART, "roberta", note=_NO_DECODER),
        _encoder_decoder("prophetnet", _PROPHETNET, "bert", cut="does not support the setting", note=_NO_DECODER),
        _encoder_decoder("t5", _T5_SIZE, "t5", note=_NO_DECODER),
        Family(
            "t5-encoder",
            _T5_SIZE,
            "t5",
            pooling="`mean`",
            note="T5 saved without its decoder (`T5EncoderModel`), as in sentence-t5",
        ),
        _encoder_decoder("t5gemma", {}, "causal", refused="whose encoder can't be used alone", note=_NO_ENCODER),
        _encoder_decoder("umt5", _T5_SIZE, "t5", note=_NO_DECODER),
        _causal("biogpt", _SMALL),
        _causal("bloom", {"hidden_size": 32, "n_layer": LAYERS, "n_head": 2}),
        _causal("ctrl", {**_GPT2, "dff": 64}),
        _causal("falcon", _SMALL),
        _causal("gemma"),
        _causal("gemma2"),
        _causal("gemma3_text", {**_DECODER, "sliding_window": 8}),
        _causal("gpt2", _GPT2),
        _causal("gpt_neo", _GPT_NEO),
        _causal("gpt_neox", _SMALL),
        _causal("gptj", {**_GPT2, "rotary_dim": 8}),
        _causal("llama"),
        _causal("mistral"),
        _causal("mixtral", {**_DECODER, "num_local_experts": 2}),
        _causal("modernbert-decoder", {**_SMALL, "local_attention": 8}),
        _causal("mpt", {"d_model": 32, "n_layers": LAYERS, "n_heads": 2, "max_seq_len": 64}),
        _causal("olmo2"),
        _causal("openai-gpt", _GPT2),
        _causal(
            "opt",
            {**_SMALL, "ffn_dim": 64, "word_embed_proj_dim": 16},
            note="the output width is `word_embed_proj_dim`",
        ),
        _causal("phi", _SMALL),
        _causal("phi3", _ONE_KEY),
        _causal("qwen3"),
        _causal("smollm3"),
        _causal("stablelm", _ONE_KEY),
        _causal("starcoder2", _ONE_KEY),
    )
}

_T5GEMMA = {**_DECODER, "sliding_window": 8, "query_pre_attn_scalar": 16}


def write(name: str, folder: Path) -> Path:
    """A family's tiny model and tokenizer, as `save_pretrained` writes them."""
    family = FAMILIES[name]
    tokenizer = _TOKENIZERS[family.tokens]()
    settings = dict(family.settings)
    ids = {f"{one}_token_id": getattr(tokenizer, f"{one}_token_id", None) for one in ("pad", "bos", "eos", "sep")}
    settings |= {key: value for key, value in ids.items() if value is not None}
    if name != "canine":  # which takes any character
        settings["vocab_size"] = len(tokenizer)
    if name == "t5gemma":
        part = {**_T5GEMMA, "vocab_size": len(tokenizer), "pad_token_id": 0}
        settings = {"encoder": part, "decoder": part, "pad_token_id": 0}
    if name == "esm":
        settings["mask_token_id"] = tokenizer.mask_token_id
    with drawing_from(1):
        if name == "t5-encoder":
            model = T5EncoderModel(AutoConfig.for_model("t5", **settings))
        else:
            model = AutoModel.from_config(AutoConfig.for_model(name, **settings))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _words(specials: Mapping[str, str], single: str, pair: str, side: str = "right", names: str = "mask") -> Any:
    vocabulary = {word: number for number, word in enumerate([*specials.values(), *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=specials["unk"]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, vocabulary[word]) for word in specials.values()]
    made.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    inputs = [
        "input_ids",
        *(["token_type_ids"] if "types" in names else []),
        *(["attention_mask"] if "mask" in names else []),
    ]
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        padding_side=side,
        model_input_names=inputs,
        **{f"{name}_token": word for name, word in specials.items()},
    )


_PAIR = "[CLS] $A [SEP] $B:1 [SEP]:1"
_TOKENIZERS = {
    "bert": lambda: _words(_BERT, "[CLS] $A [SEP]", _PAIR, names="types mask"),
    "fnet": lambda: _words(_BERT, "[CLS] $A [SEP]", _PAIR, names="types"),
    "roberta": lambda: _words(_ROBERTA, "<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "xlnet": lambda: _words(_XLNET, "$A <sep> <cls>:2", "$A <sep> $B:1 <sep>:1 <cls>:2", "left", "types mask"),
    "t5": lambda: _words(_T5, "$A </s>", "$A </s> $B </s>"),
    "causal": lambda: _words(_CAUSAL, "<s> $A", "<s> $A $B"),
}


def table() -> str:
    """The documentation's table."""
    pooling = {"encoder": "`cls`, `mean`", "encoder-decoder": "`mean`", "causal": "`last`, `mean`"}
    rows = ["| family | kind | result | pooling | note |", "| --- | --- | --- | --- | --- |"]
    for name, family in FAMILIES.items():
        result = "refused" if family.refused else "works" + (", not with `num_hidden_layers`" if family.cut else "")
        advice = "" if family.refused else family.pooling or pooling[family.kind]
        rows.append(f"| `{name}` | {family.kind} | {result} | {advice} | {family.note} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
