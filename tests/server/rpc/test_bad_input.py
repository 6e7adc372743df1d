"""Bad input over a real channel: the code the contract names, what was expected and what came, and no change."""

import asyncio
import struct

import google_crc32c
import grpc
import pytest
import zstandard
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from structlog.testing import capture_logs

from fedmtl_core.errors import LimitExceededError
from fedmtl_server.events import MAX_UNREAD_EVENTS, EventKind
from fedmtl_server.rounds.transitions import Phase
from fedmtl_server.storage.spool import Spool
from tests.support import (
    OddEncoder,
    WireClient,
    chunk_message,
    chunk_messages,
    eventually,
    full_of,
    model_bytes,
    serving,
    tiny_model,
)

CODE = grpc.StatusCode
COMMITTED = pb.ROUND_EVENT_KIND_COMMITTED


def header_with(**changes):
    def change(messages):
        for name, value in changes.items():
            setattr(messages[0].header, name, value)
        return messages

    return change


def tensor_with(index=0, **changes):
    def change(messages):
        tensor = messages[0].header.components[0].tensors[index]
        for name, value in changes.items():
            if name == "shape":
                del tensor.shape[:]
                tensor.shape.extend(value)
            else:
                setattr(tensor, name, value)
        return messages

    return change


def without_tensor(messages):
    component = messages[0].header.components[0]
    del component.tensors[1]
    component.num_bytes = 64
    return messages


def with_tensor(messages):
    component = messages[0].header.components[0]
    component.tensors.add(name="encoder.extra", dtype=pb.ELEMENT_TYPE_FLOAT32, shape=[1], offset=component.num_bytes)
    component.num_bytes += 4
    return messages


def other_heads_component(messages):
    messages[0].header.components[1].scope = "task:qqp"
    return messages


def component_missing(messages):
    del messages[0].header.components[1]
    return messages


def value_of(number):
    def change(messages):
        chunk = messages[1].chunk
        chunk.data = chunk.data[:8] + struct.pack("<f", number) + chunk.data[12:]
        chunk.crc32c = google_crc32c.value(chunk.data)
        return messages

    return change


def chunk_with(**changes):
    def change(messages):
        chunk = messages[1].chunk
        for name, value in changes.items():
            setattr(chunk, name, value)
        if "crc32c" not in changes:
            chunk.crc32c = google_crc32c.value(chunk.data)
        return messages

    return change


def overlapping(messages):
    whole = messages[1].chunk.data
    return [messages[0], *chunk_messages({"shared": whole[:40]}), *_at("shared", 36, whole[36:]), *messages[2:]]


def gap(messages):
    whole = messages[1].chunk.data
    return [messages[0], *chunk_messages({"shared": whole[:40]}), *_at("shared", 44, whole[44:]), *messages[2:]]


def too_many(messages):
    return [*messages, *_at("task:sst2", 40, b"1234")]


def component_with(**changes):
    def change(messages):
        for name, value in changes.items():
            setattr(messages[0].header.components[0], name, value)
        return messages

    return change


def deltas_with(**changes):
    def change(messages):
        messages[0].header.kind = pb.UPDATE_KIND_DELTA
        return component_with(**changes)(messages)

    return change


def compressed(data, size):
    """The encoder's bytes as one compressed chunk that claims to have so many."""

    def change(messages):
        messages[0].header.compression = pb.COMPRESSION_ZSTD
        messages[1].chunk.uncompressed_bytes = size
        return chunk_with(data=data)(messages)

    return change


def metric_with(value):
    def change(messages):
        messages[0].header.received_metrics["accuracy"] = value
        messages[0].header.num_eval_examples = 1
        return messages

    return change


def many_metrics(messages):
    messages[0].header.received_metrics.update({f"m{i}": 0.0 for i in range(65)})
    messages[0].header.num_eval_examples = 1
    return messages


def _at(scope, offset, data):
    chunk = pb.Chunk(scope=scope, offset=offset, data=data, crc32c=google_crc32c.value(data))
    return [pb.PushUpdateRequest(chunk=chunk)]


CASES = {
    "unknown task": (header_with(task="cola"), CODE.NOT_FOUND, "expected one of sst2, qqp, got 'cola'"),
    "another run": (header_with(run_id="other"), CODE.FAILED_PRECONDITION, ", got 'other'"),
    "past round": (header_with(base_round=0), CODE.ABORTED, "for round 0, but the run is at round 1 (open)"),
    "future round": (header_with(base_round=2), CODE.ABORTED, "for round 2, but the run is at round 1 (open)"),
    "outside the cohort": (header_with(client_id="x"), CODE.ABORTED, "'x' is not in the cohort of round 1"),
    "no examples": (header_with(num_examples=0), CODE.INVALID_ARGUMENT, "expected 1 to 9007199254740992, got 0"),
    "negative examples": (header_with(num_examples=-5), CODE.INVALID_ARGUMENT, "num_examples: expected 1 to"),
    "malformed client id": (header_with(client_id="a b"), CODE.INVALID_ARGUMENT, "client_id: expected 1 to 64 letters"),
    "no update id": (header_with(update_id=""), CODE.INVALID_ARGUMENT, "update_id: expected 1 to 64 letters"),
    "no kind": (header_with(kind=0), CODE.INVALID_ARGUMENT, "kind: expected parameters, delta or metrics, got 0"),
    "metrics in training": (
        lambda m: [header_with(kind=pb.UPDATE_KIND_METRICS)(m)[0]],
        CODE.INVALID_ARGUMENT,
        "expected the components none, got shared, task:sst2",
    ),
    "wrong shape": (
        tensor_with(shape=[2, 8]),
        CODE.INVALID_ARGUMENT,
        "encoder.dense.weight: expected float32 [4, 4], got float32 [2, 8]",
    ),
    "wrong dtype": (
        tensor_with(dtype=pb.ELEMENT_TYPE_BFLOAT16),
        CODE.INVALID_ARGUMENT,
        "expected float32 [4, 4], got bfloat16 [4, 4]",
    ),
    "wrong offset": (
        tensor_with(index=0, offset=4),
        CODE.INVALID_ARGUMENT,
        "expected encoder.dense.weight at byte 0, got encoder.dense.weight at byte 4",
    ),
    "unknown dtype": (tensor_with(dtype=77), CODE.INVALID_ARGUMENT, "unknown element type 77"),
    "missing tensor": (without_tensor, CODE.INVALID_ARGUMENT, "tensor 'encoder.dense.bias' is missing"),
    "extra tensor": (with_tensor, CODE.INVALID_ARGUMENT, "the layout has no tensor 'encoder.extra'"),
    "renamed tensor": (tensor_with(name="encoder.w"), CODE.INVALID_ARGUMENT, "'encoder.dense.weight' is missing"),
    "huge sizes": (tensor_with(index=1, shape=[2**40, 2**40]), CODE.INVALID_ARGUMENT, "the last tensor ends at byte"),
    "another task's head": (
        other_heads_component,
        CODE.INVALID_ARGUMENT,
        "expected the components shared, task:sst2, got shared, task:qqp",
    ),
    "missing component": (component_missing, CODE.INVALID_ARGUMENT, "got shared"),
    "NaN": (value_of(float("nan")), CODE.INVALID_ARGUMENT, "encoder.dense.weight has 1 of 16 values NaN or infinite"),
    "infinity": (value_of(float("inf")), CODE.INVALID_ARGUMENT, "NaN or infinite"),
    "NaN metric": (
        metric_with(float("nan")),
        CODE.INVALID_ARGUMENT,
        "accuracy: expected a finite number, got nan",
    ),
    "huge metric": (metric_with(1e308), CODE.INVALID_ARGUMENT, "accuracy: expected a number from 0 to 1, got 1e+308"),
    "no run": (header_with(run_id=""), CODE.INVALID_ARGUMENT, "run_id: expected the run's id"),
    "absurd rank": (tensor_with(shape=[2] * 100_000), CODE.INVALID_ARGUMENT, "at most 16 dimensions"),
    "a million tensors": (
        lambda m: [m[0].header.components[0].tensors.extend([pb.TensorSpec()] * 100_000), *m][1:],
        CODE.INVALID_ARGUMENT,
        "expected 2 tensors, got 100002",
    ),
    "not in ASCII": (chunk_with(scope="\N{GRINNING FACE}" * 3000), CODE.INVALID_ARGUMENT, "chunk of component"),
    "too many metrics": (many_metrics, CODE.RESOURCE_EXHAUSTED, "at most 64 metrics are allowed, got 65"),
    "bytes short": (lambda m: m[:-1], CODE.INVALID_ARGUMENT, "task:sst2: 0 of 40 bytes arrived"),
    "bytes too many": (too_many, CODE.INVALID_ARGUMENT, "ends at byte 44, but the component has 40 bytes"),
    "overlapping offsets": (overlapping, CODE.INVALID_ARGUMENT, "byte 36 overlaps what has arrived, expected byte 40"),
    "gap": (gap, CODE.INVALID_ARGUMENT, "byte 44 leaves a gap, expected byte 40"),
    "offset out of range": (chunk_with(offset=2**40), CODE.INVALID_ARGUMENT, "but the component has 80 bytes"),
    "empty chunk": (chunk_with(data=b""), CODE.INVALID_ARGUMENT, "the chunk at byte 0 is empty"),
    "huge chunk": (chunk_with(data=bytes(2**21 + 1)), CODE.RESOURCE_EXHAUSTED, "at most 2097152 are allowed"),
    "unknown component": (chunk_with(scope="task:qqp"), CODE.INVALID_ARGUMENT, "chunk of component 'task:qqp'"),
    "checksum mismatch": (chunk_with(crc32c=1), CODE.DATA_LOSS, "expected 00000001"),
    "not a frame": (compressed(b"12345678", 80), CODE.INVALID_ARGUMENT, "is not a Zstandard frame"),
    "another size than the frame's": (
        compressed(zstandard.ZstdCompressor().compress(bytes(79)), 80),
        CODE.INVALID_ARGUMENT,
        "the compressed chunk at byte 0 states 79 bytes, expected 80",
    ),
    "compressed unannounced": (
        chunk_with(uncompressed_bytes=80),
        CODE.INVALID_ARGUMENT,
        "is not announced: the header says no compression",
    ),
    "int8 without finite scales": (
        lambda m: [
            *deltas_with(encoding=pb.ENCODING_INT8, encoded_bytes=40)(m)[:1],
            *chunk_messages({"shared": struct.pack("<5f", 1, 1, float("nan"), 1, 1) + bytes(20)}),
            *m[2:],
        ],
        CODE.INVALID_ARGUMENT,
        "shared",
    ),
    "topk out of range": (
        lambda m: [
            *deltas_with(encoding=pb.ENCODING_TOPK, encoded_bytes=8)(m)[:1],
            *chunk_messages({"shared": struct.pack("<If", 20, 1.0)}),
            *m[2:],
        ],
        CODE.INVALID_ARGUMENT,
        "shared",
    ),
    "header missing": (lambda m: m[1:], CODE.INVALID_ARGUMENT, "expected a header first, got chunk"),
    "header twice": (lambda m: [m[0], *m], CODE.INVALID_ARGUMENT, "expected a chunk after the header, got header"),
    "chunk before header": (
        lambda m: [m[1], m[0], *m[2:]],
        CODE.INVALID_ARGUMENT,
        "expected a header first, got chunk",
    ),
    "empty message": (
        lambda m: [m[0], pb.PushUpdateRequest()],
        CODE.INVALID_ARGUMENT,
        "expected a chunk after the header, got an empty message",
    ),
    "empty stream": (lambda m: [], CODE.INVALID_ARGUMENT, "expected a header, got an empty stream"),
}


HEADERS = {
    "unknown encoding": (component_with(encoding=77), "shared: encoding: expected one of float32, float16"),
    "unknown compression": (header_with(compression=9), "compression: expected one of none, zstd, got 9"),
    "int8 of parameters": (
        component_with(encoding=pb.ENCODING_INT8, encoded_bytes=40),
        "shared: encoding: int8 is for deltas only",
    ),
    "topk of parameters": (
        component_with(encoding=pb.ENCODING_TOPK, encoded_bytes=8),
        "shared: encoding: topk is for deltas only",
    ),
    "float32 of another size": (component_with(encoding=pb.ENCODING_FLOAT32, encoded_bytes=84), "got 84"),
    "no encoding but another size": (component_with(encoded_bytes=40), "got 40"),
    "no size": (component_with(encoding=pb.ENCODING_FLOAT32), "got 0"),
    "float16 of another size": (component_with(encoding=pb.ENCODING_FLOAT16, encoded_bytes=80), "got 80"),
    "int8 of another size": (deltas_with(encoding=pb.ENCODING_INT8, encoded_bytes=20), "got 20"),
    "topk of an odd size": (deltas_with(encoding=pb.ENCODING_TOPK, encoded_bytes=12), "got 12"),
    "topk of too much": (deltas_with(encoding=pb.ENCODING_TOPK, encoded_bytes=8 * 11), "got 88"),
    "topk of the whole memory": (deltas_with(encoding=pb.ENCODING_TOPK, encoded_bytes=2**63), f"got {2**63}"),
    "a start past the end": (component_with(start_offset=81), "start_offset: expected at most 80, got 81"),
}


@pytest.mark.parametrize("case", HEADERS)
async def test_a_header_that_makes_no_sense_is_refused_before_any_data_is_taken(case, tmp_path):
    change, text = HEADERS[case]
    async with serving(tmp_path, tiny_model("sst2"), min_clients=1) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            header, data = await client.get_slice()
            messages = change(client.update(header, data))

            async def header_alone():
                yield messages[0]
                await asyncio.Event().wait()  # the answer comes without anything more

            async with asyncio.timeout(10):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await client.stub.PushUpdate(header_alone())
            assert refusal.value.code() is CODE.INVALID_ARGUMENT, refusal.value.details()
            assert text in refusal.value.details()
            assert server.federation.staging.used_bytes == 0


async def test_an_upload_that_goes_on_from_what_is_not_staged_is_told_to_ask_again(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        header, data = await client.get_slice()
        messages = component_with(start_offset=40)(client.update(header, data))
        with pytest.raises(grpc.aio.AioRpcError, match="call QueryUpload again") as refusal:
            await client.push(messages)
        assert refusal.value.code() is CODE.UNAVAILABLE


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"encoding": 77}, "encoding: expected one of float32, float16, bfloat16, int8, topk, got 77"),
        ({"compression": 9}, "compression: expected one of none, zstd, got 9"),
        ({"held": [pb.HeldComponent(scope="shared", encoding=77)]}, "held: shared: encoding: expected one of"),
    ],
)
async def test_a_slice_in_an_unknown_form_is_refused(fields, text, tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.get_slice(**fields)
    assert refusal.value.code() is CODE.INVALID_ARGUMENT
    assert text in refusal.value.details()


@pytest.mark.parametrize("fields", [{"client_id": ""}, {"client_id": "a", "update_id": "a b"}, {"client_id": "x" * 65}])
async def test_a_query_with_a_malformed_id_is_refused(fields, tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        with pytest.raises(grpc.aio.AioRpcError, match="expected 1 to 64 letters"):
            await client.stub.QueryUpload(pb.QueryUploadRequest(**fields))
        with pytest.raises(grpc.aio.AioRpcError, match="run_id: expected this server's run"):
            await client.stub.QueryUpload(pb.QueryUploadRequest(run_id="x", client_id="a", update_id="b"))


@pytest.mark.parametrize("case", CASES)
async def test_a_bad_update_is_refused_in_words_and_changes_nothing(case, tmp_path):
    change, code, text = CASES[case]
    model = tiny_model("sst2", "qqp")
    before = model_bytes(model)
    async with serving(tmp_path, model, min_clients={"sst2": 1}) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            await eventually(lambda: server.federation.status().phase is Phase.OPEN)
            header, data = await client.get_slice()
            with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.push(change(client.update(header, data)))
            assert refusal.value.code() is code, refusal.value.details()
            assert text in refusal.value.details()
            (line,) = [line for line in logs if line["event"] == "update.refused"]
            assert line["code"] == code.name
            assert text in line["reason"]
            assert model_bytes(model) == before
            if code is not CODE.DATA_LOSS:  # of which a retry can use what came before
                assert server.federation.staging.used_bytes == 0
            receipt = await client.push(client.update(header, data))  # the good one counts all the same
            assert receipt.outcome == pb.OUTCOME_ACCEPTED
            event = await client.until(COMMITTED)
    assert event.report.num_refused == 1
    assert event.report.refused[0].code == code.name


async def test_a_client_that_goes_away_in_mid_stream_changes_nothing_and_can_go_on(tmp_path):
    model = tiny_model("sst2")
    before = model_bytes(model)
    async with serving(tmp_path, model) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        header, data = await client.get_slice()
        messages = client.update(header, data)

        async def half():
            yield messages[0]
            yield messages[1]
            await asyncio.Event().wait()

        with capture_logs() as logs:
            update_id = messages[0].header.update_id
            call = client.stub.PushUpdate(half())
            await eventually(lambda: server.federation.stats.bytes_received > 0)  # and so in their place
            call.cancel()
            await eventually(lambda: any(line["event"] == "update.abandoned" for line in logs))
        assert model_bytes(model) == before
        staged = await client.stub.QueryUpload(pb.QueryUploadRequest(client_id="a", update_id=update_id))
        assert [(one.scope, one.num_bytes) for one in staged.components] == [("shared", 80), ("task:sst2", 0)]
        messages[0].header.components[0].start_offset = 80
        receipt = await client.push([messages[0], *messages[2:]])
        assert receipt.outcome == pb.OUTCOME_ACCEPTED
        assert receipt.num_bytes == len(data["task:sst2"])
        await client.until(COMMITTED)
    assert server.federation.staging.used_bytes == 0


async def test_what_is_left_of_an_upload_may_come_compressed_otherwise(tmp_path):
    model = tiny_model("sst2")
    async with serving(tmp_path, model) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        slice_, data = await client.get_slice()
        header, shared, head = client.update(slice_, full_of(data, 3))
        damaged = chunk_message("task:sst2", 0, head.chunk.data)
        damaged.chunk.crc32c ^= 1
        with pytest.raises(grpc.aio.AioRpcError, match="CRC32C"):
            await client.push([header, shared, damaged])
        header.header.components[0].start_offset = len(shared.chunk.data)
        header.header.compression = pb.COMPRESSION_ZSTD
        packed = chunk_message("task:sst2", 0, zstandard.ZstdCompressor().compress(head.chunk.data))
        packed.chunk.uncompressed_bytes = len(head.chunk.data)
        assert (await client.push([header, packed])).outcome == pb.OUTCOME_ACCEPTED
        await client.until(COMMITTED)
    assert model.components["task:sst2"].views()["heads.sst2.bias"].tolist() == [3.0, 3.0]


async def test_an_upload_that_stalls_is_given_up(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), transfer_timeout_s=0.3) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            header, data = await client.get_slice()
            messages = client.update(header, data)

            async def half():
                yield messages[0]
                await asyncio.Event().wait()

            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.stub.PushUpdate(half())
            assert refusal.value.code() is CODE.UNAVAILABLE
            assert "no message arrived for 0.3 s" in refusal.value.details()
            assert (await client.push(messages)).outcome == pb.OUTCOME_ACCEPTED
            await client.until(COMMITTED)
        assert server.federation.staging.used_bytes == 0


@pytest.mark.parametrize("half_way", [False, True])
async def test_a_stream_that_was_cut_is_not_taken_for_one_that_ended(half_way, tmp_path):
    """Neither counted, where what came would be enough, nor refused, where it isn't."""
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=1) as server:
        async with WireClient(server, "a", "sst2") as client:
            await client.watch()
            await client.until(pb.ROUND_EVENT_KIND_OPENED, 1)  # it is logged a moment after the join
            header, data = await client.get_slice()
            if not half_way:
                await client.push(client.update(header, data))
                await client.until(pb.ROUND_EVENT_KIND_OPENED, 2)
                header, data = await client.get_slice()
                messages = client.update(header, {}, kind=pb.UPDATE_KIND_METRICS, components=[])
            else:
                messages = client.update(header, data)[:2]
            for _ in range(10):
                arrived = asyncio.Event()

                async def half(arrived=arrived):
                    for message in messages:
                        yield message
                    arrived.set()
                    await asyncio.Event().wait()

                with capture_logs() as logs:
                    call = client.stub.PushUpdate(half())
                    await arrived.wait()
                    await asyncio.sleep(0.02)  # let the server read what was sent
                    call.cancel()
                    await eventually(lambda logs=logs: any(line.get("rpc") == "PushUpdate" for line in logs))
                assert [line["event"] for line in logs] == ["update.abandoned"]
            status = server.federation.status()
            assert Spool(tmp_path / "staging").scan() == []  # nor is it found by a server after this one
    assert [client.reported for client in status.clients] == [False]
    assert server.federation.stats.num_refused == 0


async def test_what_finishes_after_the_stop_began_is_not_acknowledged(tmp_path):
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        header, data = await client.get_slice()
        run = next(task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Server.run")
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.push(client.update(header, data))
        assert refusal.value.code() is CODE.UNAVAILABLE
        assert "the server is stopping" in refusal.value.details()


async def test_a_slice_that_is_not_read_is_given_up(tmp_path):
    model = tiny_model("sst2", encoder=OddEncoder())
    # With a window that doesn't grow: on a busy machine gRPC makes it as large as the whole slice.
    options = [("grpc.http2.bdp_probe", 0)]
    async with (
        serving(tmp_path, model, transfer_timeout_s=0.3) as server,
        grpc.aio.insecure_channel(server.address, options=options) as channel,
    ):
        with capture_logs() as logs:
            call = pb_grpc.FederatedMtlServiceStub(channel).GetSlice(pb.GetSliceRequest(task="sst2"))
            await eventually(lambda: any(line["event"] == "slice.abandoned" for line in logs))
        assert [line["code"] for line in logs if line["event"] == "slice.abandoned"] == ["UNAVAILABLE"]
        call.cancel()


SLICES = {
    "unknown task": ({"task": "cola"}, CODE.NOT_FOUND, "expected one of sst2, got 'cola'"),
    "neither": ({"task": ""}, CODE.INVALID_ARGUMENT, "either a task or all_tasks, got neither"),
    "both": ({"all_tasks": True}, CODE.INVALID_ARGUMENT, "either a task or all_tasks, got both"),
    "another run": ({"run_id": "other"}, CODE.FAILED_PRECONDITION, ", got 'other'"),
    "another round": ({"round": 7}, CODE.ABORTED, "requested for round 7, but the run is at round 1"),
}


@pytest.mark.parametrize("case", SLICES)
async def test_a_slice_that_is_not_there_is_refused(case, tmp_path):
    fields, code, text = SLICES[case]
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, "a", "sst2") as client:
        with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.get_slice(**fields)
        assert refusal.value.code() is code
        assert text in refusal.value.details()
        assert [line["event"] for line in logs] == ["slice.refused"]


WATCHERS = {
    "unknown task": (("a", "cola"), CODE.NOT_FOUND, "expected one of sst2, got 'cola'"),
    "no task": (("a", ""), CODE.INVALID_ARGUMENT, "got only a client_id"),
    "no client id": (("", "sst2"), CODE.INVALID_ARGUMENT, "got only a task"),
    "malformed id": (("a/b", "sst2"), CODE.INVALID_ARGUMENT, "client_id: expected 1 to 64 letters"),
}


@pytest.mark.parametrize("case", WATCHERS)
async def test_a_watcher_that_does_not_say_who_it_is_is_refused(case, tmp_path):
    who, code, text = WATCHERS[case]
    async with serving(tmp_path, tiny_model("sst2")) as server, WireClient(server, *who) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.watch()
        assert refusal.value.code() is code
        assert text in refusal.value.details()
        assert server.federation.status().clients == []


async def test_a_client_id_taken_up_by_another_process_ends_the_first_ones_stream(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3) as server:
        async with WireClient(server, "a", "sst2") as first, WireClient(server, "a", "sst2") as second:
            await first.watch()
            await second.watch()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while True:
                    await first.event()
            assert ended.value.code() is CODE.ALREADY_EXISTS
            assert "another process has connected as client 'a'" in ended.value.details()
            assert [client.connected for client in server.federation.status().clients] == [True]


async def test_a_watcher_that_never_reads_is_cut_off_and_costs_no_more(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp")) as server:
        events = server.federation.watch("", "")
        await anext(events)
        for _ in range(MAX_UNREAD_EVENTS + 10):
            server.federation._driver.audience.publish(EventKind.WAITING)
        with pytest.raises(LimitExceededError, match="left more than 256 events unread; call WatchRounds again"):
            for _ in range(MAX_UNREAD_EVENTS + 10):
                await anext(events)
        assert len(server.federation._driver.audience) == 0


async def test_a_server_that_stops_says_so_to_its_watchers(tmp_path):
    async with serving(tmp_path, tiny_model("sst2", "qqp")) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        await server.stop("the server is stopping")
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await client.event()
        assert ended.value.code() is CODE.UNAVAILABLE
        assert "the server is stopping" in ended.value.details()


async def test_a_late_update_is_told_that_it_is_late_also_where_the_layout_is_another_by_now(tmp_path):
    async with serving(tmp_path, tiny_model("sst2"), num_rounds=3) as server, WireClient(server, "a", "sst2") as client:
        await client.watch()
        header, data = await client.get_slice()
        assert (await client.push(client.update(header, data))).outcome == pb.OUTCOME_ACCEPTED
        await client.until(COMMITTED)
        header.components[0].tensors[0].shape[0] += 1  # as if layers had moved at the commit
        assert (await client.push(client.update(header, data))).outcome == pb.OUTCOME_DUPLICATE
        for base_round, code in ((1, CODE.ABORTED), (2, CODE.INVALID_ARGUMENT)):
            header.round = base_round
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await client.push(client.update(header, data, update_id="another"))
            assert refusal.value.code() is code, refusal.value.details()
