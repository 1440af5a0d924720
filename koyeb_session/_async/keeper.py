"""The one exchange at a time that keeps a session's token current."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from .._concurrency.async_deadlines import async_deadline
from .._concurrency.async_flights import AsyncFlight
from .._concurrency.async_waiting import AsyncPulse
from .._concurrency.places import atomic
from .._errors import KoyebSessionError, NotSignedInError, TransportError
from .._log import log
from .._outcomes import bare, caused, not_renewed, unasked
from .._snapshot import Obtained, Snapshot, Verdict
from .._state import SUPERSEDED
from .listeners import AsyncListeners

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._models import Token
    from .._state import SessionState
    from .exchange import AsyncExchange
    from .settling import AsyncSettling

Outcome: TypeAlias = Snapshot | KoyebSessionError


class AsyncTokenKeeper:
    """
    Renews a session's token by one exchange that all callers share.

    "Newer than the one that I signed with" is ``state.snapshot is not signed``. The exchange is a
    flight: no caller owns it, so cancelling one neither stops nor loses it.
    """

    __slots__ = ("_exchange", "_flight", "_pulses", "_settling", "_timeout", "listeners", "state")

    def __init__(self, state: SessionState, exchange: AsyncExchange, timeout: float) -> None:
        self._exchange = exchange
        self._flight: AsyncFlight[Outcome] | None = None
        self._pulses: tuple[AsyncPulse, ...] = ()
        self._settling: AsyncSettling | None = None
        self._timeout = timeout
        self.listeners: AsyncListeners | None = None
        self.state: SessionState = state
        state.on_change = self._changed

    # What requests ask

    async def current(self, *, settled: bool = False, timeout: float | None = None) -> Outcome:
        """
        Return a snapshot that may be used now; renew it first, in time, where there is need.

        ``settled`` waits even for a renewal that is only ahead of need: it may revoke the token.
        """
        state = self.state
        while True:
            old = state.snapshot
            match state.verdict:
                case Verdict.USE if old is not None:
                    if old.is_looked_at(state.clock) and (late := self._late()) is not None:
                        late.start()
                    return old
                case Verdict.RENEW if old is not None and not settled:
                    flight, first = self._board(old, self._timeout)
                    if flight is not None and first:
                        flight.start()
                    return old
                case Verdict.FAIL:
                    return state.ended(old, state.blocked())
                case _:
                    outcome = await self.renewed(old, timeout)
            if isinstance(outcome, KoyebSessionError):
                return state.usable or state.ended(old, outcome)
            if state.closed:
                return state.usable or state.ended(old, None)
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
            blocked = state.blocked(patient=True)
            outcome = blocked or await self.renewed(signed, timeout, patient=True)
            if isinstance(outcome, KoyebSessionError):
                return state.ended(signed, outcome)
        return state.usable

    # The one exchange

    async def renewed(
        self, old: Snapshot | None, timeout: float | None = None, *, patient: bool = False
    ) -> Outcome:
        """
        Run, or join, the one exchange that replaces ``old``, unless that has happened already.

        Args:
            old: The snapshot that the caller has seen.
            timeout: Seconds to wait for it; `None`: the client's. It does not end with them.
            patient: Whether a refresh may be sent again when the service is busy.
        """
        if old is None and self.state.signed_out and not patient:
            return NotSignedInError("signed out: call login()")
        seconds = left = timeout or self._timeout
        failed, fence, ends = None, self.state.fence, time.monotonic() + seconds
        while fence == self.state.fence:
            flight, first = self._board(old, max(seconds, self._timeout), patient=patient)
            if flight is None:
                break
            outcome = await flight.lead(left) if first else await flight.join(left)
            if outcome is None and flight.alive:
                return failed or not_renewed(seconds)
            if outcome is None:
                return TransportError("the renewal was cut off: its event loop or thread ended")
            is_anothers = patient and not first and (unasked(outcome) or outcome is SUPERSEDED)
            if flight.about is old and not is_anothers:
                return outcome
            failed, left = outcome, ends - time.monotonic()
        return self.state.snapshot or SUPERSEDED

    def _board(
        self, old: Snapshot | None, seconds: float, *, patient: bool = False
    ) -> tuple[AsyncFlight[Outcome] | None, bool]:
        """Return the flight that is under way, or else a new one, and whether it is new."""
        with atomic:
            if self.state.snapshot is not old:
                return None, False  # exchanging an old token again would look like theft
            flight = self._flight
            if flight is not None and flight.alive:
                return flight, False
            renew = partial(self._renew, old, self.state.fence, patient=patient, seconds=seconds)
            self._flight = flight = AsyncFlight(renew, self._tell, about=old, seconds=seconds)
            return flight, True

    async def _renew(
        self, old: Snapshot | None, fence: int, *, patient: bool, seconds: float
    ) -> Outcome:
        """Do the work of a flight; whatever happens comes back as a value."""
        try:
            with async_deadline(seconds):
                patient = patient or self.state.usable is None
                outcome = await self._exchange.renew(
                    self.state, old, fence, patient=patient, timeout=seconds
                )
        except TimeoutError:
            outcome = not_renewed(seconds)
        except Exception as exc:  # noqa: BLE001 - a clock of the user's may raise, or an error's text
            text = f"the token was not renewed: {type(exc).__name__}"
            outcome = caused(TransportError(text), bare(exc, str(exc)))
        held = self.state.snapshot
        if isinstance(outcome, Snapshot) or fence != self.state.fence:
            return held or SUPERSEDED
        if held is not None and held is not old:
            self.state.missed(held)  # the deadline came after the exchange
            log.warning("the renewed token is kept in memory only: %s", outcome)
            return held
        self.state.failed(outcome, fence)
        return outcome

    # Signing in and out

    async def adopt(self, obtained: Obtained, fence: int | None, seconds: float) -> Outcome:
        """Begin a session with a token; the store has so many seconds to take it."""
        outcome = self.state.commit(obtained, fence, begins=True)
        if outcome is SUPERSEDED and obtained.minted:
            await self._exchange.revoke(obtained.token)
        if isinstance(outcome, Snapshot) and (self.listeners or self._exchange.has_store):
            await self.settling.save(outcome, seconds)
        return outcome

    async def sign_out(self, timeout: float | None = None) -> KoyebSessionError | None:
        """End the session: here at once, at the service, and in the store, whatever fails."""
        old = self.state.clear()
        return await self.settling.leave(old, self._flight, timeout or self._timeout)

    @property
    def settling(self) -> AsyncSettling:
        """Made when first needed, which it never is for most of a service's callers."""
        from .settling import AsyncSettling  # noqa: PLC0415 - see above

        with atomic:
            if self._settling is None:
                self._settling = AsyncSettling(self.state, self._exchange, self._tell)
            return self._settling

    # Life cycle

    def listen(self, listener: Callable[[Token | None], object]) -> Callable[[], None]:
        """Tell ``listener`` of each change of the token."""
        if self.listeners is None:
            self.listeners = AsyncListeners()
        return self.listeners.add(listener)

    async def keep(self, running: Callable[[], bool]) -> None:
        """Renew ahead of need while ``running()``."""
        pulse = AsyncPulse()
        with atomic:
            self._pulses = (*self._pulses, pulse)
        try:
            while running():
                await self.current(settled=True)
                await self.catch_up()
                await pulse.sleep(self.state.next_look)
        finally:
            with atomic:
                self._pulses = tuple(other for other in self._pulses if other is not pulse)

    async def catch_up(self) -> None:
        """Save what the store could not be told of."""
        if (late := self._late()) is not None:
            await late.lead()

    def _late(self) -> AsyncFlight[KoyebSessionError | None] | None:
        """Return what saves the token that the store missed."""
        missed = self.state.take_missed()
        return None if missed is None else self.settling.save_late(missed, self._timeout)

    async def drain(self) -> None:
        """Wait for what is under way, each at most for its deadline; save what is not saved yet."""
        if self._flight is not None and self._flight.alive:
            await self._flight.join()
        if self._settling is not None:
            await self._settling.drain()
        await self.catch_up()
        self.wake()

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
