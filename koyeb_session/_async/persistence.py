"""Makes the store follow the session: the only module that loads, saves and deletes."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from .._arguments import adopted
from .._concurrency.async_flights import AsyncFlight
from .._concurrency.async_waiting import AsyncEvent, AsyncPulse
from .._concurrency.places import atomic
from .._deadline import Deadline
from .._errors import StoreError
from .._log import log
from .._models import Token
from .._outcomes import store_error
from .._provenance import Provenance, read_provenance
from .._snapshot import Issuer, Obtained, Snapshot
from .._wire import jwt_claims

if TYPE_CHECKING:
    from typing import Any

    from .._concurrency.async_flights import AsyncWork
    from .._state import SessionState
    from .stores import AsyncTokenStore

_UNKNOWN: Final = "?"
"""Stands for what the store holds before it has been read."""


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
        "_known",
        "_late",
        "_origin",
        "_owed",
        "_problem",
        "_replaced",
        "_timeout",
        "_turn",
        "_under_way",
        "_warned",
        "account",
        "bound",
        "state",
        "store",
    )

    def __init__(
        self,
        store: AsyncTokenStore | None,
        state: SessionState,
        *,
        origin: str,
        account: str | None,
        bound: bool,
        timeout: float,
        under_way: set[AsyncFlight[Any]],
    ) -> None:
        self._known: str | None = _UNKNOWN
        self._late = False
        self._origin = origin
        self._owed = False
        self._problem: StoreError | None = None
        self._replaced: str | None = None
        """The account whose session this one has replaced."""
        self._timeout = timeout
        self._turn: AsyncStoreTurn | None = None
        self._under_way = under_way
        self._warned: str | None = None
        self.account: str | None = account
        """See `Provenance.account`; `None`: whatever the store holds."""
        self.bound: bool = bound
        """Whether records of other accounts are foreign, as credentials or a login name one."""
        self.state: SessionState = state
        self.store: AsyncTokenStore | None = store

    # What the session tells

    def owe(self) -> None:
        """Note that the store is to be told of a change that comes now."""
        self._owed = self.store is not None

    def begin(self, account: str, *, bound: bool) -> None:
        """Note that a session of this account begins now, in place of the one before."""
        self._replaced, self.account, self.bound = self.account, account, bound

    @property
    def is_behind(self) -> bool:
        """Whether an attempt to tell the store has failed, and another one is due."""
        return self._owed and self._late and (self._turn is None or not self._turn.alive)

    async def follow(self, deadline: Deadline) -> StoreError | None:
        """
        Have the store follow the session.

        Returns:
            Why it does not yet. A turn that has not come to it in time goes on by itself.
        """
        if self.store is None or not self._owed:
            return None
        turn = self.turn()
        try:
            await turn.ready(deadline.left())
            done = await turn.do(partial(self._write_changes, turn), deadline.left())
        finally:
            await turn.leave(deadline)
        if done:
            return self._problem
        late = StoreError("the token store could not be written in time")
        problem = self._fall_behind(turn.problem or late)
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
        if self.store is None:
            return None, None
        turn = self.turn()
        try:
            await turn.ready(deadline.left() / 2)
            found = turn.found
            done = await turn.do(partial(self._write_changes, turn), deadline.left() / 2)
        finally:
            await turn.leave(Deadline(deadline.left() / 2))
        problem = self._problem
        if not done:
            problem = turn.problem or StoreError("the token store could not be emptied in time")
            found = found or await self.load_unlocked(deadline.left() / 4)
            # Better without the lock than not at all. The turn deletes once more if it comes to it.
            is_foreign = found is not None and self.is_foreign(found, old)
            if is_foreign or await self._unlocked(self.store.delete, deadline.left() / 2):
                problem = None
        if found is None or self.is_foreign(found, old) or (old and found.id == old.token.id):
            return None, problem
        checked = adopted(found, 0.0)  # its expiry is the service's affair
        return (checked if isinstance(checked, Token) else None), problem

    def follow_later(self) -> AsyncFlight[StoreError | None]:
        """Return a flight that tells the store of what it has missed."""
        self._late = True
        deadline = Deadline(self._timeout)
        return AsyncFlight(
            partial(self.follow, deadline), seconds=self._timeout, under_way=self._under_way
        )

    async def drain(self, timeout: float) -> None:
        """Wait for the turn under way, and tell the store of what it has missed."""
        deadline = Deadline(timeout)
        if self._turn is not None and self._turn.alive:
            await self._turn.ended(deadline.left())
        if self._owed:
            await self.follow(deadline)

    # What a renewal asks

    def turn(self) -> AsyncStoreTurn:
        """Join the turn under way, or begin one; each call is followed by one of `leave`."""
        with atomic:
            turn = self._turn
            if turn is not None and turn.join():
                return turn
            self._turn = turn = AsyncStoreTurn(self, self._timeout * 2, self._under_way)
        turn.start()
        return turn

    def newer(
        self, found: Token | None, old: Snapshot | None, known: str | None
    ) -> Obtained | None:
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
        if old is not None and known == _UNKNOWN and (_order(found, old.token) or 0) < 0:
            return None
        token = adopted(found, self.state.clock.time())
        if isinstance(token, Exception):
            return None
        provenance = read_provenance(found)
        if provenance is not None and not self.bound:
            self.account = provenance.account
        issuer = Issuer.GIVEN if provenance is None else provenance.issuer
        return Obtained(
            token, minted=False, how="taken over from the store", issuer=issuer, from_store=True
        )

    async def load_unlocked(self, seconds: float) -> Token | None:
        """Load a token that another process may have saved, without holding the lock."""
        assert self.store is not None  # noqa: S101 - for type checkers; asked of a store only
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

    # What a turn does

    async def read(self, turn: AsyncStoreTurn) -> None:
        """
        Load what the store holds; a second time if the first one fails.

        An exchange beside a saved token that could not be read may cost the session.
        """
        assert self.store is not None  # noqa: S101 - see above
        for attempt in (1, 2):
            try:
                turn.found = await self.store.load()
            except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
                if attempt == 2:
                    turn.problem = store_error("read", exc)
            else:
                turn.problem = None
                turn.known, self._known = self._known, turn.found.id if turn.found else None
                return

    async def _write_changes(self, turn: AsyncStoreTurn) -> None:
        """Write what the session is, or delete, until that no longer changes."""
        while self._owed:
            # First, so that a change which comes while this one is written is written after it.
            self._owed = False
            late, self._late = self._late, False
            fence, snapshot = self.state.fence, self.state.snapshot
            self._problem = None
            if snapshot is None and not self.state.signed_out:
                continue  # there is nothing to write, and nothing to delete
            if late and self._is_others(turn.found, turn.known, snapshot):
                self._go_on_with_others(turn, snapshot, fence)
            else:
                self._problem = await self._write(snapshot, turn)
            if self._problem is not None:
                self._fall_behind(self._problem)
                return
            if snapshot is not None:
                self.state.saved(snapshot)

    def _go_on_with_others(self, turn: AsyncStoreTurn, own: Snapshot | None, fence: int) -> None:
        """Leave what somebody else has saved since, and take it over if it is this session's."""
        newer = None if own is None else self.newer(turn.found, own, turn.known)
        if newer is not None:
            self.state.commit(newer, fence)

    async def _write(self, snapshot: Snapshot | None, turn: AsyncStoreTurn) -> StoreError | None:
        """Write once; what cannot be replaced is deleted, as it is known to be wrong."""
        store = self.store
        assert store is not None  # noqa: S101 - see above
        try:
            if snapshot is None:
                if turn.found is None or not self.is_foreign(turn.found, None):
                    await store.delete()
                    self._known = None
            else:
                await store.save(self._bind(snapshot))
                self._known = snapshot.token.id
        except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
            problem = store_error("emptied" if snapshot is None else "written", exc)
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
                self._known = None
                what = "what it held is deleted"
        except Exception:  # noqa: BLE001, S110 - the first error says what is wrong
            pass
        log.warning("the new token is kept in memory only: %s; %s", problem, what)
        return problem

    def _bind(self, snapshot: Snapshot) -> Token:
        """Note on a token whose it is."""
        provenance = Provenance(self._origin, self.account or _UNKNOWN, snapshot.issuer)
        return attrs.evolve(snapshot.token, provenance=provenance.write())

    def _is_others(self, found: Token | None, known: str | None, own: Snapshot | None) -> bool:
        """Tell whether somebody else saved a record after this session last looked."""
        if found is None:
            return False
        provenance = read_provenance(found)
        if provenance is not None and self._replaced == provenance.account != self.account:
            return False  # they have gone on with the session that this one has replaced
        if known == _UNKNOWN:  # it has never looked: the service's clock has to tell
            order = None if own is None else _order(found, own.token)
            return order is not None and order >= 0
        return found.id != known and (own is None or found.id != own.token.id)

    def _fall_behind(self, problem: StoreError) -> StoreError:
        """Leave a change to a later request, or to the end of the session."""
        self._owed = self._late = True
        snapshot = self.state.snapshot
        if snapshot is not None:
            self.state.look_for_unsaved(snapshot)
        return problem

    async def _unlocked(self, work: AsyncWork[Any], seconds: float) -> tuple[Any] | None:
        """Do something without the lock, for at most ``seconds``; `None` if it failed."""

        async def attempt() -> tuple[Any] | None:
            try:
                return (await work(),)
            except Exception:  # noqa: BLE001 - the first error says what is wrong with the store
                return None

        return await AsyncFlight(attempt, seconds=seconds, under_way=self._under_way).lead(seconds)


class AsyncStoreTurn:
    """
    One hold of the store's lock, in a task or thread of its own.

    The lock is released once all who have joined have left. A store that hangs keeps only this
    waiting: callers wait for as long as they like.
    """

    def __init__(
        self, persistence: AsyncPersistence, seconds: float, under_way: set[AsyncFlight[Any]]
    ) -> None:
        self.found: Token | None = None
        """What the store held when it was last read in this turn."""
        self.known: str | None = _UNKNOWN
        """The id of what the session had last read or written before that."""
        self.locked = False
        self.problem: StoreError | None = None
        """Why the lock could not be had, or the store not be read."""
        self._persistence = persistence
        self._flight = AsyncFlight(self._run, seconds=seconds, under_way=under_way)
        self._jobs: deque[tuple[AsyncWork[None], AsyncEvent]] = deque()
        self._over = False
        self._pulse = AsyncPulse()
        self._ready = AsyncEvent()
        self._users = 1

    @property
    def alive(self) -> bool:
        """Whether it holds the lock, or waits for it."""
        return self._flight.alive

    def start(self) -> None:
        """Begin to wait for the lock."""
        self._flight.start()

    def join(self) -> bool:
        """Take part in it; `False`: it is over, or about to be. The caller holds `atomic`."""
        if self._over or not self.alive:
            return False
        self._users += 1
        return True

    async def leave(self, deadline: Deadline) -> None:
        """Let the lock be released when nobody else has anything to do, and wait for that."""
        with atomic:
            self._users -= 1
        self._pulse.beat()
        if self.locked and not self._users:
            await self._flight.join(deadline.left())

    async def ended(self, seconds: float) -> None:
        """Wait until it is over."""
        await self._flight.ended(seconds)

    async def ready(self, seconds: float) -> bool:
        """Wait until the store is locked and read, or cannot be; tell whether that is so."""
        return await self._ready.wait(seconds)

    async def do(self, job: AsyncWork[None], seconds: float) -> bool:
        """
        Do something under the lock.

        Returns:
            Whether it is done. If it is not yet, it is done when its turn comes, unless the lock
            cannot be had.
        """
        done = AsyncEvent()
        with atomic:
            if self._over:
                return False
            self._jobs.append((job, done))
        self._pulse.beat()
        await done.wait(seconds)
        return done.is_set() and self.locked

    async def read_again(self, seconds: float) -> None:
        """Read the store once more."""
        await self.do(partial(self._persistence.read, self), seconds)

    async def _run(self) -> None:
        store = self._persistence.store
        assert store is not None  # noqa: S101 - for type checkers; there is a turn at a store only
        try:
            async with store.lock():
                self.locked = True
                if self._users or self._jobs:
                    await self._persistence.read(self)
                self._ready.set()
                await self._serve()
        except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
            what = "locked" if not self.locked else "unlocked"
            self.problem = store_error(what, exc)
            if self.locked:
                log.warning("%s", self.problem)
        finally:
            with atomic:
                self._over = True
            self._ready.set()
            for _, done in self._jobs:
                done.set()

    async def _serve(self) -> None:
        """Do what is to be done, until nobody has anything left."""
        while True:
            with atomic:
                if not self._jobs and self._users <= 0:
                    self._over = True
                    return
                job, done = self._jobs[0] if self._jobs else (None, None)
            if job is None or done is None:
                await self._pulse.sleep(None)
                continue
            await job()
            self._jobs.popleft()
            done.set()

    @property
    def is_ready(self) -> bool:
        """Whether the store is locked and read."""
        return self.locked and self._ready.is_set()

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether somebody else holds the lock, who may be exchanging the same token."""
        if self.locked:
            return False
        return self.problem is None or isinstance(self.problem.__cause__, TimeoutError)


def _order(found: Token, own: Token) -> float | None:
    """Tell by how much later a JWT was issued, by the service's clock; `None` if it is not said."""
    theirs, ours = jwt_claims(found.id), jwt_claims(own.id)
    if theirs is None or ours is None or theirs.issued_at is None or ours.issued_at is None:
        return None
    return (theirs.issued_at - ours.issued_at).total_seconds()
