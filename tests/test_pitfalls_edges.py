"""
The pitfalls that have to do with cancellation, event loops, threads, forks and imports.

The others are in ``_async/test_pitfalls.py``, for both halves.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trio

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    RetryPolicy,
    SessionClient,
    Token,
    TransportError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from .concurrency import PATIENCE, Background, arrived, async_arrived, async_idle, idle

ME = "me@example.com"
PASSWORD = "correct horse"
DAY = timedelta(hours=24)


@pytest.fixture
def clock() -> FakeClock:
    """Make a clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def fake(clock: FakeClock) -> FakeKoyeb:
    """Make a service whose tokens live for a day, and die when they are refreshed."""
    return FakeKoyeb(clock=clock)


@pytest.fixture
def arguments(fake: FakeKoyeb, clock: FakeClock) -> dict[str, Any]:
    """Make the arguments of a client of the service that waits for nothing in vain."""
    return {
        "transport": fake.transport,
        "clock": clock,
        "retry_policy": RetryPolicy(delay=0),
        "token": fake.issue_token(),
    }


# 2: a flow that is dropped without its end


async def test_pitfall_02_a_dropped_flow_leaves_nothing_behind(
    fake: FakeKoyeb, clock: FakeClock, arguments: dict[str, Any]
) -> None:
    """Kills ``async with lock: yield``: a flow that only the collector ends holds it forever."""
    async with AsyncSessionClient(**arguments) as session:
        clock.advance(DAY - timedelta(seconds=1))
        flow = session.auth.async_auth_flow(httpx.Request("GET", "https://app.koyeb.com/v1/apps"))
        await flow.__anext__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # trio's, of the dropped generator
            del flow
            gc.collect()
            await async_idle()
        with anyio.fail_after(PATIENCE):
            assert (await session.http.get("/v1/apps")).status_code == 200


# 3: the leader is cancelled and the rotation lost


@pytest.mark.parametrize("hold", ["request", "reply"])
async def test_pitfall_03_a_cancelled_leader_loses_nothing(
    fake: FakeKoyeb, arguments: dict[str, Any], hold: Any
) -> None:
    """Kills a refresh in the caller's own task: its cancellation loses a token that was issued."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold=hold))
    store = AsyncMemoryTokenStore()
    tokens: list[Token] = []
    async with AsyncSessionClient(**arguments, store=store) as session:

        async def follow() -> None:
            tokens.append(await session.refresh())

        async with anyio.create_task_group() as followers:
            async with anyio.create_task_group() as leaders:
                leaders.start_soon(session.refresh)
                await async_arrived(gate)
                followers.start_soon(follow)
                followers.start_soon(follow)
                await async_idle()
                leaders.cancel_scope.cancel()
            assert not gate.is_open  # the leader has returned, but the renewal is still running
            gate.open()
        assert session.token is not None
        assert tokens == [session.token] * 2
        assert fake.live_tokens() == [session.token.id]
        assert await store.load() == session.token
    assert fake.exchanges() == 1


async def test_pitfall_03_a_cancelled_follower_disturbs_nobody(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Kills ``await shared_task``: one cancelled waiter cancels the task for all."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    tokens: list[Token] = []
    async with AsyncSessionClient(**arguments) as session:

        async def lead() -> None:
            tokens.append(await session.refresh())

        async with anyio.create_task_group() as leaders:
            leaders.start_soon(lead)
            await async_arrived(gate)
            with anyio.move_on_after(0.01) as scope:
                await session.refresh()
            assert scope.cancelled_caught
            gate.open()
        assert tokens == [session.token]


class Endless(httpx.AsyncBaseTransport):
    """A service that keeps its connection busy forever: no single read takes long."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Never answer."""
        await anyio.sleep_forever()
        raise AssertionError


async def test_pitfall_03_an_exchange_has_a_total_deadline(arguments: dict[str, Any]) -> None:
    """Kills a renewal that limits only single reads: cancelled by all, it would run on."""
    arguments["transport"] = Endless()
    async with AsyncSessionClient(**arguments, timeout=0.05) as session:
        with anyio.move_on_after(0) as scope:
            await session.refresh()
        assert scope.cancelled_caught
        shared = session._keeper._task
        assert shared is not None
        assert isinstance(await shared.join(PATIENCE), TransportError)
        assert not shared.alive


# 16: an observer is interrupted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_pitfall_16_an_interrupted_listener_leaves_the_rest_to_the_next(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Kills a "delivering" flag that outlives its task: no listener would be called again."""
    heard: list[Token | None] = []
    others: list[Token | None] = []

    def listener(token: Token | None) -> None:
        heard.append(token)
        if len(heard) == 1:
            sys.exit("it ends the thread that tells")

    with SessionClient(**arguments) as session:
        session.on_token_change(listener)
        session.on_token_change(others.append)
        first = session.refresh()
        idle()
        second = session.refresh()
        idle()
    assert heard == [first, second]
    assert others == [second]


# 18: event loops come and go


def test_pitfall_18_one_client_works_in_one_loop_after_another(
    fake: FakeKoyeb,
    clock: FakeClock,
    arguments: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Kills locks and events made once: in a second loop they raise, or wait for the first."""
    session = AsyncSessionClient(**arguments, store=AsyncMemoryTokenStore())
    heard: list[Token | None] = []
    session.on_token_change(heard.append)

    async def use() -> None:
        clock.advance(DAY - timedelta(seconds=1))
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(session.http.get, "/v1/apps")
        await session.refresh()
        await async_idle()

    asyncio.run(use())
    asyncio.run(use())
    trio.run(use)
    trio.run(use)
    asyncio.run(use())
    assert fake.exchanges() == len(heard) == 10
    assert {request.status for request in fake.requests} == {200}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    asyncio.run(session.aclose())


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # each loop leaves its connections
def test_pitfall_18_connections_are_those_of_the_loop(fake: FakeKoyeb, clock: FakeClock) -> None:
    """Kills a pool that is kept from a loop that has ended: its connections hang or raise."""
    with fake.serve() as url:
        session = AsyncSessionClient(
            base_url=url, clock=clock, token=fake.issue_token(), retry_policy=RetryPolicy(delay=0)
        )

        async def use() -> None:
            assert (await session.http.get("/v1/apps")).status_code == 200
            await session.refresh()

        asyncio.run(use())
        asyncio.run(use())
        trio.run(use)
        asyncio.run(use())
        asyncio.run(session.aclose())
        gc.collect()
    assert fake.exchanges() == 4


@pytest.mark.parametrize("second", ["asyncio", "trio"])
def test_pitfall_18_a_loop_that_dies_under_an_exchange_blocks_nobody(
    fake: FakeKoyeb, arguments: dict[str, Any], second: str
) -> None:
    """Kills a wait for a shared task, or a lock, whose loop has ended."""
    session = AsyncSessionClient(**arguments, store=AsyncMemoryTokenStore())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="request"))

    async def die() -> None:
        with anyio.move_on_after(0):
            await session.refresh()
        await async_arrived(gate)

    async def live() -> Token:
        with anyio.fail_after(PATIENCE):
            return await session.refresh()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(die())
    loop.close()  # unlike `asyncio.run`, this does not even cancel what is left
    token = asyncio.run(live()) if second == "asyncio" else trio.run(live)
    assert fake.live_tokens() == [token.id]
    asyncio.run(session.aclose())


# 19: the loop is blocked, or a thread is spent on each waiter


@asynccontextmanager
async def probe() -> AsyncGenerator[list[float]]:
    """Measure how long the event loop is away at a time."""
    gaps: list[float] = []

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await anyio.sleep(0.001)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        yield gaps
        tasks.cancel_scope.cancel()


def step(work: Awaitable[Any]) -> Any:
    """Take a coroutine to its end, or fail where it gives way."""
    coroutine: Any = work.__await__()
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it gave way")


def test_pitfall_19_a_fresh_token_costs_no_turn_of_the_loop(arguments: dict[str, Any]) -> None:
    """Kills a lock on the hot path: each request gives way at least once, and queues."""
    session = AsyncSessionClient(**arguments)
    request = httpx.Request("GET", "https://app.koyeb.com/v1/apps")
    flow = session.auth.async_auth_flow(request)
    signed: httpx.Request = step(flow.__anext__())
    assert session.token is not None
    assert signed.headers["authorization"] == f"Bearer {session.token.id}"
    with pytest.raises(StopAsyncIteration):
        step(flow.asend(httpx.Response(200, request=request)))
    assert step(session.current_token()) is session.token
    asyncio.run(session.aclose())


async def test_pitfall_19_a_provider_that_blocks_does_not_block_the_loop(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Kills ``token = credentials()`` on the loop: a slow vault would block every task."""
    go = threading.Event()
    calls: list[None] = []

    def provider() -> str:
        calls.append(None)
        assert go.wait(PATIENCE)
        return fake.issue_token()

    arguments["token"] = None
    async with AsyncSessionClient(**arguments, credentials=provider) as session:
        async with probe() as gaps, anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(session.current_token)
            while len(gaps) < 20:  # noqa: ASYNC110 - the loop has to turn
                await anyio.sleep(0.001)
            assert calls == [None]
            go.set()
        assert session.token is not None
    assert calls == [None]
    assert fake.requests == []


async def test_pitfall_19_waiters_cost_no_threads(
    fake: FakeKoyeb, clock: FakeClock, arguments: dict[str, Any]
) -> None:
    """Kills a thread for each waiter: 1,000 callers starve the pool."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    before = threading.active_count()
    async with AsyncSessionClient(**arguments) as session:
        clock.advance(DAY - timedelta(seconds=1))
        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(session.current_token)
            await async_arrived(gate)
            assert threading.active_count() <= before
            gate.open()
    assert fake.exchanges() == 1


# 20: threads and forks


def test_pitfall_20_threads_share_one_exchange(
    fake: FakeKoyeb, clock: FakeClock, arguments: dict[str, Any]
) -> None:
    """Kills check-then-refresh without a lock: threads that start together refresh 32 times."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    with SessionClient(**arguments) as session, Background() as background:
        clock.advance(DAY - timedelta(seconds=1))
        jobs = [background.start(lambda: session.http.get("/v1/apps")) for _ in range(32)]
        arrived(gate)
        background.settled()
        gate.open()
        assert [job.result().status_code for job in jobs] == [200] * 32
    assert fake.exchanges() == 1


def test_pitfall_20_a_fork_during_an_exchange_leaves_the_child_free(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Kills a lock that is inherited locked: the child waits for a thread that it does not have."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    with SessionClient(**arguments) as session, Background() as background:
        job = background.start(session.refresh)
        arrived(gate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks while threads run
            child = os.fork()
        if child == 0:
            status = 1
            try:
                # The service is a copy, too: it has issued a token that the child never got.
                fake.revoke_all()
                token = session.use_token(fake.issue_token())
                renewed = session.refresh()
                status = 0 if [renewed.id] == fake.live_tokens() and token != renewed else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        gate.open()
        assert job.result() is session.token


def test_pitfall_20_an_interrupted_caller_keeps_no_thread_waiting(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Kills a renewal in its first caller's thread: Ctrl-C there would fail all others."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with SessionClient(**arguments) as session, Background() as background:

            def strike() -> None:
                arrived(gate)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            background.start(strike)
            with pytest.raises(KeyboardInterrupt):
                session.refresh()
            follower = background.start(session.refresh)
            background.settled()
            assert not follower.done
            gate.open()
            assert follower.result() is session.token
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert fake.exchanges() == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_pitfall_20_an_exchange_that_ends_its_thread_keeps_no_thread_waiting(
    fake: FakeKoyeb, arguments: dict[str, Any]
) -> None:
    """Kills a shared task that only a result ends: a transport with `sys.exit` would hang all."""
    gate = Gate()

    class Leaving(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            gate.pass_through(PATIENCE)
            sys.exit("it ends the thread of the exchange")

    arguments["transport"] = Leaving()
    with SessionClient(**arguments) as session, Background() as background:
        jobs = [background.start(session.refresh) for _ in range(3)]
        arrived(gate)
        background.settled()
        gate.open()
        for job in jobs:
            with pytest.raises(TransportError, match="cut off"):
                job.result()
    idle()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_pitfall_20_a_copy_is_refused(
    arguments: dict[str, Any], copied: Callable[[object], object]
) -> None:
    """Kills copies that share half of the state, or die on a lock: the error says what to do."""
    for session in (SessionClient(**arguments), AsyncSessionClient(**arguments)):
        with pytest.raises(TypeError, match="make a client in each process"):
            copied(session)


# 25: the ground moves


def test_pitfall_25_majors_are_capped_where_they_are_announced() -> None:
    """Kills open bounds: a fresh install breaks on the day of a new major version."""
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
    (httpx,) = [need for need in pyproject["project"]["dependencies"] if "httpx" in need]
    assert "<1" in httpx


def test_pitfall_25_the_core_needs_no_extra() -> None:
    """Kills an optional import at the top: without the framework, nothing could be imported."""
    code = (
        "import sys\n"
        "for name in ('fastapi', 'httpx2', 'koyeb', 'redis', 'keyring', 'filelock', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "import koyeb_session\n"
        "koyeb_session.SessionClient().close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
