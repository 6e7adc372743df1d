"""An encoder's layers: which of its modules they are, and how a configuration keeps the first few.

What a layer is called differs from family to family. Most encoders have one list of layers. XLM has four lists, whose
modules of the same number are one layer; Funnel has a list of blocks, each a list of layers.
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
"""Settings whose names have this and that have an entry for each layer: `layer_types`, `attention_window`, …"""


def layers_of(encoder: nn.Module) -> dict[str, int]:
    """The modules that make up the layers, each with its layer's number.

    Returns:
        The number by the module's name. Empty where no modules are known to be the layers: in ALBERT all layers are
        one, and two stacks of equally many layers could both be meant.
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
    """What tells the part of an encoder that a parameter is in; see `sharing.NAMED_PARTS`."""
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
    """The names of an encoder's normalisation layers: by their classes' names, since each model has its own classes."""
    return {name for name, module in encoder.named_modules() if "Norm" in type(module).__name__}


def keep_first_layers(config: PretrainedConfig, source: str, count: int) -> None:
    """Have a configuration of `transformers` describe an encoder's first layers alone.

    Settings with an entry for each layer are cut with the number of layers.

    Args:
        config: changed in place.
        source: where the encoder comes from, for messages.
        count: how many layers are kept.

    Raises:
        ModelUnavailableError: it has fewer layers, or no configuration that describes the first of them.
    """
    own = getattr(config, "encoder", config) if config.is_encoder_decoder else config
    whole = _stated_number(own)
    if whole is None:
        raise ModelUnavailableError(f"model.num_hidden_layers: {source}: its configuration has no number of layers")
    if count > whole:
        raise ModelUnavailableError(f"model.num_hidden_layers: {source} has {whole} layers, asked for {count}")
    if count == whole:
        return
    refusal = (
        f"model.num_hidden_layers: {source}: the encoder ({config.model_type}) can't be cut to {count} of its {whole} "
        "layers"
    )
    try:
        own.num_hidden_layers = count
        for name, value in list(vars(own).items()):
            if isinstance(value, list | tuple) and len(value) == whole and _PER_LAYER.search(name):
                setattr(own, name, value[:count])
        again = type(config).from_dict(config.to_dict())  # as a client, or whoever loads an export, will read it
    except Exception as error:  # each configuration checks itself, and raises what it likes
        raise ModelUnavailableError(f"{refusal}: {first_line(error)} Leave the setting out") from None
    if differing := [name for name, value in again.to_dict().items() if config.to_dict().get(name) != value]:
        raise ModelUnavailableError(
            f"{refusal}: its configuration would have another {differing[0]} when it is read again. Leave the setting "
            "out"
        )


def _stated_number(config: PretrainedConfig) -> int | None:
    number = getattr(config, "num_hidden_layers", None)
    return number if isinstance(number, int) else None


def _flat(name: str, modules: nn.ModuleList) -> list[str]:
    """The names of a list's modules; of a list of lists, those of the inner ones."""
    names: list[str] = []
    for number, module in enumerate(modules):
        inner = f"{name}.{number}"
        names += _flat(inner, module) if isinstance(module, nn.ModuleList) else [inner]
    return names


def _modules_around(name: str) -> Iterator[str]:
    """The names of the modules that something is in, from the outermost."""
    end = name.find(".")
    while end >= 0:
        yield name[:end]
        end = name.find(".", end + 1)


def _has_embedding(module: nn.Module) -> bool:
    return any(isinstance(one, nn.Embedding) for one in module.modules())
