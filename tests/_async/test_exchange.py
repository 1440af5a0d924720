"""The exchange: how long each step may take, and what is said when one fails."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from functools import partial

import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, AsyncBackground, async_arrived, async_until

ME = "me@example.com"
PASSWORD = "correct horse"
DAY = timedelta(hours=24)
Connect = Callable[..., AsyncSessionClient]
PASSWORDS = PasswordCredentials(ME, PASSWORD)


def count(fake: FakeKoyeb, operation: str) -> int:
    """Tell how many requests for an operation the service has received."""
    return sum(request.operation == operation for request in fake.requests)


def held(session: AsyncSessionClient) -> str:
    """Give the id of the token that a session holds."""
    assert session.token is not None
    return session.token.id


class Stopwatch(httpx.AsyncBaseTransport):
    """Notes how long each request may take."""

    def __init__(self, fake: FakeKoyeb) -> None:
        self._transport = fake.transport
        self.allowed: list[float] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        self.allowed.append(request.extensions["timeout"]["read"])
        return await self._transport.handle_async_request(request)


class Away(AsyncMemoryTokenStore):
    """A store that cannot be read."""

    loads = 0

    async def load(self) -> Token | None:
        """Raise."""
        self.loads += 1
        message = "no such host"
        raise OSError(message)


class Full(AsyncMemoryTokenStore):
    """A store that has no room for anything new while it is full."""

    full = True

    async def save(self, token: Token) -> None:
        """Raise, or keep it."""
        if self.full:
            message = "no room"
            raise OSError(message)
        await super().save(token)


# How long each step may take


@pytest.mark.parametrize("operation", ["login", "refresh", "logout"])
async def test_a_timeout_of_the_caller_is_that_of_each_operation(
    fake: FakeKoyeb, connect: Connect, operation: str
) -> None:
    """The client's own timeout does not cut short what the caller gives a minute."""
    stopwatch = Stopwatch(fake)
    store = AsyncMemoryTokenStore()
    session = connect(transport=stopwatch, credentials=PASSWORDS, store=store, timeout=5)
    if operation != "login":
        await session.login(ME, PASSWORD)
        stopwatch.allowed.clear()
    if operation == "logout":
        await store.save(Token(fake.issue_token()))  # somebody else's: revoked as well
        await session.logout(timeout=60)
    else:
        await session.refresh(timeout=60)
    assert len(stopwatch.allowed) == (2 if operation == "logout" else 1)
    assert all(55 < seconds <= 60 for seconds in stopwatch.allowed)


async def test_a_timeout_of_the_caller_holds_without_the_store(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A store that is away takes nothing of it."""
    stopwatch = Stopwatch(fake)
    session = connect(transport=stopwatch, token=fake.issue_token(), store=Away(), timeout=5)
    await session.refresh(timeout=60)
    assert [55 < seconds <= 60 for seconds in stopwatch.allowed] == [True]


async def test_nothing_is_exchanged_beside_a_held_lock(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Whoever holds it may be exchanging the same token; an expired one is anybody's to replace."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store, timeout=1, credentials=PASSWORDS)
    clock.advance(DAY - timedelta(seconds=30))
    async with store.lock():
        for _ in range(2):
            with pytest.raises(StoreError, match="could not be locked in time") as caught:
                await session.refresh()
            assert caught.value.retryable
            assert (await session.http.get("/v1/apps")).status_code == 200
            clock.advance(5)
        assert count(fake, "refresh") == count(fake, "login") == 0
        clock.advance(30)
        assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "refresh") == 0
    assert count(fake, "login") == 1


async def test_a_slow_exchange_under_the_lock_is_not_made_twice(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It may take longer than others wait for the lock: they use what they have meanwhile."""
    store = AsyncMemoryTokenStore()
    old = fake.issue_token()
    quick, slow = (connect(token=old, store=store, timeout=timeout) for timeout in (0.04, 5))
    clock.advance(DAY - timedelta(seconds=30))
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="request"))
    async with AsyncBackground() as background:
        job = background.start(slow.current_token)
        await async_arrived(gate)
        assert (await quick.current_token()).id == old
        gate.open()
        newer = await job.result()
    clock.advance(20)
    assert await quick.current_token() == newer
    assert fake.exchanges() == 1


async def test_what_is_renewed_behind_a_held_lock_is_taken_over(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Whoever holds it has been faster: the old token is dead, the new one in the store."""
    old = fake.issue_token()
    store = AsyncMemoryTokenStore()
    session = connect(token=old, store=store, timeout=0.2)
    newer = await connect(token=old).refresh()
    await store.save(newer)
    async with store.lock():
        assert await session.refresh() == newer
    assert count(fake, "refresh") == 1


async def test_who_waited_for_the_lock_while_the_session_changed_asks_for_nothing(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """After a logout nobody signs in, and what a newer token has replaced is not exchanged."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store, credentials=PASSWORDS)
    newer = await connect(token=held(session)).refresh()
    async with AsyncBackground() as background:
        async with store.lock():
            job = background.start(session.refresh)
            await background.settled()
            adopting = background.start(partial(session.use_token, newer))
            await background.settled()
        assert (await job.result()).id == (await adopting.result()).id == newer.id
        async with store.lock():
            job = background.start(session.refresh)
            await background.settled()
            leaving = background.start(session.logout)
            await background.settled()
        with pytest.raises(NotSignedInError):
            await job.result()
        await leaving.result()
    assert [request.operation for request in fake.requests] == ["refresh", "logout"]


async def test_a_close_behind_a_held_lock_is_no_renewal(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Who waits is told that there is no token, and is not given the old one."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store, timeout=0.1)
    clock.advance(DAY)
    async with AsyncBackground() as background, store.lock():
        jobs = [background.start(call) for call in (session.current_token, session.refresh)]
        await background.settled()
        await session.aclose()
        for job in jobs:
            with pytest.raises((SessionExpiredError, StoreError, TransportTimeoutError)):
                await job.result()
    assert fake.requests == []
    assert await store.load() is None


class Unlockable(AsyncMemoryTokenStore):
    """A store whose lock cannot be given back."""

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Raise at the end."""
        yield
        message = "gone"
        raise OSError(message)


async def test_what_was_sent_is_not_sent_again_when_the_lock_is_not_given_back(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The service has answered, or its reply is lost, whatever the store does then."""
    session = connect(token=fake.issue_token(), store=Unlockable())
    fake.fail("refresh", Fault(reset=True, processed=True))
    with pytest.raises(TransportError):
        await session.refresh()
    wrong = PasswordCredentials(ME, "wrong")
    with pytest.raises(InvalidCredentialsError):
        await connect(credentials=wrong, store=Unlockable()).current_token()
    assert [request.operation for request in fake.requests] == ["refresh", "login"]


@pytest.mark.parametrize("expired", [False, True])
async def test_a_token_can_be_read_behind_a_held_lock(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, expired: bool
) -> None:
    """Who has none of its own need not wait for the holder to end."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token() if expired else None, store=store, timeout=0.2)
    clock.advance(DAY)
    await store.save(saved := Token(fake.issue_token()))
    async with store.lock():
        assert (await session.current_token()).id == saved.id
    assert count(fake, "refresh") == 0


@pytest.mark.parametrize("expired", [False, True])
async def test_a_store_that_cannot_be_read_is_not_a_session_that_has_ended(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, expired: bool
) -> None:
    """It may have the token; it is asked again after a wait."""
    store = Away()
    session = connect(token=fake.issue_token() if expired else None, store=store)
    clock.advance(DAY)
    for _ in range(2):
        with pytest.raises(
            StoreError, match="the token store could not be read: OSError"
        ) as caught:
            await session.current_token()
        assert caught.value.retryable
    assert store.loads == 2  # once more, in case it was a passing failure; then it is left in peace


async def test_a_locked_store_that_has_nothing_is_the_error(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Not signed in would be a guess: whoever holds the lock may be signing in."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store, timeout=0.1)
    async with store.lock():
        with pytest.raises(StoreError, match="could not be locked in time"):
            await session.current_token()
    assert fake.requests == []


async def test_a_renewal_that_nobody_waits_for_has_the_clients_timeout(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The flight itself ends, so that the next one can be tried."""
    session = connect(token=fake.issue_token(), timeout=0.05)
    fake.fail("refresh", Fault(latency=PATIENCE), times=2)
    clock.advance(DAY / 2)
    await session.current_token()
    shared = session._keeper._task
    assert shared is not None
    assert isinstance(await shared.join(PATIENCE), TransportTimeoutError)


async def test_a_busy_service_is_asked_again_for_a_token_that_was_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The token has life left, but nobody can use it: the renewal is worth a second attempt."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401))
    fake.fail("refresh", Fault(status=503))
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "refresh") == 2


async def test_a_busy_service_is_asked_again_without_the_store(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away changes nothing about that, and is told of once."""
    session = connect(token=fake.issue_token(), store=Away())
    fake.fail("refresh", Fault(status=503))
    await session.refresh()
    assert count(fake, "refresh") == 2
    assert set(caplog.messages) == {
        (
            "the token is renewed inside the store's lock: "
            "the token store could not be read: OSError: no such host"
        )
    }


async def test_a_logout_is_final_without_the_store(fake: FakeKoyeb, connect: Connect) -> None:
    """What a renewal brings that its store did not guard is revoked all the same."""
    session = connect(token=fake.issue_token(), store=Away())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await async_until(lambda: session.token is None)
        gate.open()
        with pytest.raises(NotSignedInError):
            await renewal.result()
        with contextlib.suppress(StoreError):
            await leaving.result()
    assert session.token is None
    assert fake.live_tokens() == []


# Whose clock counts


def left(session: AsyncSessionClient) -> float:
    """Tell how long the session's token is good for, in seconds from when it was had."""
    snapshot = session._state.snapshot
    assert snapshot is not None
    return snapshot.expiry


@pytest.mark.parametrize("ahead", [-3600, 3600])
async def test_what_the_service_mints_has_its_whole_life_before_it(
    clock: FakeClock, connect: Connect, ahead: float
) -> None:
    """By a refresh or by a password: it is new this moment, whatever our clock says."""
    elsewhere = FakeKoyeb(clock=FakeClock())
    session = connect(transport=elsewhere.transport, credentials=PASSWORDS)
    clock.step_wall(ahead)
    await session.current_token()
    assert left(session) == pytest.approx(DAY.total_seconds(), abs=2)
    await session.refresh()
    assert left(session) == pytest.approx(DAY.total_seconds(), abs=2)


async def test_what_others_have_minted_has_what_its_expiry_leaves(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """From a callable or from a store: it may be old, and its expiry is compared with our clock."""
    token, store = fake.issue_token(), AsyncMemoryTokenStore()
    clock.advance(3600)
    session = connect(credentials=lambda: token)
    await session.current_token()
    assert left(session) == DAY.total_seconds() - 3600
    await store.save(Token(token))
    session = connect(store=store)
    await session.current_token()
    assert left(session) == DAY.total_seconds() - 3600


# What is saved late


async def test_a_late_save_replaces_the_token_before(
    clock: FakeClock, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be replaced is deleted: the next process must not go on with it."""
    store = Full()
    store.full = False
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    clock.advance(1)
    store.full = True
    new = await session.refresh()
    assert await store.load() is None
    assert caplog.messages == [
        (
            "the new token is kept in memory only: "
            "the token store could not be written: OSError: no room; what it held is deleted"
        )
    ]
    store.full = False
    await session.aclose()
    assert await store.load() == new


async def test_a_login_that_is_not_saved_is_told(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The message says what is kept where, and what kind of error the store raised."""
    session = connect(store=Full())
    await session.login(ME, PASSWORD)
    assert caplog.messages == [
        (
            "the new token is kept in memory only: "
            "the token store could not be written: OSError: no room; what it held is deleted"
        )
    ]


# What is raised, and logged


async def test_a_token_that_has_expired_and_cannot_be_had_again_is_an_expired_session(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Who waited for a renewal of an expired token learns that it has expired, and why."""
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
    """What another session raises, as credentials, was asked for: the next attempt has to wait."""
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


async def test_an_error_says_what_to_do(fake: FakeKoyeb, connect: Connect) -> None:
    """Who never signed in, and whose session has ended, learn what is missing."""
    wanted = r"^not signed in: call login\(\), or give token= or credentials=$"
    with pytest.raises(NotSignedInError, match=wanted):
        await connect().current_token()
    session = connect(token=fake.issue_token())
    fake.revoke_all()
    with pytest.raises(SessionExpiredError, match=r"^the service refused the token: "):
        await session.refresh()


async def test_a_token_from_the_store_is_logged_as_that(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator can tell an exchange from the adoption of somebody else's."""
    caplog.set_level(logging.INFO)
    store = AsyncMemoryTokenStore()
    await store.save(Token(fake.issue_token()))
    await connect(store=store).current_token()
    assert "taken over from the store; the token is good for 1 d 0 h" in caplog.messages


async def test_a_token_that_is_due_already_is_taken_over_and_renewed_meanwhile(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """What others saved half a life ago is used at once, and nobody waits for its successor."""
    store, saved = AsyncMemoryTokenStore(), fake.issue_token()
    await store.save(Token(saved))
    clock.advance(timedelta(hours=13))
    session = connect(store=store)
    assert (await session.current_token()).id == saved
    await async_until(lambda: fake.exchanges() == 1)


async def test_signed_out_says_what_to_do(fake: FakeKoyeb, connect: Connect) -> None:
    """After a logout there is one way back for a request."""
    session = connect(token=fake.issue_token())
    await session.logout()
    with pytest.raises(NotSignedInError, match=r"^signed out: call login\(\)$"):
        await session.http.get("/v1/apps")


async def test_a_logout_is_logged_as_what_it_is(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is added where nothing went wrong."""
    caplog.set_level(logging.INFO)
    session = connect(token=fake.issue_token())
    await session.logout()
    assert "signed out" in caplog.messages


async def test_passwords_that_were_changed_to_nonsense_are_named(connect: Connect) -> None:
    """The cause of the error says what is wrong with them, without quoting them."""
    credentials = PasswordCredentials(ME, PASSWORD)
    session = connect(credentials=credentials)
    object.__setattr__(credentials, "email", "")
    with pytest.raises(NotSignedInError, match="ValueError: email must not be empty") as caught:
        await session.current_token()
    assert isinstance(caught.value.__cause__, ValueError)


# How long the keeper sleeps


@pytest.mark.parametrize(
    ("lifetime", "failures", "wanted"),
    [(86_400, 0, [60.0] * 4), (60, 0, [30.0] * 4), (60, 1, [30.0, 4.0, 30.0, 30.0])],
)
async def test_keep_current_sleeps_until_there_is_something_to_do(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    lifetime: float,
    failures: int,
    wanted: list[float],
) -> None:
    """Until a renewal is due, or may be tried again; a minute at most, for the clocks' sake."""
    clock = FakeClock()
    slept: list[float] = []

    class Wakeup:
        """Sleeps by moving the clock."""

        def set(self) -> None:
            """Do nothing."""

        async def sleep(self, seconds: float) -> None:
            """Note how long, and end the session after the last one."""
            slept.append(seconds)
            clock.advance(seconds)
            if len(slept) == len(wanted):
                session._state.close()

    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(seconds=lifetime))
    if failures:
        fake.fail("refresh", Fault(status=500), times=failures)
    session = connect(
        transport=fake.transport,
        clock=clock,
        token=fake.issue_token(),
        refresh_policy=RefreshPolicy(jitter=0, backoff=4, backoff_max=4),
    )
    monkeypatch.setattr(sys.modules[type(session._keeper).__module__], "AsyncWakeup", Wakeup)
    monkeypatch.setattr("random.random", lambda: 0.0)
    await session.keep_current()
    assert slept == wanted
