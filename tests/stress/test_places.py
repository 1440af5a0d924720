"""One client, in event loops that come and go, and in processes that part: pitfalls 18 and 20."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from typing import Any, Final

import anyio
import httpx
import pytest
import trio

from koyeb_session import (
    AsyncSessionClient,
    PasswordCredentials,
    SessionClient,
    TransportError,
)
from koyeb_session._async.http import queue
from koyeb_session.stores import AsyncMemoryTokenStore, MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, Background, arrived, async_arrived, async_gather, until
from ..soak import SOAK
from ..support import count, inside
from .scenario import EMAIL, LIFE, PASSWORD, arguments

pytestmark = [
    # A loop that has ended takes its connections along; nobody is left who could close them.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in.*:pytest.PytestUnraisableExceptionWarning"
    ),
    # Python 3.12 and later warn of every fork beside a thread, and the service is one.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

CHILDREN: Final = 8 if SOAK else 3
REQUESTS: Final = 15
WATCHDOG: Final = 60
"""Seconds after which a child that hangs is ended."""
HARD: Final = LIFE - timedelta(seconds=20)

Work = Callable[[], Coroutine[Any, Any, object]]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Have the connections that died in a test go before the next one."""
    yield
    for _ in range(3):  # a finalizer may keep some for the next time
        gc.collect()


# Event loops


@pytest.mark.pitfall(18)
def test_client_works_in_one_loop_after_another(fake: FakeKoyeb, clock: FakeClock) -> None:
    """`asyncio.run` twice, trio, asyncio; catches a lock or a connection of the first loop."""
    with fake.serve() as url:
        store = AsyncMemoryTokenStore()
        session = AsyncSessionClient(store=store, **arguments(fake, clock, base_url=url))

        async def use() -> None:
            clock.advance(HARD)
            ask = partial(session.http.get, "/v1/apps")
            assert [answer.status_code for answer in await async_gather(*[ask] * 5)] == [200] * 5
            await session.refresh()

        asyncio.run(use())
        asyncio.run(use())
        trio.run(use)
        asyncio.run(use())
        asyncio.run(session.aclose())
    assert fake.exchanges() == 8
    assert {request.operation for request in fake.requests} == {"refresh", "apps"}


def end_closed(main: Work) -> None:
    """Run a loop, and close it with its tasks pending."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()


def end_interrupted(main: Work) -> None:
    """Interrupt a loop, and leave it for dead."""
    loop = asyncio.new_event_loop()

    async def interrupted() -> None:
        await main()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(interrupted())
    loop.close()


def end_run(main: Work) -> None:
    """Let `asyncio.run` end, which cancels the rest."""
    asyncio.run(main())


ENDS: Final = [end_closed, end_run, end_interrupted, trio.run]
"""Ends of a loop; `trio.run` cancels its system tasks."""


@pytest.mark.pitfall(18)
@pytest.mark.parametrize("first", ["asyncio", "trio"])
@pytest.mark.parametrize("second", ["asyncio", "trio"])
def test_loops_that_run_at_once_share_one_exchange(
    fake: FakeKoyeb, clock: FakeClock, first: str, second: str
) -> None:
    """Catches two refreshes of one token, which end the session."""
    token = fake.issue_token()
    session = AsyncSessionClient(**arguments(fake, clock, transport=fake.transport, token=token))
    fake.fail("refresh", Fault(gate=(gate := Gate()), hold="reply"))
    with Background() as background:
        leader = background.start(partial(anyio.run, session.refresh, backend=first))
        arrived(gate)
        follower = background.start(partial(anyio.run, session.refresh, backend=second))
        until(lambda: inside(session).keeper.task._done._elsewhere)
        gate.open()
        assert follower.result() == leader.result()
    assert fake.exchanges() == 1


@pytest.mark.pitfall(18)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("hold", ["request", "reply"])
@pytest.mark.parametrize("end", ENDS)
def test_client_works_after_a_loop_that_died_in_mid_flight(
    fake: FakeKoyeb, clock: FakeClock, end: Callable[[Work], None], hold: Any
) -> None:
    """A flight, and the store's lock, die with the loop; catches waiting for a dead event."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold=hold))
    session = AsyncSessionClient(
        store=AsyncMemoryTokenStore(),
        credentials=PasswordCredentials(EMAIL, PASSWORD),
        **arguments(fake, clock, transport=fake.transport),
    )
    clock.advance(timedelta(hours=20))

    async def leave() -> None:
        assert (await session.http.get("/v1/apps")).status_code == 200  # the soft window
        await gate.await_arrived()

    async def use() -> None:
        async with asyncio.timeout(WATCHDOG):
            clock.advance(HARD - timedelta(hours=20))
            assert (await session.http.get("/v1/apps")).status_code == 200
            await session.refresh()
            await session.aclose()

    end(leave)
    asyncio.run(use())
    # A token that the service had not seen yet is exchanged again; of a lost reply, only a new
    # sign-in helps.
    assert count(fake, "login") == (hold == "reply")


@pytest.mark.parametrize("end", ENDS)
def test_client_works_after_a_loop_that_died_with_all_turns(
    fake: FakeKoyeb, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, end: Callable[[Work], None]
) -> None:
    """A turn that nobody released died with its loop; catches a queue that outlives it."""
    monkeypatch.setattr(queue, "MAX_CONNECTIONS", 1)
    with fake.serve() as url:
        session = AsyncSessionClient(**arguments(fake, clock, base_url=url))
        request = session.http.build_request("GET", "/v1/apps")

        async def leave() -> None:
            assert (await session.http.send(request, stream=True)).status_code == 200

        async def use() -> None:
            async with asyncio.timeout(WATCHDOG):
                assert (await session.http.get("/v1/apps")).status_code == 200
                await session.aclose()

        end(leave)
        asyncio.run(use())


# Forks


def forked(work: Callable[[], object]) -> ForkProcess:
    """Fork a child that does some work, and ends with this process at the latest."""
    child = get_context("fork").Process(target=work, daemon=True)
    child.start()
    return child


def reap(children: list[ForkProcess]) -> None:
    """Wait for the children; each has to have done all of its work."""
    for child in children:
        child.join(WATCHDOG)
        if child.is_alive() and child.pid:
            os.kill(child.pid, signal.SIGABRT)  # it says where it hangs: pytest has `faulthandler`
    assert [child.exitcode for child in children] == [0] * len(children)


def check(response: httpx.Response, name: str) -> None:
    """Check that a reply is the one to this process's own request."""
    assert response.status_code == 200
    assert response.json()["app"]["name"] == name


def names() -> Iterator[str]:
    """Give names that no other process and no other request has."""
    return (f"{os.getpid()}-{n}" for n in itertools.count())


def send(session: SessionClient) -> None:
    """Send requests, each of which the reply has to echo; renew in between."""
    for n, name in zip(range(REQUESTS), names(), strict=False):
        check(session.http.post("/v1/apps", json={"name": name}), name)
        if n % 5 == 0:
            session.refresh()


async def async_send(session: AsyncSessionClient) -> None:
    """Send requests, many at once, each of which the reply has to echo; renew in between."""

    async def one(name: str) -> None:
        check(await session.http.post("/v1/apps", json={"name": name}), name)

    fresh = names()
    for _ in range(REQUESTS // 5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.refresh)
            for name in itertools.islice(fresh, 5):
                tasks.start_soon(one, name)


@pytest.fixture
def keeping(clock: FakeClock) -> FakeKoyeb:
    """Give a service that keeps old tokens: processes without a store have one each."""
    return FakeKoyeb(clock=clock, token_lifetime=LIFE, refresh="keeps")


@pytest.mark.pitfall(20)
def test_forked_children_do_not_wait_for_a_shared_task_of_the_parent(
    keeping: FakeKoyeb, clock: FakeClock
) -> None:
    """A fork while a thread holds the flight and the store; catches locks that a child inherits."""
    gate = Gate()
    keeping.fail("refresh", Fault(gate=gate))
    with (
        keeping.serve() as url,
        SessionClient(
            store=MemoryTokenStore(), **arguments(keeping, clock, base_url=url)
        ) as session,
        Background() as background,
    ):
        clock.advance(HARD)
        leader = background.start(session.refresh)
        arrived(gate)
        follower = background.start(session.current_token)
        reap([forked(lambda: send(session)) for _ in range(CHILDREN)])
        assert not leader.done
        gate.open()
        assert leader.result() == follower.result() == session.token
    assert keeping.exchanges() == 1 + CHILDREN * (REQUESTS // 5 + 1)


@pytest.mark.pitfall(18)
@pytest.mark.blocks_loop
@pytest.mark.usefixtures("no_grace")
def test_loop_that_is_blocked_keeps_no_other_one_from_renewing(
    keeping: FakeKoyeb, clock: FakeClock
) -> None:
    """It may wait for the other one, in ``thread.join()``; catches a wait for its task for good."""
    given = {"transport": keeping.transport, "timeout": 0.05}
    session = AsyncSessionClient(**arguments(keeping, clock, **given))
    keeping.fail("refresh", Fault(gate=(gate := Gate()), hold="request"))
    go = threading.Event()

    async def block() -> None:
        refreshing = asyncio.create_task(session.refresh())
        await async_arrived(gate)
        assert go.wait(PATIENCE)
        with contextlib.suppress(TransportError):
            await refreshing

    async def refresh() -> None:
        while keeping.exchanges() == 0:
            with contextlib.suppress(TransportError):
                await session.refresh()

    with Background() as background:
        blocked = background.start(lambda: asyncio.run(block()))
        arrived(gate)
        asyncio.run(refresh())
        go.set()
        gate.open()
        blocked.result()


@pytest.mark.pitfall(20)
def test_forked_child_does_not_wait_for_a_task_of_the_parents_loop(
    keeping: FakeKoyeb, clock: FakeClock
) -> None:
    """Its copy of that loop says that it runs, and never does."""
    gate = Gate()
    keeping.fail("refresh", Fault(gate=gate))
    with keeping.serve() as url, Background() as background:
        session = AsyncSessionClient(**arguments(keeping, clock, base_url=url, timeout=PATIENCE))
        leader = background.start(partial(asyncio.run, closing(session.refresh, session)))
        arrived(gate)
        reap([forked(lambda: asyncio.run(async_send(session)))])
        gate.open()
        leader.result()


async def closing(work: Work, session: AsyncSessionClient) -> None:
    """Do some work with a client, and close it."""
    await work()
    await session.aclose()


def test_forks_amid_the_work_of_threads(keeping: FakeKoyeb, clock: FakeClock) -> None:
    """Forks at any moment; catches a lock that is not taken over the fork, and a shared pool."""
    done = threading.Event()
    with (
        keeping.serve() as url,
        SessionClient(**arguments(keeping, clock, base_url=url)) as session,
    ):

        def work() -> None:
            while not done.is_set():
                send(session)
                session.on_token_change(print)()

        with Background() as background:
            jobs = [background.start(work) for _ in range(4)]
            try:
                for _ in range(4 if SOAK else 2):
                    reap([forked(lambda: send(session)) for _ in range(2)])
            finally:
                done.set()
            for job in jobs:
                job.result()
    assert {request.status for request in keeping.requests} == {200}


@pytest.mark.parametrize("inside", [True, False], ids=["in the loop", "between runs"])
def test_forked_children_have_event_loops_of_their_own(
    keeping: FakeKoyeb, clock: FakeClock, *, inside: bool
) -> None:
    """Children of a parent with a loop; catches connections that belong to the parent's."""
    backends = itertools.cycle(["asyncio"] if inside else ["asyncio", "trio"])

    async def fork() -> list[ForkProcess]:
        return fork_all()

    def fork_all() -> list[ForkProcess]:
        return [
            forked(partial(anyio.run, partial(async_send, session), backend=backend))
            for backend in itertools.islice(backends, CHILDREN)
        ]

    with keeping.serve() as url, asyncio.Runner() as runner:
        session = AsyncSessionClient(**arguments(keeping, clock, base_url=url))
        runner.run(async_send(session))
        children = runner.run(fork()) if inside else fork_all()
        runner.run(async_send(session))
        reap(children)
        runner.run(async_send(session))
        runner.run(session.aclose())
    assert {request.status for request in keeping.requests} == {200}
