"""Which rows come in a batch together, and in what order.

A batch is as wide as its longest row, and what it is filled up with is computed like everything else. Rows of like
length together cost about half of that on short texts.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from fedmtl_client.data import EncodedRows
from fedmtl_core.tasks.plan import TrainingPlan

_EVALUATION_SEED = 0
"""Of what is random in an evaluation, such as which tokens are masked: every model is asked the same."""

Batches = DataLoader[dict[str, object]]
"""Gives pairs of inputs, each `(batch, tokens)`, and targets; see `TaskKind.collator`."""


def to_train_on(rows: EncodedRows, plan: TrainingPlan, seed: int) -> Batches:
    """All rows in random order, in another one each time that it is gone through.

    With `group_by_length` each quarter of that order, or 50 batches of it, is sorted by length. Rows that have none
    come in random order all the same.

    Args:
        seed: of the orders, and of what is random in the batches.
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
    """All rows, the shortest first: the same batches in every evaluation."""
    lengths = rows.lengths or [0] * len(rows)
    return DataLoader(
        rows,
        batch_size=2 * plan.batch_size,
        sampler=sorted(range(len(rows)), key=lengths.__getitem__),
        collate_fn=rows.collator(_EVALUATION_SEED),
        generator=torch.Generator(),  # without one it takes a number from the global one, which others may draw from
    )
