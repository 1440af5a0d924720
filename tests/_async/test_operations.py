"""The operations on the wire, and their effect on the session."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    EndpointGoneError,
    InvalidCredentialsError,
    LoginMethod,
    NotSignedInError,
    __version__,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..support import ME, PASSWORD, held, operations
from .doubles import CALLS, BrokenStore, Connect


async def test_login_sends_email_and_password_and_keeps_the_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A login sends these two fields as JSON, and the session goes on with the token."""
    session = connect()
    token = await session.login(ME, PASSWORD)
    (request,) = fake.requests
    assert (request.method, request.path) == ("POST", "/v1/account/login")
    assert request.json == {"email": ME, "password": PASSWORD}
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers
    assert "seon-fp" not in request.headers
    assert token is session.token
    assert fake.live_tokens() == [token.id]
    assert token.organization_id == fake.organizations[ME][0]
    assert token.expires_at is not None
    assert token.expires_at.tzinfo is not None


async def test_login_names_organization_and_fingerprint_when_given(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The organization goes into the body, the fingerprint into a header."""
    organization = fake.organizations[ME][1]
    token = await connect().login(ME, PASSWORD, organization_id=organization, seon_fp="print")
    (request,) = fake.requests
    assert request.json["organization_id"] == organization
    assert request.headers["seon-fp"] == "print"
    assert token.organization_id == organization


async def test_login_leaves_the_session_alone_when_refused(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A wrong password is an error of its own, sent once, without the token, which stays."""
    old = session.token
    with pytest.raises(InvalidCredentialsError) as caught:
        await session.login(ME, "wrong")
    assert caught.value.status == 401
    assert [(it.operation, it.bearer) for it in fake.requests] == [("login", None)]
    assert session.token is old


async def test_passwordless_login_mails_a_token_that_use_token_takes(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The mail's token becomes the session's."""
    session = connect()
    await session.passwordless_login(ME)
    assert session.token is None
    (request,) = fake.requests
    assert (request.method, request.path) == ("POST", "/v1/account/passwordless_login")
    assert request.json == {"email": ME}
    assert "authorization" not in request.headers
    token = await session.use_token(fake.mailbox[ME][-1])
    assert session.token is token
    assert token.id == fake.mailbox[ME][-1]
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_passwordless_login_warns_where_it_is_called(connect: Connect) -> None:
    """Koyeb has withdrawn it; the warning comes before the error that most services answer with."""
    with pytest.warns(DeprecationWarning, match=r"use login\(\)") as warned:
        await connect().passwordless_login(ME)
    assert [warning.filename for warning in warned] == [__file__]


async def test_refresh_replaces_the_token_when_asked(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A refresh sends the current token and no body, and the reply's token takes its place."""
    old = held(session)
    new = await session.refresh()
    (request,) = fake.requests
    assert (request.method, request.path) == ("PUT", "/v1/account/refresh")
    assert (request.bearer, request.content) == (old, b"")
    assert session.token is new
    assert fake.live_tokens() == [new.id]
    assert fake.exchanges() == 1


@pytest.mark.parametrize("call", ["current_token", "refresh", "new_session", "request"])
async def test_nothing_is_sent_when_nobody_has_signed_in(
    fake: FakeKoyeb, connect: Connect, call: str
) -> None:
    """The error names the call and the arguments that are missing."""
    session = connect()
    ask = partial(session.http.get, "/v1/apps") if call == "request" else getattr(session, call)
    wanted = r"^not signed in: call login\(\), or give token= or credentials=$"
    with pytest.raises(NotSignedInError, match=wanted):
        await ask()
    assert fake.requests == []


async def test_logout_ends_the_session_everywhere(
    fake: FakeKoyeb, store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """The service, the client and the store forget the token; the error says what to do."""
    token = held(stored)
    assert await store.load() == stored.token
    await stored.logout()
    request = fake.requests[-1]
    assert (request.method, request.path) == ("DELETE", "/v1/account/logout")
    assert request.bearer == token
    assert stored.token is None
    assert await store.load() is None
    assert fake.live_tokens() == []
    with pytest.raises(NotSignedInError, match=r"^signed out: call login\(\)$"):
        await stored.http.get("/v1/apps")
    assert operations(fake) == ["login", "logout"]


@pytest.mark.parametrize("ending", ["logout", "expiry"])
async def test_logout_sends_nothing_when_no_session_is_left(
    fake: FakeKoyeb, clock: FakeClock, signed_in: AsyncSessionClient, ending: str
) -> None:
    """To sign out twice is to sign out once, and there is nothing to revoke in a dead token."""
    if ending == "logout":
        await signed_in.logout()
    else:
        clock.advance(timedelta(hours=24))
    fake.requests.clear()
    await signed_in.logout()
    assert fake.requests == []
    assert signed_in.token is None


async def test_requests_say_which_library_sends_them(
    fake: FakeKoyeb, signed_in: AsyncSessionClient
) -> None:
    """Operations and `http` name the library and its version; a request's own header wins."""
    await signed_in.http.get("/v1/apps")
    await signed_in.http.get("/v1/apps", headers={"User-Agent": "mine"})
    ours = f"koyeb-session/{__version__} python-httpx/{httpx.__version__}"
    assert [request.headers["user-agent"] for request in fake.requests] == [ours, ours, "mine"]


async def test_requests_of_a_given_client_say_first_what_it_says(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """The user's own product comes before the library that it uses, also when it changes."""
    session = connect(transport=None, http_client=client)
    client.headers["User-Agent"] = "shop/7"
    await session.login(ME, PASSWORD)
    del client.headers["User-Agent"]
    await session.login(ME, PASSWORD)
    first, second = (request.headers["user-agent"] for request in fake.requests)
    assert first == f"shop/7 koyeb-session/{__version__}"
    assert second == f"koyeb-session/{__version__} python-httpx/{httpx.__version__}"


@pytest.mark.parametrize("method", list(LoginMethod))
async def test_login_method_tells_how_an_address_signs_in(
    fake: FakeKoyeb, connect: Connect, method: LoginMethod
) -> None:
    """The address is asked for in the query, without a token."""
    address = "me+you@example.com"
    fake.login_methods[address] = method.value
    assert await connect().login_method(address) is method
    (request,) = fake.requests
    assert (request.method, request.path) == ("GET", "/v1/account/login_method")
    assert request.query == "email=me%2Byou%40example.com"
    assert "authorization" not in request.headers


@pytest.mark.pitfall(25)
@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize(
    "fault",
    [
        *[Fault(status=status) for status in (405, 410, 501)],
        Fault(status=404, body={"code": 5, "message": "Not Found", "details": []}),
        Fault(status=404, body="<html>nothing here</html>"),
    ],
)
async def test_an_operation_that_is_gone_says_what_to_do(
    fake: FakeKoyeb, session: AsyncSessionClient, operation: str, fault: Fault
) -> None:
    """Catches a bare status: nobody learns from a 404 that the service has moved on."""
    fake.fail(operation, fault)
    signs_in = operation not in {"logout", "switch_organization", "unscope_organization_token"}
    with pytest.raises(EndpointGoneError, match="no longer has this operation") as caught:
        await getattr(session, operation)(*CALLS[operation])
    assert ("credentials=" in str(caught.value)) is signs_in
