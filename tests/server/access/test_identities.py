"""Who a caller is, and what it may do."""

from __future__ import annotations

import hashlib

import pytest

from fedmtl_core.errors import PermissionDeniedError, UnauthenticatedError
from fedmtl_server.access.identities import (
    Claim,
    Client,
    Credentials,
    Identity,
    KnownClients,
    bearer_token,
    certificate_name,
    make_token,
)


def sha256(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


ALICE = Identity("alice", frozenset({"sst2", "qqp"}))


@pytest.mark.parametrize(
    "claim", [Claim(), Claim("alice"), Claim("alice", "sst2"), Claim("alice", "qqp"), Claim("", "sst2")]
)
def test_a_client_may_do_what_is_its_own(claim):
    ALICE.require(claim)


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        (Claim("bob"), r"client_id: these credentials are client 'alice''s, got 'bob'"),
        (Claim("Alice", "sst2"), "got 'Alice'"),
        (Claim("bob", "sst2"), "client_id"),
        (Claim("alice", "stsb"), r"task: client 'alice' may take part in qqp, sst2, got 'stsb'"),
        (Claim("", "stsb"), "got 'stsb'"),
        (Claim("", "", all_tasks=True), "not every task"),
        (Claim("b\u00f6b\n" * 100), r"got 'b\\xf6b\\nb.*\.\.\.'$"),
    ],
)
def test_what_is_anothers_is_denied_and_named(claim, why):
    with pytest.raises(PermissionDeniedError, match=why) as refused:
        ALICE.require(claim)
    assert str(refused.value).isascii()
    assert len(str(refused.value)) < 800


def test_a_client_of_every_task_may_have_them_all_but_no_other_name():
    identity = Identity("alice", None)
    for claim in (Claim("alice", "whatever"), Claim("", "", all_tasks=True)):
        identity.require(claim)
    with pytest.raises(PermissionDeniedError):
        identity.require(Claim("bob"))


def test_every_task_that_a_request_names_has_to_be_the_clients():
    both = Identity("alice", frozenset({"qqp", "sst2"}))
    both.require(Claim("alice", "", tasks=("sst2", "qqp")))
    with pytest.raises(PermissionDeniedError, match="may take part in qqp, sst2, got 'cola'"):
        both.require(Claim("alice", "sst2", tasks=("sst2", "cola")))
    Identity("root", None).require(Claim("root", tasks=("anything",)))


def test_an_observer_may_watch_and_nothing_else():
    observer = Identity("dashboard", frozenset())
    observer.require(Claim())
    with pytest.raises(PermissionDeniedError, match="may take part in no task"):
        observer.require(Claim("dashboard", "sst2"))


class TestKnownClients:
    token = "fedmtl.alice.secret-of-alice"
    clients = KnownClients(
        [
            Client("alice", ("sst2",), sha256(token)),
            Client("bob", None),
            Client("carol", ("qqp",), sha256("fedmtl.carol.x"), revoked=True),
            Client("dora", ("qqp",), revoked=True),
        ]
    )

    def test_a_token_is_its_clients(self):
        assert self.clients.identify(Credentials(token=self.token)) == Identity("alice", frozenset({"sst2"}))

    def test_a_certificate_is_the_client_that_it_names(self):
        assert self.clients.identify(Credentials("bob")) == Identity("bob", None)

    def test_token_and_certificate_of_the_same_client_go_together(self):
        assert self.clients.identify(Credentials("alice", self.token)).client_id == "alice"

    @pytest.mark.parametrize(
        ("credentials", "why"),
        [
            (Credentials(), "expected a client's certificate or its token, got neither"),
            (Credentials(token="fedmtl.alice.secret-of-alicf"), "isn't valid on this server"),
            (Credentials(token="fedmtl.alice."), "isn't valid"),
            (Credentials(token="fedmtl.nobody.secret-of-alice"), "isn't valid"),
            (Credentials(token="fedmtl.bob.secret-of-alice"), "isn't valid"),
            (Credentials(token=""), "isn't valid"),
            (Credentials(token="\udcff"), "isn't valid"),
            (Credentials(token="fedmtl.carol.x"), "client 'carol' was revoked"),
            (Credentials("dora"), "client 'dora' was revoked"),
            (Credentials("eve"), "the certificate names 'eve', which isn't a client"),
            (Credentials("alice"), "client 'alice' was added with a token"),
            (Credentials("bob", token), "the token is client 'alice's, but the certificate names 'bob'"),
        ],
    )
    def test_all_else_is_nobodys(self, credentials, why):
        with pytest.raises(UnauthenticatedError) as refused:
            self.clients.identify(credentials)
        assert why.replace("'alice's", "'alice''s") in str(refused.value)
        assert "secret" not in str(refused.value)

    def test_a_client_with_a_certificate_has_no_token_not_even_one_of_zeros(self):
        """Its digest is unknown, and no token may stand for that."""
        zeros = KnownClients([Client("bob", None, bytes(32))])  # whatever a database might hold
        for clients in (self.clients, zeros):
            with pytest.raises(UnauthenticatedError):
                clients.identify(Credentials(token="fedmtl.bob.anything"))

    def test_secrets_are_not_in_what_python_shows_of_an_object(self):
        shown = repr(Credentials("a", self.token)) + repr(Client("alice", None, sha256(self.token)))
        assert "secret" not in shown
        assert sha256(self.token).hex() not in shown
        assert repr(sha256(self.token)) not in shown

    def test_only_those_not_revoked_are_counted(self):
        assert len(self.clients) == 2


def test_tokens_are_256_random_bits_and_name_their_client():
    tokens = {make_token("a.b-c_d") for _ in range(100)}
    assert len(tokens) == 100
    for token in tokens:
        assert token.startswith("fedmtl.a.b-c_d.")
        secret = token.rpartition(".")[2]
        assert len(secret) == 43  # 256 bits, 6 a character
        client = Client("a.b-c_d", None, sha256(token))
        assert KnownClients([client]).identify(Credentials(token=token)).client_id == "a.b-c_d"


@pytest.mark.parametrize(
    ("values", "token"), [([], None), (["Bearer x"], "x"), (["bearer x.y "], "x.y"), (["BEARER  x"], "x")]
)
def test_a_bearer_token_is_read_from_its_header(values, token):
    assert bearer_token(values) == token


@pytest.mark.parametrize(
    "values", [["hunter2"], ["Basic hunter2"], ["Bearer "], ["Bearer hunter2", "Bearer hunter2"], [""]]
)
def test_another_authorization_is_refused_without_showing_it(values):
    with pytest.raises(UnauthenticatedError) as refused:
        bearer_token(values)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("common", "alternatives", "name"),
    [(["a"], ["a"], "a"), (["a"], ["b", "c"], "a"), ([], ["b"], "b"), ([""], ["b"], "b")],
)
def test_a_certificate_names_one_client(common, alternatives, name):
    assert certificate_name(common, alternatives) == name


@pytest.mark.parametrize(("common", "alternatives"), [([], []), (["a", "b"], ["a"]), ([], ["a", "b"])])
def test_a_certificate_that_names_none_or_several_is_nobodys(common, alternatives):
    with pytest.raises(UnauthenticatedError, match="expected one common name"):
        certificate_name(common, alternatives)
