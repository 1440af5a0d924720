"""The state machine of a session, in threads, on asyncio and on trio."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import cast

import anyio
import anyio.from_thread
import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    SessionClient,
)
from koyeb_session.testing import Gate

from ..concurrency import (
    AsyncBackground,
    Background,
    arrived,
    async_arrived,
    async_gather,
    gather,
    idle,
)
from ..soak import SOAK
from ..support import inside
from .machine import Outcome, SessionMachine
from .scenario import Work, current_token, get, keep_current, login, logout, refresh, switch
from .steps import Caller, rounds, rounds_until, tasks


class BlockingMachine(SessionMachine):
    """The blocking half: concurrent calls run in threads."""

    def begin(self) -> None:
        """Make the session."""
        self.session = SessionClient(credentials=self.simulation.provide, **self.arguments())
        self.session.on_token_change(self.simulation.note)

    def do(self, *works: Work) -> list[Outcome]:
        """Do all at once, and wait for the session's own threads."""
        calls = [functools.partial(self._outcome, work) for work in works]
        outcomes = gather(*calls) if len(calls) > 1 else [calls[0]()]
        idle()
        return outcomes

    def amid_exchange(self, gate: Gate, work: Work) -> tuple[Outcome, Outcome]:
        """Do something in another thread than the one that renews."""
        with Background() as background:
            shared = background.start(lambda: self._outcome(refresh))
            arrived(gate)
            other = background.start(lambda: self._outcome(work))
            background.settled()
            gate.open()
            outcomes = shared.result(), other.result()
        idle()
        return outcomes

    def teardown(self) -> None:
        """Close the session."""
        self.session.close()

    def _outcome(self, work: Work) -> Outcome:
        try:
            return cast("object", work(self.session))
        except (KoyebSessionError, httpx.TransportError, ValueError) as exc:
            return exc


class AsyncMachine(SessionMachine):
    """The async half, in one event loop; only here can a caller be cancelled."""

    backend = "asyncio"

    def begin(self) -> None:
        """Start the event loop, and make the session in it."""
        self._exit = contextlib.ExitStack()
        portal = anyio.from_thread.start_blocking_portal(self.backend)
        self._portal = self._exit.enter_context(portal)
        self.session = AsyncSessionClient(
            credentials=self.simulation.async_provide, **self.arguments()
        )
        self.session.on_token_change(self.simulation.note)

    def do(self, *works: Work) -> list[Outcome]:
        """Do all at once, and wait for the session's own tasks."""
        return self._portal.call(self._do, works)

    def amid_exchange(self, gate: Gate, work: Work) -> tuple[Outcome, Outcome]:
        """Do something in another task than the one that renews."""
        return self._portal.call(self._amid, gate, work)

    @rule(
        work=st.sampled_from([get, refresh, login, logout, switch, current_token, keep_current]),
        after=st.integers(0, 12),
    )
    def cancel(self, work: Work, after: int) -> None:
        """A caller who is cancelled."""
        issued, provided = len(self.simulation.issued), self.simulation.provided
        before = set(self.expected)
        self._portal.call(self._cancel, work, after)
        self.learn(issued, provided)
        if work is logout:
            self.expected, self.signed_out = {None}, True
        elif work in (login, switch):  # it came, or it did not
            self.expected = self.expected | before
            self.signed_out = self.session.token is None and inside(self.session).state.signed_out

    def teardown(self) -> None:
        """Close the session and its event loop."""
        self._portal.call(self.session.aclose)
        self._exit.close()

    async def _do(self, works: tuple[Work, ...]) -> list[Outcome]:
        async with self._settled():
            return await async_gather(*[functools.partial(self._outcome, it) for it in works])

    async def _amid(self, gate: Gate, work: Work) -> tuple[Outcome, Outcome]:
        async with self._settled(), AsyncBackground() as background:
            shared = background.start(lambda: self._outcome(refresh))
            await async_arrived(gate)
            other = background.start(lambda: self._outcome(work))
            await rounds(30)
            gate.open()
        return await shared.result(), await other.result()

    async def _cancel(self, work: Work, after: int) -> None:
        caller = Caller(lambda: work(self.session))
        async with self._settled(), anyio.create_task_group() as group:
            group.start_soon(caller.run)
            await rounds(1 + after)
            caller.cancel()
        assert isinstance(caller.error, KoyebSessionError | httpx.TransportError | None)

    @contextlib.asynccontextmanager
    async def _settled(self) -> AsyncGenerator[None]:
        alone = tasks()
        yield
        await rounds_until(lambda: tasks() <= alone)

    async def _outcome(self, work: Work) -> Outcome:
        try:
            return cast("object", await work(self.session))
        except (KoyebSessionError, httpx.TransportError, ValueError) as exc:
            return exc


class TrioMachine(AsyncMachine):
    """The async half on trio."""

    backend = "trio"


@pytest.mark.parametrize("machine", [BlockingMachine, AsyncMachine, TrioMachine])
def test_session_keeps_its_promises(machine: type[SessionMachine]) -> None:
    """The invariants of a session; catches, e.g., an exchange that ignores a sign-out meanwhile."""
    limits = settings(deadline=None)
    if settings.get_current_profile_name() == "default":  # any other one is taken as it is
        limits = settings(limits, max_examples=300 if SOAK else 25, stateful_step_count=35)
    run_state_machine_as_test(machine, settings=limits)
