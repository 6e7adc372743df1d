"""Export of a task's adapters and head as a folder that `peft` loads onto the model that the run started from.

The names are those of the class of `transformers` for the task, which the reader loads first. Everything is checked
before the folder is in its place: `peft` loads the folder, and each tensor and the logits are compared.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedmtl_core.config import Config
from fedmtl_core.errors import FedMTLError, UserError
from fedmtl_core.model.adapters import adapted_layers, is_conv1d
from fedmtl_core.model.encoders import TOY_MODEL, weights_of
from fedmtl_core.model.modeling import MultiTaskModel
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.spec import TaskSpec
from fedmtl_server.export.conversion import have_same_logits, native_model, native_names
from fedmtl_server.export.peft_base import (
    INSTEAD,
    OPTION,
    differing_tensors,
    is_in,
    load_base,
    poolers,
    require_unique,
)

if TYPE_CHECKING:
    from peft import LoraConfig

_PREFIX = "base_model.model."
"""The prefix of `peft` on the names of the model that it wraps."""
_FACTORS = ("lora_A", "lora_B")
_NORMS = "lora_magnitude_vector"
_LISTS = ("target_modules", "modules_to_save", "exclude_modules")
"""The settings that `peft` keeps as sets, whose order differs from run to run."""


@dataclass(frozen=True)
class PeftFolder:
    """A task's adapters and head for `PeftModel.from_pretrained`."""

    architecture: str
    """The class of `transformers` that the adapters are loaded onto."""
    options: Mapping[str, int]
    """The arguments that `from_pretrained` of that class needs for this task."""
    is_tried: bool
    """Whether the weights of `model.server_model` are on this machine, so that the folder is tried on them."""
    config: LoraConfig
    tensors: Mapping[str, Tensor]
    """The tensors by their names in `adapter_model.safetensors`."""
    base: PreTrainedModel
    """The model that the reader loads first."""

    def write(self, folder: Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`. The same values make the same bytes."""
        from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

        self.config.save_pretrained(str(folder))
        path = folder / CONFIG_NAME
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings |= {name: sorted(settings[name]) for name in _LISTS if settings.get(name)}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(dict(self.tensors), folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})

    def try_on_base(
        self, folder: Path, module: MultiTaskModel, spec: TaskSpec, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Load a written folder onto the base, which changes it, and compare tensors and logits.

        Raises:
            FedMTLError: a tensor wasn't loaded, or the logits differ from the module's.
        """
        from peft import PeftModel, get_peft_model_state_dict

        with drawing_from(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they are about is compared below
            loaded = PeftModel.from_pretrained(self.base, str(folder)).eval()
        found = get_peft_model_state_dict(loaded, save_embedding_layers=False)
        names = dict.fromkeys([*self.tensors, *found])
        wrong = [
            name
            for name in names
            if name not in self.tensors or name not in found or not torch.equal(self.tensors[name], found[name])
        ]
        if wrong:
            raise FedMTLError(f"{spec.name}: peft doesn't load {wrong[0]} as it was written; nothing is written")
        if not have_same_logits(module, spec, loaded, tokenizer):
            raise FedMTLError(
                f"{spec.name}: the base with these adapters doesn't compute the same as the run's model; nothing is "
                "written"
            )


def peft_folder(
    module: MultiTaskModel, spec: TaskSpec, config: Config, tokenizer: PreTrainedTokenizerBase
) -> PeftFolder:
    """Return a task's adapters and head under the names of a class of `transformers`.

    Args:
        module: the task's model, in evaluation mode.
        spec: the task.
        config: the configuration of the run.
        tokenizer: the model's tokenizer.

    Raises:
        UserError: the run has no adapters, the model that it started from isn't available elsewhere, or no class of
            `transformers` computes the task's model. The message says what to do.
        ModelUnavailableError: the weights of `model.server_model` are on this machine, but can't be loaded.
    """
    _require_exportable(module, spec, config)
    merged = module.merged().eval()
    native = native_model(merged, spec, config)
    if native is None or not have_same_logits(module, spec, native, tokenizer):
        raise UserError(
            f"{OPTION}: {spec.name}: no class of transformers computes the same with {type(module.encoder).__name__} "
            f"and a linear head, so there is nothing to load the adapters onto; {INSTEAD}"
        )
    names = native_names(merged, spec.name, native)
    assert names is not None  # as native_model found
    frozen = {name: tensor for tensors in module.base().values() for name, tensor in tensors.items()}
    ours = native.state_dict() | {name: frozen[own_name] for name, own_name in names.items() if own_name in frozen}
    options = _options(spec, config)
    saved = {name.partition(".")[0] for name in ours if not name.startswith(f"{native.base_model_prefix}.")}
    base, is_tried = native, weights_of(config.model.server_model)[1]
    targets = _targets(module, names)
    if is_tried:
        base, missing = load_base(config.model.server_model, options)
        saved |= poolers(differing_tensors(base, ours, saved), missing, config.model.server_model)
    require_unique(base, saved)
    kept = {target: layer for target, layer in targets.items() if not is_in(target, saved)}
    tensors = _factors(module, kept) | {
        _PREFIX + name: tensor for name, tensor in native.state_dict().items() if is_in(name, saved)
    }
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}  # native may become the base
    if not is_tried:
        native.load_state_dict(ours)
    return PeftFolder(
        architecture=type(native).__name__,
        options=options,
        is_tried=is_tried,
        config=_lora_config(module, list(kept), saved, config),
        tensors=tensors,
        base=base,
    )


def _require_exportable(module: MultiTaskModel, spec: TaskSpec, config: Config) -> None:
    """Check what the configuration tells about the export of adapters.

    Raises:
        UserError: the adapters can't be exported on their own.
    """
    section, source = config.model, config.model.server_model
    if module.adapters is None or section.adapters is None:
        raise UserError(f"{OPTION}: the run has no adapters (`model.adapters`); export without {OPTION}")
    reason = None
    if section.adapters.aggregation == "stack":
        reason = (
            "`aggregation: stack` adds the adapters of each round to the weights, so the model isn't the base with one "
            "set of adapters"
        )
    elif spec.type == "masked_lm":
        reason = f"{spec.name} is a masked_lm, whose output layer is tied to the word embeddings"
    elif section.pooling != "cls":
        reason = f"no class of transformers computes a head with `model.pooling: {section.pooling}`"
    elif source == TOY_MODEL or section.random_init:
        reason = (
            "the weights beside the adapters were drawn at random for this run, so no reader has them"
            if section.random_init
            else f"{source} is a part of FedMTL, so `transformers` can't load it"
        )
    if reason is not None:
        raise UserError(f"{OPTION}: {reason}; {INSTEAD}")


def _options(spec: TaskSpec, config: Config) -> dict[str, int]:
    options = {"num_labels": spec.num_outputs}
    if config.model.num_hidden_layers is not None:
        options["num_hidden_layers"] = config.model.num_hidden_layers
    return options


def _targets(module: MultiTaskModel, names: Mapping[str, str]) -> dict[str, str]:
    """Return the adapted layers: the encoder's name of each layer by its name in the class of `transformers`."""
    native = {own: name for name, own in names.items()}
    return {native[f"encoder.{name}.weight"].removesuffix(".weight"): name for name in adapted_layers(module.encoder)}


def _factors(module: MultiTaskModel, targets: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the factors of some adapted layers by their names in the file."""
    state, tensors = module.encoder.state_dict(), {}
    for target, layer in targets.items():
        for factor in _FACTORS:
            tensors[f"{_PREFIX}{target}.{factor}.weight"] = state[f"{layer}.{factor}.default.weight"]
        if (norms := f"{layer}.{_NORMS}.default.weight") in state:
            tensors[f"{_PREFIX}{target}.{_NORMS}"] = state[norms]
    return tensors


def _lora_config(module: MultiTaskModel, targets: Sequence[str], saved: Iterable[str], config: Config) -> LoraConfig:
    from peft import LoraConfig, TaskType

    settings, source = module.adapters, config.model.server_model
    assert settings is not None
    layers = adapted_layers(module.encoder).values()
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        base_model_name_or_path=None if source.startswith("python:") else source,
        inference_mode=True,
        r=settings.rank,
        lora_alpha=int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        use_rslora=settings.kind == "rslora",
        use_dora=settings.kind == "dora",
        fan_in_fan_out=all(is_conv1d(layer.get_base_layer()) for layer in layers),
        target_modules=sorted(targets),
        modules_to_save=sorted(saved),
    )
