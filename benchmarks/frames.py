"""HTTP/2 frames as they are, to do to a server what gRPC's own clients never would.

Just enough of RFC 9113 and RFC 7541: nothing is compressed, what the server says is read and mostly ignored, and flow
control is watched only by those who ask for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Mapping
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16_384
"""The most a frame carries unless both sides agree on more."""
INITIAL_WINDOW = 65_535

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def header_block(path: str, metadata: Mapping[str, str] | None = None) -> bytes:
    """The headers of a gRPC call, each a literal that is not to be indexed."""
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
    """A header block as one HEADERS frame and as many CONTINUATION frames as it takes."""
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
    """What precedes a gRPC message of so many bytes."""
    return b"\0" + struct.pack(">I", num_bytes)


def data_frames(stream: int, data: bytes, *, end_stream: bool = False) -> bytes:
    """Bytes of a stream's messages, as they come."""
    starts = range(0, max(1, len(data)), FRAME_BYTES)
    return b"".join(
        frame(DATA, END_STREAM if end_stream and start == starts[-1] else 0, stream, data[start : start + FRAME_BYTES])
        for start in starts
    )


class Connection:
    """One connection that speaks HTTP/2 as badly as it likes.

    Args:
        address: `HOST:PORT`.
        window: how much the server may send on each stream before it has to wait; it is never given more.
        deaf: take all that the server may send, and never read it.
    """

    def __init__(self, address: str, window: int = INITIAL_WINDOW, *, deaf: bool = False):
        self._address = address
        self._window = window
        self._deaf = deaf
        self._next_stream = 1
        self.closed = asyncio.Event()
        """Whether the server has hung up."""
        self.ended: dict[int, str] = {}
        """By stream, how the server ended it: `reset`, or `trailers`."""
        self.answers: dict[int, bytes] = {}
        """By stream, the header blocks that the server sent, one behind the other."""
        self.windows: dict[int, int] = {0: INITIAL_WINDOW}
        """By stream, how many bytes of data the server takes; 0 is the connection as a whole."""
        self.initial_window = INITIAL_WINDOW
        self.max_streams: int | None = None
        """What the server allows."""

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
        """Whether there is nothing left to write to."""
        return self._writer.is_closing()

    def new_stream(self) -> int:
        """The number of the next stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self.windows[stream] = self.initial_window
        return stream

    def open(self, path: str, metadata: Mapping[str, str] | None = None, *, end_stream: bool = False) -> int:
        """Begin a call: its headers alone."""
        stream = self.new_stream()
        self.write(header_frames(stream, header_block(path, metadata), end_stream=end_stream))
        return stream

    def call(self, path: str, request: bytes) -> int:
        """Make a unary call."""
        stream = self.open(path)
        self.write(data_frames(stream, message_prefix(len(request)) + request, end_stream=True))
        return stream

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if not self._writer.is_closing():
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the system has taken what was written."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def send(self, stream: int, data: bytes) -> None:
        """Send a stream's bytes, no faster than the server takes them."""
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
            # The server hung up, which `closed` says.
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
    """A length with a 7-bit prefix."""
    if value < 127:
        return bytes([value])
    encoded, value = bytearray([127]), value - 127
    while value >= 128:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
