#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: ten families of models for text, tiny and with random values, on a CPU.
#
# One would guess that config.hidden_size is the width of AutoModel's output and config.max_position_embeddings the
# longest input; that another first word changes what later tokens are; that a forward pass writes into a model's
# buffers, if at all, so that a view of one stays a view of it; and that of an encoder-decoder only what was saved is
# there after loading.
#
# None holds in general:
# - OPT projects its output, Reformer doubles it, EmbeddingGemma 2 has `embedding_dim`, FSMT gives logits of the
#   vocabulary as `last_hidden_state`.
# - RoBERTa and MPNet take `padding_idx + 1` tokens fewer than they have positions. XLNet says -1 and has no limit.
# - MRA computes its attention with code compiled for a GPU. Without it, attention gives zeros and no message: no
#   token sees another one, and the model trains like that.
# - I-BERT gives 48 buffers new memory in each training step.
# - AutoModel gives a T5 checkpoint that has an encoder alone a decoder of random values, another one at each load.
#
# Output:
#   opt: hidden_size 32, output 16
#   reformer: hidden_size 32, output 64
#   embedding_gemma2_text: hidden_size 32, output 48
#   fsmt: hidden_size 32, output 20
#   roberta: max_position_embeddings 34, takes 32
#   mpnet: max_position_embeddings 34, takes 32
#   xlnet: max_position_embeddings -1, takes 40
#   mra: another first token changes 0 of 63 later tokens (bert: 63)
#   ibert: 48 of 64 buffers in other memory after one training step
#   t5: two loads of one folder differ in 31 tensors, all of the decoder
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModel, T5Config, T5EncoderModel

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
GEMMA = dict(num_key_value_heads=1, head_dim=16, embedding_dim=48, hidden_size_per_layer_input=8, global_head_dim=16)
REFORMER = dict(
    hidden_size=32, attn_layers=["local", "lsh"], num_attention_heads=2, attention_head_size=16, feed_forward_size=64,
    max_position_embeddings=64, axial_pos_shape=[8, 8], axial_pos_embds_dim=[16, 16], num_buckets=2,
    local_attn_chunk_length=4, lsh_attn_chunk_length=4,
)
FSMT = dict(
    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=64, decoder_ffn_dim=64, langs=["en", "de"], src_vocab_size=20, tgt_vocab_size=20,
)
printed = []


def say(line):
    printed.append(line)
    print(line, flush=True)


def made(name, **settings):
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(name, **{"vocab_size": 20, "pad_token_id": 1, **settings}))


def ids(length):
    return (torch.arange(length) % 15 + 4)[None]


for name, settings in (
    ("opt", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 16}),
    ("reformer", REFORMER),
    ("embedding_gemma2_text", {**SMALL, **GEMMA}),
    ("fsmt", FSMT),
):
    model = made(name, **settings).eval()
    with torch.no_grad():
        width = model(input_ids=ids(8)).last_hidden_state.shape[-1]
    say(f"{name}: hidden_size {model.config.hidden_size}, output {width}")

for name, settings in (
    ("roberta", {**SMALL, "max_position_embeddings": 34}),
    ("mpnet", {**SMALL, "max_position_embeddings": 34}),
    ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
):
    model, longest = made(name, **settings).eval(), 0
    for length in range(1, 41):
        try:
            with torch.no_grad():
                model(input_ids=ids(length))
        except (IndexError, RuntimeError):
            break
        longest = length
    say(f"{name}: max_position_embeddings {model.config.max_position_embeddings}, takes {longest}")

changed = {}
for name in ("mra", "bert"):
    model, text = made(name, **{**SMALL, "max_position_embeddings": 128}).eval(), ids(64)
    other = torch.cat([text[:, 1:2], text[:, 1:]], dim=1)
    with torch.no_grad():
        one, two = (model(input_ids=t, attention_mask=torch.ones_like(t)).last_hidden_state for t in (text, other))
    changed[name] = int((one != two).any(dim=-1)[0, 1:].sum())
say(f"mra: another first token changes {changed['mra']} of 63 later tokens (bert: {changed['bert']})")

model = made("ibert", **SMALL).train()
ranges = {name: b.data_ptr() for name, b in model.named_buffers() if name.endswith((".x_min", ".x_max"))}
model(input_ids=ids(8))
now = dict(model.named_buffers())
moved = sum(now[name].data_ptr() != pointer for name, pointer in ranges.items())
say(f"ibert: {moved} of {len(ranges)} buffers in other memory after one training step")

settings = T5Config(vocab_size=20, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=3, num_heads=2)
T5EncoderModel(settings).save_pretrained(f"{sys.argv[1]}/t5")
first, second = (AutoModel.from_pretrained(f"{sys.argv[1]}/t5").state_dict() for _ in range(2))
differing = [name for name in first if not torch.equal(first[name], second[name])]
assert all(name.startswith("decoder.") for name in differing), differing
say(f"t5: two loads of one folder differ in {len(differing)} tensors, all of the decoder")

expected = """\
opt: hidden_size 32, output 16
reformer: hidden_size 32, output 64
embedding_gemma2_text: hidden_size 32, output 48
fsmt: hidden_size 32, output 20
roberta: max_position_embeddings 34, takes 32
mpnet: max_position_embeddings 34, takes 32
xlnet: max_position_embeddings -1, takes 40
mra: another first token changes 0 of 63 later tokens (bert: 63)
ibert: 48 of 64 buffers in other memory after one training step
t5: two loads of one folder differ in 31 tensors, all of the decoder""".splitlines()
assert printed == expected, "the table has changed"
PYTHON
