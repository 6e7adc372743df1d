#!/usr/bin/env bash
# peft 0.21.2, torch 2.13.0: LoRA adapters in torch's own nn.TransformerEncoder, on a CPU.
#
# A frozen encoder (2 layers, width 32, no dropout) and a frozen head get adapters of rank 8 on "all-linear". Adam
# trains them for 300 steps to say which of two tokens is more frequent in a sequence. Loss and accuracy are then
# measured on 512 other sequences, always with the same weights.
#
# One would guess that without dropout train() and eval() give the same outputs, that merging the adapters changes
# nothing, and that torch leaves its fused path for inference where a parameter of the layer requires a gradient.
#
# In eval() the adapters do nothing at all, and nobody says so: the outputs are bit by bit those of the untrained model.
# - nn.TransformerEncoderLayer then hands its weights to one fused kernel and calls no submodule. It takes them from
#   `linear1.weight`. peft's layer has such an attribute: the weight of its frozen base. So both libraries are content.
#   (For forward hooks torch leaves the fused path. peft replaces modules and needs none.)
# - Layers that are trainable leave this path where gradients are enabled. Adapted layers take it there too: torch asks
#   whether one of its own weights requires a gradient, and with adapters none does. The loss then has no gradient.
# - With the fused path switched off, or once merged, the adapters work. So a federation that evaluates each round in
#   eval() sees no progress, and the merged model that it exports is better than any evaluation had shown.
# - In both modes: "all-linear" also adapts `out_proj`, whose module nn.MultiheadAttention never calls. Two of the six
#   adapters get no gradient.
#
# Output:
#   adapters on: layers.0.linear1 layers.0.linear2 layers.0.self_attn.out_proj and the same of layer 1
#   warnings while adding and training: 0; adapters without gradient: 2 of 6, out_proj
#                                        loss  accuracy
#   before training                     0.779      0.51
#   trained, train()                    0.012      1.00
#   trained, eval()                     0.779      0.51
#   trained, eval(), no_grad            0.779      0.51
#   trained, eval(), fused path off     0.012      1.00
#   trained, eval(), merged             0.012      1.00
#   loss in eval() requires a gradient: False; if all weights are trainable: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
echo "torch==2.13.0" > constraints.txt
venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt peft==0.21.2 transformers==5.23.0
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import copy
import warnings

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import cross_entropy

torch.set_num_threads(1)
WIDTH, LENGTH, TOKENS, STEPS, BATCH = 32, 15, 12, 300, 64


def task(count, seed):
    """Return sequences that have the two tokens a different number of times, and which is more frequent."""
    draws = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TOKENS, (3 * count, LENGTH), generator=draws)
    difference = (tokens == 0).sum(1) - (tokens == 1).sum(1)
    kept = difference.nonzero().squeeze(1)[:count]
    return tokens[kept], (difference[kept] > 0).long()


torch.manual_seed(0)
embedding, head = nn.Embedding(TOKENS, WIDTH).requires_grad_(False), nn.Linear(WIDTH, 2).requires_grad_(False)
layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
plain = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
tests, answers = task(512, seed=1)


def outputs(encoder, tokens):
    return head(encoder(embedding(tokens)).mean(1))


printed = []


def say(line):
    printed.append(line)
    print(line, flush=True)


def show(name, encoder):
    found = outputs(encoder, tests).detach()
    accuracy = float((found.argmax(1) == answers).float().mean())
    say(f"{name:34s}{float(cross_entropy(found, answers)):7.3f}{accuracy:10.2f}")
    return found


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapted = get_peft_model(copy.deepcopy(plain), config)
    modules = adapted.base_model.model.named_modules()
    adapters = {name: module for name, module in modules if isinstance(module, LoraLayer)}
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=1e-2)
    sequences, labels = task(STEPS * BATCH, seed=2)
    adapted.train()
    for first in range(0, STEPS * BATCH, BATCH):
        optimizer.zero_grad()
        cross_entropy(outputs(adapted, sequences[first : first + BATCH]), labels[first : first + BATCH]).backward()
        optimizer.step()
idle = [name for name, module in adapters.items() if module.lora_B["default"].weight.grad is None]
first_layer = " ".join(sorted(name for name in adapters if name.startswith("layers.0.")))
assert len(adapters) == 6
say(f"adapters on: {first_layer} and the same of layer 1")
(kind,) = {name.rsplit(".", 1)[1] for name in idle}
say(f"warnings while adding and training: {len(caught)}; adapters without gradient: {len(idle)} of 6, {kind}")
say("                                     loss  accuracy")
with torch.no_grad():
    before = show("before training", plain.eval())
training = show("trained, train()", adapted.train())
adapted.eval()
evaluating = show("trained, eval()", adapted)
with torch.no_grad():
    inference = show("trained, eval(), no_grad", adapted)
torch.backends.mha.set_fastpath_enabled(False)
unfused = show("trained, eval(), fused path off", adapted)
torch.backends.mha.set_fastpath_enabled(True)
merged = show("trained, eval(), merged", copy.deepcopy(adapted).merge_and_unload().eval())
with_adapters = outputs(adapted, tests).requires_grad
trainable = outputs(copy.deepcopy(plain).eval(), tests).requires_grad
say(f"loss in eval() requires a gradient: {with_adapters}; if all weights are trainable: {trainable}")

assert torch.equal(evaluating, before), "the adapters now do something in eval()"
assert torch.equal(inference, before), "the adapters now do something in eval() without gradients"
assert torch.allclose(unfused, training, atol=1e-4)
assert torch.allclose(merged, training, atol=1e-2)
assert (training - before).abs().max() > 1
assert float(cross_entropy(training, answers)) < 0.1 and float(cross_entropy(before, answers)) > 0.6
assert printed[1] == "warnings while adding and training: 0; adapters without gradient: 2 of 6, out_proj"
assert printed[-1] == "loss in eval() requires a gradient: False; if all weights are trainable: True"
PYTHON
