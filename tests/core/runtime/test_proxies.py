"""Which proxy gRPC connects through: what is told of it is what gRPC does."""

from collections.abc import Iterator

import grpc
import pytest

from fedmtl_core.addresses import host_of
from fedmtl_core.runtime.proxies import channel_options, proxy_of, proxy_of_grpc
from tests.http_proxy import HttpProxy

TARGET = "127.0.0.1:9"
NAME = "a.fedmtl.invalid:9"
"""No name server knows it."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def proxy() -> Iterator[HttpProxy]:
    with HttpProxy() as one:
        yield one


def asks(proxy: HttpProxy, target: str, options: dict[str, int] | None = None) -> bool:
    """Whether a channel of gRPC's to a target asks the proxy."""
    proxy.requested.clear()
    own = {"grpc.use_local_subchannel_pool": 1, **(options or {})}  # not the connection of the channel before
    with grpc.insecure_channel(target, options=list(own.items())) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/x/y")(b"", timeout=20)
    return bool(proxy.requested)


@pytest.mark.parametrize(
    ("target", "environment"),
    [
        (TARGET, {}),
        (TARGET, {"grpc_proxy": "http://{}"}),
        (TARGET, {"https_proxy": "http://{}"}),
        (TARGET, {"http_proxy": "http://{}"}),
        (TARGET, {"http_proxy": "http://user:secret@{}"}),
        (TARGET, {"http_proxy": "http://{}/"}),
        (TARGET, {"HTTP_PROXY": "http://{}"}),
        (TARGET, {"HTTPS_PROXY": "http://{}"}),
        (TARGET, {"all_proxy": "http://{}"}),
        (TARGET, {"http_proxy": "{}"}),
        (TARGET, {"http_proxy": "https://{}"}),
        (TARGET, {"http_proxy": "socks5://{}"}),
        (TARGET, {"grpc_proxy": "", "http_proxy": "http://{}"}),
        (TARGET, {"https_proxy": "socks5://{}", "http_proxy": "http://{}"}),
        (TARGET, {"http_proxy": "http://{}", "NO_PROXY": "127.0.0.1"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": ""}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "*"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "127.0.0.1"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "127.0.0.1:9"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "127.0.0.0/8"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "10.0.0.0/8"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "localhost"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "127.0.0.1", "no_grpc_proxy": "other"}),
        (TARGET, {"http_proxy": "http://{}", "no_proxy": "127.0.0.1", "no_grpc_proxy": ""}),
        (TARGET, {"http_proxy": "http://{}", "no_grpc_proxy": "127.0.0.1"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": "fedmtl.invalid"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": ".fedmtl.invalid"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": "*.fedmtl.invalid"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": "FEDMTL.invalid"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": "mtl.invalid"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": "other, fedmtl.invalid"}),
        (NAME, {"http_proxy": "http://{}", "no_proxy": "0.0.0.0/0"}),
        ("[::1]:9", {"http_proxy": "http://{}", "no_proxy": "::1"}),
        ("[::1]:9", {"http_proxy": "http://{}", "no_proxy": "[::1]"}),
        ("[::1]:9", {"http_proxy": "http://{}", "no_proxy": "::/0"}),
    ],
)
def test_a_proxy_is_named_where_grpc_asks_it_and_nowhere_else(target, environment, proxy, monkeypatch):
    settled = {name: value.format(proxy.address) for name, value in environment.items()}
    for name, value in settled.items():
        monkeypatch.setenv(name, value)
    named = proxy_of_grpc(host_of(target), settled)
    assert (named is not None) == asks(proxy, target)
    assert named is None or named.address == f"http://{proxy.address}"


@pytest.mark.parametrize("target", ["127.0.0.1:9", "localhost:9", "[::1]:9", "127.1.2.3:9"])
@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_no_proxy_is_asked_for_this_machine(target, variable, proxy, monkeypatch):
    monkeypatch.setenv(variable, f"http://{proxy.address}")
    assert asks(proxy, target)
    assert not asks(proxy, target, dict(channel_options(host_of(target))))
    assert proxy_of(host_of(target)) is None


def test_what_is_told_of_a_proxy_has_no_password_and_says_how_to_do_without():
    named = proxy_of("db.example.org", {"https_proxy": "http://user:p@ss@proxy.example.org:3128/x"})
    assert str(named).startswith(
        "https_proxy is set, so gRPC connects through the proxy http://proxy.example.org:3128; add db.example.org to "
        "no_proxy to connect directly"
    )


@pytest.mark.parametrize(
    "address", ["http://[bad:3128", "http://h℀:3", "http://user:p@ss@[::1:1/x", "http://", "://", "http:"]
)
def test_no_text_in_a_variable_is_an_error_and_no_password_is_shown(address):
    proxy = proxy_of("host.example:1", {"http_proxy": address})
    assert proxy is None or "p@ss" not in proxy.address
