# Generated from koyeb_session/_async/settling.py by .ci/generate_sync.py: edit that, not this.

"""What a change of session entails, in the store and at the service."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from .._concurrency.deadlines import deadline
from .._concurrency.flights import Flight, Work
from .._concurrency.places import atomic
from .._errors import KoyebSessionError, TransportTimeoutError
from .._log import log
from .._snapshot import Phase, Snapshot

if TYPE_CHECKING:
    from .._state import SessionState
    from .exchange import Exchange

_Problem: TypeAlias = KoyebSessionError | None


class Settling:
    """Saves what begins a session, and undoes what has ended one; no caller owns any of it."""

    __slots__ = ("_exchange", "_flights", "_state", "_tell")

    def __init__(self, state: SessionState, exchange: Exchange, tell: Work[None]) -> None:
        self._exchange = exchange
        self._flights: tuple[Flight[_Problem], ...] = ()
        self._state = state
        self._tell = tell

    def save(self, snapshot: Snapshot, seconds: float) -> None:
        """Give the store the token that begins a session."""
        work = partial(self._exchange.keep, self._state, snapshot, seconds)
        self._begin(work, seconds).lead()

    def save_late(self, missed: Snapshot, seconds: float) -> Flight[_Problem]:
        """Return what saves a token that the store has missed."""
        work = partial(self._exchange.keep, self._state, missed, seconds, late=True)
        return self._begin(work, seconds)

    def leave(self, old: Snapshot | None, renewal: Flight[Any] | None, seconds: float) -> _Problem:
        """Empty the store, revoke ``old``, and wait for a renewal that has it revoke its token."""
        return self._begin(partial(self._leave, old, renewal, seconds), seconds).lead()

    def drain(self) -> None:
        """Wait for what is under way."""
        for flight in self._flights:
            if flight.alive:
                flight.join()

    def _begin(self, work: Work[_Problem], seconds: float) -> Flight[_Problem]:
        flight = Flight(work, self._tell, seconds=seconds)
        with atomic:
            self._flights = (*(other for other in self._flights if other.alive), flight)
        return flight

    def _leave(self, old: Snapshot | None, renewal: Flight[Any] | None, seconds: float) -> _Problem:
        problem: _Problem = None
        forgotten: _Problem = None
        try:
            with deadline(seconds):
                # First, as a service that hangs must not keep the store from being emptied.
                forgotten = self._exchange.forget(old, seconds)
                if old is not None and old.phase(self._state.clock) is not Phase.EXPIRED:
                    problem = self._exchange.revoke(old.token, seconds)
                if renewal is not None and renewal.alive:  # what it still mints, it revokes
                    renewal.join(seconds)
        except TimeoutError:
            late = TransportTimeoutError(f"logout: not done within {seconds:g} s")
            problem = problem or late
        log.info("signed out%s", "" if problem is None else f"; at the service: {problem}")
        if problem is not None and forgotten is not None:
            log.warning("the token may still be in the store: %s", forgotten)
        return problem or forgotten
