"""A renewal that fails: the callers' errors, the next attempt, and the log."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from functools import partial

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionExpiredError,
    TransportError,
    WireError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import AsyncBackground, async_gather, async_idle, async_until
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, held, inside, log
from .doubles import AsyncBuggy, Connect

FAILURES: list[tuple[Fault, type[KoyebSessionError]]] = [
    (Fault(status=500), ServerError),
    (Fault(status=503), ServerError),
    (Fault(status=429), RateLimitedError),
    (Fault(reset=True), TransportError),
    (Fault(body="nonsense"), WireError),
    (Fault(body={"token": None}), WireError),
    (Fault(body={"token": {"id": "a\r\nb"}}), WireError),
    (Fault(body={"token": {"id": "old", "expires_at": "2020-01-01T00:00:00Z"}}), WireError),
]


# When it fails


@pytest.mark.pitfall(6)
@pytest.mark.parametrize(("fault", "cause"), FAILURES)
async def test_a_failed_renewal_changes_nothing_while_the_token_is_good(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    fault: Fault,
    cause: type[KoyebSessionError],
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
    assert count(fake, "refresh") == 1
    for seconds, attempts in ((3.9, 1), (4.2, 2)):
        clock.advance(seconds)
        assert (await session.current_token()).id == old
        assert count(fake, "refresh") == attempts
    with pytest.raises(cause):
        await session.refresh()


async def test_back_off_honors_what_the_service_asks_for(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """``Retry-After`` may be longer than the back-off; with a token nobody waits for it."""
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


@pytest.mark.pitfall(3)
async def test_a_lost_reply_is_not_repeated_blindly(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A refresh that may have been carried out is not sent again; the next request finds out."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", Fault(reset=True, processed=True))
    with pytest.raises(TransportError):
        await session.refresh()
    assert log(fake) == [("refresh", None)]
    clock.advance(1)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake)[1:] == [("apps", 401), ("refresh", 401), ("login", 200), ("apps", 200)]


@pytest.mark.parametrize(("attempts", "waits"), [(1, []), (3, [1, 2]), (4, [1, 2, 4])])
@pytest.mark.parametrize("is_api_token", [False, True])
async def test_a_busy_service_is_asked_so_many_times_and_later_and_later(
    fake: FakeKoyeb,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    *,
    attempts: int,
    waits: list[int],
    is_api_token: bool,
) -> None:
    """The wait doubles with each attempt of the policy; no failure is kept about an API token."""
    slept: list[int] = []
    ticks = FakeClock()

    async def sleep(_: object, seconds: float) -> None:
        slept.append(round(seconds / 1000))
        ticks.advance(seconds + 1)

    policy = RetryPolicy(attempts=attempts, delay=1000, delay_max=10_000)
    token = fake.issue_api_token() if is_api_token else fake.issue_token()
    session = connect(token=token, retry_policy=policy, timeout=100_000)
    keeper = sys.modules[inside(session).keeper.__class__.__module__]
    monkeypatch.setattr(keeper.AsyncWakeup, "sleep", sleep)
    monkeypatch.setattr(keeper, "time", ticks)
    monkeypatch.setattr("random.random", lambda: 1.0)
    fake.fail("refresh", Fault(status=503), times=9)
    with pytest.raises(ServerError):
        await session.refresh()
    assert log(fake) == [("refresh", 503)] * attempts
    assert slept == ([1] * len(waits) if is_api_token else waits)


@pytest.mark.parametrize("ending", ["login", "logout", "closing"])
async def test_wait_for_another_attempt_ends_when_there_is_nothing_to_try_again(
    fake: FakeKoyeb, connect: Connect, ending: str
) -> None:
    """The service wants ten minutes; a sign-in, for one, brings a token at once."""
    policy = RetryPolicy(retry_after_max=600)
    session = connect(token=fake.issue_token(), retry_policy=policy, timeout=1000)
    fake.revoke_all()
    fake.fail("refresh", Fault(status=429, headers={"retry-after": "600"}))
    async with AsyncBackground() as background:
        job = background.start(partial(session.http.get, "/v1/apps"))
        await async_until(lambda: inside(session).wakeups != ())
        if ending == "login":
            await session.login(ME, PASSWORD)
            assert (await job.result()).status_code == 200
        else:
            end = session.logout if ending == "logout" else session.aclose
            await end()
            with pytest.raises((KoyebSessionError, RuntimeError)):
                await job.result()
    assert count(fake, "refresh") == 1


async def test_a_forbidden_refresh_is_told_as_it_is(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """It is not the end of the session: the error says what is not allowed."""
    fake.fail("refresh", Fault(status=403))
    with pytest.raises(PermissionDeniedError):
        await session.refresh()


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
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """An expired token is not worth a refresh; only signing in helps."""
    clock.advance(DAY)
    for call in (session.current_token, session.refresh, session.new_session):
        with pytest.raises(SessionExpiredError, match="sign in again"):
            await call()
    assert fake.requests == []


# The log that an operator reads


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


@pytest.mark.parametrize(("act", "level"), [("ahead of need", "WARNING"), ("refused", "DEBUG")])
async def test_the_log_spares_operators_a_failure_that_callers_try_again(
    fake: FakeKoyeb,
    clock: FakeClock,
    session: AsyncSessionClient,
    caplog: pytest.LogCaptureFixture,
    *,
    act: str,
    level: str,
) -> None:
    """They wait for a token; a renewal ahead of need has nobody who would repeat it."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    fake.fail("refresh", Fault(status=429))
    if act == "refused":
        fake.fail("apps", Fault(status=401))
    else:
        clock.advance(DAY / 2)
    assert (await session.http.get("/v1/apps")).status_code == 200
    await async_idle()
    failed = [it for it in caplog.records if vars(it)["koyeb_event"] == "renewal_failed"]
    assert [it.levelname for it in failed] == [level]
    assert count(fake, "refresh") == (2 if act == "refused" else 1)


async def test_the_log_tells_when_no_token_is_left(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that leaves the session without a token is an error."""
    fake.fail("login", Fault(status=500))
    with pytest.raises(ServerError):
        await connect(credentials=PASSWORDS).current_token()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "no token is left" in record.getMessage()


async def test_the_log_tells_how_a_logout_failed(
    fake: FakeKoyeb, session: AsyncSessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator learns that the service may still honor the token."""
    caplog.set_level(logging.INFO, "koyeb_session")
    fake.fail("logout", Fault(status=404, body={"code": "not_found", "message": "what?"}))
    with pytest.raises(NotFoundError):
        await session.logout()
    request = f"DELETE {fake.base_url}/v1/account/logout"
    assert f"signed out; at the service: logout: what? ({request}: status 404)" in caplog.text


@pytest.mark.pitfall(33)
@pytest.mark.parametrize("has_credentials", [False, True])
async def test_retry_after_leaves_time_when_the_token_has_half_an_hour_left(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, has_credentials: bool
) -> None:
    """One maintenance page with an hour's wait does not end the session."""
    given = {"credentials": PASSWORDS} if has_credentials else {}
    session = connect(token=fake.issue_token(), **given)
    clock.advance(DAY - timedelta(minutes=30))
    fake.fail("refresh", Fault(status=503, headers={"retry-after": "3600"}))
    first = held(session)
    for _ in range(29):
        await session.current_token()
        await async_idle()
        clock.advance(60)
    assert held(session) != first
    assert fake.live_tokens() == [held(session)]


@pytest.mark.parametrize("status", [302, 403, 408, 409, 421, 425, 503])
async def test_a_session_outlives_a_refusal_in_the_last_seconds_of_its_token(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient, status: int
) -> None:
    """A gateway that refuses one refresh, and not the next one, ends no session."""
    clock.advance(DAY - timedelta(seconds=25))
    fake.fail("refresh", Fault(status=status))
    for _ in range(30):
        await session.current_token()
        clock.advance(1)
    assert log(fake) == [("refresh", status), ("refresh", 200)]


ANSWERS: dict[str, list[Fault]] = {
    "3xx": [Fault(status=status) for status in (*range(300, 309), 399)],
    "4xx": [Fault(status=status) for status in (*range(400, 452), 499)],
    "5xx": [Fault(status=status) for status in (*range(500, 512), 520, 599)],
    "Retry-After": [
        Fault(status=status, headers={"retry-after": "3600"})
        for status in (302, 400, 401, 403, 404, 409, 422, 425, 429, 500, 502, 503, 504)
    ],
    "other": [Fault(reset=True), Fault(body=b"garbage"), Fault(body={"token": {}})],
}


@pytest.mark.pitfall(47)
@pytest.mark.parametrize("kind", ANSWERS)
async def test_no_second_is_without_a_token_when_a_refresh_fails(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, kind: str
) -> None:
    """With credentials that work, callers have a token at each moment, with any reply."""
    for fault in ANSWERS[kind]:
        session = connect(token=fake.issue_token(), credentials=PASSWORDS)
        fake.requests.clear()
        fake.fail("refresh", fault, times=10_000)
        clock.advance(DAY - timedelta(minutes=2))
        for _ in range(8):
            token = await session.current_token()
            assert token.expires_at is not None
            assert token.expires_at.timestamp() > clock.time(), fault
            assert (await session.http.get("/v1/apps")).status_code == 200, fault
            clock.advance(20)
        assert count(fake, "login") == 1, fault
        fake.recover()


async def test_rejected_new_tokens_are_renewed_later_and_later(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The pause doubles up to an hour; a token that is accepted ends it."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)

    async def renewals(requests: int, seconds: float) -> int:
        before = fake.requests.copy()
        for _ in range(requests):
            assert (await session.http.get("/v1/apps")).status_code == 401
            clock.advance(seconds)
        sent = fake.requests[len(before) :]
        return sum(request.operation in {"refresh", "login"} for request in sent)

    fake.deactivated.update(fake.organizations[ME])
    hours = [await renewals(60, 60) for _ in range(6)]
    assert hours[0] <= 8
    assert max(hours[1:]) <= 2
    fake.deactivated.clear()
    clock.advance(3600)
    assert (await session.http.get("/v1/apps")).status_code == 200
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 200
    fake.deactivated.update(fake.organizations[ME])
    assert await renewals(12, 10) >= 2


async def test_an_error_of_the_users_own_transport_is_a_cause_without_secrets(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """It may quote the request; catches a bearer in a printed traceback."""

    def misroute(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/refresh"):
            raise LookupError(f"no route for {request.headers['Authorization']}")
        raise LookupError(f"no route for {request.content!r}")

    token = fake.issue_token()
    transport = httpx.MockTransport(misroute)
    session = connect(transport=transport, token=token, credentials=PASSWORDS)
    with pytest.raises(TransportError) as info:
        await session.refresh()
    assert str(info.value.__cause__) == "no route for Bearer [secret]"
    assert inside(session).source.secrets == (PASSWORDS.password,)


async def test_nobody_waits_longer_than_there_is_time_to_try_again(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A service that wants five seconds is not asked again by a caller who has one."""
    fake.fail("refresh", Fault(status=503, headers={"retry-after": "5"}))
    with pytest.raises(ServerError):
        await session.refresh(timeout=1)
    assert len(fake.requests) == 1


async def test_a_mistake_of_a_transport_reaches_the_caller(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """It is neither wrapped nor taken for an outage, unless there is a token to go on with."""
    with pytest.raises(LookupError, match="a bug"):
        await connect(transport=AsyncBuggy(), credentials=PASSWORDS).current_token()
    session = connect(transport=AsyncBuggy(), token=fake.issue_token())
    with pytest.raises(TransportError, match=r"not renewed: LookupError: a bug$") as caught:
        await session.refresh()
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.pitfall(7)
@pytest.mark.parametrize("backoff", [60, 8], ids=["in the back-off", "after it"])
@pytest.mark.parametrize(("fault", "cause"), FAILURES)
async def test_a_back_off_never_hands_out_an_expired_token(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    *,
    fault: Fault,
    cause: type[KoyebSessionError],
    backoff: float,
) -> None:
    """Catches a back-off that returns the old token unseen: expired bearers go out for minutes."""
    policy = RefreshPolicy(jitter=0, backoff=backoff)
    session = connect(token=fake.issue_token(), refresh_policy=policy)
    fake.fail("refresh", fault, times=100)
    clock.advance(DAY - timedelta(seconds=20))
    assert (await session.http.get("/v1/apps")).status_code == 200
    clock.advance(20)
    fake.requests.clear()
    for _ in range(5):
        with pytest.raises(SessionExpiredError, match="20 s ago: refresh") as caught:
            await session.http.get("/v1/apps")
        assert isinstance(caught.value.__cause__, cause)
        assert caught.value.retryable is caught.value.__cause__.retryable
    assert fake.requests == []
