"""Makes the store follow the session: the only module that loads, saves and deletes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import state_lock
from .._core.deadline import Deadline
from .._core.errors import StoreError
from .._core.log import log
from .._core.models import Token
from .._core.provenance import Provenance, read_provenance
from .._core.results import store_error
from .._core.snapshot import Issuer, NewToken, Snapshot
from .._core.tokens import jwt_claims
from .._core.validation import parse_token
from .store_hold import UNKNOWN, AsyncStoreHold

if TYPE_CHECKING:
    from typing import Any

    from .._concurrency.event_loop.shared_task import AsyncWork
    from .._core.state import SessionState
    from .stores.protocol import AsyncTokenStore


class AsyncPersistence:
    """
    Knows what the store holds, and what it is still to be told.

    All work at the store is done in a turn: one hold of its lock, in a task or thread of the
    session's own, which everybody who has something to do there shares. Nobody cancels a turn;
    callers stop waiting for it instead. Whoever holds the lock writes what the session is at that
    moment, or deletes, until that no longer changes. So a slow writer cannot put back what has been
    replaced or signed out meanwhile.

    What is newer is decided by identity: a record that is neither what this session last read or
    wrote, nor its own token, was saved by somebody else since.
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
        """The account whose session this one has replaced."""
        self._timeout = timeout
        self._hold: AsyncStoreHold | None = None
        self._active_tasks = active_tasks
        self._warned: str | None = None
        self.account: str | None = account
        """See `Provenance.account`; `None`: whatever the store holds."""
        self.bound: bool = bound
        """Whether records of other accounts are foreign, as credentials or a login name one."""
        self.state: SessionState = state
        self.store: AsyncTokenStore = store

    # What the session tells

    def mark_unsaved(self) -> None:
        """
        Note that the store is to be told of a change.

        To be called before the change, as a signal handler may raise after it, and once more after
        it: a turn under way may have written what the session was in between.
        """
        self._unsaved = True

    def begin(self, account: str, *, bound: bool) -> None:
        """Note that a session of this account begins now, in place of the one before."""
        self._replaced, self.account, self.bound = self.account, account, bound

    @property
    def has_unsaved(self) -> bool:
        """Whether an attempt to tell the store has failed, and another one is due."""
        return self._unsaved and self._is_retrying and (self._hold is None or not self._hold.alive)

    async def synchronize(self, deadline: Deadline) -> StoreError | None:
        """
        Have the store follow the session.

        Returns:
            Why it does not yet. A turn that has not come to it in time goes on by itself.
        """
        if not self._unsaved:
            return None
        hold = self.hold()
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
        Empty the store.

        Returns:
            The token that it held, if that is this session's and not ``old``; and why it may hold a
            token still.
        """
        hold = self.hold()
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
            # Better without the lock than not at all. The turn deletes once more if it comes to it.
            is_foreign = found is not None and self.is_foreign(found, old)
            if is_foreign or await self._unlocked(self.store.delete, deadline.left() / 2):
                problem = None
        if found is None or self.is_foreign(found, old) or (old and found.id == old.token.id):
            return None, problem
        checked = parse_token(found, 0.0)  # its expiry is the service's affair
        return (checked if isinstance(checked, Token) else None), problem

    def synchronize_later(self) -> AsyncSharedTask[StoreError | None]:
        """Return a flight that tells the store of what it has missed."""
        self._is_retrying = True
        deadline = Deadline(self._timeout)
        return AsyncSharedTask(
            partial(self.synchronize, deadline),
            seconds=self._timeout,
            active_tasks=self._active_tasks,
        )

    async def drain(self, timeout: float) -> None:
        """Wait for the turn under way, and tell the store of what it has missed."""
        deadline = Deadline(timeout)
        if self._hold is not None and self._hold.alive:
            await self._hold.wait_done(deadline.left())
        if self._unsaved:
            await self.synchronize(deadline)

    # What a renewal asks

    def hold(self) -> AsyncStoreHold:
        """Join the turn under way, or begin one; each call is followed by one of `leave`."""
        with state_lock:
            hold = self._hold
            if hold is not None and hold.join():
                return hold
            self._hold = hold = AsyncStoreHold(
                self.store, self._read, seconds=2 * self._timeout, active_tasks=self._active_tasks
            )
        hold.start()
        return hold

    def newer(
        self, found: Token | None, old: Snapshot | None, known: str | None
    ) -> NewToken | None:
        """
        Tell whether somebody else has saved a newer token than ``old``.

        Args:
            found: What the store holds.
            old: The snapshot that is to be replaced.
            known: The id of what this session had last read or written, before it read ``found``.
        """
        if found is None or self.is_foreign(found, old):
            return None
        if old is not None and found.id in {old.token.id, known}:
            return None
        if old is not None and known == UNKNOWN and (_order(found, old.token) or 0) < 0:
            return None
        token = parse_token(found, self.state.clock.time())
        if isinstance(token, Exception):
            return None
        provenance = read_provenance(found)
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
        """Return the newest token that is known, expired or not; see `newer`."""
        own = None if old is None else old.token
        if found is None or self.is_foreign(found, old):
            return own
        return found if own is None or found.id not in {own.id, known} else own

    async def load_unlocked(self, seconds: float) -> Token | None:
        """Load a token that another process may have saved, without holding the lock."""
        loaded = await self._unlocked(self.store.load, seconds)
        return loaded[0] if loaded else None

    def is_foreign(self, token: Token, own: Snapshot | None) -> bool:
        """Tell whether a saved token is of another service or account; the log says it once."""
        provenance = read_provenance(token)
        user = None if own is None else own.token.user_id
        if provenance is not None and provenance.origin != self._origin:
            whose = f"the service {provenance.origin}"
        elif provenance is not None and self.bound:
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

    async def save_ahead(
        self, hold: AsyncStoreHold, new_token: NewToken, deadline: Deadline
    ) -> None:
        """Save a token that the session does not hold yet; `follow` makes up for a failure."""

        async def save() -> None:
            try:
                await self.store.save(self._bind(new_token.token, new_token.issuer))
            except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
                log.debug("%s", store_error("written", exc, new_token.token))
                return
            self._known = hold.known = new_token.token.id
            hold.found = new_token.token

        await hold.do(save, deadline.left())

    # What a turn does

    async def _read(self, hold: AsyncStoreHold) -> None:
        """
        Load what the store holds; a second time if the first one fails.

        An exchange beside a saved token that could not be read may cost the session.
        """
        for attempt in (1, 2):
            try:
                hold.found = await self.store.load()
            except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
                if attempt == 2:
                    hold.problem = store_error("read", exc)
            else:
                hold.problem = None
                hold.known, self._known = self._known, hold.found.id if hold.found else None
                return

    async def _write_changes(self, hold: AsyncStoreHold) -> None:
        """Write what the session is, or delete, until that no longer changes."""
        while self._unsaved:
            # First, so that a change which comes while this one is written is written after it.
            self._unsaved = False
            retrying, self._is_retrying = self._is_retrying, False
            generation, snapshot = self.state.generation, self.state.snapshot
            self._problem = None
            if snapshot is None and not self.state.signed_out:
                continue  # there is nothing to write, and nothing to delete
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
        """Leave what somebody else has saved since, and take it over if it is this session's."""
        newer = None if own is None else self.newer(hold.found, own, hold.known)
        if newer is not None:
            self.state.commit(newer, generation)

    async def _write(self, snapshot: Snapshot | None, hold: AsyncStoreHold) -> StoreError | None:
        """Write once; what cannot be replaced is deleted, as it is known to be wrong."""
        store = self.store
        try:
            if snapshot is None:
                if hold.found is None or not self.is_foreign(hold.found, None):
                    await store.delete()
                    self._known = None
            else:
                await store.save(self._bind(snapshot.token, snapshot.issuer))
                # What lies there now was saved by nobody else.
                hold.found, hold.known = snapshot.token, snapshot.token.id
                self._known = snapshot.token.id
        except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
            token = None if snapshot is None else snapshot.token
            problem = store_error("emptied" if token is None else "written", exc, token)
        else:
            return None
        if snapshot is None:
            return problem
        what = "what it holds could not be deleted"
        try:
            found = await store.load()
            if found is not None and found.id == snapshot.token.id:
                self._known = found.id
                return None  # it was written all the same
            if self._is_others(found, self._known, snapshot):
                what = "it holds what somebody else has saved since"
            else:
                await store.delete()
                hold.found = self._known = None
                what = "what it held is deleted"
        except Exception:  # noqa: BLE001, S110 - the first error says what is wrong
            pass
        log.warning("the new token is kept in memory only: %s; %s", problem, what)
        return problem

    def _bind(self, token: Token, issuer: Issuer) -> Token:
        """Note on a token whose it is."""
        provenance = Provenance(self._origin, self.account or UNKNOWN, issuer)
        return attrs.evolve(token, provenance=provenance.write())

    def _is_others(self, found: Token | None, known: str | None, own: Snapshot | None) -> bool:
        """Tell whether somebody else saved a record after this session last looked."""
        if found is None:
            return False
        provenance = read_provenance(found)
        if provenance is not None and self._replaced == provenance.account != self.account:
            return False  # they have gone on with the session that this one has replaced
        if known == UNKNOWN:  # it has never looked: the service's clock has to tell
            order = None if own is None else _order(found, own.token)
            return order is not None and order >= 0
        return found.id != known and (own is None or found.id != own.token.id)

    def _retry_later(self, problem: StoreError) -> StoreError:
        """Leave a change to a later request, or to the end of the session."""
        self._unsaved = self._is_retrying = True
        snapshot = self.state.snapshot
        if snapshot is not None:
            self.state.defer_check(snapshot)
        return problem

    async def _unlocked(self, work: AsyncWork[Any], seconds: float) -> tuple[Any] | None:
        """Do something without the lock, for at most ``seconds``; `None` if it failed."""

        async def attempt() -> tuple[Any] | None:
            try:
                return (await work(),)
            except Exception:  # noqa: BLE001 - the first error says what is wrong with the store
                return None

        return await AsyncSharedTask(attempt, seconds=seconds, active_tasks=self._active_tasks).run(
            seconds
        )


def _order(found: Token, own: Token) -> float | None:
    """Tell by how much later a JWT was issued, by the service's clock; `None` if it is not said."""
    theirs, ours = jwt_claims(found.id), jwt_claims(own.id)
    if theirs is None or ours is None or theirs.issued_at is None or ours.issued_at is None:
        return None
    return (theirs.issued_at - ours.issued_at).total_seconds()
