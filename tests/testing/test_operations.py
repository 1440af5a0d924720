"""The service's answer to each operation."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import ME, PASSWORD
from .conftest import Connect, claims, sign_in


def test_login_gives_a_token(fake: FakeKoyeb, connect: Connect) -> None:
    """The right password gives a live token whose claims and fields agree."""
    token = sign_in(connect(fake)).json()["token"]
    assert fake.live_tokens() == [token["id"]]
    assert token["expires_at"] == "2026-01-02T00:00:00Z"
    found = claims(token["id"])
    assert found["sub"] == token["user_id"]
    assert found["organization"] == token["organization_id"] == fake.organizations[ME][0]
    assert found["exp"] - found["iat"] == 24 * 3_600


@pytest.mark.parametrize("changes", [{"password": "wrong"}, {"email": "who@example.com"}])
def test_login_with_wrong_credentials(connect: Connect, changes: dict[str, str]) -> None:
    """A wrong password and an unknown address get the same 401."""
    reply = sign_in(connect(FakeKoyeb()), **changes)
    assert reply.status_code == 401
    assert "your password is incorrect" in reply.json()["message"]


def test_wrong_passwords_lock_the_account(fake: FakeKoyeb, client: httpx.Client) -> None:
    """After five wrong passwords in a row the right one does not help; old tokens stay."""
    before = fake.live_tokens()
    assert [sign_in(client, password="x").status_code for _ in range(5)] == [401] * 5
    reply = sign_in(client)
    assert (reply.status_code, reply.json()["message"]) == (403, "Account is locked")
    assert fake.live_tokens() == before


def test_right_password_forgives_wrong_ones(client: httpx.Client) -> None:
    """Wrong passwords are counted in a row."""
    for _ in range(2):
        assert [sign_in(client, password="x").status_code for _ in range(4)] == [401] * 4
        assert sign_in(client).status_code == 200


def test_account_can_be_locked_at_once(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A test locks an account without five attempts; a locked account gets no mail either."""
    fake.lock_account(ME)
    assert sign_in(client).status_code == 403
    assert client.post("/v1/account/passwordless_login", json={"email": ME}).json() == {}
    assert fake.mailbox == {ME: []}


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        *((content, {"body"}) for content in (b"", b"{", b"[]", b'"\xff"', b'{"email": NaN}')),
        *((content, {"body"}) for content in (b"[" * 100_000, b"9" * 5_000)),
        (b"{}", {"email", "password"}),
        (b'{"email": "", "password": ""}', {"email", "password"}),
        (b'{"email": "a", "password": 3}', {"password"}),
        (b'{"email": "a", "password": "b", "organization_id": null}', {"organization_id"}),
    ],
)
def test_bad_body_names_the_fields(connect: Connect, content: bytes, fields: set[str]) -> None:
    """A body that is no login gets a 400 that says what is wrong with which field."""
    reply = connect(FakeKoyeb()).post("/v1/account/login", content=content)
    assert reply.status_code == 400
    assert reply.json()["code"] == "invalid_argument"
    assert {field["field"] for field in reply.json()["fields"]} == fields


def test_login_into_an_organization(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A member signs in to the organization that it names; anyone else is refused."""
    second = fake.organizations[ME][1]
    assert sign_in(client, organization_id=second).json()["token"]["organization_id"] == second
    reply = sign_in(client, organization_id="0")
    assert (reply.status_code, reply.json()["code"]) == (403, "authorization_error")


def test_user_without_organization_signs_in(fake: FakeKoyeb, connect: Connect) -> None:
    """A token for no organization has no such field, and there is no current organization."""
    del fake.organizations[ME]
    token = sign_in(connect(fake)).json()["token"]
    assert "organization_id" not in token
    client = connect(fake, token["id"])
    assert client.get("/v1/account/organization").status_code == 404
    assert client.get("/v1/account/organizations").json()["organizations"] == []


def test_passwordless_login_mails_a_token(fake: FakeKoyeb, connect: Connect) -> None:
    """The link in the mail carries a live token; an unknown address learns nothing."""
    client = connect(fake)
    for email in (ME, "who@example.com"):
        assert client.post("/v1/account/passwordless_login", json={"email": email}).json() == {}
    assert fake.mailbox == {ME: fake.live_tokens()}
    assert len(fake.live_tokens()) == 1


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer who", "Basic bWU6aXQ="])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/account/refresh"),
        ("DELETE", "/v1/account/logout"),
        *(("POST", f"/v1/organizations/x/{name}") for name in ("switch", "access_token")),
        *(("POST", f"/v1/{path}") for path in ("account/session", "unscope_organization_token")),
        *(("GET", f"/v1/account/{name}") for name in ("profile", "organization", "organizations")),
        *((method, "/v1/apps") for method in ("GET", "POST")),
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


def test_login_method_is_set_for_each_user(fake: FakeKoyeb, connect: Connect) -> None:
    """Everybody uses Koyeb's own sign-in, but for those that the test sets."""
    fake.login_methods["a+b@example.com"] = "WORKOS"
    client = connect(fake)
    for email, method in [("a+b@example.com", "WORKOS"), (ME, "KOYEB")]:
        reply = client.get("/v1/account/login_method", params={"email": email})
        assert reply.json() == {"method": method}
    assert client.get("/v1/account/login_method").json() == {"method": "KOYEB"}


def test_deactivated_organization_rejects_its_tokens(
    fake: FakeKoyeb, client: httpx.Client, connect: Connect
) -> None:
    """Tokens can still be renewed and replaced, and a new one is rejected as the old one was."""
    own, shared = fake.organizations[ME]
    fake.deactivated.add(own)
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


def test_profile_and_organizations_tell_who_it_is(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A signed-in client reads whose token it holds, and of which organizations."""
    assert client.get("/v1/account/profile").json()["user"]["email"] == ME
    current = client.get("/v1/account/organization").json()["organization"]
    path = "/v1/account/organizations"
    listed = client.get(path, params={"statuses": ["ACTIVE", "LOCKED"]}).json()
    assert listed["organizations"][0] == current
    assert [o["id"] for o in listed["organizations"]] == fake.organizations[ME]
    assert client.get(path, params={"statuses": "LOCKED"}).json()["organizations"] == []
    assert client.get(path, params={"statuses": "NONE"}).status_code == 400


def test_organizations_are_listed_by_pages(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A client that turns the pages, sorts or searches gets a part of the list, as at Koyeb."""
    ids = fake.organizations[ME]
    ids += [f"id-{number}" for number in range(10)]

    def listed(**query: str | int) -> tuple[list[str], tuple[int, int, bool]]:
        reply = client.get("/v1/account/organizations", params=query).json()
        found = [organization["id"] for organization in reply["organizations"]]
        return found, (reply["limit"], reply["offset"], reply["has_next"])

    assert listed() == (ids[:10], (10, 0, True))
    assert listed(limit=5, offset=5) == (ids[5:10], (5, 5, True))
    assert listed(limit=6, offset=6) == (ids[6:], (6, 6, False))
    assert listed(order="desc", limit=2) == (ids[:-3:-1], (2, 0, True))
    assert listed(search="D-7") == (["id-7"], (10, 0, False))
    assert listed(search=f"Organization-{ids[0][:8]}") == (ids[:1], (10, 0, False))
    assert listed(search="nothing like it") == ([], (10, 0, False))


def test_apps_are_created_and_changed(fake: FakeKoyeb, client: httpx.Client) -> None:
    """There is one resource to work on: it takes any body and gives the same one back."""
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
    beyond = client.get("/v1/apps?limit=150&offset=150").json()
    assert (beyond["apps"], beyond["limit"], beyond["offset"]) == ([], 100, 150)
    assert client.delete(path).json() == {}
    assert client.get(path).status_code == 404


def test_huge_body_is_refused(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A body of any size is read to its end; beyond 16 MiB the service refuses it."""
    mebibyte = bytes(1024 * 1024)
    fits = client.post("/v1/apps", content=(mebibyte for _ in range(16)))
    assert fits.json()["received"] == 16 * 1024 * 1024
    reply = client.post("/v1/apps", content=(mebibyte for _ in range(18)))
    assert (reply.status_code, reply.json()["code"]) == (413, 8)


@pytest.mark.parametrize(
    "path", ["/", "/v1/account", "/v1/account/login/", "/V1/apps", "/v1/apps/"]
)
def test_unknown_path_is_the_gateways_404(fake: FakeKoyeb, connect: Connect, path: str) -> None:
    """A path outside the API gets the gateway's error, in JSON."""
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
    with pytest.raises(TypeError, match="withdrawn must be a collection of names, not a str"):
        FakeKoyeb(withdrawn="login")
    users: Any = ["me@example.com"]
    with pytest.raises(TypeError, match="users must be a mapping: give"):
        FakeKoyeb(users=users)
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


def test_log_tells_what_was_received(fake: FakeKoyeb, connect: Connect) -> None:
    """The log has each request with its parts; its representation shows no secret."""
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
