#!/usr/bin/env bash
# grpcio 1.85.1 with a server written with h2 4.3.0.
#
# A server refuses an upload before its end: it sends the status (grpc-status 10, ABORTED) with END_STREAM, and then
# resets the stream, so that the client stops sending. HAProxy does so with whatever a server behind it refuses early.
#
# One would guess: the call ends with ABORTED and "round 1 has closed". The status is complete, and the reset comes
# after it. (RFC 9113, 8.1: a client must not discard a complete response because of such a reset.)
#
# What happens: where both arrive together the code is that of the reset, CANCELLED, and the message is lost. The other
# trailers stay: a program that reads `trailing_metadata()` of a CANCELLED call still finds why it was refused.
#
# Output seen:
#   without a reset: ABORTED 'round 1 has closed' why=stale
#   with a reset: CANCELLED 'Stream removed (RST_STREAM (Received RST_STREAM with error code 8))' why=stale
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1 h2==4.3.0

cat > "$folder/show.py" <<'PYTHON'
import socket
import sys
import threading

import grpc
import h2.config
import h2.connection
import h2.events

CANCEL = 8


def serve(listener, reset):
    """Answer one connection's calls with ABORTED, before the request has ended."""
    connection, _ = listener.accept()
    http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    http.initiate_connection()
    connection.sendall(http.data_to_send())
    while data := connection.recv(65536):
        for event in http.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                http.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                trailers = [("grpc-status", "10"), ("grpc-message", "round 1 has closed"), ("why", "stale")]
                http.send_headers(event.stream_id, trailers, end_stream=True)
                if reset:
                    http.reset_stream(event.stream_id, CANCEL)
        connection.sendall(http.data_to_send())


def call(reset):
    """What a client is told whose upload goes on."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener, reset), daemon=True).start()
    over = threading.Event()

    def messages():
        over.wait()
        yield from ()

    address = f"127.0.0.1:{listener.getsockname()[1]}"
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.stream_unary("/example/Upload")(messages(), timeout=20)
        except grpc.RpcError as error:
            return error.code().name, error.details(), dict(error.trailing_metadata()).get("why")
        finally:
            over.set()


seen = {reset: call(reset) for reset in (False, True)}
for reset, (code, details, why) in seen.items():
    print(f"{'with' if reset else 'without'} a reset: {code} {details!r} why={why}")
expected = {False: ("ABORTED", "stale"), True: ("CANCELLED", "stale")}
sys.exit({reset: (code, why) for reset, (code, _, why) in seen.items()} != expected)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
