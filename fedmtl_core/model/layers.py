"""An encoder's layers: the modules that they consist of, and configurations that keep only the first layers.

Model families name their layers differently. Most encoders have one list of layers. XLM has four lists, whose
modules with the same number form one layer. Funnel has a list of blocks, each a list of layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import nn

from fedmtl_core.errors import ModelUnavailableError, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_PER_LAYER = re.compile(r"layer|window|pattern")
"""Settings whose names match this may have one entry per layer: `layer_types`, `attention_window`, …"""


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """Return the modules that make up the layers, each with its layer's number.

    Returns:
        The layer number by module name. Empty if the layers can't be identified: in ALBERT all layers are one module,
        and two stacks with the same number of layers are ambiguous.
    """
    wanted = _stated_number(getattr(encoder, "config", None))
    lists = {name: _flat(name, one) for name, one in encoder.named_modules() if isinstance(one, nn.ModuleList)}
    if wanted is not None:
        lists = {name: layers for name, layers in lists.items() if len(layers) == wanted}
    if not lists:
        return {}
    main = max(lists, key=lambda name: len(lists[name]))
    parent = main.rpartition(".")[0]
    parallel = [name for name in lists if name.rpartition(".")[0] == parent and len(lists[name]) == len(lists[main])]
    numbers = {layer: number for name in parallel for number, layer in enumerate(lists[name])}
    known = {*parallel, *numbers}
    others = [name for name in lists if name not in known and known.isdisjoint(_modules_around(name))]
    return {} if wanted is not None and others else numbers


def parts_of(encoder: nn.Module) -> Callable[[str], str]:
    """Return a function from a parameter's name to the part of the encoder that it is in; see `sharing.NAMED_PARTS`."""
    modules, layers = dict(encoder.named_modules()), layers_of(encoder)
    with_embeddings = {
        name
        for name, module in modules.items()
        if name and _has_embedding(module) and not any(layer.startswith(f"{name}.") for layer in layers)
    }

    def part_of(name: str) -> str:
        inside = list(_modules_around(name))
        for module in inside:
            if module in layers:
                return str(layers[module])
        if name.partition(".")[0] == "pooler":
            return "pooler"
        return "embeddings" if with_embeddings.intersection(inside) else "rest"

    return part_of


def norms_of(encoder: nn.Module) -> set[str]:
    """Return the names of an encoder's normalization layers, found by class name: each model has its own classes."""
    return {name for name, module in encoder.named_modules() if "Norm" in type(module).__name__}


def keep_first_layers(config: PretrainedConfig, source: str, count: int) -> None:
    """Change a `transformers` configuration so that it describes only an encoder's first layers.

    Settings with one entry per layer are truncated accordingly.

    Args:
        config: the configuration, changed in place.
        source: the encoder's name, for messages.
        count: number of layers to keep.

    Raises:
        ModelUnavailableError: the encoder has fewer layers, or its configuration can't describe only the first ones.
    """
    own = getattr(config, "encoder", config) if config.is_encoder_decoder else config
    whole = _stated_number(own)
    if whole is None:
        raise ModelUnavailableError(
            f"model.num_hidden_layers: the configuration of {source} gives no number of layers; leave the setting out"
        )
    if count > whole:
        raise ModelUnavailableError(f"model.num_hidden_layers: {source} has {whole} layers, got {count}")
    if count == whole:
        return
    refusal = (
        f"model.num_hidden_layers: {source}: the encoder ({config.model_type}) can't be reduced to {count} of its "
        f"{whole} layers"
    )
    try:
        own.num_hidden_layers = count
        for name, value in list(vars(own).items()):
            if isinstance(value, list | tuple) and len(value) == whole and _PER_LAYER.search(name):
                setattr(own, name, value[:count])
        again = type(config).from_dict(config.to_dict())  # as clients and users of an export will read it
    except Exception as error:  # each configuration class validates itself with its own errors
        raise ModelUnavailableError(f"{refusal}: {first_line(error)} Leave the setting out") from None
    if differing := [name for name, value in again.to_dict().items() if config.to_dict().get(name) != value]:
        raise ModelUnavailableError(
            f"{refusal}: its configuration would have a different {differing[0]} after saving and loading. Leave the "
            "setting out"
        )


def _stated_number(config: PretrainedConfig) -> int | None:
    number = getattr(config, "num_hidden_layers", None)
    return number if isinstance(number, int) else None


def _flat(name: str, modules: nn.ModuleList) -> list[str]:
    """Return the names of a list's modules; for a list of lists, those of the inner modules."""
    names: list[str] = []
    for number, module in enumerate(modules):
        inner = f"{name}.{number}"
        names += _flat(inner, module) if isinstance(module, nn.ModuleList) else [inner]
    return names


def _modules_around(name: str) -> Iterator[str]:
    """Yield the names of the modules that contain a parameter or module, from the outermost."""
    end = name.find(".")
    while end >= 0:
        yield name[:end]
        end = name.find(".", end + 1)


def _has_embedding(module: nn.Module) -> bool:
    return any(isinstance(one, nn.Embedding) for one in module.modules())
