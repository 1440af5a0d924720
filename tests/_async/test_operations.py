"""The operations on the wire, and their effect on the session."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    LoginMethod,
    NotSignedInError,
    PermissionDeniedError,
    ServerError,
    TransportTimeoutError,
    WireError,
    __version__,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..support import ME, PASSWORD, operations
from .doubles import Connect


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


async def test_login_sends_no_bearer_when_signed_in(fake: FakeKoyeb, connect: Connect) -> None:
    """The token of the session before does not go along with a login."""
    session = connect()
    old = await session.login(ME, PASSWORD)
    new = await session.login(ME, PASSWORD)
    assert fake.requests[-1].bearer is None
    assert session.token is new
    assert new.id != old.id


async def test_login_leaves_the_session_alone_when_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A wrong password is an error of its own, sent once, and the old token stays."""
    session = connect()
    old = await session.login(ME, PASSWORD)
    with pytest.raises(InvalidCredentialsError) as caught:
        await session.login(ME, "wrong")
    assert caught.value.status == 401
    assert operations(fake) == ["login", "login"]
    assert session.token is old


async def test_login_says_so_when_the_account_is_locked(fake: FakeKoyeb, connect: Connect) -> None:
    """A locked account is told apart from any other refusal, and not tried again."""
    fake.lock_account(ME)
    with pytest.raises(AccountLockedError):
        await connect().login(ME, PASSWORD)
    assert operations(fake) == ["login"]


async def test_login_is_refused_when_not_a_member(fake: FakeKoyeb, connect: Connect) -> None:
    """An organization of others is a matter of permission."""
    with pytest.raises(PermissionDeniedError):
        await connect().login(ME, PASSWORD, organization_id="somebody-elses")


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


async def test_passwordless_login_warns_where_it_is_called(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Koyeb has withdrawn it; the warning comes before the error that most services answer with."""
    with pytest.warns(DeprecationWarning, match=r"use login\(\)") as warned:
        await connect().passwordless_login(ME)
    assert [warning.filename for warning in warned] == [__file__]


async def test_refresh_replaces_the_token_when_asked(fake: FakeKoyeb, connect: Connect) -> None:
    """A refresh sends the current token and no body, and the reply's token takes its place."""
    session = connect()
    old = await session.login(ME, PASSWORD)
    new = await session.refresh()
    request = fake.requests[-1]
    assert (request.method, request.path) == ("PUT", "/v1/account/refresh")
    assert request.bearer == old.id
    assert request.content == b""
    assert session.token is new
    assert fake.live_tokens() == [new.id]
    assert fake.exchanges() == 1


async def test_refresh_raises_when_there_is_nothing_to_refresh(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Without a token and without credentials nothing is sent."""
    with pytest.raises(NotSignedInError, match="login"):
        await connect().refresh()
    assert fake.requests == []


async def test_logout_ends_the_session_everywhere(fake: FakeKoyeb, connect: Connect) -> None:
    """The service, the client and the store forget the token."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    token = await session.login(ME, PASSWORD)
    assert await store.load() == token
    await session.logout()
    request = fake.requests[-1]
    assert (request.method, request.path) == ("DELETE", "/v1/account/logout")
    assert request.bearer == token.id
    assert operations(fake) == ["login", "logout"]
    assert session.token is None
    assert await store.load() is None
    assert fake.live_tokens() == []
    with pytest.raises(NotSignedInError):
        await session.http.get("/v1/apps")
    assert operations(fake) == ["login", "logout"]


async def test_logout_sends_nothing_when_signed_out(fake: FakeKoyeb, connect: Connect) -> None:
    """To sign out twice is to sign out once."""
    session = connect()
    await session.logout()
    assert fake.requests == []


async def test_logout_sends_nothing_when_the_token_has_expired(
    fake: FakeKoyeb, clock: FakeClock, signed_in: AsyncSessionClient
) -> None:
    """There is nothing to revoke in a token that is dead."""
    clock.advance(timedelta(hours=24))
    await signed_in.logout()
    assert operations(fake) == ["login"]
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


async def test_every_operation_says_so_when_withdrawn(clock: FakeClock, connect: Connect) -> None:
    """An operation that the service has dropped raises `EndpointGoneError`, and says what to do."""
    names = {"login", "passwordless_login", "new_session", "switch_organization", "login_method"}
    names |= {"unscope_organization_token", "create_access_token"}
    fake = FakeKoyeb(withdrawn={*names, "refresh", "logout"}, clock=clock)
    session = connect(transport=fake.transport)
    calls: list[Callable[[], Any]] = [
        lambda: session.login(ME, PASSWORD),
        lambda: session.passwordless_login(ME),
        session.new_session,
        lambda: session.switch_organization("other"),
        session.unscope_organization_token,
        lambda: session.create_access_token("other"),
        lambda: session.login_method(ME),
        session.refresh,
        session.logout,
    ]
    for call in calls:
        await session.use_token(fake.issue_token())
        with pytest.raises(EndpointGoneError, match="no longer has this operation"):
            await call()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status=400), BadRequestError),
        (Fault(status=302, headers={"location": "https://app.koyeb.com/elsewhere"}), ApiError),
        (Fault(status=500), ServerError),
        (Fault(body=b"<html>"), WireError),
    ],
)
async def test_login_raises_what_the_reply_means(
    fake: FakeKoyeb, connect: Connect, fault: Fault, error: type[Exception]
) -> None:
    """Each failure has its class, is sent once, and leaves the client signed out."""
    session = connect()
    fake.fail("login", fault)
    with pytest.raises(error):
        await session.login(ME, PASSWORD)
    assert operations(fake) == ["login"]
    assert session.token is None


async def test_an_operation_gives_up_when_its_own_timeout_is_over(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """``timeout=`` bounds one call, with any timeout of the client."""
    session = connect(timeout=60)
    fake.fail("login", Fault(gate=Gate()))
    with pytest.raises(TransportTimeoutError):
        await session.login(ME, PASSWORD, timeout=0.02)


@pytest.mark.pitfall(25)
@pytest.mark.parametrize("operation", ["login", "refresh", "passwordless_login", "new_session"])
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
    arguments = {"login": (ME, PASSWORD), "passwordless_login": (ME,)}.get(operation, ())
    with pytest.raises(EndpointGoneError, match=r"no longer has this operation.*; .*credentials="):
        await getattr(session, operation)(*arguments)
