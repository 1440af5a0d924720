"""Support an application: a background task, and a blocking session that mirrors the async one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.from_thread
import anyio.lowlevel

from .._concurrency.event_loop.calls import async_in_thread
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import current_loop
from .._core.deadline import Deadline
from .._core.errors import KoyebSessionError, StoreError
from .._core.snapshot import FailedAttempt, NewToken
from .._sync.client import SessionClient
from .._sync.renewal import Renewal

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractContextManager
    from typing import Self

    from .._async.client import AsyncSessionClient
    from .._core.models import Token
    from .._core.snapshot import Need, Snapshot
    from .._core.state import SessionState

_GRACE: Final = 5.0
"""Seconds for cancelled work to end."""


@contextlib.asynccontextmanager
async def background_task(work: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    """
    Run ``work`` in a background task until the block ends.

    The event loop owns the task, so no task group is open: it would wrap exceptions of the block.
    """
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await work()

    task = AsyncSharedTask(run)
    task.start()
    try:
        yield
    finally:
        scope.cancel()
        await task.join(_GRACE)


class MirrorClient(SessionClient):
    """A blocking session that uses, and renews, the token of a session in an event loop."""

    __slots__ = ()

    @contextlib.asynccontextmanager
    async def following(self, leader: AsyncSessionClient) -> AsyncGenerator[Self]:
        """Follow ``leader``, the session of this event loop, until the block ends; then close."""
        store = _LeaderStore(leader)
        self._start_session(self._state.clock, store=store)
        self._keeper.others_renewal = _LeaderRenewal(self._state, store, leader)
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
            self._state.commit(NewToken(token, just_issued=False))


class _LeaderRenewal(Renewal):
    """A renewal by the session of the event loop, so that both sessions share each refresh."""

    __slots__ = ("_keeper", "_leader")

    def __init__(
        self, state: SessionState, store: _LeaderStore, leader: AsyncSessionClient
    ) -> None:
        self._state = state
        self._leader = store
        self._keeper, _ = leader.auth.shared

    def refusal(self) -> KoyebSessionError | None:
        """Return an error in the event loop's own thread, where waiting would deadlock."""
        return self._leader.refusal()

    def run(self, need: Need) -> Snapshot | FailedAttempt:
        """Take over the leader's token, once it is newer than the one to replace."""
        outcome = self._leader.call(self._newer, need, Deadline(need.seconds))
        if isinstance(outcome, KoyebSessionError):
            return FailedAttempt(outcome)
        committed = self._state.commit(NewToken(outcome.token, just_issued=False), need.generation)
        return FailedAttempt(committed) if isinstance(committed, KoyebSessionError) else committed

    async def _newer(self, need: Need, deadline: Deadline) -> Any:
        snapshot, old = self._keeper.state.snapshot, need.old
        if old is None or snapshot is None or snapshot.token.id != old.token.id:
            return await self._keeper.usable_snapshot(wait_for_renewal=True, deadline=deadline)
        return await self._keeper.renew(snapshot, deadline, need.urgency)


class _LeaderStore:
    """A store that passes each sign-in and sign-out of the blocking session to the leader."""

    def __init__(self, leader: AsyncSessionClient) -> None:
        self._leader = leader
        self._place = current_loop()
        self._token = anyio.lowlevel.current_token()

    def refusal(self) -> StoreError | None:
        """Return an error in the event loop's own thread, where waiting would deadlock."""
        here: object = None
        with contextlib.suppress(RuntimeError):
            here = current_loop()
        if here is not self._place:
            return None
        return StoreError("service_sync is for `def` endpoints: in an `async def` one use service")

    def call(self, function: Callable[..., Any], *args: object) -> Any:
        """Call ``function`` in the event loop, and wait for its result."""
        return anyio.from_thread.run(function, *args, token=self._token)

    def load(self) -> Token | None:
        """Return the leader's token."""
        return self._leader.token

    def save(self, token: Token) -> None:
        """Make the leader use this token."""
        self.call(self._leader.use_token, token)

    def delete(self) -> None:
        """Sign the leader out."""
        self.call(self._leader.logout)

    def lock(self) -> AbstractContextManager[None]:
        """Do nothing: the leader has its own locks."""
        return contextlib.nullcontext()
