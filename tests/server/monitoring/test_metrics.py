"""`/metrics`, scraped over HTTP from a server during a run, against the reports' own numbers."""

import asyncio
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb

from fedmtl_core.config import Config
from fedmtl_core.errors import ConfigError, FedMTLError
from fedmtl_server.server import Server
from tests.support import eventually, full_of, reports_of, serving, tiny_model, watching

OPENED, COMMITTED = pb.ROUND_EVENT_KIND_OPENED, pb.ROUND_EVENT_KIND_COMMITTED


def fetch(server, path="/metrics") -> str:
    with urllib.request.urlopen(f"http://{server._monitoring.metrics_address}{path}", timeout=10) as answer:
        return answer.read().decode()


async def scrape(server) -> dict[str, float]:
    """Every sample's value by its name and labels, as the exposition format writes them."""
    text = await asyncio.to_thread(fetch, server)
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


async def take_part(client, event, value=1.0, **fields):
    header, data = await client.get_slice(round=event.round)
    if event.purpose == pb.ROUND_PURPOSE_EVALUATE:
        fields |= {"kind": pb.UPDATE_KIND_METRICS, "components": [], "num_eval_examples": 1}
        data = {}
    return await client.push(client.update(header, full_of(data, value), **fields))


async def test_a_scrape_during_a_run_says_what_the_reports_say(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp"), num_rounds=2, settings={"metrics_port": 0}) as server:
        before = await scrape(server)
        assert before["fedmtl_round"] == 1
        assert before['fedmtl_phase{phase="waiting"}'] == 1
        assert before['fedmtl_updates_total{outcome="counted",task="qqp"}'] == 0
        async with watching(server, a="sst2", b="qqp") as clients:
            a, b = clients.values()
            await take_part(a, await a.until(OPENED, 1))
            within = await scrape(server)
            assert within['fedmtl_phase{phase="open"}'] == 1
            assert sum(within[name] for name in within if name.startswith("fedmtl_phase")) == 1
            assert within['fedmtl_connected_clients{task="sst2"}'] == 1
            assert within['fedmtl_updates_total{outcome="accepted",task="sst2"}'] == 1
            assert within['fedmtl_updates_total{outcome="counted",task="sst2"}'] == 0
            assert within["fedmtl_received_bytes_total"] > 0  # of a round that no report tells of yet
            header, data = await b.get_slice(round=1)
            for fields in ({"task": "nonsense"}, {"task": "more-nonsense"}, {"num_examples": 0}):
                with pytest.raises(grpc.aio.AioRpcError):
                    await b.push(b.update(header, full_of(data, 1), **fields))
            await b.push(b.update(header, full_of(data, 1)))
            await a.until(COMMITTED, 1)
            for client in (a, b):
                await take_part(client, await client.until(OPENED, 2))
            for client in (a, b):
                await take_part(client, await client.until(OPENED, 3))
            await a.until(pb.ROUND_EVENT_KIND_FINISHED)
            after = await scrape(server)
    reports = reports_of(tmp_path)
    assert after['fedmtl_rounds_total{outcome="committed"}'] == len(reports) == 3
    assert after['fedmtl_rounds_total{outcome="failed"}'] == 0
    assert after["fedmtl_received_bytes_total"] == sum(one.bytes_received for one in reports) > 0
    assert after["fedmtl_sent_bytes_total"] == sum(one.bytes_sent for one in reports) > 0
    assert after["fedmtl_round_seconds_count"] == 3
    assert after["fedmtl_round_seconds_sum"] == pytest.approx(sum(one.duration_s for one in reports))
    assert after["fedmtl_aggregation_seconds_count"] == 2
    assert after["fedmtl_aggregation_seconds_sum"] == pytest.approx(sum(one.aggregation_s for one in reports[:2]))
    refused = [one for report in reports for one in report.refused]
    for code in {one.code for one in refused}:
        expected = sum(one.code == code for one in refused)
        assert after[f'fedmtl_updates_refused_total{{code="{code}"}}'] == expected
        assert after[f'fedmtl_rpc_seconds_count{{code="{code}",method="PushUpdate"}}'] == expected
    assert after['fedmtl_updates_total{outcome="refused",task="unknown"}'] == 2
    assert after['fedmtl_updates_total{outcome="refused",task="qqp"}'] == 1
    for task in ("sst2", "qqp"):
        assert after[f'fedmtl_updates_total{{outcome="counted",task="{task}"}}'] == 3
    assert after["fedmtl_upload_seconds_count"] == 6
    assert after['fedmtl_rpc_seconds_count{code="OK",method="GetSlice"}'] == 6
    assert after['fedmtl_phase{phase="finished"}'] == 1
    assert after["process_resident_memory_bytes"] > 1e6
    assert not any(name in sample for sample in after for name in ("nonsense", '"a"', '"b"'))


async def test_methods_that_nobody_knows_share_one_label(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), settings={"metrics_port": 0}) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            for number in range(3):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(f"/fedmtl.v1.FederatedMtlService/Guess{number}")(b"")
        samples = await scrape(server)
    assert samples['fedmtl_rpc_seconds_count{code="UNIMPLEMENTED",method="other"}'] == 3
    assert not any("Guess" in sample for sample in samples)


async def test_a_client_that_goes_away_in_mid_call_is_counted_as_cancelled(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), settings={"metrics_port": 0}) as server:
        async with watching(server, a="sst2") as clients:
            clients["a"].leave()
        await eventually(lambda: not server.federation.status().clients)
        samples = await scrape(server)
    assert samples['fedmtl_rpc_seconds_count{code="CANCELLED",method="WatchRounds"}'] == 1


async def test_other_paths_are_not_there_and_a_server_that_has_stopped_answers_nothing(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), settings={"metrics_port": 0}) as server:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await asyncio.to_thread(fetch, server, "/")
    with pytest.raises(urllib.error.URLError):
        await asyncio.to_thread(fetch, server)


async def test_a_metrics_port_that_is_taken_is_an_error_that_names_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config.model_validate({"server": {"port": 0, "metrics_port": port}, "tasks": {"sst2": {}}})
        server = Server(config, tmp_path / "run", tiny_model("sst2"))
        with pytest.raises(FedMTLError, match=rf"can't serve metrics on 127.0.0.1:{port}: .*server.metrics_port"):
            await server.start()
    assert not (tmp_path / "run").exists()


def test_metrics_without_their_package_are_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fedmtl_server.monitoring.metrics", None)
    config = Config.model_validate({"server": {"metrics_port": 0}, "tasks": {"sst2": {}}})
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[prometheus\]'"):
        Server(config, model=tiny_model("sst2"))


def test_a_server_that_is_not_watched_imports_nothing_of_what_watches():
    code = (
        "import sys; import fedmtl_server.server, fedmtl_client.api, fedmtl_client.session; "
        "print([m for m in ('prometheus_client', 'mlflow', 'tensorboard', 'opentelemetry') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
