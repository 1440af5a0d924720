"""Run one renewal: lock the store, read it again, request a token, commit it, save it, unlock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.deadline import Deadline
from .._core.log import log
from .._core.results import renewal_timed_out
from .._core.snapshot import FailedAttempt, Need, NewToken, Phase, Snapshot, Urgency
from .._core.state import SUPERSEDED
from .._core.tokens import identity
from .token_source import is_refusal

if TYPE_CHECKING:
    from .._core.errors import KoyebSessionError, StoreError
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

    __slots__ = ("_persistence", "_refused", "_signs_in", "_source", "_state")

    def __init__(
        self, state: SessionState, source: AsyncTokenSource, persistence: AsyncPersistence | None
    ) -> None:
        self._persistence = persistence
        self._refused = False
        """Whether the service has rejected the token."""
        self._signs_in = False
        """Whether it has begun to sign in."""
        self._source = source
        self._state = state

    def failed(self, error: KoyebSessionError) -> FailedAttempt:
        """Return the result of a renewal that ends at its present step: a sign-in is not free."""
        return FailedAttempt(error, signs_in=self._signs_in, refused=self._refused)

    async def run(self, need: Need) -> Snapshot | FailedAttempt:
        """Replace a snapshot; locking and reading the store may take half of the time for it."""
        deadline = Deadline(need.seconds)
        outcome = await self._run_at_store(need, deadline)
        # Only now: it may be sent again after a wait, and nobody sleeps under the store's lock.
        if isinstance(outcome, FailedAttempt) and outcome.unused is not None:
            await self._source.revoke(outcome.unused, deadline)
        return outcome

    async def look(self, need: Need) -> None:
        """Take over a token that others have saved; without the lock, as nothing is sent."""
        if self._persistence is not None:
            newer = await self._persistence.newer_unlocked(need.old)
            if newer is not None:
                self._commit(newer, need)

    async def _run_at_store(self, need: Need, deadline: Deadline) -> Snapshot | FailedAttempt:
        persistence = self._persistence
        if persistence is None:
            return await self._request_new_token(need, deadline)
        # The renewal stays in the hold until its token is saved, or its time is up.
        hold = persistence.hold()
        try:
            # Half of the time: a store that hangs must leave time for a renewal without it.
            await hold.ready(deadline.left() / 2)
            return await self._run_in_hold(need, deadline, hold)
        finally:
            await hold.leave(deadline)

    async def _run_in_hold(
        self, need: Need, deadline: Deadline, hold: AsyncStoreHold
    ) -> Snapshot | FailedAttempt:
        newer = await self._saved_by_others(need.old, deadline, hold)
        if need.generation != self._state.generation:  # signed out, or in again, in the meantime
            return FailedAttempt(SUPERSEDED)
        if newer is not None:
            return self._commit(newer, need)
        problem = hold.not_ready
        # The holder of the lock may be refreshing the same token, so this one must not.
        held_elsewhere = problem if hold.is_held_elsewhere else None
        if problem:
            if not self._may_renew_without_store(need, hold):
                return FailedAttempt(problem)
            where = "inside the store's lock" if hold.locked else "without the store"
            what = "the session signs in" if need.old is None else "the token is renewed"
            if need.old is not None or self._state.has_credentials:
                log.warning("%s %s: %s", what, where, problem)
        outcome = await self._request_new_token(need, deadline, hold, held_elsewhere)
        # Without any means to renew, the failure of the store is the cause to report.
        if isinstance(outcome, FailedAttempt):
            return FailedAttempt(problem) if problem and not outcome.attempted else outcome
        # Still in the hold: the next process that gets the lock must not find the old token.
        if self._persistence is not None:
            await self._persistence.synchronize(deadline, hold)
        return outcome

    async def _request_new_token(
        self,
        need: Need,
        deadline: Deadline,
        hold: AsyncStoreHold | None = None,
        held_elsewhere: StoreError | None = None,
    ) -> Snapshot | FailedAttempt:
        """Refresh, or sign in again if a refresh does not help; commit the new token."""
        old = need.old
        refused: FailedAttempt | None = None
        # Nobody would read the reply, which might hold the session's only token.
        if deadline.passed:
            return FailedAttempt(renewal_timed_out(deadline.seconds))
        # A rejected token counts as expired: after any failure the credentials are tried.
        signs_in = need.urgency is Urgency.REJECTED and self._state.has_credentials
        if old is not None and not held_elsewhere and self._can_refresh(old, signs_in=signs_in):
            outcome = await self._source.refresh(old, deadline)
            if isinstance(outcome, NewToken):
                # At once: this task waits for nothing between the reply and the commit.
                return self._commit(outcome, need)
            if not (signs_in or is_refusal(outcome.error)):
                return outcome  # a later attempt may get another answer
            refused, self._refused = outcome, outcome.refused
            # Another process may have refreshed it first, for example after the lock's lease ended.
            if hold is not None and hold.locked:
                await hold.read_again(deadline.left() / 2)
            if newer := await self._saved_by_others(old, deadline, hold):
                return self._commit(newer, need)
        replaced = await self._newest(need, deadline, hold)
        # The holder of the lock may be using the same secret, and a second use ends the grant.
        if held_elsewhere and self._source.uses_up(replaced):
            return FailedAttempt(held_elsewhere)
        self._signs_in = self._state.has_credentials
        outcome = await self._source.sign_in(old, replaced, deadline)
        if isinstance(outcome, FailedAttempt) and refused is not None and old is not None:
            outcome = _both(old, refused, outcome)
        return await self._settle(outcome, need, replaced, deadline, hold)

    async def _newest(
        self, need: Need, deadline: Deadline, hold: AsyncStoreHold | None
    ) -> Token | None:
        """Return the newest known token; another process may have saved it, and may use it up."""
        persistence = self._persistence
        if hold is None or persistence is None:
            return None if need.old is None else need.old.token
        found = hold.found
        if not hold.locked:
            found = await persistence.load_unlocked(deadline.left() / 2)
        return persistence.latest(found, need.old, hold.known)

    async def _settle(
        self,
        outcome: Attempt,
        need: Need,
        replaced: Token | None,
        deadline: Deadline,
        hold: AsyncStoreHold | None,
    ) -> Snapshot | FailedAttempt:
        """Commit a token of the credentials; keep its one-time secret even if that fails."""
        token = outcome.expired if isinstance(outcome, FailedAttempt) else outcome.token
        secret = token and token.renewal
        persistence = self._persistence
        if token and replaced and persistence:
            persistence.mark_replaced(replaced)
        # Saved before it is used: the provider no longer accepts the one-time secret before it. A
        # program that ends now must find the new one in the store.
        try:
            if token and secret and hold and persistence:
                # Half of the time: callers must get the token although the store hangs.
                ahead = Deadline(deadline.left() / 2)
                await persistence.save_ahead(hold, token, need.generation, ahead)
        finally:  # also if the time of the renewal ends in the save: the secret is nowhere else
            settled = outcome if isinstance(outcome, FailedAttempt) else self._commit(outcome, need)
            is_kept = not secret or isinstance(settled, Snapshot)
            if secret and not is_kept:
                self._keep_secret(need, secret)
        # The store holds the token that was saved ahead, and must hold the session's own.
        if persistence is not None and not is_kept:
            await persistence.synchronize(deadline, hold)
        return settled

    def _keep_secret(self, need: Need, secret: str) -> None:
        """Keep the one-time secret of a token that the session does not hold."""
        if need.old is not None:
            self._state.keep_secret(need.old, secret)
        if self._persistence is not None:
            self._state.mark_unsaved()

    def _can_refresh(self, old: Snapshot, *, signs_in: bool) -> bool:
        """Return whether to try a refresh; in a back-off, credentials are used instead."""
        seen = self._state.observe()
        if signs_in and seen.failure is not None and seen.failure.bars_refresh(seen.now):
            return False
        return self._source.can_refresh(old) and old.phase(seen.now) is not Phase.EXPIRED

    async def _saved_by_others(
        self, old: Snapshot | None, deadline: Deadline, hold: AsyncStoreHold | None
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
        newer = persistence.judge(hold, old)
        is_other = hold.found is not None and (
            old is None or identity(hold.found) != identity(old.token)
        )
        if newer is None and is_other:
            await hold.read_again(deadline.left() / 2)
            newer = persistence.judge(hold, old)
        return newer

    def _commit(self, new_token: NewToken, need: Need) -> Snapshot | FailedAttempt:
        """Commit a new token; the failure names it if the session has moved on without it."""
        unsaved = self._persistence is not None and not new_token.from_store
        committed = self._state.commit(
            new_token, need.generation, replaces=need.old, unsaved=unsaved
        )
        if isinstance(committed, Snapshot):
            self._state.log_new_token(new_token, committed)
            return committed
        if committed is not SUPERSEDED:
            return FailedAttempt(committed, signs_in=new_token.event == "signed_in")
        unused = new_token.token if new_token.just_issued else None
        return FailedAttempt(committed, unused=unused)

    def _may_renew_without_store(self, need: Need, hold: AsyncStoreHold) -> bool:
        """
        Decide whether to go on if the store could not be locked and read.

        The holder of its lock may be refreshing the same token, and two refreshes may cost everyone
        the session. A token that has expired, or was rejected, is replaced by signing in instead,
        where that is possible.
        """
        phase = Phase.EXPIRED if need.old is None else need.old.phase(self._state.clock)
        rejected = need.urgency is Urgency.REJECTED
        if phase is Phase.EXPIRED or (rejected and self._state.has_credentials):
            return True
        if hold.is_held_elsewhere:
            return False
        return need.urgency > Urgency.AHEAD or phase is Phase.HARD


def _both(old: Snapshot, first: FailedAttempt, second: FailedAttempt) -> FailedAttempt:
    """Combine a failed refresh and a failed sign-in after it."""
    if second.attempted:
        return second._replace(refused=first.refused)
    if not first.refused:  # reported unchanged: the token may still be good
        return first
    from .._core.endings import refused  # noqa: PLC0415 - see that module

    return FailedAttempt(refused(old, first.error), refused=True)
