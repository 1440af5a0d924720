"""The exchange: how long each step may take, and the error when one fails."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    NotSignedInError,
    ServerError,
    SessionExpiredError,
    Token,
    TransportTimeoutError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, async_until
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, inside
from .doubles import BrokenStore, Connect


class Stopwatch(httpx.AsyncBaseTransport):
    """Notes how long each request may take."""

    def __init__(self, fake: FakeKoyeb) -> None:
        self._transport = fake.transport
        self.allowed: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        self.allowed.append(request.extensions["timeout"]["read"])
        return await self._transport.handle_async_request(request)


@pytest.mark.parametrize("broken", ["", "load"])
@pytest.mark.parametrize("operation", ["login", "refresh", "logout", "new_session"])
async def test_a_timeout_of_the_caller_is_that_of_each_operation(
    fake: FakeKoyeb, connect: Connect, store: BrokenStore, operation: str, broken: str
) -> None:
    """Neither the client's own timeout nor a store that is away takes anything of it."""
    stopwatch = Stopwatch(fake)
    session = connect(transport=stopwatch, credentials=PASSWORDS, store=store, timeout=5)
    if operation != "login":
        await session.login(ME, PASSWORD)
        stopwatch.allowed.clear()
    store.broken.add(broken)
    if operation == "logout":
        await store.save(Token(fake.issue_token()))  # somebody else's: revoked as well
        await session.logout(timeout=60)
    elif operation == "new_session":
        fake.fail("new_session", Fault(status=401))  # renewed, and sent again
        await session.new_session(timeout=60)
    else:
        await session.refresh(timeout=60)
    sent = {"logout": 1 if broken else 2, "new_session": 3}.get(operation, 1)
    assert [55 < seconds <= 60 for seconds in stopwatch.allowed] == [True] * sent


async def test_a_renewal_that_nobody_waits_for_has_the_clients_timeout(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The flight itself ends, so that the next one can be tried, and that a close ends."""
    session = connect(token=fake.issue_token(), timeout=0.05)
    fake.fail("refresh", Fault(gate=Gate()))
    clock.advance(DAY / 2)
    old = await session.current_token()
    shared = inside(session).task
    await session.aclose()
    assert isinstance(await shared.join(PATIENCE), TransportTimeoutError)
    assert session.token is old


def left(session: AsyncSessionClient) -> float:
    """Tell how long the session's token is good for, in seconds from when it was had."""
    return float(inside(session).state.snapshot.expiry)


async def test_a_busy_service_is_asked_again_without_the_store(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away changes nothing about that, and is told of once."""
    session = connect(token=fake.issue_token(), store=BrokenStore("load"))
    fake.fail("refresh", Fault(status=503))
    await session.refresh()
    assert count(fake, "refresh") == 2
    problem = "the token store could not be read: OSError: disk full"
    assert set(caplog.messages) == {f"the token is renewed inside the store's lock: {problem}"}


@pytest.mark.parametrize("ahead", [-3600, 3600])
async def test_a_new_token_has_its_whole_life_before_it(
    clock: FakeClock, connect: Connect, ahead: float
) -> None:
    """By a refresh or by a password: the token is new this moment, even if our clock is wrong."""
    elsewhere = FakeKoyeb(clock=FakeClock())
    session = connect(transport=elsewhere.transport, credentials=PASSWORDS)
    clock.step_wall(ahead)
    for ask in (session.current_token, session.refresh):
        token = await ask()
        assert left(session) == pytest.approx(DAY.total_seconds(), abs=2)
        assert token.expires_at is not None
        assert token.issued_at is not None
        lifetime = (token.expires_at - token.issued_at).total_seconds()
        assert lifetime == pytest.approx(DAY.total_seconds(), abs=2)


async def test_a_token_of_others_has_the_time_until_its_expiry(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """From a callable or from a store: it may be old, and its expiry is compared with our clock."""
    token, store = fake.issue_token(), AsyncMemoryTokenStore()
    await store.save(Token(token))
    clock.advance(3600)
    for session in (connect(credentials=lambda: token), connect(store=store)):
        await session.current_token()
        assert left(session) == DAY.total_seconds() - 3600


async def test_a_token_that_has_expired_and_cannot_be_had_again_is_an_expired_session(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A caller that waited for the renewal of an expired token learns that it expired, and why."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    clock.advance(DAY)
    fake.fail("login", Fault(status=500))
    with pytest.raises(SessionExpiredError) as caught:
        await session.current_token()
    assert isinstance(caught.value.__cause__, ServerError)


@pytest.mark.parametrize("kind", [NotSignedInError, SessionExpiredError])
async def test_credentials_that_have_no_token_either_are_left_in_peace(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, kind: type[KoyebSessionError]
) -> None:
    """An error of another session, used as credentials, starts a back-off like any other."""
    asked: list[float] = []

    def ask() -> str:
        asked.append(clock.time())
        raise kind("nobody is signed in there")

    session = connect(token=fake.issue_token(), credentials=ask)
    fake.revoke_all()
    for _ in range(3):
        with pytest.raises(SessionExpiredError) as caught:
            await session.http.get("/v1/apps")
        assert "nobody is signed in there" in str(caught.value)
    assert len(asked) == 1
    assert count(fake, "refresh") == 0  # a given token is its issuer's to renew


async def test_a_token_that_is_due_already_is_taken_over_and_renewed_meanwhile(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A token that others saved half a life ago is used at once; nobody waits for its successor."""
    store, saved = AsyncMemoryTokenStore(), fake.issue_token()
    await store.save(Token(saved))
    clock.advance(timedelta(hours=13))
    session = connect(store=store)
    assert (await session.current_token()).id == saved
    await async_until(lambda: fake.exchanges() == 1)
