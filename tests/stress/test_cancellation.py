"""Cancellation at every await point: nobody's impatience costs anybody the session."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import anyio
import attrs
import httpx
import pytest

from koyeb_session import AsyncSessionClient, NotSignedInError, Token
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from .scenario import EMAIL, LIFE, PASSWORD, Scenario
from .steps import LONGEST, Caller, CancelBy, in_trio, rounds, rounds_until

Work: TypeAlias = Callable[[AsyncSessionClient], Coroutine[Any, Any, object]]

SHARED: Final = FakeKoyeb().organizations[EMAIL][1]
"""The organization that everybody belongs to."""
DELAY: Final = 4
"""
Rounds of the event loop in which a cancelled caller is back, without giving way any more.

On asyncio a scope takes one to tell its task; trio passes a checkpoint first, in two.
"""
FRESH: Final = timedelta(0)
SOFT: Final = timedelta(hours=20)
LONGEST_EXCHANGE: Final = 25
"""Rounds of the event loop that an exchange takes at most, with its store and its listener."""
HARD: Final = LIFE - timedelta(seconds=30)


async def login(session: AsyncSessionClient) -> Token:
    """Sign in again."""
    return await session.login(EMAIL, PASSWORD)


async def switch(session: AsyncSessionClient) -> Token:
    """Go over to another organization."""
    return await session.switch_organization(SHARED)


async def get(session: AsyncSessionClient) -> httpx.Response:
    """Send a request."""
    return await session.http.get("/v1/apps")


async def post(session: AsyncSessionClient) -> httpx.Response:
    """Send a request that cannot be sent twice."""

    async def body() -> AsyncGenerator[bytes]:
        yield b"{}"

    return await session.http.post("/v1/apps", content=body())


@attrs.frozen
class Call:
    """
    The task that is cancelled.

    Attributes:
        work: The call.
        age: How long the session has held its token by then.
        refused: Whether the service refuses the session's token by then, but for an exchange.
        points: How often it gives way at least, when nobody cancels it.
        ends: Whether it ends by itself.
    """

    work: Work
    age: timedelta = FRESH
    refused: bool = False
    points: int = 1
    ends: bool = True


CALLS: Final = {
    "login": Call(login, points=3),
    "refresh": Call(AsyncSessionClient.refresh),
    "switch": Call(switch, points=3),
    "switch, late": Call(switch, HARD, points=4),
    "new_session": Call(AsyncSessionClient.new_session, HARD, points=3),
    "current_token": Call(AsyncSessionClient.current_token, HARD),
    "hook, fresh": Call(get, points=2),
    "hook, soft": Call(get, SOFT, points=2),
    "hook, soft, once": Call(post, SOFT, points=3),
    "hook, hard": Call(get, HARD, points=3),
    "hook, refused": Call(get, refused=True, points=4),
    "keep_current": Call(AsyncSessionClient.keep_current, SOFT, points=2, ends=False),
}
"""Calls that leave the session signed in."""


def cancellations() -> list[CancelBy]:
    """Tell how a task of this event loop can be cancelled."""
    return [CancelBy.SCOPE] if in_trio() else list(CancelBy)


class SharedToken(Scenario):
    """A call, and three callers who need the same token as the one who is cancelled."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.age)
        self.call = call
        self.errors: list[Exception] = []
        self.statuses: list[int] = []
        self.tokens: list[Token] = []
        if call.refused:
            self.transport.refuses = self.session.token

    def new_caller(self, at: int | None = None, by: CancelBy = CancelBy.SCOPE) -> Caller:
        """Make the caller who will be cancelled."""
        return Caller(lambda: self.call.work(self.session), at=at, by=by)

    async def follow(self) -> None:
        """Need the token, in three ways at once."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._request)
            tasks.start_soon(self._token, self.session.current_token)
            tasks.start_soon(self._token, self.session.refresh)

    async def run(self, caller: Caller, *, leads: bool, after: int | None = None) -> None:
        """
        Make the call with its followers.

        Args:
            caller: The one that is cancelled.
            leads: Whether it comes before its followers.
            after: In which round of the event loop it is cancelled, unless it knows itself.
        """
        async with anyio.create_task_group() as tasks:
            for work in (caller.run, self.follow) if leads else (self.follow, caller.run):
                tasks.start_soon(work)
                await rounds(1)
            if after is not None:
                await rounds(after)
                caller.cancel()
                assert await rounds_until(lambda: caller.done) <= DELAY
            if not self.call.ends:
                await rounds(LONGEST)
                if not caller.done:
                    caller.cancel()
                    caller.reached = False
        await self.settle()

    async def check(self, caller: Caller) -> None:
        """Check that nobody but the cancelled caller has noticed anything."""
        assert caller.error is None, caller.error
        assert caller.after == 0, "a cancelled caller goes on"
        assert self.errors == []
        assert self.statuses == [200]
        assert self.transport.most <= 1
        assert (await get(self.session)).status_code == 200
        assert self.count("login") <= (self.call.work is login)
        held = self.session.token
        assert held is not None
        assert held.id in self.fake.live_tokens()
        saved = await self.store.load()
        assert saved is not None
        assert saved.id == held.id
        assert self.heard[-1] is held
        await self.session.aclose()

    async def _request(self) -> None:
        self.statuses.append((await get(self.session)).status_code)

    async def _token(self, ask: Callable[[], Coroutine[Any, Any, Token]]) -> None:
        try:
            self.tokens.append(await ask())
        except Exception as exc:  # noqa: BLE001 - looked at in the end
            self.errors.append(exc)


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
@pytest.mark.parametrize("name", CALLS)
async def test_session_survives_when_a_caller_is_cancelled_at_any_await(
    name: str, *, leads: bool
) -> None:
    """Pitfall 3, each await of the caller; catches a refresh that lives in its caller's task."""
    for by in cancellations():
        at = 0
        while True:
            at += 1
            scenario = SharedToken(CALLS[name])
            caller = scenario.new_caller(at, by)
            await scenario.run(caller, leads=leads)
            await scenario.check(caller)
            if not caller.reached:
                break
        assert at > CALLS[name].points or not leads


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
@pytest.mark.parametrize("name", CALLS)
async def test_session_survives_when_a_caller_is_cancelled_in_any_round(
    name: str, *, leads: bool
) -> None:
    """Pitfall 3, each step of the exchange; catches a commit after the caller's await."""
    last = 0
    while True:
        scenario = SharedToken(CALLS[name])
        caller = scenario.new_caller()
        await scenario.run(caller, leads=leads, after=last)
        await scenario.check(caller)
        if not caller.reached or (not CALLS[name].ends and last > LONGEST_EXCHANGE):
            break
        last += 1
    assert last > 0


@pytest.mark.parametrize("name", CALLS)
async def test_session_survives_when_all_callers_are_cancelled_in_any_round(name: str) -> None:
    """Pitfall 3 with nobody left to wait; catches an exchange that the last waiter takes along."""
    for last in range(LONGEST_EXCHANGE):
        scenario = SharedToken(CALLS[name])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(CALLS[name].work, scenario.session)
            tasks.start_soon(scenario.follow)
            await rounds(last)
            tasks.cancel_scope.cancel()
        await scenario.settle()
        scenario.statuses.clear()
        await scenario.follow()
        await scenario.settle()
        await scenario.check(scenario.new_caller())


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.age is HARD])
async def test_cancelled_caller_returns_when_the_service_is_silent(name: str) -> None:
    """A caller is let go at once, and the token comes later; catches an inline shield."""
    scenario, gate = SharedToken(CALLS[name]), Gate()
    scenario.fake.fail("refresh", Fault(gate=gate))
    caller = scenario.new_caller()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.run)
        tasks.start_soon(scenario.follow)
        await gate.await_arrived()
        caller.cancel()
        assert await rounds_until(lambda: caller.done) <= DELAY
        assert scenario.statuses == []
        gate.open()
    await scenario.settle()
    await scenario.check(caller)
    assert scenario.fake.exchanges() == 1


class Leaving(SharedToken):
    """A session that is signed out, or closed, while others need it."""

    def __init__(self, work: Work, age: timedelta) -> None:
        super().__init__(Call(work, age))

    async def leave(self, caller: Caller, *others: Work, after: int | None = None) -> None:
        """Start the others, then the caller."""
        async with anyio.create_task_group() as tasks:
            for other in others:
                tasks.start_soon(self.run_beside, other)
            await rounds(1)
            tasks.start_soon(caller.run)
            await rounds(1)
            if after is not None:
                await rounds(after)
                caller.cancel()
                assert await rounds_until(lambda: caller.done) <= DELAY
            await rounds_until(lambda: caller.done)
            assert caller.error is None
            assert caller.after == 0, "a cancelled caller goes on"
            if caller.reached:
                await self.call.work(self.session)
        await self.settle()

    async def check_signed_out(self) -> None:
        """Check that nothing is left of the session, anywhere, and that a new one can begin."""
        assert all(isinstance(error, NotSignedInError) for error in self.errors), self.errors
        assert self.session.token is None
        assert self.fake.live_tokens() == []
        assert await self.store.load() is None
        assert self.heard[-1] is None
        with pytest.raises(NotSignedInError):
            await get(self.session)
        await login(self.session)
        assert (await get(self.session)).status_code == 200
        await self.session.aclose()

    async def check_closed(self) -> None:
        """Check that all is closed, and that the next caller goes on with the newest token."""
        assert self.errors == []
        assert self.transport.closed
        held = self.session.token
        assert held is not None
        assert held.id in self.fake.live_tokens()
        logins = self.count("login")
        first = None if self.fake.exchanges() or logins else held
        async with self.connect(token=first) as other:
            assert (await get(other)).status_code == 200
            assert other.token == held
        assert self.count("login") == logins

    async def run_beside(self, work: Work) -> None:
        """Do something else meanwhile."""
        try:
            await work(self.session)
        except Exception as exc:  # noqa: BLE001 - looked at in the end
            self.errors.append(exc)


@attrs.frozen
class Departure:
    """
    The end of a session.

    Attributes:
        work: The call that ends it.
        check: Checks the session after it.
        rounds: How many rounds it takes at least.
        age: How long the session has held its token by then.
        others: The work under way.
    """

    work: Work
    check: Callable[[Leaving], Coroutine[Any, Any, None]]
    rounds: int
    age: timedelta = FRESH
    others: tuple[Work, ...] = ()


LOGOUT: Final = partial(Departure, AsyncSessionClient.logout, Leaving.check_signed_out, 5)
CLOSE: Final = partial(Departure, AsyncSessionClient.aclose, Leaving.check_closed, 0)
DEPARTURES: Final = {
    "logout alone": LOGOUT(),
    "logout with a request": LOGOUT(others=(get,)),
    "logout with an exchange": LOGOUT(others=(AsyncSessionClient.refresh,)),
    "logout with both": LOGOUT(HARD, (get, AsyncSessionClient.refresh)),
    "logout with a switch": LOGOUT(others=(switch,)),
    "close alone": CLOSE(),
    "close with an exchange": CLOSE(others=(AsyncSessionClient.refresh,)),
    "close with keep_current": CLOSE(SOFT, (AsyncSessionClient.keep_current,)),
    "close with a login": CLOSE(others=(login,)),
}


@pytest.mark.parametrize("name", DEPARTURES)
async def test_end_is_carried_out_when_it_is_cancelled_at_any_await(name: str) -> None:
    """
    Pitfalls 3 and 17, each await.

    Catches a logout that waits first and forgets afterwards, a second close that does nothing, and
    a close that aborts.
    """
    end = DEPARTURES[name]
    for by in cancellations():
        at = 0
        while True:
            at += 1
            scenario = Leaving(end.work, end.age)
            caller = scenario.new_caller(at, by)
            await scenario.leave(caller, *end.others)
            await end.check(scenario)
            if not caller.reached:
                break
        assert at > 1


@pytest.mark.parametrize("name", DEPARTURES)
async def test_end_is_carried_out_when_it_is_cancelled_in_any_round(name: str) -> None:
    """
    Pitfalls 3 and 17, each step.

    Catches an exchange that brings the session back, and a close that takes the exchange along.
    """
    end = DEPARTURES[name]
    last = 0
    while True:
        scenario = Leaving(end.work, end.age)
        caller = scenario.new_caller()
        await scenario.leave(caller, *end.others, after=last)
        await end.check(scenario)
        if not caller.reached:
            break
        last += 1
    assert last > end.rounds


async def test_logout_at_any_step_of_an_exchange_leaves_no_token() -> None:
    """Pitfall 17, a schedule sweep; catches an exchange that commits in each case."""
    for start in range(LONGEST_EXCHANGE):
        scenario = Leaving(AsyncSessionClient.logout, FRESH)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scenario.run_beside, AsyncSessionClient.refresh)
            await rounds(start)
            await scenario.session.logout()
        await scenario.settle()
        await scenario.check_signed_out()
