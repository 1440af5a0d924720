"""Keep the store in step with the session: only this module loads, saves and deletes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from .._concurrency.event_loop.calls import exceptions_only
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import state_lock
from .._core.deadline import PATIENCE, Deadline
from .._core.errors import StoreError
from .._core.log import log
from .._core.models import Token
from .._core.ownership import NEVER_READ, Ownership
from .._core.results import store_failure, unwrap
from .._core.snapshot import Issuer, NewToken, Owner, Snapshot
from .._core.tokens import Identity, identity
from .._core.validation import kind_error, parse_token
from .store_hold import AsyncStoreHold

if TYPE_CHECKING:
    from typing import Any

    from .._concurrency.event_loop.shared_task import AsyncWork
    from .._core.state import SessionState
    from .stores.protocol import AsyncTokenStore

T = TypeVar("T")


class AsyncPersistence:
    """
    Keeps track of the saved record, and of changes that are not saved yet.

    Work at the store happens in a hold of its lock: a shared task that no caller owns. Nobody
    cancels a hold; callers stop waiting for it instead.

    A save names no token. It writes the session's current token, or deletes, and repeats that until
    the session no longer changes. So a slow writer cannot restore a token that has been replaced or
    signed out in the meantime.
    """

    __slots__ = (
        "_active_tasks",
        "_hold",
        "_is_retrying",
        "_known",
        "_last_read",
        "_problem",
        "_timeout",
        "_written",
        "ownership",
        "state",
        "store",
    )

    def __init__(
        self,
        store: AsyncTokenStore,
        state: SessionState,
        ownership: Ownership,
        *,
        timeout: float,
        active_tasks: set[AsyncSharedTask[Any]],
    ) -> None:
        self._active_tasks = active_tasks
        self._hold: AsyncStoreHold | None = None
        self._is_retrying = False
        self._known: Identity | None = NEVER_READ
        """The identity of the saved token, as this session last judged or wrote it."""
        self._last_read: Token | None = None
        """The saved token as any hold has last read it: a store's errors may quote it."""
        self._problem: StoreError | None = None
        self._timeout = timeout
        self._written: object = state.change
        """The last change of the session that is in the store."""
        self.ownership: Ownership = ownership
        self.state: SessionState = state
        self.store: AsyncTokenStore = store

    # For changes of the session

    @property
    def _unsaved(self) -> bool:
        """Whether the session has changed, and no write of that change has ended."""
        return self.state.change is not self._written

    async def synchronize(
        self, deadline: Deadline, inside: AsyncStoreHold | None = None
    ) -> StoreError | None:
        """
        Write unsaved changes of the session to the store.

        Args:
            deadline: The end of the wait.
            inside: The hold that the caller is in, whose lock a further one would wait for.

        Returns:
            The reason if they are not saved yet. A hold that takes longer keeps working on it.
        """
        if not self._unsaved:
            return None
        if inside is None or not inside.locked:
            hold, joined = self.hold(), True
        else:
            hold, joined = inside, False
        # If time runs out, the job stays queued, and the hold still does it.
        try:
            await hold.ready(deadline.left())
            done = await hold.do(partial(self._write_changes, hold), deadline.left())
        finally:
            if joined:
                await hold.leave(deadline)
        if done:
            return self._problem
        self._retry_later()
        problem = hold.problem or StoreError("the token store could not be written in time")
        left = f"; {hold.left}" if hold.left else ""
        what = "the new token is kept in memory only"
        if self.state.snapshot is None:
            what = "the token may still be in the store"
        log.warning("%s: %s%s", what, problem, left)
        return problem

    async def sign_out(
        self, old: Snapshot | None, deadline: Deadline
    ) -> tuple[Token | None, StoreError | None]:
        """
        Delete the saved token.

        Returns:
            The token to revoke besides ``old``, and the reason why the store may still hold one.
        """
        hold, change = self.hold(), self.state.change
        # Each step may take half of the remaining time, so that some is left for the last one.
        try:
            await hold.ready(deadline.left() / 2)
            found = hold.found
            done = await hold.do(partial(self._write_changes, hold, old), deadline.left() / 2)
        finally:
            await hold.leave(Deadline(deadline.left() / 2))
        problem = self._problem
        if not done:
            problem = hold.problem or StoreError("the token store could not be emptied in time")
            found = found or await self.load_unlocked(deadline.left() / 4)
            # Deleting without the lock is better than not deleting. The hold deletes again later.
            is_kept = found is not None and self.ownership.is_kept(found, old)
            if is_kept or await self._delete_unlocked(deadline.left() / 2):
                problem = None
            # Nobody can have the lock: no hold would do it better later.
            if problem is None and hold.cannot_be_had and self._is_emptying:
                self._written = change
        return self._to_revoke(found, old), problem

    async def _delete_unlocked(self, seconds: float) -> bool:
        """
        Delete the saved token without the lock; return whether that was done.

        Another caller may sign in, and save, before the store has deleted. That token is then saved
        again by the task that deletes, as nobody may be left to wait for it.
        """

        async def delete() -> bool:
            try:
                problem = await self._tried("emptied", self.store.delete)
                return not isinstance(problem, StoreError)
            finally:
                if self.state.snapshot is not None:
                    self.state.mark_unsaved()
                    await self.synchronize(Deadline(self._timeout))

        return bool(await self._unlocked(delete, seconds))

    def _to_revoke(self, found: Token | None, old: Snapshot | None) -> Token | None:
        """Return the saved token if it is this session's own, and another than its last ones."""
        if found is None or self.ownership.is_foreign(found, old):
            return None
        # Another task or thread may have signed in meanwhile: its token must not be revoked.
        if any(its and its.token.id == found.id for its in (old, self.state.snapshot)):
            return None
        return found

    def pending_save(
        self, on_done: AsyncWork[None] | None = None, *, overdue: bool = False
    ) -> AsyncSharedTask[StoreError | None] | None:
        """
        Return an unstarted task that repeats a failed save; `None` if none is to be repeated.

        If it is ``overdue``, it may also have been interrupted before it began. It may take over
        another process's token: ``on_done`` tells of that.
        """
        is_idle = self._hold is None or not self._hold.alive  # a hold completes the save itself
        if not (self._unsaved and (self._is_retrying or overdue) and is_idle):
            return None
        self._is_retrying = True  # late: another process may have saved its token in the meantime
        save = partial(self.synchronize, Deadline(self._timeout))
        return AsyncSharedTask(
            save, on_done, seconds=self._timeout, active_tasks=self._active_tasks
        )

    async def drain(self, timeout: float) -> None:
        """Wait for the running hold, and then save an unsaved change."""
        deadline = Deadline(timeout)
        # First wait for a running hold, which may complete the save itself.
        if self._hold is not None and self._hold.alive:
            await self._hold.wait_done(deadline.left())
        if self._unsaved:
            await self.synchronize(deadline)

    # For renewals

    def hold(self) -> AsyncStoreHold:
        """Join the running hold, or start one; the caller must call its `leave` once."""
        # One step under the lock: this object never has two holds that callers can join.
        with state_lock:
            hold = self._hold
            if hold is not None and hold.join():
                return hold
            self._hold = hold = AsyncStoreHold(
                self.store,
                self._read,
                self._give_up,
                self._error,
                known=self._known,
                seconds=PATIENCE * self._timeout,
                active_tasks=self._active_tasks,
                owner=self.state,
            )
        hold.start()
        return hold

    def judge(self, hold: AsyncStoreHold, own: Snapshot | None) -> NewToken | None:
        """Return the record that a hold has read, if it is newer; it is known from then on."""
        self._mark_known(hold)
        return self.newer(hold.found, own, hold.known)

    def _mark_known(self, hold: AsyncStoreHold) -> None:
        """
        Count the record that a hold has read as known to this session.

        The read itself does not: its caller may be gone by then, and nobody would take it over.
        """
        if hold.not_ready is None:
            self._known = None if hold.found is None else identity(hold.found)

    def newer(
        self, found: Token | None, own: Snapshot | None, known: Identity | None
    ) -> NewToken | None:
        """See `Ownership.newer`; a record that is about to be deleted or replaced is not newer."""
        if self._is_emptying or (own is not None and self._is_replaced(found)):
            return None
        return self.ownership.newer(found, own, known)

    def latest(
        self, found: Token | None, own: Snapshot | None, known: Identity | None
    ) -> Token | None:
        """Return the newest known token, expired or not, from which a callable continues."""
        token = None if own is None else own.token
        if found is None or self._is_emptying or self.ownership.is_foreign(found, own):
            return token
        # A record that this session has seen, but could not use, is newer all the same. It is older
        # only if the session's own token could not be saved over it.
        is_older = self._is_replaced(found) or (self._unsaved and identity(found) == known)
        return token if token is not None and is_older else found

    def mark_replaced(self, record: Token) -> None:
        """Count a record as older than the token that has followed it: its secret is used up."""
        self.ownership.ours.add(identity(record))

    def _is_replaced(self, found: Token | None) -> bool:
        """Return whether the session's own token is newer, but could not be saved over a record."""
        return found is not None and self._unsaved and identity(found) in self.ownership.ours

    @property
    def _is_emptying(self) -> bool:
        """Whether the store may still hold the token of a session that was signed out."""
        return self.state.signed_out and self._unsaved

    async def load_unlocked(self, seconds: float) -> Token | None:
        """Load a token that another process may have saved, without holding the lock."""
        found = await self._unlocked(partial(self._tried, "read", self._load), seconds)
        return None if isinstance(found, StoreError) else found

    async def newer_unlocked(self, own: Snapshot | None) -> NewToken | None:
        """Load and judge a record without holding the lock; wait for as long as the store takes."""
        found = await self._tried("read", self._load)
        if isinstance(found, StoreError):  # the next renewal reports it
            return None
        return self.newer(found, own, self._known)

    async def save_ahead(
        self, hold: AsyncStoreHold, token: Token, generation: int, deadline: Deadline
    ) -> None:
        """
        Save credentials' token before the session holds it; after a failure `synchronize` does.

        Save nothing if the session has moved on from ``generation``, and will not hold it.
        """

        async def save() -> None:
            owner = self.state.owner  # first: it changes after the generation
            if generation != self.state.generation:
                return
            self.ownership.ours.add(identity(token))
            if problem := await self._save(token, Issuer.CREDENTIALS, owner, hold):
                log.debug("%s", problem)

        await hold.do(save, deadline.left())

    # For the task that holds the lock: all of this runs in it, one method at a time

    async def _load(self) -> Token | None:
        """Load the saved token; raise if it is none, as the user's store may return anything."""
        found = await self.store.load()
        unwrap(kind_error("the token of load()", found, Token))
        if found is not None:
            unwrap(parse_token(found, 0.0, "token.id"))  # at 0.0 none has expired
        return found

    async def _read(self, hold: AsyncStoreHold) -> None:
        """
        Load the saved token, with a second attempt if the first one fails.

        A refresh without the saved token may cost the session: that token may be the newer one.
        """
        for _ in range(2):
            found = await self._tried("read", self._load)
            if not isinstance(found, StoreError):
                # `hold.known` stays: a second read must not make a new record look known.
                hold.found = self._last_read = found
                hold.problem = None
                return
            hold.problem = found

    async def _give_up(self, hold: AsyncStoreHold) -> None:
        """Delete the record, which is out of date: nobody can have the lock to replace it."""
        own = self.state.snapshot
        if own is not None and self._unsaved:
            hold.left = await self._forget(own, hold)

    async def _write_changes(self, hold: AsyncStoreHold, old: Snapshot | None = None) -> None:
        """
        Write the current token, or delete, until the session no longer changes.

        After a sign-out, ``old`` is the snapshot that it has ended.
        """
        state = self.state
        while self._unsaved:
            # One step, before the write: a change during it is another one, and written next.
            with state_lock:
                change, snapshot, owner = state.change, state.snapshot, state.owner
            self._problem = None
            if snapshot is None and not state.signed_out:
                self._written = change
                continue  # nothing to write and nothing to delete
            # A retry comes late: another process may have saved its token in the meantime.
            if self._is_retrying and self.ownership.is_others(hold.found, snapshot, hold.known):
                # Keep it there. After another sign-in, the commit fails: it names the snapshot.
                if snapshot and (newer := self.judge(hold, snapshot)):
                    state.commit(newer, replaces=snapshot)
            else:
                # The record that is replaced is older, also if replacing it fails.
                self._mark_known(hold)
                hold.known = self._known
                if snapshot is None:
                    self._problem = await self._delete(hold, old)
                else:
                    self._problem = await self._write(snapshot, owner, hold)
            if self._problem is not None:
                self._retry_later()
                return
            self._written, self._is_retrying = change, False
            if snapshot is not None:
                snapshot.cancel_check()

    async def _write(self, own: Snapshot, owner: Owner, hold: AsyncStoreHold) -> StoreError | None:
        """Save the session's token; if that fails, delete the saved one, which is out of date."""
        self.ownership.ours |= {identity(its) for its in (own.token, hold.found) if its}
        problem = await self._save(own.token, own.issuer, owner, hold)
        if problem is None:
            self.ownership.ours = {identity(own.token)}
        elif what := await self._forget(own, hold):
            log.warning("the new token is kept in memory only: %s; %s", problem, what)
            return problem
        return None  # also if the save has succeeded despite its error

    async def _save(
        self, token: Token, issuer: Issuer, owner: Owner, hold: AsyncStoreHold
    ) -> StoreError | None:
        """Save a token; return the error if that fails."""
        bound = self.ownership.bind(token, issuer, owner)
        problem = await self._tried("written", partial(self.store.save, bound))
        if isinstance(problem, StoreError):
            return problem
        # From now on the saved record is this session's own, not another process's.
        hold.found = token
        hold.known = self._known = identity(token)
        return None

    async def _delete(self, hold: AsyncStoreHold, old: Snapshot | None) -> StoreError | None:
        """Delete the saved token, unless it is foreign; return the error if that fails."""
        if hold.found is not None and self.ownership.is_kept(hold.found, old):
            return None
        problem = await self._tried("emptied", self.store.delete)
        if isinstance(problem, StoreError):
            return problem
        hold.found = self._known = None
        self.ownership.ours.clear()
        return None

    async def _forget(self, own: Snapshot, hold: AsyncStoreHold) -> str | None:
        """
        Delete the saved record, which is out of date.

        Returns:
            The state of the store, for people; `None` if it holds the session's token.
        """
        not_deleted = "what it holds could not be deleted"  # the first error says what is wrong
        found = await self._tried("read", self._load)
        if isinstance(found, StoreError):
            return not_deleted
        if found is not None and identity(found) == identity(own.token):
            self._known = identity(found)
            return None
        if self.ownership.is_others(found, own, self._known):
            return "it holds what somebody else has saved since"
        if isinstance(await self._tried("emptied", self.store.delete), StoreError):
            return not_deleted
        hold.found = self._known = None
        self.ownership.ours.clear()
        return "what it held is deleted"

    def _error(self, what: str, exc: Exception) -> StoreError:
        """Make the error for a store that failed, without the secrets that it may quote."""
        own = self.state.snapshot
        seen = {*self.ownership.ours, self._known or NEVER_READ} - {NEVER_READ}
        tokens = (Token(its.id, renewal=its.renewal) for its in seen)
        held = None if own is None else own.token
        return store_failure(what, exc, *tokens, self._last_read, held)

    def _retry_later(self) -> None:
        """Leave the save to a later request, or to the closing of the client."""
        self._is_retrying = True
        # Not at once: a store that is unavailable must not slow down each request.
        snapshot = self.state.snapshot
        if snapshot is not None:
            snapshot.defer_check(self.state.clock)

    async def _tried(self, what: str, work: AsyncWork[T]) -> T | StoreError:
        """Call the store; return its exception as an error."""
        try:
            with exceptions_only():
                return await work()
        except Exception as exc:  # noqa: BLE001 - the user's store may raise anything
            return self._error(what, exc)

    async def _unlocked(self, work: AsyncWork[T], seconds: float) -> T | None:
        """Call the store without its lock; return `None` if it takes more than ``seconds``."""
        # In a shared task, so that the caller can stop waiting for a store that hangs.
        task = AsyncSharedTask(work, seconds=seconds, active_tasks=self._active_tasks)
        return await task.run(seconds)
