"""Which addresses only this machine can reach."""

import pytest

from fedmtl_core.addresses import host_of, is_loopback, join_address, without_brackets


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.3.2.1", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_loopback_is_reached_by_this_machine_alone(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "10.0.0.1", "128.0.0.1", "::ffff:10.0.0.1", "localhost.example.org", "127.0.0.1.evil.org"],
)
def test_everything_else_may_be_reached_by_others(host):
    assert not is_loopback(host)


def test_a_host_is_what_stands_before_the_port():
    assert [host_of("a.b:1"), host_of("127.0.0.1:50051"), host_of("[::1]:2")] == ["a.b", "127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("host", "address"), [("a.b", "a.b:1"), ("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1"), ("[::1]", "[::1]:1")]
)
def test_an_ipv6_address_has_brackets_before_a_port_however_it_is_given(host, address):
    assert join_address(host, 1) == address
    assert host_of(address) == without_brackets(host)
