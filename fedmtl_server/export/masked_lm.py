"""Conversion of masked-language models to classes of `transformers`, which name BERT's output layer differently."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.kinds import word_embeddings

_BERT = {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"}
_ROBERTA = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "bert": _BERT | {"bias": "cls.predictions.bias", "decoder": "cls.predictions.decoder"},
    "roberta": _ROBERTA | {"bias": "lm_head.bias", "decoder": "lm_head.decoder"},
    "xlm-roberta": _ROBERTA | {"bias": "lm_head.bias", "decoder": "lm_head.decoder"},
    "distilbert": {
        "dense": "vocab_transform",
        "norm": "vocab_layer_norm",
        "bias": "vocab_projector.bias",
        "decoder": "vocab_projector",
    },
}
"""By encoder type, the names of the head's parts; `decoder` is the layer that is tied to the word embeddings."""


def masked_lm(module: MultiTaskModel, task: str) -> PreTrainedModel | None:
    """Return the task's model as a class of `transformers`; None if no class with these parameters is known."""
    settings = copy.deepcopy(getattr(module.encoder, "config", None))
    names = _NAMES.get(getattr(settings, "model_type", ""))
    if settings is None or names is None:
        return None
    settings.tie_word_embeddings = True
    with drawing_from(0):
        model = AutoModelForMaskedLM.from_config(settings)
    state = _state(module, task, model, names)
    if state.keys() != model.state_dict().keys():
        return None
    model.load_state_dict(state)
    return model.eval()


def _state(module: MultiTaskModel, task: str, model: PreTrainedModel, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the parameters under the class's names, without the encoder's pooler, which the class doesn't have."""
    wanted = model.state_dict().keys()
    encoder = {f"{model.base_model_prefix}.{name}": value for name, value in module.encoder.state_dict().items()}
    state = {name: value for name, value in encoder.items() if ".pooler." not in name}
    head, words = module.heads[task].state_dict(), word_embeddings(module.encoder)
    assert words is not None
    for name, value in head.items():
        part, dot, rest = name.partition(".")
        state[names[part] + dot + rest] = value
    tied = {f"{names['decoder']}.weight": words.detach(), f"{names['decoder']}.bias": head["bias"]}
    return state | {name: value for name, value in tied.items() if name in wanted}
