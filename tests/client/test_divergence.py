"""Values that aren't finite: a client says whether the model that it received gives them, or its own training."""

import asyncio
import math
from dataclasses import replace

import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_client.trainer import Trainer
from fedmtl_core.errors import DivergedError
from tests.client.test_session import CONFIG, real_api, session_of, toy_model
from tests.support import WireClient, reports_of, serving

DAMAGED = pb.ROUND_WARNING_KIND_DAMAGED_MODEL


@pytest.mark.parametrize("value", [math.nan, 3e38], ids=["nan", "finite but absurd"])
@pytest.mark.parametrize("scope", ["shared", "task:sst2"])
async def test_a_client_whose_received_model_is_damaged_says_so_and_tells_the_server(scope, value, tmp_path):
    model = toy_model()
    for view in model.components[scope].views().values():
        view.fill_(value)
    with capture_logs() as logs:
        async with serving(tmp_path, model, num_rounds=2) as server, WireClient(server, "", "") as observer:
            with pytest.raises(DivergedError, match=r"^the model received in round 1 gives values") as error:
                await asyncio.to_thread(session_of(real_api(server.address)).run)
            status = await observer.stub.GetStatus(pb.GetStatusRequest())
            refused = list(server.federation.stats.refused)
    assert "The server's model is damaged; this client's data and training are not the cause" in str(error.value)
    assert "metric" not in str(error.value)
    (warning,) = status.warnings
    assert (warning.kind, list(warning.client_ids)) == (DAMAGED, ["a"])
    assert "as client a says" in warning.message
    (told,) = [line for line in logs if line["event"] == "model.damaged"]
    assert (told["log_level"], told["client_id"]) == ("error", "a")
    assert "runs rollback RUN --to-round" in told["hint"]
    assert [(one.client_id, one.code) for one in refused] == [("a", "INVALID_ARGUMENT")]


async def test_a_damaged_model_is_in_the_round_s_report_and_only_a_cohort_s_client_is_believed(tmp_path):
    async with serving(tmp_path, toy_model(), num_rounds=2, min_clients=2, transfer_timeout_s=1) as server:
        async with WireClient(server, "a", "sst2") as a, WireClient(server, "b", "sst2") as b:
            await a.watch()
            await b.watch()
            await b.until(pb.ROUND_EVENT_KIND_OPENED)
            header, data = await a.get_slice()
            for client_id in ("a", "stranger"):
                fields = {"client_id": client_id, "received_metrics": {"loss": math.nan}, "num_eval_examples": 1}
                with pytest.raises(Exception, match=r"received_metrics: loss: expected a finite number, got nan"):
                    await a.push(a.update(header, {}, kind=pb.UPDATE_KIND_METRICS, components=[], **fields))
            a.leave()
            await b.push(b.update(header, data))
            report = (await b.until(pb.ROUND_EVENT_KIND_COMMITTED)).report
    assert [(one.kind, list(one.client_ids)) for one in report.warnings] == [(DAMAGED, ["a"])]
    assert [(one.kind, one.client_ids) for one in reports_of(tmp_path)[0].warnings] == [("damaged_model", ["a"])]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (64, r"^training diverged: the loss is (nan|inf) at step [23] of \d+; lower training\.learning_rate$"),
        (
            8,
            r"^training diverged: the model gives values that aren't finite after 1 steps .*; lower training",
        ),
    ],
    ids=["in a step", "after the last step"],
)
async def test_a_training_that_diverges_is_told_as_such_and_nothing_is_sent(rows, message, tmp_path):
    training = CONFIG.training.model_dump(exclude_unset=True)
    sections = {
        "training": training
        | {"optimizer": "sgd", "learning_rate": 1e30, "max_grad_norm": 0, "per_device_train_batch_size": 8}
    }
    async with serving(tmp_path, toy_model(), sections=sections) as server:
        with pytest.raises(DivergedError, match=message) as error:
            await asyncio.to_thread(session_of(real_api(server.address), rows=rows).run)
        status = server.federation.status()
        assert (server.federation.stats.num_refused, status.warnings, status.round) == (0, [], 1)
    assert "metric" not in str(error.value)


class Careless(Trainer):
    """A trainer of a user's own that notices nothing."""

    def train(self, *arguments, **options):
        return replace(super().train(*arguments, **options), loss=math.nan)


async def test_a_training_of_a_user_s_own_that_diverges_is_told_as_such_too(tmp_path):
    async with serving(tmp_path, toy_model()) as server:
        session = session_of(real_api(server.address), trainer=Careless)
        with pytest.raises(DivergedError, match=r"^training diverged: .* after \d+ steps \(train_loss nan\); lower"):
            await asyncio.to_thread(session.run)
        assert server.federation.stats.num_refused == 0
