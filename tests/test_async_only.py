"""What only the asynchronous half meets: cancelled callers, and async functions of users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import filelock
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
)
from koyeb_session._async import slots
from koyeb_session._concurrency import async_flights
from koyeb_session.stores import AsyncFileTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from .concurrency import PATIENCE, async_arrived, async_idle

ME = "me@example.com"
PASSWORD = "correct horse"
DAY = timedelta(hours=24)


@asynccontextmanager
async def connected(fake: FakeKoyeb, clock: FakeClock, **arguments: Any) -> AsyncGenerator[Any]:
    """Make a client of the service, and close it."""
    async with AsyncSessionClient(
        transport=fake.transport,
        clock=clock,
        refresh_policy=RefreshPolicy(jitter=0),
        retry_policy=RetryPolicy(delay=0),
        **arguments,
    ) as session:
        yield session


async def cancelled_at(gate: Gate, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Call, and cancel the caller once the request stands at the gate."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await async_arrived(gate)
        tasks.cancel_scope.cancel()


async def test_a_cancelled_logout_goes_on() -> None:
    """The session has ended at once, and the service and the store are told all the same."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    store = AsyncMemoryTokenStore()
    gate = Gate()
    async with connected(fake, clock, store=store) as session:
        await session.login(ME, PASSWORD)
        fake.fail("logout", Fault(gate=gate, hold="request"))
        await cancelled_at(gate, session.logout)
        assert session.token is None
        assert await store.load() is None
        assert len(fake.live_tokens()) == 1
        gate.open()
    assert fake.live_tokens() == []


async def test_a_cancelled_login_is_saved_once_the_token_was_there() -> None:
    """What the session holds, the store holds, whoever is cancelled meanwhile."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    saving, go = anyio.Event(), anyio.Event()

    class Slow(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            saving.set()
            await go.wait()
            await super().save(token)

    store = Slow()
    async with connected(fake, clock, store=store) as session:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.login, ME, PASSWORD)
            await saving.wait()
            tasks.cancel_scope.cancel()
        assert session.token is not None
        go.set()
    assert await store.load() is session.token


class Hanging(AsyncMemoryTokenStore):
    """A store on a disk that does not answer."""

    async def save(self, token: Token) -> None:
        """Never return."""
        await anyio.sleep_forever()

    @asynccontextmanager
    async def _held(self) -> AsyncGenerator[None]:
        await anyio.sleep_forever()
        yield


class Locked(Hanging):
    """A store whose lock is never had."""

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Wait for ever."""
        return self._held()


async def test_a_login_does_not_wait_for_a_store_that_hangs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The session goes on in memory when its timeout has passed; closing waits as long again."""
    fake = FakeKoyeb()
    async with AsyncSessionClient(
        transport=fake.transport, store=Hanging(), timeout=0.05
    ) as session:
        token = await session.login(ME, PASSWORD)
        assert session.token == token
    wanted = "kept in memory only: the token store could not be written: TimeoutError"
    assert wanted in caplog.text


async def test_a_logout_tells_the_service_although_the_store_hangs() -> None:
    """Half of the time is the store's, and the rest is the service's."""
    fake = FakeKoyeb()
    async with AsyncSessionClient(
        transport=fake.transport, store=Locked(), token=fake.issue_token(), timeout=0.2
    ) as session:
        await session.logout()
        assert session.token is None
    assert fake.live_tokens() == []


async def test_keep_current_ends_when_it_is_cancelled() -> None:
    """It runs in the user's own task group, and ends with it."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    async with connected(fake, clock, token=fake.issue_token()) as session:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.keep_current)
            clock.advance(DAY / 2)
            await async_idle()
            tasks.cancel_scope.cancel()
        assert fake.exchanges() == 1
        clock.advance(DAY / 2)
        session._keeper.wake()
        await async_idle()
        assert fake.exchanges() == 1


async def test_a_cancelled_listener_leaves_the_rest_to_the_next() -> None:
    """Whoever was telling is gone; the next change tells what was not told, in order."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    heard: list[str] = []
    async with connected(fake, clock) as session:
        session._keeper.listen(heard.remove)  # it raises, as it is told of no text
        listeners = session._keeper.listeners

        async def listener(token: Token | None) -> None:
            heard.append("begin")
            if len(heard) == 1:
                await anyio.sleep_forever()
            heard.append("end")

        listeners.add(listener)
        listeners.post(None)
        listeners.post(None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listeners.tell)
            while not heard:
                await anyio.lowlevel.checkpoint()
            await listeners.tell()
            assert heard == ["begin"]
            tasks.cancel_scope.cancel()
        await listeners.tell()
    assert heard == ["begin", "begin", "end"]


async def test_a_store_that_hangs_leaves_time_for_the_exchange() -> None:
    """Nobody else holds its lock, so that the token is exchanged without it."""

    class Hanging(AsyncMemoryTokenStore):
        async def load(self) -> Token | None:
            await anyio.sleep_forever()
            return None

    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    old = fake.issue_token()
    async with connected(fake, clock, token=old, store=Hanging(), timeout=0.2) as session:
        assert (await session.refresh()).id != old
        assert fake.live_tokens() == [session.token.id]


async def test_a_store_that_hangs_does_not_keep_a_logout_from_the_service() -> None:
    """Neither its lock nor, once that was waited for, its deletion takes all of the time."""

    class Hanging(AsyncMemoryTokenStore):
        @asynccontextmanager
        async def lock(self) -> AsyncGenerator[None]:
            await anyio.sleep_forever()
            yield

        async def delete(self) -> None:
            await anyio.sleep_forever()

    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    token = fake.issue_token()
    async with connected(fake, clock, token=token, store=Hanging()) as session:
        with pytest.raises(StoreError, match="could not be emptied"):
            await session.logout(timeout=0.2)
    assert fake.live_tokens() == []


async def restart(*_: object) -> str:
    """Cancel a task of one's own, and wait for it, as who starts a stream anew does."""
    task = asyncio.create_task(asyncio.sleep(PATIENCE))
    task.cancel()
    await task
    return "never"


def test_a_listener_that_waits_for_a_cancelled_task_keeps_nobody() -> None:
    """On asyncio that looks as if the listener itself had been cancelled; the others are told."""
    heard: list[Token | None] = []

    async def main() -> Token:
        clock = FakeClock()
        async with connected(FakeKoyeb(clock=clock), clock) as session:
            session.on_token_change(restart)
            session.on_token_change(heard.append)
            token: Token = await session.login(ME, PASSWORD)
            await async_idle()
            return token

    assert asyncio.run(main()) == heard[0]


def fail() -> str:
    """Do the same in a thread."""
    return asyncio.run(restart())


@pytest.mark.parametrize("credentials", [restart, fail])
def test_credentials_that_wait_for_a_cancelled_task_give_no_token(
    credentials: Callable[[], Any],
) -> None:
    """The renewal fails with an error of ours, and nobody waits in vain."""

    async def main() -> None:
        clock = FakeClock()
        async with connected(FakeKoyeb(clock=clock), clock, credentials=credentials) as session:
            await session.current_token()

    with pytest.raises(SessionExpiredError, match="gave no usable token") as caught:
        asyncio.run(main())
    assert str(caught.value.__cause__) == "what it waited for was cancelled"


async def test_async_credentials_are_awaited_here() -> None:
    """An async provider runs on the event loop, and may await what it likes."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)

    async def provider() -> str:
        await anyio.lowlevel.checkpoint()
        return fake.issue_token()

    credentials: list[Callable[[], Any]] = [provider, lambda: provider()]  # noqa: PLW0108 - a plain one
    for given in credentials:
        async with connected(fake, clock, credentials=given) as session:
            assert (await session.http.get("/v1/apps")).status_code == 200


async def test_an_async_provider_that_raises_is_the_cause() -> None:
    """It is told as a plain one is."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)

    async def provider() -> str:
        await anyio.lowlevel.checkpoint()
        message = "the vault is sealed"
        raise PermissionError(message)

    async with connected(fake, clock, credentials=provider) as session:
        with pytest.raises(SessionExpiredError) as caught:
            await session.current_token()
    assert isinstance(caught.value.__cause__, PermissionError)


async def test_the_other_half_refuses_an_async_provider() -> None:
    """A `SessionClient` cannot await: the error says that a plain function is needed."""
    fake = FakeKoyeb()

    async def provider() -> str:
        return fake.issue_token()

    with (
        SessionClient(transport=fake.transport, credentials=provider) as session,
        pytest.raises(SessionExpiredError) as caught,
    ):
        session.current_token()
    assert isinstance(caught.value.__cause__, TypeError)
    assert "give it a plain one" in str(caught.value.__cause__)


async def test_the_other_half_logs_an_async_listener(caplog: pytest.LogCaptureFixture) -> None:
    """A listener that cannot be awaited is told of in the log; the login is there."""
    fake = FakeKoyeb()

    async def listener(token: Token | None) -> None:
        raise AssertionError

    with SessionClient(transport=fake.transport) as session:
        session.on_token_change(lambda token: listener(token))  # noqa: PLW0108 - its look says nothing
        assert session.login(ME, PASSWORD) is session.token
    assert "give it a plain one" in caplog.text


def test_an_exchange_whose_task_is_cancelled_from_outside_is_told() -> None:
    """Who cancels all tasks of a loop cuts off the exchange; nobody waits for it in vain."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)

    async def main() -> None:
        fake.fail("refresh", Fault(gate=Gate(), hold="request"))
        async with connected(fake, clock, token=fake.issue_token()) as session:
            before = set(async_flights._tasks)
            waiting = asyncio.create_task(session.refresh())
            await async_idle()
            for task in async_flights._tasks - before:
                task.cancel()
            with pytest.raises(
                TransportError, match=r"^the renewal was cut off: its event loop or thread ended$"
            ):
                await waiting
            assert (await session.refresh()).id in fake.live_tokens()

    asyncio.run(main())


async def test_a_cancelled_request_gives_its_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it cancelled at the service, or in line for its turn."""
    monkeypatch.setattr(slots, "LIMIT", 1)
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    gate = Gate()
    with fake.serve() as url:
        async with AsyncSessionClient(
            base_url=url, clock=clock, token=fake.issue_token()
        ) as session:
            fake.fail("apps", Fault(gate=gate))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.http.get, "/v1/apps")
                await async_arrived(gate)
                async with anyio.create_task_group() as others:
                    for _ in range(3):
                        others.start_soon(session.http.get, "/v1/apps")
                    await async_idle()
                    others.cancel_scope.cancel()
                tasks.cancel_scope.cancel()
            assert (await session.http.get("/v1/apps")).status_code == 200
        assert len(fake.requests) == 2


async def test_who_is_cancelled_as_its_turn_comes_gives_it_back() -> None:
    """The turn goes to the next one in line."""
    turns = slots.AsyncTurns(1)
    assert not await turns.take(None)
    scope = anyio.CancelScope()

    async def first() -> None:
        with scope:
            await turns.take(None)
            turns.give()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await async_idle()
            tasks.start_soon(turns.take, None)
            await async_idle()
            turns.give()
            scope.cancel()


async def test_a_cancelled_block_gives_the_lock_of_a_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when somebody collects what the block has left."""

    def keep(_: object) -> None:
        """Give nothing back."""

    monkeypatch.setattr(filelock.BaseFileLock, "__del__", keep)
    store = AsyncFileTokenStore(tmp_path / "session.json", lock_timeout=0.05)
    with anyio.CancelScope() as scope:
        async with store.lock():
            scope.cancel()
            await anyio.sleep_forever()
    async with store.lock():
        pass


async def test_a_timeout_is_for_the_store_too() -> None:
    """A store that hangs keeps a login no longer than asked for; the token is there."""

    class Hanging(AsyncMemoryTokenStore):
        hangs = True

        async def save(self, token: Token) -> None:
            if self.hangs:
                await anyio.sleep_forever()
            await super().save(token)

    store, clock = Hanging(), FakeClock()
    async with connected(FakeKoyeb(clock=clock), clock, timeout=60, store=store) as session:
        with anyio.fail_after(PATIENCE):
            token = await session.login(ME, PASSWORD, timeout=0.1)
        assert session.token == token
        store.hangs = False  # closing saves what it missed
    assert await store.load() == token
