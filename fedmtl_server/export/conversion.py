"""Conversion of a task's model to a class of `transformers` or `modeling_fedmtl.py`, and comparison of the logits."""

from __future__ import annotations

import copy

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedmtl_core.config import Config
from fedmtl_core.errors import UserError
from fedmtl_core.model.encoders import is_of_encoder_decoder
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.export.modeling_fedmtl import FedMTLConfig, FedMTLForSequenceClassification

TOLERANCE = 1e-5
"""The largest difference between equal logits: absolute, or relative to the largest logit if that exceeds 1."""

_PROBES = (("a", "b"), ("the film was great", "the film was not dull at all, was it?"), ("one two three", "four"))
"""Texts on which logits are compared, as single texts or as pairs."""


def native_model(module: MultiTaskModel, spec: TaskSpec, config: Config) -> PreTrainedModel | None:
    """Return the model as the class of `transformers` with the same parameters; None if no class has them.

    Args:
        module: the task's model, without adapters.
        spec: the task.
        config: the configuration of the run.
    """
    if config.model.pooling != "cls":
        return None  # no class of transformers pools differently
    settings = copy.deepcopy(module.encoder.config)
    _describe(settings, spec, config)
    try:
        with drawing_from(0):
            model = AutoModelForSequenceClassification.from_config(settings)
    except (ValueError, AttributeError):  # the encoder has no class for classification
        return None
    names = native_names(module, spec.name, model)
    if names is None:
        return None
    state = module.state_dict()
    model.load_state_dict({name: state[own] for name, own in names.items()})
    return model.eval()


def native_names(module: MultiTaskModel, task: str, model: PreTrainedModel) -> dict[str, str] | None:
    """Return the module's name of each tensor of a class of `transformers`; None if the class has other tensors.

    BERT and similar models put a linear layer on the encoder's pooler. RoBERTa and similar models have no pooler; their
    classifier contains the same two layers.
    """
    encoder = {f"{model.base_model_prefix}.{name}": f"encoder.{name}" for name in module.encoder.state_dict()}
    head = {name: f"heads.{task}.{name}" for name in module.heads[task].state_dict()}
    pooled = encoder | {f"classifier.{name}": own for name, own in head.items()}
    if pooled.keys() == model.state_dict().keys():
        return pooled
    pooler = f"{model.base_model_prefix}.pooler.dense."
    moved = {
        f"classifier.dense.{name.removeprefix(pooler)}" if name.startswith(pooler) else name: own
        for name, own in encoder.items()
    }
    moved |= {f"classifier.out_proj.{name}": own for name, own in head.items()}
    return moved if moved.keys() == model.state_dict().keys() else None


def fedmtl_model(module: MultiTaskModel, spec: TaskSpec, config: Config) -> PreTrainedModel:
    """Return the model as the class in `modeling_fedmtl.py`; `save_pretrained` copies that file into the folder.

    Args:
        module: the task's model, without adapters.
        spec: the task.
        config: the configuration of the run.
    """
    settings = FedMTLConfig(
        encoder=module.encoder.config.to_dict(),  # type: ignore[operator, union-attr]
        of_encoder_decoder=is_of_encoder_decoder(module.encoder),
        hidden_size=module.hidden_size,
        pooling=config.model.pooling,
    )
    _describe(settings, spec, config)
    with drawing_from(0):
        model = FedMTLForSequenceClassification(settings)
    state = {f"encoder.{name}": value for name, value in module.encoder.state_dict().items()}
    model.load_state_dict(state | {f"classifier.{k}": v for k, v in module.heads[spec.name].state_dict().items()})
    FedMTLConfig.register_for_auto_class()  # have save_pretrained copy the file
    FedMTLForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    return model.eval()


def _describe(settings: PretrainedConfig, spec: TaskSpec, config: Config) -> None:
    """Write a task's outputs and labels into a configuration of `transformers`."""
    settings.num_labels = spec.num_outputs
    if spec.labels:
        settings.id2label = dict(enumerate(spec.labels))
        settings.label2id = {label: number for number, label in enumerate(spec.labels)}
    settings.problem_type = "single_label_classification" if spec.labels else "regression"
    settings.classifier_dropout = config.model.head_dropout


@torch.inference_mode()
def have_same_logits(
    module: MultiTaskModel, spec: TaskSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Return whether two models compute the same logits, up to rounding. Logits of padding tokens aren't compared.

    The compared inputs are texts or pairs of texts, like the task's, because not every encoder accepts both.

    Raises:
        UserError: the run's own model computes NaN or infinite logits.
    """
    columns = [list(texts) for texts in zip(*_PROBES, strict=True)][: len(spec.text_columns)]
    for texts in (columns, [column[1:2] for column in columns]):  # all in one batch, then one alone
        inputs = tokenizer(*texts, padding=True, truncation=True, return_tensors="pt")
        ours, theirs = module(spec.name, inputs), model(**inputs).logits
        theirs = theirs[inputs["attention_mask"].bool()] if theirs.ndim == 3 else theirs
        if not ours.isfinite().all():
            raise UserError(
                f"--task: {spec.name}: the model computes logits that aren't finite, although its parameters are: the "
                "model is damaged; export an earlier round"
            )
        bound = TOLERANCE * max(1.0, float(ours.abs().max()))
        if ours.shape != theirs.shape or not float((ours - theirs).abs().max()) <= bound:  # NaN fails too
            return False
    return True
