"""What a client learns from transfers that break: how large chunks may be, and when trying again is of no use."""

from __future__ import annotations

from typing import Literal

from fedmtl_core.errors import ConnectionLostError, IntermediaryError, RequestError, TransferCutError, UnavailableError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

SHRINKING = 4
"""Chunks become so many times smaller at once."""
MAX_CUTS = 3
"""Cuts at the same byte before a transfer is given up."""
MAX_LOSSES = 8
"""Connections that may be lost before one chunk is through, until chunks become smaller."""

Direction = Literal["upload", "download"]


class ChunkSize:
    """The size of chunks in one direction. It stays small for later transfers: a slow link stays slow.

    Args:
        direction: for the log.
    """

    def __init__(self, direction: Direction):
        self.direction = direction
        self.num_bytes = MAX_CHUNK_BYTES

    def shrink(self, reason: str) -> None:
        """Make chunks smaller, unless they are as small as can be."""
        if self.num_bytes > MIN_CHUNK_BYTES:
            self.num_bytes //= SHRINKING
            get_logger().info("chunks.smaller", direction=self.direction, num_bytes=self.num_bytes, reason=reason)


class Attempts:
    """The attempts of one transfer.

    Args:
        size: of its chunks.
    """

    def __init__(self, size: ChunkSize):
        self._size = size
        self._position = 0
        self._num_cuts = 0
        self._num_losses = 0

    def failed(self, error: RequestError, position: int) -> None:
        """Note that an attempt broke after it had begun to send.

        Args:
            error: why.
            position: how many bytes have arrived, in all attempts.

        Raises:
            TransferCutError: something ends the transfer at this byte again and again.
        """
        stands_still = position == self._position
        if not stands_still:
            self._position, self._num_cuts, self._num_losses = position, 0, 0
        if isinstance(error, IntermediaryError):
            self._count_cut(error)
        if stands_still and self._asks_for_smaller_chunks(error):
            self._size.shrink(str(error))

    def _count_cut(self, error: IntermediaryError) -> None:
        self._num_cuts += 1
        if self._num_cuts == MAX_CUTS:
            raise TransferCutError(
                f"cut {MAX_CUTS} times at byte {self._position} of the {self._size.direction}: is it a proxy's limit "
                f"on size or time (nginx: client_max_body_size, grpc_read_timeout, grpc_send_timeout; HAProxy: timeout "
                f"client, timeout server)? Or the server refused it, and its log says why. The last cut: {error}"
            ) from None

    def _asks_for_smaller_chunks(self, error: RequestError) -> bool:
        """Whether no chunk may have come through for its size. A connection may be lost for other reasons."""
        if not isinstance(error, ConnectionLostError):
            return isinstance(error, UnavailableError)
        self._num_losses += 1
        return self._num_losses % MAX_LOSSES == 0
