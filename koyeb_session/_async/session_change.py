"""Begin and end sessions: login, a given token, another organization, logout."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .._concurrency.event_loop.deadlines import async_within
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import state_lock
from .._core.deadline import Deadline
from .._core.errors import KoyebSessionError
from .._core.log import fields, log
from .._core.results import cannot_wait, not_signed_out
from .._core.snapshot import NewToken, Owner, Phase, Snapshot
from .._core.state import SUPERSEDED

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .keeper import AsyncTokenKeeper


class AsyncSessionChange:
    """
    One sign-in or sign-out.

    It changes the session in memory, in one step. That raises the session's generation, so that no
    renewal that began before can commit its token. The rest, in the store and at the service, runs
    in a shared task: a cancelled caller must not leave the old token in the store.
    """

    def __init__(self, keeper: AsyncTokenKeeper, deadline: Deadline) -> None:
        self._generation = keeper.state.generation
        self._keeper = keeper
        self._persistence = keeper.persistence
        self._source = keeper.source
        self._state = keeper.state
        self.deadline: Deadline = deadline
        self._ended: tuple[AsyncSharedTask[Any] | None, Snapshot | None] | None = None
        """The renewal and the snapshot of the session that this has ended."""
        self._store_problem: KoyebSessionError | None = None
        self._service_problem: KoyebSessionError | None = None

    async def begin(
        self,
        new_token: NewToken,
        *,
        account: str | None = None,
        bound: bool = False,
        continues: bool = False,
    ) -> Snapshot | KoyebSessionError:
        """
        Begin a session with a token.

        The token is committed first, and its save comes after it: a store that fails costs no
        session.

        Args:
            new_token: The token.
            account: The account of the session; `None`: the same account as before.
            bound: See `Owner.bound`.
            continues: Whether it continues the session that was current when this object was made.
                It then replaces no other session.
        """
        if account is not None:
            new_token = new_token._replace(owner=Owner(account, bound))
        unsaved = self._persistence is not None
        generation = self._generation if continues else None
        outcome = self._state.commit(
            new_token, generation, since=self._generation, begins=True, unsaved=unsaved
        )
        if isinstance(outcome, KoyebSessionError):
            # The session changed while the token was on its way, so nobody will use the token.
            if outcome is SUPERSEDED and new_token.just_issued:
                await self._source.revoke(new_token.token, self.deadline)
            return outcome
        self._state.log_new_token(new_token, outcome)  # last: a filter of the user may raise
        if self._keeper.listeners or unsaved:
            await self._task(self._synchronize).run(None if self._keeper.may_wait else 0.0)
        return outcome

    async def end(self) -> KoyebSessionError | None:
        """
        End the session: in memory at once, then in the store and at the service.

        If one of these fails, the others are done nevertheless.
        """
        # The task does all of it: a signal handler may raise between any two steps of the caller.
        task = self._task(self._end, first=self._clear_unless_replaced)
        may_wait = self._keeper.may_wait
        problem = await task.run(None if may_wait else 0.0)
        if task.succeeded:
            return problem
        if not task.alive:  # its thread started too late, or its event loop ended
            self._clear_unless_replaced()
        return not_signed_out(self.deadline) if may_wait else cannot_wait("logout: it goes on")

    def _task(
        self, work: Callable[[], Any], first: Callable[[], Any] | None = None
    ) -> AsyncSharedTask[KoyebSessionError | None]:
        """Make the shared task for the rest of a change, and for the listeners."""
        return AsyncSharedTask(
            work,
            self._keeper.tell_listeners,
            first=first,
            seconds=self.deadline.left(),
            active_tasks=self._keeper.active_tasks,
            owner=self._state,
        )

    async def _synchronize(self) -> KoyebSessionError | None:
        if self._persistence is None:
            return None
        return await self._persistence.synchronize(self.deadline)

    def _clear_unless_replaced(self) -> None:
        """
        Sign out in memory.

        If a signal handler has kept the task from starting, `aclose` or the interpreter's end
        starts it. A session that has begun since is not the one to end.
        """
        with state_lock:
            if self._generation != self._state.generation and not self._state.signed_out:
                return
            # From here on, no renewal that began before can commit its token.
            old = self._state.clear(unsaved=self._persistence is not None)
            self._ended = self._keeper.task, old

    async def _end(self) -> KoyebSessionError | None:
        """End the session in the store and at the service, and log it."""
        if self._ended is None:  # another session has begun
            return None
        renewal, old = self._ended
        try:
            await async_within(self.deadline.left(), partial(self._revoke_all, renewal, old))
        except TimeoutError:
            self._service_problem = self._service_problem or not_signed_out(self.deadline)
        problem, forgotten = self._service_problem, self._store_problem
        if old is not None or problem is not None:
            at_service = "" if problem is None else f"; at the service: {problem}"
            name = None if problem is None else type(problem).__name__
            log.info("signed out%s", at_service, extra=fields("signed_out", error=name))
        if problem is not None and forgotten is not None:
            log.warning("the token may still be in the store: %s", forgotten)
        return problem or forgotten

    async def _revoke_all(self, renewal: AsyncSharedTask[Any] | None, old: Snapshot | None) -> None:
        """Empty the store and revoke the tokens; keep each failure, as time may run out."""
        deadline = self.deadline
        # The store first: a service that hangs must not keep it from being emptied.
        found = None
        if self._persistence is not None:
            half = Deadline(deadline.left() / 2)
            found, self._store_problem = await self._persistence.sign_out(old, half)
        if found is not None:
            self._service_problem = await self._source.revoke(found, deadline)
        if old is not None and old.phase(self._state.clock) is not Phase.EXPIRED:
            problem = await self._source.revoke(old.token, deadline)
            self._service_problem = problem or self._service_problem
        # A renewal that is running finds the session ended, and revokes its new token.
        if renewal is not None and renewal.under_way:
            await renewal.wait_done(deadline.left())
