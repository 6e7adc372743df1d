"""Builds the models that receive slices."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from fedmtl_core.logs import Logger
from fedmtl_core.model import encoder_check
from fedmtl_core.model.adapters import require_peft
from fedmtl_core.model.encoder_check import Use
from fedmtl_core.model.modeling import HeadSettings, MultiTaskModel, load_encoder
from fedmtl_core.model.pretrained import LoadedWeights
from fedmtl_core.model.scopes import SHARED, scope_of
from fedmtl_core.tasks.plan import TrainingPlan
from fedmtl_core.tasks.spec import TaskSpec


class ModelFactory:
    """Builds a client's models, and checks each encoder before its first use.

    Args:
        specs: all tasks of the client.
        random_init: whether local encoder layers, and the base of adapters, start from random values.
        fetch_base: whether the base of adapters is downloaded, so that the encoder's weights aren't loaded for it.
        log: receives the warnings.
    """

    def __init__(self, specs: Sequence[TaskSpec], *, random_init: bool, fetch_base: bool, log: Logger):
        self._specs = specs
        self._random_init = random_init
        self._fetch_base = fetch_base
        self._log = log
        self._checked: set[tuple[Use, int]] = set()

    def new(
        self, spec: TaskSpec, source: str, plan: TrainingPlan, tokenizer: PreTrainedTokenizerBase
    ) -> MultiTaskModel:
        """Return a new model for one task. Initial values matter only for parameters that no slice has.

        Args:
            source: name or folder of encoder and tokenizer.

        Raises:
            ModelUnavailableError: the encoder can't be loaded.
            ConfigError: the encoder can't be trained as the plan asks, or `peft` is missing for the plan's adapters.
        """
        if plan.adapters is not None:
            require_peft()
        loaded: list[LoadedWeights] = []
        encoder, hidden_size = load_encoder(
            source,
            weights=self.has_own_base(plan)
            or (plan.adapters is None and any(scope_of(name) == SHARED for name in plan.local)),
            num_hidden_layers=plan.num_hidden_layers or None,
            random_init=self._random_init,
            seed=plan.seed,
            on_weights=loaded.append,
        )
        use = Use.by_tasks(source, plan.max_length, plan.pooling, self._specs)
        if (use, plan.num_hidden_layers) not in self._checked:
            encoder_check.check(encoder, tokenizer, use, loaded[0] if loaded else None).settle(self._log)
            self._checked.add((use, plan.num_hidden_layers))
        return MultiTaskModel(
            encoder,
            [spec],
            hidden_size=hidden_size,
            pooling=plan.pooling,
            heads=HeadSettings(plan.head_dropout, plan.seed),
            adapters=plan.adapters,
        )

    def has_own_base(self, plan: TrainingPlan) -> bool:
        """Return whether the base of a plan's adapters comes from the client's own files."""
        return plan.adapters is not None and not self._fetch_base
