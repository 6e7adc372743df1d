"""Identities on real calls over loopback: what is another's is denied, and who is revoked is out at once."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.credentials import Credentials
from fedmtl_core import logs
from fedmtl_core.errors import PermissionDeniedError, StoreError, UnauthenticatedError
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.updates import Update
from fedmtl_server.access.certs import make_authority, make_client, make_server
from fedmtl_server.access.claims import CLAIMS
from fedmtl_server.access.clients import ClientRegistry
from fedmtl_server.server import Server
from tests.support import WideEncoder, WireClient, aiter_of, chunk_messages, eventually, full_of, serving, tiny_model

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
REFRESH_S = 0.05


@dataclass
class Guarded:
    """A server with authentication, its registry, and a token of each client."""

    server: Server
    registry: ClientRegistry
    tokens: dict[str, str]
    tls: grpc.ChannelCredentials | None = None

    def client(self, name: str, task: str = "sst2", *, as_: str | None = None, token: str | None = None) -> WireClient:
        """A client with the credentials of `name` that says it is `as_`."""
        return WireClient(self.server, as_ or name, task, self.tls, token or self.tokens.get(name))

    def anonymous(self) -> WireClient:
        return WireClient(self.server, "alice", "sst2", self.tls)


@asynccontextmanager
async def guarded(tmp_path: Path, *, encoder: Any = None, tls: bool = False, **security: Any) -> AsyncIterator[Guarded]:
    """Two clients of one task each, one of every task, and an observer."""
    with contextlib.closing(ClientRegistry.open(tmp_path / "clients.sqlite")) as registry:
        tasks = {"alice": ["sst2"], "bob": ["qqp"], "root": None, "dashboard": []}
        tokens = {name: registry.add(name, own, with_token=True) or "" for name, own in tasks.items()}
        section: dict[str, Any] = {"authentication": True, "refresh_s": REFRESH_S, **security}
        channel = None
        if tls:
            ca = make_authority("ca", days=1)
            pair = make_server(ca, [], days=1)
            (tmp_path / "server.pem").write_bytes(pair.certificate_pem)
            (tmp_path / "server.key").write_bytes(pair.key_pem)
            section["tls"] = {"certificate": str(tmp_path / "server.pem"), "key": str(tmp_path / "server.key")}
            channel = grpc.ssl_channel_credentials(ca.certificate_pem)
        model = tiny_model("sst2", "qqp", encoder=encoder)
        async with serving(
            tmp_path / "run",
            model,
            num_rounds=2,
            min_clients={"sst2": 1},
            settings={"runs_dir": str(tmp_path)},
            sections={"security": section},
        ) as server:
            yield Guarded(server, registry, tokens, channel)


def header(client_id: str, task: str, run_id: str = "") -> pb.PushUpdateRequest:
    fields = {"run_id": run_id, "client_id": client_id, "task": task, "update_id": "u", "base_round": 1}
    return pb.PushUpdateRequest(header=pb.UpdateHeader(kind=pb.UPDATE_KIND_METRICS, **fields))


async def first(call: Any) -> Any:
    """A stream's first message."""
    async with asyncio.timeout(10):
        message = await call.read()
    assert message is not grpc.aio.EOF
    return message


CALLS: dict[str, Callable[[WireClient, str, str], Any]] = {
    "GetSlice": lambda c, client_id, task: first(c.stub.GetSlice(pb.GetSliceRequest(client_id=client_id, task=task))),
    "PushUpdate": lambda c, client_id, task: c.push([header(client_id, task)]),
    "QueryUpload": lambda c, client_id, task: c.stub.QueryUpload(
        pb.QueryUploadRequest(client_id=client_id, update_id="u")
    ),
    "WatchRounds": lambda c, client_id, task: first(
        c.stub.WatchRounds(pb.WatchRoundsRequest(client_id=client_id, task=task))
    ),
    "GetStatus": lambda c, client_id, task: c.stub.GetStatus(pb.GetStatusRequest()),
}
"""Every RPC, as a client of a name and a task calls it."""


async def code_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


def test_every_rpc_of_the_contract_has_a_rule():
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["FederatedMtlService"].methods}
    assert set(CALLS) == methods
    assert {name.rpartition("/")[2] for name in CLAIMS} == methods


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
async def test_a_known_client_does_what_is_its_own(tmp_path, tls):
    async with guarded(tmp_path, tls=tls) as guard, guard.client("alice") as alice:
        await alice.watch()
        opened = await alice.until(pb.ROUND_EVENT_KIND_OPENED)
        slice_, data = await alice.get_slice(client_id="alice")
        receipt = await alice.push(alice.update(slice_, full_of(data, 0.5)))
        assert (opened.round, receipt.outcome) == (1, pb.OUTCOME_ACCEPTED)
        staged = await alice.stub.QueryUpload(pb.QueryUploadRequest(client_id="alice", update_id="none"))
        assert not staged.components
        assert (await alice.stub.GetStatus(pb.GetStatusRequest())).run_id == guard.server.store.run_id


async def test_nobody_is_served_without_credentials_whatever_it_calls(tmp_path):
    async with guarded(tmp_path) as guard, guard.anonymous() as nobody:
        for name, call in CALLS.items():
            code, details = await code_of(call(nobody, "alice", "sst2"))
            assert (name, code) == (name, UNAUTHENTICATED)
            assert details.startswith("expected a client's certificate or its token, got neither")


async def test_a_wrong_token_is_nobodys_whatever_it_calls(tmp_path):
    async with guarded(tmp_path) as guard:
        token = guard.tokens["alice"]
        wrong = [
            token[:-1] + ("A" if token[-1] != "A" else "B"),
            token.replace("alice", "bob"),
            token[7:],
            "x",
            token * 2,
        ]
        for bad in wrong:
            async with guard.client("alice", token=bad) as client:
                for name, call in CALLS.items():
                    assert (name, (await code_of(call(client, "alice", "sst2")))[0]) == (name, UNAUTHENTICATED)


@pytest.mark.parametrize("name", ["GetSlice", "PushUpdate", "QueryUpload", "WatchRounds"])
async def test_another_clients_id_is_denied(tmp_path, name):
    async with guarded(tmp_path) as guard, guard.client("bob", "qqp") as bob:
        code, details = await code_of(CALLS[name](bob, "alice", "qqp"))
        assert (code, details) == (DENIED, "client_id: these credentials are client 'bob''s, got 'alice'")


@pytest.mark.parametrize("name", ["GetSlice", "PushUpdate", "WatchRounds"])
@pytest.mark.parametrize("task", ["sst2", "no-such-task"])
async def test_another_task_is_denied_and_which_tasks_there_are_is_not_told(tmp_path, name, task):
    async with guarded(tmp_path) as guard, guard.client("bob", "qqp") as bob:
        code, details = await code_of(CALLS[name](bob, "bob", task))
        assert (code, details) == (DENIED, f"task: client 'bob' may take part in qqp, got '{task}'")


async def test_a_client_of_several_tasks_needs_to_be_allowed_each(tmp_path):
    async with guarded(tmp_path) as guard:
        guard.tokens["carol"] = guard.registry.add("carol", ["qqp", "sst2"], with_token=True) or ""
        both = {"tasks": ("sst2", "qqp")}
        async with WireClient(guard.server, "alice", "", None, guard.tokens["alice"], **both) as alice:
            told = (DENIED, "task: client 'alice' may take part in sst2, got 'qqp'")
            assert await code_of(alice.watch()) == told
            chosen = pb.UpdateHeader(client_id="alice", task="sst2", next_task="qqp", kind=pb.UPDATE_KIND_METRICS)
            assert await code_of(alice.push([pb.PushUpdateRequest(header=chosen)])) == told
        async with WireClient(guard.server, "carol", "", None, guard.tokens["carol"], **both) as carol:
            await asyncio.sleep(5 * REFRESH_S)
            await carol.watch()
            assert {one.client_id: one.tasks for one in guard.server.federation.status().clients} == {
                "carol": ("sst2", "qqp")
            }


async def test_every_head_is_for_clients_of_every_task_alone(tmp_path):
    async with guarded(tmp_path) as guard, guard.client("root") as root, guard.client("alice") as alice:
        slice_, _ = await root.get_slice(task="", all_tasks=True)
        assert [component.scope for component in slice_.components] == ["shared", "task:sst2", "task:qqp"]
        code, details = await code_of(alice.get_slice(task="", all_tasks=True))
        assert (code, details) == (DENIED, "all_tasks: client 'alice' may have sst2, not every task")


async def test_an_observer_watches_and_asks_and_takes_nothing(tmp_path):
    async with guarded(tmp_path) as guard, guard.client("dashboard") as dashboard:
        assert (await first(dashboard.stub.WatchRounds(pb.WatchRoundsRequest()))).kind == pb.ROUND_EVENT_KIND_WAITING
        await dashboard.stub.GetStatus(pb.GetStatusRequest())
        for name in ("GetSlice", "PushUpdate", "WatchRounds"):
            assert (await code_of(CALLS[name](dashboard, "dashboard", "sst2")))[0] is DENIED


async def test_what_is_denied_leaves_no_trace_of_its_victim(tmp_path):
    """Bob can't end alice's stream, nor her upload, nor put an update into the round in her name."""
    async with guarded(tmp_path) as guard, guard.client("alice") as alice, guard.client("bob", "qqp") as bob:
        await alice.watch()
        await alice.until(pb.ROUND_EVENT_KIND_OPENED)
        slice_, data = await alice.get_slice()
        messages = alice.update(slice_, full_of(data, 0.5))
        assert (await code_of(bob.push(messages)))[0] is DENIED
        assert (await code_of(CALLS["WatchRounds"](bob, "alice", "sst2")))[0] is DENIED
        status = await alice.stub.GetStatus(pb.GetStatusRequest())
        assert [(one.client_id, one.connected, one.reported) for one in status.clients] == [("alice", True, False)]
        assert (await alice.push(messages)).outcome == pb.OUTCOME_ACCEPTED


async def test_a_header_that_comes_late_or_twice_gets_nobody_past_the_check(tmp_path):
    async with guarded(tmp_path) as guard, guard.client("bob", "qqp") as bob:
        own, anothers = (header(who, "qqp", guard.server.store.run_id) for who in ("bob", "alice"))
        assert (await code_of(bob.push([own, anothers])))[0] in (
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        assert (await code_of(bob.push(chunk_messages({"shared": b"1234"}))))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert (await code_of(bob.push([])))[0] is grpc.StatusCode.INVALID_ARGUMENT
        raw = bob._channel.stream_unary("/fedmtl.v1.FederatedMtlService/PushUpdate")
        metadata = (("authorization", f"Bearer {guard.tokens['bob']}"),)
        joined = own.SerializeToString() + anothers.SerializeToString()  # to protobuf, the later header's fields win
        code, details = await code_of(raw(aiter_of([joined]), metadata=metadata))
        assert (code, "got 'alice'" in details) == (DENIED, True)
        code, _ = await code_of(raw(aiter_of([b"\xff\xff\xff"]), metadata=metadata))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_opening_message_of_an_upload_is_parsed_once(tmp_path):
    """Limits, authentication and servicer all ask what it says. Its chunks take a way around protobuf."""
    parsed = []

    def profile(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in ("FromString", "ParseFromString", "MergeFromString"):
            owner = function.__self__
            if owner is pb.PushUpdateRequest or isinstance(owner, pb.PushUpdateRequest | pb.UpdateHeader):
                parsed.append(function.__name__)

    async with guarded(tmp_path) as guard, guard.client("alice") as alice:
        await alice.watch()
        await alice.until(pb.ROUND_EVENT_KIND_OPENED)
        slice_, data = await alice.get_slice()
        messages = alice.update(slice_, full_of(data, 0.5))
        sys.setprofile(profile)  # of this thread, where server and client have their event loop
        try:
            receipt = await alice.push(messages)
        finally:
            sys.setprofile(None)
        assert receipt.outcome == pb.OUTCOME_ACCEPTED
        assert len(messages) > 1
        assert parsed == ["FromString"]


async def test_several_authorizations_are_none(tmp_path):
    async with guarded(tmp_path) as guard, guard.anonymous() as client:
        for values in (["Bearer " + guard.tokens["alice"]] * 2, [guard.tokens["alice"]], ["Basic x"]):
            metadata = tuple(("authorization", value) for value in values)
            code, details = await code_of(client.stub.GetStatus(pb.GetStatusRequest(), metadata=metadata))
            assert code is UNAUTHENTICATED
            assert guard.tokens["alice"] not in details


class TestRevocation:
    async def test_an_open_stream_of_events_ends_within_a_second(self, tmp_path):
        async with (
            guarded(tmp_path, refresh_s=1.0) as guard,
            guard.client("alice") as alice,
            guard.client("root") as root,
        ):
            await alice.watch()
            await root.stub.GetStatus(pb.GetStatusRequest())
            began = asyncio.get_running_loop().time()
            guard.registry.revoke("alice")
            code, details = await code_of(drained(alice._events))
            assert asyncio.get_running_loop().time() - began < 2.0
            assert (code, details) == (UNAUTHENTICATED, "client 'alice' was revoked")
            status = await root.stub.GetStatus(pb.GetStatusRequest())
            assert [one.connected for one in status.clients] in ([], [False])
            assert (await code_of(CALLS["GetStatus"](alice, "", "")))[0] is UNAUTHENTICATED

    async def test_an_upload_in_progress_ends_and_does_not_count(self, tmp_path):
        async with guarded(tmp_path) as guard, guard.client("alice") as alice, guard.client("root") as root:
            await alice.watch()
            await alice.until(pb.ROUND_EVENT_KIND_OPENED)
            slice_, data = await alice.get_slice()
            call = alice.stub.PushUpdate()
            messages = alice.update(slice_, full_of(data, 0.5))
            for message in messages[:-1]:
                await call.write(message)
            await call.initial_metadata()  # the server has room, and waits for the rest
            guard.registry.revoke("alice")
            async with asyncio.timeout(5):
                code, details = await code_of(call)
            assert (code, details) == (UNAUTHENTICATED, "client 'alice' was revoked")
            status = await root.stub.GetStatus(pb.GetStatusRequest())
            assert not any(one.reported for one in status.clients)

    async def test_a_download_in_progress_ends(self, tmp_path):
        """The client reads nothing after the header, so that the server can't have sent all."""
        async with guarded(tmp_path, encoder=WideEncoder(15_000_000)) as guard, guard.client("alice") as alice:
            call = alice.stub.GetSlice(pb.GetSliceRequest(task="sst2"))
            await first(call)
            guard.registry.revoke("alice")
            await eventually(lambda: not guard.server._gate.interceptor._calls)
            received, error = 0, None
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    received += len(message.chunk.data)
            except grpc.aio.AioRpcError as caught:
                error = caught
            assert error is not None
            assert error.code() is UNAUTHENTICATED
            assert received < 60_000_000

    async def test_others_are_not_disturbed(self, tmp_path):
        async with guarded(tmp_path) as guard, guard.client("alice") as alice, guard.client("bob", "qqp") as bob:
            await alice.watch()
            await bob.watch()
            guard.registry.revoke("alice")
            await code_of(drained(alice._events))
            await asyncio.sleep(3 * REFRESH_S)
            status = await bob.stub.GetStatus(pb.GetStatusRequest())
            assert [one.client_id for one in status.clients if one.connected] == ["bob"]

    async def test_an_update_that_was_acknowledged_before_stays(self, tmp_path):
        async with guarded(tmp_path) as guard, guard.client("alice") as alice, guard.client("root", "qqp") as root:
            await root.watch()
            await alice.watch()
            await alice.until(pb.ROUND_EVENT_KIND_OPENED)
            slice_, data = await alice.get_slice()
            await alice.push(alice.update(slice_, full_of(data, 0.5)))
            guard.registry.revoke("alice")
            await code_of(drained(alice._events))
            slice_, data = await root.get_slice()
            await root.push(root.update(slice_, full_of(data, 0.5)))
            committed = await root.until(pb.ROUND_EVENT_KIND_COMMITTED)
            assert {one.client_id for one in committed.report.components[0].contributions} == {"alice", "root"}

    async def test_a_new_token_ends_the_calls_of_the_old_one_and_a_task_less_those_for_it(self, tmp_path):
        async with guarded(tmp_path) as guard, guard.client("root", "qqp") as root:
            await root.watch()
            guard.registry.revoke("root")
            new = guard.registry.add("root", ["sst2"], with_token=True)
            assert (await code_of(drained(root._events)))[0] is UNAUTHENTICATED
            async with guard.client("root", token=new) as again:
                await again.watch()
                assert (await code_of(CALLS["WatchRounds"](again, "root", "qqp")))[0] is DENIED

    async def test_a_client_that_is_added_comes_in_without_a_restart(self, tmp_path):
        async with guarded(tmp_path) as guard:
            token = guard.registry.add("carol", ["sst2"], with_token=True)
            await asyncio.sleep(10 * REFRESH_S)
            async with guard.client("carol", token=token) as carol:
                await carol.watch()

    async def test_our_client_ends_with_the_reason(self, tmp_path):
        async with guarded(tmp_path) as guard:
            shown = ConnectionSettings(Credentials(token=guard.tokens["alice"]))
            api = FederationApi(guard.server.address, client_id="alice", task="sst2", connection=shown)
            try:
                events = api.watch()
                await asyncio.to_thread(next, events)
                guard.registry.revoke("alice")
                async with asyncio.timeout(5):
                    with pytest.raises(UnauthenticatedError, match="client 'alice' was revoked"):
                        await asyncio.to_thread(list, events)
            finally:
                await asyncio.to_thread(api.close)

    async def test_a_database_that_is_away_leaves_those_known_in_and_is_an_error_in_the_log(
        self, tmp_path, monkeypatch
    ):
        async with guarded(tmp_path) as guard, guard.client("alice") as alice:
            await alice.watch()

            def away(registry: ClientRegistry) -> None:
                raise StoreError("the database is away")

            with capture_logs() as lines, monkeypatch.context() as patch:
                patch.setattr(ClientRegistry, "known", away)
                await asyncio.sleep(5 * REFRESH_S)
                await alice.stub.GetStatus(pb.GetStatusRequest())
            assert [one["reason"] for one in lines if one["event"] == "clients.unreadable"] == ["the database is away"]
            guard.registry.revoke("alice")
            assert (await code_of(drained(alice._events)))[0] is UNAUTHENTICATED


async def drained(call: Any) -> None:
    """Read a stream to its end."""
    async with asyncio.timeout(10):
        while await call.read() is not grpc.aio.EOF:
            pass
    raise AssertionError(f"the stream ended with {await call.code()}")


class TestOurClient:
    def api(self, guard: Guarded, **who: str) -> FederationApi:
        shown = ConnectionSettings(Credentials(token=guard.tokens["alice"]))
        return FederationApi(guard.server.address, connection=shown, **{"client_id": "alice", "task": "sst2"} | who)

    async def test_its_token_goes_with_every_call(self, tmp_path):
        async with guarded(tmp_path) as guard:
            api = self.api(guard)
            events = api.watch()
            await asyncio.to_thread(next, events)
            assert (await asyncio.to_thread(api.get_status)).run_id == guard.server.store.run_id
            slice_ = await asyncio.to_thread(api.get_slice, 0)
            update = Update("alice", "sst2", slice_.round, "u1", "parameters", slice_.run_id, num_examples=1)
            parts = [EncodedComponent.exact(component) for component in slice_.components.values()]
            receipt = await asyncio.to_thread(api.push_update, update, parts)
            assert receipt.outcome == "accepted"
            query = pb.QueryUploadRequest(run_id=slice_.run_id, client_id="alice", update_id="u1")
            connection = api._connection
            await asyncio.to_thread(connection.stub.QueryUpload, query, metadata=connection.call_metadata())
            await asyncio.to_thread(api.close)

    async def test_it_is_told_what_is_not_its_own_and_does_not_try_again(self, tmp_path):
        async with guarded(tmp_path) as guard:
            for who in ({"client_id": "bob"}, {"task": "qqp"}):
                api = self.api(guard, **who)
                async with asyncio.timeout(5):
                    with pytest.raises(PermissionDeniedError):
                        await asyncio.to_thread(next, api.watch())
                api.close()


class TestOtherServices:
    """Health and reflection: left open or closed, as configured."""

    async def health(self, guard: Guarded, token: str | None = None) -> health_pb2.HealthCheckResponse:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        async with grpc.aio.insecure_channel(guard.server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)

    async def services(self, guard: Guarded, token: str | None = None) -> list[str]:
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        async with grpc.aio.insecure_channel(guard.server.address) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            call = stub.ServerReflectionInfo(aiter_of([request]), metadata=metadata)
            answers = [answer async for answer in call]
            return [one.name for one in answers[0].list_services_response.service]

    async def test_by_default_health_is_open_and_reflection_is_closed(self, tmp_path):
        async with guarded(tmp_path) as guard:
            assert (await self.health(guard)).status == health_pb2.HealthCheckResponse.SERVING
            assert (await code_of(self.services(guard)))[0] is UNAUTHENTICATED
            assert "fedmtl.v1.FederatedMtlService" in await self.services(guard, guard.tokens["dashboard"])

    async def test_they_can_be_the_other_way_round(self, tmp_path):
        async with guarded(tmp_path, open_health=False, open_reflection=True) as guard:
            assert (await code_of(self.health(guard)))[0] is UNAUTHENTICATED
            assert (await self.health(guard, guard.tokens["alice"])).status == health_pb2.HealthCheckResponse.SERVING
            assert "fedmtl.v1.FederatedMtlService" in await self.services(guard)

    @pytest.mark.parametrize("is_open", [True, False])
    async def test_reflection_is_the_same_under_its_newer_name(self, tmp_path, is_open):
        async with guarded(tmp_path, open_reflection=is_open) as guard:
            async with grpc.aio.insecure_channel(guard.server.address) as channel:
                ask = channel.stream_stream(
                    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                    reflection_pb2.ServerReflectionRequest.SerializeToString,
                    reflection_pb2.ServerReflectionResponse.FromString,
                )
                call = ask(aiter_of([reflection_pb2.ServerReflectionRequest(list_services="")]))
                if is_open:
                    (answer,) = [answer async for answer in call]
                    assert "fedmtl.v1.FederatedMtlService" in str(answer)
                else:
                    assert await call.code() is UNAUTHENTICATED

    async def test_a_watch_of_a_closed_health_service_ends_with_its_client(self, tmp_path):
        async with guarded(tmp_path, open_health=False) as guard:
            async with grpc.aio.insecure_channel(guard.server.address) as channel:
                metadata = (("authorization", f"Bearer {guard.tokens['alice']}"),)
                call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
                await first(call)
                guard.registry.revoke("alice")
                assert (await code_of(drained(call)))[0] is UNAUTHENTICATED


class TestCertificateAndToken:
    async def test_where_both_come_they_name_the_same_client(self, tmp_path):
        """A token that was stolen is of no use behind another client's certificate."""
        ca = make_authority("ca", days=1)
        pair = make_server(ca, [], days=1)
        for name, data in {"c": pair.certificate_pem, "k": pair.key_pem, "a": ca.certificate_pem}.items():
            (tmp_path / name).write_bytes(data)
        tls = {"certificate": str(tmp_path / "c"), "key": str(tmp_path / "k"), "client_ca": str(tmp_path / "a")}
        async with guarded(tmp_path) as _:
            pass
        with contextlib.closing(ClientRegistry.open(tmp_path / "clients.sqlite")) as registry:
            registry.revoke("alice")
            token = registry.add("alice", ["sst2"], with_token=True)
        sections = {"security": {"tls": tls}}
        settings = {"runs_dir": str(tmp_path)}
        async with serving(tmp_path / "run2", tiny_model("sst2"), sections=sections, settings=settings) as server:
            for name, expected in {"alice": None, "bob": UNAUTHENTICATED}.items():
                own = make_client(ca, name, days=1)
                channel = grpc.ssl_channel_credentials(ca.certificate_pem, own.key_pem, own.certificate_pem)
                async with WireClient(server, "alice", "sst2", channel, token) as client:
                    call = client.stub.GetStatus(pb.GetStatusRequest())
                    if expected is None:
                        await call
                    else:
                        code, details = await code_of(call)
                        assert (code, "but the certificate names 'bob'" in details) == (expected, True)


async def test_no_token_is_in_a_log_a_reply_or_an_error(tmp_path, monkeypatch, caplog):
    """Everything that is said is gathered, of calls that go well and of calls that don't."""
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    caplog.set_level(logging.DEBUG)
    logs.configure("json", "debug")
    secrets: list[str] = []
    async with guarded(tmp_path) as guard:
        secrets += [token.rpartition(".")[2] for token in guard.tokens.values()]
        wrong = guard.tokens["alice"][:-3] + "AAA"
        for name, token in [("alice", None), ("alice", wrong), ("bob", None), ("root", None)]:
            async with guard.client(name, token=token) as client:
                for call in CALLS.values():
                    try:
                        said.write(str(await call(client, "alice", "sst2")))
                    except grpc.aio.AioRpcError as error:
                        said.write(repr(error) + str(error.trailing_metadata()))
        guard.registry.revoke("alice")
        await asyncio.sleep(5 * REFRESH_S)
        async with guard.client("root") as root:
            said.write(str(await root.stub.GetStatus(pb.GetStatusRequest())))
        said.write(str(guard.registry.records()) + repr(guard.registry.known()._by_name))
    everything = said.getvalue() + caplog.text
    for file in (tmp_path / "run").rglob("*"):
        everything += file.read_bytes().decode("latin-1") if file.is_file() else ""
    assert "call.refused" in everything  # it was heard
    for secret in secrets:
        assert secret not in everything
        assert secret[:12] not in everything


async def test_without_authentication_everything_is_as_it_was(tmp_path):
    async with serving(tmp_path / "run", tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        assert server._gate is None
        await client.watch()
        async with WireClient(server, "a", "sst2", token="whatever") as another:
            await another.stub.GetStatus(pb.GetStatusRequest())
