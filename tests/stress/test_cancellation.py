"""Cancellation at every await point: nobody's impatience costs anybody the session."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from datetime import timedelta
from functools import partial
from typing import Any, Final

import anyio
import attrs
import pytest

from koyeb_session import AsyncSessionClient, NotSignedInError

from ..concurrency import async_gather
from .scenario import (
    LIFE,
    Scenario,
    Work,
    current_token,
    get,
    keep_current,
    login,
    logout,
    post,
    refresh,
    switch,
)
from .steps import LONGEST, Caller, CancelBy, in_trio, rounds, rounds_until

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
    "refresh": Call(refresh),
    "switch": Call(switch, points=3),
    "switch, late": Call(switch, HARD, points=4),
    "new_session": Call(AsyncSessionClient.new_session, HARD, points=3),
    "current_token": Call(current_token, HARD),
    "hook, fresh": Call(get, points=2),
    "hook, soft": Call(get, SOFT, points=2),
    "hook, soft, once": Call(post, SOFT, points=3),
    "hook, hard": Call(get, HARD, points=3),
    "hook, refused": Call(get, refused=True, points=4),
    "keep_current": Call(keep_current, SOFT, points=2, ends=False),
}
"""Calls that leave the session signed in."""


def cancellations() -> list[CancelBy]:
    """Tell how a task of this event loop can be cancelled."""
    return [CancelBy.SCOPE, CancelBy.ROUND] if in_trio() else list(CancelBy)


class SharedToken(Scenario):
    """A call, and three callers who need the same token as the one who is cancelled."""

    def __init__(self, call: Call) -> None:
        super().__init__(call.age)
        self.call = call
        self.errors: list[Exception] = []
        self.statuses: list[int] = []
        if call.refused:
            self.transport.refuses = self.session.token

    def new_caller(self, at: int | None = None, by: CancelBy = CancelBy.SCOPE) -> Caller:
        """Make the caller who will be cancelled."""
        return Caller(lambda: self.call.work(self.session), at=at, by=by)

    async def follow(self) -> None:
        """Need the token, in three ways at once."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._request)
            tasks.start_soon(self.run_beside, current_token)
            tasks.start_soon(self.run_beside, refresh)

    async def run(self, caller: Caller, *, leads: bool) -> None:
        """Make the call with its followers, before them if it leads."""
        async with anyio.create_task_group() as tasks:
            for work in (caller.run, self.follow) if leads else (self.follow, caller.run):
                tasks.start_soon(work)
                await rounds(1)
            await self.cancel(caller)
            if not self.call.ends:
                await rounds(LONGEST)
                if not caller.done:
                    caller.cancel()
                    caller.reached = False
        await self.settle()

    async def cancel(self, caller: Caller) -> None:
        """Cancel a caller in its round, if it has one; it has to be back at once, or closed."""
        if caller.round is not None:
            await rounds(caller.round)
            caller.cancel()
            delay = await rounds_until(lambda: caller.done)
            assert delay <= DELAY or self.call.work is AsyncSessionClient.aclose

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

    async def run_beside(self, work: Work) -> None:
        """Do something else meanwhile."""
        try:
            await work(self.session)
        except Exception as exc:  # noqa: BLE001 - looked at in the end
            self.errors.append(exc)

    async def _request(self) -> None:
        self.statuses.append((await get(self.session)).status_code)


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
@pytest.mark.parametrize("name", CALLS)
async def test_session_survives_when_a_caller_is_cancelled_at_any_moment(
    name: str, *, leads: bool
) -> None:
    """
    Pitfall 3, each await of the caller and each step of the exchange.

    Catches a refresh that lives in its caller's task, a commit after the caller's await, and a
    shield that keeps a cancelled caller until the service answers.
    """
    call = CALLS[name]
    for by in cancellations():
        for at in itertools.count(by is not CancelBy.ROUND):
            scenario = SharedToken(call)
            caller = scenario.new_caller(at, by)
            await scenario.run(caller, leads=leads)
            await scenario.check(caller)
            if not caller.reached or (not call.ends and at > LONGEST_EXCHANGE):
                assert at > (call.points if leads and by is not CancelBy.ROUND else 0)
                break


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


class Leaving(SharedToken):
    """A session that is signed out, or closed, while others need it."""

    def __init__(self, work: Work, age: timedelta) -> None:
        super().__init__(Call(work, age))

    async def leave(self, caller: Caller, *others: Work) -> None:
        """Start the others, then the caller; when it is cancelled, two more come at once."""
        async with anyio.create_task_group() as tasks:
            for other in others:
                tasks.start_soon(self.run_beside, other)
            await rounds(1)
            tasks.start_soon(caller.run)
            await rounds(1)
            await self.cancel(caller)
            await rounds_until(lambda: caller.done)
            assert caller.error is None
            assert caller.after == 0, "a cancelled caller goes on"
            if caller.reached:
                await async_gather(*[partial(self.call.work, self.session)] * 2)
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
        assert self.transport.closed == 1
        held = self.session.token
        assert held is not None
        assert held.id in self.fake.live_tokens()
        logins = self.count("login")
        first = None if self.fake.exchanges() or logins else held
        async with self.connect(token=first) as other:
            assert (await get(other)).status_code == 200
            assert other.token == held
        assert self.count("login") == logins


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


LOGOUT: Final = partial(Departure, logout, Leaving.check_signed_out, 5)
CLOSE: Final = partial(Departure, AsyncSessionClient.aclose, Leaving.check_closed, 0)
DEPARTURES: Final = {
    "logout alone": LOGOUT(),
    "logout with a request": LOGOUT(others=(get,)),
    "logout with an exchange": LOGOUT(others=(refresh,)),
    "logout with both": LOGOUT(HARD, (get, refresh)),
    "logout with a switch": LOGOUT(others=(switch,)),
    "close alone": CLOSE(),
    "close with an exchange": CLOSE(others=(refresh,)),
    "close with keep_current": CLOSE(SOFT, (keep_current,)),
    "close with a login": CLOSE(others=(login,)),
}


@pytest.mark.pitfall(41)
@pytest.mark.parametrize("name", DEPARTURES)
async def test_end_is_carried_out_when_it_is_cancelled_at_any_moment(name: str) -> None:
    """
    Pitfalls 3 and 17, each await and each step.

    Catches a logout that waits first and forgets afterwards, a second close that does nothing or
    closes again, a close that aborts, and an exchange that brings the session back.
    """
    end = DEPARTURES[name]
    for by in cancellations():
        for at in itertools.count(by is not CancelBy.ROUND):
            scenario = Leaving(end.work, end.age)
            caller = scenario.new_caller(at, by)
            await scenario.leave(caller, *end.others)
            await end.check(scenario)
            if not caller.reached:
                assert at > (end.rounds if by is CancelBy.ROUND else 1)
                break


async def test_logout_at_any_step_of_an_exchange_leaves_no_token() -> None:
    """Pitfall 17, a schedule sweep; catches an exchange that commits in each case."""
    for start in range(LONGEST_EXCHANGE):
        scenario = Leaving(logout, FRESH)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scenario.run_beside, refresh)
            await rounds(start)
            await scenario.session.logout()
        await scenario.settle()
        await scenario.check_signed_out()
