#!/usr/bin/env bash
# grpcio 1.85.1 and the proxy variables of the environment.
#
# One would guess: a channel to 127.0.0.1 is made directly; `NO_PROXY` and `no_proxy=*` mean what they do for curl and
# Python's requests; an empty `grpc_proxy` is as good as none.
#
# What happens: with `http_proxy` set, a channel to 127.0.0.1 is made through the proxy, with or without TLS. Upper-case
# variables are ignored, `no_proxy=*` too; `no_proxy=127.0.0.0/8` and `no_proxy=127.0.0.1` help. An empty `grpc_proxy`
# switches `http_proxy` off. A `no_grpc_proxy` takes the place of `no_proxy`, whatever that says.
#
# Output seen:
#   http_proxy: through the proxy
#   HTTP_PROXY: directly
#   http_proxy, NO_PROXY=127.0.0.1: through the proxy
#   http_proxy, no_proxy=*: through the proxy
#   http_proxy, no_proxy=127.0.0.0/8: directly
#   http_proxy, no_proxy=127.0.0.1: directly
#   http_proxy, no_proxy=127.0.0.1, no_grpc_proxy=other: through the proxy
#   http_proxy, grpc_proxy=: directly
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1

cat > "$folder/show.py" <<'PYTHON'
import os
import socket
import sys
import threading

import grpc

asked = threading.Event()
proxy = socket.create_server(("127.0.0.1", 0))
nobody = socket.socket()
nobody.bind(("127.0.0.1", 0))  # and doesn't listen: a direct connection is refused


def serve():
    while True:
        connection, _ = proxy.accept()
        if connection.recv(65536).startswith(b"CONNECT"):
            asked.set()
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        connection.close()


threading.Thread(target=serve, daemon=True).start()
URL = f"http://127.0.0.1:{proxy.getsockname()[1]}"
THROUGH, DIRECTLY = "through the proxy", "directly"
CASES = [
    ({"http_proxy": URL}, THROUGH),
    ({"HTTP_PROXY": URL}, DIRECTLY),
    ({"http_proxy": URL, "NO_PROXY": "127.0.0.1"}, THROUGH),
    ({"http_proxy": URL, "no_proxy": "*"}, THROUGH),
    ({"http_proxy": URL, "no_proxy": "127.0.0.0/8"}, DIRECTLY),
    ({"http_proxy": URL, "no_proxy": "127.0.0.1"}, DIRECTLY),
    ({"http_proxy": URL, "no_proxy": "127.0.0.1", "no_grpc_proxy": "other"}, THROUGH),
    ({"http_proxy": URL, "grpc_proxy": ""}, DIRECTLY),
]
changed = False
for environment, expected in CASES:
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        del os.environ[name]
    os.environ.update(environment)
    asked.clear()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{nobody.getsockname()[1]}", options=options) as channel:
        try:
            channel.unary_unary("/example/Call")(b"", timeout=20)
        except grpc.RpcError:
            pass
    seen = THROUGH if asked.is_set() else DIRECTLY
    changed |= seen != expected
    shown = ", ".join(name if value == URL else f"{name}={value}" for name, value in environment.items())
    print(f"{shown}: {seen}")
sys.exit(changed)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
