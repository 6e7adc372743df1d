"""Raw HTTP/2 frames, to treat a server in ways that gRPC's own clients never do.

A small part of RFC 9113 and RFC 7541: headers are not compressed, the server's frames are read and mostly ignored, and
only `Connection.send` respects flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Mapping
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384
"""The largest payload of a frame, unless both sides agree on more."""
INITIAL_WINDOW = 65_535

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header_block(path: str, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the header block of a gRPC call, with each header as a literal without indexing."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **(metadata or {}),
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def header_frames(stream: int, block: bytes, *, end_stream: bool = False) -> bytes:
    """Return a header block as one HEADERS frame and the CONTINUATION frames that it needs."""
    parts = [block[start : start + FRAME_BYTES] for start in range(0, len(block), FRAME_BYTES)]
    frames = []
    for number, part in enumerate(parts):
        flags = END_HEADERS if number == len(parts) - 1 else 0
        if number == 0:
            frames.append(frame(HEADERS, flags | (END_STREAM if end_stream else 0), stream, part))
        else:
            frames.append(frame(CONTINUATION, flags, stream, part))
    return b"".join(frames)


def message_prefix(num_bytes: int) -> bytes:
    """Return the prefix of a gRPC message of `num_bytes`."""
    return b"\0" + struct.pack(">I", num_bytes)


def data_frames(stream: int, data: bytes, *, end_stream: bool = False) -> bytes:
    """Return a stream's data as DATA frames."""
    starts = range(0, max(1, len(data)), FRAME_BYTES)
    return b"".join(
        frame(DATA, END_STREAM if end_stream and start == starts[-1] else 0, stream, data[start : start + FRAME_BYTES])
        for start in starts
    )


class Connection:
    """An HTTP/2 connection that may violate the protocol.

    Args:
        address: `HOST:PORT`.
        window: bytes that the server may send on each stream; the window is never enlarged.
        deaf: open the connection's window fully, and never read.
    """

    def __init__(self, address: str, window: int = INITIAL_WINDOW, *, deaf: bool = False):
        self._address = address
        self._window = window
        self._deaf = deaf
        self._next_stream = 1
        self.closed = asyncio.Event()
        """Set when the server has closed the connection."""
        self.ended: dict[int, str] = {}
        """For each stream that the server ended, `reset` or `trailers`."""
        self.answers: dict[int, bytes] = {}
        """For each stream, the concatenated header blocks that the server sent."""
        self.windows: dict[int, int] = {0: INITIAL_WINDOW}
        """For each stream, the bytes of data that the server accepts; 0 is the whole connection."""
        self.initial_window = INITIAL_WINDOW
        self.max_streams: int | None = None
        """The maximum number of concurrent streams in the server's settings; None if the settings have no limit."""

    async def __aenter__(self) -> Connection:
        host, _, port = self._address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        settings = struct.pack(">HI", 4, self._window)
        self._writer.write(PREFACE + frame(SETTINGS, 0, 0, settings))
        if self._deaf:
            self.write(frame(WINDOW_UPDATE, 0, 0, (2**31 - 1 - INITIAL_WINDOW).to_bytes(4, "big")))
            self._writer.transport.pause_reading()  # type: ignore[attr-defined]
            return self
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._deaf:
            self._reading.cancel()
        self._writer.transport.abort()

    @property
    def is_lost(self) -> bool:
        """Whether the connection can no longer be written to."""
        return self._writer.is_closing()

    def new_stream(self) -> int:
        """Return the number of a new stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.windows[stream] = self.initial_window
        return stream

    def open(self, path: str, metadata: Mapping[str, str] | None = None, *, end_stream: bool = False) -> int:
        """Start a call by sending its headers, and return its stream."""
        stream = self.new_stream()
        self.write(header_frames(stream, header_block(path, metadata), end_stream=end_stream))
        return stream

    def call(self, path: str, request: bytes) -> int:
        """Make a unary call, and return its stream."""
        stream = self.open(path)
        self.write(data_frames(stream, message_prefix(len(request)) + request, end_stream=True))
        return stream

    def write(self, data: bytes) -> None:
        """Write raw bytes."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the operating system has accepted the written bytes."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def send(self, stream: int, data: bytes) -> None:
        """Send a stream's bytes within the server's flow-control windows."""
        while data and not self.closed.is_set() and stream not in self.ended:
            room = min(self.windows[0], self.windows[stream], FRAME_BYTES)
            if room <= 0:
                await asyncio.sleep(0.002)
                continue
            part, data = data[:room], data[room:]
            self.windows[0] -= len(part)
            self.windows[stream] -= len(part)
            self.write(frame(DATA, 0, stream, part))
            await self.drain()

    async def _read(self) -> None:
        try:
            # The server closed the connection; `closed` is set below.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = await self._reader.readexactly(9)
                    payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                    self._take(head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload)
        finally:
            self.closed.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._configure(payload)
            self.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            if stream in self.windows:
                self.windows[stream] += int.from_bytes(payload, "big")
        elif kind == RST_STREAM:
            self.ended.setdefault(stream, "reset")
        elif kind == HEADERS:
            self.answers[stream] = self.answers.get(stream, b"") + payload
            if flags & END_STREAM:
                self.ended[stream] = "trailers"

    def _configure(self, payload: bytes) -> None:
        for start in range(0, len(payload), 6):
            key, value = struct.unpack(">HI", payload[start : start + 6])
            if key == 3:
                self.max_streams = value
            elif key == 4:
                for stream in self.windows:
                    if stream:
                        self.windows[stream] += value - self.initial_window
                self.initial_window = value


def _text(text: str) -> bytes:
    data = text.encode()
    return _integer(len(data)) + data


def _integer(value: int) -> bytes:
    """Return an integer in HPACK's encoding with a 7-bit prefix."""
    if value < 127:
        return bytes([value])
    encoded, value = bytearray([127]), value - 127
    while value >= 128:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
