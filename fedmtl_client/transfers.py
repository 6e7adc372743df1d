"""Reactions to broken transfers: smaller chunks, and giving up when retrying can't help."""

from __future__ import annotations

from typing import Literal

from fedmtl_core.errors import ConnectionLostError, IntermediaryError, RequestError, TransferCutError, UnavailableError
from fedmtl_core.logs import get_logger
from fedmtl_core.wire.chunks import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES

SHRINKING = 4
"""Factor by which chunks become smaller at once."""
MAX_CUTS = 3
"""Cuts at the same byte after which a transfer fails."""
MAX_LOSSES = 8
"""Lost connections without a delivered chunk after which chunks become smaller."""

Direction = Literal["upload", "download"]


class ChunkSize:
    """The chunk size in one direction. It stays small for later transfers, since a slow link stays slow.

    Args:
        direction: the direction in the log.
    """

    def __init__(self, direction: Direction):
        self.direction = direction
        self.num_bytes = MAX_CHUNK_BYTES

    def shrink(self, reason: str) -> None:
        """Make chunks smaller, unless they have the minimum size."""
        if self.num_bytes > MIN_CHUNK_BYTES:
            self.num_bytes //= SHRINKING
            get_logger().info("chunks.smaller", direction=self.direction, num_bytes=self.num_bytes, reason=reason)


class Attempts:
    """Tracks the attempts of one transfer.

    Args:
        size: the size of the transfer's chunks.
    """

    def __init__(self, size: ChunkSize):
        self._size = size
        self._position = 0
        self._num_cuts = 0
        self._num_losses = 0

    def failed(self, error: RequestError, position: int) -> None:
        """Record that an attempt broke after it had begun to send.

        Args:
            error: the error that broke it.
            position: number of bytes that have arrived in all attempts.

        Raises:
            TransferCutError: an intermediary ends the transfer repeatedly at this byte.
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
                f"the {self._size.direction} was cut {MAX_CUTS} times at byte {self._position}: does a proxy limit its "
                f"size or time (nginx: client_max_body_size, grpc_read_timeout, grpc_send_timeout; HAProxy: timeout "
                f"client, timeout server)? If the server refused it, its log says why. The last cut: {error}"
            ) from None

    def _asks_for_smaller_chunks(self, error: RequestError) -> bool:
        """Whether chunks may be too large to be delivered. A lost connection may have other reasons."""
        if not isinstance(error, ConnectionLostError):
            return isinstance(error, UnavailableError)
        self._num_losses += 1
        return self._num_losses % MAX_LOSSES == 0
