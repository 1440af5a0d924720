"""Support an application: a background task, and a blocking session that mirrors the async one."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel

from .._async.session_change import AsyncSessionChange
from .._concurrency.event_loop.calls import async_in_thread
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import async_call_soon, current_loop
from .._core.errors import KoyebSessionError, StoreError, TransportError
from .._core.results import unwrap
from .._core.snapshot import Urgency
from .._sync.client import SessionClient
from .._sync.keeper import TokenKeeper
from .._sync.session_change import SessionChange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from typing import Self

    from .._async.client import AsyncSessionClient
    from .._core.deadline import Deadline
    from .._core.models import Token
    from .._core.snapshot import NewToken, Snapshot
    from .._sync.token_source import TokenSource

P = ParamSpec("P")
T = TypeVar("T")

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
    """
    A blocking client for the session of an event loop, the leader.

    Both have one state, and so the same token at any moment. Each change of the state runs in the
    event loop, while the calling thread waits. Requests, and the operations of a sign-in, are sent
    from the thread.
    """

    __slots__ = ()

    @contextlib.asynccontextmanager
    async def following(self, leader: AsyncSessionClient) -> AsyncGenerator[Self]:
        """Act for ``leader``, the session of this event loop, until the block ends; then close."""
        self._keeper = _LeaderKeeper(leader, self._keeper.source)
        self._state = self._keeper.state
        try:
            yield self
        finally:
            await async_in_thread(self.close)

    @property
    def _closed(self) -> bool:
        return self._resources.lifetime.ended or super()._closed

    def _check_open(self) -> None:
        super()._check_open()
        if self._resources.lifetime.ended:  # the leader goes on without it
            message = "service_sync is closed"
            raise RuntimeError(message)

    def _change(self, timeout: float | None) -> SessionChange:
        keeper = self._keeper
        if not isinstance(keeper, _LeaderKeeper):  # a session of `for_token` or `guest`
            return super()._change(timeout)
        unwrap(keeper.refusal(), self._state.mark)  # before anything is sent
        return _LeaderChange(keeper, self._deadline(timeout))


class _LeaderKeeper(TokenKeeper):
    """Has the leader's own keeper, in its event loop, do everything that may wait."""

    __slots__ = ("_client", "_place", "_removers", "_token", "leader")

    def __init__(self, client: AsyncSessionClient, source: TokenSource) -> None:
        self._client = client
        self._place = current_loop()
        self._removers: set[Callable[[], None]] = set()
        self._token = anyio.lowlevel.current_token()
        self.leader, _ = client.auth.shared
        super().__init__(self.leader.state, source, None, active_tasks=set())

    def refusal(self) -> StoreError | None:
        """Return an error in the event loop's own thread, where waiting would never end."""
        here: object = None
        with contextlib.suppress(RuntimeError):
            here = current_loop()
        if here is not self._place:
            return None
        return StoreError("service_sync is for `def` endpoints: in an `async def` one use service")

    def call(
        self, function: Callable[P, Awaitable[T]], *args: P.args, **named: P.kwargs
    ) -> T | KoyebSessionError:
        """Call a function of the leader in the event loop, and wait for its result."""
        if refusal := self.refusal():
            return refusal

        async def call() -> T | KoyebSessionError:
            try:
                return await function(*args, **named)
            except anyio.get_cancelled_exc_class():  # no exception for a thread
                return TransportError("it was cut off: its event loop ended")

        return anyio.from_thread.run(call, token=self._token)

    def usable_snapshot(
        self, *, wait_for_renewal: bool = False, deadline: Deadline | None = None
    ) -> Snapshot | KoyebSessionError:
        """See `TokenKeeper`; the event loop's own thread gets a token that needs no wait."""
        held = self.state.snapshot
        if held is not None and not held.is_due(self.state.clock):
            return held
        work = partial(
            self.leader.usable_snapshot, wait_for_renewal=wait_for_renewal, deadline=deadline
        )
        if refusal := self.refusal():
            step = work()
            try:
                step.send(None)
            except StopIteration as done:
                outcome: Snapshot | KoyebSessionError = done.value
                return outcome
            finally:
                step.close()
            return refusal
        return self.call(work)

    def replace_rejected(
        self, signed: Snapshot, deadline: Deadline | None = None
    ) -> Snapshot | KoyebSessionError | None:
        """See `TokenKeeper`."""
        return self.call(self.leader.replace_rejected, signed, deadline)

    def renew(
        self,
        old: Snapshot | None,
        deadline: Deadline | None = None,
        urgency: Urgency = Urgency.REQUESTED,
    ) -> Snapshot | KoyebSessionError:
        """See `TokenKeeper`."""
        return self.call(self.leader.renew, old, deadline, urgency)

    def renew_ahead_of_need(self, running: Callable[[], bool]) -> None:
        """See `TokenKeeper`."""
        unwrap(self.refusal(), self.state.mark)
        self.call(self.leader.renew_ahead_of_need, running)

    def listen(self, listener: Callable[[Token | None], object]) -> Callable[[], None]:
        """Call a plain ``listener`` in a thread, as it may block."""

        async def tell(token: Token | None) -> None:
            await async_in_thread(listener, token)

        remove = self._client.on_token_change(tell)
        self._removers.add(remove)

        def unsubscribe() -> None:
            self._removers.discard(remove)
            remove()

        return unsubscribe

    def close(self) -> None:
        """Leave the session to the leader, and take no part in it any more."""
        for remove in tuple(self._removers):
            remove()

    def wake(self) -> None:
        """Make each `renew_ahead_of_need` check again."""
        async_call_soon(self._place, self.leader.wake)


class _LeaderChange(SessionChange):
    """One sign-in or sign-out, which the leader carries out."""

    def __init__(self, keeper: _LeaderKeeper, deadline: Deadline) -> None:
        super().__init__(keeper, deadline)
        self._keeper: _LeaderKeeper = keeper
        self._change = AsyncSessionChange(keeper.leader, deadline)

    def begin(
        self,
        new_token: NewToken,
        *,
        account: str | None = None,
        bound: bool = False,
        continues: bool = False,
    ) -> Snapshot | KoyebSessionError:
        """See `SessionChange`."""
        return self._keeper.call(
            self._change.begin, new_token, account=account, bound=bound, continues=continues
        )

    def end(self) -> KoyebSessionError | None:
        """See `SessionChange`."""
        return self._keeper.call(self._change.end)
