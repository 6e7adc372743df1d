"""Trials: a client evaluates variants of the model that it received, beside that model on the same rows.

One variant at a time is in memory. The model's own tensors are put aside meanwhile and stay untouched, so training
starts from exactly what was received. If a variant is better by the margin that the server gives, its tensors are kept,
and training starts from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fedmtl_client.overlay import overlaid, tensors_of
from fedmtl_client.slices import Slice, SliceVariant
from fedmtl_client.variant_start import Start
from fedmtl_core.errors import DivergedError, RequestError, StaleRoundError, UnavailableError, WrongRunError
from fedmtl_core.identifiers import shown
from fedmtl_core.logs import get_logger
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.tasks.evaluation import Evaluation
from fedmtl_core.tasks.paired import PairedLoss, VariantEvaluation

GetVariant = Callable[[str], SliceVariant]
"""Downloads a variant of the slice by name, or raises a `RequestError`."""

_HOPELESS = (StaleRoundError, WrongRunError, UnavailableError)
"""Errors of a download after which no other variant can be downloaded either."""


class Trials:
    """The trials of one round.

    A trial that fails for any reason is skipped, with a line in the log. It never costs the round.

    Args:
        model: the model that the slice was loaded into.
        slice_: the slice.
        evaluate: evaluates the model.
        get_variant: downloads a variant.
        should_stop: called before each variant; True ends the trials.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        slice_: Slice,
        evaluate: Callable[[], Evaluation],
        get_variant: GetVariant,
        should_stop: Callable[[], bool],
    ):
        self._model = model
        self._slice = slice_
        self._evaluate = evaluate
        self._get_variant = get_variant
        self._should_stop = should_stop
        self._log = get_logger()
        self._reference: float | None = 0.0
        self.start: Start | None = None
        """The variant from which training starts, after `run`; None to start from the slice."""

    def run(self, received: Evaluation) -> tuple[VariantEvaluation, ...]:
        """Return the evaluations of the slice's variants, without those that couldn't be evaluated.

        Args:
            received: the evaluation of the slice itself.
        """
        done: list[VariantEvaluation] = []
        for name in self._slice.variants:
            if self._should_stop():
                self._note_skipped(name, "the round has closed")
                break
            try:
                result = self._try(name, received)
            except _HOPELESS as error:
                self._note_skipped(name, str(error))
                break
            except Exception as error:  # a variant may need more memory, or break a custom trainer
                self._note_skipped(name, str(error) if isinstance(error, RequestError) else repr(error))
                continue
            if result is None:
                self._note_skipped(name, "the trainer reports no loss")
            else:
                done.append(result)
        return tuple(done)

    def _try(self, name: str, received: Evaluation) -> VariantEvaluation | None:
        """Return the evaluation of a variant; None if there is no loss to compare.

        Raises:
            RequestError: the variant can't be downloaded, or doesn't fit the slice.
        """
        variant = self._get_variant(name)
        tensors = tensors_of(variant, self._slice)
        try:
            with _unchanged_generator(), overlaid(self._model, tensors):
                measured = self._evaluate()
            result = compared(name, measured, received)
        except DivergedError:
            result = VariantEvaluation(name, None)
        if result is not None:
            self._note_evaluated(result, variant.bytes_received)
            self._consider(result, tensors)
        return result

    def _consider(self, result: VariantEvaluation, tensors: Mapping[str, Tensor]) -> None:
        """Keep a variant's tensors if it is the best so far of those from which training may start.

        A variant without a margin is a reference: a start must be better than the slice and than the references that
        came before it. There is no start after a reference without a loss to compare.
        """
        margin, paired = self._slice.variants[result.name], result.paired
        if not margin:
            self._refer_to(paired)
        if not margin or paired is None or not paired.standard_error or self._reference is None:
            return
        is_better = paired.difference <= self._reference - margin * paired.standard_error
        if is_better and (self.start is None or paired.difference < self.start.difference):
            copies = {name: tensor.clone() for name, tensor in tensors.items()}
            self.start = Start(result.name, paired.difference, copies)

    def _refer_to(self, paired: PairedLoss | None) -> None:
        """Take a variant without a margin, None if it has no loss, into account for later starts."""
        if paired is None or self._reference is None:
            self._reference = None
        else:
            self._reference = min(self._reference, paired.difference)

    def _note_evaluated(self, result: VariantEvaluation, num_bytes: int) -> None:
        paired = result.paired
        facts = (
            {"loss": math.inf}
            if paired is None
            else {
                "loss": paired.loss,
                "loss_difference": paired.difference,
                **({} if paired.standard_error is None else {"standard_error": paired.standard_error}),
                "rows": paired.num_examples,
            }
        )
        self._log.info(
            "variant.evaluated",
            task=self._slice.task,
            round=self._slice.round,
            variant=result.name,
            **facts,
            bytes_received=num_bytes,
        )

    def _note_skipped(self, name: str, reason: str) -> None:
        if not self._slice.variants[name]:
            self._refer_to(None)
        facts = {"task": self._slice.task, "round": self._slice.round, "variant": shown(name)}
        self._log.warning("variant.skipped", **facts, reason=reason)


def compared(name: str, variant: Evaluation, received: Evaluation) -> VariantEvaluation | None:
    """Return the paired evaluation of a variant and the received model; None if one of them has no loss.

    A custom trainer may report no losses of single rows. The mean plain losses are then compared, and their difference
    has no standard error.
    """
    if "loss" in variant.undefined:
        return VariantEvaluation(name, None)
    evaluation = replace(variant, losses=None)
    mine, theirs = variant.losses, received.losses
    if mine is not None and theirs is not None and len(mine) == len(theirs) > 0:
        return VariantEvaluation(name, PairedLoss.of(mine, theirs), evaluation)
    if "loss" not in variant or "loss" not in received:
        return None
    loss = variant["loss"]
    return VariantEvaluation(name, PairedLoss(received.num_examples, loss, loss - received["loss"]), evaluation)


@contextmanager
def _unchanged_generator() -> Iterator[None]:
    """Restore PyTorch's global random generator afterwards, from which a custom trainer's evaluation may draw."""
    with torch.random.fork_rng(devices=[]):
        yield
