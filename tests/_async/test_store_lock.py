"""The store's lock: an exchange happens inside it, and never beside another one's."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import timedelta
from functools import partial

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session._core.deadline import Deadline
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import (
    PATIENCE,
    AsyncBackground,
    async_arrived,
    async_pass_through,
    async_until,
    deadlines,
)
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, held, inside, operations, raising
from .doubles import AsyncUnderWay, BrokenStore, BusyError, Connect, Held, Troubled, saved


class Slow(Troubled):
    """A store that notes when it is released, too; its release stands at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    @contextlib.asynccontextmanager
    async def _lock_intercepted(self) -> AsyncGenerator[None]:
        async with super()._lock_intercepted():
            yield
            self.calls.append("release")
            await async_pass_through(self.gate)


async def test_the_store_is_locked_over_the_whole_exchange(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Read, exchange and save are one step for all who share the store."""
    store = Slow()
    store.gate.open()
    session = connect(token=fake.issue_token(), store=store)
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        assert store.calls == ["lock", "load"]
        background.gate.open()
        await background.job.result()
    assert store.calls == ["lock", "load", "save", "release"]


@pytest.mark.pitfall(26)
@pytest.mark.parametrize("fails", [1, 2, 3])
async def test_two_sessions_make_one_exchange_when_the_store_fails_under_its_lock(
    fake: FakeKoyeb, connect: Connect, fails: int
) -> None:
    """A load that fails does not let go of the lock for an exchange beside the next holder."""
    store = Troubled()
    token = fake.issue_token()
    first, second = (connect(store=store, token=token) for _ in range(2))
    store.fails["load"] = fails
    async with AsyncUnderWay(fake, "refresh", first.refresh) as background:
        other = background.start(second.refresh)
        await background.settled()
        assert count(fake, "refresh") == 1
        background.gate.open()
        assert await background.job.result() == await other.result()
    assert held(first) == held(second) == await saved(store)
    assert fake.live_tokens() == [held(first)]


@pytest.mark.pitfall(40)
async def test_lock_that_is_held_is_no_ended_session_when_a_token_is_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A refused token counts as expired: credentials sign in, and a session without any raises."""
    signs_in = connect(store=Held(), token=fake.issue_token(), credentials=PASSWORDS)
    has_none = connect(store=Held(), token=fake.issue_token())
    fake.revoke_all()
    assert (await signs_in.http.get("/v1/apps")).status_code == 200
    with pytest.raises(StoreError):
        await has_none.http.get("/v1/apps")


async def test_work_that_waits_for_a_lock_that_fails_is_told(connect: Connect) -> None:
    """It is not done, and nobody waits for it any longer."""
    store = Troubled()
    gate = store.gates["lock"] = Gate()
    store.fails["lock"] = 1
    turn = inside(connect(store=store)).persistence.hold()
    async with AsyncBackground() as background:
        done = background.start(partial(turn.do, raising(AssertionError()), 60))
        await async_arrived(gate)
        await background.settled()
        gate.open()
        assert await done.result() is False
    assert turn.problem is not None


async def test_nothing_is_exchanged_beside_a_held_lock(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The holder may be exchanging the same token; an expired one is anybody's to replace."""
    store = AsyncMemoryTokenStore()
    old = fake.issue_token()
    clock.advance(DAY - timedelta(minutes=2))
    made: list[AsyncSessionClient] = []
    errors: list[bool] = []
    answers: list[int] = []
    async with store.lock():
        for seconds in deadlines(lambda: errors[-2:] == [True] * 2):
            session = connect(token=old, store=store, timeout=seconds, credentials=PASSWORDS)
            made.append(session)
            for _ in range(2):
                with contextlib.suppress(TransportTimeoutError):
                    with pytest.raises(StoreError, match="could not be locked in time") as caught:
                        await session.refresh()
                    errors.append(caught.value.retryable)
                assert (await session.http.get("/v1/apps")).status_code == 200
                clock.advance(5)
        assert count(fake, "refresh") == count(fake, "login") == 0
        clock.advance(120)
        while not answers:  # the last one has as much time as was enough
            session = made.pop() if made else connect(store=store, credentials=PASSWORDS)
            with contextlib.suppress(KoyebSessionError):
                answers.append((await session.http.get("/v1/apps")).status_code)
    assert answers == [200]
    assert count(fake, "refresh") == 0
    assert count(fake, "login") >= 1


@pytest.mark.parametrize("error", [TimeoutError("busy"), BusyError("key", 2)], ids=repr)
async def test_nothing_is_exchanged_beside_a_lock_whose_wait_ends_in_any_timeout(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, error: TimeoutError
) -> None:
    """A class of the store's own says as much: the holder may be exchanging the same token."""
    session = connect(token=fake.issue_token(), store=BrokenStore("lock", error=error))
    clock.advance(DAY - timedelta(seconds=30))
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "refresh") == 0


async def test_a_slow_exchange_under_the_lock_is_not_made_twice(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It may take longer than others wait for the lock: they use their tokens meanwhile."""
    store = AsyncMemoryTokenStore()
    old = fake.issue_token()
    quick, slow = (connect(token=old, store=store, timeout=timeout) for timeout in (0.04, 5))
    clock.advance(DAY - timedelta(seconds=30))
    async with AsyncUnderWay(fake, "refresh", slow.current_token, hold="request") as background:
        assert (await quick.current_token()).id == old
        background.gate.open()
        newer = await background.job.result()
    clock.advance(20)
    assert await quick.current_token() == newer
    assert fake.exchanges() == 1


async def test_a_waiter_for_the_lock_asks_for_nothing_once_the_session_has_changed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """After a logout nobody signs in, and a token that another has replaced is not exchanged."""
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
    assert operations(fake) == ["refresh", "logout"]


@pytest.mark.usefixtures("no_grace")
async def test_a_close_behind_a_held_lock_is_no_renewal(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A waiter learns that there is no token, and does not get the old one."""
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
    """A store whose lock cannot be released."""

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Raise at the end."""
        yield
        message = "gone"
        raise OSError(message)


async def test_a_request_is_not_sent_again_when_the_lock_is_not_released(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The service has answered, or its reply is lost, and then the store fails."""
    session = connect(token=fake.issue_token(), store=Unlockable())
    fake.fail("refresh", Fault(reset=True, processed=True))
    with pytest.raises(TransportError):
        await session.refresh()
    wrong = PasswordCredentials(ME, "wrong")
    with pytest.raises(InvalidCredentialsError):
        await connect(credentials=wrong, store=Unlockable()).current_token()
    assert operations(fake) == ["refresh", "login"]
    assert caplog.messages[::2] == ["the token store could not be unlocked: OSError: gone"] * 2


async def test_store_stays_locked_until_the_last_of_its_users_has_left(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A login beside a renewal is saved in its hold; catches an exchange without the lock."""
    store = Slow()
    store.gate.open()
    session = connect(token=fake.issue_token(), store=store)
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        await session.login(ME, PASSWORD)
        await background.settled()
        assert await saved(store) == held(session)
        assert store.calls == ["lock", "load", "save"]
        background.gate.open()
        await background.job.result()
    assert (store.calls.count("lock"), store.calls[-1]) == (1, "release")


async def test_new_hold_begins_while_the_last_one_releases_the_lock(connect: Connect) -> None:
    """Nobody waits longer than asked; catches a save that is queued where nobody does it."""
    store = Slow()
    session = connect(store=store)
    last = inside(session).persistence.hold()
    await last.ready(PATIENCE)
    await last.leave(Deadline(0))
    await async_arrived(store.gate)
    assert last.alive
    async with AsyncBackground() as background:
        job = background.start(partial(session.login, ME, PASSWORD))
        await async_until(lambda: session.token is not None)
        await background.settled()
        store.gate.open()
        await job.result()
    assert await saved(store) == held(session)


@pytest.mark.parametrize("own", ["none", "expired", "exchanged"])
async def test_a_token_can_be_taken_over_behind_a_held_lock(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, own: str
) -> None:
    """A session that has no token, or a dead one, need not wait for the holder to end."""
    store = AsyncMemoryTokenStore()
    old = None if own == "none" else fake.issue_token()
    sessions = [connect(token=old, store=store, timeout=seconds) for seconds in (0.1, 1, PATIENCE)]
    if own == "expired":
        clock.advance(DAY)
    await store.save(newer := Token(fake.issue_token()))
    found: list[str] = []
    async with store.lock():
        while not found:  # on a busy machine a short deadline may come too soon
            session = sessions.pop(0)
            call = session.refresh if own == "exchanged" else session.current_token
            with contextlib.suppress(TransportTimeoutError):
                found.append((await call()).id)
    assert found == [newer.id]
    assert fake.requests == []


async def test_a_locked_store_that_has_nothing_is_the_error(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Not signed in would be a guess: the holder of the lock may be signing in."""
    store = AsyncMemoryTokenStore()
    errors: list[StoreError] = []
    async with store.lock():
        for seconds in deadlines(lambda: errors):
            session = connect(store=store, timeout=seconds)
            with contextlib.suppress(TransportTimeoutError):
                with pytest.raises(StoreError, match="could not be locked in time") as caught:
                    await session.current_token()
                errors.append(caught.value)
    assert fake.requests == []
