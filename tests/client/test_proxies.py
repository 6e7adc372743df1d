"""Clients whose environment names an HTTP proxy."""

import asyncio
from contextlib import closing

import pytest
from structlog.testing import capture_logs

from fedmtl_client import doctor
from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.credentials import Credentials
from fedmtl_core.config import Config
from fedmtl_core.errors import UnreachableError
from fedmtl_core.tasks.spec import TaskSpec
from tests.http_proxy import HttpProxy
from tests.support import serving, tiny_model

SPEC = TaskSpec("mood", "classification", ("text",), "label", ("bad", "good"))
REMOTE = "server.fedmtl.invalid:50051"
"""Only the proxy knows where that is."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def status(address):
    connection = ConnectionSettings(Credentials(insecure=True))
    with closing(FederationApi(address, client_id="a", task="sst2", reconnect_s=0, connection=connection)) as api:
        return api.get_status()


async def test_a_server_on_this_machine_is_reached_directly_and_its_clients_hear_nothing_of_a_proxy(
    tmp_path, monkeypatch
):
    with HttpProxy() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
        async with serving(tmp_path, tiny_model("sst2")) as server:
            with capture_logs() as logs:
                answer = await asyncio.to_thread(status, server.address)
            found = await asyncio.to_thread(lambda: list(doctor.proxy(server.address)))
    assert answer.run_id == server.store.run_id
    assert (proxy.requested, logs, found) == ([], [], [])


async def test_a_server_elsewhere_is_reached_through_the_proxy_with_a_warning(tmp_path, monkeypatch):
    async with serving(tmp_path, tiny_model("sst2")) as server:
        with HttpProxy({REMOTE: server.address}) as proxy, capture_logs() as logs:
            monkeypatch.setenv("https_proxy", f"http://user:secret@{proxy.address}")
            answer = await asyncio.to_thread(status, REMOTE)
    assert answer.run_id == server.store.run_id
    assert proxy.requested == [REMOTE]
    (warning,) = [line for line in logs if line["event"] == "server.behind_proxy"]
    assert (warning["log_level"], warning["variable"]) == ("warning", "https_proxy")
    assert warning["proxy"] == f"http://{proxy.address}"
    assert "secret" not in str(logs)


def test_where_nobody_answers_the_proxy_is_named_and_its_password_is_not(monkeypatch):
    with HttpProxy() as proxy:
        monkeypatch.setenv("grpc_proxy", f"http://user:secret@{proxy.address}")
        with pytest.raises(UnreachableError) as failure:
            status(REMOTE)
    assert str(failure.value).startswith(f"no server at {REMOTE}: ")
    assert (
        f"HTTP proxy returned response code 403; grpc_proxy is set, so gRPC connects through the proxy "
        f"http://{proxy.address}; add server.fedmtl.invalid to no_proxy to connect directly"
    ) in str(failure.value)
    assert "secret" not in str(failure.value)


def test_doctor_names_the_proxy_between(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    (found,) = doctor.proxy(REMOTE)
    assert found.level == "warn"
    assert "http_proxy is set, so gRPC connects through the proxy http://127.0.0.1:9" in found.found
    config = Config.model_validate({"security": {"insecure": True}})
    reached = doctor.doctor.findings("server", lambda: doctor.reach(config, "a", [SPEC], REMOTE, [], []))
    assert "http_proxy is set" in reached[-1].found
