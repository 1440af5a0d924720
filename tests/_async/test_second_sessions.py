"""Sessions besides the own one: organizations, access tokens, `for_token`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import httpx
import pytest

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AsyncSessionClient,
    AuthenticationError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    RefreshPolicy,
    SessionExpiredError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core import deadline
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, async_until, deadlines
from ..support import ME, PASSWORD, held, operations
from .doubles import AsyncUnderWay, Connect


async def test_new_session_keeps_the_own_token(
    fake: FakeKoyeb, signed_in: AsyncSessionClient
) -> None:
    """The issued token is for somebody else; this session goes on with its own."""
    own = signed_in.token
    other = await signed_in.new_session()
    request = fake.requests[-1]
    assert (request.method, request.path) == ("POST", "/v1/account/session")
    assert (request.bearer, request.content) == (held(signed_in), b"")
    assert signed_in.token is own
    assert fake.live_tokens() == [held(signed_in), other.id]
    assert other.organization_id is None


CHANGES = {
    "switch_organization": "/v1/organizations/{}/switch",
    "unscope_organization_token": "/v1/unscope_organization_token",
}


def target(fake: FakeKoyeb, operation: str) -> tuple[str, ...]:
    """Return the arguments of a change of organization: another one, or none."""
    return (fake.organizations[ME][1],) if operation == "switch_organization" else ()


@pytest.mark.parametrize("operation", [*CHANGES])
async def test_change_of_organization_goes_on_with_the_new_token(
    fake: FakeKoyeb, signed_in: AsyncSessionClient, operation: str
) -> None:
    """The session acts in the other organization, or in none, from then on."""
    old = held(signed_in)
    arguments = target(fake, operation)
    organization = arguments[0] if arguments else None
    new = await getattr(signed_in, operation)(*arguments, seon_fp="print")
    request = fake.requests[-1]
    assert (request.method, request.path) == ("POST", CHANGES[operation].format(organization))
    assert request.json == {}
    assert request.bearer == old
    assert request.headers["seon-fp"] == "print"
    assert new.organization_id == organization
    assert signed_in.token is new


async def test_switch_organization_keeps_the_token_when_refused(
    signed_in: AsyncSessionClient,
) -> None:
    """An organization that does not exist is not found, and nothing has changed."""
    token = signed_in.token
    with pytest.raises(NotFoundError):
        await signed_in.switch_organization("no-such-organization")
    assert signed_in.token is token


@pytest.mark.parametrize("operation", [*CHANGES])
async def test_change_of_organization_gives_up_when_signed_out_meanwhile(
    fake: FakeKoyeb, signed_in: AsyncSessionClient, operation: str
) -> None:
    """A logout wins over an operation that was under way: the token that it issued is revoked."""
    call = partial(getattr(signed_in, operation), *target(fake, operation))
    async with AsyncUnderWay(fake, operation, call) as background:
        await signed_in.logout()
        background.gate.open()
        with pytest.raises(NotSignedInError, match="meanwhile"):
            await background.job.result()
    assert signed_in.token is None
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
    """The reply names no expiry: it is the JWT's, to a second, or the validity that was asked."""
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


async def test_access_token_is_for_another_session(
    fake: FakeKoyeb, signed_in: AsyncSessionClient
) -> None:
    """A session for the new token acts in its organization, and a stranger's is forbidden."""
    organization = fake.organizations[ME][1]
    other = signed_in.for_token(await signed_in.create_access_token(organization))
    reply = await other.http.get("/v1/account/organization")
    assert reply.json()["organization"]["id"] == organization
    with pytest.raises(PermissionDeniedError, match=r"may not create.*may issue tokens"):
        await other.create_access_token(organization)
    with pytest.raises(NotFoundError):
        await signed_in.create_access_token("no-such-organization")


async def test_access_token_is_issued_by_an_api_token(fake: FakeKoyeb, connect: Connect) -> None:
    """An API access token of the user issues tokens for each organization of the user's."""
    session = connect(token=fake.issue_api_token())
    for organization in fake.organizations[ME]:
        token = await session.create_access_token(organization, validity=timedelta(minutes=5))
        assert token.organization_id == organization
    assert operations(fake) == ["create_access_token"] * 2


async def test_sign_in_that_is_forbidden_says_what_to_do(fake: FakeKoyeb, connect: Connect) -> None:
    """Koyeb closes the password login with a 403: the error names the code to type instead."""
    session = connect()
    for status in (403, 404):
        fake.fail("login", Fault(status=status, body={"message": "no", "code": 7}))
        with pytest.raises(ApiError) as caught:
            await session.login(ME, PASSWORD)
        for word in ("API access token", "token=", "AccessTokenCredentials(", "credentials="):
            assert word in str(caught.value)
    fake.lock_account(ME)
    with pytest.raises(AccountLockedError, match=r"Account is locked.*wait before you try again"):
        await session.login(ME, PASSWORD)


@pytest.mark.parametrize("age", [timedelta(hours=24, seconds=-30), timedelta(hours=12)])
async def test_new_session_renews_first_when_the_token_is_due(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient, age: timedelta
) -> None:
    """An operation carries a token that lives long enough, and that no exchange revokes."""
    clock.advance(age)
    await session.new_session()
    assert operations(fake) == ["refresh", "new_session"]
    assert fake.requests[-1].bearer == held(session)


async def test_new_session_is_not_sent_a_third_time(
    fake: FakeKoyeb, signed_in: AsyncSessionClient
) -> None:
    """It is sent again with a newer token; a service that refuses that too has answered."""
    fake.fail("new_session", Fault(status=401), times=5)
    with pytest.raises(AuthenticationError) as caught:
        await signed_in.new_session()
    assert not isinstance(caught.value, SessionExpiredError)
    assert operations(fake) == ["login", "new_session", "refresh", "new_session"]
    assert fake.requests[-1].bearer == held(signed_in)


@pytest.mark.parametrize("renewable", [True, False])
async def test_new_session_has_no_time_to_renew_what_is_refused_late(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch, *, renewable: bool
) -> None:
    """The session has not ended: its caller was in a hurry. An API token's refusal stays one."""
    watch = FakeClock()
    monkeypatch.setattr(deadline, "time", watch)

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            watch.advance(PATIENCE)
            return httpx.Response(401)

    token = fake.issue_token() if renewable else fake.issue_api_token()
    session = connect(token=token, transport=Slow())
    late = "^the token was refused, and no time is left to renew it$"
    with (
        pytest.raises(TransportTimeoutError, match=late)
        if renewable
        else pytest.raises(AuthenticationError)
    ):
        await session.new_session(timeout=PATIENCE)
    assert session.token is not None
    assert (await session.current_token()).id == session.token.id


async def test_new_session_keeps_to_its_time_while_the_refused_token_is_renewed(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """The renewal goes on, for others."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="reply"))
    old = session.token
    errors: list[TransportTimeoutError] = []
    for timeout in deadlines(lambda: "refresh" in operations(fake)):
        fake.recover("new_session")
        fake.fail("new_session", Fault(status=401))
        with pytest.raises(TransportTimeoutError) as caught:
            await session.new_session(timeout=timeout)
        errors.append(caught.value)
    assert re.search(r"not renewed within \d", str(errors[-1]))
    assert errors[-1].retryable
    gate.open()
    await async_until(lambda: session.token is not old)


async def test_another_session_whose_token_has_expired_is_refused(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """An expired token is no reply, also where this client does not go on with it."""
    fake.fail("new_session", Fault(body={"token": {"id": "t", "expires": "2022-09-08T14:00:00Z"}}))
    with pytest.raises(WireError, match="new_session: the token that the service handed out has"):
        await session.new_session()


async def test_for_token_shares_connections_and_leaves_the_token_alone(
    fake: FakeKoyeb, clock: FakeClock, signed_in: AsyncSessionClient
) -> None:
    """Another account's token is used, and not renewed, in each of these cases."""
    own = signed_in.token
    caller = signed_in.for_token(other := fake.issue_token())
    assert isinstance(caller, AsyncSessionClient)
    assert (await caller.http.get("/v1/apps")).status_code == 200
    assert fake.requests[-1].bearer == other == held(caller)
    clock.advance(timedelta(hours=24, seconds=-10))
    assert (await caller.http.get("/v1/apps")).status_code == 200
    fake.revoke_all()
    assert (await caller.http.get("/v1/apps")).status_code == 401
    clock.advance(10)
    with pytest.raises(SessionExpiredError, match="this session does not renew it"):
        await caller.current_token()
    assert fake.exchanges() == 0
    assert signed_in.token is own


async def test_for_token_renews_when_asked_to_by_its_policy_and_clock(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """``renew=True`` makes a session like any other, with the arguments of the client."""
    policy = RefreshPolicy(hard_window=3600, jitter=0)
    caller = connect(refresh_policy=policy).for_token(fake.issue_token(), renew=True)
    clock.advance(timedelta(hours=23))
    await caller.current_token()
    assert fake.exchanges() == 1
    assert repr(caller).startswith(f"<{AsyncSessionClient.__name__} https://app.koyeb.com: signed")
