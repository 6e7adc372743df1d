"""Texts without labels in a run: an auxiliary client that trains, beside one that can't get better."""

import asyncio

import torch
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client import Client
from fedmtl_core.config import Config
from fedmtl_server.model import MTLServerModel
from fedmtl_server.server import Server
from tests.support import WireClient, eventually, reports_of

CONFIG = Config.model_validate(
    {
        "model": {"server_model": "builtin:toy"},
        "training": {"num_rounds": 9, "local_epochs": 1, "learning_rate": 3e-3, "max_length": 48},
        "rounds": {"rejoin_grace_s": 0.2},
        "early_stopping": {"patience": 3},
        "server": {"port": 0},
        "tasks": {
            "sst2": {},
            "texts": {
                "type": "masked_lm",
                "text_columns": ["sentence"],
                "train_samples": 600,
                "val_samples": 100,
                "data": {"builtin": "sst2"},
                "auxiliary": {"weight": 0.5},
            },
        },
    }
)


async def test_an_auxiliary_client_without_labels_shapes_the_encoder_and_neither_opens_nor_prolongs_the_run(tmp_path):
    """The client of sst2 sends back what it got, and says each time that it is as good as before. So whatever moves the
    encoder is the other's doing, and so is every metric that gets better."""
    server = Server(CONFIG, tmp_path)
    first = {name: one.clone() for name, one in server._assembly.model.get_shared_parameters().items()}
    await server.start()
    run = asyncio.create_task(server.run())
    rounds = 0
    try:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            assert await echo(client, 1) == 1  # without the other: the round opens, and is complete
            rounds = 1
            assert all(torch.equal(one, first[name]) for name, one in encoder_of(server).items())
            helper = Client(CONFIG, task="texts", client_id="b", server=server.address)
            work = asyncio.create_task(asyncio.to_thread(helper.run))
            await eventually(lambda: "b" in {one.client_id for one in server.federation.status().clients})
            event = await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
            while event.purpose == pb.ROUND_PURPOSE_TRAIN:
                rounds = event.round
                await echo(client, rounds)
                event = await client.until(pb.ROUND_EVENT_KIND_OPENED, rounds + 1)
            await echo(client, event.round, evaluate=True)
            async with asyncio.timeout(60):
                results, done = await asyncio.gather(run, work)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        await server.stop("the test is over")

    assert rounds == 4  # of 9: sst2 was no better in three rounds, however much better the other got
    texts = results["texts"]
    assert texts.auxiliary
    assert not results["sst2"].auxiliary
    assert texts.by_round[max(texts.by_round)] > texts.by_round[min(texts.by_round)]
    reports = reports_of(tmp_path)
    losses = [
        one.received_metrics["loss"]
        for report in reports
        for one in report.tasks
        if one.task == "texts" and one.num_updates
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    words = "encoder.embeddings.word_embeddings.weight"
    assert not torch.equal(encoder_of(server)[words], first[words])
    assert [len(report.missing_clients) for report in reports] == [0] * len(reports)
    assert {one.auxiliary_weight for report in reports for one in report.tasks if one.task == "texts"} == {0.5}
    assert done.tasks == ("texts",)


async def echo(client: WireClient, round_: int, *, evaluate: bool = False) -> int:
    """Send back what was got; returns how many were in the cohort."""
    event = await client.until(pb.ROUND_EVENT_KIND_OPENED, round_) if round_ == 1 else None
    header, data = await client.get_slice(round=round_)
    fields = {"num_eval_examples": 10, "received_metrics": {"accuracy": 0.5}}
    if evaluate:
        fields |= {"kind": pb.UPDATE_KIND_METRICS, "components": []}
    await client.push(client.update(header, {} if evaluate else data, num_examples=300, **fields))
    return event.cohort_size if event else 0


def encoder_of(server: Server) -> dict[str, torch.Tensor]:
    model: MTLServerModel = server.federation.model
    return model.get_shared_parameters()
