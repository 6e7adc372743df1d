"""Computes adapted layers with fewer passes over memory than `peft`.

An adapter's products have one thin factor. `peft` computes its output in a tensor of its own, which it then scales and
adds, and PyTorch computes the gradient of B with its slowest order of operands. Here the output and the gradient of the
input are added in place, and thin products have their fast order. Results are equal except for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedmtl_core.model.adapters import adapted_layers
from fedmtl_core.model.modeling import MultiTaskModel

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


@contextmanager
def fuse_adapters(model: MultiTaskModel) -> Iterator[None]:
    """Within the context, the adapted layers of a model's encoder compute fused.

    Layers stay as they are if their output isn't x Wᵀ + bias + scale · x Aᵀ Bᵀ with a frozen W: with `kind: dora`, with
    dropout of the adapter's input, or if the weights are trained too. So does a model without adapters.
    """
    layers = list(adapted_layers(model.encoder).values()) if model.adapters is not None else []
    fused = [layer for layer in layers if _is_plain(layer)]
    for layer in fused:
        vars(layer)["forward"] = partial(_forward, layer)  # found before the class's method
    try:
        yield
    finally:
        for layer in fused:
            del vars(layer)["forward"]


def _is_plain(layer: LoraLayer) -> bool:
    from peft.tuners.lora.layer import Linear

    base, names = layer.get_base_layer(), layer.active_adapters
    if type(layer) is not Linear or type(base) is not nn.Linear or layer.disable_adapters or layer.merged:
        return False
    if len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant:
        return False
    has_dropout = not isinstance(layer.lora_dropout[names[0]], nn.Identity)
    factors = (layer.lora_A[names[0]], layer.lora_B[names[0]])
    has_bias = any(factor.bias is not None for factor in factors)
    has_hooks = any(one._forward_hooks or one._forward_pre_hooks for one in (base, *factors))
    is_one_dtype = len({one.weight.dtype for one in (base, *factors)}) == 1
    is_frozen = not any(parameter.requires_grad for parameter in base.parameters())
    return is_frozen and is_one_dtype and not (has_dropout or has_bias or has_hooks)


def _forward(layer: LoraLayer, x: Tensor) -> Tensor:
    base, (name,) = layer.get_base_layer(), layer.active_adapters
    output: Tensor = _Adapted.apply(  # type: ignore[no-untyped-call]
        x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    )
    return output


class _Adapted(torch.autograd.Function):
    """x Wᵀ + bias + scale · x Aᵀ Bᵀ, with gradients of x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return the output of a layer.

        Args:
            x: `(…, inputs)`.
            weight: `(outputs, inputs)`, without a gradient.
            bias: `(outputs,)`, without a gradient.
            a: `(rank, inputs)`.
            b: `(outputs, rank)`.
            scale: the factor on B A.
        """
        rows = x.reshape(-1, x.shape[-1])
        inner = (rows @ a.T).mul_(scale)
        output = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        output.addmm_(inner, b.T)
        ctx.scale, ctx.shape = scale, x.shape
        ctx.save_for_backward(weight, a, b, inner, rows if ctx.needs_input_grad[3] else None)
        return output.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b, inner, rows = ctx.saved_tensors
        of_output = gradient.reshape(-1, len(weight))
        of_x = of_a = of_b = None
        if ctx.needs_input_grad[4]:
            of_b = (inner.T @ of_output).T.contiguous()
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[3]:
            of_inner = (of_output @ b.T.contiguous().T).mul_(ctx.scale)
            if ctx.needs_input_grad[3]:
                of_a = of_inner.T @ rows
            if ctx.needs_input_grad[0]:
                of_x = (of_output @ weight).addmm_(of_inner, a).view(ctx.shape)
        return of_x, None, None, of_a, of_b, None
