"""The tokens of the fake service: how they are issued, exchanged, scoped and revoked."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import ME, PASSWORD
from .conftest import Connect, claims, sign_in


@pytest.mark.parametrize(
    ("lifetime", "expires_at"),
    [
        (timedelta(minutes=5, seconds=0.25), "2026-01-01T00:05:00.25Z"),  # as Go prints it
        (timedelta.max, "9999-12-31T23:59:59Z"),
        (timedelta(0), "2026-01-01T00:00:00Z"),
        (timedelta(days=-99_999), "1970-01-01T00:00:00Z"),
    ],
)
def test_any_lifetime_can_be_printed(
    connect: Connect, lifetime: timedelta, expires_at: str
) -> None:
    """Even an absurd lifetime gives a time that can be read, so that clients meet absurd times."""
    fake = FakeKoyeb(clock=FakeClock(), token_lifetime=lifetime)
    assert sign_in(connect(fake)).json()["token"]["expires_at"] == expires_at


def test_refresh_keeps_the_old_token(connect: Connect) -> None:
    """With ``keeps``, the old token is good until it expires, for further refreshes too."""
    fake = FakeKoyeb(refresh="keeps", clock=(clock := FakeClock()))
    client = connect(fake, old := fake.issue_token())
    clock.advance(3_600)
    for _ in range(2):
        assert client.put("/v1/account/refresh").status_code == 200
    assert (fake.live_tokens()[0], len(fake.live_tokens())) == (old, 3)
    clock.advance(timedelta(hours=23))
    assert client.put("/v1/account/refresh").status_code == 401
    assert len(fake.live_tokens()) == 2


def test_reuse_ends_the_family(fake: FakeKoyeb, client: httpx.Client, connect: Connect) -> None:
    """A refresh with an exchanged token again ends the descendants of that sign-in, no more."""
    other = fake.issue_token()
    new = client.put("/v1/account/refresh").json()["token"]["id"]
    organization = fake.organizations[ME][1]
    switch = f"/v1/organizations/{organization}/switch"
    assert connect(fake, new).post(switch, json={}).status_code == 200
    assert len(fake.live_tokens()) == 3
    assert client.put("/v1/account/refresh").status_code == 401
    assert fake.live_tokens() == [other]
    assert fake.exchanges() == 1


def test_expired_exchanged_token_is_no_reuse(connect: Connect) -> None:
    """An expired token is refused for that, before any other reason."""
    fake = FakeKoyeb(clock=(clock := FakeClock()))
    client = connect(fake, fake.issue_token(lifetime=timedelta(seconds=9)))
    client.put("/v1/account/refresh")
    clock.advance(9)
    assert client.put("/v1/account/refresh").status_code == 401
    assert len(fake.live_tokens()) == 1


def test_new_session_is_for_no_organization(fake: FakeKoyeb, connect: Connect) -> None:
    """A new session is a second sign-in without an organization: both tokens are good."""
    client = connect(fake, token := fake.issue_token())
    new = client.post("/v1/account/session").json()["token"]
    assert "organization_id" not in new
    assert fake.live_tokens() == [token, new["id"]]
    client.put("/v1/account/refresh")
    client.put("/v1/account/refresh")
    assert fake.live_tokens() == [new["id"]]


def test_switch_organization_checks_membership(connect: Connect) -> None:
    """A switch is for members; to a strange organization it is a 403, to none a 404."""
    fake = FakeKoyeb(users={ME: PASSWORD, "you@example.com": "x"})
    client = connect(fake, token := fake.issue_token(ME))
    mine, shared = fake.organizations[ME]
    yours = fake.organizations["you@example.com"][0]
    switched = client.post(f"/v1/organizations/{shared}/switch", json={})
    assert switched.json()["token"]["organization_id"] == shared
    assert fake.live_tokens() == [token, switched.json()["token"]["id"]]
    statuses = {
        organization: client.post(f"/v1/organizations/{organization}/switch", json={}).status_code
        for organization in (mine, yours, "", "%2E%2E", "a%2Fb")
    }
    assert list(statuses.values()) == [200, 403, 404, 404, 404]
    assert client.post(f"/v1/organizations/{mine}/switch").status_code == 400


def test_unscope_gives_a_token_of_no_organization(fake: FakeKoyeb, connect: Connect) -> None:
    """The session goes on without an organization; an API token has no session to go on with."""
    client = connect(fake, token := fake.issue_token())
    new = client.post("/v1/unscope_organization_token", json={}).json()["token"]
    assert "organization_id" not in new
    assert fake.live_tokens() == [token, new["id"]]
    assert client.post("/v1/unscope_organization_token").status_code == 400
    api = connect(fake, fake.issue_api_token())
    assert api.post("/v1/unscope_organization_token", json={}).status_code == 403


def access_token(client: httpx.Client, organization: str, body: object) -> httpx.Response:
    """Ask for an access token."""
    return client.post(f"/v1/organizations/{organization}/access_token", json=body)


@pytest.mark.parametrize(
    ("body", "life"),
    [
        ({}, 3600),
        ({"validity": None}, 3600),
        ({"validity": "1s"}, 1),
        ({"validity": "86400s"}, 86_400),
        ({"validity": "2.500000000s"}, 2.5),
    ],
)
def test_access_token_is_good_for_its_validity(
    connect: Connect, body: dict[str, str], life: float
) -> None:
    """The reply is a bare string, which works until the validity is over."""
    clock = FakeClock()
    fake = FakeKoyeb(access_tokens="opaque", clock=clock)
    organization = fake.organizations[ME][1]
    issued = access_token(connect(fake, fake.issue_token()), organization, body).json()
    assert list(issued) == ["token"]
    assert "." not in issued["token"]
    client = connect(fake, issued["token"])
    clock.advance(life - 0.001)
    current = client.get("/v1/account/organization").json()["organization"]
    assert current["id"] == organization
    clock.advance(0.001)
    assert client.get("/v1/apps").status_code == 401


@pytest.mark.parametrize(
    "validity", ["", "0s", "0.0s", "-1s", "3600", "1h", "86401s", "86400.000001s", 5, ["5s"]]
)
def test_access_token_for_an_impossible_validity(
    fake: FakeKoyeb, client: httpx.Client, validity: object
) -> None:
    """A value that is no duration, or one beyond a day, is a validation error."""
    reply = access_token(client, fake.organizations[ME][0], {"validity": validity})
    assert reply.status_code == 400
    assert reply.json()["fields"][0]["field"] == "validity"


def test_access_token_is_a_jwt_by_default(connect: Connect) -> None:
    """Its claims say when it ends; which form the service's tokens have is not documented."""
    fake = FakeKoyeb(clock=FakeClock())
    organization = fake.organizations[ME][0]
    client = connect(fake, fake.issue_token())
    found = claims(access_token(client, organization, {"validity": "60s"}).json()["token"])
    assert found["exp"] - found["iat"] == 60
    assert found["organization"] == organization


def test_access_token_is_for_members(connect: Connect) -> None:
    """A stranger's organization is a 403, one that does not exist a 404."""
    fake = FakeKoyeb(users={ME: PASSWORD, "you@example.com": "x"})
    client = connect(fake, fake.issue_token(ME))
    yours = fake.organizations["you@example.com"][0]
    assert access_token(client, yours, {}).status_code == 403
    assert access_token(client, "none", {}).status_code == 404


@pytest.mark.parametrize("may", [True, False])
def test_issuer_of_access_tokens_is_a_choice(connect: Connect, *, may: bool) -> None:
    """Nobody documents whether an access token, or an organization's API token, issues others."""
    fake = FakeKoyeb(access_tokens_may_issue=may, organization_api_tokens_may_issue=may)
    own, shared = fake.organizations[ME]
    status = 200 if may else 403
    api = connect(fake, fake.issue_api_token())
    first = access_token(api, shared, {})
    assert first.status_code == 200
    assert access_token(connect(fake, first.json()["token"]), own, {}).status_code == status
    organizations = connect(fake, fake.issue_api_token(organization_id=shared))
    assert access_token(organizations, shared, {}).status_code == status
    assert access_token(organizations, own, {}).status_code == 403
    with pytest.raises(ValueError, match="not a member"):
        fake.issue_api_token(organization_id="other")


@pytest.mark.parametrize("revokes", [True, False])
def test_logout_of_an_access_token_is_a_choice(connect: Connect, *, revokes: bool) -> None:
    """Nobody documents whether a logout ends it; a refresh is for sessions alone."""
    fake = FakeKoyeb(logout_revokes_access_tokens=revokes)
    api = connect(fake, fake.issue_api_token())
    token = access_token(api, fake.organizations[ME][0], {}).json()["token"]
    client = connect(fake, token)
    assert client.put("/v1/account/refresh").status_code == 401
    assert client.delete("/v1/account/logout").status_code == 200
    assert client.get("/v1/apps").status_code == (401 if revokes else 200)


def test_tokens_are_issued_without_a_request() -> None:
    """A test gets a token to start from, for the first user or for the one it names."""
    fake = FakeKoyeb(users={ME: PASSWORD, "you@example.com": "x"})
    tokens = [fake.issue_token(), fake.issue_token("you@example.com")]
    assert fake.live_tokens() == tokens
    assert fake.requests == []
    for email in ("who@example.com", None):
        with pytest.raises(ValueError, match="no such user"):
            (fake if email else FakeKoyeb(users={})).issue_token(email)


def test_api_token_is_opaque_and_lasts(connect: Connect) -> None:
    """An API access token has 64 characters and no end, and cannot be refreshed."""
    fake = FakeKoyeb(clock=(clock := FakeClock()))
    token = fake.issue_api_token()
    assert (len(token), token.count(".")) == (64, 0)
    clock.advance(timedelta(days=3_650))
    client = connect(fake, token)
    assert client.get("/v1/apps").status_code == 200
    assert client.put("/v1/account/refresh").status_code == 401
    assert fake.exchanges() == 0
    assert client.get("/v1/apps").status_code == 200


def test_tokens_are_revoked_by_the_test(fake: FakeKoyeb) -> None:
    """A test revokes one token or all of them; a token of another service is an error."""
    first, second, third = (fake.issue_token() for _ in range(3))
    fake.revoke(second)
    assert fake.live_tokens() == [first, third]
    fake.revoke_all()
    assert fake.live_tokens() == []
    with pytest.raises(ValueError, match="did not issue"):
        fake.revoke(FakeKoyeb().issue_token())
