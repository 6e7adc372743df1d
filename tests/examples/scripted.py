"""A server that keeps to a script: it says and damages what a real one would only by bad luck. It knows no run."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import google_crc32c
import grpc
from fedmtl.v1 import federation_pb2 as pb
from fedmtl.v1 import federation_pb2_grpc as pb_grpc
from google.rpc import error_details_pb2, status_pb2

CODE = grpc.StatusCode
RUN_ID, TASK = "the-run", "sst2"
RETRY_S = 0.4

_ENCODER = struct.pack("<6f", 1, -2, 3, 0.5, 0, -0.25)
_HEAD = struct.pack("<10f", *(0.1 * number for number in range(8)), 0, 0)


def _component(scope: str, data: bytes, shapes: dict[str, tuple[int, ...]]) -> pb.Component:
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensors.append(pb.TensorSpec(name=name, dtype=pb.ELEMENT_TYPE_FLOAT32, shape=shape, offset=offset))
        offset += 4 * (shape[0] * (shape[1] if len(shape) > 1 else 1))
    assert offset == len(data)
    return pb.Component(
        scope=scope,
        tensors=tensors,
        num_bytes=len(data),
        digest=hashlib.sha256(data).digest(),
        encoding=pb.ENCODING_FLOAT32,
        encoded_bytes=len(data),
    )


DATA = {"shared": _ENCODER, f"task:{TASK}": _HEAD}
_SHAPES = {
    "shared": {"encoder.weight": (2, 3)},
    f"task:{TASK}": {f"heads.{TASK}.weight": (2, 4), f"heads.{TASK}.bias": (2,)},
}
CONTROLS = {f"control:{scope}": bytes(len(data)) for scope, data in DATA.items()}
_SHAPES |= {
    f"control:{scope}": {f"control/{name}": shape for name, shape in shapes.items()}
    for scope, shapes in _SHAPES.items()
}
PLAN = pb.TrainingPlan(
    num_rounds=2,
    update_kind=pb.UPDATE_KIND_PARAMETERS,
    task_type=pb.TASK_TYPE_CLASSIFICATION,
    labels=["negative", "positive"],
)


def plan_with(**fields: object) -> pb.TrainingPlan:
    """The plan, with other values in some fields."""
    plan = pb.TrainingPlan()
    plan.CopyFrom(PLAN)
    plan.MergeFrom(pb.TrainingPlan(**fields))
    return plan


@dataclass
class ScriptedServer(pb_grpc.FederatedMtlServiceServicer):
    """Holds two rounds of training and an evaluation for one client.

    Args:
        damage: what is wrong with one download after the other, at first: `chunk`, a checksum; `digest`, what the
            chunks come to; `break`, it ends too soon. Then they are right.
        refusals: what one upload after the other ends with, at first; then they count.
        announce: how often a round is announced.
        plan: of every slice.
        data: of every slice, by scope.
        control_since: of the slices of a round; 0 where it isn't there.
    """

    damage: list[str] = field(default_factory=list)
    refusals: list[grpc.StatusCode] = field(default_factory=list)
    announce: int = 1
    plan: pb.TrainingPlan = field(default_factory=lambda: PLAN)
    data: Mapping[str, bytes] = field(default_factory=lambda: DATA)
    control_since: Mapping[int, int] = field(default_factory=dict)
    metadata: list[dict[str, str]] = field(default_factory=list)
    """Of every call."""
    downloads: list[pb.GetSliceRequest] = field(default_factory=list)
    headers: list[pb.UpdateHeader] = field(default_factory=list)
    """Of every upload."""
    uploaded: dict[int, dict[str, bytes]] = field(default_factory=dict)
    """What counted, by round and scope."""
    faults: list[str] = field(default_factory=list)
    """What the client did against the contract."""
    refused_at: float = 0.0
    waited_s: float = 0.0
    """From a refusal with RetryInfo to the call after it."""

    def __post_init__(self) -> None:
        self._round_ended = {number: asyncio.Event() for number in (1, 2, 3)}

    async def WatchRounds(self, request, context):  # noqa: N802
        self._note(context)
        for number, ended in self._round_ended.items():
            if ended.is_set():
                continue
            for _ in range(self.announce):
                yield self._event(pb.ROUND_EVENT_KIND_OPENED, number)
            await ended.wait()
            yield self._event(pb.ROUND_EVENT_KIND_COMMITTED, number)
        yield self._event(pb.ROUND_EVENT_KIND_FINISHED, 3)

    async def GetSlice(self, request, context):  # noqa: N802
        self._note(context)
        self.downloads.append(request)
        damage = self.damage.pop(0) if self.damage else ""
        header = pb.SliceHeader(
            run_id=RUN_ID,
            round=request.round,
            task=request.task,
            components=[_component(scope, data, _SHAPES[scope]) for scope, data in self.data.items()],
            total_bytes=sum(len(data) for data in self.data.values()),
            plan=self.plan,
            control_since=self.control_since.get(request.round, 0),
            purpose=_purpose(request.round),
        )
        yield pb.GetSliceResponse(header=header)
        for scope, data in self.data.items():
            spoilt = bytes([data[0] ^ 1]) + data[1:]
            sent = spoilt if damage in ("chunk", "digest") else data
            checksum = google_crc32c.value(spoilt if damage == "digest" else data)
            if damage == "break" and scope != "shared":
                await context.abort(CODE.UNAVAILABLE, "the script breaks the download off")
            yield pb.GetSliceResponse(chunk=pb.Chunk(scope=scope, data=sent, crc32c=checksum))

    async def PushUpdate(self, requests, context):  # noqa: N802
        self._note(context)
        first = await anext(requests)
        if first.WhichOneof("part") != "header":
            self.faults.append("the first message of an update is no header")
        header = first.header
        self.headers.append(header)
        following = asyncio.ensure_future(anext(requests, None))
        if header.components:
            done, _ = await asyncio.wait([following], timeout=0.2)
            if done:
                self.faults.append("chunks came before the server said that it has room")
        await context.send_initial_metadata(())
        if self.refusals:
            following.cancel()
            await self._refuse(context, self.refusals.pop(0))
        uploaded = {component.scope: b"" for component in header.components}
        while (message := await following) is not None:
            self._take(message.chunk, uploaded)
            following = asyncio.ensure_future(anext(requests, None))
        self.uploaded[header.base_round] = uploaded
        self._round_ended[header.base_round].set()
        return pb.PushUpdateResponse(outcome=pb.OUTCOME_ACCEPTED, round=header.base_round)

    async def QueryUpload(self, request, context):  # noqa: N802
        self._note(context)
        return pb.QueryUploadResponse()

    def _take(self, chunk: pb.Chunk, uploaded: dict[str, bytes]) -> None:
        if google_crc32c.value(chunk.data) != chunk.crc32c:
            self.faults.append(f"a wrong checksum in {chunk.scope}")
        if chunk.offset != len(uploaded[chunk.scope]) or not 1 <= len(chunk.data) <= 2**21:
            self.faults.append(f"a chunk of {len(chunk.data)} bytes at {chunk.offset} in {chunk.scope}")
        uploaded[chunk.scope] += chunk.data

    async def _refuse(self, context: grpc.aio.ServicerContext, code: grpc.StatusCode) -> None:
        if code is CODE.ABORTED:
            self._round_ended[self.headers[-1].base_round].set()
        details: tuple[tuple[str, bytes], ...] = ()
        if code is CODE.RESOURCE_EXHAUSTED:
            details = _retry_info()
            self.refused_at = asyncio.get_running_loop().time()
        await context.abort(code, f"the script says {code.name}", details)

    def _note(self, context: grpc.aio.ServicerContext) -> None:
        if self.refused_at:
            self.waited_s = asyncio.get_running_loop().time() - self.refused_at
            self.refused_at = 0.0
        self.metadata.append(dict(context.invocation_metadata()))

    def _event(self, kind: pb.RoundEventKind, number: int) -> pb.WatchRoundsResponse:
        return pb.WatchRoundsResponse(
            run_id=RUN_ID,
            kind=kind,
            round=number,
            num_rounds=2,
            purpose=_purpose(number),
            in_cohort=True,
            task=TASK,
            reported=number in self.uploaded,
            deadline_seconds=60,
            oldest_base_round=number,
        )


def _retry_info() -> tuple[tuple[str, bytes], ...]:
    """What asks a caller to wait; it isn't the only detail, nor the first."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(round(1000 * RETRY_S))
    status = status_pb2.Status(code=CODE.RESOURCE_EXHAUSTED.value[0], message="the script's limit")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="SCRIPTED", domain="fedmtl.v1"))
    status.details.add().Pack(retry)
    return (("grpc-status-details-bin", status.SerializeToString()),)


def _purpose(number: int) -> pb.RoundPurpose:
    return pb.ROUND_PURPOSE_EVALUATE if number == 3 else pb.ROUND_PURPOSE_TRAIN


@asynccontextmanager
async def scripted(script: ScriptedServer) -> AsyncIterator[str]:
    """Serve a script; gives the address."""
    server = grpc.aio.server()
    pb_grpc.add_FederatedMtlServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def float32_of(data: bytes) -> Iterator[float]:
    return (number for (number,) in struct.iter_unpack("<f", data))
