"""Cases that only the async half has: cancelled callers, and async functions of users."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
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
    NotSignedInError,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
    StoreError,
    Token,
    TransportError,
)
from koyeb_session._async.http import queue
from koyeb_session._concurrency.event_loop import shared_task
from koyeb_session._concurrency.event_loop.shared_task import AsyncSharedTask
from koyeb_session._concurrency.event_loop.waiting import AsyncEvent
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
    """The session ends at once, and the token is still revoked and deleted."""
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
    """The store holds the session's token, even if a caller is cancelled during the save."""
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
        assert await store.load() is None
        go.set()
    assert await store.load() == session.token


class Hanging(AsyncMemoryTokenStore):
    """
    A store on a disk that does not answer until it is mended.

    Attributes:
        hangs: Which of its methods do not.
        mended: Set once they do.
    """

    def __init__(self, *hangs: str) -> None:
        super().__init__()
        self.hangs = hangs
        self.mended = anyio.Event()

    async def load(self) -> Token | None:
        """Load the token."""
        await self._answer("load")
        return await super().load()

    async def save(self, token: Token) -> None:
        """Save a token."""
        await self._answer("save")
        await super().save(token)

    async def delete(self) -> None:
        """Forget the token."""
        await self._answer("delete")
        await super().delete()

    @asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Hold the lock."""
        await self._answer("lock")
        async with super().lock():
            yield

    async def _answer(self, method: str) -> None:
        if method in self.hangs:
            await self.mended.wait()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all waiters give up once no task can run, as if their time had passed."""

    async def wait(event: AsyncEvent, seconds: float = math.inf) -> bool:
        assert seconds > 0  # no caller has used up another one's share
        await async_idle()
        return event.is_set()

    async def land(shared: AsyncSharedTask[Any], _timeout: float | None = None) -> None:
        for _ in range(10):  # waiters for a store run in a shared task themselves
            await async_idle()
            if not shared.alive:
                return

    monkeypatch.setattr(AsyncEvent, "wait", wait)
    monkeypatch.setattr(AsyncSharedTask, "wait", land)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hangs", ["lock", "load", "save"])
async def test_a_login_does_not_wait_for_a_store_that_hangs(
    caplog: pytest.LogCaptureFixture, hangs: str
) -> None:
    """The session goes on in memory; once the store answers, it has the token after all."""
    clock = FakeClock()
    store = Hanging(hangs)
    async with connected(FakeKoyeb(clock=clock), clock, store=store) as session:
        token = await session.login(ME, PASSWORD)
        assert session.token == token
        assert caplog.messages[-1].startswith("the new token is kept in memory only: ")
        store.mended.set()
    assert await store.load() == token


async def test_a_login_waits_no_longer_than_asked_for_a_store_that_hangs() -> None:
    """Its own timeout is for the store, too; the client's, of a minute, is not waited for."""
    clock = FakeClock()
    store = Hanging("save")
    async with connected(FakeKoyeb(clock=clock), clock, timeout=60, store=store) as session:
        with anyio.fail_after(PATIENCE):
            token = await session.login(ME, PASSWORD, timeout=PATIENCE / 10)
        assert session.token == token
        store.mended.set()  # closing waits for running tasks
    assert await store.load() == token


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "hangs", [("lock",), ("load",), ("delete",), ("lock", "load"), ("lock", "delete")]
)
async def test_a_store_that_hangs_does_not_keep_a_logout_from_the_service(
    hangs: tuple[str, ...],
) -> None:
    """Neither its lock nor its deletion takes all of the time; the log says what may be left."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    store = Hanging(*hangs)
    async with connected(fake, clock, token=fake.issue_token(), store=store) as session:
        if "delete" not in hangs:  # it is emptied without the lock
            await session.logout()
        else:
            with pytest.raises(StoreError, match="could not be emptied"):
                await session.logout()
        assert session.token is None
        assert fake.live_tokens() == []
        store.mended.set()


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
    """After a cancelled delivery, the next change delivers the pending ones, in order."""
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


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("hangs", ["load", "save"])
async def test_a_store_that_hangs_leaves_time_for_the_exchange(hangs: str) -> None:
    """No other process holds its lock, so the token is refreshed without it."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    old = fake.issue_token()
    store = Hanging(hangs)
    async with connected(fake, clock, token=old, store=store) as session:
        assert (await session.refresh()).id != old
        assert fake.live_tokens() == [session.token.id]
        assert (await session.http.get("/v1/apps")).status_code == 200
        store.mended.set()
    assert await store.load() == session.token


@pytest.mark.usefixtures("impatient")
async def test_a_store_whose_lock_is_not_had_keeps_a_good_token_from_an_exchange() -> None:
    """The holder of the lock may refresh the same token, and two refreshes may cost the session."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    store = Hanging("lock")
    async with connected(fake, clock, token=fake.issue_token(), store=store) as session:
        with pytest.raises(StoreError, match="could not be locked in time"):
            await session.refresh()
        assert fake.requests == []
        assert (await session.http.get("/v1/apps")).status_code == 200
        store.mended.set()


async def test_a_caller_gets_the_token_that_came_though_the_store_is_still_waited_for() -> None:
    """At the end of its time, not the news that nothing was renewed."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    store = Hanging("save")
    async with connected(fake, clock, token=fake.issue_token(), store=store) as session:
        old = session.token
        with anyio.fail_after(PATIENCE):
            renewed = await session.refresh(timeout=PATIENCE / 10)
        assert renewed is session.token
        assert renewed is not old
        store.mended.set()


async def restart(*_: object) -> str:
    """Cancel its own task, and wait for it, like code that restarts a stream."""
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


def restart_in_thread() -> str:
    """Do the same in a thread."""
    return asyncio.run(restart())


def leave() -> str:
    """End the program, as a command line's functions do."""
    sys.exit("no vault")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("credentials", "cause"),
    [
        (restart, "what it waited for was cancelled"),
        (restart_in_thread, "it raised CancelledError"),
        (leave, "it raised SystemExit"),
    ],
)
def test_credentials_that_end_more_than_themselves_give_no_token(
    credentials: Callable[[], Any], cause: str, backend: str
) -> None:
    """The renewal fails with an error of this package, no caller hangs, and the loop goes on."""
    if credentials is restart and backend == "trio":
        pytest.skip("a task of asyncio's")

    async def main() -> None:
        clock = FakeClock()
        async with connected(FakeKoyeb(clock=clock), clock, credentials=credentials) as session:
            for ask in (session.current_token, session.refresh):
                with pytest.raises(NotSignedInError, match="gave no token") as caught:
                    await ask()
                assert str(caught.value.__cause__) == cause

    anyio.run(main, backend=backend)


def test_the_other_half_s_credentials_that_end_more_than_themselves_give_no_token() -> None:
    """They run in their own thread, whose end would hide the cause."""
    fake = FakeKoyeb()
    for credentials, cause in (
        (restart_in_thread, "it raised CancelledError"),
        (leave, "it raised SystemExit"),
    ):
        with SessionClient(transport=fake.transport, credentials=credentials) as session:
            for ask in (session.current_token, session.refresh):
                with pytest.raises(NotSignedInError, match="gave no token") as caught:
                    ask()
                assert str(caught.value.__cause__) == cause


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
        with pytest.raises(NotSignedInError) as caught:
            await session.current_token()
    assert isinstance(caught.value.__cause__, PermissionError)


def test_the_other_half_refuses_an_async_provider() -> None:
    """A `SessionClient` cannot await: the error says that a plain function is needed."""
    fake = FakeKoyeb()

    async def provider() -> str:
        return fake.issue_token()

    with (
        SessionClient(transport=fake.transport, credentials=provider) as session,
        pytest.raises(NotSignedInError) as caught,
    ):
        session.current_token()
    assert isinstance(caught.value.__cause__, TypeError)
    assert "give it a plain one" in str(caught.value.__cause__)


def test_the_other_half_logs_an_async_listener(caplog: pytest.LogCaptureFixture) -> None:
    """A listener that cannot be awaited is told of in the log; the login is there."""
    fake = FakeKoyeb()

    async def listener(token: Token | None) -> None:
        raise AssertionError

    with SessionClient(transport=fake.transport) as session:
        session.on_token_change(lambda token: listener(token))  # noqa: PLW0108 - its look says nothing
        assert session.login(ME, PASSWORD) is session.token
    assert "give it a plain one" in caplog.text


def test_an_exchange_whose_task_is_cancelled_from_outside_is_told() -> None:
    """Cancelling all tasks of a loop ends the renewal; catches callers that wait forever."""
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)

    async def main() -> None:
        fake.fail("refresh", Fault(gate=Gate(), hold="request"))
        async with connected(fake, clock, token=fake.issue_token()) as session:
            before = set(shared_task._tasks)
            waiting = asyncio.create_task(session.refresh())
            await async_idle()
            for task in shared_task._tasks - before:
                task.cancel()
            with pytest.raises(
                TransportError, match=r"^the renewal was cut off: its event loop or thread ended$"
            ):
                await waiting
            assert (await session.refresh()).id in fake.live_tokens()

    asyncio.run(main())


async def test_a_cancelled_request_gives_its_turn_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both while the service holds it and while it is queued."""
    monkeypatch.setattr(queue, "MAX_CONNECTIONS", 1)
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
    """The slot goes to the next request in the queue."""
    turns = queue.AsyncRequestQueue(1)
    await turns.acquire(None)
    scope = anyio.CancelScope()

    async def first() -> None:
        with scope:
            await turns.acquire(None)
            turns.release()

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await async_idle()
            tasks.start_soon(turns.acquire, None)
            await async_idle()
            turns.release()
            scope.cancel()


async def test_a_cancelled_block_gives_the_lock_of_a_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not only when the garbage collector runs."""

    def keep(_: object) -> None:
        """Release nothing."""

    monkeypatch.setattr(filelock.BaseFileLock, "__del__", keep)
    store = AsyncFileTokenStore(tmp_path / "session.json", lock_timeout=0.05)
    with anyio.CancelScope() as scope:
        async with store.lock():
            scope.cancel()
            await anyio.sleep_forever()
    async with store.lock():
        pass
