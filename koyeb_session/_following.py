"""What an application needs: work beside it, and a blocking session that follows the async one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.from_thread
import anyio.lowlevel

from ._concurrency.async_calls import async_in_thread
from ._concurrency.async_flights import AsyncFlight
from ._concurrency.places import async_place
from ._errors import KoyebSessionError, StoreError
from ._outcomes import detached
from ._snapshot import Obtained, Snapshot
from ._sync.client import SessionClient
from ._sync.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractContextManager
    from typing import Self

    from ._async.client import AsyncSessionClient
    from ._models import Clock, Token
    from ._state import SessionState
    from ._sync.sender import Sender

_GRACE: Final = 5.0
"""Seconds that cancelled work has to end."""


@contextlib.asynccontextmanager
async def beside(work: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """
    Run ``work`` in a task of its own until the block ends.

    No task group is open meanwhile: it would wrap what the block raises.
    """
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await work()

    flight = AsyncFlight(run)
    flight.start()
    try:
        yield
    finally:
        scope.cancel()
        await flight.join(_GRACE)


class FollowingClient(SessionClient):
    """A blocking session that is another way to use the token of one in an event loop."""

    __slots__ = ()

    @contextlib.asynccontextmanager
    async def following(self, leader: AsyncSessionClient) -> AsyncGenerator[Self]:
        """Follow ``leader`` in this event loop; close after the block."""
        clock = self._state.clock
        self._begin(_Following(leader, self._sender, clock), clock, renew=True)
        unfollow = leader.on_token_change(self._follow)
        if leader.token is not None:
            self._follow(leader.token)
        try:
            yield self
        finally:
            unfollow()
            await async_in_thread(self.close)

    def _follow(self, token: Token | None) -> None:
        if token is None:
            self._state.clear()
        else:
            self._state.commit(Obtained(token, minted=False))


class _Following(Exchange):
    """Has the session of the event loop renew, so that there is one exchange for both."""

    __slots__ = ("_keeper", "_store")

    def __init__(self, leader: AsyncSessionClient, sender: Sender, clock: Clock) -> None:
        self._store = _LeaderStore(leader)
        super().__init__(sender, None, self._store, clock)
        self._keeper, _ = leader.auth.shared

    def renew(
        self,
        state: SessionState,
        old: Snapshot | None,
        fence: int,
        *,
        patient: bool,
        timeout: float,
    ) -> Snapshot | KoyebSessionError:
        """Take over what the leader has, once that is newer than ``old``."""
        try:
            outcome = self._store.ask(self._newer_than, old, patient, timeout)
        except StoreError as exc:
            return detached(exc)
        if isinstance(outcome, KoyebSessionError):
            return outcome
        return state.commit(Obtained(outcome.token, minted=False), fence)

    async def _newer_than(self, old: Snapshot | None, patient: bool, timeout: float) -> Any:  # noqa: FBT001 - handed over by position
        snapshot = self._keeper.state.snapshot
        if old is None or snapshot is None or snapshot.token.id != old.token.id:
            return await self._keeper.current(settled=True)
        return await self._keeper.renewed(snapshot, patient=patient, timeout=timeout)


class _LeaderStore:
    """Makes a sign-in or a sign-out by the blocking session the leader's, too."""

    def __init__(self, leader: AsyncSessionClient) -> None:
        self._leader = leader
        self._place = async_place()
        self._token = anyio.lowlevel.current_token()

    def ask(self, function: Callable[..., Any], *args: object) -> Any:
        """
        Call ``function`` in the event loop, and wait for what it returns.

        Raises:
            StoreError: This is the thread of that event loop: it would wait for itself.
        """
        here: object = None
        with contextlib.suppress(RuntimeError):
            here = async_place()
        if here is self._place:
            raise StoreError(
                "service_sync is for `def` endpoints: in an `async def` one use service"
            )
        return anyio.from_thread.run(function, *args, token=self._token)

    def load(self) -> Token | None:
        """Return the leader's token."""
        return self._leader.token

    def save(self, token: Token) -> None:
        """Let the leader go on with this token."""
        self.ask(self._leader.use_token, token)

    def delete(self) -> None:
        """Sign the leader out."""
        self.ask(self._leader.logout)

    def lock(self) -> AbstractContextManager[None]:
        """Do nothing: the leader has locks of its own."""
        return contextlib.nullcontext()
