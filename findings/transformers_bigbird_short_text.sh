#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: BigBirdModel in evaluation mode.
#
# One would guess that a model in evaluation mode is a function of its input: the same long text gives the same hidden
# states, whatever came before it.
#
# BigBird's sparse attention needs more than 5 + 2 * num_random_blocks blocks of tokens. A shorter text changes the
# attention of every layer to full attention, and it stays so for all texts after it. A log line says that the type is
# changed for this length, and nothing changes it back; `config.attention_type` still says `block_sparse`. What a text
# of 4000 tokens gives, and how much memory it takes, depends on whether a short text has ever been through the model.
#
# Output:
#   same long text twice:            largest difference 0.0
#   a short text in between:         largest difference 3.02
#   attention now: original_full; by its configuration: block_sparse
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import BigBirdConfig, BigBirdModel

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
settings = BigBirdConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, block_size=4,
    num_random_blocks=1, max_position_embeddings=256, initializer_range=0.5, sep_token_id=2,
)
model = BigBirdModel(settings).eval()
long = torch.randint(3, 50, (1, 128))
with torch.no_grad():
    first, again = model(long).last_hidden_state, model(long).last_hidden_state
    model(long[:, :10])
    after = model(long).last_hidden_state
same, changed = float((first - again).abs().max()), float((first - after).abs().max())
print(f"same long text twice:            largest difference {same}")
print(f"a short text in between:         largest difference {changed:.2f}")
print(f"attention now: {model.attention_type}; by its configuration: {model.config.attention_type}")
assert same == 0.0
assert changed > 0.1
assert (model.attention_type, model.config.attention_type) == ("original_full", "block_sparse")
PYTHON
