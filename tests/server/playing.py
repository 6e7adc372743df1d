"""Whole rounds over gRPC, of clients whose updates are certain: two runs can be compared bit for bit."""

import torch
from fedmtl.v1 import federation_pb2 as pb

from tests.support import TinyEncoder, model_bytes, tiny_model, watching

TASKS = {"a": "sst2", "b": "qqp"}
"""Task by client id."""


def trained(data, client_id, round_):
    """The slice, moved by something that depends on the client and the round."""
    generator = torch.Generator().manual_seed(100 * round_ + ord(client_id))
    return {
        scope: (
            torch.frombuffer(bytearray(part), dtype=torch.float32)
            + 0.1 * torch.randn(len(part) // 4, generator=generator)
        )
        .numpy()
        .tobytes()
        for scope, part in data.items()
    }


def metrics(client_id, round_):
    """Losses that fall, at another rate for each client."""
    loss = (2 + ord(client_id) % 3) / (1 + round_ * (1 + ord(client_id) % 2))
    return {"num_eval_examples": 5, "received_metrics": {"loss": loss}, "trained_metrics": {"train_loss": 0.9 * loss}}


async def push(client, round_, **header_fields):
    """One client's update of a round."""
    header, data = await client.get_slice(round=round_)
    fields = metrics(client.client_id, round_) | {"num_examples": 1 + ord(client.client_id) % 3} | header_fields
    await client.push(client.update(header, trained(data, client.client_id, round_), **fields))


async def play(server, rounds, tasks=None, **header_fields):
    """Hold rounds; what the model is then, by scope."""
    async with watching(server, **(tasks or TASKS)) as clients:
        for round_ in rounds:
            for client in clients.values():
                await push(client, round_, **header_fields)
            for client in clients.values():
                await client.until(pb.ROUND_EVENT_KIND_OPENED, round_ + 1)
    return model_bytes(server.federation.model)


def model(seed=0):
    return tiny_model("sst2", "qqp", encoder=TinyEncoder(seed=seed))
