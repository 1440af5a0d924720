"""One renewal: lock the store, read it again, obtain a token, commit it, save it, unlock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.deadline import Deadline
from .._core.errors import KoyebSessionError, StoreError
from .._core.log import log
from .._core.results import not_renewed
from .._core.snapshot import Failed, Obtained, Phase, Snapshot, Urgency
from .._core.state import SUPERSEDED
from .token_source import is_refusal

if TYPE_CHECKING:
    from .._core.state import SessionState
    from .persistence import AsyncPersistence
    from .store_turn import AsyncStoreTurn
    from .token_source import AsyncTokenSource, NewToken


class AsyncRenewal:
    """
    Obtains a newer token where it may be had, inside the store's lock whenever that can be had.

    The keeper sees to it that there is one at a time.
    """

    __slots__ = ("_persistence", "_source", "_state")

    def __init__(
        self, state: SessionState, source: AsyncTokenSource, persistence: AsyncPersistence | None
    ) -> None:
        self._persistence = persistence
        self._source = source
        self._state = state

    def refusal(self) -> KoyebSessionError | None:
        """Tell why the calling thread or task must not wait for a renewal; `None`: it may."""
        return None

    async def run(
        self, old: Snapshot | None, fence: int, urgency: Urgency, deadline: Deadline
    ) -> Snapshot | Failed:
        """
        Replace ``old``.

        Args:
            old: The snapshot to replace; `None` when there is none.
            fence: What ``state.fence`` was when this was decided.
            urgency: How much the callers need it.
            deadline: For all of it. The store has half of it to be locked and read.
        """
        persistence = self._persistence
        if persistence is None:
            return await self._obtain(old, fence, urgency, deadline)
        turn = persistence.turn()
        try:
            await turn.ready(deadline.left() / 2)
            return await self._run(turn, old, fence, urgency, deadline=deadline)
        finally:
            await turn.leave(deadline)

    async def _run(
        self,
        turn: AsyncStoreTurn,
        old: Snapshot | None,
        fence: int,
        urgency: Urgency,
        *,
        deadline: Deadline,
    ) -> Snapshot | Failed:
        newer = await self._saved_by_others(turn, old, deadline)
        if fence != self._state.fence:  # the session changed while the store was waited for
            return Failed(SUPERSEDED, attempted=False)
        if newer is not None:
            return self._commit(newer, old, fence)
        may_exchange = True
        if problem := _problem_of(turn):
            may_exchange = not turn.is_held_elsewhere
            if not self._may_go_on(old, urgency, turn):
                return Failed(problem)
            where = "inside the store's lock" if turn.locked else "without the store"
            log.warning("the token is renewed %s: %s", where, problem)
        outcome = await self._obtain(
            old, fence, urgency, deadline, turn=turn, may_exchange=may_exchange
        )
        if isinstance(outcome, Failed) and problem and _has_no_way(outcome):
            return Failed(problem)
        if isinstance(outcome, Snapshot) and self._persistence is not None:
            await self._persistence.follow(deadline)
        return outcome

    async def _obtain(
        self,
        old: Snapshot | None,
        fence: int,
        urgency: Urgency,
        deadline: Deadline,
        *,
        turn: AsyncStoreTurn | None = None,
        may_exchange: bool = True,
    ) -> Snapshot | Failed:
        """Refresh, or sign in again where that cannot help; commit what comes of it."""
        refused: Failed | None = None
        if deadline.passed:
            return Failed(not_renewed(deadline.seconds))
        # A token that was refused counts as expired: what else fails must not end the session.
        signs_in = urgency is Urgency.REJECTED and self._state.has_credentials
        if old is not None and may_exchange and self._can_refresh(old, signs_in=signs_in):
            outcome = await self._source.refresh(old, deadline)
            if isinstance(outcome, Obtained) or not (signs_in or is_refusal(outcome.error)):
                return await self._settle(outcome, old, fence, deadline)
            refused = outcome
            # Somebody may have exchanged it meanwhile, as after a lease that has ended.
            if turn is not None and turn.locked:
                await turn.read_again(deadline.left() / 2)
            if newer := await self._saved_by_others(turn, old, deadline):
                return self._commit(newer, old, fence)
        replaced = None if old is None else old.token
        if turn is not None and self._persistence is not None:
            replaced = self._persistence.latest(turn.found, old, turn.known)
        outcome = await self._source.sign_in(old, replaced, deadline)
        if isinstance(outcome, Failed) and refused is not None and old is not None:
            outcome = _both(old, refused, outcome)
        ahead = isinstance(outcome, Obtained) and await self._save_ahead(outcome, turn, deadline)
        settled = await self._settle(outcome, old, fence, deadline)
        if ahead and isinstance(settled, Failed) and self._persistence is not None:
            self._persistence.owe()  # the session has moved on, and the store has to follow
            await self._persistence.follow(deadline)
        return settled

    async def _save_ahead(
        self, obtained: Obtained, turn: AsyncStoreTurn | None, deadline: Deadline
    ) -> bool:
        """
        Save a token with a secret that can be used once, before anybody uses the token.

        The provider has forgotten the secret before it. A program that ends now must find the new
        one in the store.
        """
        if turn is None or self._persistence is None or obtained.token.renewal is None:
            return False
        await self._persistence.save_ahead(turn, obtained, deadline)
        return True

    def _can_refresh(self, old: Snapshot, *, signs_in: bool) -> bool:
        """Tell whether to try a refresh; not in a back-off, where credentials can do without."""
        look = self._state.look()
        failed = look.trouble if signs_in else None
        in_backoff = failed is not None and failed.blocks(look.now)
        if in_backoff and not isinstance(failed and failed.error, StoreError):
            return False
        return self._source.can_refresh(old) and old.phase(look.now) is not Phase.EXPIRED

    async def _saved_by_others(
        self, turn: AsyncStoreTurn | None, old: Snapshot | None, deadline: Deadline
    ) -> Obtained | None:
        """
        Return a newer token that somebody else has saved, if there is one.

        A record that is there but cannot be used is read a second time: a store may hand out the
        first one without its lock, and locks for certain before it reads again.
        """
        persistence = self._persistence
        if turn is None or persistence is None:
            return None
        if not turn.locked:
            found = await persistence.load_unlocked(deadline.left() / 2)
            return persistence.newer(found, old, turn.known)
        newer = persistence.newer(turn.found, old, turn.known)
        is_other = turn.found is not None and (old is None or turn.found.id != old.token.id)
        if newer is None and is_other:
            await turn.read_again(deadline.left() / 2)
            newer = persistence.newer(turn.found, old, turn.known)
        return newer

    async def _settle(
        self, outcome: NewToken, old: Snapshot | None, fence: int, deadline: Deadline
    ) -> Snapshot | Failed:
        """Commit a new token; one that comes too late is revoked."""
        if isinstance(outcome, Failed):
            return outcome
        committed = self._commit(outcome, old, fence)
        if outcome.minted and isinstance(committed, Failed) and committed.error is SUPERSEDED:
            await self._source.revoke(outcome.token, deadline)
        return committed

    def _commit(self, obtained: Obtained, old: Snapshot | None, fence: int) -> Snapshot | Failed:
        persistence = None if obtained.from_store else self._persistence
        if persistence is not None:
            persistence.owe()
        committed = self._state.commit(
            obtained, fence, replaces=old, unsaved=persistence is not None
        )
        if persistence is not None:
            persistence.owe()
        if isinstance(committed, KoyebSessionError):
            return Failed(committed, attempted=committed is not SUPERSEDED)
        self._state.log_new_token(obtained, committed)
        return committed

    def _may_go_on(self, old: Snapshot | None, urgency: Urgency, turn: AsyncStoreTurn) -> bool:
        """
        Decide whether to go on although the store could not be locked and read.

        Whoever holds its lock may be exchanging the same token, and two exchanges may cost all the
        session. A token that has expired, or is refused, is not exchanged but replaced by signing
        in, where that is possible.
        """
        phase = Phase.EXPIRED if old is None else old.phase(self._state.clock)
        if phase is Phase.EXPIRED or (urgency is Urgency.REJECTED and self._state.has_credentials):
            return True
        if turn.is_held_elsewhere:
            return False
        return urgency > Urgency.AHEAD or phase is Phase.HARD


def _has_no_way(failed: Failed) -> bool:
    """Tell whether there was nothing to renew a token with."""
    return not failed.attempted and failed.error is not SUPERSEDED


def _problem_of(turn: AsyncStoreTurn) -> StoreError | None:
    """Tell why a turn is not inside the lock with what the store holds."""
    if turn.problem is not None:
        return turn.problem
    if turn.is_ready:
        return None
    what = "read" if turn.locked else "locked"
    return StoreError(f"the token store could not be {what} in time")


def _both(old: Snapshot, first: Failed, second: Failed) -> Failed:
    """Tell of a refused refresh after which the credentials brought no token either."""
    if second.attempted:
        return second._replace(refused=first.refused)
    if not first.refused:  # it is told as it is: the token may still be good
        return first
    from .._core.endings import refused  # noqa: PLC0415 - as that module says

    return Failed(refused(old, first.error), refused=True)
