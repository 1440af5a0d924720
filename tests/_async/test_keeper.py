"""The keeper: when a token is renewed, by whom, and what becomes of the session when that fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx
import pytest

from koyeb_session import (
    AccountLockedError,
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    AuthenticationError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PasswordCredentials,
    PermissionDeniedError,
    RateLimitedError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import (
    AsyncBackground,
    async_arrived,
    async_gather,
    async_idle,
    async_until,
)

ME = "me@example.com"
PASSWORD = "correct horse"
DAY = timedelta(hours=24)
Connect = Callable[..., AsyncSessionClient]
PASSWORDS = PasswordCredentials(ME, PASSWORD)


def log(fake: FakeKoyeb) -> list[tuple[str | None, int | None]]:
    """List what was asked for and how that was answered, in order."""
    return [(request.operation, request.status) for request in fake.requests]


def held(session: AsyncSessionClient) -> str:
    """Give the id of the token that a session holds."""
    assert session.token is not None
    return session.token.id


# The two windows


async def test_nobody_waits_for_a_renewal_in_the_soft_window(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The old token is handed out at once, while one exchange runs by itself."""
    session = connect(token=fake.issue_token())
    old = held(session)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(DAY / 2)
    assert (await session.current_token()).id == old
    await async_arrived(gate)
    assert (await session.current_token()).id == old
    assert (await session.current_token()).id == old
    gate.open()
    await async_idle()
    assert (await session.current_token()).id == held(session) != old
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [held(session)]


async def test_everybody_waits_for_one_renewal_in_the_hard_window(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """All who come share one exchange, and get its token."""
    session = connect(token=fake.issue_token())
    old = held(session)
    clock.advance(DAY - timedelta(seconds=60))
    tokens = await async_gather(*[session.current_token] * 20)
    assert {token.id for token in tokens} == {held(session)}
    assert held(session) != old
    assert fake.exchanges() == 1


@pytest.mark.parametrize(
    ("policy", "left", "what"),
    [
        (RefreshPolicy(jitter=0), DAY / 2 + timedelta(seconds=1), "use"),
        (RefreshPolicy(jitter=0), DAY / 2, "renew"),
        (RefreshPolicy(jitter=0), timedelta(seconds=60), "wait"),
        (RefreshPolicy(jitter=0, soft_window=3600), timedelta(seconds=3601), "use"),
        (RefreshPolicy(jitter=0, soft_window=3600), timedelta(seconds=3600), "renew"),
        (RefreshPolicy(jitter=0, soft_window=0), timedelta(seconds=61), "use"),
        (RefreshPolicy(jitter=0, soft_window=0), timedelta(seconds=60), "wait"),
        (RefreshPolicy(jitter=0, hard_window=None), DAY / 10, "wait"),
        (RefreshPolicy(jitter=0, hard_window=0), timedelta(seconds=1), "renew"),
    ],
)
async def test_windows_are_those_of_the_policy(
    connect: Connect, policy: RefreshPolicy, left: timedelta, what: str
) -> None:
    """So long before its expiry a token is used, renewed meanwhile, or renewed first."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    session = connect(
        token=fake.issue_token(), refresh_policy=policy, transport=fake.transport, clock=clock
    )
    old = held(session)
    clock.advance(DAY - left)
    token = await session.current_token()
    assert (token.id == old) is (what != "wait")
    await async_idle()
    assert fake.exchanges() == (what != "use")


async def test_a_renewed_token_has_its_life_before_it(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The next renewal comes half a lifetime after the one before."""
    session = connect(token=fake.issue_token())
    for exchange in range(1, 5):
        clock.advance(DAY / 2 - timedelta(seconds=1))
        await session.current_token()
        await async_idle()
        assert fake.exchanges() == exchange - 1
        clock.advance(1)
        await session.current_token()
        await async_idle()
        assert fake.exchanges() == exchange


async def test_a_short_token_is_not_renewed_at_every_turn(
    clock: FakeClock, connect: Connect
) -> None:
    """Windows give way to the lifetime: half of it is soft, a tenth of it hard."""
    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(seconds=20))
    session = connect(token=fake.issue_token(), transport=fake.transport)
    for _ in range(100):
        clock.advance(1)
        assert (await session.http.get("/v1/apps")).status_code == 200
        await async_idle()
    assert 5 <= fake.exchanges() <= 12


async def test_an_unknown_expiry_is_renewed_on_refusal_only(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A token that does not say how long it lives is used until it is refused."""
    session = connect()
    fake.fail("login", Fault(body={"token": {"id": "opaque"}}))
    await session.login(ME, PASSWORD)
    clock.advance(DAY * 365)
    assert (await session.current_token()).id == "opaque"
    good = fake.issue_token()
    fake.fail("refresh", Fault(body={"token": {"id": good}}))
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert held(session) == good


async def test_an_adopted_token_that_is_nearly_expired_is_renewed_at_once(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The floor between two renewals counts from the token's issue: no old one is lost to it."""
    old = fake.issue_token()
    clock.advance(DAY - timedelta(seconds=8))
    session = connect(token=old)
    token = await session.current_token()
    assert token.id != old
    assert fake.live_tokens() == [token.id]


async def test_the_same_token_again_is_not_renewed_before_the_floor(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A service that hands out a token that it had before is not asked again at every request."""
    old = fake.issue_token()
    clock.advance(DAY - timedelta(seconds=30))
    session = connect(token=old)
    assert session.token is not None
    expires = f"{session.token.expires_at:%Y-%m-%dT%H:%M:%SZ}"
    fake.fail("refresh", Fault(body={"token": {"id": old, "expires_at": expires}}), times=100)
    for _ in range(30):
        assert (await session.http.get("/v1/apps")).status_code == 200
        clock.advance(0.99)
    assert 2 <= len([1 for operation, _ in log(fake) if operation == "refresh"]) <= 30


# One exchange at a time


async def test_refresh_joins_the_exchange_under_way(fake: FakeKoyeb, connect: Connect) -> None:
    """Whoever asks for a renewal while one runs gets that one's token."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        first = background.start(session.refresh)
        await async_arrived(gate)
        others = [background.start(session.refresh) for _ in range(5)]
        await background.settled()
        gate.open()
        tokens = {(await job.result()).id for job in (first, *others)}
    assert tokens == {held(session)}
    assert fake.exchanges() == 1


async def test_refresh_joins_a_renewal_that_nobody_waits_for(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A renewal in the soft window is everybody's, too."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_arrived(gate)
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await background.settled()
        assert not job.done
        gate.open()
        assert (await job.result()).id == held(session)
    assert fake.exchanges() == 1


async def test_refresh_twice_is_two_exchanges(fake: FakeKoyeb, connect: Connect) -> None:
    """A refresh that is asked for after another has ended is one of its own."""
    session = connect(token=fake.issue_token())
    first, second = await session.refresh(), await session.refresh()
    assert first.id != second.id
    assert fake.exchanges() == 2
    assert fake.requests[1].bearer == first.id


async def test_followers_of_a_failed_exchange_fail_with_it(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """All who waited get the error, each a copy of its own; nobody tries again at once."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, status=500))
    async with AsyncBackground() as background:
        jobs = [background.start(session.refresh) for _ in range(3)]
        await async_arrived(gate)
        await background.settled()
        gate.open()
        errors: list[KoyebSessionError] = []
        for job in jobs:
            with pytest.raises(ServerError) as caught:
                await job.result()
            errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    assert log(fake) == [("refresh", 500)]


async def test_a_follower_of_an_older_exchange_runs_one_of_its_own(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A refresh of a session that began during the exchange of another one is not lost."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        first = background.start(session.refresh)
        await async_arrived(gate)
        parse_token = await session.use_token(fake.issue_token())
        second = background.start(session.refresh)
        await background.settled()
        gate.open()
        new = await second.result()
        await first.result()
    assert [request.bearer for request in fake.requests if request.operation == "refresh"][1:] == [
        parse_token.id
    ]
    assert new.id == held(session)
    assert fake.exchanges() == 2
    assert fake.live_tokens() == [new.id]


async def test_the_caller_of_an_overtaken_exchange_gets_the_sessions_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A refresh that a new session has overtaken brings that session's token."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await async_arrived(gate)
        parse_token = await session.use_token(fake.issue_token())
        gate.open()
        assert (await job.result()).id == parse_token.id
    assert held(session) == parse_token.id
    assert fake.live_tokens() == [parse_token.id]


async def test_waiting_for_another_callers_exchange_ends_with_the_own_timeout(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A follower gives up after its own time; the exchange goes on."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        first = background.start(session.refresh)
        await async_arrived(gate)
        with pytest.raises(TransportTimeoutError, match=r"within 0\.01 s") as caught:
            await session.refresh(timeout=0.01)
        assert caught.value.retryable
        gate.open()
        assert (await first.result()).id == held(session)
    assert fake.exchanges() == 1


async def test_an_exchange_ends_with_its_deadline(fake: FakeKoyeb, connect: Connect) -> None:
    """A service that never answers costs the client's timeout, and the token stays."""
    session = connect(token=fake.issue_token(), timeout=0.02)
    old = held(session)
    fake.fail("refresh", Fault(gate=Gate()))
    with pytest.raises(TransportTimeoutError):
        await session.refresh()
    assert held(session) == old


async def test_refresh_honours_a_timeout_of_its_own(fake: FakeKoyeb, connect: Connect) -> None:
    """A shorter timeout than the client's ends this call, and not the exchange: others wait."""
    session = connect(token=fake.issue_token(), timeout=60)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    with pytest.raises(TransportTimeoutError, match=r"within 0\.02 s"):
        await session.refresh(timeout=0.02)
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await background.settled()
        gate.open()
        assert (await job.result()).id == held(session)
    assert fake.exchanges() == 1


@pytest.mark.parametrize("operation", ["new_session", "switch_organization"])
async def test_a_timeout_is_for_the_renewal_too(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, operation: str
) -> None:
    """Who has little time waits no longer for a renewal that comes first; it goes on."""
    session = connect(token=fake.issue_token(), timeout=60)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(timedelta(hours=13))
    arguments = {"new_session": (), "switch_organization": (fake.organizations[ME][1],)}[operation]
    with pytest.raises(TransportTimeoutError):
        await getattr(session, operation)(*arguments, timeout=0.02)
    gate.open()
    assert (await session.refresh()).id == held(session)
    assert fake.exchanges() == 1


async def test_refresh_may_take_longer_than_other_operations(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A longer timeout than the client's is granted, too."""
    session = connect(token=fake.issue_token(), timeout=0.02)
    fake.fail("refresh", Fault(latency=0.06))
    assert (await session.refresh(timeout=5)).id == held(session)


# When it fails


FAILURES = [
    (Fault(status=500), ServerError),
    (Fault(status=503), ServerError),
    (Fault(status=429), RateLimitedError),
    (Fault(reset=True), TransportError),
    (Fault(body="nonsense"), WireError),
    (Fault(body={"token": None}), WireError),
    (Fault(body={"token": {"id": "a\r\nb"}}), WireError),
    (Fault(body={"token": {"id": "old", "expires_at": "2020-01-01T00:00:00Z"}}), WireError),
]


@pytest.mark.parametrize(("fault", "cause"), FAILURES)
async def test_a_failed_renewal_changes_nothing_while_the_token_is_good(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, fault: Fault, cause: type[Exception]
) -> None:
    """Requests go on with the old token, and the service is asked once in each back-off."""
    policy = RefreshPolicy(jitter=0, backoff=8, backoff_max=8)
    session = connect(token=fake.issue_token(), refresh_policy=policy)
    old = held(session)
    fake.fail("refresh", fault, times=100)
    clock.advance(DAY - timedelta(seconds=59))
    for _ in range(3):
        responses = await async_gather(*[lambda: session.http.get("/v1/apps")] * 5)
        assert [response.status_code for response in responses] == [200] * 5
    assert {request.bearer for request in fake.requests} == {old}
    sent = [request for request in fake.requests if request.operation == "refresh"]
    assert len(sent) == 1
    clock.advance(3.9)
    await session.current_token()
    assert len([request for request in fake.requests if request.operation == "refresh"]) == 1
    clock.advance(4.2)
    await session.current_token()
    assert len([request for request in fake.requests if request.operation == "refresh"]) == 2
    assert held(session) == old
    with pytest.raises(cause):
        await session.refresh()


@pytest.mark.parametrize(("fault", "cause"), FAILURES)
async def test_a_failed_renewal_raises_once_no_token_is_left(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, fault: Fault, cause: type[Exception]
) -> None:
    """When the token has expired, the last failure is the cause, and nothing more is sent."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", fault, times=100)
    clock.advance(DAY - timedelta(seconds=30))
    assert (await session.http.get("/v1/apps")).status_code == 200
    sent = len(fake.requests)
    clock.advance(30)
    for _ in range(3):
        with pytest.raises(SessionExpiredError) as caught:
            await session.http.get("/v1/apps")
        assert isinstance(caught.value.__cause__, cause)
    assert len(fake.requests) == sent


async def test_a_failure_during_the_back_off_tells_its_age(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Who is left without a token in a back-off learns what went wrong and when."""
    policy = RefreshPolicy(jitter=0, backoff=60)
    session = connect(token=fake.issue_token(), refresh_policy=policy)
    fake.fail("refresh", Fault(status=500))
    clock.advance(DAY - timedelta(seconds=10))
    await session.current_token()
    clock.advance(10)
    with pytest.raises(SessionExpiredError, match="10 s ago: refresh") as caught:
        await session.current_token()
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, ServerError)


async def test_a_renewal_succeeds_after_failures(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Once the service is back, the session goes on, and the trouble is forgotten."""
    session = connect(token=fake.issue_token(), refresh_policy=RefreshPolicy(jitter=0, backoff=4))
    fake.fail("refresh", Fault(status=500))
    clock.advance(DAY - timedelta(seconds=50))
    await session.current_token()
    clock.advance(4)
    assert (await session.current_token()).id == held(session)
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [held(session)]


async def test_back_off_honours_what_the_service_asks_for(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """``Retry-After`` may be longer than the back-off; with a token nobody waits for it."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=429, headers={"retry-after": "600"}))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    clock.advance(599)
    await session.current_token()
    await async_idle()
    assert fake.exchanges() == 0
    clock.advance(1)
    await session.current_token()
    await async_idle()
    assert fake.exchanges() == 1


async def test_a_lost_reply_is_not_repeated_blindly(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A refresh that may have been carried out is not sent again in the same breath."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(reset=True, processed=True))
    with pytest.raises(TransportError):
        await session.refresh()
    assert log(fake) == [("refresh", None)]


async def test_a_session_whose_token_was_lost_signs_in_again(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """When the reply with the new token is lost, the next request finds out; credentials help."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", Fault(reset=True, processed=True))
    with pytest.raises(TransportError):
        await session.refresh()
    clock.advance(1)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [
        *[("refresh", None), ("apps", 401), ("refresh", 401)],
        *[("login", 200), ("apps", 200)],
    ]


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_service_is_asked_again_when_callers_wait(
    fake: FakeKoyeb, connect: Connect, status: int
) -> None:
    """Nothing was done, so that a refresh that is waited for may be sent again."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=status), times=2)
    await session.refresh()
    assert log(fake) == [("refresh", status), ("refresh", status), ("refresh", 200)]


async def test_a_busy_service_is_not_asked_again_while_nobody_waits(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """In the soft window there is time until the next attempt."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=503))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    assert log(fake) == [("refresh", 503)]


@pytest.mark.parametrize(
    ("status", "cause"), [(401, AuthenticationError), (403, PermissionDeniedError)]
)
async def test_a_refused_refresh_is_told_as_it_is(
    fake: FakeKoyeb, connect: Connect, status: int, cause: type[Exception]
) -> None:
    """Without credentials a refusal ends the session, or says what is not allowed."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=status))
    with pytest.raises((SessionExpiredError, cause)) as caught:
        await session.refresh()
    assert isinstance(caught.value, cause)
    if status == 401:
        assert isinstance(caught.value, SessionExpiredError)
        assert isinstance(caught.value.__cause__, AuthenticationError)
        assert caught.value.__cause__.status == 401


async def test_a_refused_token_is_not_used_any_more(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """After the service has refused to renew it, a token is not sent, and the service is spared."""
    session = connect(token=fake.issue_token(), refresh_policy=RefreshPolicy(jitter=0, backoff=1))
    fake.revoke_all()
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    for _ in range(3):
        with pytest.raises(SessionExpiredError):
            await session.http.get("/v1/apps")
        clock.advance(9.9)
    assert log(fake) == [("refresh", 401)]
    clock.advance(60)
    with pytest.raises(SessionExpiredError):
        await session.http.get("/v1/apps")
    assert {operation for operation, _ in log(fake)[1:]} <= {"refresh", "apps"}


async def test_an_expired_token_is_never_sent(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """An expired token is not worth a refresh; only signing in helps."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY)
    for call in (session.current_token, session.refresh, session.new_session):
        with pytest.raises(SessionExpiredError, match="sign in again"):
            await call()
    assert fake.requests == []


async def test_an_expiry_long_after_a_failure_still_names_it(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The last failure is the cause even when its back-off is over."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=500))
    clock.advance(DAY - timedelta(seconds=10))
    await session.current_token()
    clock.advance(10)
    with pytest.raises(SessionExpiredError) as caught:
        await session.current_token()
    assert isinstance(caught.value.__cause__, ServerError)
    assert log(fake) == [("refresh", 500)]


# Signing in again


async def test_credentials_sign_in_at_the_first_request(fake: FakeKoyeb, connect: Connect) -> None:
    """A session that has credentials needs no login."""
    session = connect(credentials=PASSWORDS)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("login", 200), ("apps", 200)]
    assert fake.requests[0].json == {"email": ME, "password": PASSWORD}


async def test_credentials_name_their_organization(fake: FakeKoyeb, connect: Connect) -> None:
    """A session signs in to the organization of its credentials."""
    organization = fake.organizations[ME][1]
    session = connect(credentials=PasswordCredentials(ME, PASSWORD, organization))
    assert (await session.refresh()).organization_id == organization


async def test_credentials_sign_in_after_expiry(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """An expired token is replaced by a sign-in, and not refreshed."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    clock.advance(DAY)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("login", 200), ("apps", 200)]


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 501])
async def test_credentials_sign_in_when_a_refresh_is_refused(
    fake: FakeKoyeb, connect: Connect, status: int
) -> None:
    """What says that a refresh will not help leads to a sign-in, in the same exchange."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", Fault(status=status))
    await session.refresh()
    assert log(fake) == [("refresh", status), ("login", 200)]


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(reset=True), Fault(body="?")])
async def test_credentials_are_not_used_when_the_refresh_was_not_refused(
    fake: FakeKoyeb, connect: Connect, fault: Fault
) -> None:
    """An outage is no reason to sign in."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", fault)
    with pytest.raises(KoyebSessionError):
        await session.refresh()
    assert [operation for operation, _ in log(fake)] == ["refresh"]


async def test_a_withdrawn_refresh_says_so_without_credentials(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The user learns what to bring instead."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=410))
    with pytest.raises(EndpointGoneError, match="credentials="):
        await session.refresh()


async def test_credentials_that_are_refused_are_not_tried_again_soon(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Repeating a wrong password locks the account: the wait is sixty times as long."""
    policy = RefreshPolicy(backoff=2, backoff_max=2)
    session = connect(credentials=PasswordCredentials(ME, "wrong"), refresh_policy=policy)
    for _ in range(3):
        with pytest.raises(InvalidCredentialsError):
            await session.current_token()
        clock.advance(29)
    assert log(fake) == [("login", 401)]
    clock.advance(34)
    with pytest.raises(InvalidCredentialsError):
        await session.current_token()
    assert log(fake) == [("login", 401)] * 2


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_sign_in_is_never_sent_twice(
    fake: FakeKoyeb, connect: Connect, status: int
) -> None:
    """Accounts lock: a login that may have arrived is not repeated."""
    session = connect(credentials=PASSWORDS)
    fake.fail("login", Fault(status=status))
    with pytest.raises((RateLimitedError, ServerError)):
        await session.http.get("/v1/apps")
    assert log(fake) == [("login", status)]


async def test_a_locked_account_is_told(fake: FakeKoyeb, connect: Connect) -> None:
    """What signing in met with is what the user gets."""
    fake.lock_account(ME)
    with pytest.raises(AccountLockedError):
        await connect(credentials=PASSWORDS).current_token()


async def test_a_callable_brings_tokens(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Any callable without arguments can sign in, as often as it is needed."""
    session = connect(credentials=lambda: fake.issue_token(lifetime=timedelta(hours=1)))
    first = await session.current_token()
    assert first.expires_at is not None
    assert first.expires_at.timestamp() == clock.time() + 3600
    clock.advance(timedelta(hours=1))
    second = await session.current_token()
    assert second.id != first.id
    assert fake.requests == []


async def test_a_callable_may_return_a_token(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """What the provider knows of a token is kept."""
    expires = datetime.fromtimestamp(clock.time() + 600, UTC)
    given = Token("opaque", "user", "organization", expires)
    session = connect(credentials=lambda: given)
    token = await session.current_token()
    assert token == given


async def test_an_opaque_token_from_a_callable_is_fetched_again_when_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A provider's token is not an API token: after a refusal the provider is asked again."""
    tokens = iter([fake.issue_api_token(), fake.issue_api_token()])
    session = connect(credentials=lambda: next(tokens))
    first = await session.current_token()
    fake.revoke(first.id)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("apps", 401), ("apps", 200)]
    assert held(session) != first.id


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("", ValueError),
        ("a b", ValueError),
        (None, TypeError),
        (7, TypeError),
        (Token("t", expires_at=datetime(2020, 1, 1, tzinfo=UTC)), ValueError),
        (Token("t", expires_at=datetime(2030, 1, 1)), ValueError),  # noqa: DTZ001 - naive
        (Token("t", expires_at="tomorrow"), Exception),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - as a careless provider might
    ],
)
async def test_a_callable_that_returns_nonsense_is_told(
    connect: Connect, given: object, cause: type[Exception]
) -> None:
    """What is no usable token is told as such, and the provider is asked once."""
    asked: list[None] = []

    def provider() -> object:
        asked.append(None)
        return given

    with pytest.raises(NotSignedInError, match="the credentials gave no token") as caught:
        await connect(credentials=provider).current_token()
    assert isinstance(caught.value.__cause__, cause)
    assert len(asked) == 1


async def test_what_a_callable_raises_is_the_cause(connect: Connect) -> None:
    """The provider's own error is kept, without the frames that may hold its secrets."""

    def provider() -> str:
        message = "the vault is sealed"
        raise PermissionError(message)

    with pytest.raises(NotSignedInError, match="PermissionError: the vault is sealed") as caught:
        await connect(credentials=provider).current_token()
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, PermissionError)
    assert str(caught.value.__cause__) == "the vault is sealed"
    assert caught.value.__cause__.__traceback__ is None


async def test_an_error_of_ours_from_a_callable_is_raised_as_it_is(connect: Connect) -> None:
    """A provider that uses another session need not translate its errors."""

    def provider() -> str:
        message = "busy"
        raise RateLimitedError(message, retry_after=7)

    with pytest.raises(RateLimitedError, match="busy") as caught:
        await connect(credentials=provider).current_token()
    assert caught.value.retry_after == 7


async def test_credentials_that_were_changed_to_nonsense_are_told(connect: Connect) -> None:
    """A password that cannot be sent is found before it is."""
    credentials = PasswordCredentials(ME, PASSWORD)
    session = connect(credentials=credentials)
    object.__setattr__(credentials, "password", "")
    with pytest.raises(NotSignedInError, match="password must not be empty"):
        await session.current_token()


async def test_credentials_rest_after_a_logout(fake: FakeKoyeb, connect: Connect) -> None:
    """Signed out stays signed out, until somebody asks for more."""
    session = connect(credentials=PASSWORDS)
    await session.current_token()
    await session.logout()
    fake.requests.clear()
    for call in (session.current_token, session.new_session):
        with pytest.raises(NotSignedInError, match="signed out"):
            await call()
    assert fake.requests == []
    await session.refresh()
    assert log(fake) == [("login", 200)]
    assert (await session.http.get("/v1/apps")).status_code == 200


# Beginning and ending a session


async def test_use_token_takes_the_place_of_the_session(fake: FakeKoyeb, connect: Connect) -> None:
    """The new token is used from then on, and the old one is left alone."""
    session = connect(token=fake.issue_token())
    old = held(session)
    new = await session.use_token(fake.issue_token())
    await session.http.get("/v1/apps")
    assert fake.requests[-1].bearer == new.id == held(session)
    assert set(fake.live_tokens()) == {old, new.id}


async def test_use_token_takes_the_same_token_with_less_time_left(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A JWT says the whole seconds of its expiry only; that is for the user to decide."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    token = await session.login(ME, PASSWORD)
    again = await session.use_token(token.id)
    assert session.token == await store.load() == again
    assert again.id == token.id
    assert again.expires_at is not None
    assert token.expires_at is not None
    assert again.expires_at <= token.expires_at


@pytest.mark.parametrize("hold", ["request", "reply"])
async def test_a_logout_during_a_renewal_is_final(
    fake: FakeKoyeb, connect: Connect, hold: str
) -> None:
    """What the exchange still mints is revoked, and nothing brings the session back."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="request" if hold == "request" else "reply"))
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await async_until(lambda: session.token is None)
        gate.open()
        with pytest.raises(NotSignedInError, match="signed out"):
            await job.result()
        with contextlib.suppress(NotSignedInError):
            await leaving.result()
    assert session.token is None
    assert fake.live_tokens() == []
    assert await store.load() is None
    with pytest.raises(NotSignedInError):
        await session.current_token()


async def test_a_logout_returns_when_the_renewal_under_way_has_left_nothing(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Once `logout` is done no token is alive, also none that was under way."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await background.settled()
        assert not leaving.done
        gate.open()
        await leaving.result()
        assert fake.live_tokens() == []
        with pytest.raises(NotSignedInError):
            await job.result()


async def test_a_logout_revokes_the_stores_token_too(fake: FakeKoyeb, connect: Connect) -> None:
    """What another process has renewed meanwhile is ended as well."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store)
    await store.save(Token(fake.issue_token()))
    await session.logout()
    assert fake.live_tokens() == []
    assert await store.load() is None
    assert [operation for operation, _ in log(fake)] == ["logout", "logout"]


async def test_a_logout_revokes_although_the_wall_clock_is_ahead(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """How long the token has been held says that it is good, not what this machine's clock says."""
    ahead = FakeClock(datetime.fromtimestamp(clock.time(), UTC) + 2 * DAY)
    store = AsyncMemoryTokenStore()
    session = connect(clock=ahead)
    await session.login(ME, PASSWORD)
    await connect(clock=ahead, store=store).login(ME, PASSWORD)
    await session.logout()
    await connect(clock=ahead, store=store).logout()
    assert fake.live_tokens() == []


async def test_a_logout_leaves_a_service_that_fails_behind(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Here the session ends whatever the service answers; then its error is raised."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    fake.fail("logout", Fault(status=500))
    with pytest.raises(ServerError):
        await session.logout()
    assert session.token is None
    assert await store.load() is None
    assert log(fake) == [("login", 200), ("logout", 500)]


async def test_a_logout_is_tried_again_where_that_is_safe(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """To sign out twice does no harm."""
    session = connect(token=fake.issue_token())
    fake.fail("logout", Fault(status=503), times=2)
    await session.logout()
    assert log(fake) == [("logout", 503), ("logout", 503), ("logout", 200)]


async def test_a_logout_that_the_service_refuses_is_a_success(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A token that the service does not know any more needs no revoking."""
    session = connect(token=fake.issue_token())
    fake.revoke_all()
    await session.logout()
    assert log(fake) == [("logout", 401)]
    assert session.token is None


async def test_a_logout_ends_with_its_timeout_and_clears_the_store(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A service that hangs keeps neither the caller nor the token."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    fake.fail("logout", Fault(gate=Gate()), times=2)
    with pytest.raises(TransportTimeoutError):
        await session.logout(timeout=0.05)
    assert session.token is None
    assert await store.load() is None


async def test_a_refresh_after_a_logout_does_not_join_the_old_sign_in(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """What was under way at the logout is revoked; who comes later signs in anew."""
    session = connect(credentials=PASSWORDS)
    gate = Gate()
    fake.fail("login", Fault(gate=gate))
    async with AsyncBackground() as background:
        early = background.start(session.current_token)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await background.settled()
        late = background.start(session.refresh)
        await background.settled()
        token = await late.result()
        gate.open()
        assert await early.result() == token
        await leaving.result()
    assert fake.live_tokens() == [token.id] == [held(session)]


async def test_a_logout_is_not_undone_by_who_waited_for_a_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Who asked for a renewal before the logout does not sign in after it."""
    session = connect(credentials=PASSWORDS)
    gate = Gate()
    fake.fail("login", Fault(gate=gate))
    async with AsyncBackground() as background:
        first = background.start(session.current_token)
        await async_arrived(gate)
        second = background.start(session.refresh)
        await background.settled()
        leaving = background.start(session.logout)
        await background.settled()
        gate.open()
        for job in (first, second):
            with pytest.raises(NotSignedInError):
                await job.result()
        await leaving.result()
    assert session.token is None
    assert fake.live_tokens() == []


async def test_a_login_during_a_renewal_wins(fake: FakeKoyeb, connect: Connect) -> None:
    """The renewal of the old session does not replace the new one's token."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await async_arrived(gate)
        token = await session.login(ME, PASSWORD)
        gate.open()
        assert (await job.result()).id == token.id
    assert fake.live_tokens() == [held(session)] == [token.id]


async def test_trouble_of_the_old_session_does_not_bother_the_new_one(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A back-off ends with the session that it was for."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=429, headers={"retry-after": "3000"}))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    await session.logout()
    await session.login(ME, PASSWORD)
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    assert fake.exchanges() == 1


# Renewing ahead of need


async def test_keep_current_renews_without_requests(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The token stays current although nobody asks for it; it ends when the client is closed."""
    session = connect(token=fake.issue_token())
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: session._keeper._wakeups != ())
        for _ in range(3):
            old = held(session)
            clock.advance(DAY / 2)
            session._keeper.wake()
            await async_until(lambda: held(session) != old)  # noqa: B023 - used at once
        await session.aclose()
        await job.result()
    assert fake.exchanges() == 3
    assert fake.live_tokens() == [held(session)]


async def test_every_keep_current_ends_with_the_client(fake: FakeKoyeb, connect: Connect) -> None:
    """Two tasks that keep the same session are one too many, and no more than that."""
    session = connect(token=fake.issue_token())
    async with AsyncBackground() as background:
        jobs = [background.start(session.keep_current) for _ in range(2)]
        await async_until(lambda: len(session._keeper._wakeups) == 2)
        await background.settled()
        await session.aclose()
        for job in jobs:
            await job.result()
    assert session._keeper._wakeups == ()


async def test_keep_current_waits_for_somebody_to_sign_in(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Without a token it raises nothing; after a login it renews."""
    session = connect()
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: session._keeper._wakeups != ())
        await session.login(ME, PASSWORD)
        clock.advance(DAY / 2)
        session._keeper.wake()
        await async_until(lambda: fake.exchanges() == 1)
        assert not job.done
        await session.aclose()
        await job.result()


async def test_keep_current_looks_again_when_the_session_changes(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A token that is due the moment it comes does not wait for the next look."""
    old = fake.issue_token()
    clock.advance(DAY - timedelta(hours=1))
    session = connect()
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: session._keeper._wakeups != ())
        await background.settled()
        await session.use_token(old)
        await async_until(lambda: held(session) != old)
        await session.aclose()
        await job.result()
    assert fake.exchanges() == 1


async def test_keep_current_goes_on_after_a_failure(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """What goes wrong is in the log, and is tried again."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=500))
    clock.advance(DAY / 2)
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: session._state.failure is not None)
        assert log(fake) == [("refresh", 500)]
        clock.advance(3600)
        session._keeper.wake()
        await async_until(lambda: fake.exchanges() == 1)
        await session.aclose()
        await job.result()


# The store


class BrokenStore(AsyncMemoryTokenStore):
    """Fails where it is told to."""

    def __init__(self, *broken: str, error: Exception | None = None) -> None:
        super().__init__()
        self.broken = set(broken)
        self.error = error or OSError("disk full")

    def fail(self, name: str) -> None:
        """Raise, if this is to fail."""
        if name in self.broken:
            raise self.error

    async def load(self) -> Token | None:
        """Load, or fail."""
        self.fail("load")
        return await super().load()

    async def save(self, token: Token) -> None:
        """Save, or fail."""
        self.fail("save")
        await super().save(token)

    async def delete(self) -> None:
        """Delete, or fail."""
        self.fail("delete")
        await super().delete()

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Lock, or fail on entering."""
        return self.locked()

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncGenerator[None]:
        """Hold the lock, or fail."""
        self.fail("lock")
        async with super().lock():
            yield


async def test_a_session_begins_with_the_stores_token(fake: FakeKoyeb, connect: Connect) -> None:
    """What another process has saved is taken over without an exchange."""
    store = AsyncMemoryTokenStore()
    await store.save(Token(fake.issue_token()))
    session = connect(store=store, credentials=PASSWORDS)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("apps", 200)]


async def test_a_token_that_is_taken_over_is_not_saved_again(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that can only be read is enough for that."""
    store = BrokenStore("save")
    await AsyncMemoryTokenStore.save(store, Token(fake.issue_token()))
    session = connect(store=store)
    assert (await session.current_token()).id == fake.live_tokens()[0]
    assert not caplog.records


async def test_a_renewal_by_others_is_taken_over(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Two sessions on one store make one exchange; the loser uses the winner's token."""
    store = AsyncMemoryTokenStore()
    first = connect(store=store)
    await first.login(ME, PASSWORD)
    second = connect(store=store)
    await second.current_token()
    clock.advance(DAY - timedelta(seconds=30))
    await async_gather(first.current_token, second.current_token)
    assert fake.exchanges() == 1
    assert held(first) == held(second)
    assert fake.live_tokens() == [held(first)]


async def test_a_refused_token_is_looked_up_in_the_store_first(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Whose token was renewed by others is replayed with theirs, without an exchange."""
    store = AsyncMemoryTokenStore()
    first = connect(store=store)
    await first.login(ME, PASSWORD)
    second = connect(store=store)
    await second.current_token()
    clock.advance(1)
    await first.refresh()
    assert (await second.http.get("/v1/apps")).status_code == 200
    assert fake.exchanges() == 1
    assert held(second) == held(first)


@pytest.mark.parametrize("seconds", [0, -60])
async def test_an_older_token_in_the_store_is_passed_over(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, seconds: int
) -> None:
    """What is in the store is not taken over when it is expired, or older than one's own."""
    store = AsyncMemoryTokenStore()
    lifetime = timedelta(hours=1) if seconds else timedelta(0)
    await store.save(Token(fake.issue_token(lifetime=lifetime)))
    clock.advance(-seconds)
    session = connect(token=fake.issue_token(), store=store)
    await session.refresh()
    assert fake.exchanges() == 1
    saved = await store.load()
    assert saved is not None
    assert saved.id == held(session)


async def test_a_token_of_unknown_age_in_the_store_is_taken_over(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """What does not say when it was issued is not held to be older."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    await store.save(Token("opaque"))
    assert (await session.refresh()).id == "opaque"
    assert log(fake) == [("login", 200)]
    await store.save(Token(fake.issue_token()))
    assert (await session.refresh()).id == fake.live_tokens()[-1]


async def test_every_new_token_is_saved(fake: FakeKoyeb, connect: Connect) -> None:
    """Login, refresh, switch and use_token reach the store."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    assert await store.load() == session.token
    await session.refresh()
    assert await store.load() == session.token
    await session.switch_organization(fake.organizations[ME][1])
    assert await store.load() == session.token
    await session.use_token(fake.issue_token())
    assert await store.load() == session.token
    await session.new_session()
    assert await store.load() == session.token


@pytest.mark.parametrize("broken", ["load", "lock"])
async def test_a_store_that_cannot_be_read_does_not_keep_callers_waiting(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    broken: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When callers need a token, it is renewed without the store, and that is in the log."""
    session = connect(token=fake.issue_token(), store=BrokenStore(broken))
    clock.advance(DAY - timedelta(seconds=30))
    await session.current_token()
    assert fake.exchanges() == 1
    assert "the token store could not be" in caplog.text


async def test_a_store_that_cannot_be_read_is_waited_for_while_there_is_time(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """In the soft window others may be renewing the token: no exchange without the store."""
    store = BrokenStore("lock")
    session = connect(token=fake.issue_token(), store=store)
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    assert fake.requests == []
    assert "renewal failed: the token store could not be locked: OSError" in caplog.text
    store.broken.clear()
    clock.advance(5)
    await session.current_token()
    await async_idle()
    assert fake.exchanges() == 1


async def test_a_token_that_cannot_be_saved_stays_in_memory(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed save is reported, and the session goes on with the new token."""
    store = BrokenStore("save")
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    assert session.token == token
    assert fake.live_tokens() == [token.id]
    assert fake.exchanges() == 1
    wanted = "kept in memory only: the token store could not be written: OSError"
    assert wanted in caplog.text
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_a_login_that_cannot_be_saved_stays_in_memory(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed save of a new session is reported, and the session is there."""
    session = connect(store=BrokenStore("save", error=StoreError("no room")))
    token = await session.login(ME, PASSWORD)
    assert session.token == token
    assert "the new token is kept in memory only: no room" in caplog.text


async def test_a_save_that_failed_is_made_up_for_on_close(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Whatever the store missed is told to it before the client closes."""
    store = BrokenStore("save")
    session = connect(token=fake.issue_token(), store=store)
    await session.refresh()
    store.broken.clear()
    await session.aclose()
    saved = await store.load()
    assert saved is not None
    assert saved.id == held(session)


async def test_a_save_that_failed_is_made_up_for_while_the_session_is_kept_current(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Who keeps the session current keeps the store so, too."""
    store = BrokenStore("save")
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    store.broken.clear()
    async with AsyncBackground() as background:
        job = background.start(session.keep_current)
        await async_until(lambda: store._token is not None)
        assert store._token == token
        assert fake.exchanges() == 1
        await session.aclose()
        await job.result()


@pytest.mark.parametrize("begins", [True, False])
async def test_a_save_that_failed_is_made_up_for_by_a_later_request(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    *,
    begins: bool,
) -> None:
    """A fleet must not find the revoked token for long: requests have the save tried again."""
    store = BrokenStore("save")
    session = connect(token=None if begins else fake.issue_token(), store=store)
    begin = partial(session.login, ME, PASSWORD) if begins else session.refresh
    token = await begin()

    async def later(seconds: float) -> int:
        clock.advance(seconds)
        for _ in range(3):
            assert (await session.http.get("/v1/apps")).status_code == 200
            await async_idle()
        return caplog.text.count("kept in memory only")

    assert [await later(seconds) for seconds in (4, 2, 4, 4)] == [1, 2, 2, 3]
    store.broken.clear()
    await later(60)
    assert store._token == token
    await store.delete()
    await later(60)
    assert store._token is None  # there was nothing to make up for any more
    assert fake.exchanges() == (0 if begins else 1)


async def test_a_save_that_failed_is_not_forgotten_by_a_renewal_that_fails(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """What the store missed is still to be made up for when the next exchange fails, too."""
    store = BrokenStore("save", "lock")
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    fake.fail("refresh", Fault(status=500))
    with pytest.raises(ServerError):
        await session.refresh()
    store.broken.clear()
    clock.advance(6)
    assert (await session.http.get("/v1/apps")).status_code == 200
    await async_idle()
    assert store._token == token


async def test_a_save_that_failed_is_forgotten_with_the_session(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """After a logout there is nothing to make up for."""
    store = BrokenStore("save")
    session = connect(token=fake.issue_token(), store=store)
    await session.refresh()
    store.broken.clear()
    await session.logout()
    await session.aclose()
    assert await store.load() is None


async def test_a_save_that_failed_is_not_made_up_for_when_the_session_has_moved_on(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The store is not told of a token that the session does not hold any more."""
    store = BrokenStore("save")
    session = connect(token=fake.issue_token(), store=store)
    await session.refresh()
    store.broken.clear()
    await session.use_token(fake.issue_token())
    await store.delete()
    await session.aclose()
    assert await store.load() is None


async def test_a_token_that_was_overtaken_is_not_saved(fake: FakeKoyeb, connect: Connect) -> None:
    """A save that had to wait for the store saves what the session holds by then, or nothing."""
    saved: list[str] = []

    class Noting(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            saved.append(token.id)
            await super().save(token)

    store = Noting()
    session = connect(store=store)
    async with AsyncBackground() as background:
        async with store.lock():
            first = background.start(lambda: session.use_token(fake.issue_token()))
            await async_until(lambda: session.token is not None)
            old = held(session)
            second = background.start(lambda: session.use_token(fake.issue_token()))
            await async_until(lambda: held(session) != old)
            await background.settled()
        await first.result()
        await second.result()
    assert saved == [held(session)]


@pytest.mark.parametrize("kept", ["bäd", "a\nb", ""])
async def test_a_logout_does_not_send_what_a_store_made_up(
    fake: FakeKoyeb, connect: Connect, kept: str
) -> None:
    """The session's own token is revoked, whatever lies in the store."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store)
    await store.save(Token(kept))
    await session.logout()
    assert fake.live_tokens() == []
    assert [operation for operation, _ in log(fake)] == ["logout"]


class UnspeakableError(OSError):
    """An error whose text cannot be had."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.kind = kind

    def __str__(self) -> str:
        """Raise."""
        raise self.kind


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
async def test_a_renewal_survives_an_error_that_cannot_be_told(
    fake: FakeKoyeb, connect: Connect, kind: type[Exception]
) -> None:
    """Whatever a store raises, the token is renewed inside its lock, and saved."""
    store = BrokenStore("load", error=UnspeakableError(kind))
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    assert (await session.http.get("/v1/apps")).status_code == 200
    store.broken.clear()
    assert await store.load() == token


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
async def test_a_renewed_token_survives_an_error_that_cannot_be_told(
    fake: FakeKoyeb, connect: Connect, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a failed save raises, the new token stays, and is saved later."""
    store = BrokenStore("save", error=UnspeakableError(kind))
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    assert session.token is token
    assert fake.live_tokens() == [token.id]
    (message,) = caplog.messages
    assert message.startswith("the new token is kept in memory only: the token store could not be")
    store.broken.clear()
    await session.aclose()
    assert await store.load() == token


async def test_a_logout_survives_an_error_that_cannot_be_told(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The session has ended all the same."""
    store = BrokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.broken.add("delete")
    store.error = UnspeakableError(TimeoutError)
    with pytest.raises(StoreError, match="the token store could not be emptied"):
        await session.logout()
    assert session.token is None
    assert fake.live_tokens() == []


async def test_a_refresh_that_fails_while_the_client_closes_fails(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Closing does not make a success of a failed renewal."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, status=500))
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await async_arrived(gate)
        closing = background.start(session.aclose)
        await background.settled()
        gate.open()
        with pytest.raises(ServerError):
            await job.result()
        await closing.result()


async def test_closing_waits_for_a_refresh_that_may_take_longer(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """For its own deadline, and not for the client's timeout: it may have minted a token."""
    old = fake.issue_token()
    session = connect(token=old, timeout=0.02)
    fake.fail("refresh", Fault(latency=0.06))
    async with AsyncBackground() as background:
        job = background.start(partial(session.refresh, timeout=5))
        await async_until(lambda: session._keeper._task is not None)
        await session.aclose()
        assert fake.live_tokens() == [held(session)] != [old]
        assert await job.result() == session.token


async def test_closing_while_the_stores_token_is_taken_over_starts_no_exchange(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It is good: that the session closes is no reason to renew it once more."""
    store = AsyncMemoryTokenStore()
    theirs = httpx.AsyncClient(transport=fake.transport)  # which stays open
    session = connect(token=fake.issue_token(), store=store, http_client=theirs)
    clock.advance(DAY - timedelta(hours=1))
    saved = await connect().login(ME, PASSWORD)
    await store.save(saved)
    clock.advance(timedelta(hours=1))
    async with AsyncBackground() as background:
        async with store.lock():
            job = background.start(session.current_token)
            await background.settled()
            closing = background.start(session.aclose)
            await background.settled()
        assert (await job.result()).id == saved.id
        await closing.result()
    await theirs.aclose()
    assert fake.exchanges() == 0


async def test_closing_waits_for_a_logout_under_way(fake: FakeKoyeb, connect: Connect) -> None:
    """What a change of session entails is finished before the connections go."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("logout", Fault(gate=gate, hold="request"))
    async with AsyncBackground() as background:
        leaving = background.start(session.logout)
        await async_arrived(gate)
        closing = background.start(session.aclose)
        await background.settled()
        assert not closing.done
        gate.open()
        await leaving.result()
        await closing.result()
    assert fake.live_tokens() == []


@pytest.mark.parametrize("broken", [("load",), ("lock",), ("load", "lock")])
async def test_a_logout_empties_a_store_that_cannot_be_read(
    fake: FakeKoyeb, connect: Connect, broken: tuple[str, ...]
) -> None:
    """Deleting without the lock is better than not at all."""
    store = BrokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.broken.update(broken)
    await session.logout()
    store.broken.clear()
    assert await store.load() is None
    assert fake.live_tokens() == []


async def test_a_logout_tells_when_the_store_still_holds_the_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A token that nobody can delete is worth an error; the service has forgotten it."""
    store = BrokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.broken.add("delete")
    with pytest.raises(StoreError, match="could not be emptied: OSError") as caught:
        await session.logout()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__ is not store.error
    assert caught.value.__cause__.__traceback__ is None
    assert session.token is None
    assert fake.live_tokens() == []


async def test_a_logout_tells_of_the_store_when_the_service_hangs(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """That the service did not answer in time is no reason to hide it."""
    store = BrokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.broken.add("delete")
    fake.fail("logout", Fault(gate=Gate()), times=2)
    with pytest.raises(TransportTimeoutError):
        await session.logout(timeout=0.05)
    assert "the token may still be in the store: the token store could not be" in caplog.text


async def test_a_logout_that_fails_twice_tells_the_stores_part_in_the_log(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Only one error can be raised: the service's."""
    store = BrokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.broken.add("delete")
    fake.fail("logout", Fault(status=500))
    with pytest.raises(ServerError):
        await session.logout()
    assert "the token may still be in the store: the token store could not be" in caplog.text


async def test_the_store_is_locked_over_the_whole_exchange(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Read, exchange and save are one step for all who share the store."""
    events: list[str] = []

    class Watched(AsyncMemoryTokenStore):
        async def load(self) -> Token | None:
            events.append("load")
            return await super().load()

        async def save(self, token: Token) -> None:
            events.append(f"save after {len(fake.requests)}")
            await super().save(token)

        @contextlib.asynccontextmanager
        async def watched(self) -> AsyncGenerator[None]:
            async with super().lock():
                events.append("lock")
                yield
                events.append("unlock")

        def lock(self) -> AbstractAsyncContextManager[None]:
            return self.watched()

    session = connect(token=fake.issue_token(), store=Watched())
    await session.refresh()
    assert events == ["lock", "load", "save after 1", "unlock"]


# What an operator reads


async def test_the_log_tells_of_a_bad_night(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Renewed, failed and when it is tried again, signed in again, out: each is one line."""
    caplog.set_level(logging.INFO, "koyeb_session")
    policy = RefreshPolicy(jitter=0, backoff=60)
    session = connect(token=fake.issue_token(), refresh_policy=policy, credentials=PASSWORDS)
    await session.refresh()
    fake.fail("refresh", Fault(status=500))
    with pytest.raises(ServerError):
        await session.refresh()
    fake.revoke_all()
    clock.advance(60)
    assert (await session.http.get("/v1/apps")).status_code == 200
    await session.logout()
    messages = [record.getMessage() for record in caplog.records if record.name == "koyeb_session"]
    renewed, failed, signed_in, signed_out = messages
    assert renewed == "renewed; the token is good for 1 d 0 h"
    assert failed.startswith(
        "renewal failed: refresh: Internal Server Error "
        f"(PUT {fake.base_url}/v1/account/refresh: status 500); "
    )
    assert "the token is good for 1 d 0 h; next try in" in failed
    assert signed_in == "signed in with the credentials; the token is good for 1 d 0 h"
    assert signed_out == "signed out"
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO", "INFO"]


async def test_the_log_tells_when_no_token_is_left(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that leaves the session without a token is an error."""
    session = connect(credentials=PASSWORDS)
    fake.fail("login", Fault(status=500))
    with pytest.raises(ServerError):
        await session.current_token()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "no token is left" in record.getMessage()


async def test_the_log_tells_how_a_logout_failed(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator learns that the service may still honour the token."""
    caplog.set_level(logging.INFO, "koyeb_session")
    session = connect(token=fake.issue_token())
    fake.fail("logout", Fault(status=404, body={"code": "not_found", "message": "what?"}))
    with pytest.raises(NotFoundError):
        await session.logout()
    request = f"DELETE {fake.base_url}/v1/account/logout"
    assert f"signed out; at the service: logout: what? ({request}: status 404)" in caplog.text
