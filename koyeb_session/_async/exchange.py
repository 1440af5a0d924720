"""How a newer token is had: from the store, by a refresh, or by signing in again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .. import _operations as operations
from .._arguments import adopted
from .._concurrency.async_deadlines import async_deadline, async_first_part
from .._errors import (
    AuthenticationError,
    EndpointGoneError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    SessionExpiredError,
)
from .._log import Span, log
from .._models import Token
from .._outcomes import caused, nothing_sent, store_error
from .._snapshot import Obtained, Phase, Snapshot
from .._state import SUPERSEDED
from .stores import async_no_store

if TYPE_CHECKING:
    from .._models import Clock, Credentials
    from .._state import SessionState
    from .sender import AsyncSender
    from .stores import AsyncTokenStore

_REFUSED = (AuthenticationError, PermissionDeniedError, NotFoundError, EndpointGoneError)
"""What says that a refresh will not help, now or later."""


class AsyncExchange:
    """Knows where tokens come from and go to, and nothing of who waits for them."""

    __slots__ = ("_clock", "_credentials", "_sender", "store")

    def __init__(
        self,
        sender: AsyncSender,
        credentials: Credentials | None,
        store: AsyncTokenStore | None,
        clock: Clock,
    ) -> None:
        self._sender = sender
        self._credentials = credentials
        self._clock = clock
        self.store: AsyncTokenStore = async_no_store if store is None else store

    @property
    def has_store(self) -> bool:
        """Whether there is anything to save a token in."""
        return self.store is not async_no_store

    async def renew(
        self,
        state: SessionState,
        old: Snapshot | None,
        fence: int,
        *,
        patient: bool,
        timeout: float,
    ) -> Snapshot | KoyebSessionError:
        """
        Lock the store, read it again, exchange, commit, save, unlock; the caller sets a deadline.

        Args:
            state: Whose token it is.
            old: The snapshot to replace; `None` when there is none.
            fence: What ``state.fence`` was when this was decided.
            patient: Whether callers have nothing else to use, so that a refresh is worth retrying.
            timeout: Seconds that each operation may take.
        """
        commit = partial(self._committed, state, old, fence, patient=patient, timeout=timeout)
        if not self.has_store:
            return await commit(None)
        store = self.store
        outcome: Snapshot | KoyebSessionError | None = None
        locked = False
        try:
            with async_first_part(timeout / 2) as over:  # the service has to be asked, too
                async with store.lock():
                    locked = True
                    saved = await self.saved(old)
                    over()
                    outcome = await commit(saved)
                    if saved is None and isinstance(outcome, Snapshot):
                        state.missed(outcome)  # also if the deadline, or a killed loop, ends this
                        await store.save(outcome.token)
                        state.take_missed()
                    return outcome
        except Exception as exc:  # noqa: BLE001 - sending returns its errors: this is the store's
            late = isinstance(exc, TimeoutError)
            error = store_error("used in time" if late else "used", exc)
        if state.snapshot is not old:
            state.missed(state.snapshot)
            log.warning("the renewed token is kept in memory only: %s", error)
            return state.snapshot or error
        if outcome is not None:
            return outcome  # the service was asked: it is not asked again
        saved = await self._seen(old, timeout / 4)
        if saved is None:
            held = not locked and isinstance(error.__cause__, TimeoutError)
            phase = Phase.EXPIRED if old is None else old.phase(self._clock)
            if not _may_go_on(phase, held=held, patient=patient):
                return error
            log.warning("the token is renewed without its store: %s", error)
        outcome = await commit(saved)
        if saved is None and isinstance(outcome, Snapshot):
            state.missed(outcome)
        return error if nothing_sent(outcome) else outcome

    async def _seen(self, old: Snapshot | None, seconds: float) -> Obtained | None:
        """Look for what others have renewed, without a lock that was not to be had."""
        try:
            with async_deadline(seconds):
                return await self.saved(old)
        except Exception:  # noqa: BLE001 - the first error says what is wrong with the store
            return None

    async def _committed(
        self,
        state: SessionState,
        old: Snapshot | None,
        fence: int,
        saved: Obtained | None,
        *,
        patient: bool,
        timeout: float,
    ) -> Snapshot | KoyebSessionError:
        """Commit the token that the store has, or else a new one."""
        if fence != state.fence:  # while the lock was waited for
            return SUPERSEDED
        obtained = saved or await self._newer(old, patient=patient, timeout=timeout)
        if isinstance(obtained, KoyebSessionError):
            return obtained
        outcome = state.commit(obtained, fence)
        if outcome is SUPERSEDED and saved is None:
            await self.revoke(obtained.token)
        if isinstance(outcome, Snapshot):
            state.taken_over = None if saved is None else outcome
            log.info("%s; the token is good for %s", obtained.how, Span(outcome.expiry))
        return outcome

    async def saved(self, old: Snapshot | None) -> Obtained | None:
        """
        Load the store's token if it is newer than ``old``, and good.

        Raises:
            Exception: Whatever the store raises.
        """
        token = await self.store.load()
        if token is None or (old is not None and token.id == old.token.id):
            return None
        found = adopted(token, self._clock.time())
        if isinstance(found, Exception) or (old is not None and _is_earlier(found, old.token)):
            return None
        return Obtained(found, minted=False, how="taken over from the store")

    async def _newer(
        self, old: Snapshot | None, *, patient: bool, timeout: float
    ) -> Obtained | KoyebSessionError:
        """
        Ask the service for a token in place of ``old``.

        A refresh whose reply was lost is not repeated: it may have been carried out. What comes
        next, a request with the old token or another renewal, finds out.
        """
        refused: KoyebSessionError | None = None
        if old is not None and old.phase(self._clock) is not Phase.EXPIRED:
            outcome = await self._sender.send(
                operations.refresh(old.token), timeout=timeout, retry=patient, bounded=True
            )
            if isinstance(outcome, Token):
                return Obtained(outcome, minted=True, how="renewed")
            if not isinstance(outcome, _REFUSED):
                return outcome
            refused = outcome
        if self._credentials is not None:
            from .credentials import async_sign_in  # noqa: PLC0415 - most sessions have none

            return await async_sign_in(
                self._credentials, self._sender, self._clock, timeout=timeout
            )
        if old is None:
            return NotSignedInError("not signed in: call login(), or give token= or credentials=")
        if refused is not None and not isinstance(refused, AuthenticationError):
            return refused
        return caused(SessionExpiredError("the session has ended: sign in again"), refused)

    async def revoke(self, token: Token, timeout: float | None = None) -> KoyebSessionError | None:
        """Make the service forget a token; one that it does not know any more is success."""
        outcome = await self._sender.send(operations.logout(token), timeout=timeout)
        return None if isinstance(outcome, AuthenticationError) else outcome

    async def keep(
        self, state: SessionState, snapshot: Snapshot, timeout: float, *, late: bool = False
    ) -> None:
        """Save a token; ``late``, unless others have gone on from it meanwhile."""
        store = self.store
        try:
            with async_deadline(timeout):
                async with store.lock():
                    newer = await self.saved(snapshot) if late else None
                    if state.snapshot is snapshot and newer is None:
                        await store.save(snapshot.token)
        except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
            state.missed(snapshot)
            log.warning("the new token is kept in memory only: %s", store_error("written", exc))

    async def forget(self, old: Snapshot | None, timeout: float) -> KoyebSessionError | None:
        """Empty the store, and revoke what it held if that is not ``old``."""
        saved: Token | None = None
        try:
            with async_deadline(timeout / 2):  # the service has to be told too
                async with self.store.lock():
                    saved = await self.store.load()
                    await self.store.delete()
        except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
            error = store_error("emptied", exc)
            try:
                with async_deadline(timeout / 4):
                    await self.store.delete()  # better without the lock than not at all
            except Exception:  # noqa: BLE001 - see above; the first error says why
                return error
        found = None if saved is None else adopted(saved, 0.0)  # its expiry is the service's affair
        if not isinstance(found, Token) or (old is not None and found.id == old.token.id):
            return None
        return await self.revoke(found, timeout)


def _may_go_on(phase: Phase, *, held: bool, patient: bool) -> bool:
    """
    Decide whether to go on without the store.

    Whoever holds its lock may be exchanging the same token, and two exchanges may cost all the
    session. An expired token is not exchanged, but replaced by signing in.
    """
    return phase is Phase.EXPIRED or (not held and (patient or phase is Phase.HARD))


def _is_earlier(token: Token, other: Token) -> bool:
    if token.issued_at is None or other.issued_at is None:
        return False
    return token.issued_at < other.issued_at
