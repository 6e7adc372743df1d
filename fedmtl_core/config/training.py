"""Settings of the model and of the clients' training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedmtl_core.config.adapters import AdaptersConfig
from fedmtl_core.config.section import (
    EVERY_PROGRAM,
    SERVER_AND_CLIENT,
    SERVER_AND_LAUNCHER,
    UINT32,
    ReadBy,
    Section,
    require_reference,
)
from fedmtl_core.tasks.plan import LocalOptimizer, Pooling
from fedmtl_core.tasks.spec import HeadInit

DEFAULT_MODEL = "prajjwal1/bert-tiny"


class ModelConfig(Section):
    """The encoder that tasks share, and the input of the heads."""

    read_by = ("server",)

    server_model: Annotated[str, SERVER_AND_CLIENT] = Field(
        DEFAULT_MODEL,
        description="Encoder: a name on the Hugging Face Hub, a local folder, `python:PACKAGE/FOLDER`, or "
        "`builtin:toy`.",
    )
    client_model: Annotated[str | None, SERVER_AND_CLIENT] = Field(
        None,
        description="Source of the encoder's architecture and tokenizer for clients, in the form of "
        "`model.server_model`. If not given, `model.server_model` applies.",
    )
    num_hidden_layers: int | None = Field(
        None, ge=1, le=UINT32, description="Number of first encoder layers to keep. If not given, all layers are kept."
    )
    pooling: Pooling = Field(
        "cls",
        description="Input of a head: `cls`, the pooled first token; `mean`, the mean over all tokens; or `last`, the "
        "last token, for causal models and XLNet.",
    )
    head_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout probability before each head, from 0 to below 1.")
    head_init: HeadInit | None = Field(
        None,
        description="Random initial values of the heads. With `task`, each task's head draws values of its own. With "
        "`form`, tasks of the same type, with as many texts and labels, draw the same values, so that their updates to "
        "the encoder are more alike. If not given, `form` applies with `sharing.adaptive.policy: validated`, unless "
        "clients keep their heads; otherwise `task`.",
    )
    random_init: Annotated[bool, SERVER_AND_CLIENT] = Field(
        False,
        description="Whether the encoder starts from random values; weights in its folder are then ignored. Required "
        "for a folder without weights.",
    )
    from_run: str | None = Field(
        None,
        min_length=1,
        description="Run whose encoder and heads a new run starts from: its folder, or its name or id in "
        "`server.runs_dir`. `@` and a round's number, `best` or `last` may follow; without them, `last` applies. "
        "With `adapters`, that run must have had the same ones. If not given, the encoder's own weights and new heads "
        "are used.",
    )
    adapters: AdaptersConfig | None = Field(
        None,
        description="Low-rank adapters, which clients train instead of the encoder's own parameters. `adapters: {}` "
        "takes the defaults. If not given, clients train all parameters.",
    )

    @property
    def needs_weights(self) -> bool:
        """Whether a new run needs the encoder's pretrained weights. From a run without adapters come all values."""
        return not self.random_init and (self.from_run is None or self.adapters is not None)


class TrainingConfig(Section):
    """Length of the run, and each client's training in a round. The server sends these settings in the slice's header.

    Keys with a counterpart of the same meaning in `transformers.TrainingArguments` have its name. `local_epochs` counts
    passes in a round, `num_train_epochs` in a whole run.
    """

    read_by = ("server",)

    num_rounds: Annotated[int, SERVER_AND_LAUNCHER] = Field(
        10,
        ge=1,
        le=UINT32,
        description="Number of training rounds in the run. `sharing.schedule[].num_rounds` of the last entry replaces "
        "the default.",
    )
    local_epochs: int = Field(
        3, ge=1, le=UINT32, description="Number of passes over a client's training rows in one round."
    )
    head_epochs: int = Field(
        0,
        ge=0,
        le=UINT32,
        description="Number of passes over the training rows that train the head alone, before `training.local_epochs` "
        "with the head frozen (FedRep). With 0 the head and the encoder train together.",
    )
    optimizer: LocalOptimizer = Field(
        "adamw", description="Optimizer of the clients: `adamw`, or `sgd` (plain, without momentum)."
    )
    control_variates: bool = Field(
        False,
        description="Whether clients correct their gradients with SCAFFOLD's control variates, for the difference "
        "between their own gradients and those of all clients. Requires `training.optimizer: sgd`.",
    )
    learning_rate: float = Field(2e-5, gt=0, description="Peak learning rate of the clients' optimizer, above 0.")
    train_sampling_strategy: Literal["random", "group_by_length"] = Field(
        "random",
        description="Sampling of training batches: `random`, or `group_by_length` for texts of similar length, which "
        "takes about half the time with short texts on a CPU.",
    )
    per_device_train_batch_size: int = Field(32, ge=1, le=UINT32, description="Number of rows in one optimizer step.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of the clients' optimizer; 0 turns it off.")
    warmup_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of a learning-rate schedule's optimizer steps in which the rate rises to its peak. The "
        "schedule spans the run unless `sharing.schedule[].restart_schedule` divides it.",
    )
    max_grad_norm: float = Field(
        1.0, ge=0, description="Norm to which clients clip their gradients; 0 turns clipping off."
    )
    proximal_mu: float = Field(
        0.0,
        ge=0,
        description="Parameter mu of FedProx: the loss includes mu/2 times the squared distance to the received model. "
        "With 0 the term is absent.",
    )
    max_length: int = Field(
        128, ge=8, le=UINT32, description="Longest input in tokens, at least 8; longer texts are cut."
    )
    seed: Annotated[int, EVERY_PROGRAM] = Field(
        42, ge=0, lt=2**63, description="Seed of all random choices in the run."
    )
    device: Annotated[str, ReadBy(("client",))] = Field(
        "auto",
        description="PyTorch device of a client: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`. Each client uses the value "
        "in its own file.",
    )
    update: Literal["parameters", "delta"] = Field(
        "parameters",
        description="Content of an update: the trained `parameters`, or the `delta` to the received model. "
        "Asynchronous rounds and control variates always use `delta`.",
    )
    trainer: Annotated[str | None, ReadBy(("client",))] = Field(
        None,
        description="Your own trainer as `module:Name`, a subclass of `fedmtl_client.trainer.Trainer`. If not given, "
        "FedMTL's own trainer runs.",
    )
    trainer_options: Annotated[dict[str, object] | None, ReadBy(("client",))] = Field(
        None,
        description="Keyword arguments for the class that `training.trainer` names. If not given, the class gets none.",
    )

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
