"""Cases that only the async half has: cancelled callers, and functions of users on the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import filelock
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    NotSignedInError,
    SessionClient,
    Token,
    TransportError,
)
from koyeb_session._async.http import queue
from koyeb_session._async.stores import file
from koyeb_session._concurrency.event_loop import shared_task
from koyeb_session._concurrency.runtime import current_loop, current_process
from koyeb_session.stores import AsyncFileTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ._async.doubles import Troubled
from .concurrency import PATIENCE, AsyncBackground, AsyncJob, async_arrived, async_idle, async_until
from .support import DAY, ME, PASSWORD, PASSWORDS, connected, inside, raising


async def cancelled_at(gate: Gate, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Call, and cancel the caller once the request stands at the gate."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await async_arrived(gate)
        tasks.cancel_scope.cancel()


async def test_a_body_that_was_read_is_closed_although_its_reader_is_cancelled() -> None:
    """Catches a reply, read whole and with a token, that is lost as its connection is closed."""
    closed: list[bool] = []
    scope = anyio.CancelScope()

    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"token"
            scope.cancel()

        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()
            closed.append(True)

    async def release() -> None:
        closed.append(False)

    with scope:
        body = [chunk async for chunk in queue._AsyncReleasingStream(Stream(), release)]
        assert body == [b"token"]
    assert closed == [True, False]


async def test_a_cancelled_logout_goes_on(fake: FakeKoyeb, clock: FakeClock) -> None:
    """The session ends at once, and the token is still revoked and deleted."""
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


async def test_a_cancelled_login_is_saved_once_the_token_was_there(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """The store holds the session's token, even if a caller is cancelled during the save."""
    store = Troubled()
    gate = store.gates["save"] = Gate()
    async with connected(fake, clock, store=store) as session:
        await cancelled_at(gate, lambda: session.login(ME, PASSWORD))
        assert session.token is not None
        assert await store.load() is None
        gate.open()
    assert await store.load() == session.token


async def test_a_cancelled_listener_leaves_the_rest_to_the_next(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """After a cancelled delivery, the next change delivers the pending ones, in order."""
    heard: list[str] = []
    async with connected(fake, clock) as session:
        inside(session).keeper.listen(heard.remove)  # it raises, as it is told of no text
        listeners = inside(session).listeners

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


@pytest.mark.parametrize("backend", ["asyncio", "trio", "blocking"])
@pytest.mark.parametrize(
    ("credentials", "cause"),
    [
        (restart, "what it waited for was cancelled"),
        (lambda: asyncio.run(restart()), "it raised CancelledError"),
        (lambda: sys.exit("no vault"), "it raised SystemExit"),
    ],
    ids=["restart", "restart in a thread", "the end of a program"],
)
def test_credentials_that_end_more_than_themselves_give_no_token(
    credentials: Callable[[], Any], cause: str, backend: str
) -> None:
    """The renewal fails with an error of this package, no caller hangs, and the loop goes on."""
    if credentials is restart and backend != "asyncio":
        pytest.skip("a task of asyncio's")
    fake, clock = FakeKoyeb(), FakeClock()

    async def main() -> None:
        async with connected(fake, clock, credentials=credentials) as session:
            for ask in (session.current_token, session.refresh):
                with pytest.raises(NotSignedInError, match="gave no token") as caught:
                    await ask()
                assert str(caught.value.__cause__) == cause

    if backend == "blocking":
        with SessionClient(transport=fake.transport, credentials=credentials) as session:
            for ask in (session.current_token, session.refresh):
                with pytest.raises(NotSignedInError, match="gave no token") as caught:
                    ask()
                assert str(caught.value.__cause__) == cause
    else:
        anyio.run(main, backend=backend)


@pytest.mark.parametrize("waits", [True, False])
def test_hold_whose_task_is_cancelled_is_not_ready(
    fake: FakeKoyeb, clock: FakeClock, *, waits: bool
) -> None:
    """Cancelling all tasks of a loop releases the lock: no caller goes on as if it had it."""
    store = AsyncMemoryTokenStore()

    async def main() -> None:
        async with connected(fake, clock, store=store) as session, AsyncExitStack() as others:
            before = set(shared_task._tasks)
            if waits:
                await others.enter_async_context(store.lock())
            hold = inside(session).persistence.hold()
            await async_until(lambda: hold._task.is_running if waits else not hold.not_ready)
            for task in shared_task._tasks - before:
                task.cancel()
            assert await hold.do(raising(AssertionError()), PATIENCE) is False
            assert str(hold.not_ready) == "the token store's lock was lost"
            assert not hold.is_held_elsewhere
            assert hold.cannot_be_had is waits

    asyncio.run(main())


async def test_async_credentials_are_awaited_here(fake: FakeKoyeb, clock: FakeClock) -> None:
    """An async provider runs on the event loop, and may await anything."""

    async def provider() -> str:
        await anyio.lowlevel.checkpoint()
        return fake.issue_token()

    async with connected(fake, clock, credentials=provider) as session:
        assert (await session.http.get("/v1/apps")).status_code == 200


def test_an_exchange_whose_task_is_cancelled_from_outside_is_told(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """
    Cancelling all tasks of a loop ends the renewal, and the next one.

    Catches callers that wait, or begin anew, forever.
    """

    async def main() -> None:
        fake.fail("refresh", Fault(gate=Gate(), hold="request"), times=2)
        async with connected(fake, clock, token=fake.issue_token()) as session:
            before = set(shared_task._tasks)
            waiting = asyncio.create_task(session.refresh())
            for _ in range(2):
                await async_idle()
                for task in shared_task._tasks - before:
                    task.cancel()
            with pytest.raises(
                TransportError, match=r"^the renewal was cut off: its event loop or thread ended$"
            ):
                await waiting
            assert (await session.refresh()).id in fake.live_tokens()

    asyncio.run(main())


@pytest.mark.blocks_loop
def test_caller_begins_a_renewal_anew_when_it_ends_with_another_event_loop(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """The next caller would begin one, too; catches an error although the credentials work."""
    gate, begun, go = Gate(), threading.Event(), threading.Event()
    fake.fail("login", Fault(gate=gate, hold="request"))
    session = AsyncSessionClient(transport=fake.transport, clock=clock, credentials=PASSWORDS)

    async def begin() -> None:
        waiting = asyncio.create_task(session.current_token())
        await async_arrived(gate)
        begun.set()
        await anyio.to_thread.run_sync(go.wait, PATIENCE)
        assert not waiting.done()  # the end of this event loop cancels it, and the renewal

    async def join() -> Token:
        async with session:
            waiting = asyncio.create_task(session.current_token())
            await async_idle()
            go.set()
            return await waiting

    other = threading.Thread(target=asyncio.run, args=[begin()])
    other.start()
    assert begun.wait(PATIENCE)
    try:
        assert asyncio.run(join()).id in fake.live_tokens()
    finally:
        go.set()
        other.join(PATIENCE)


def test_a_transport_that_waits_for_a_cancelled_task_fails_once(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Catches a renewal that counts as cut off, and begins again with each request."""
    tried: list[str] = []

    async def unreachable(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/refresh"):
            return await fake.transport.handle_async_request(request)
        tried.append(request.url.path)
        task = asyncio.create_task(anyio.sleep(PATIENCE))
        task.cancel()
        await task
        raise AssertionError

    async def main() -> None:
        transport = httpx.MockTransport(unreachable)
        token = fake.issue_token()
        async with AsyncSessionClient(transport=transport, clock=clock, token=token) as session:
            clock.advance(DAY * 0.6)
            for _ in range(5):
                assert (await session.http.get("/v1/apps")).status_code == 200
                await async_idle()
            with pytest.raises(TransportError, match="was not renewed: RuntimeError"):
                await session.refresh()

    asyncio.run(main())
    assert len(tried) == 2


async def test_a_cancelled_request_releases_its_turn(
    fake: FakeKoyeb, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both while the service holds it and while it is queued."""
    monkeypatch.setattr(queue, "MAX_CONNECTIONS", 1)
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


async def test_a_cancelled_block_releases_the_lock_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not only when the garbage collector runs."""
    monkeypatch.delattr(filelock.BaseFileLock, "__del__")
    store = AsyncFileTokenStore(tmp_path / "session.json", lock_timeout=0.05)
    with anyio.CancelScope() as scope:
        async with store.lock():
            scope.cancel()
            await anyio.sleep_forever()
    async with store.lock():
        pass


async def test_a_body_given_up_while_cancelled_leaves_no_connection_open(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Catches a service that goes on sending, as nobody has closed the connection."""
    with fake.serve() as url:
        async with AsyncSessionClient(
            base_url=url, token=fake.issue_token(), clock=clock
        ) as session:
            request = session.http.build_request("GET", "/v1/apps")
            response = await session.http.send(request, stream=True)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await response.aclose()
            ((transport,),) = (opened._idle for opened in inside(session).opened.values())
            assert transport._pool.connection.is_closed()


@pytest.mark.pitfall(39)
@pytest.mark.blocks_loop
def test_event_loop_ends_although_a_file_system_does_not_release_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an `asyncio.run` that never returns, as the end of a block waits without a bound."""
    go = threading.Event()
    monkeypatch.setattr(file, "_RELEASE", 0.01)

    def hang(_: object) -> None:
        go.wait(PATIENCE)

    monkeypatch.setattr(filelock.BaseFileLock, "release", hang)

    async def cut_off() -> None:
        entered = asyncio.Event()

        async def hold() -> None:
            async with AsyncFileTokenStore(tmp_path / "session.json").lock():
                entered.set()
                await asyncio.sleep(PATIENCE)

        holding = asyncio.create_task(hold())
        await entered.wait()
        assert not holding.done()  # the end of the event loop cancels it

    try:
        asyncio.run(cut_off())
        assert not go.is_set()
    finally:
        go.set()


# Callers that share an exchange


@pytest.mark.pitfall(3)
@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
@pytest.mark.parametrize("hold", ["request", "reply"])
async def test_a_cancelled_caller_loses_nothing(
    fake: FakeKoyeb, clock: FakeClock, hold: Any, *, leads: bool
) -> None:
    """Catches a refresh in the caller's own task, and a waiter that cancels the task for all."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold=hold))
    store = AsyncMemoryTokenStore()
    async with connected(fake, clock, token=fake.issue_token(), store=store) as session:
        others: list[AsyncJob[Token]] = []

        def start_other() -> None:
            others.append(background.start(session.refresh))

        async with AsyncBackground() as background:
            async with anyio.create_task_group() as tasks:
                cancelled = partial(tasks.start_soon, session.refresh)
                starts: list[Callable[[], object]] = [cancelled, start_other, start_other]
                for start in starts if leads else reversed(starts):
                    start()
                    await async_idle()
                await async_arrived(gate)
                tasks.cancel_scope.cancel()
            await async_idle()
            assert not any(job.done for job in others)  # the exchange goes on
            gate.open()
        assert [await job.result() for job in others] == [session.token] * 2
        assert fake.live_tokens() == [session.token.id]
        assert await store.load() == session.token
    assert fake.exchanges() == 1


@pytest.mark.pitfall(41)
@pytest.mark.parametrize("hangs", [False, True])
async def test_a_cancelled_block_of_a_client_waits_for_an_exchange(
    fake: FakeKoyeb, clock: FakeClock, *, hangs: bool
) -> None:
    """The end of the event loop may come next. Catches a rotated token that is lost with it."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="reply"))
    store = AsyncMemoryTokenStore()
    token, timeout = fake.issue_token(), 0.05 if hangs else PATIENCE
    async with AsyncBackground() as background:
        with anyio.CancelScope() as scope:
            async with connected(fake, clock, token=token, store=store, timeout=timeout) as session:
                background.start(session.refresh)
                await async_arrived(gate)
                scope.cancel()
                if not hangs:
                    background.start(lambda: async_opened(gate, session))
        saved = await store.load()
        gate.open()
    assert (saved is None) is hangs  # nobody waits for longer than the client's timeout
    assert saved is None or fake.live_tokens() == [saved.id]


async def async_opened(gate: Gate, session: AsyncSessionClient) -> None:
    """Open a gate once a client is closing."""
    await async_until(lambda: inside(session).state.closed)
    await async_idle()
    gate.open()


@pytest.mark.pitfall(19)
async def test_a_provider_that_blocks_does_not_block_the_loop(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Catches ``token = credentials()`` on the loop: everybody stands still with the vault."""
    go = threading.Event()
    calls: list[None] = []

    def provider() -> str:
        calls.append(None)
        assert go.wait(PATIENCE)
        return fake.issue_token()

    async with connected(fake, clock, credentials=provider) as session:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(session.current_token)
            await async_until(lambda: bool(calls))
            go.set()
        assert session.token is not None
    assert calls == [None]
    assert fake.requests == []


@pytest.mark.pitfall(19)
async def test_waiters_cost_no_threads(fake: FakeKoyeb, clock: FakeClock) -> None:
    """Catches a thread for each waiter: 1,000 callers starve the pool."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    before = set(threading.enumerate())
    async with connected(fake, clock, token=fake.issue_token()) as session:
        clock.advance(DAY - timedelta(seconds=1))
        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(session.current_token)
            await async_arrived(gate)
            assert set(threading.enumerate()) <= before
            gate.open()
    assert fake.exchanges() == 1


@pytest.mark.pitfall(37)
@pytest.mark.blocks_loop
def test_a_store_that_two_event_loops_share_has_one_lock() -> None:
    """Two loops in two threads; catches a lock of each loop, which excludes nobody."""
    store = AsyncMemoryTokenStore()
    go = threading.Event()
    held = threading.Event()

    async def hold() -> None:
        async with store.lock():
            held.set()
            await anyio.to_thread.run_sync(go.wait, PATIENCE)

    async def want() -> bool:
        with anyio.move_on_after(0.05):
            async with store.lock():
                return True
        go.set()
        with anyio.fail_after(PATIENCE):
            async with store.lock():
                return False

    other = threading.Thread(target=anyio.run, args=[hold])
    other.start()
    assert held.wait(PATIENCE)
    try:
        assert anyio.run(want) is False
    finally:
        go.set()
        other.join(PATIENCE)


@pytest.mark.blocks_loop
@pytest.mark.parametrize("first", ["asyncio", "trio"])
@pytest.mark.parametrize("second", ["asyncio", "trio"])
def test_two_event_loops_at_once_keep_their_connections(
    fake: FakeKoyeb, clock: FakeClock, first: str, second: str
) -> None:
    """Catches a connection for each request; those of an ended event loop are dropped."""
    session: Any = None

    async def open_session(url: str) -> None:
        nonlocal session
        session = AsyncSessionClient(base_url=url, token=fake.issue_token(), clock=clock)

    async def ask() -> Any:
        assert (await session.http.get("/v1/apps")).status_code == 200
        return inside(session).opened[current_process(), current_loop()]

    with fake.serve() as url, start_blocking_portal(first) as one:
        one.call(open_session, url)
        with start_blocking_portal(second) as two:
            places = [(one, one.call(ask)), (two, two.call(ask))] * 3
            assert [portal.call(ask) for portal, _ in places] == [opened for _, opened in places]
            assert [len(opened._made) for _, opened in places] == [1] * 6
            two.call(places[1][1].aclose)
        with start_blocking_portal(second) as three:
            opened = three.call(ask)
            assert [*inside(session).opened.values()] == [places[0][1], opened]
            three.call(opened.aclose)
        one.call(session.aclose)


@pytest.mark.pitfall(3)
async def test_an_exchange_has_a_total_deadline() -> None:
    """Catches an exchange that is bounded for each read only: cancelled by all, it runs on."""

    async def never(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    transport = httpx.MockTransport(never)
    async with AsyncSessionClient(token="t", transport=transport, timeout=0.05) as session:
        with anyio.move_on_after(0) as scope:
            await session.refresh()
        assert scope.cancelled_caught
        shared = inside(session).task
        assert isinstance(await shared.join(PATIENCE), TransportError)
        assert not shared.alive


async def test_a_task_that_credentials_start_waits_for_the_renewal(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """The renewal does not wait for it, so it is not told that the two wait for each other."""
    brought: list[Token] = []

    async def use() -> None:
        brought.append(await session.current_token())

    async def source() -> str:
        tasks.start_soon(use)
        await async_idle()
        return fake.issue_token()

    async with (
        connected(fake, clock, credentials=source) as session,
        anyio.create_task_group() as tasks,
    ):
        brought.append(await session.current_token())
    assert brought == [brought[0]] * 2


@pytest.mark.blocks_loop
async def test_plain_credentials_that_use_their_own_session_are_told_at_once(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """They may run an event loop in their thread, which the renewal awaits."""
    told: list[str] = []

    def source() -> str:
        try:
            asyncio.run(session.current_token())
        except TransportError as error:
            told.append(str(error))
        return fake.issue_token()

    async with connected(fake, clock, credentials=source, timeout=PATIENCE) as session:
        await session.current_token()
    assert len(told) == 1
    assert told[0].startswith("try again once this function has returned")


@pytest.mark.blocks_loop
async def test_plain_credentials_may_use_a_session_of_the_blocking_half(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """They run in a thread that the renewal awaits, and that has no event loop."""
    with SessionClient(
        transport=fake.transport, credentials=fake.issue_token, clock=clock
    ) as other:
        async with connected(fake, clock, credentials=lambda: other.current_token().id) as session:
            token = await session.current_token()
        assert token == other.token
