"""Rounds over gRPC of clients with adapters, whose updates are certain."""

import math

import torch
from fedmtl.v1 import federation_pb2 as pb
from torch import nn

from fedmtl_core.config import Config
from fedmtl_server.model import MTLServerModel
from tests.server.aggregation.adapters import products
from tests.support import serving, specs

ALPHA = 16.0
EXAMPLES = {"large": 1, "small": 3}
TARGETS = ["first", "second"]
TASKS = dict.fromkeys(EXAMPLES, "sst2")
KINDS = {"parameters": pb.UPDATE_KIND_PARAMETERS, "delta": pb.UPDATE_KIND_DELTA}


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = nn.Linear(12, 7)
        for number, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))


def start(run_dir, *, num_rounds=2, **adapters):
    """A server of one task with adapters of rank 4, unless given."""
    section = {"rank": 4, "alpha": ALPHA, "targets": TARGETS, **adapters}
    sections = {"model": {"adapters": section}}
    config = Config.model_validate({"tasks": {"sst2": {}}, **sections})
    model = MTLServerModel(
        TwoLayers(), specs("sst2"), hidden_size=7, sharing=config.sharing_rules(), adapters=config.adapters()
    )
    return serving(run_dir, model, num_rounds=num_rounds, min_clients=2, sections=sections)


def as_bytes(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def tensors(header, data):
    """The tensors of a slice by name."""
    return {
        spec.name: as_bytes(data[one.scope])[spec.offset : spec.offset + 4 * math.prod(spec.shape)]
        .view(torch.float32)
        .view(*spec.shape)
        for one in header.components
        for spec in one.tensors
    }


def scaled(parameters, rank):
    """What the layers with adapters add to their outputs."""
    return {layer: ALPHA / rank * one for layer, one in products(parameters).items()}


async def received(client, round_):
    return await client.get_slice(client_id=client.client_id, round=round_)


def moved(header, data, client_id):
    """What a client's training adds to the components that a round trains, by scope."""
    draw = torch.Generator().manual_seed(100 * header.round + len(client_id) + ord(client_id[0]))
    trained = [one.scope for one in header.components if not one.read_only]
    return {scope: torch.randn(len(data[scope]) // 4, generator=draw) for scope in trained}


async def update_of(client, round_, kind):
    """A client's update of a round: its messages, and the trained parameters by name."""
    header, data = await received(client, round_)
    change = moved(header, data, client.client_id)
    trained = {
        scope: (as_bytes(data[scope]).view(torch.float32) + one).numpy().tobytes() for scope, one in change.items()
    }
    sent = trained if kind == "parameters" else {scope: one.numpy().tobytes() for scope, one in change.items()}
    messages = client.update(
        header,
        sent,
        num_examples=EXAMPLES[client.client_id],
        kind=KINDS[kind],
        components=[
            pb.Component(scope=one.scope, tensors=one.tensors, num_bytes=one.num_bytes)
            for one in header.components
            if one.scope in sent
        ],
    )
    return messages, tensors(header, data | trained)


def mean_of(parts, ranks):
    """The mean of what the clients' layers add to their outputs."""
    each = {client: scaled(part, ranks[client]) for client, part in parts.items()}
    return {layer: sum(EXAMPLES[client] / 4 * one[layer] for client, one in each.items()) for layer in each["small"]}
