"""Sends an update to the server, as messages. Opens no socket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fedmtl.v1 import federation_pb2 as pb

from fedmtl_client.transfers import Attempts, ChunkSize
from fedmtl_core.errors import RequestError
from fedmtl_core.wire.chunks import ChunkedBytes
from fedmtl_core.wire.encoded import EncodedComponent
from fedmtl_core.wire.formats import Compression
from fedmtl_core.wire.update_headers import update_to_header
from fedmtl_core.wire.updates import Update


class Upload:
    """The upload of one update, across reconnections.

    Args:
        update: the update without components and compression.
        components: the update's tensors, in the order of the slice.
        compression: the compression allowed for chunks.
        size: the chunk size.
    """

    def __init__(
        self,
        update: Update,
        components: Sequence[EncodedComponent],
        compression: Compression,
        size: ChunkSize,
    ):
        layouts = tuple(one.layout for one in components)
        self._header = update_to_header(replace(update, components=layouts, compression=compression))
        self._chunked = [ChunkedBytes(one.layout.scope, one.data) for one in components]
        self._compression = compression
        self._size = size
        self._attempts = Attempts(size)
        self._broken_by: RequestError | None = None
        self._has_sent = False

    @property
    def may_be_staged(self) -> bool:
        """Whether the server may have staged parts of the update, from an attempt that broke."""
        return self._broken_by is not None

    def failed(self, error: RequestError) -> None:
        """Record the error that broke an attempt."""
        if self._chunked:
            self._broken_by = error

    def query(self) -> pb.QueryUploadRequest:
        """Return the request for the number of staged bytes."""
        header = self._header
        return pb.QueryUploadRequest(run_id=header.run_id, client_id=header.client_id, update_id=header.update_id)

    def continue_from(self, answer: pb.QueryUploadResponse) -> None:
        """Set the components' start to the end of the server's staged bytes.

        Raises:
            TransferCutError: an intermediary ends the upload repeatedly at this byte.
        """
        staged: Mapping[str, int] = {one.scope: one.num_bytes for one in answer.components}
        for component in self._header.components:
            component.start_offset = staged.get(component.scope, 0)
        error, self._broken_by = self._broken_by, None
        if error is not None and self._has_sent:
            self._has_sent = False
            self._attempts.failed(error, sum(one.start_offset for one in self._header.components))

    def opening(self) -> bytes:
        """Return the first message."""
        return pb.PushUpdateRequest(header=self._header).SerializeToString()

    def accepted(self) -> None:
        """Record that the server has room for the update, so that chunks follow."""
        self._has_sent = True

    def chunks(self) -> Iterator[bytes]:
        """Yield the messages after the first, from the components' start."""
        for component, chunks in zip(self._header.components, self._chunked, strict=True):
            for offset in chunks.offsets(component.start_offset, self._size.num_bytes):
                yield chunks.message(offset, self._compression, self._size.num_bytes)
