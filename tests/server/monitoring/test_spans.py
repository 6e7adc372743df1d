"""Traces of a real run over loopback: one from a client's GetSlice to the commit of its round."""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from fedmtl_client.api import FederationApi
from fedmtl_core.config import Config, TracingConfig
from fedmtl_core.errors import ConfigError
from fedmtl_core.runtime.tracing import OFF
from fedmtl_core.runtime.tracing_setup import tracing_for
from fedmtl_server.server import Server
from tests.client.test_session import session_of, toy_model
from tests.support import WireClient, full_of, serving, tiny_model, watching

ON = {"tracing": {"enabled": True}}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported(monkeypatch):
    """Spans of every process that isn't one of its own here, by the service that recorded them."""
    exporter = InMemorySpanExporter()
    exporter.shutdown = lambda: None  # a server that stops mustn't end the client's
    monkeypatch.setattr("fedmtl_core.runtime.otel.OTLPSpanExporter", lambda endpoint: exporter)
    return exporter


def service_of(span) -> str:
    return span.resource.attributes["service.name"]


async def test_a_trace_goes_from_a_clients_slice_through_its_training_to_the_commit(exported, tmp_path):
    tracing = tracing_for(TracingConfig(enabled=True), "fedmtl-client")
    async with serving(tmp_path, toy_model(), num_rounds=1, sections=ON) as server:
        api = FederationApi(server.address, client_id="a", task="sst2", reconnect_s=20.0, tracing=tracing)
        await asyncio.to_thread(session_of(api, tracing=tracing).run)
        await server.run_task
    await asyncio.to_thread(tracing.close)
    spans = exported.get_finished_spans()
    roots = [span for span in spans if span.parent is None]
    assert [(root.name, service_of(root), root.attributes["fedmtl.round"]) for root in roots] == [
        ("round", "fedmtl-client", 1),
        ("round", "fedmtl-client", 2),
    ]

    def children(parent):
        mine = [span for span in spans if span.parent and span.parent.span_id == parent.context.span_id]
        assert {span.context.trace_id for span in mine} <= {parent.context.trace_id}
        return sorted(mine, key=lambda span: span.start_time)

    training, evaluation = roots
    get_slice, received, train, trained, push = children(training)
    assert [span.name for span in children(training)] == ["GetSlice", "evaluate", "train", "evaluate", "PushUpdate"]
    assert received.end_time <= train.start_time <= train.end_time <= trained.start_time
    for call in (get_slice, push):
        assert (call.kind, service_of(call)) == (SpanKind.CLIENT, "fedmtl-client")
        (answer,) = children(call)
        assert (answer.name, answer.kind, service_of(answer)) == (call.name, SpanKind.SERVER, "fedmtl-server")
        assert answer.attributes["rpc.grpc.status_code"] == 0
        assert answer.status.status_code is not StatusCode.ERROR
    (commit,) = children(answer)
    assert (commit.name, service_of(commit)) == ("commit", "fedmtl-server")
    assert commit.attributes == {"fedmtl.round": 1, "fedmtl.client_id": "a", "fedmtl.task": "sst2"}
    assert commit.end_time > commit.start_time >= train.end_time
    assert [span.name for span in children(evaluation)] == ["GetSlice", "evaluate", "PushUpdate"]
    assert sum(span.name == "commit" for span in spans) == 2


async def test_every_client_of_a_round_sees_the_commit_in_its_own_trace_whatever_its_language(exported, tmp_path):
    """A client that knows nothing of FedMTL's tracing, and sends the W3C header."""
    async with serving(tmp_path, tiny_model("sst2"), min_clients=2, sections=ON) as server:
        async with watching(server, a="sst2", b="sst2") as clients:
            for number, client in enumerate(clients.values()):
                await client.until(pb.ROUND_EVENT_KIND_OPENED)
                header, data = await client.get_slice()
                metadata = (("traceparent", TRACEPARENT.replace("0af7", f"0af{number}")),)
                messages = client.update(header, full_of(data, 1))

                async def stream(messages=messages):
                    for message in messages:
                        yield message

                await client.stub.PushUpdate(stream(), metadata=metadata)
            await clients["a"].until(pb.ROUND_EVENT_KIND_COMMITTED)
    spans = exported.get_finished_spans()
    commits = {span.attributes["fedmtl.client_id"]: span for span in spans if span.name == "commit"}
    pushes = {span.context.span_id: span for span in spans if span.name == "PushUpdate"}
    assert commits.keys() == {"a", "b"}
    for number, commit in enumerate(commits[client_id] for client_id in ("a", "b")):
        assert f"{commit.context.trace_id:032x}" == f"0af{number}651916cd43dd8448eb211c80319c"
        assert f"{pushes[commit.parent.span_id].parent.span_id:016x}" == "b7ad6b7169203331"


@pytest.mark.parametrize("traceparent", ["nonsense", "00-0-0-01", "00-" + 32 * "0" + "-b7ad6b7169203331-01", ""])
async def test_a_refused_call_is_an_error_and_a_wrong_header_does_no_harm(traceparent, exported, tmp_path):
    async with (
        serving(tmp_path, tiny_model("sst2"), sections=ON) as server,
        WireClient(server, "a", "nonsense") as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            call = client.stub.GetSlice(pb.GetSliceRequest(task="nonsense"), metadata=(("traceparent", traceparent),))
            async for _ in call:
                pass
    (span,) = exported.get_finished_spans()
    assert (span.name, span.parent, span.status.status_code) == ("GetSlice", None, StatusCode.ERROR)
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]


async def test_without_tracing_no_call_carries_anything_of_it(tmp_path):
    assert tracing_for(TracingConfig(), "fedmtl-client") is OFF
    async with serving(tmp_path, tiny_model("sst2")) as server:
        assert server._monitoring.interceptors == []
        api = FederationApi(server.address, client_id="a", task="sst2")
        assert api._connection.call_metadata() == ()
        api.close()


def test_tracing_without_its_package_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fedmtl_core.runtime.otel", None)
    config = Config.model_validate({"tasks": {"sst2": {}}, **ON})
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[otel\]'"):
        Server(config, model=tiny_model("sst2"))
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[otel\]'"):
        tracing_for(config.tracing, "fedmtl-client")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as any collector of OTLP does."""

    def __init__(self):
        self.spans = []

    def Export(self, request, context):  # noqa: N802
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_collector_before_the_process_ends():
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracing = tracing_for(TracingConfig(enabled=True, endpoint=f"http://127.0.0.1:{port}"), "fedmtl-client")
        with tracing.span("round", round=3), tracing.call("GetSlice"):
            assert dict(tracing.headers())["traceparent"].startswith("00-")
        tracing.close()
    finally:
        server.stop(None)
    spans = {span.name: span for span in collector.spans}
    assert spans["GetSlice"].parent_span_id == spans["round"].span_id
    assert [(one.key, one.value.int_value) for one in spans["round"].attributes] == [("fedmtl.round", 3)]


def test_a_collector_that_is_away_holds_nobody_up():
    tracing = tracing_for(TracingConfig(enabled=True, endpoint="http://127.0.0.1:9"), "fedmtl-client")
    began = time.monotonic()
    for number in range(100):
        with tracing.span("round", round=number):
            pass
    tracing.close(0.5)
    assert time.monotonic() - began < 4
