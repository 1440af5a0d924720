"""The threads of `service_sync`, and the event loop that works for them: bounds, and both ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import sniffio

from koyeb_session import (
    SessionClient,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session._concurrency.runtime import state_lock
from koyeb_session._concurrency.threads.deadlines import ends, within
from koyeb_session._fastapi import bridge, mirror
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, Background, async_until, in_child, until
from ..interrupted import Interrupting, fail
from ..support import PASSWORDS, operations
from .conftest import BOTH_LOOPS

anyio_backend = BOTH_LOOPS
LOOPS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
value: ContextVar[str] = ContextVar("value", default="of nobody")


@pytest.fixture(autouse=True)
def _no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a thread wait no longer than its deadline, and look often whether the loop runs."""
    monkeypatch.setattr(mirror, "_LATE", 0.0)
    monkeypatch.setattr(bridge, "PATROL", 0.01)


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Tell when a thread has put its call into the queue of the event loop."""
    posted, wait = threading.Event(), bridge.LoopCall[Any].wait

    def tell(call: bridge.LoopCall[Any], seconds: float) -> bool:
        posted.set()
        return wait(call, seconds)

    monkeypatch.setattr(bridge.LoopCall, "wait", tell)
    return posted


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a thread wait for as long as a busy machine needs."""
    monkeypatch.setattr(mirror, "_LATE", PATIENCE)


@pytest.fixture
def sessions(fake: FakeKoyeb, clock: FakeClock) -> KoyebSessions:
    """Configure sessions on a service."""
    return KoyebSessions(
        transport=fake.transport, credentials=PASSWORDS, timeout=PATIENCE, clock=clock
    )


@contextlib.contextmanager
def running(sessions: KoyebSessions, backend: str) -> Generator[SessionClient]:
    """Run sessions in an event loop of another thread, and give the blocking one."""
    with (
        anyio.from_thread.start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(sessions.lifespan()),
    ):
        yield portal.call(sessions.service_sync)


def outcome_of(call: Callable[[], object]) -> object:
    """Give the result of a call, or its error."""
    try:
        return call()
    except Exception as exc:  # noqa: BLE001 - the caller looks at it
        return exc


async def in_thread(call: Callable[[], object]) -> Any:
    """Call a function in a thread, and give its result or its error."""
    return await anyio.to_thread.run_sync(outcome_of, call)


@pytest.mark.blocks_loop
async def test_refused_call_in_the_event_loop_does_the_loop_no_harm(
    sessions: KoyebSessions, fake: FakeKoyeb
) -> None:
    """Catches steps of a coroutine by hand: trio's task is then woken by the work of another."""
    gate = Gate()
    fake.fail("login", Fault(gate=gate))
    async with sessions.lifespan():
        blocking = await sessions.service_sync()
        with pytest.raises(StoreError, match="use service"):
            blocking.current_token()
        await gate.await_arrived()  # the background task signs in
        with anyio.move_on_after(0.1) as waiting:
            await anyio.sleep(PATIENCE)
        assert waiting.cancelled_caught
        gate.open()
        token = await (await sessions.service()).current_token()
        assert blocking.current_token() == token
    assert operations(fake) == ["login"]


@pytest.mark.blocks_loop
async def test_thread_waits_no_longer_than_its_time_for_a_blocked_event_loop(
    sessions: KoyebSessions,
) -> None:
    """Otherwise an `async def` that waits for the thread hangs for ever; the work is done later."""
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        await service.current_token()
        outcomes: list[object] = []
        sign_out = partial(blocking.logout, timeout=0.05)
        thread = threading.Thread(target=lambda: outcomes.append(outcome_of(sign_out)))
        thread.start()
        thread.join(PATIENCE)
        (error,) = outcomes
        assert isinstance(error, TransportTimeoutError)
        assert "within 0.05 s" in str(error)
        assert "`async def`" in str(error)
        assert service.token is not None
        await async_until(lambda: service.token is None)


async def test_thread_that_is_abandoned_has_its_result(
    sessions: KoyebSessions, fake: FakeKoyeb, patient: None
) -> None:
    """A cancel scope around a thread does not reach the work: the event loop has not ended."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    outcomes: list[object] = []
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        await service.current_token()
        async with anyio.create_task_group() as tasks:

            async def leave() -> None:
                await gate.await_arrived()
                tasks.cancel_scope.cancel()

            tasks.start_soon(leave)
            await anyio.to_thread.run_sync(
                lambda: outcomes.append(outcome_of(blocking.refresh)), abandon_on_cancel=True
            )
        gate.open()
        await async_until(lambda: bool(outcomes))
        assert outcomes == [service.token]


@LOOPS
def test_late_401_is_told_that_the_session_is_closed(sessions: KoyebSessions, backend: str) -> None:
    """A request that is refused after the end of the application fails as with any session."""
    with running(sessions, backend) as blocking:
        blocking.current_token()
        request = httpx.Request("GET", "https://app.koyeb.com/v1/apps")
        flow = blocking.auth.sync_auth_flow(request)
        next(flow)
    with pytest.raises(RuntimeError, match="session client is closed"):
        flow.send(httpx.Response(401, request=request))


def test_thread_is_told_when_its_event_loop_no_longer_runs(
    sessions: KoyebSessions, posted: threading.Event
) -> None:
    """Catches a wait for ever: for a loop that has stopped, and for one that stops meanwhile."""
    loop = asyncio.new_event_loop()
    life = sessions.lifespan()
    loop.run_until_complete(life.__aenter__())
    blocking = loop.run_until_complete(sessions.service_sync())
    with pytest.raises(TransportError, match="event loop ended"):
        blocking.refresh()
    blocking.keep_current()
    posted.clear()
    with Background() as background:

        def stop() -> None:
            job = background.start(blocking.refresh)
            jobs.append(job)
            posted.wait(PATIENCE)  # now its call is in the queue of this loop
            loop.stop()

        jobs: list[Any] = []
        loop.call_soon(stop)
        loop.run_forever()
        with pytest.raises(TransportError, match="event loop ended"):
            jobs[0].result()
    loop.run_until_complete(life.__aexit__(None, None, None))
    loop.close()


@LOOPS
def test_child_of_a_fork_is_told_that_it_has_no_event_loop(
    sessions: KoyebSessions, backend: str
) -> None:
    """The copy of an event loop looks as if it ran."""
    with running(sessions, backend) as blocking:
        blocking.current_token()

        def is_told() -> bool:
            with pytest.raises(TransportError, match="event loop ended"):
                blocking.refresh()
            return True

        assert in_child(is_told)


@pytest.mark.blocks_loop
@on_asyncio
async def test_thread_is_told_when_its_work_is_cancelled_before_its_first_step(
    sessions: KoyebSessions, posted: threading.Event
) -> None:
    """Some programs cancel all tasks of their event loop, which then runs on."""
    loop = asyncio.get_running_loop()
    async with sessions.lifespan():
        blocking = await sessions.service_sync()
        with Background() as background:
            job = background.start(blocking.logout)
            posted.wait(PATIENCE)  # now its call is the next thing in the queue of this loop
            others = asyncio.all_tasks()
            loop.call_soon(lambda: [it.cancel() for it in asyncio.all_tasks() - others])
            await async_until(lambda: job.done)
        with pytest.raises(TransportError, match="cut off"):
            job.result()


@LOOPS
def test_call_inside_a_change_does_not_wait(
    sessions: KoyebSessions, fake: FakeKoyeb, backend: str
) -> None:
    """A finalizer that interrupts a change would keep the event loop from going on, for ever."""
    with running(sessions, backend) as blocking:
        old, new = blocking.current_token(), fake.issue_token()
        for renew in (blocking.refresh, blocking.keep_current):
            with state_lock, pytest.raises(TransportError, match="try again once"):
                renew()
        with state_lock, pytest.raises(TransportError, match="the new session begins once"):
            blocking.use_token(new)
        until(lambda: blocking.token != old)
        with state_lock, pytest.raises(TransportError, match="logout: it goes on once"):
            blocking.logout()
        until(lambda: blocking.token is None)
    assert "refresh" not in operations(fake)


async def test_thread_is_told_of_an_error_of_the_users(fake: FakeKoyeb) -> None:
    """The exception of a broken transport comes out in the thread as it is."""
    transport = Interrupting(fake, "request", fail)
    sessions = KoyebSessions(transport=transport, credentials=PASSWORDS, timeout=PATIENCE)
    async with sessions.lifespan():
        blocking = await sessions.service_sync()
        error = await in_thread(blocking.refresh)
    assert type(error) is RuntimeError


async def test_event_loop_works_in_the_context_of_the_thread(
    fake: FakeKoyeb, clock: FakeClock, patient: None, anyio_backend: str
) -> None:
    """A tracer finds its span there; the thread's deadline and event loop do not count there."""
    seen: list[object] = []

    async def ask() -> str:
        await anyio.lowlevel.checkpoint()
        seen.extend([value.get(), ends.get()])
        return fake.issue_token()

    def call(blocking: SessionClient) -> Token:
        value.set("of the thread")
        sniffio.current_async_library_cvar.set({"asyncio": "trio"}.get(anyio_backend, "asyncio"))
        return within(PATIENCE, blocking.refresh)

    sessions = KoyebSessions(transport=fake.transport, credentials=ask, clock=clock)
    async with sessions.lifespan():
        service, blocking = await sessions.service(), await sessions.service_sync()
        first = await service.current_token()
        seen.clear()
        assert await in_thread(partial(call, blocking)) == service.token != first
    assert seen == ["of the thread", float("inf")]
