"""The RPCs. They translate between messages and status codes, and calls of the federation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import grpc
from fedmtl.v1 import federation_pb2 as pb
from google.protobuf.message import Message

from fedmtl_core.errors import (
    InvalidRequestError,
    LimitExceededError,
    NonFiniteError,
    RequestError,
    ServerFaultError,
    UnavailableError,
    within,
)
from fedmtl_core.identifiers import quoted, require_identifier, shown
from fedmtl_core.logs import Logger, get_logger
from fedmtl_core.model.scopes import MERGED, SHARED, is_stack, is_trained
from fedmtl_core.wire.chunks import Chunk, chunk_bytes_for, read_message
from fedmtl_core.wire.controls import is_control
from fedmtl_core.wire.details import text_of
from fedmtl_core.wire.formats import Compression, Encoding
from fedmtl_core.wire.messages import (
    PURPOSE_TO_PROTO,
    UPDATE_KIND_FROM_PROTO,
    component_to_proto,
    compression_from_proto,
    encoding_from_proto,
    plan_to_proto,
)
from fedmtl_core.wire.status import status_of
from fedmtl_server.events import RoundEvent
from fedmtl_server.federation import Federation
from fedmtl_server.rounds.report import RefusedUpdate, RoundReport
from fedmtl_server.rpc.abort import abort
from fedmtl_server.rpc.handlers import CallContext, Handler, Q, R
from fedmtl_server.rpc.messages import event_to_proto, report_to_proto, status_to_proto
from fedmtl_server.rpc.uploads import Upload
from fedmtl_server.transfer.offered import require_offered
from fedmtl_server.transfer.slices import CachedVersion, MessageCache, PublishedModel, SlicePart

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["FederatedMtlService"].full_name

MESSAGE_CACHE_BYTES = 32 * 2**20
"""The size of the cache of chunk messages, for clients that download the same chunks slightly later. It holds all
messages of a small model, or the newest of a large model."""


class FederatedMtlServicer:
    """The gRPC service of one federation."""

    def __init__(self, federation: Federation):
        self._federation = federation
        self._messages = MessageCache(MESSAGE_CACHE_BYTES)
        self._report: tuple[RoundReport | None, bytes] = (None, b"")

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the RPCs. A handler may return a response as serialized bytes."""
        unary, stream, upload = (
            grpc.unary_unary_rpc_method_handler,
            grpc.unary_stream_rpc_method_handler,
            grpc.stream_unary_rpc_method_handler,
        )
        handlers: dict[str, Handler[Any, Any]] = {
            "GetSlice": stream(_answering(self.GetSlice), pb.GetSliceRequest.FromString, _serialized),
            "PushUpdate": upload(_answering(self.PushUpdate), _upload_message, _serialized),
            "QueryUpload": unary(_answering(self.QueryUpload), pb.QueryUploadRequest.FromString, _serialized),
            "WatchRounds": stream(_answering(self.WatchRounds), pb.WatchRoundsRequest.FromString, _serialized),
            "GetStatus": unary(_answering(self.GetStatus), pb.GetStatusRequest.FromString, _serialized),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    async def GetSlice(self, request: pb.GetSliceRequest, context: CallContext) -> None:
        log = get_logger(rpc="GetSlice", client_id=shown(request.client_id), task=shown(request.task))
        began = time.monotonic()
        try:
            self._require_slice(request)
            encoding = encoding_from_proto(request.encoding)
            compression = compression_from_proto(request.compression)
        except RequestError as error:
            await _abort(context, error, log, "slice.refused")
        published = self._federation.published
        published.acquire()
        try:
            header, parts = await self._slice(request, published, encoding)
            await _send(context, pb.GetSliceResponse(header=header))
            num_bytes = 0
            for part in parts:
                for offset in part.offsets:
                    message = await self._message(part, offset, compression)
                    await _send(context, message)
                    num_bytes += len(message)
        except RequestError as error:
            await _abort(context, error, log, "slice.abandoned")
        finally:
            published.release()
        self._federation.note_sent(num_bytes)
        facts = {"variant": request.variant} if request.variant else {}
        duration_s = time.monotonic() - began
        log.info("slice.sent", round=published.round, **facts, bytes_sent=num_bytes, duration_s=duration_s)

    async def _slice(
        self, request: pb.GetSliceRequest, published: PublishedModel, encoding: Encoding
    ) -> tuple[pb.SliceHeader, list[SlicePart]]:
        """Return the header of a slice or of a variant, and its parts in order.

        Raises:
            InvalidRequestError: an entry of `held` has an unknown encoding, or the round doesn't offer the variant.
            StaleRoundError: no round is open that offers variants.
        """
        if request.base and published.base:
            return await self._base(request, published)
        scopes = self._federation.model.scopes_for(request.task or None)
        published = await self._federation.prepare(published, request.client_id, scopes, encoding)
        offered = await self._federation.variants_for(request.task, published, encoding)
        held, size = _held(request), chunk_bytes_for(request.max_chunk_bytes)
        whatever = [one for entries in held.values() for one in entries]
        variants: list[pb.SliceVariant] = []
        if request.variant:
            require_offered(request.task, request.variant, offered)
            parts = offered[request.variant].parts(encoding, whatever, size)
        else:
            forms: dict[str, Encoding] = dict.fromkeys(scopes, encoding)
            if MERGED in published.base:
                forms[SHARED] = "float32"  # new adapters have B = 0, and not almost 0
            for scope in self._federation.scopes_beside(request.task, published):
                forms[scope] = "float32"  # both sides must compute with the same numbers
            parts = [published.components[scope].part(form, held.get(scope, ()), size) for scope, form in forms.items()]
            variants = [
                pb.SliceVariant(
                    name=name,
                    components=map(_component_to_proto, one.parts(encoding, whatever, size)),
                    start_margin=one.start_margin,
                )
                for name, one in offered.items()
            ]
        return self._header(request, published, parts, variants), parts

    async def _base(
        self, request: pb.GetSliceRequest, published: PublishedModel
    ) -> tuple[pb.SliceHeader, list[SlicePart]]:
        """Return the header and the parts of a stream that carries the base.

        Raises:
            InvalidRequestError: an entry of `held` has an unknown encoding.
        """
        held, size = _held(request), chunk_bytes_for(request.max_chunk_bytes)
        parts = [one.part("float32", held.get(scope, ()), size) for scope, one in published.base.items()]
        header = self._header(request, published, parts)
        for one in published.base.values():
            header.base_tensor_digests.extend(await asyncio.to_thread(one.tensor_digests))
        return header, parts

    async def PushUpdate(
        self, requests: AsyncIterator[pb.PushUpdateRequest | Chunk], context: CallContext
    ) -> pb.PushUpdateResponse:
        timeout_s = self._federation.rules.rounds.transfer_timeout_s
        upload = Upload(requests, timeout_s, on_ready=lambda: context.send_initial_metadata(()))
        began = time.monotonic()
        log = get_logger(rpc="PushUpdate")
        with _noting_departure(upload, log):
            try:
                receipt = await self._federation.receive(upload)
            except RequestError as error:
                refused = _refused(upload.opening, error)
                self._federation.note_refusal(refused)
                if isinstance(error, NonFiniteError) and error.field == "header.received_metrics":
                    header = upload.opening
                    self._federation.note_damaged_model(header.client_id, header.base_round, refused.reason)
                await _abort(context, error, log, "update.refused", client_id=refused.client_id, task=refused.task)
        log.info(
            "update.duplicate" if receipt.duplicate else "update.accepted",
            client_id=upload.opening.client_id,
            task=upload.opening.task,
            round=receipt.round,
            num_examples=upload.opening.num_examples,
            bytes_received=receipt.num_bytes,
            duration_s=time.monotonic() - began,
        )
        return pb.PushUpdateResponse(
            outcome=pb.OUTCOME_DUPLICATE if receipt.duplicate else pb.OUTCOME_ACCEPTED,
            round=receipt.round,
            num_bytes=receipt.num_bytes,
        )

    async def QueryUpload(self, request: pb.QueryUploadRequest, context: CallContext) -> pb.QueryUploadResponse:
        try:
            self._federation.require_run(request.run_id)
            require_identifier("client_id", request.client_id)
            require_identifier("update_id", request.update_id)
        except RequestError as error:
            await _abort(context, error, get_logger(rpc="QueryUpload"), "query.refused")
        offsets = self._federation.upload_offsets(request.client_id, request.update_id)
        return pb.QueryUploadResponse(
            components=[pb.StagedComponent(scope=scope, num_bytes=size) for scope, size in offsets.items()]
        )

    async def WatchRounds(self, request: pb.WatchRoundsRequest, context: CallContext) -> None:
        log = get_logger(rpc="WatchRounds")
        try:
            self._federation.require_run(request.run_id)
            self._require_watcher(request)
            async with aclosing(self._federation.watch(request.client_id, request.task, request.tasks)) as events:
                async for event in events:
                    await context.write(self._event(event))
        except RequestError as error:
            await _abort(
                context, error, log, "watch.ended", client_id=shown(request.client_id), task=shown(request.task)
            )

    async def GetStatus(self, request: pb.GetStatusRequest, context: CallContext) -> pb.GetStatusResponse:
        return status_to_proto(self._federation.status())

    def _event(self, event: RoundEvent) -> bytes:
        """Serialize an event. Its report, which is the same for all watchers, is serialized once.

        To protobuf, the bytes of two messages in a row are the two messages merged.
        """
        message = event_to_proto(event, self._federation.run_id, self._federation.rules.num_rounds)
        if event.report is None:
            return message.SerializeToString()
        if self._report[0] is not event.report:
            report = pb.WatchRoundsResponse(report=report_to_proto(event.report))
            self._report = (event.report, report.SerializeToString())
        return message.SerializeToString() + self._report[1]

    async def _message(self, part: SlicePart, offset: int, compression: Compression) -> bytes:
        """Return a chunk's message from the cache, or make it for the first client that needs it."""
        message = self._messages.find(part, offset, compression)
        if message is None:
            make, arguments = part.chunks.message, (offset, compression, part.chunk_bytes)
            message = make(*arguments) if compression == "none" else await asyncio.to_thread(make, *arguments)
            self._messages.keep(part, offset, compression, message)
        return message

    def _require_slice(self, request: pb.GetSliceRequest) -> None:
        self._federation.require_run(request.run_id)
        if request.client_id:
            require_identifier("client_id", request.client_id)
        if bool(request.task) == request.all_tasks:
            raise InvalidRequestError(
                "expected either a task or all_tasks, got " + ("both" if request.task else "neither"), field="task"
            )
        if request.task:
            self._federation.require_task(request.task)
        elif request.variant:
            raise InvalidRequestError("variant: expected a task with a variant, got all_tasks", field="variant")
        if request.base and not self._federation.published.base:
            raise InvalidRequestError("base: the run trains all parameters, so it has no base", field="base")
        if request.base and request.variant:
            raise InvalidRequestError("base: expected either base or a variant, got both", field="base")
        self._federation.require_round(request.round)

    def _header(
        self,
        request: pb.GetSliceRequest,
        published: PublishedModel,
        parts: Sequence[SlicePart],
        variants: Sequence[pb.SliceVariant] = (),
    ) -> pb.SliceHeader:
        has_controls = any(is_control(part.layout.scope) for part in parts)
        task = request.task or self._federation.model.tasks[0]
        plan = self._federation.plan(request.client_id, task, published.round)
        if not request.task:  # a slice of all tasks has no single task type
            plan = replace(plan, task_type=None, labels=())
        return pb.SliceHeader(
            run_id=self._federation.run_id,
            round=published.round,
            task=request.task,
            components=[
                _component_to_proto(part, read_only=not is_trained(part.layout.scope, published.round))
                for part in parts
            ],
            total_bytes=sum(part.layout.layout.num_bytes for part in parts),
            plan=plan_to_proto(plan),
            purpose=PURPOSE_TO_PROTO[self._federation.purpose],
            compression=request.compression,
            control_since=published.control_since if has_controls else 0,
            variants=variants,
            variant=request.variant,
            base_digest=published.base_digest,
            stack_base_digest=published.stack_base_digest
            if any(is_stack(part.layout.scope) for part in parts)
            else b"",
        )

    def _require_watcher(self, request: pb.WatchRoundsRequest) -> None:
        if bool(request.client_id) != bool(request.task or request.tasks):
            raise InvalidRequestError(
                "expected a client_id and a task, or neither for an observer, got only "
                + ("a client_id" if request.client_id else "a task"),
                field="task" if request.client_id else "client_id",
            )
        if request.client_id:
            require_identifier("client_id", request.client_id)
            self._require_tasks(request.task, request.tasks)

    def _require_tasks(self, task: str, tasks: Sequence[str]) -> None:
        """Check the tasks of a `WatchRounds` request: the chosen task, and the list of all tasks."""
        seen: set[str] = set()
        for one in tasks:  # checks at most one entry more than the run has tasks
            self._federation.require_task(one)
            if one in seen:
                raise InvalidRequestError(f"tasks: expected each task once, got {quoted(one)} twice", field="tasks")
            seen.add(one)
        if task:
            self._federation.require_task(task)
        if task and tasks and task not in seen:
            raise InvalidRequestError(
                f"task: expected one of the request's tasks {', '.join(tasks)}, got {quoted(task)}", field="task"
            )


def _component_to_proto(part: SlicePart, *, read_only: bool = False) -> pb.Component:
    return component_to_proto(part.layout, part.digest, part.base_digest, read_only=read_only)


def _held(request: pb.GetSliceRequest) -> dict[str, list[CachedVersion]]:
    """Return the entries of a request's `held`, by scope."""
    held: dict[str, list[CachedVersion]] = {}
    for number, one in enumerate(request.held):
        with within(f"held[{number}]"):
            encoding = encoding_from_proto(one.encoding, f"held: {shown(one.scope)}: encoding")
        held.setdefault(one.scope, []).append(CachedVersion(one.digest, encoding, one.num_bytes))
    return held


async def _send(context: CallContext, message: pb.GetSliceResponse | bytes) -> None:
    """Send a part of a slice. A client that is too slow gets `UNAVAILABLE`, because it has exceeded no limit."""
    try:
        await context.write(message)
    except LimitExceededError as error:
        raise UnavailableError(f"{error}; get the slice again") from None


def _answering(method: Callable[[Q, CallContext], Awaitable[R]]) -> Callable[[Q, CallContext], Awaitable[R]]:
    """Wrap an RPC so that it always ends with a code of the contract."""

    async def answer(request: Q, context: CallContext) -> R:
        log = get_logger(rpc=method.__name__)
        try:
            try:
                return await method(request, context)
            except (grpc.aio.AbortError, grpc.aio.InternalError):
                raise
            except RequestError as error:
                await _abort(context, error, log, "request.refused")
            except Exception:
                log.exception("rpc.failed")
                fault = ServerFaultError("the server has failed; its log says why")
                await abort(context, fault)
        except grpc.aio.InternalError:  # the connection is closed, so no status can be sent
            raise asyncio.CancelledError from None

    return answer


def _refused(header: pb.UpdateHeader, error: RequestError) -> RefusedUpdate:
    """Return the record of a refused update. Its header can be missing, and can have any content."""
    return RefusedUpdate(
        client_id=shown(header.client_id),
        task=shown(header.task),
        code=status_of(error).name,
        reason=text_of(error),
        update_id=shown(header.update_id),
        base_round=header.base_round,
        kind=UPDATE_KIND_FROM_PROTO.get(header.kind, ""),
        num_examples=header.num_examples,
    )


def _upload_message(message: bytes) -> pb.PushUpdateRequest | Chunk:
    return read_message(message, pb.PushUpdateRequest)


def _serialized(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


@contextmanager
def _noting_departure(upload: Upload, log: Logger) -> Iterator[None]:
    """Log a client that disconnects in the middle of its stream, which cancels the handler."""
    try:
        yield
    except (asyncio.CancelledError, grpc.aio.InternalError):
        log.info("update.abandoned", client_id=shown(upload.opening.client_id), task=shown(upload.opening.task))
        raise


async def _abort(context: CallContext, error: RequestError, log: Logger, event: str, **facts: object) -> NoReturn:
    code = status_of(error)
    write = log.info if isinstance(error, UnavailableError) else log.warning  # stopping a server is not a fault
    write(event, code=code.name, reason=text_of(error), **facts)
    await abort(context, error)
