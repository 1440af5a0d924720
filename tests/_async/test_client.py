"""The client: its operations on the wire, what it refuses, and how it lives and ends."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import copy
import gc
import math
import pickle
import re
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

import httpx
import pytest

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    LoginMethod,
    NotFoundError,
    NotSignedInError,
    PasswordCredentials,
    PermissionDeniedError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionClient,
    SessionExpiredError,
    Token,
    TransportTimeoutError,
    WireError,
    __version__,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import AsyncBackground, async_arrived, async_read, async_until, deadlines

ME = "me@example.com"
PASSWORD = "correct horse"
Connect = Callable[..., AsyncSessionClient]


def operations(fake: FakeKoyeb) -> list[str | None]:
    """List what was asked for, in order."""
    return [request.operation for request in fake.requests]


# The operations


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
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """There is nothing to revoke in a token that is dead."""
    session = connect()
    await session.login(ME, PASSWORD)
    clock.advance(timedelta(hours=24))
    await session.logout()
    assert operations(fake) == ["login"]
    assert session.token is None


async def test_new_session_keeps_the_own_token(fake: FakeKoyeb, connect: Connect) -> None:
    """The minted token is for somebody else; this session goes on with its own."""
    session = connect()
    own = await session.login(ME, PASSWORD)
    other = await session.new_session()
    request = fake.requests[-1]
    assert (request.method, request.path) == ("POST", "/v1/account/session")
    assert request.bearer == own.id
    assert request.content == b""
    assert session.token is own
    assert other.id in fake.live_tokens()
    assert other.id != own.id
    assert other.organization_id is None


async def test_switch_organization_goes_on_with_the_new_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The session acts in the other organization from then on."""
    session = connect()
    old = await session.login(ME, PASSWORD)
    organization = fake.organizations[ME][1]
    new = await session.switch_organization(organization, seon_fp="print")
    request = fake.requests[-1]
    assert (request.method, request.path) == ("POST", f"/v1/organizations/{organization}/switch")
    assert request.json == {}
    assert request.bearer == old.id
    assert request.headers["seon-fp"] == "print"
    assert new.organization_id == organization
    assert session.token is new


async def test_switch_organization_keeps_the_token_when_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """An organization that does not exist is not found, and nothing has changed."""
    session = connect()
    token = await session.login(ME, PASSWORD)
    with pytest.raises(NotFoundError):
        await session.switch_organization("no-such-organization")
    assert session.token is token


async def test_switch_organization_gives_up_when_signed_out_meanwhile(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A logout wins over a switch that was under way: the token that it minted is revoked."""
    session = connect()
    await session.login(ME, PASSWORD)
    gate = Gate()
    fake.fail("switch_organization", Fault(gate=gate))
    async with AsyncBackground() as background:
        job = background.start(lambda: session.switch_organization(fake.organizations[ME][1]))
        await async_arrived(gate)
        await session.logout()
        gate.open()
        with pytest.raises(NotSignedInError, match="meanwhile"):
            await job.result()
    assert session.token is None
    assert fake.live_tokens() == []


async def test_unscope_goes_on_with_a_token_of_no_organization(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The session acts in no organization from then on."""
    session = connect()
    old = await session.login(ME, PASSWORD)
    new = await session.unscope_organization_token(seon_fp="print")
    request = fake.requests[-1]
    assert (request.method, request.path) == ("POST", "/v1/unscope_organization_token")
    assert request.json == {}
    assert request.bearer == old.id
    assert request.headers["seon-fp"] == "print"
    assert new.organization_id is None
    assert session.token is new


async def test_unscope_gives_up_when_signed_out_meanwhile(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A logout wins over an operation that was under way: the token that it issued is revoked."""
    session = connect()
    await session.login(ME, PASSWORD)
    gate = Gate()
    fake.fail("unscope_organization_token", Fault(gate=gate))
    async with AsyncBackground() as background:
        job = background.start(session.unscope_organization_token)
        await async_arrived(gate)
        await session.logout()
        gate.open()
        with pytest.raises(NotSignedInError, match="meanwhile"):
            await job.result()
    assert session.token is None
    assert fake.live_tokens() == []


@pytest.mark.parametrize(
    ("validity", "sent"),
    [
        (None, {}),
        (timedelta(seconds=1), {"validity": "1s"}),
        (timedelta(hours=24), {"validity": "86400s"}),
        (timedelta(minutes=1.5), {"validity": "90s"}),
        (timedelta(seconds=7.25), {"validity": "7.25s"}),
    ],
)
@pytest.mark.parametrize("form", ["jwt", "opaque"])
async def test_access_token_lives_as_long_as_was_asked_for(
    clock: FakeClock,
    connect: Connect,
    form: Literal["jwt", "opaque"],
    validity: timedelta | None,
    sent: dict[str, str],
) -> None:
    """The reply names no expiry: it is the JWT's, to a second, or what was asked for."""
    fake = FakeKoyeb(access_tokens=form, clock=clock)
    session = connect(transport=fake.transport)
    own = await session.login(ME, PASSWORD)
    organization = fake.organizations[ME][1]
    other = await session.create_access_token(organization, validity=validity)
    request = fake.requests[-1]
    path = f"/v1/organizations/{organization}/access_token"
    assert (request.method, request.path) == ("POST", path)
    assert request.json == sent
    assert request.bearer == own.id
    assert session.token is own
    assert other.id in fake.live_tokens()
    assert other.organization_id == organization
    now = datetime.fromtimestamp(clock.time(), UTC)
    assert other.issued_at == now
    life = validity or timedelta(hours=1)
    if form == "jwt":
        life -= timedelta(microseconds=life.microseconds)
    assert other.expires_at == now + life


async def test_access_token_is_for_another_session(fake: FakeKoyeb, connect: Connect) -> None:
    """A session for the new token acts in its organization, and a stranger's is forbidden."""
    session = connect()
    await session.login(ME, PASSWORD)
    organization = fake.organizations[ME][1]
    other = session.for_token(await session.create_access_token(organization))
    reply = await other.http.get("/v1/account/organization")
    assert reply.json()["organization"]["id"] == organization
    with pytest.raises(PermissionDeniedError, match=r"may not create.*may issue tokens"):
        await other.create_access_token(organization)
    with pytest.raises(NotFoundError):
        await session.create_access_token("no-such-organization")


async def test_access_token_is_issued_by_an_api_token(fake: FakeKoyeb, connect: Connect) -> None:
    """An API access token of the user issues tokens for each organization of the user's."""
    session = connect(token=fake.issue_api_token())
    for organization in fake.organizations[ME]:
        token = await session.create_access_token(organization, validity=timedelta(minutes=5))
        assert token.organization_id == organization
    assert operations(fake) == ["create_access_token"] * 2


async def test_sign_in_that_is_forbidden_says_what_to_do(fake: FakeKoyeb, connect: Connect) -> None:
    """Koyeb closes the password login with a 403: the error names what a program types instead."""
    session = connect()
    for status in (403, 404):
        fake.fail("login", Fault(status=status, body={"message": "no", "code": 7}))
        with pytest.raises(ApiError) as caught:
            await session.login(ME, PASSWORD)
        for word in ("API access token", "token=", "AccessTokenCredentials(", "credentials="):
            assert word in str(caught.value)
    fake.lock_account(ME)
    with pytest.raises(AccountLockedError, match=r"Account is locked.*AccessTokenCredentials"):
        await session.login(ME, PASSWORD)


async def test_requests_say_which_library_sends_them(fake: FakeKoyeb, connect: Connect) -> None:
    """Operations and `http` name the library and its version; a request's own header wins."""
    session = connect()
    await session.login(ME, PASSWORD)
    await session.http.get("/v1/apps")
    await session.http.get("/v1/apps", headers={"User-Agent": "mine"})
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


async def test_new_session_renews_first_when_the_token_is_nearly_expired(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """An operation is signed with a token that will live long enough."""
    session = connect()
    await session.login(ME, PASSWORD)
    clock.advance(timedelta(hours=24, seconds=-30))
    await session.new_session()
    assert operations(fake) == ["login", "refresh", "new_session"]
    assert session.token is not None
    assert fake.requests[-1].bearer == session.token.id


async def test_new_session_waits_for_the_renewal_when_it_is_only_due(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """An operation does not carry a token that an exchange may revoke meanwhile."""
    session = connect()
    await session.login(ME, PASSWORD)
    clock.advance(timedelta(hours=12))
    await session.new_session()
    assert operations(fake) == ["login", "refresh", "new_session"]


async def test_new_session_is_sent_once_more_when_the_token_was_revoked(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """An operation that meets a 401 is repeated with a newer token."""
    session = connect()
    await session.login(ME, PASSWORD)
    fake.fail("new_session", Fault(status=401))
    await session.new_session()
    assert operations(fake) == ["login", "new_session", "refresh", "new_session"]
    assert session.token is not None
    assert fake.requests[-1].bearer == session.token.id


async def test_new_session_is_not_sent_a_third_time(fake: FakeKoyeb, connect: Connect) -> None:
    """A service that refuses the new token too has answered."""
    session = connect()
    await session.login(ME, PASSWORD)
    fake.fail("new_session", Fault(status=401), times=5)
    with pytest.raises(AuthenticationError) as caught:
        await session.new_session()
    assert not isinstance(caught.value, SessionExpiredError)
    assert operations(fake) == ["login", "new_session", "refresh", "new_session"]


async def test_new_session_raises_the_refusal_when_the_token_is_not_ours_to_renew(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A 401 on an API token is simply the answer."""
    session = connect(token=fake.issue_api_token())
    fake.revoke_all()
    with pytest.raises(AuthenticationError) as caught:
        await session.new_session()
    assert not isinstance(caught.value, SessionExpiredError)
    assert operations(fake) == ["new_session"]


async def test_new_session_raises_when_the_refused_token_cannot_be_renewed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """When the refresh is refused too, the session has ended."""
    session = connect()
    await session.login(ME, PASSWORD)
    fake.revoke_all()
    with pytest.raises(SessionExpiredError) as caught:
        await session.new_session()
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert operations(fake) == ["login", "new_session", "refresh"]


async def test_new_session_has_no_time_to_renew_what_is_refused_late(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The session has not ended: its caller was in a hurry."""

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            ends = time.monotonic() + 0.02
            while time.monotonic() <= ends:
                pass
            return httpx.Response(401)

    session = connect(token=fake.issue_token(), transport=Slow())
    with pytest.raises(TransportTimeoutError):
        await session.new_session(timeout=0.01)
    assert session.token is not None
    assert (await session.current_token()).id == session.token.id


async def test_new_session_keeps_to_its_time_while_the_refused_token_is_renewed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The renewal goes on, for others."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="reply"))
    old = session.token
    for timeout in deadlines(lambda: "refresh" in operations(fake)):
        fake.recover("new_session")
        fake.fail("new_session", Fault(status=401))
        with pytest.raises(TransportTimeoutError) as caught:
            await session.new_session(timeout=timeout)
    assert re.search(r"not renewed within \d", str(caught.value))
    assert caught.value.retryable
    gate.open()
    await async_until(lambda: session.token is not old)


async def test_new_session_raises_when_not_signed_in(fake: FakeKoyeb, connect: Connect) -> None:
    """Without a token nothing is sent."""
    with pytest.raises(NotSignedInError):
        await connect().new_session()
    assert fake.requests == []


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
    """``timeout=`` bounds one call, whatever the client's is."""
    session = connect(timeout=60)
    fake.fail("login", Fault(gate=Gate()))
    with pytest.raises(TransportTimeoutError):
        await session.login(ME, PASSWORD, timeout=0.02)


async def test_another_session_whose_token_has_expired_is_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """An expired token is no reply, also where this client does not go on with it."""
    session = connect(token=fake.issue_token())
    fake.fail("new_session", Fault(body={"token": {"id": "t", "expires": "2022-09-08T14:00:00Z"}}))
    with pytest.raises(WireError, match="new_session: the token that the service handed out has"):
        await session.new_session()


# The token


async def test_current_token_costs_nothing_while_fresh(fake: FakeKoyeb, connect: Connect) -> None:
    """A fresh token is handed out as it is."""
    session = connect(token=fake.issue_token())
    assert await session.current_token() is session.token
    assert fake.requests == []


async def test_current_token_renews_when_nearly_expired(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A token that is about to expire is not handed out."""
    session = connect(token=fake.issue_token())
    clock.advance(timedelta(hours=24, seconds=-59))
    token = await session.current_token()
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [token.id]


async def test_current_token_raises_when_not_signed_in(connect: Connect) -> None:
    """There is no token, and nothing to sign in with."""
    with pytest.raises(NotSignedInError):
        await connect().current_token()


async def test_token_is_completed_from_the_jwt_when_given_as_text(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The expiry and the time of issue are read from the id."""
    token = connect(token=fake.issue_token()).token
    assert token is not None
    assert token.expires_at is not None
    assert token.issued_at is not None
    assert token.issued_at.timestamp() == clock.time()
    assert token.expires_at - token.issued_at == timedelta(hours=24)


async def test_use_token_refuses_an_expired_token_and_keeps_the_old_one(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A token that is dead on arrival is the caller's mistake."""
    session = connect(token=fake.issue_token())
    old = session.token
    with pytest.raises(ValueError, match="expired"):
        await session.use_token(fake.issue_token(lifetime=timedelta(0)))
    assert session.token is old


async def test_for_token_shares_connections_and_leaves_the_token_alone(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Somebody else's token is used, and not renewed, whatever happens to it."""
    session = connect()
    own = await session.login(ME, PASSWORD)
    caller = session.for_token(fake.issue_token())
    assert isinstance(caller, AsyncSessionClient)
    assert caller.token is not None
    assert caller.token.id not in {own.id, None}
    assert (await caller.http.get("/v1/apps")).status_code == 200
    assert fake.requests[-1].bearer == caller.token.id
    clock.advance(timedelta(hours=24, seconds=-10))
    assert (await caller.http.get("/v1/apps")).status_code == 200
    fake.revoke_all()
    assert (await caller.http.get("/v1/apps")).status_code == 401
    clock.advance(10)
    with pytest.raises(SessionExpiredError, match="this session does not renew it"):
        await caller.current_token()
    assert fake.exchanges() == 0
    assert session.token is own


async def test_for_token_renews_when_asked_to(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """``renew=True`` makes it a session like any other."""
    caller = connect().for_token(fake.issue_token(), renew=True)
    clock.advance(timedelta(hours=24, seconds=-10))
    await caller.current_token()
    assert fake.exchanges() == 1


async def test_for_token_keeps_its_policy_clock_and_origins(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """What the client was made with holds for the sessions that it makes."""
    policy = RefreshPolicy(hard_window=3600, jitter=0)
    caller = connect(refresh_policy=policy).for_token(fake.issue_token(), renew=True)
    clock.advance(timedelta(hours=23))
    await caller.current_token()
    assert fake.exchanges() == 1
    assert repr(caller).startswith(f"<{AsyncSessionClient.__name__} https://app.koyeb.com: signed")


# What is refused before anything is sent

BAD_EMAILS: list[tuple[object, type[Exception]]] = [
    *(("", ValueError), (" ", ValueError), ("\ud800", ValueError)),
    *((None, TypeError), (b"me", TypeError), (1, TypeError)),
]
BAD_IDS: list[tuple[object, type[Exception]]] = [
    *(("", ValueError), ("a/b", ValueError), ("..", ValueError)),
    *(("a b", ValueError), ("a\n", ValueError), (7, TypeError)),
]
BAD_TIMEOUTS: list[tuple[object, type[Exception]]] = [
    *((-1, ValueError), (math.nan, ValueError), (0, ValueError)),
    *((math.inf, ValueError), ("1", TypeError), (True, TypeError)),
]
BAD_TOKENS: list[tuple[object, type[Exception]]] = [
    *(("", ValueError), ("a b", ValueError), ("a\r\nb", ValueError)),
    *(("é", ValueError), (b"a", TypeError), (3, TypeError)),
    (Token("a", expires_at=datetime(2030, 1, 1)), ValueError),  # noqa: DTZ001 - naive
]
BAD_VALIDITIES: list[tuple[Any, type[Exception]]] = [
    *((timedelta(seconds=bad), ValueError) for bad in (-1, 0, 0.999999, 86_400.000001)),
    *((bad, TypeError) for bad in (3600, "3600s", True)),
]
BadCall: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]
BAD_CALLS: list[BadCall] = [
    *[("login", (bad, PASSWORD), {}, error, "email") for bad, error in BAD_EMAILS],
    *[("login", (ME, bad), {}, error, "password") for bad, error in BAD_EMAILS],
    *[("passwordless_login", (bad,), {}, error, "email") for bad, error in BAD_EMAILS],
    *[("login_method", (bad,), {}, error, "email") for bad, error in BAD_EMAILS],
    *[
        ("login", (ME, PASSWORD), {"organization_id": bad}, error, "organization_id")
        for bad, error in BAD_IDS
    ],
    *[("switch_organization", (bad,), {}, error, "organization_id") for bad, error in BAD_IDS],
    ("switch_organization", (None,), {}, TypeError, "organization_id"),
    ("login", (ME, PASSWORD), {"seon_fp": "a\nb"}, ValueError, "seon_fp"),
    ("switch_organization", ("a",), {"seon_fp": 5}, TypeError, "seon_fp"),
    ("unscope_organization_token", (), {"seon_fp": "a b"}, ValueError, "seon_fp"),
    *[("create_access_token", (bad,), {}, error, "organization_id") for bad, error in BAD_IDS],
    *[
        ("create_access_token", ("a",), {"validity": bad}, error, "validity")
        for bad, error in BAD_VALIDITIES
    ],
    *[("use_token", (bad,), {}, error, "token") for bad, error in BAD_TOKENS],
    *[("for_token", (bad,), {}, error, "token") for bad, error in BAD_TOKENS],
    *[
        (name, arguments, {"timeout": bad}, error, "timeout")
        for bad, error in BAD_TIMEOUTS
        for name, arguments in [
            ("login", (ME, PASSWORD)),
            ("passwordless_login", (ME,)),
            ("refresh", ()),
            ("logout", ()),
            ("new_session", ()),
            ("switch_organization", ("a",)),
            ("unscope_organization_token", ()),
            ("create_access_token", ("a",)),
            ("login_method", (ME,)),
        ]
    ],
]


@pytest.mark.parametrize("call", BAD_CALLS)
async def test_bad_argument_is_named_before_anything_is_sent(
    fake: FakeKoyeb, connect: Connect, call: BadCall
) -> None:
    """The caller's mistake is a `ValueError` or a `TypeError` that names the argument."""
    name, args, kwargs, error, argument = call
    session = connect(token=fake.issue_token())
    before = session.token
    with pytest.raises(error, match=argument) as caught:
        await getattr(session, name)(*args, **kwargs)
    assert type(caught.value) is error
    assert fake.requests == []
    assert session.token is before


BAD_BASE_URLS = [
    *("app.koyeb.com", "//app.koyeb.com", "https://", "ftp://app.koyeb.com", ""),
    *("https://me:pw@app.koyeb.com", "http://app.koyeb.com", "https://a.b/?q=1"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "argument"),
    [
        *[({"base_url": bad}, ValueError, "base_url") for bad in BAD_BASE_URLS],
        ({"base_url": b"https://app.koyeb.com"}, TypeError, "base_url"),
        ({"allowed_origins": "https://a.example"}, TypeError, "allowed_origins"),
        ({"allowed_origins": 5}, TypeError, "allowed_origins"),
        ({"allowed_origins": ["http://a.example"]}, ValueError, "allowed_origins"),
        ({"allowed_origins": ["https://a.example/v1"]}, ValueError, "allowed_origins"),
        *[({"token": bad}, error, "token") for bad, error in BAD_TOKENS],
        *[({"timeout": bad}, error, "timeout") for bad, error in BAD_TIMEOUTS],
        ({"timeout": None}, TypeError, "timeout"),
        ({"credentials": ("me", "pw")}, TypeError, "credentials"),
        ({"credentials": PasswordCredentials("", "pw")}, ValueError, "credentials.email"),
        ({"credentials": PasswordCredentials(ME, "")}, ValueError, "credentials.password"),
        ({"credentials": PasswordCredentials(ME, "p", "a/b")}, ValueError, "organization_id"),
        ({"refresh_policy": RetryPolicy()}, TypeError, "refresh_policy"),
        ({"retry_policy": 3}, TypeError, "retry_policy"),
        ({"http_client": httpx}, TypeError, "http_client"),
        ({"transport": object()}, TypeError, "transport"),
    ],
)
async def test_client_refuses_a_bad_argument_by_its_name(
    arguments: dict[str, Any], error: type[Exception], argument: str
) -> None:
    """A client is not made with what cannot work."""
    with pytest.raises(error, match=argument) as caught:
        AsyncSessionClient(**arguments)
    assert type(caught.value) is error


async def test_client_refuses_both_http_client_and_transport(
    fake: FakeKoyeb, client: httpx.AsyncClient
) -> None:
    """Two ways to send are one too many."""
    with pytest.raises(ValueError, match="not both"):
        AsyncSessionClient(http_client=client, transport=fake.transport)


# Life cycle


CALLS: dict[str, tuple[Any, ...]] = {
    "login": (ME, PASSWORD),
    "passwordless_login": (ME,),
    "refresh": (),
    "logout": (),
    "new_session": (),
    "switch_organization": ("a",),
    "unscope_organization_token": (),
    "create_access_token": ("a",),
    "login_method": (ME,),
    "current_token": (),
    "use_token": ("abc",),
    "keep_current": (),
}


@pytest.mark.parametrize("name", CALLS)
async def test_nothing_is_sent_after_close(fake: FakeKoyeb, connect: Connect, name: str) -> None:
    """Use after close is a `RuntimeError` that says so."""
    session = connect(token=fake.issue_token())
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await getattr(session, name)(*CALLS[name])
    with pytest.raises(RuntimeError, match="closed"):
        await session.http.get("/v1/apps")
    assert fake.requests == []


@pytest.mark.parametrize("name", CALLS)
async def test_nothing_is_sent_for_a_child_after_the_parent_is_closed(
    fake: FakeKoyeb, connect: Connect, name: str
) -> None:
    """A session from `for_token` lives no longer than the connections that it borrows."""
    session = connect()
    child = session.for_token(fake.issue_token())
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await getattr(child, name)(*CALLS[name])
    with pytest.raises(RuntimeError, match="closed"):
        await child.http.get("/v1/apps")
    assert fake.requests == []


async def test_sync_methods_raise_after_close(fake: FakeKoyeb, connect: Connect) -> None:
    """Neither a block nor another session begins on a closed client."""
    session = connect(token=fake.issue_token())
    async with session as entered:
        assert entered is session
    with pytest.raises(RuntimeError, match="closed"):
        async with session:
            pass
    with pytest.raises(RuntimeError, match="closed"):
        session.for_token("abc")


async def test_token_can_still_be_read_after_close(fake: FakeKoyeb, connect: Connect) -> None:
    """To read what is known is no use."""
    session = connect(token=fake.issue_token())
    token = session.token
    assert token is not None
    await session.aclose()
    assert session.token is token


async def test_auth_raises_after_close(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """The hook does not sign with the token of a closed session, on whichever client."""
    session = connect(token=fake.issue_token())
    auth = session.auth
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get("/v1/apps", auth=auth)
    assert fake.requests == []


class CountingTransport(httpx.AsyncBaseTransport):
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        """Count."""
        self.closed += 1


async def test_close_closes_the_transport_once(connect: Connect) -> None:
    """The client closes the transport that it was given; closing twice is closing once."""
    transport = CountingTransport()
    session = connect(transport=transport)
    assert session.http is session.http
    for _ in range(2):
        await session.aclose()
        assert session.http.is_closed
        assert transport.closed == 1


async def test_close_of_a_child_closes_nothing_of_the_parent(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A session from `for_token` only borrows the connections."""
    transport = CountingTransport()
    child = connect(transport=transport).for_token(fake.issue_token())
    assert child.http.base_url == "https://app.koyeb.com"
    await child.aclose()
    assert transport.closed == 0
    assert child.http.is_closed


async def test_close_leaves_the_users_client_open(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """A given ``http_client`` stays the user's to close."""
    session = connect(http_client=client)
    await session.login(ME, PASSWORD)
    await session.aclose()
    assert not client.is_closed
    assert (await client.get("/v1/apps")).status_code == 401


async def test_close_waits_for_a_renewal_under_way(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A token that the service has minted already is not lost to a close."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(timedelta(hours=12))
    old = await session.current_token()
    await async_arrived(gate)
    async with AsyncBackground() as background:
        closing = background.start(session.aclose)
        gate.open()
        await closing.result()
    assert session.token is not None
    assert session.token is not old
    assert fake.live_tokens() == [session.token.id]
    with pytest.raises(RuntimeError, match="closed"):
        await session.current_token()


async def test_close_waits_no_longer_than_the_deadline(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A renewal that hangs ends with its deadline, and so does the close."""
    session = connect(token=fake.issue_token(), timeout=0.05)
    fake.fail("refresh", Fault(gate=Gate()))
    clock.advance(timedelta(hours=12))
    old = await session.current_token()
    await session.aclose()
    assert session.token is old


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_client_cannot_be_copied(
    connect: Connect, copied: Callable[[object], object]
) -> None:
    """Two objects with one session would fork it."""
    with pytest.raises(TypeError, match="for_token"):
        copied(connect())


async def test_repr_tells_the_state_and_no_secret(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A person reads where the session stands."""
    session = connect()
    name = AsyncSessionClient.__name__
    assert repr(session) == f"<{name} https://app.koyeb.com: not signed in>"
    token = await session.login(ME, PASSWORD)
    wanted = f"<{name} https://app.koyeb.com: signed in as {token.user_id}, token good for 1 d 0 h>"
    assert repr(session) == wanted
    clock.advance(timedelta(hours=24))
    assert repr(session).endswith(f"the session as {token.user_id} has ended: token expired>")
    await session.aclose()
    assert repr(session) == f"<{name} https://app.koyeb.com: closed>"
    assert token.id not in repr(session)


async def test_a_client_that_was_never_closed_warns(url: str, clock: FakeClock) -> None:
    """Connections that are left open are told of, without a secret."""
    session = AsyncSessionClient(base_url=url, clock=clock)
    token = await session.login(ME, PASSWORD)
    for connections in {session._connections, session._operation_connections}:
        assert connections is not None
        for transport in connections._opened.values():
            await transport.aclose()  # or the sockets warn, too
    secret = token.id
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del session
        gc.collect()
    (warning,) = caught
    assert warning.category is ResourceWarning
    assert str(warning.message).startswith(f"unclosed <{AsyncSessionClient.__name__} {url}: signed")
    assert secret not in str(warning.message)


async def test_a_client_without_connections_does_not_warn(
    fake: FakeKoyeb, client: httpx.AsyncClient
) -> None:
    """There is nothing to close in one that opened nothing, or was never made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = AsyncSessionClient(http_client=client)
        await session.login(ME, PASSWORD)
        session.for_token("abc")
        del session
        with pytest.raises(ValueError, match="timeout"):
            AsyncSessionClient(timeout=-1)
        gc.collect()


async def test_a_closed_client_does_not_warn(url: str, clock: FakeClock) -> None:
    """Who closes has nothing to be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with AsyncSessionClient(base_url=url, clock=clock) as session:
            await session.login(ME, PASSWORD)
            assert (await session.http.get("/v1/apps")).status_code == 200
            assert session._connections.opened
        assert not session._connections.opened
        del session
        gc.collect()


# The user's own httpx client


async def test_http_client_sends_the_operations_through_its_event_hooks(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Every operation passes the hooks of the user's client, whole reply included."""
    seen: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url.path}")

    async def on_response(response: httpx.Response) -> None:
        await async_read(response)
        seen.append(str(response.status_code))

    hooks: dict[str, list[Callable[..., Any]]] = {
        "request": [on_request],
        "response": [on_response],
    }
    async with httpx.AsyncClient(transport=fake.transport, event_hooks=hooks) as client:
        session = connect(http_client=client)
        await session.login(ME, PASSWORD)
        await session.passwordless_login(ME)
        await session.refresh()
        await session.new_session()
        await session.switch_organization(fake.organizations[ME][0])
        await session.login_method(ME)
        await session.logout()
    assert seen == [
        *("POST /v1/account/login", "200"),
        *("POST /v1/account/passwordless_login", "200"),
        *("PUT /v1/account/refresh", "200"),
        *("POST /v1/account/session", "200"),
        *(f"POST /v1/organizations/{fake.organizations[ME][0]}/switch", "200"),
        *("GET /v1/account/login_method", "200"),
        *("DELETE /v1/account/logout", "200"),
    ]
    assert session.token is None


async def test_http_clients_auth_and_redirects_are_not_used(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """An operation carries what it must and nothing else, and follows nowhere."""
    location = {"location": "https://app.koyeb.com/v1/account/login_method?email=me"}
    fake.fail("login", Fault(status=307, headers=location))
    async with httpx.AsyncClient(
        transport=fake.transport, auth=("user", "pw"), follow_redirects=True
    ) as client:
        with pytest.raises(ApiError) as caught:
            await connect(http_client=client).login(ME, PASSWORD)
    assert caught.value.status == 307
    (request,) = fake.requests
    assert "authorization" not in request.headers


async def test_http_is_not_the_users_client(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """`session.http` is always the session's own, with its own base URL and timeout."""
    session = connect(http_client=client, timeout=7)
    assert session.http is not client
    assert session.http.base_url == "https://app.koyeb.com"
    assert session.http.timeout == httpx.Timeout(7)
    assert session.http.auth is session.auth
    assert session.auth is session.auth


async def test_transport_carries_requests_and_operations(fake: FakeKoyeb, connect: Connect) -> None:
    """A given transport is used for everything."""
    session = connect()
    await session.login(ME, PASSWORD)
    await session.http.get("/v1/apps", params={"limit": 1})
    assert operations(fake) == ["login", "apps"]
    assert fake.requests[-1].query == "limit=1"
    assert fake.transport.open_replies == 0


async def test_base_url_may_have_a_path(fake: FakeKoyeb, connect: Connect) -> None:
    """A service behind a prefix is asked below it."""
    session = connect(base_url="https://gateway.example/koyeb/", transport=fake.transport)
    with pytest.raises(EndpointGoneError):
        await session.login(ME, PASSWORD)
    assert fake.requests[-1].path == "/koyeb/v1/account/login"
    assert fake.requests[-1].headers["host"] == "gateway.example"


def test_the_halves_have_the_same_names() -> None:
    """The blocking client offers what the other one does."""
    ours = {name.replace("aclose", "close") for name in dir(AsyncSessionClient)}
    renamed = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
    assert {renamed.get(name, name) for name in ours} == set(dir(SessionClient))
