"""The client's calls, over real channels that break."""

import asyncio
import contextlib
import threading
import time

import pytest
import torch
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_client.api import FederationApi
from fedmtl_core.chunks import MAX_CHUNK_BYTES
from fedmtl_core.errors import InvalidRequestError, StaleRoundError, UnavailableError, UnknownTaskError
from tests.support import OddEncoder, eventually, model_bytes, serving, tiny_model


@contextlib.contextmanager
def api_of(address, task="sst2", reconnect_s=10.0):
    api = FederationApi(address, client_id="a", task=task, reconnect_s=reconnect_s)
    try:
        yield api
    finally:
        api.close()


async def test_errors_come_as_fedmtls_own(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp")) as server:
        with api_of(server.address, task="cola") as api, pytest.raises(UnknownTaskError, match="expected one of sst2"):
            await asyncio.to_thread(api.get_slice, 0)
        with api_of(server.address) as api:
            with pytest.raises(StaleRoundError, match="wanted for round 5"):
                await asyncio.to_thread(api.get_slice, 5)
            with pytest.raises(InvalidRequestError, match="kind"):
                await asyncio.to_thread(api.push_update, pb.UpdateHeader(client_id="a", task="sst2"))


async def test_the_whole_model_can_be_had(tmp_path):
    model = tiny_model("sst2", "qqp", encoder=OddEncoder())
    async with serving(tmp_path, model) as server:
        with api_of(server.address) as api:
            whole = await asyncio.to_thread(api.get_slice, 0, all_tasks=True)
    assert {s: c.buffer.numpy().tobytes() for s, c in whole.components.items()} == model_bytes(model)


def test_a_server_that_stays_away_is_given_up_on_in_words():
    with api_of("127.0.0.1:1", reconnect_s=0.5) as api, capture_logs() as logs:
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            api.get_slice(0)
        assert time.monotonic() - began < 10
    assert [line["event"] for line in logs if line["event"] == "server.away"]


def test_closing_ends_a_call_that_waits_for_a_server():
    with api_of("127.0.0.1:1", reconnect_s=600) as api:
        failures = []

        def call():
            try:
                api.get_slice(0)
            except UnavailableError as error:
                failures.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        api.close()
        thread.join(timeout=10)
    assert len(failures) == 1


def test_a_call_after_closing_is_an_error_in_words():
    with api_of("127.0.0.1:1") as api:
        api.close()
        with pytest.raises(UnavailableError, match="the connection is closed"):
            api.get_slice(0)
        assert list(api.watch()) == []


class CuttingProxy:
    """Passes bytes on to a server, and cuts the first connections after so many bytes towards the client."""

    def __init__(self, address: str, cuts: list[int]):
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._cuts = cuts
        self.connections = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        budget = self._cuts.pop(0) if self._cuts else None
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        try:
            await asyncio.wait(
                [
                    asyncio.create_task(self._pipe(reader, upstream_writer, None)),
                    asyncio.create_task(self._pipe(upstream_reader, writer, budget)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            writer.transport.abort()
            upstream_writer.transport.abort()

    async def _pipe(self, reader, writer, budget):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if budget is not None:
                    budget -= len(data)
                    if budget < 0:
                        return
                writer.write(data)
                await writer.drain()


async def test_a_download_that_breaks_goes_on_where_it_stopped(tmp_path):
    model = tiny_model("sst2", encoder=OddEncoder())
    total = sum(map(len, model_bytes(model).values()))
    async with serving(tmp_path, model) as server, CuttingProxy(server.address, [3_000_000, 2_500_000]) as proxy:
        with api_of(proxy.address) as api:
            slice_ = await asyncio.to_thread(api.get_slice, 0)
    assert {s: c.buffer.numpy().tobytes() for s, c in slice_.components.items()} == model_bytes(model)
    assert proxy.connections == 3
    assert slice_.bytes_received <= total + 2 * MAX_CHUNK_BYTES  # not three times the whole


async def test_an_upload_that_breaks_is_sent_again_and_counts_once(tmp_path):
    model = tiny_model("sst2", encoder=OddEncoder())
    async with serving(tmp_path, model, num_rounds=2) as server:
        async with UploadCut(server.address) as proxy:
            with api_of(proxy.address) as api:
                watch = threading.Thread(target=lambda: list(_ignoring_errors(api.watch())), daemon=True)
                watch.start()
                await eventually(lambda: server.federation.status().phase.value == "open")
                slice_ = await asyncio.to_thread(api.get_slice, 1)
                header = pb.UpdateHeader(
                    run_id=slice_.run_id,
                    client_id="a",
                    task="sst2",
                    base_round=1,
                    update_id="u",
                    kind=pb.UPDATE_KIND_PARAMETERS,
                    num_examples=1,
                )
                receipt = await asyncio.to_thread(api.push_update, header, list(slice_.components.values()))
                assert receipt.outcome == pb.OUTCOME_ACCEPTED
                assert proxy.cut
                await eventually(lambda: len(server.federation.reports) == 1)
            await asyncio.to_thread(watch.join, 10)
    report = server.federation.reports[0]
    assert [part.client_id for part in report.components[0].contributions] == ["a"]


class UploadCut(CuttingProxy):
    """Cuts the connection once, in the middle of the first upload."""

    def __init__(self, address):
        super().__init__(address, [])
        self.cut = False

    async def _pipe(self, reader, writer, budget):
        sent = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                sent += len(data)
                upwards = writer.get_extra_info("peername")[1] == self._port
                if upwards and sent > 2_000_000 and not self.cut:
                    self.cut = True
                    return
                writer.write(data)
                await writer.drain()


async def test_damaged_bytes_are_fetched_again(tmp_path, monkeypatch):
    """A checksum that fails once, as after a flipped bit, costs another attempt and nothing else."""
    import google_crc32c

    model = tiny_model("sst2")
    real, damaged = google_crc32c.value, []

    def value(data):
        if len(data) == 80 and not damaged:
            damaged.append(data)
            return real(data) ^ 1
        return real(data)

    async with serving(tmp_path, model) as server:
        monkeypatch.setattr("fedmtl_core.chunks.google_crc32c.value", value)
        with api_of(server.address) as api:
            slice_ = await asyncio.to_thread(api.get_slice, 0)
    assert damaged
    assert torch.equal(slice_.components["shared"].buffer, model.components["shared"].buffer)


async def test_watching_survives_a_server_that_goes_and_comes_back(tmp_path):
    recorded = []
    async with serving(tmp_path / "1", tiny_model("sst2", "qqp")) as server:
        port = int(server.address.rpartition(":")[2])
        api = FederationApi(server.address, client_id="a", task="sst2", reconnect_s=30)

        def watch():
            recorded.extend(_ignoring_errors(api.watch()))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        await eventually(lambda: len(recorded) == 1)
        first_run = recorded[0].run_id
    async with serving(tmp_path / "2", tiny_model("sst2", "qqp"), port=port) as server:
        await eventually(lambda: len(recorded) == 2)
        assert recorded[1].run_id != first_run
        assert [client.client_id for client in server.federation.status().clients] == ["a"]
    api.close()
    await asyncio.to_thread(thread.join, 10)


def _ignoring_errors(events):
    with contextlib.suppress(UnavailableError):
        yield from events
