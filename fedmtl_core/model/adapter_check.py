"""Checks the adapters of an encoder before training.

`peft` adds adapters to any linear layer, whether or not the encoder computes with the layer's own `forward`. Where it
doesn't, the adapter gets no gradient, or has no effect in evaluation, and nothing else would tell. The check encodes
two short texts. The encoder and the global random state stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedmtl_core.errors import first_line
from fedmtl_core.identifiers import name_some
from fedmtl_core.model.adapters import adapted_layers, component_name, factor_of
from fedmtl_core.model.encoder_check import EncoderReport, Remark
from fedmtl_core.model.pooling import encode_texts, encode_tokens
from fedmtl_core.model.probe import two_texts, unchanged
from fedmtl_core.randomness import drawing_from
from fedmtl_core.tasks.plan import Pooling

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_KEY = "model.adapters.targets"
_SHOWN = 4
"""Number of layers that a message names."""
_TARGETS = 8
"""Number of targets that a message suggests."""
_SCALE = 0.02
"""Standard deviation of the values of B in the check."""


def check_adapters(encoder: nn.Module, pooling: Pooling | None) -> EncoderReport:
    """Check the adapters of an encoder.

    Args:
        encoder: an encoder with adapters, on CPU. Parameters of adapters that clients keep for themselves may be 0.
        pooling: the pooling of texts for the heads; None if all heads see tokens.
    """
    layers = adapted_layers(encoder)
    remarks = [*_half_precision(layers), *_tied(encoder, layers)]
    is_tried = not remarks
    if is_tried:
        with _prepared(encoder):
            remarks += _tried(encoder, layers, pooling)
    return EncoderReport(tuple(remarks), is_tried)


def _half_precision(layers: Mapping[str, LoraLayer]) -> Iterator[Remark]:
    dtypes = {name: layer.get_base_layer().weight.dtype for name, layer in layers.items()}
    if others := {name: dtype for name, dtype in dtypes.items() if dtype != torch.float32}:
        found = str(next(iter(others.values()))).removeprefix("torch.")
        yield Remark(
            f"model.adapters: adapters need weights in float32, got {found} in {name_some(list(others), _SHOWN)}",
            "load the encoder in float32",
        )


def _tied(encoder: nn.Module, layers: Mapping[str, LoraLayer]) -> Iterator[Remark]:
    """Find adapted layers that are used under another name too, which `peft` leaves without the adapter."""
    places: dict[int, list[str]] = {}
    for path, module in encoder.named_modules():
        for name, one in (*module.named_children(), *module.named_parameters(recurse=False)):
            places.setdefault(id(one), []).append(f"{path}.{name}".lstrip("."))
    tied: dict[str, str] = {}
    for name, layer in layers.items():
        base = layer.get_base_layer()
        for one, own in ((base, f"{name}.base_layer"), (base.weight, f"{name}.base_layer.weight")):
            if others := [place for place in places[id(one)] if place != own]:
                tied.setdefault(name, component_name(others[0]).removesuffix(".weight"))
    if tied:
        where = [f"{name} (with {other})" for name, other in tied.items()]
        yield Remark(
            f"{_KEY}: these layers share their weight with another part of the encoder, which the adapter would not "
            f"change: {name_some(where, _SHOWN)}",
            "name other layers",
        )


def _tried(encoder: nn.Module, layers: Mapping[str, LoraLayer], pooling: Pooling | None) -> Iterator[Remark]:
    """Yield the problems found by encoding texts and by the gradient of a random sum of the outputs."""
    ids = two_texts(encoder)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def seen() -> Tensor:
        return encode_tokens(encoder, inputs) if pooling is None else encode_texts(encoder, inputs, pooling)

    factors = {name: layer.lora_B["default"].get_parameter("weight") for name, layer in layers.items()}
    for factor in factors.values():
        factor.requires_grad_(True)
    try:
        encoder.train()
        trained = _with_gradient(factors, seen)
        if len(trained) < len(factors):  # training may drop layers at random
            encoder.eval()
            trained |= _with_gradient(factors, seen)
        encoder.eval()
        called = _called(layers, seen)
    except Exception as error:  # an encoder's code may raise anything
        yield Remark(
            f"model.adapters: not tried, since {type(encoder).__name__} can't encode two short texts "
            f"({first_line(error)})",
            "try them in a round",
            is_error=False,
        )
        return
    unused = [name for name in layers if name not in trained]
    if unused:
        yield Remark(
            f"{_KEY}: adapters of these layers would never be trained, since the heads' input doesn't depend on them: "
            f"{name_some(unused, _SHOWN)}",
            f"name the layers to adapt without them, such as {_others(layers, unused)}",
        )
    if skipped := [name for name in layers if name not in called and name not in unused]:
        yield Remark(
            f"{_KEY}: adapters of these layers have no effect in evaluation, where PyTorch's fast path for attention "
            f"reads the layers' weights directly: {name_some(skipped, _SHOWN)}",
            "name other layers, or call torch.backends.mha.set_fastpath_enabled(False) on server and clients",
        )


def _with_gradient(factors: Mapping[str, Tensor], encode: Callable[[], Tensor]) -> set[str]:
    """Return the layers whose factor B a random sum of an encoder's outputs depends on."""
    output = encode()
    if not output.requires_grad:
        return set()
    of_output = (output * torch.randn_like(output)).sum()
    gradients = torch.autograd.grad(of_output, list(factors.values()), allow_unused=True)
    return {
        name
        for name, gradient in zip(factors, gradients, strict=True)
        if gradient is not None and bool(gradient.count_nonzero())
    }


@torch.no_grad()
def _called(layers: Mapping[str, LoraLayer], encode: Callable[[], object]) -> set[str]:
    """Return the adapted layers that an encoder in evaluation mode calls. The layers are changed.

    A hook would turn off PyTorch's fast path, so each layer's `forward` is replaced.
    """
    called: set[str] = set()
    for name, layer in layers.items():
        layer.forward = partial(_noting, called, name, layer.forward)  # type: ignore[attr-defined]
    encode()
    return called


def _noting(called: set[str], name: str, forward: Callable[..., object], *args: object, **kwargs: object) -> object:
    called.add(name)
    return forward(*args, **kwargs)


def _others(layers: Mapping[str, LoraLayer], unused: Sequence[str]) -> str:
    """Return targets that name other adapted layers and none of the unused ones."""
    ends: dict[str, None] = {}
    for name in layers:
        path = name.split(".")
        longer = (".".join(path[start:]) for start in range(len(path) - 1, -1, -1))
        end = next((one for one in longer if not any(f".{bad}".endswith(f".{one}") for bad in unused)), None)
        if end is not None:
            ends.setdefault(end)
    return f"[{', '.join(list(ends)[:_TARGETS])}]" if ends else "[query, value]"


@contextmanager
def _prepared(encoder: nn.Module) -> Iterator[None]:
    """Give an encoder's factors values other than 0 within the context, and restore everything afterwards."""
    factors = {name: one for name, one in encoder.named_parameters() if factor_of(name) is not None}
    before = {name: (one.data, one.requires_grad) for name, one in factors.items()}
    with unchanged(encoder), drawing_from(0):
        for name, factor in factors.items():
            if "lora_magnitude_vector" in name.split("."):
                factor.data = factor.data if factor.data.count_nonzero() else torch.ones(factor.shape)
            elif factor_of(name) == "b" or not factor.data.count_nonzero():
                factor.data = torch.randn(factor.shape) * _SCALE
        try:
            yield
        finally:
            for name, factor in factors.items():
                factor.data, is_trained = before[name]
                factor.requires_grad_(is_trained)
