"""Low-rank adapters in an encoder: `peft` injects them; their names and first values are FedMTL's own.

`peft` wraps a target layer, so that the layer's weight and the factors get names such as `query.base_layer.weight` and
`query.lora_A.default.weight`. Components have neither `base_layer` nor `default` in their names: the base has the names
of the encoder without adapters, and factors are named as in the files that `peft` saves.
"""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedmtl_core.errors import ConfigError
from fedmtl_core.identifiers import name_some, quoted
from fedmtl_core.model.layers import layers_of
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.adapters import AdapterSettings, Factor

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_ADAPTER = "default"
_FACTORS: dict[str, Factor] = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "b"}
_KEY = "model.adapters"


def inject(encoder: nn.Module, settings: AdapterSettings) -> None:
    """Add adapters to an encoder in place. All its own parameters are frozen, and its outputs stay the same.

    The first values of A depend only on the seed and the layer's name. B is 0, and DoRA's norms are those of the
    encoder's weights. The global random state doesn't change.

    Raises:
        ConfigError: the encoder has no layer of a target's name, or has adapters already; or `peft` isn't installed.
    """
    require_peft()
    import peft

    if hasattr(encoder, "peft_config") or any("lora_" in name for name, _ in encoder.named_parameters()):
        raise ConfigError(f"{_KEY}: the encoder has adapters already")
    targets = target_layers(encoder, settings.targets)
    if settings.is_stacked and (turned := [name for name in targets if is_conv1d(encoder.get_submodule(name))]):
        raise ConfigError(
            f"{_KEY}.aggregation: `stack` adds adapters to weights of (outputs, inputs), and {name_some(turned, 2)} "
            "have (inputs, outputs), as in GPT-2; use another aggregation"
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # only the annotation asks for an integer
        target_modules=list(targets),
        lora_dropout=settings.dropout,
        use_rslora=settings.kind == "rslora",
        use_dora=settings.kind == "dora",
    )
    is_training = encoder.training
    with drawing_from(settings.seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft sets it by the layer's class
        peft.inject_adapter_in_model(config, encoder, adapter_name=_ADAPTER)
    encoder.train(is_training)  # injected modules are in training mode
    for name, parameter in encoder.named_parameters():
        if factor_of(name) == "a":
            parameter.data = first_values(component_name(name), parameter.shape, settings.seed)
        elif factor_of(name) is not None:
            parameter.data = parameter.data.float()
    if (adapted := list(adapted_layers(encoder))) != list(targets):
        raise ConfigError(f"{_KEY}: expected adapters at {name_some(targets)}, got {name_some(adapted)}")


def require_peft() -> None:
    """Check that `peft` can be imported, which this doesn't need the encoder for.

    Raises:
        ConfigError: it can't; the message says how to install it.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{_KEY}: peft can't be imported: {error}. Install it: pip install 'fedmtl[adapters]'"
        ) from None


def target_layers(encoder: nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the linear layers that targets name, in the encoder's order.

    Args:
        encoder: an encoder without adapters.
        targets: names of modules, or their ends after a `.`; empty for all linear layers in numbered layers.

    Raises:
        ConfigError: a target names no linear layer; or the encoder has no numbered layers, and `targets` is empty.
    """
    linear = [name for name, module in encoder.named_modules() if _is_linear(module)]
    if not targets:
        inside = tuple(layers_of(encoder))
        found = tuple(name for name in linear if name.startswith(tuple(f"{layer}." for layer in inside)))
        if not found:
            raise ConfigError(
                f"{_KEY}.targets: the encoder's layers can't be told apart by number; name the linear layers to "
                f"adapt, such as {linear[0] if linear else 'query'}"
            )
        return found
    chosen: set[str] = set()
    for target in targets:
        matches = {name for name in linear if name == target or name.endswith(f".{target}")}
        if not matches:
            ends = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            raise ConfigError(
                f"{_KEY}.targets: the encoder has no linear layer {quoted(target)}; its linear layers end in "
                f"{name_some(list(ends), 8)}"
            )
        chosen |= matches
    return tuple(name for name in linear if name in chosen)


def adapted_layers(encoder: nn.Module) -> dict[str, LoraLayer]:
    """Return the adapted layers of an encoder by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in encoder.named_modules() if isinstance(module, LoraLayer)}


def component_name(name: str) -> str:
    """Return the name in components of a parameter that has a name of `peft`."""
    parts = name.split(".")
    return ".".join(part for part in parts if part not in ("base_layer", _ADAPTER)) if _is_wrapped(parts) else name


def factor_of(name: str) -> Factor | None:
    """Return the factor that a parameter belongs to, by its name; None for a parameter of the base."""
    return next((_FACTORS[part] for part in name.split(".") if part in _FACTORS), None)


def factor_names(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return, by adapted layer, the names of its factors A and B among some names of a component."""
    there = set(names)
    layers = [name.removesuffix(".lora_B.weight") for name in names if name.endswith(".lora_B.weight")]
    pairs = {layer: (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight") for layer in layers}
    return {layer: pair for layer, pair in pairs.items() if pair[0] in there}


def first_values(name: str, shape: Sequence[int], seed: int, round_: int = 0) -> Tensor:
    """Return the first values of a factor A: uniform between plus and minus the inverse square root of its inputs.

    Args:
        name: the factor's name.
        shape: `(rank, inputs)`.
        seed: the run's seed.
        round_: the round after which the adapter starts; 0 for the adapters that the run starts with.
    """
    drawn = hashlib.sha256((f"{seed}:{round_}:{name}" if round_ else f"{seed}:{name}").encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(drawn, "little", signed=True))
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(tuple(shape), dtype=torch.float32).uniform_(-bound, bound, generator=generator)


def merged(encoder: nn.Module) -> nn.Module:
    """Return a copy of an encoder in which each adapted layer is a plain linear layer with the sum as its weight.

    The given encoder stays unchanged. Parameters that aren't adapted are shared with it.
    """
    layers = adapted_layers(encoder)
    plain = {}
    for name, layer in layers.items():
        own = copy.deepcopy(layer)
        own.merge()
        plain[name] = own.get_base_layer()
        plain[name].requires_grad_(True)
    memo: dict[int, object] = {id(one): nn.Parameter(one.data) for one in encoder.parameters()}
    memo |= {id(one): one for one in encoder.buffers()}
    memo |= {id(layer): plain[name] for name, layer in layers.items()}
    result = copy.deepcopy(encoder, memo)
    if hasattr(result, "peft_config"):
        del result.peft_config
    return result


def _is_wrapped(parts: Sequence[str]) -> bool:
    return "base_layer" in parts or any(part in _FACTORS for part in parts)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is a linear layer of GPT-2 and related models, whose weight is `(inputs, outputs)`."""
    return isinstance(module, Conv1D)
