"""Run one renewal: lock the store, read it again, request a token, commit it, save it, unlock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.deadline import Deadline
from .._core.errors import KoyebSessionError, StoreError
from .._core.log import log
from .._core.results import renewal_timed_out
from .._core.snapshot import FailedAttempt, NewToken, Phase, Snapshot, Urgency
from .._core.state import SUPERSEDED
from .._core.tokens import identity
from .token_source import is_refusal

if TYPE_CHECKING:
    from .._core.models import Token
    from .._core.state import SessionState
    from .persistence import AsyncPersistence
    from .store_hold import AsyncStoreHold
    from .token_source import AsyncTokenSource, Attempt


class AsyncRenewal:
    """
    Replaces the session's token, inside the store's lock whenever the lock is available.

    The keeper runs one renewal at a time, in a shared task that no caller owns. The session may
    change whenever the task waits. Each commit therefore names the snapshot and the generation that
    it replaces, and fails if they are no longer current.
    """

    __slots__ = ("_persistence", "_source", "_state")

    def __init__(
        self, state: SessionState, source: AsyncTokenSource, persistence: AsyncPersistence | None
    ) -> None:
        self._persistence = persistence
        self._source = source
        self._state = state

    def refusal(self) -> KoyebSessionError | None:
        """Return the error for a caller that must not wait for a renewal; `None` if it may."""
        return None

    async def run(
        self, old: Snapshot | None, generation: int, urgency: Urgency, deadline: Deadline
    ) -> Snapshot | FailedAttempt:
        """
        Replace ``old``.

        Args:
            old: The snapshot to replace; `None` when there is none.
            generation: The generation in which this was decided.
            urgency: How urgently the callers need it.
            deadline: The limit for everything. Locking and reading the store may take half of it.
        """
        persistence = self._persistence
        if persistence is None:
            return await self._request_new_token(old, generation, urgency, deadline)
        # The renewal stays in the hold until its token is saved, or its time is up. So the next
        # process that gets the lock reads that token.
        hold = persistence.hold()
        try:
            # Half of the time: a store that hangs must leave time for a renewal without it.
            await hold.ready(deadline.left() / 2)
            return await self._run(hold, old, generation, urgency, deadline=deadline)
        finally:
            await hold.leave(deadline)

    async def _run(
        self,
        hold: AsyncStoreHold,
        old: Snapshot | None,
        generation: int,
        urgency: Urgency,
        *,
        deadline: Deadline,
    ) -> Snapshot | FailedAttempt:
        newer = await self._saved_by_others(hold, old, deadline)
        if generation != self._state.generation:  # signed out, or in again, during the reading
            return FailedAttempt(SUPERSEDED, attempted=False)
        if newer is not None:
            return self._commit(newer, old, generation)
        held_elsewhere = None
        if problem := _store_error_of(hold):
            # The holder of the lock may be refreshing the same token, so this one must not.
            held_elsewhere = problem if hold.is_held_elsewhere else None
            if not self._may_renew_without_store(old, urgency, hold):
                return FailedAttempt(problem)
            where = "inside the store's lock" if hold.locked else "without the store"
            log.warning("the token is renewed %s: %s", where, problem)
        outcome = await self._request_new_token(
            old, generation, urgency, deadline, hold=hold, held_elsewhere=held_elsewhere
        )
        # Without any means to renew, the failure of the store is the cause to report.
        if isinstance(outcome, FailedAttempt) and problem and _has_no_way(outcome):
            return FailedAttempt(problem)
        if isinstance(outcome, Snapshot) and self._persistence is not None:
            await self._persistence.synchronize(deadline)
        return outcome

    async def _request_new_token(
        self,
        old: Snapshot | None,
        generation: int,
        urgency: Urgency,
        deadline: Deadline,
        *,
        hold: AsyncStoreHold | None = None,
        held_elsewhere: StoreError | None = None,
    ) -> Snapshot | FailedAttempt:
        """Refresh, or sign in again if a refresh does not help; commit the new token."""
        refused: FailedAttempt | None = None
        if deadline.passed:
            return FailedAttempt(renewal_timed_out(deadline.seconds))
        # A rejected token counts as expired: after any failure the credentials are tried.
        signs_in = urgency is Urgency.REJECTED and self._state.has_credentials
        if old is not None and not held_elsewhere and self._can_refresh(old, signs_in=signs_in):
            outcome = await self._source.refresh(old, deadline)
            if isinstance(outcome, NewToken) or not (signs_in or is_refusal(outcome.error)):
                # At once: this task waits for nothing between the reply and the commit.
                return await self._commit_or_revoke(outcome, old, generation, deadline)
            refused = outcome
            # Another process may have refreshed it first, for example after the lock's lease ended.
            if hold is not None and hold.locked:
                await hold.read_again(deadline.left() / 2)
            if newer := await self._saved_by_others(hold, old, deadline):
                return self._commit(newer, old, generation)
        # No refresh is possible, or it was refused: only signing in is left.
        replaced = await self._newest(hold, old, deadline, unlocked=held_elsewhere is not None)
        # The holder of the lock may be using the same secret, and a second use ends the grant.
        if held_elsewhere and self._source.uses_up(replaced):
            return FailedAttempt(held_elsewhere)
        outcome = await self._source.sign_in(old, replaced, deadline)
        if isinstance(outcome, FailedAttempt) and refused is not None and old is not None:
            outcome = _both(old, refused, outcome)
        return await self._settle(outcome, old, generation, deadline, hold=hold)

    async def _settle(
        self,
        outcome: Attempt,
        old: Snapshot | None,
        generation: int,
        deadline: Deadline,
        *,
        hold: AsyncStoreHold | None,
    ) -> Snapshot | FailedAttempt:
        """Commit a token of the credentials; keep its one-time secret even if that fails."""
        token = outcome.token if isinstance(outcome, NewToken) else outcome.unusable
        renewal = None if token is None else token.renewal
        if token is not None and renewal is not None:
            await self._save_ahead(token, hold, deadline)
        settled = await self._commit_or_revoke(outcome, old, generation, deadline)
        if isinstance(settled, Snapshot):
            return settled
        if isinstance(outcome, NewToken) and settled.error is not SUPERSEDED:
            settled = settled._replace(signs_in=True, soon=not outcome.just_issued)
        if renewal is None:
            return settled
        if old is not None and settled.error is not SUPERSEDED:
            self._state.keep_secret(old, renewal)
        # The store holds the token that was saved ahead, and must hold the session's own.
        if self._persistence is not None:
            self._persistence.mark_unsaved()
            await self._persistence.synchronize(deadline)
        return settled

    async def _newest(
        self,
        hold: AsyncStoreHold | None,
        old: Snapshot | None,
        deadline: Deadline,
        *,
        unlocked: bool,
    ) -> Token | None:
        """Return the newest known token, from which a callable continues."""
        persistence = self._persistence
        if hold is None or persistence is None:
            return None if old is None else old.token
        found = hold.found
        if unlocked:
            found = await persistence.load_unlocked(deadline.left() / 2)
        return persistence.latest(found, old, hold.known)

    async def _save_ahead(
        self, token: Token, hold: AsyncStoreHold | None, deadline: Deadline
    ) -> None:
        """
        Save a token that carries a one-time secret, before the token is used.

        The provider no longer accepts the secret before it. A program that ends now must find the
        new one in the store.
        """
        if hold is not None and self._persistence is not None:
            await self._persistence.save_ahead(hold, token, deadline)

    def _can_refresh(self, old: Snapshot, *, signs_in: bool) -> bool:
        """Return whether to try a refresh; in a back-off, credentials are used instead."""
        seen = self._state.observe()
        failed = seen.failure if signs_in else None
        in_backoff = failed is not None and failed.in_backoff(seen.now)
        if in_backoff and not isinstance(failed and failed.error, StoreError):
            return False
        return self._source.can_refresh(old) and old.phase(seen.now) is not Phase.EXPIRED

    async def _saved_by_others(
        self, hold: AsyncStoreHold | None, old: Snapshot | None, deadline: Deadline
    ) -> NewToken | None:
        """
        Return a newer token that another process or client has saved, if there is one.

        A saved record that cannot be used is read a second time. A store may return the first
        record without its lock, but acquires the lock before it reads again.
        """
        persistence = self._persistence
        if hold is None or persistence is None:
            return None
        # Without the lock, another process may save a token at any time: load now.
        if not hold.locked:
            found = await persistence.load_unlocked(deadline.left() / 2)
            return persistence.newer(found, old, hold.known)
        newer = persistence.newer(hold.found, old, hold.known)
        is_other = hold.found is not None and (
            old is None or identity(hold.found) != identity(old.token)
        )
        if newer is None and is_other:
            await hold.read_again(deadline.left() / 2)
            newer = persistence.newer(hold.found, old, hold.known)
        return newer

    async def _commit_or_revoke(
        self, outcome: Attempt, old: Snapshot | None, generation: int, deadline: Deadline
    ) -> Snapshot | FailedAttempt:
        """Commit a new token, or revoke it if the session has moved on."""
        if isinstance(outcome, FailedAttempt):
            return outcome
        committed = self._commit(outcome, old, generation)
        if (
            outcome.just_issued
            and isinstance(committed, FailedAttempt)
            and committed.error is SUPERSEDED
        ):
            await self._source.revoke(outcome.token, deadline)
        return committed

    def _commit(
        self, new_token: NewToken, old: Snapshot | None, generation: int
    ) -> Snapshot | FailedAttempt:
        # Marked before and after the commit: see `AsyncPersistence.mark_unsaved`.
        persistence = None if new_token.from_store else self._persistence
        if persistence is not None:
            persistence.mark_unsaved()
        committed = self._state.commit(
            new_token, generation, replaces=old, unsaved=persistence is not None
        )
        if persistence is not None:
            persistence.mark_unsaved()
        if isinstance(committed, KoyebSessionError):
            return FailedAttempt(committed, attempted=committed is not SUPERSEDED)
        self._state.log_new_token(new_token, committed)
        return committed

    def _may_renew_without_store(
        self, old: Snapshot | None, urgency: Urgency, hold: AsyncStoreHold
    ) -> bool:
        """
        Decide whether to go on if the store could not be locked and read.

        The holder of its lock may be refreshing the same token, and two refreshes may cost everyone
        the session. A token that has expired, or was rejected, is replaced by signing in instead,
        where that is possible.
        """
        phase = Phase.EXPIRED if old is None else old.phase(self._state.clock)
        if phase is Phase.EXPIRED or (urgency is Urgency.REJECTED and self._state.has_credentials):
            return True
        if hold.is_held_elsewhere:
            return False
        return urgency > Urgency.AHEAD or phase is Phase.HARD


def _has_no_way(failed: FailedAttempt) -> bool:
    """Return whether the session had no means to renew its token."""
    return not failed.attempted and failed.error is not SUPERSEDED


def _store_error_of(hold: AsyncStoreHold) -> StoreError | None:
    """Return the reason if the store is not both locked and read."""
    if hold.problem is not None:
        return hold.problem
    if hold.is_ready:
        return None
    what = "read" if hold.locked else "locked"
    return StoreError(f"the token store could not be {what} in time")


def _both(old: Snapshot, first: FailedAttempt, second: FailedAttempt) -> FailedAttempt:
    """Combine a failed refresh and a failed sign-in after it."""
    if second.attempted:
        return second._replace(refused=first.refused)
    if not first.refused:  # reported unchanged: the token may still be good
        return first
    from .._core.endings import refused  # noqa: PLC0415 - see that module

    return FailedAttempt(refused(old, first.error), refused=True)
