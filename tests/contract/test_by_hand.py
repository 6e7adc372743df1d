"""A person at a terminal: buf curl against a real server, by reflection and without the proto (docs/grpcurl.md)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from fedmtl_server.access.certs import make_authority, make_server
from fedmtl_server.access.clients import ClientRegistry
from fedmtl_server.server import Server
from tests.buf import ROOT, buf
from tests.support import serving, tiny_model

SERVICE = "fedmtl.v1.FederatedMtlService"
NOT_FOUND, INVALID_ARGUMENT, UNAUTHENTICATED = 5, 3, 16


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[dict]:
        """The JSON messages on standard output, one behind the other."""
        decoder, found, rest = json.JSONDecoder(), [], self.out.strip()
        while rest:
            message, end = decoder.raw_decode(rest)
            found.append(message)
            rest = rest[end:].lstrip()
        return found

    @property
    def error(self) -> dict:
        """The failed call's error. buf's exit code is the status code times 8."""
        return json.loads(self.err)


async def curl(server: Server, call: str = "", *options: str, scheme: str = "http", seconds: float = 20) -> Said:
    """buf curl, for a call that ends by itself."""
    url = f"{scheme}://{server.address}" + (f"/{call}" if call else "")
    command = [*buf(), "curl", "--protocol", "grpc", *options, url]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        out, err = await asyncio.wait_for(process.communicate(), seconds)
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def demo(tmp_path: Path, **sections) -> AsyncIterator[Server]:
    buf()  # skip before anything is started
    async with serving(tmp_path / "run", tiny_model("sst2"), sections=sections) as server:
        yield server


async def test_a_server_shows_what_it_can_do_and_where_it_stands(tmp_path):
    async with demo(tmp_path) as server:
        services, methods, status, health = await asyncio.gather(
            curl(server, "", "--list-services"),
            curl(server, "", "--list-methods"),
            curl(server, f"{SERVICE}/GetStatus"),
            curl(server, "grpc.health.v1.Health/Check"),
        )
        refused = server.federation.run_id
    assert services.out.split() == [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    calls = {f"{SERVICE}/{name}" for name in ("GetSlice", "GetStatus", "PushUpdate", "QueryUpload", "WatchRounds")}
    assert calls <= set(methods.out.split())
    (message,) = status.messages
    assert (message["runId"], message["phase"], message["round"]) == (refused, "PHASE_WAITING", 1)
    assert message["waitingFor"] == "1 more sst2 client"
    assert health.messages == [{"status": "SERVING"}]


async def test_a_slice_begins_with_its_table_of_contents(tmp_path):
    async with demo(tmp_path) as server:
        said = await curl(server, f"{SERVICE}/GetSlice", "-d", '{"task": "sst2"}')
    assert said.code == 0, said.err
    header, *chunks = said.messages
    assert [one["scope"] for one in header["header"]["components"]] == ["shared", "task:sst2"]
    assert header["header"]["components"][0]["tensors"][0]["name"] == "encoder.dense.weight"
    assert [one["chunk"]["scope"] for one in chunks] == ["shared", "task:sst2"]


async def test_events_come_as_they_happen(tmp_path):
    """The stream is left once its first event is there; the server keeps it open."""
    async with demo(tmp_path) as server:
        command = [*buf(), "curl", "--protocol", "grpc", f"http://{server.address}/{SERVICE}/WatchRounds"]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdout=pipe, start_new_session=True)
        assert process.stdout is not None
        try:
            text = (await asyncio.wait_for(process.stdout.readuntil(b"\n}"), 20)).decode()
            assert process.returncode is None
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # npx doesn't pass it on
            await asyncio.wait_for(process.wait(), 10)
    event = json.loads(text)
    assert event["kind"] == "ROUND_EVENT_KIND_WAITING"
    assert event["waitingFor"] == "1 more sst2 client"


async def test_an_error_shows_its_reason_and_its_field(tmp_path):
    async with demo(tmp_path) as server:
        unknown, malformed = await asyncio.gather(
            curl(server, f"{SERVICE}/GetSlice", "-d", '{"task": "cola"}'),
            curl(server, f"{SERVICE}/QueryUpload", "-d", '{"clientId": "no spaces"}'),
        )
    assert unknown.code == NOT_FOUND * 8
    assert unknown.error["message"] == "task: expected one of sst2, got 'cola'"
    info = detail(unknown, "google.rpc.ErrorInfo")
    assert (info.reason, info.domain, dict(info.metadata)) == ("UNKNOWN_TASK", "fedmtl.v1", {"task": "cola"})
    assert malformed.code == INVALID_ARGUMENT * 8
    assert detail(malformed, "google.rpc.BadRequest").field_violations[0].field == "client_id"


async def test_with_tls_and_a_token_it_is_the_same(tmp_path):
    authority = make_authority("trial", days=1)
    pair = make_server(authority, [], days=1)
    files = {"ca": authority.certificate_pem, "certificate": pair.certificate_pem, "key": pair.key_pem}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    registry = ClientRegistry.open(tmp_path / "history.sqlite")
    token = registry.add("alice", ["sst2"], with_token=True)
    registry.close()
    security = {
        "authentication": True,
        "tls": {"certificate": str(tmp_path / "certificate"), "key": str(tmp_path / "key")},
    }
    url = f"sqlite:///{tmp_path / 'history.sqlite'}"
    async with demo(tmp_path, security=security, store={"url": url}) as server:
        trusting = ("--cacert", str(tmp_path / "ca"))
        shown = (*trusting, "--header", f"authorization: Bearer {token}", "--reflect-header", "*")
        known, stranger = await asyncio.gather(
            curl(server, f"{SERVICE}/GetStatus", *shown, scheme="https"),
            curl(server, f"{SERVICE}/GetStatus", *trusting, "--schema", str(ROOT), scheme="https"),
        )
    assert known.code == 0, known.err
    assert known.messages[0]["waitingFor"] == "1 more sst2 client"
    assert stranger.code == UNAUTHENTICATED * 8
    assert "expected a client's certificate or its token, got neither" in stranger.error["message"]
    assert detail(stranger, "google.rpc.ErrorInfo").reason == "UNAUTHENTICATED"


def detail(said: Said, kind: str):
    """A detail of a failed call, which buf shows in base64."""
    value = next(one["value"] for one in said.error["details"] if one["type"] == kind)
    return getattr(error_details_pb2, kind.rpartition(".")[2]).FromString(base64.b64decode(value + "=="))


def test_the_page_for_people_has_the_calls_that_are_tested_here():
    page = (ROOT / "docs" / "grpcurl.md").read_text()
    for call in ("list", "describe", "GetStatus", "GetSlice", "WatchRounds", "Health/Check", "buf curl"):
        assert call in page


pytestmark = pytest.mark.e2e
