"""Who waits for a renewal, and for which one: there is one at a time."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from .._concurrency.async_deadlines import async_time_limit
from .._concurrency.async_flights import AsyncFlight
from .._concurrency.async_waiting import AsyncPulse, async_sleep
from .._concurrency.places import atomic
from .._deadline import Deadline
from .._errors import (
    KoyebSessionError,
    NotSignedInError,
    StoreError,
    TransportError,
    TransportTimeoutError,
)
from .._log import fields, log
from .._outcomes import caused, foreign, not_renewed
from .._snapshot import Failed, Obtained, Phase, Snapshot, Urgency, Verdict
from .._state import SUPERSEDED
from .listeners import AsyncListeners

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._models import Token
    from .._policy import RetryPolicy
    from .._state import SessionState
    from .persistence import AsyncPersistence
    from .renewal import AsyncRenewal
    from .token_source import AsyncTokenSource

Outcome: TypeAlias = Snapshot | KoyebSessionError


class AsyncTokenKeeper:
    """
    Renews a session's token by one exchange that all callers share.

    "Newer than the one that I signed with" is ``state.snapshot is not signed``. The exchange is a
    flight: no caller owns it, so cancelling one neither stops nor loses it.
    """

    __slots__ = (
        "_flight",
        "_persistence",
        "_pulses",
        "_renewal",
        "_retry",
        "_retry_at",
        "_source",
        "_timeout",
        "_under_way",
        "listeners",
        "state",
    )

    def __init__(
        self,
        state: SessionState,
        renewal: AsyncRenewal,
        source: AsyncTokenSource,
        persistence: AsyncPersistence | None,
        *,
        retry: RetryPolicy,
        timeout: float,
        under_way: set[AsyncFlight[Any]],
    ) -> None:
        self._flight: _Renewing | None = None
        self._persistence = persistence
        self._pulses: tuple[AsyncPulse, ...] = ()
        self._renewal = renewal
        self._retry = retry
        self._retry_at: tuple[KoyebSessionError, float] | None = None
        """When all who wait may try again after this error (monotonic)."""
        self._source = source
        self._timeout = timeout
        self._under_way = under_way
        self.listeners: AsyncListeners | None = None
        self.state: SessionState = state

    # What requests ask

    async def current(self, *, settled: bool = False, timeout: float | None = None) -> Outcome:
        """
        Return a snapshot that may be used now; renew it first, in time, where there is need.

        ``settled`` waits even for a renewal that is only ahead of need: it may revoke the token.

        Raises:
            Exception: What a transport, an event hook or a clock of the user's raised.
        """
        state = self.state
        while True:
            look = state.look()  # all that is decided here is decided on this
            old = look.snapshot
            match look.verdict:
                case Verdict.USE if old is not None:
                    if old.is_looked_at(look.now) and (late := self._late()) is not None:
                        state.saved(old)  # not again by the next request
                        late.start()
                    return old
                case Verdict.RENEW if old is not None and not settled:
                    self._begin(old, state.fence, self._timeout, Urgency.AHEAD)
                    return old
                case Verdict.FAIL:
                    return state.ended(look, look.blocked and look.blocked.error)
                case Verdict.RENEW:
                    outcome = await self.renewed(old, timeout, Urgency.AHEAD)
                case _:
                    outcome = await self.renewed(old, timeout, Urgency.NEEDED)
            if isinstance(outcome, KoyebSessionError):
                look = state.look()
                return look.usable or state.ended(look, outcome)
            if state.closed:
                look = state.look()
                return look.usable or state.ended(look, None)
            if outcome is state.snapshot and not outcome.is_due(state.clock):
                return outcome

    async def replacement(self, signed: Snapshot, timeout: float | None = None) -> Outcome | None:
        """
        Return what to replay a request with whose token was refused.

        `None`: the refusal is the answer, as the token is not ours to renew, or was new.
        """
        state = self.state
        if state.snapshot is signed:
            if state.is_final(signed):
                return None
            look = state.look()
            trouble = look.trouble
            # Only a failed sign-in keeps credentials from being asked, and a store nobody.
            if trouble is not None and trouble.blocks(look.now):
                skips = isinstance(trouble.error, StoreError)
                if not skips and (trouble.signs_in or not state.has_credentials):
                    return state.ended(look, trouble.error)
            outcome = await self.renewed(signed, timeout, Urgency.REJECTED)
            if isinstance(outcome, KoyebSessionError):
                return state.ended(state.look(), outcome)
        return state.usable

    # The one exchange

    async def renewed(
        self,
        old: Snapshot | None,
        timeout: float | None = None,
        urgency: Urgency = Urgency.REQUESTED,
    ) -> Outcome:
        """
        Run, or join, the one exchange that replaces ``old``, unless that has happened already.

        Args:
            old: The snapshot that the caller has seen.
            timeout: Seconds to wait for it; `None`: the client's. It does not end with them.
            urgency: How much the caller needs it.
        """
        state = self.state
        if old is None and state.signed_out and urgency < Urgency.REQUESTED:
            return NotSignedInError("signed out: call login()")
        if refusal := self._renewal.refusal():
            return refusal
        deadline = Deadline(self._timeout if timeout is None else timeout)
        failed, fence, attempt = None, state.fence, 1
        while fence == state.fence:
            flight = self._begin(old, fence, max(deadline.seconds, self._timeout), urgency)
            if flight is None:
                break
            outcome = await flight.join(deadline.left())
            if outcome is None and state.snapshot is not old:
                break  # there is a newer token; only the store is still waited for
            if outcome is None and flight.alive:
                return failed or not_renewed(deadline.seconds)
            if outcome is None:
                return TransportError("the renewal was cut off: its event loop or thread ended")
            # A weaker flight may have given up where this caller would not.
            gave_up = isinstance(outcome, StoreError) and flight.urgency < urgency
            if flight.about is old and not gave_up:
                if not await self._wait_to_retry(outcome, attempt, urgency, deadline):
                    return outcome
                attempt += 1
            failed = outcome if isinstance(outcome, KoyebSessionError) else None
        return state.snapshot or SUPERSEDED

    async def _wait_to_retry(
        self, outcome: Outcome, attempt: int, urgency: Urgency, deadline: Deadline
    ) -> bool:
        """
        Wait until all who need a token may try again; `False`: there is no reason to.

        It is here, and not inside the flight, which holds the store's lock and which others, maybe
        of a newer session, would wait for.
        """
        if self._retry_at is None or self._retry_at[0] is not outcome:
            return False
        if urgency < Urgency.REJECTED and self.state.usable is not None:
            return False
        wait = self._retry_at[1] - time.monotonic()
        if attempt >= self._retry.attempts or wait >= deadline.left():
            return False
        await async_sleep(max(wait, 0.0))
        return True

    def _begin(
        self, old: Snapshot | None, fence: int, seconds: float, urgency: Urgency
    ) -> _Renewing | None:
        """
        Join the exchange under way, or begin one.

        Returns:
            `None` when the session has moved on from ``old``. Reusing an exchanged token trips the
            service's reuse detection and ends the whole session.
        """
        with atomic:
            if self.state.snapshot is not old:
                return None
            flight = self._flight
            if flight is not None and flight.alive and flight.fence == fence:
                return flight
            renew = partial(self._renew, old, fence, urgency, seconds)
            self._flight = flight = _Renewing(
                renew, self._tell, about=old, seconds=seconds, under_way=self._under_way
            )
            flight.fence, flight.urgency = fence, urgency
        flight.start()
        return flight

    async def _renew(
        self, old: Snapshot | None, fence: int, urgency: Urgency, seconds: float
    ) -> Outcome:
        """Do the work of a flight; a failure comes back as a value."""
        raised: Exception | None = None
        try:
            with async_time_limit(seconds):
                outcome = await self._renewal.run(old, fence, urgency, Deadline(seconds))
        except TimeoutError:
            outcome = Failed(not_renewed(seconds))
        except Exception as exc:  # noqa: BLE001 - the user's own clock, transport or event hook
            raised = exc
            text = f"the token was not renewed: {type(exc).__name__}"
            outcome = Failed(caused(TransportError(text), foreign(exc)))
        held = self.state.snapshot
        if isinstance(outcome, Snapshot) or fence != self.state.fence:
            return held or SUPERSEDED
        if held is not None and held is not old:
            return held  # the exchange succeeded; something after it took too long, or failed
        self._fail(outcome, fence, urgency)
        if raised is not None and self.state.usable is None:
            raise raised
        return outcome.error

    def _fail(self, failed: Failed, fence: int, urgency: Urgency) -> None:
        """Note a failure, and when all who wait may try again."""
        before = self.state.trouble
        attempt = 1 if before is None else min(before.failures + 1, self._retry.attempts)
        chance = random.random()  # noqa: S311 - spreads load
        wait = self._retry.wait(failed.error, attempt, chance)
        self._retry_at = None if wait is None else (failed.error, time.monotonic() + wait)
        is_waited_for = urgency >= Urgency.REJECTED or self.state.usable is None
        self.state.failed(failed, fence, again=is_waited_for and wait is not None)

    # Signing in and out

    async def adopt(
        self,
        obtained: Obtained,
        fence: int | None,
        deadline: Deadline,
        account: str | None = None,
        *,
        bound: bool = False,
    ) -> Outcome:
        """
        Begin a session with a token.

        Args:
            obtained: The token.
            fence: See `SessionState.commit`.
            deadline: The store has the rest of it to take the token.
            account: Whose session it is; `None`: of the account before.
            bound: See `AsyncPersistence.bound`.
        """
        if refusal := self._renewal.refusal():
            return refusal
        persistence = self._persistence
        unsaved = persistence is not None
        if persistence is not None:
            persistence.owe()  # first: a signal handler may raise after the commit
        outcome = self.state.commit(obtained, fence, begins=True, unsaved=unsaved)
        if isinstance(outcome, KoyebSessionError):
            if outcome is SUPERSEDED and obtained.minted:
                await self._source.revoke(obtained.token, deadline)
            return outcome
        self.state.log_new_token(obtained, outcome)
        if persistence is not None:
            if account is not None:
                persistence.begin(account, bound=bound)
            persistence.owe()
        if self.listeners or unsaved:
            await self._after_change(partial(self._follow, deadline), deadline)
        return outcome

    async def sign_out(self, timeout: float | None = None) -> KoyebSessionError | None:
        """End the session: here at once, at the service, and in the store, whatever fails."""
        if refusal := self._renewal.refusal():
            return refusal
        renewing = self._flight
        if self._persistence is not None:
            self._persistence.owe()
        old = self.state.clear()
        if self._persistence is not None:
            self._persistence.owe()
        deadline = Deadline(self._timeout if timeout is None else timeout)
        return await self._after_change(partial(self._leave, old, renewing, deadline), deadline)

    async def _after_change(
        self, work: Callable[[], Any], deadline: Deadline
    ) -> KoyebSessionError | None:
        """Have the store, the service and the listeners told, which no caller's end cuts off."""
        flight = AsyncFlight[KoyebSessionError | None](
            work, self._tell, seconds=deadline.left(), under_way=self._under_way
        )
        return await flight.lead()

    async def _follow(self, deadline: Deadline) -> KoyebSessionError | None:
        return None if self._persistence is None else await self._persistence.follow(deadline)

    async def _leave(
        self, old: Snapshot | None, renewing: AsyncFlight[Any] | None, deadline: Deadline
    ) -> KoyebSessionError | None:
        problem: KoyebSessionError | None = None
        forgotten: KoyebSessionError | None = None
        try:
            with async_time_limit(deadline.left()):
                # First, as a service that hangs must not keep the store from being emptied.
                found = None
                if self._persistence is not None:
                    half = Deadline(deadline.left() / 2)
                    found, forgotten = await self._persistence.sign_out(old, half)
                if found is not None:
                    problem = await self._source.revoke(found, deadline)
                if old is not None and old.phase(self.state.clock) is not Phase.EXPIRED:
                    problem = await self._source.revoke(old.token, deadline) or problem
                if renewing is not None and renewing.alive:  # what it still obtains, it revokes
                    await renewing.ended(deadline.left())
        except TimeoutError:
            late = TransportTimeoutError(f"logout: not done within {deadline.seconds:g} s")
            problem = problem or late
        if old is not None or problem is not None:
            at_service = "" if problem is None else f"; at the service: {problem}"
            log.info("signed out%s", at_service, extra=fields("signed_out", error=_name(problem)))
        if problem is not None and forgotten is not None:
            log.warning("the token may still be in the store: %s", forgotten)
        return problem or forgotten

    # Life cycle

    def listen(self, listener: Callable[[Token | None], object]) -> Callable[[], None]:
        """Tell ``listener`` of each change of the token."""
        if self.listeners is None:
            self.listeners = AsyncListeners()
        self.state.on_change = self._changed
        return self.listeners.add(listener)

    async def keep(self, running: Callable[[], bool]) -> None:
        """Renew ahead of need while ``running()``."""
        pulse = AsyncPulse()
        with atomic:
            self._pulses = (*self._pulses, pulse)
        self.state.on_change = self._changed
        try:
            while running():
                try:
                    await self.current(settled=True)
                except Exception:  # noqa: BLE001 - a transport or a clock of the user's
                    log.exception("keep_current() goes on after an error that is not Koyeb's")
                if (late := self._late()) is not None:
                    await late.lead()
                await pulse.sleep(self.state.next_look)
        finally:
            with atomic:
                self._pulses = tuple(other for other in self._pulses if other is not pulse)

    async def drain(self) -> None:
        """Wait for what is under way, each within its bounds; save what is not saved yet."""
        if self._flight is not None and self._flight.alive:
            await self._flight.wait()
        if self._persistence is not None:
            await self._persistence.drain(self._timeout)
        if self.listeners is not None:
            await self.listeners.drain(self._timeout)
        self.wake()

    def _late(self) -> AsyncFlight[StoreError | None] | None:
        """Return what tells the store of a change that it has missed."""
        persistence = self._persistence
        if persistence is None or not persistence.is_behind:
            return None
        return persistence.follow_later()

    def wake(self) -> None:
        """Let :meth:`keep` look again."""
        for pulse in self._pulses:
            pulse.beat()

    def _changed(self, token: Token | None) -> None:
        """Note a change, as a part of its swap; listeners are told after it."""
        if self.listeners is not None:
            self.listeners.post(token)
        self.wake()

    async def _tell(self) -> None:
        if self.listeners is not None:
            await self.listeners.tell()


def _name(error: KoyebSessionError | None) -> str | None:
    """Name the class of an error, for the log."""
    return None if error is None else type(error).__name__


class _Renewing(AsyncFlight[Outcome]):
    """The exchange under way: of which session it is, and how much it was needed."""

    fence: int = 0
    urgency: Urgency = Urgency.AHEAD
