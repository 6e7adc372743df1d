"""Adapters of plain numbers, and their products in float64."""

import numpy as np
import torch

from fedmtl_core.wire.layout import Component
from tests.server.aggregation.updates import update_of

SHAPES = {"encoder.layer.0.dense": (12, 8), "encoder.layer.0.query": (7, 9)}
"""`(outputs, inputs)` by adapted layer."""


def factors(seed, rank=2, *, b=1.0, shapes=SHAPES):
    """The factors of some layers, float32; `b` scales the factors B."""
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for layer, (outputs, inputs) in shapes.items():
        made[f"{layer}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw)
        made[f"{layer}.lora_B.weight"] = b * torch.randn(outputs, rank, generator=draw)
    return made


def padded(parameters, rank):
    """The same products, of factors of a larger rank."""
    made = {}
    for name, tensor in parameters.items():
        dim = 0 if "lora_A" in name else 1
        shape = list(tensor.shape)
        shape[dim] = rank - shape[dim]
        made[name] = torch.cat([tensor, torch.zeros(shape)], dim=dim)
    return made


def update(client_id, parameters, n=1, *, task="sst2", base=None, scopes=None, **fields):
    """An update of parameters; of a delta if the base is given."""
    if base is not None:
        parameters = {name: tensor - base[name] for name, tensor in parameters.items()}
    kind = "parameters" if base is None else "delta"
    return update_of(client_id, task, n, parameters, kind, scopes, **fields)


def components(parameters, scopes=None) -> dict[str, Component]:
    return update_of("", "", 1, parameters, scopes=scopes).components


def products(parameters) -> dict[str, np.ndarray]:
    """B A by layer, dense, in float64."""
    layers = [
        name.removesuffix(".lora_A.weight")
        for name in parameters
        if name.startswith("encoder.") and name.endswith(".lora_A.weight")
    ]
    return {
        layer: parameters[f"{layer}.lora_B.weight"].double().numpy()
        @ parameters[f"{layer}.lora_A.weight"].double().numpy()
        for layer in layers
    }


def mean_products(parts, coefficients, base=None) -> dict[str, np.ndarray]:
    """Σ c B A by layer, plus the base's products times what is missing from 1."""
    rest = 1 - sum(coefficients)
    given = [*parts, *([base] if base is not None else [])]
    shares = [*coefficients, *([rest] if base is not None else [])]
    each = [products(one) for one in given]
    return {
        layer: sum(share * one[layer] for share, one in zip(shares, each, strict=True)) for layer in products(parts[0])
    }


def cut(matrix, rank):
    """The nearest matrix of a rank, by numpy."""
    u, values, v = np.linalg.svd(matrix)
    return u[:, :rank] * values[:rank] @ v[:rank]


def relative(got, wanted) -> float:
    """The Frobenius norm of the difference of products by layer, over that of the wanted ones."""
    error = np.sqrt(sum(np.linalg.norm(got[layer] - wanted[layer]) ** 2 for layer in wanted))
    return float(error / np.sqrt(sum(np.linalg.norm(one) ** 2 for one in wanted.values())))
