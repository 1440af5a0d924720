"""Keep the store in step with the session: only this module loads, saves and deletes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import state_lock
from .._core.deadline import PATIENCE, Deadline
from .._core.errors import StoreError
from .._core.log import log
from .._core.models import Token
from .._core.provenance import Provenance, read_provenance
from .._core.results import store_error
from .._core.snapshot import Issuer, NewToken, Snapshot
from .._core.tokens import identity, jwt_claims
from .._core.validation import parse_token
from .store_hold import UNKNOWN, AsyncStoreHold

if TYPE_CHECKING:
    from typing import Any

    from .._concurrency.event_loop.shared_task import AsyncWork
    from .._core.state import SessionState
    from .stores.protocol import AsyncTokenStore


class AsyncPersistence:
    """
    Keeps track of the saved record, and of changes that are not saved yet.

    Work at the store happens in a hold of its lock: a shared task that no caller owns. Nobody
    cancels a hold; callers stop waiting for it instead.

    A save names no token. It writes the session's current token, or deletes, and repeats that until
    the session no longer changes. So a slow writer cannot restore a token that has been replaced or
    signed out in the meantime.

    Identity decides which token is newer. A record counts as saved by another process or client if
    it is neither this session's token nor the record that it last read or wrote.
    """

    __slots__ = (
        "_active_tasks",
        "_hold",
        "_is_retrying",
        "_known",
        "_origin",
        "_problem",
        "_replaced",
        "_timeout",
        "_unsaved",
        "_warned",
        "account",
        "bound",
        "state",
        "store",
    )

    def __init__(
        self,
        store: AsyncTokenStore,
        state: SessionState,
        *,
        origin: str,
        account: str | None,
        bound: bool,
        timeout: float,
        active_tasks: set[AsyncSharedTask[Any]],
    ) -> None:
        self._known: str | None = UNKNOWN
        self._is_retrying = False
        self._origin = origin
        self._unsaved = False
        self._problem: StoreError | None = None
        self._replaced: str | None = None
        """The account of the session that this one has replaced."""
        self._timeout = timeout
        self._hold: AsyncStoreHold | None = None
        self._active_tasks = active_tasks
        self._warned: str | None = None
        self.account: str | None = account
        """See `Provenance.account`; `None`: the account of the saved record."""
        self.bound: bool = bound
        """Whether records of other accounts are foreign; so after a login, or with credentials."""
        self.state: SessionState = state
        self.store: AsyncTokenStore = store

    # For changes of the session

    def mark_unsaved(self) -> None:
        """
        Mark the session as changed since the last save.

        Call this before the change and again after it. Before: a signal handler may raise right
        after the change. After: a running hold may have written the old state in between.
        """
        self._unsaved = True

    def begin(self, account: str, *, bound: bool) -> None:
        """Record that a session of this account replaces the session before it."""
        self._replaced, self.account, self.bound = self.account, account, bound

    @property
    def has_unsaved(self) -> bool:
        """Whether a save has failed and should be retried, and no hold is running."""
        return self._unsaved and self._is_retrying and (self._hold is None or not self._hold.alive)

    async def synchronize(self, deadline: Deadline) -> StoreError | None:
        """
        Write unsaved changes of the session to the store.

        Returns:
            The reason if they are not saved yet. A hold that takes longer keeps working on it.
        """
        if not self._unsaved:
            return None
        hold = self.hold()
        # If time runs out, the job stays queued, and the hold still does it.
        try:
            await hold.ready(deadline.left())
            done = await hold.do(partial(self._write_changes, hold), deadline.left())
        finally:
            await hold.leave(deadline)
        if done:
            return self._problem
        retrying = StoreError("the token store could not be written in time")
        problem = self._retry_later(hold.problem or retrying)
        log.warning("the new token is kept in memory only: %s", problem)
        return problem

    async def sign_out(
        self, old: Snapshot | None, deadline: Deadline
    ) -> tuple[Token | None, StoreError | None]:
        """
        Delete the saved token.

        Returns:
            The saved token, if it belongs to this session and is neither ``old`` nor the current
            one. Then the reason why the store may still hold a token.
        """
        hold = self.hold()
        # Each step may take half of the remaining time, so that some is left for the last one.
        try:
            await hold.ready(deadline.left() / 2)
            found = hold.found
            done = await hold.do(partial(self._write_changes, hold), deadline.left() / 2)
        finally:
            await hold.leave(Deadline(deadline.left() / 2))
        problem = self._problem
        if not done:
            problem = hold.problem or StoreError("the token store could not be emptied in time")
            found = found or await self.load_unlocked(deadline.left() / 4)
            # Deleting without the lock is better than not deleting. The hold deletes again later.
            is_foreign = found is not None and self.is_foreign(found, old)
            if is_foreign or await self._unlocked(self.store.delete, deadline.left() / 2):
                problem = None
        if found is None or self.is_foreign(found, old):
            return None, problem
        # Another task or thread may have signed in meanwhile: its token must not be revoked.
        if any(its and its.token.id == found.id for its in (old, self.state.snapshot)):
            return None, problem
        checked = parse_token(found, 0.0)  # at 0.0 none has expired: the service decides that
        return (checked if isinstance(checked, Token) else None), problem

    def synchronize_later(self) -> AsyncSharedTask[StoreError | None]:
        """Return an unstarted task that saves a change whose first save has failed."""
        self._is_retrying = True
        deadline = Deadline(self._timeout)
        return AsyncSharedTask(
            partial(self.synchronize, deadline),
            seconds=self._timeout,
            active_tasks=self._active_tasks,
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
                self._error,
                seconds=PATIENCE * self._timeout,
                active_tasks=self._active_tasks,
            )
        hold.start()
        return hold

    def newer(
        self, found: Token | None, old: Snapshot | None, known: str | None
    ) -> NewToken | None:
        """
        Return the saved token if another process or client has saved a newer one than ``old``.

        Args:
            found: The saved token.
            old: The snapshot to replace.
            known: The identity of the record that this session had read or written last.
        """
        if found is None or self.is_foreign(found, old):
            return None
        # The session's own token, or a record that it knew before: nothing new.
        if old is not None and identity(found) in {identity(old.token), known}:
            return None
        # Never read before: a record that was issued earlier cannot be newer.
        if old is not None and known == UNKNOWN and (_order(found, old.token) or 0) < 0:
            return None
        token = parse_token(found, self.state.clock.time())
        if isinstance(token, Exception):
            return None
        provenance = read_provenance(found)
        # Without its own account, the session continues that of the record.
        if provenance is not None and not self.bound:
            self.account = provenance.account
        issuer = Issuer.GIVEN if provenance is None else provenance.issuer
        return NewToken(
            token,
            just_issued=False,
            how="taken over from the store",
            event="taken_over",
            issuer=issuer,
            from_store=True,
        )

    def latest(self, found: Token | None, old: Snapshot | None, known: str | None) -> Token | None:
        """Return the newest known token, expired or not; see `newer`."""
        own = None if old is None else old.token
        if found is None or self.is_foreign(found, old):
            return own
        # A record that this session has seen, but could not use, is newer all the same. It is older
        # only if the session's own token could not be saved over it.
        if own is None or not (self._unsaved and identity(found) == known):
            return found
        return own

    async def load_unlocked(self, seconds: float) -> Token | None:
        """Load a token that another process may have saved, without holding the lock."""
        loaded = await self._unlocked(self.store.load, seconds)
        return loaded[0] if loaded else None

    def is_foreign(self, token: Token, own: Snapshot | None) -> bool:
        """Return whether a saved token belongs to another service or account; log it once."""
        provenance = read_provenance(token)
        user = None if own is None else own.token.user_id
        if provenance is not None and provenance.origin != self._origin:
            whose = f"the service {provenance.origin}"
        elif provenance is not None and self.bound and provenance.account != UNKNOWN:
            if provenance.account == self.account:
                return False
            whose = "another account"
        elif user and token.user_id and user != token.user_id:
            whose = "another user"
        else:
            return False
        if self._warned != token.id:
            self._warned = token.id
            log.warning(
                "the store holds a session of %s: it is not used; "
                "give each session a store of its own, as by FileTokenStore(name=...)",
                whose,
            )
        return True

    async def save_ahead(self, hold: AsyncStoreHold, token: Token, deadline: Deadline) -> None:
        """Save credentials' token before the session holds it; else `synchronize` saves it."""

        async def save() -> None:
            try:
                await self.store.save(self._bind(token, Issuer.CREDENTIALS))
            except Exception as exc:  # noqa: BLE001 - the user's store may raise anything
                log.debug("%s", self._error("written", exc, token))
                return
            self._known = hold.known = identity(token)
            hold.found = token

        await hold.do(save, deadline.left())

    # For the task that holds the lock: all of this runs in it, one method at a time

    async def _read(self, hold: AsyncStoreHold) -> None:
        """
        Load the saved token, with a second attempt if the first one fails.

        A refresh without the saved token may cost the session: that token may be the newer one.
        """
        for attempt in (1, 2):
            try:
                hold.found = await self.store.load()
            except Exception as exc:  # noqa: BLE001 - the user's store may raise anything
                if attempt == 2:
                    hold.problem = self._error("read", exc)
            else:
                hold.problem = None
                known = self._known
                self._known = None if hold.found is None else identity(hold.found)
                # A second read of the same record must not make a new record look known.
                if not hold.is_ready or self._known != known:
                    hold.known = known
                return

    async def _write_changes(self, hold: AsyncStoreHold) -> None:
        """Write the current token, or delete, until the session no longer changes."""
        while self._unsaved:
            # Cleared before the write: a change during the write sets it, and is written next.
            self._unsaved = False
            retrying, self._is_retrying = self._is_retrying, False
            generation, snapshot = self.state.generation, self.state.snapshot
            self._problem = None
            if snapshot is None and not self.state.signed_out:
                continue  # nothing to write and nothing to delete
            # A retry comes late: another process may have saved its token in the meantime.
            if retrying and self._is_others(hold.found, hold.known, snapshot):
                self._go_on_with_others(hold, snapshot, generation)
            else:
                self._problem = await self._write(snapshot, hold)
            if self._problem is not None:
                self._retry_later(self._problem)
                return
            if snapshot is not None:
                self.state.mark_saved(snapshot)

    def _go_on_with_others(
        self, hold: AsyncStoreHold, own: Snapshot | None, generation: int
    ) -> None:
        """Keep the token that another process has saved; take it over if it is this session's."""
        newer = None if own is None else self.newer(hold.found, own, hold.known)
        # With the generation: after a sign-out or another login the commit fails.
        if newer is not None:
            self.state.commit(newer, generation)

    async def _write(self, snapshot: Snapshot | None, hold: AsyncStoreHold) -> StoreError | None:
        """Write once; if that fails, delete the saved token, which is out of date."""
        store = self.store
        try:
            if snapshot is None:
                if hold.found is None or not self.is_foreign(hold.found, None):
                    await store.delete()
                    self._known = None
            else:
                await store.save(self._bind(snapshot.token, snapshot.issuer))
                # From now on the saved record is this session's own, not another process's.
                hold.found = snapshot.token
                hold.known = self._known = identity(snapshot.token)
        except Exception as exc:  # noqa: BLE001 - the user's store may raise anything
            token = None if snapshot is None else snapshot.token
            what = "emptied" if token is None else "written"
            problem = self._error(what, exc, token, hold.found)
        else:
            return None
        if snapshot is None:
            return problem
        what = "what it holds could not be deleted"
        try:
            found = await store.load()
            if found is not None and identity(found) == identity(snapshot.token):
                self._known = identity(found)
                return None  # the save has succeeded despite its error
            if self._is_others(found, self._known, snapshot):
                what = "it holds what somebody else has saved since"
            else:
                await store.delete()
                hold.found = self._known = None
                what = "what it held is deleted"
        except Exception:  # noqa: BLE001, S110 - the first error says what is wrong
            pass  # the store fails altogether
        log.warning("the new token is kept in memory only: %s; %s", problem, what)
        return problem

    def _error(self, what: str, exc: Exception, *tokens: Token | None) -> StoreError:
        """Make the error for a store that failed, without the secrets that it may quote."""
        snapshot = self.state.snapshot
        known = "" if self._known is None or self._known == UNKNOWN else self._known
        token_id, _, renewal = known.partition(" ")
        last = Token(token_id, renewal=renewal)
        return store_error(what, exc, *tokens, last, None if snapshot is None else snapshot.token)

    def _bind(self, token: Token, issuer: Issuer) -> Token:
        """Return the token with its provenance: service, account and issuer."""
        provenance = Provenance(self._origin, self.account or UNKNOWN, issuer)
        return attrs.evolve(token, provenance=provenance.write())

    def _is_others(self, found: Token | None, known: str | None, own: Snapshot | None) -> bool:
        """Return whether another process or client saved a record since the last read."""
        if found is None:
            return False
        provenance = read_provenance(found)
        if provenance is not None and self._replaced == provenance.account != self.account:
            return False  # it belongs to the session that this one has replaced
        if known == UNKNOWN:  # never read before: only the times of issue can tell
            order = None if own is None else _order(found, own.token)
            return order is not None and order >= 0
        seen = identity(found)
        return seen != known and (own is None or seen != identity(own.token))

    def _retry_later(self, problem: StoreError) -> StoreError:
        """Leave the save to a later request, or to the closing of the client."""
        self._unsaved = self._is_retrying = True
        # Not at once: a store that is unavailable must not slow down each request.
        snapshot = self.state.snapshot
        if snapshot is not None:
            self.state.defer_check(snapshot)
        return problem

    async def _unlocked(self, work: AsyncWork[Any], seconds: float) -> tuple[Any] | None:
        """Call the store without its lock, for at most ``seconds``; return `None` on failure."""

        async def attempt() -> tuple[Any] | None:
            try:
                return (await work(),)
            except Exception:  # noqa: BLE001 - the first error of the store is the one reported
                return None

        # In a shared task, so that the caller can stop waiting for a store that hangs.
        return await AsyncSharedTask(attempt, seconds=seconds, active_tasks=self._active_tasks).run(
            seconds
        )


def _order(found: Token, own: Token) -> float | None:
    """Return the seconds by which ``found`` was issued later; `None` unless both JWTs say when."""
    theirs, ours = jwt_claims(found.id), jwt_claims(own.id)
    if theirs is None or ours is None or theirs.issued_at is None or ours.issued_at is None:
        return None
    return (theirs.issued_at - ours.issued_at).total_seconds()
