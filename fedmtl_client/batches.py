"""Composition and order of batches.

A batch is as wide as its longest row, and its padding is computed like tokens. Batches of rows of similar length take
about half the time on short texts.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from fedmtl_client.data import EncodedRows
from fedmtl_core.tasks.kinds import Row
from fedmtl_core.tasks.plan import TrainingPlan

_EVALUATION_SEED = 0
"""Seed of the random choices in an evaluation, such as masked tokens, so that every model gets the same inputs."""

Batches = DataLoader[Row]
"""Yields pairs of inputs, each `(batch, tokens)`, and targets; see `TaskKind.collator`."""


def to_train_on(rows: EncodedRows, plan: TrainingPlan, seed: int) -> Batches:
    """Return batches of all rows in random order; each pass has a new order.

    With `group_by_length`, each quarter of the order, or 50 batches of it, is sorted by length. Rows without lengths
    come in random order even then.

    Args:
        seed: seeds the orders and the random choices in the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    sampler = None
    if plan.group_by_length and rows.lengths is not None:
        sampler = LengthGroupedSampler(plan.batch_size, lengths=rows.lengths, generator=generator)
    return DataLoader(
        rows,
        batch_size=plan.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        collate_fn=rows.collator(seed),
        generator=generator,
    )


def to_evaluate_on(rows: EncodedRows, plan: TrainingPlan) -> Batches:
    """Return batches of all rows, the shortest first. Every evaluation has the same batches."""
    lengths = rows.lengths or [0] * len(rows)
    return DataLoader(
        rows,
        batch_size=2 * plan.batch_size,
        sampler=sorted(range(len(rows)), key=lengths.__getitem__),
        collate_fn=rows.collator(_EVALUATION_SEED),
        generator=torch.Generator(),  # otherwise DataLoader draws from the global generator, which others may use
    )
