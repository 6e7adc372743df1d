"""TLS on real connections over loopback: who may connect, and certificates that are renewed while the server runs."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from fedmtl.v1 import federation_pb2 as pb
from structlog.testing import capture_logs

from fedmtl_client.api import ConnectionSettings, FederationApi
from fedmtl_client.credentials import Credentials, Renewal, load
from fedmtl_core.config import Config, TlsConfig
from fedmtl_core.errors import ConfigError, UnavailableError, UntrustedServerError
from fedmtl_server.access.certs import KeyPair, make_authority, make_client, make_server
from fedmtl_server.access.clients import ClientRegistry
from fedmtl_server.access.tls import CertificateFiles, is_authenticating, require_safe
from tests.support import WireClient, serving, tiny_model

CA = make_authority("the CA", days=10)
OTHER_CA = make_authority("another CA", days=10)
SERVER = make_server(CA, [], days=5)
ALICE = make_client(CA, "alice", days=5)
LONG_AGO = datetime.now(UTC) - timedelta(days=30)


def write(folder: Path, pair: KeyPair = SERVER, client_ca: KeyPair | None = None) -> dict[str, str]:
    """The files of a server, as `security.tls` names them."""
    files = {"certificate": pair.certificate_pem, "key": pair.key_pem}
    files |= {"client_ca": client_ca.certificate_pem} if client_ca else {}
    for name, data in files.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
    return {name: str(folder / name) for name in files}


def channel(ca: KeyPair = CA, own: KeyPair | None = None) -> grpc.ChannelCredentials:
    own_pem = (own.key_pem, own.certificate_pem) if own else (None, None)
    return grpc.ssl_channel_credentials(ca.certificate_pem, *own_pem)


@asynccontextmanager
async def secured(tmp_path, pair=SERVER, client_ca=None, **security):
    """A server with TLS; of its clients it knows alice, by her certificate."""
    registry = ClientRegistry.open(tmp_path / "clients.sqlite")
    registry.add("alice", ["sst2"], with_token=False)
    registry.close()
    sections = {"security": {"tls": write(tmp_path, pair, client_ca), "refresh_s": 0.05, **security}}
    settings = {"runs_dir": str(tmp_path)}
    async with serving(tmp_path / "run", tiny_model("sst2"), sections=sections, settings=settings) as server:
        yield server


async def run_id(server, credentials: grpc.ChannelCredentials | None) -> str:
    async with WireClient(server, "alice", "sst2", credentials) as client:
        return (await client.stub.GetStatus(pb.GetStatusRequest(), timeout=5)).run_id


async def refused(server, credentials: grpc.ChannelCredentials | None) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await run_id(server, credentials)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    return error.value.details()


async def test_a_client_that_trusts_the_ca_is_served_over_tls(tmp_path):
    async with secured(tmp_path, authentication=False) as server:
        assert await run_id(server, channel()) == server.store.run_id


async def test_what_travels_is_not_in_the_clear(tmp_path):
    """Python's own TLS completes a handshake with the port, and is refused one of a version before 1.2."""
    async with secured(tmp_path, authentication=False) as server:
        context = ssl.create_default_context(cadata=CA.certificate_pem.decode())
        context.set_alpn_protocols(["h2"])
        host, _, port = server.address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        writer.close()
        context.set_ciphers("ALL:@SECLEVEL=0")  # or Python would refuse it by itself
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection(host, int(port), ssl=context)


async def test_a_client_without_tls_is_not_served(tmp_path):
    async with secured(tmp_path, authentication=False) as server:
        await refused(server, None)


async def test_a_client_of_another_ca_does_not_trust_the_server(tmp_path):
    async with secured(tmp_path, authentication=False) as server:
        assert "CERTIFICATE_VERIFY_FAILED" in await refused(server, channel(OTHER_CA))


async def test_an_expired_server_is_not_trusted(tmp_path):
    """It was valid when the server started, and a client looks at the time that it is."""
    brief = make_server(CA, [], days=1.5 / 86400)
    async with secured(tmp_path, brief, authentication=False) as server:
        await asyncio.sleep(2)
        assert "certificate has expired" in await refused(server, channel())


class TestMutualTls:
    async def test_a_known_client_with_its_certificate_is_served(self, tmp_path):
        async with secured(tmp_path, client_ca=CA) as server:
            assert await run_id(server, channel(own=ALICE)) == server.store.run_id

    @pytest.mark.parametrize(
        "own",
        [
            None,
            make_client(OTHER_CA, "alice", days=1),
            make_client(CA, "alice", days=1, now=LONG_AGO),
            make_client(ALICE, "alice", days=1),
            SERVER,
        ],
        ids=["none", "of another CA", "expired", "signed by a client", "the server's own"],
    )
    async def test_any_other_certificate_does_not_connect(self, tmp_path, own):
        async with secured(tmp_path, client_ca=CA) as server:
            await refused(server, channel(own=own))

    async def test_a_certificate_of_the_ca_that_names_nobody_known_is_unauthenticated(self, tmp_path):
        async with secured(tmp_path, client_ca=CA) as server:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await run_id(server, channel(own=make_client(CA, "eve", days=1)))
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert error.value.details() == "the certificate names 'eve', which isn't a client of this server"


class TestRenewal:
    async def test_a_renewed_certificate_is_shown_without_a_restart_and_open_streams_stay(self, tmp_path):
        async with secured(tmp_path, authentication=False) as server:
            async with WireClient(server, "alice", "sst2", channel()) as client:
                await client.watch()
                assert await shown(server) == SERVER.certificate.serial_number
                renewed = make_server(CA, [], days=5)
                with capture_logs() as logs:
                    write(tmp_path, renewed)
                    assert await shown(server) == renewed.certificate.serial_number
                assert [line["event"] for line in logs if "certificate" in line["event"]] == [
                    "certificate.renewed",
                    "certificate.expires_soon",
                ]
                assert (await client.stub.GetStatus(pb.GetStatusRequest())).clients[0].connected

    async def test_a_renewed_client_ca_is_asked_for_without_a_restart(self, tmp_path):
        async with secured(tmp_path, client_ca=CA) as server:
            own = make_client(OTHER_CA, "alice", days=1)
            await refused(server, channel(own=own))
            (tmp_path / "client_ca").write_bytes(OTHER_CA.certificate_pem)
            assert await run_id(server, channel(own=own)) == server.store.run_id
            await refused(server, channel(own=ALICE))

    async def test_half_a_renewal_keeps_the_certificate_before_until_the_other_half_is_there(self, tmp_path):
        async with secured(tmp_path, authentication=False) as server:
            renewed = make_server(CA, [], days=5)
            with capture_logs() as logs:
                (tmp_path / "key").write_bytes(renewed.key_pem)
                for _ in range(3):
                    assert await shown(server) == SERVER.certificate.serial_number
            (line,) = [line for line in logs if line["event"] == "certificate.not_renewed"]  # once, not each time
            assert "isn't that of the certificate" in line["reason"]
            (tmp_path / "certificate").write_bytes(renewed.certificate_pem)
            assert await shown(server) == renewed.certificate.serial_number

    @pytest.mark.parametrize(
        "bad",
        [b"", b"nonsense", make_server(CA, [], days=1, now=LONG_AGO).certificate_pem],
        ids=["empty", "no PEM", "expired"],
    )
    async def test_a_bad_file_keeps_the_certificate_before(self, tmp_path, bad):
        async with secured(tmp_path, authentication=False) as server:
            (tmp_path / "certificate").write_bytes(bad)
            assert await shown(server) == SERVER.certificate.serial_number
            (tmp_path / "certificate").unlink()
            assert await shown(server) == SERVER.certificate.serial_number


async def shown(server) -> int:
    """The serial number of the certificate that the server shows to Python's own TLS."""
    from cryptography import x509

    host, _, port = server.address.partition(":")
    context = ssl.create_default_context(cadata=CA.certificate_pem.decode())
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


class TestOurClient:
    """`FederationApi` says what is wrong instead of trying for minutes."""

    async def call(self, server, **credentials) -> pb.GetStatusResponse:
        api = FederationApi(
            server.address,
            client_id="alice",
            task="sst2",
            reconnect_s=1.0,
            connection=ConnectionSettings(Credentials(**credentials)),
        )
        try:
            return await asyncio.to_thread(api.get_status)
        finally:
            api.close()

    async def test_it_is_served_over_mutual_tls(self, tmp_path):
        async with secured(tmp_path, client_ca=CA) as server:
            own = {"certificate": ALICE.certificate_pem, "key": ALICE.key_pem}
            status = await self.call(server, ca=CA.certificate_pem, **own)
            assert status.run_id == server.store.run_id

    async def test_it_gives_up_at_once_on_a_server_that_it_never_trusted(self, tmp_path):
        async with secured(tmp_path, authentication=False) as server:
            async with asyncio.timeout(0.9):
                with pytest.raises(
                    UntrustedServerError, match=r"isn't trusted \(unable to get local issuer certificate\)"
                ):
                    await self.call(server, ca=OTHER_CA.certificate_pem)

    async def test_it_takes_up_a_renewed_certificate_while_it_tries(self, tmp_path):
        """First it has one of another CA, and the server doesn't let it connect."""
        wrong = make_client(OTHER_CA, "alice", days=1)
        names = {"tls_ca": "own.ca", "tls_certificate": "own.pem", "tls_key": "own.key"}
        settings = Config.model_validate({"client": {key: str(tmp_path / name) for key, name in names.items()}})

        def put(pair: KeyPair) -> None:
            (tmp_path / "own.ca").write_bytes(CA.certificate_pem)
            (tmp_path / "own.key").write_bytes(pair.key_pem)
            (tmp_path / "own.pem").write_bytes(pair.certificate_pem)

        put(wrong)
        async with secured(tmp_path, client_ca=CA) as server:
            who = {"client_id": "alice", "task": "sst2", "reconnect_s": 20.0}
            connection = ConnectionSettings(load(settings), Renewal(settings))
            api = FederationApi(server.address, **who, connection=connection)
            with capture_logs() as logs:
                call = asyncio.create_task(asyncio.to_thread(api.get_status))
                await asyncio.sleep(0.5)
                assert not call.done()
                put(ALICE)
                assert (await call).run_id == server.store.run_id
            events = [line["event"] for line in logs]
            assert "server.away" in events
            assert "credentials.renewed" in events
            api.close()

    async def test_it_says_that_a_certificate_is_for_another_host(self, tmp_path):
        async with secured(tmp_path, authentication=False) as server:
            server.address = server.address.replace("127.0.0.1", "127.0.0.2")
            await server._server.stop(0)  # nobody listens there; another server does
            other = grpc.aio.server()
            pair = [(SERVER.key_pem, SERVER.certificate_pem)]
            port = other.add_secure_port("127.0.0.2:0", grpc.ssl_server_credentials(pair))
            await other.start()
            server.address = f"127.0.0.2:{port}"
            with pytest.raises(UntrustedServerError, match=r"a certificate that doesn't name 127\.0\.0\.2"):
                await self.call(server, ca=CA.certificate_pem)
            await other.stop(0)

    async def test_it_says_that_a_server_has_no_tls(self, tmp_path):
        async with serving(tmp_path / "run", tiny_model("sst2")) as server:
            with pytest.raises(UntrustedServerError, match="doesn't speak TLS, but --tls-ca is given"):
                await self.call(server, ca=CA.certificate_pem)

    async def test_it_asks_whether_the_server_wants_tls(self, tmp_path):
        async with secured(tmp_path, client_ca=CA) as server:
            for credentials in ({}, {"ca": CA.certificate_pem}):
                with pytest.raises(UnavailableError, match="does the server ask for TLS"):
                    await self.call(server, **credentials)


def config(host: str = "127.0.0.1", **security) -> Config:
    return Config.model_validate({"server": {"host": host}, "security": security, "tasks": {"sst2": {}}})


TLS = {"certificate": "c", "key": "k"}


@pytest.mark.parametrize(
    "settings",
    [
        config(),
        config("::1"),
        config("localhost", authentication=True),
        config("0.0.0.0", tls=TLS),
        config("0.0.0.0", tls={**TLS, "client_ca": "a"}),
        config("0.0.0.0", insecure=True),
        config("0.0.0.0", tls=TLS, authentication=False, insecure=True),
    ],
)
def test_a_server_starts_where_nobody_comes_in_by_accident(settings):
    require_safe(settings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (config("0.0.0.0"), r"server\.host: 0\.0\.0\.0 .*in the clear.*security\.tls\.certificate.*or pass --insecure"),
        (config("::"), "in the clear"),
        (config("10.0.0.1", authentication=True), "in the clear"),
        (config("fedmtl.example.org"), "in the clear"),
        (
            config("0.0.0.0", tls=TLS, authentication=False),
            r"security\.authentication: .*anybody there could take part",
        ),
    ],
)
def test_a_server_open_to_others_needs_tls_and_clients_or_to_be_told(settings, why):
    with pytest.raises(ConfigError, match=why):
        require_safe(settings)


def test_callers_must_be_known_wherever_others_can_reach_the_server():
    assert not is_authenticating(config())
    assert not is_authenticating(config(tls=TLS))
    assert not is_authenticating(config("0.0.0.0", insecure=True))
    assert is_authenticating(config("0.0.0.0", tls=TLS))
    assert is_authenticating(config(tls={**TLS, "client_ca": "a"}))
    assert is_authenticating(config(authentication=True))
    assert not is_authenticating(config(tls={**TLS, "client_ca": "a"}, authentication=False))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"certificate": None}, r"security\.tls\.?\w*: can't read .*certificate: No such file"),
        ({"certificate": b"x"}, r"security\.tls\.certificate: expected certificates in PEM"),
        ({"key": b"x"}, r"security\.tls\.key: expected a private key in PEM that needs no password"),
        ({"key": ALICE.key_pem}, r"security\.tls\.key: the key in .* isn't that of the certificate"),
        ({"client_ca": b"x"}, r"security\.tls\.client_ca: expected certificates in PEM"),
        (
            {"certificate": (old := make_server(CA, [], days=1, now=LONG_AGO)).certificate_pem, "key": old.key_pem},
            r"security\.tls\.certificate: .* is valid from .* to .* UTC, which isn't now",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named_before_the_server_starts(tmp_path, change, why):
    files = write(tmp_path, client_ca=CA)
    for name, data in change.items():
        (tmp_path / name).unlink() if data is None else (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=why) as error:
        CertificateFiles(TlsConfig.model_validate(files))
    assert "PRIVATE" not in str(error.value)


def test_a_key_that_others_can_read_is_a_warning(tmp_path):
    files = TlsConfig.model_validate(write(tmp_path))
    (tmp_path / "key").chmod(0o640)
    with capture_logs() as logs:
        CertificateFiles(files)
    assert [line["event"] for line in logs if line["log_level"] == "warning" and "key" in line["event"]] == [
        "key.readable_by_others"
    ]
