"""Makes the store follow the session: the only module that loads, saves and deletes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import attrs

from .._concurrency.event_loop.shared_task import AsyncFlight
from .._concurrency.runtime import atomic
from .._core.deadline import Deadline
from .._core.errors import StoreError
from .._core.log import log
from .._core.models import Token
from .._core.provenance import Provenance, read_provenance
from .._core.results import store_error
from .._core.snapshot import Issuer, Obtained, Snapshot
from .._core.tokens import jwt_claims
from .._core.validation import adopted
from .store_turn import UNKNOWN, AsyncStoreTurn

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
        store: AsyncTokenStore,
        state: SessionState,
        *,
        origin: str,
        account: str | None,
        bound: bool,
        timeout: float,
        under_way: set[AsyncFlight[Any]],
    ) -> None:
        self._known: str | None = UNKNOWN
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
        self.store: AsyncTokenStore = store

    # What the session tells

    def owe(self) -> None:
        """
        Note that the store is to be told of a change.

        To be called before the change, as a signal handler may raise after it, and once more after
        it: a turn under way may have written what the session was in between.
        """
        self._owed = True

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
        if not self._owed:
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
            self._turn = turn = AsyncStoreTurn(
                self.store, self._read, seconds=2 * self._timeout, under_way=self._under_way
            )
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
        if old is not None and known == UNKNOWN and (_order(found, old.token) or 0) < 0:
            return None
        token = adopted(found, self.state.clock.time())
        if isinstance(token, Exception):
            return None
        provenance = read_provenance(found)
        if provenance is not None and not self.bound:
            self.account = provenance.account
        issuer = Issuer.GIVEN if provenance is None else provenance.issuer
        return Obtained(
            token,
            minted=False,
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
        self, turn: AsyncStoreTurn, obtained: Obtained, deadline: Deadline
    ) -> None:
        """Save a token that the session does not hold yet; `follow` makes up for a failure."""

        async def save() -> None:
            try:
                await self.store.save(self._bind(obtained.token, obtained.issuer))
            except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
                log.debug("%s", store_error("written", exc, obtained.token))
                return
            self._known = turn.known = obtained.token.id
            turn.found = obtained.token

        await turn.do(save, deadline.left())

    # What a turn does

    async def _read(self, turn: AsyncStoreTurn) -> None:
        """
        Load what the store holds; a second time if the first one fails.

        An exchange beside a saved token that could not be read may cost the session.
        """
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
        try:
            if snapshot is None:
                if turn.found is None or not self.is_foreign(turn.found, None):
                    await store.delete()
                    self._known = None
            else:
                await store.save(self._bind(snapshot.token, snapshot.issuer))
                # What lies there now was saved by nobody else.
                turn.found, turn.known = snapshot.token, snapshot.token.id
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
                turn.found = self._known = None
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


def _order(found: Token, own: Token) -> float | None:
    """Tell by how much later a JWT was issued, by the service's clock; `None` if it is not said."""
    theirs, ours = jwt_claims(found.id), jwt_claims(own.id)
    if theirs is None or ours is None or theirs.issued_at is None or ours.issued_at is None:
        return None
    return (theirs.issued_at - ours.issued_at).total_seconds()
