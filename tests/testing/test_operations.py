"""What the service does with each operation."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeClock, FakeKoyeb

ME, PASSWORD = "me@example.com", "correct horse"
Connect = Callable[..., httpx.Client]


def sign_in(client: httpx.Client, **changes: object) -> httpx.Response:
    """Send a login, right unless it is changed."""
    return client.post("/v1/account/login", json={"email": ME, "password": PASSWORD, **changes})


def claims(token_id: str) -> dict[str, Any]:
    """Read the claims of a JWT, as a client does: without verifying."""
    payload = token_id.split(".")[1]
    read: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return read


def test_login_gives_a_token(connect: Connect) -> None:
    """The right password gives a live token whose claims and fields agree."""
    fake = FakeKoyeb(clock=FakeClock())
    token = sign_in(connect(fake)).json()["token"]
    assert fake.live_tokens() == [token["id"]]
    assert token["expires_at"] == "2026-01-02T00:00:00Z"
    told = claims(token["id"])
    assert told["sub"] == token["user_id"]
    assert told["organization"] == token["organization_id"] == fake.organizations[ME][0]
    assert told["exp"] - told["iat"] == 24 * 3_600


def test_expiry_has_the_digits_that_go_prints(connect: Connect) -> None:
    """Fractions of a second show, up to nine digits and no zeros at their end."""
    clock = FakeClock()
    clock.advance(0.25)
    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(minutes=5))
    assert sign_in(connect(fake)).json()["token"]["expires_at"] == "2026-01-01T00:05:00.25Z"


@pytest.mark.parametrize(
    ("lifetime", "expires_at"),
    [
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


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"email": "who@example.com"}])
def test_login_with_wrong_credentials(connect: Connect, changes: dict[str, str]) -> None:
    """A wrong password and an unknown address get the same 401."""
    reply = sign_in(connect(FakeKoyeb()), **changes)
    assert reply.status_code == 401
    assert "your password is incorrect" in reply.json()["message"]


def test_wrong_passwords_lock_the_account(connect: Connect) -> None:
    """After five wrong passwords in a row the right one does not help; old tokens stay."""
    fake = FakeKoyeb()
    token = fake.issue_token()
    client = connect(fake)
    assert [sign_in(client, password="x").status_code for _ in range(5)] == [401] * 5
    reply = sign_in(client)
    assert (reply.status_code, reply.json()["message"]) == (403, "Account is locked")
    assert fake.live_tokens() == [token]


def test_right_password_forgives_wrong_ones(connect: Connect) -> None:
    """Wrong passwords are counted in a row."""
    client = connect(FakeKoyeb())
    for _ in range(2):
        assert [sign_in(client, password="x").status_code for _ in range(4)] == [401] * 4
        assert sign_in(client).status_code == 200


def test_account_can_be_locked_at_once(connect: Connect) -> None:
    """A test locks an account without five attempts; a locked account gets no mail either."""
    fake = FakeKoyeb()
    fake.lock_account(ME)
    client = connect(fake)
    assert sign_in(client).status_code == 403
    assert client.post("/v1/account/passwordless_login", json={"email": ME}).json() == {}
    assert fake.mailbox == {ME: []}


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (b"", {"body"}),
        (b"{", {"body"}),
        (b"[]", {"body"}),
        (b"[" * 100_000, {"body"}),
        (b'"\xff"', {"body"}),
        (b"9" * 5_000, {"body"}),
        (b'{"email": NaN}', {"body"}),
        (b"{}", {"email", "password"}),
        (b'{"email": "", "password": ""}', {"email", "password"}),
        (b'{"email": "a", "password": 3}', {"password"}),
        (b'{"email": "a", "password": "b", "organization_id": null}', {"organization_id"}),
    ],
)
def test_bad_body_names_the_fields(connect: Connect, content: bytes, fields: set[str]) -> None:
    """What is no login gets a 400 that says what is wrong with which field."""
    reply = connect(FakeKoyeb()).post("/v1/account/login", content=content)
    assert reply.status_code == 400
    assert reply.json()["code"] == "invalid_argument"
    assert {field["field"] for field in reply.json()["fields"]} == fields


def test_login_into_an_organization(connect: Connect) -> None:
    """A member signs in to the organization that it names; anyone else is refused."""
    fake = FakeKoyeb()
    client = connect(fake)
    second = fake.organizations[ME][1]
    assert sign_in(client, organization_id=second).json()["token"]["organization_id"] == second
    reply = sign_in(client, organization_id="0")
    assert (reply.status_code, reply.json()["code"]) == (403, "authorization_error")


def test_user_without_organization_signs_in(connect: Connect) -> None:
    """A token for no organization has no such field, and there is no current organization."""
    fake = FakeKoyeb()
    del fake.organizations[ME]
    token = sign_in(connect(fake)).json()["token"]
    assert "organization_id" not in token
    client = connect(fake, token["id"])
    assert client.get("/v1/account/organization").status_code == 404
    assert client.get("/v1/account/organizations").json()["organizations"] == []


def test_logout_revokes_the_token(connect: Connect) -> None:
    """A logout ends this one token, and only once."""
    fake = FakeKoyeb()
    kept, token = fake.issue_token(), fake.issue_token()
    client = connect(fake, token)
    assert client.delete("/v1/account/logout").json() == {}
    assert fake.live_tokens() == [kept]
    assert client.delete("/v1/account/logout").status_code == 401


def test_passwordless_login_mails_a_token(connect: Connect) -> None:
    """The link in the mail carries a live token; an unknown address learns nothing."""
    fake = FakeKoyeb()
    client = connect(fake)
    for email in (ME, "who@example.com"):
        assert client.post("/v1/account/passwordless_login", json={"email": email}).json() == {}
    assert fake.mailbox == {ME: fake.live_tokens()}
    assert len(fake.live_tokens()) == 1


def test_refresh_revokes_the_old_token(connect: Connect) -> None:
    """With ``revokes``, only the new token is good after a refresh, in the same organization."""
    fake = FakeKoyeb()
    old = fake.issue_token()
    new = connect(fake, old).put("/v1/account/refresh").json()["token"]
    assert fake.live_tokens() == [new["id"]]
    assert new["organization_id"] == fake.organizations[ME][0]
    assert fake.exchanges() == 1


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


def test_reuse_ends_the_family(connect: Connect) -> None:
    """To refresh with an exchanged token again ends what descends from that sign-in, no more."""
    fake = FakeKoyeb()
    other = fake.issue_token()
    client = connect(fake, fake.issue_token())
    new = client.put("/v1/account/refresh").json()["token"]["id"]
    organization = fake.organizations[ME][1]
    switch = f"/v1/organizations/{organization}/switch"
    assert connect(fake, new).post(switch, json={}).status_code == 200
    assert len(fake.live_tokens()) == 3
    assert client.put("/v1/account/refresh").status_code == 401
    assert fake.live_tokens() == [other]
    assert fake.exchanges() == 1


def test_plain_use_of_an_exchanged_token_is_no_reuse(connect: Connect) -> None:
    """A request that was on its way with the old token is refused, and costs nothing else."""
    fake = FakeKoyeb()
    client = connect(fake, fake.issue_token())
    client.put("/v1/account/refresh")
    assert client.get("/v1/apps").status_code == 401
    assert len(fake.live_tokens()) == 1


def test_expired_exchanged_token_is_no_reuse(connect: Connect) -> None:
    """An expired token is refused for that, whatever else it is."""
    fake = FakeKoyeb(clock=(clock := FakeClock()))
    client = connect(fake, fake.issue_token(lifetime=timedelta(seconds=9)))
    client.put("/v1/account/refresh")
    clock.advance(9)
    assert client.put("/v1/account/refresh").status_code == 401
    assert len(fake.live_tokens()) == 1


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer who", "Basic bWU6aXQ="])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/account/refresh"),
        ("DELETE", "/v1/account/logout"),
        ("POST", "/v1/account/session"),
        ("POST", "/v1/organizations/x/switch"),
        ("POST", "/v1/organizations/x/access_token"),
        ("POST", "/v1/unscope_organization_token"),
        ("GET", "/v1/account/profile"),
        ("GET", "/v1/account/organization"),
        ("GET", "/v1/account/organizations"),
        ("GET", "/v1/apps"),
        ("POST", "/v1/apps"),
    ],
)
def test_operation_needs_a_bearer(
    connect: Connect, method: str, path: str, header: str | None
) -> None:
    """Without a live token these operations answer 401, in a shape that both descriptions know."""
    headers = {} if header is None else {"Authorization": header}
    reply = connect(FakeKoyeb()).request(method, path, headers=headers, json={})
    assert reply.status_code == 401
    assert reply.json() == {"status": 401, "message": "Token rejected"}


def test_token_expires_with_the_clock(connect: Connect) -> None:
    """A token is good until the very moment of its expiry."""
    fake = FakeKoyeb(clock=(clock := FakeClock()))
    client = connect(fake, fake.issue_token(lifetime=timedelta(seconds=30)))
    clock.advance(29.999)
    assert client.get("/v1/apps").status_code == 200
    clock.advance(0.001)
    assert client.get("/v1/apps").status_code == 401
    assert fake.live_tokens() == []


def test_new_session_is_for_no_organization(connect: Connect) -> None:
    """A new session is a second sign-in without an organization: both tokens are good."""
    fake = FakeKoyeb()
    client = connect(fake, token := fake.issue_token())
    new = client.post("/v1/account/session").json()["token"]
    assert "organization_id" not in new
    assert fake.live_tokens() == [token, new["id"]]
    client.put("/v1/account/refresh")
    client.put("/v1/account/refresh")
    assert fake.live_tokens() == [new["id"]]


def test_login_method_is_set_for_each_user(connect: Connect) -> None:
    """Everybody uses Koyeb's own sign-in, but for those that the test sets."""
    fake = FakeKoyeb()
    fake.login_methods["a+b@example.com"] = "WORKOS"
    client = connect(fake)
    for email, method in [("a+b@example.com", "WORKOS"), (ME, "KOYEB")]:
        reply = client.get("/v1/account/login_method", params={"email": email})
        assert reply.json() == {"method": method}
    assert client.get("/v1/account/login_method").json() == {"method": "KOYEB"}


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


def test_unscope_gives_a_token_of_no_organization(connect: Connect) -> None:
    """The session goes on without an organization; an API token has no session to go on with."""
    fake = FakeKoyeb()
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
def test_access_token_for_an_impossible_validity(connect: Connect, validity: object) -> None:
    """What is no duration, or one beyond a day, is a validation error."""
    fake = FakeKoyeb()
    client = connect(fake, fake.issue_token())
    reply = access_token(client, fake.organizations[ME][0], {"validity": validity})
    assert reply.status_code == 400
    assert reply.json()["fields"][0]["field"] == "validity"


def test_access_token_is_a_jwt_by_default(connect: Connect) -> None:
    """Its claims say when it ends; which form the service's tokens have is not documented."""
    fake = FakeKoyeb(clock=FakeClock())
    organization = fake.organizations[ME][0]
    client = connect(fake, fake.issue_token())
    told = claims(access_token(client, organization, {"validity": "60s"}).json()["token"])
    assert told["exp"] - told["iat"] == 60
    assert told["organization"] == organization


def test_access_token_is_for_members(connect: Connect) -> None:
    """A stranger's organization is a 403, one that does not exist a 404."""
    fake = FakeKoyeb(users={ME: PASSWORD, "you@example.com": "x"})
    client = connect(fake, fake.issue_token(ME))
    yours = fake.organizations["you@example.com"][0]
    assert access_token(client, yours, {}).status_code == 403
    assert access_token(client, "none", {}).status_code == 404


@pytest.mark.parametrize("may", [True, False])
def test_what_issues_access_tokens_is_a_choice(connect: Connect, *, may: bool) -> None:
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


def test_deactivated_organization_rejects_its_tokens(connect: Connect) -> None:
    """Tokens can still be renewed and replaced, and a new one is rejected as the old one was."""
    fake = FakeKoyeb()
    own, shared = fake.organizations[ME]
    fake.deactivated.add(own)
    client = connect(fake, fake.issue_token())
    for path in ("/v1/apps", "/v1/account/organization"):
        assert client.get(path).json() == {"status": 401, "message": "Token rejected"}
    new = client.put("/v1/account/refresh").json()["token"]["id"]
    client = connect(fake, new)
    assert client.get("/v1/apps").status_code == 401
    path = "/v1/account/organizations"
    listed = client.get(path, params={"statuses": ["ACTIVE", "DEACTIVATED"]}).json()
    assert [o["status"] for o in listed["organizations"]] == ["DEACTIVATED", "ACTIVE"]
    assert [o["id"] for o in client.get(path).json()["organizations"]] == [shared]
    switched = client.post(f"/v1/organizations/{shared}/switch", json={}).json()["token"]["id"]
    assert connect(fake, switched).get("/v1/apps").status_code == 200
    fake.deactivated.clear()
    assert client.get("/v1/apps").status_code == 200


def test_profile_and_organizations_tell_who_it_is(connect: Connect) -> None:
    """A signed-in client reads whose token it holds, and of which organizations."""
    fake = FakeKoyeb()
    client = connect(fake, fake.issue_token())
    assert client.get("/v1/account/profile").json()["user"]["email"] == ME
    current = client.get("/v1/account/organization").json()["organization"]
    path = "/v1/account/organizations"
    listed = client.get(path, params={"statuses": ["ACTIVE", "LOCKED"]}).json()
    assert listed["organizations"][0] == current
    assert [o["id"] for o in listed["organizations"]] == fake.organizations[ME]
    assert client.get(path, params={"statuses": "LOCKED"}).json()["organizations"] == []
    assert client.get(path, params={"statuses": "NONE"}).status_code == 400


def test_apps_are_created_and_changed(connect: Connect) -> None:
    """There is one resource to work on: it takes any body and gives back what it was given."""
    fake = FakeKoyeb()
    client = connect(fake, fake.issue_token())
    created = client.post("/v1/apps", json={"name": "web", "id": "mine"}).json()
    path = f"/v1/apps/{created['app']['id']}"
    assert created == {"app": {"name": "web", "id": created["app"]["id"]}, "received": 26}
    assert client.post("/v1/apps", content=b"\xff\xfe").json()["app"]["name"] == "app-2"
    assert client.patch(path, json={"name": "api"}).json()["app"]["name"] == "api"
    assert client.get(path).json()["app"]["name"] == "api"
    page = client.get("/v1/apps", params={"limit": "1", "offset": "1"}).json()
    assert [app["name"] for app in page["apps"]] == ["app-2"]
    assert (page["limit"], page["offset"], page["count"]) == (1, 1, 2)
    assert client.get("/v1/apps?limit=-x").json()["limit"] == 10
    assert client.delete(path).json() == {}
    assert client.get(path).status_code == 404


def test_huge_body_is_refused(connect: Connect) -> None:
    """A body of any size is read to its end; beyond 16 MiB the service refuses it."""
    fake = FakeKoyeb()
    client = connect(fake, fake.issue_token())
    mebibyte = bytes(1024 * 1024)
    fits = client.post("/v1/apps", content=(mebibyte for _ in range(16)))
    assert fits.json()["received"] == 16 * 1024 * 1024
    reply = client.post("/v1/apps", content=(mebibyte for _ in range(18)))
    assert (reply.status_code, reply.json()["code"]) == (413, 8)


@pytest.mark.parametrize(
    "path", ["/", "/v1/account", "/v1/account/login/", "/V1/apps", "/v1/apps/"]
)
def test_unknown_path_is_the_gateways_404(connect: Connect, path: str) -> None:
    """What is no path of the API gets the gateway's error, in JSON."""
    fake = FakeKoyeb()
    reply = connect(fake).get(path)
    assert reply.status_code == 404
    assert reply.json() == {"code": 5, "message": "Not Found", "details": []}
    assert fake.requests[-1].operation is None


@pytest.mark.parametrize("method", ["GET", "PUT", "TRACE", "OPTIONS", "HEAD", "BREW"])
def test_unknown_method_is_refused(connect: Connect, method: str) -> None:
    """A method that the path does not know gets a 405 that names those it knows."""
    reply = connect(FakeKoyeb()).request(method, "/v1/account/login")
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.headers["content-type"] == "application/json"
    assert (reply.content == b"") == (method == "HEAD")


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_withdrawn_operation_is_an_unknown_path(connect: Connect, method: str) -> None:
    """An operation that is gone answers as if it had never been."""
    fake = FakeKoyeb(withdrawn={"passwordless_login"})
    reply = connect(fake).request(method, "/v1/account/passwordless_login", json={"email": ME})
    assert reply.status_code == 404
    assert reply.json() == {"code": 5, "message": "Not Found", "details": []}
    assert fake.mailbox == {ME: []}


def test_impossible_service_is_refused() -> None:
    """Names that the service does not know are errors where they are written."""
    with pytest.raises(ValueError, match="no such operation: x"):
        FakeKoyeb(withdrawn={"x"})
    with pytest.raises(ValueError, match="'revokes' or 'keeps', not 'rotates'"):
        FakeKoyeb(refresh="rotates")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'jwt' or 'opaque', not 'paper'"):
        FakeKoyeb(access_tokens="paper")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_every_reply_is_dated_and_numbered(connect: Connect) -> None:
    """Each reply tells the service's time and an id of its own."""
    fake = FakeKoyeb(clock=FakeClock(datetime(2026, 7, 1, 12, tzinfo=UTC)))
    client = connect(fake)
    replies = [client.get("/v1/apps"), client.get("/nowhere")]
    assert {reply.headers["date"] for reply in replies} == {"Wed, 01 Jul 2026 12:00:00 GMT"}
    assert len({reply.headers["x-request-id"] for reply in replies}) == 2


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


def test_tokens_are_revoked_by_the_test() -> None:
    """A test revokes one token or all of them; a token of another service is an error."""
    fake = FakeKoyeb()
    first, second, third = (fake.issue_token() for _ in range(3))
    fake.revoke(second)
    assert fake.live_tokens() == [first, third]
    fake.revoke_all()
    assert fake.live_tokens() == []
    with pytest.raises(ValueError, match="did not issue"):
        fake.revoke(FakeKoyeb().issue_token())


def test_log_tells_what_was_received(connect: Connect) -> None:
    """The log has each request with its parts; its representation shows no secret."""
    fake = FakeKoyeb()
    client = connect(fake, "old")
    sign_in(client)
    client.post("/v1/apps?x=y", content=b"[")
    login, apps = fake.requests
    assert (login.operation, login.method, login.path) == ("login", "POST", "/v1/account/login")
    assert login.json == {"email": ME, "password": PASSWORD}
    assert (login.headers["CONTENT-TYPE"], login.bearer) == ("application/json", "old")
    assert login.status == 200
    assert (apps.query, apps.content, apps.json, apps.status) == ("x=y", b"[", None, 401)
    shown = repr(fake.requests) + repr(fake) + repr(login.headers)
    assert PASSWORD not in shown
    assert "old" not in shown
    assert repr(fake) == "<FakeKoyeb, 2 requests>"
    fake.requests.clear()
    client.get("/v1/apps")
    assert [request.operation for request in fake.requests] == ["apps"]
