"""The model, and how clients train it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from fedmtl_core.config.section import UINT32, Section, require_reference
from fedmtl_core.tasks.plan import LocalOptimizer, Pooling

DEFAULT_MODEL = "prajjwal1/bert-tiny"


class ModelConfig(Section):
    """The shared encoder and what sits on it."""

    server_model: str = Field(
        DEFAULT_MODEL, description="Encoder: a hub name, a local folder, `python:PACKAGE/FOLDER`, or `builtin:toy`"
    )
    client_model: str | None = Field(
        None, description="Where clients take architecture and tokenizer from; `server_model` if not given"
    )
    num_hidden_layers: int | None = Field(None, ge=1, le=UINT32, description="Keep only the encoder's first layers")
    pooling: Pooling = Field(
        "cls",
        description="What a head sees: `cls`, the pooled first token; `mean`, the mean over all tokens; or `last`, the "
        "last token, for causal models and XLNet",
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before each head")
    random_init: bool = Field(False, description="Start from random values, where a folder has no weights")


class TrainingConfig(Section):
    """How the run goes, and what clients do in a round; it reaches them in the slice's header.

    What `transformers.TrainingArguments` has with the same meaning has its name. `local_epochs` isn't its
    `num_train_epochs`, which are those of a whole run.
    """

    num_rounds: int = Field(10, ge=1, le=UINT32, description="Rounds of training")
    local_epochs: int = Field(3, ge=1, le=UINT32, description="Passes over a client's rows in one round")
    head_epochs: int = Field(
        0,
        ge=0,
        le=UINT32,
        description="Passes over them before that with the head alone, which then stays as it is in `local_epochs` "
        "(FedRep); 0 to train all together",
    )
    optimizer: LocalOptimizer = Field(
        "adamw", description="What clients take their steps with: `adamw`, or `sgd`, plain and without momentum"
    )
    control_variates: bool = Field(
        False,
        description="SCAFFOLD: clients correct their gradients by how theirs have differed from all clients'; with "
        "`optimizer: sgd`",
    )
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of the clients' optimiser")
    train_sampling_strategy: Literal["random", "group_by_length"] = Field(
        "random",
        description="Which rows come in a batch: any, or those of like length, which on short texts takes half the "
        "time on a CPU",
    )
    per_device_train_batch_size: int = Field(32, ge=1, le=UINT32, description="Rows in one optimiser step")
    weight_decay: float = Field(0.01, ge=0, description="The clients' optimiser's weight decay")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="Share of the run's steps with a rising learning rate")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 for no clipping")
    proximal_mu: float = Field(
        0.0,
        ge=0,
        description="FedProx's mu: the loss has half the squared distance to the received model in it, times this",
    )
    max_length: int = Field(128, ge=8, le=UINT32, description="Longest input in tokens")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of everything random")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:N` or `mps`; a client's own setting")
    update: Literal["parameters", "delta"] = Field("parameters", description="What clients send back")
    trainer: str | None = Field(
        None, description="`module:Name`, a trainer of your own, a subclass of `fedmtl_client.trainer.Trainer`"
    )
    trainer_options: dict[str, object] | None = Field(None, description="What it is made with, besides")

    @field_validator("trainer")
    @classmethod
    def _names_a_class(cls, trainer: str | None) -> str | None:
        return trainer and require_reference(trainer)

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", device):
            raise ValueError("expected auto, cpu, cuda, cuda:N or mps")
        return device
