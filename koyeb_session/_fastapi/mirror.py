"""Support an application: a background task, and a blocking session that mirrors the async one."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from .._async.session_change import AsyncSessionChange
from .._concurrency.event_loop.calls import async_in_thread
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import GRACE
from .._core.deadline import Deadline
from .._core.errors import KoyebSessionError, StoreError, TransportError, TransportTimeoutError
from .._core.results import cannot_wait, unwrap
from .._core.snapshot import Urgency
from .._sync.auth import SessionAuth
from .._sync.client import SessionClient
from .._sync.keeper import TokenKeeper
from .._sync.session_change import SessionChange
from .bridge import Bridge, LoopCall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    import httpx

    from .._async.client import AsyncSessionClient
    from .._core.models import Token
    from .._core.snapshot import LastFailure, NewToken, Snapshot
    from .._core.state import Lifetime
    from .._sync.token_source import TokenSource

T = TypeVar("T")

_GRACE: Final = 5.0
"""Seconds for cancelled work to end."""
_LATE: Final = 2 * GRACE
"""Seconds for which a thread waits longer than it should: work in the event loop may be late."""


def in_background(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """
    Run ``work`` in a background task; return a function that ends it, for any task to call.

    The event loop owns the task, so no task group and no cancel scope is open meanwhile.
    """
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await work()

    task = AsyncSharedTask(run)
    task.start()

    async def end() -> None:
        scope.cancel()
        await task.join(_GRACE)

    return end


class MirrorClient(SessionClient):
    """
    A blocking client for the session of an event loop, the leader.

    Both have one state, and so the same token at any moment. Each change of the state runs in the
    event loop, while the calling thread waits. Requests, and the operations of a sign-in, are sent
    from the thread.
    """

    __slots__ = ()

    def follow(self, leader: AsyncSessionClient) -> None:
        """Act for ``leader``, the session of this event loop, from now on."""
        self._keeper = _LeaderKeeper(leader, self._keeper.source, self._resources.lifetime)
        self._state = self._keeper.state

    @property
    def auth(self) -> SessionAuth:
        """See `SessionClient`."""
        keeper = self._keeper
        if self._auth is None and isinstance(keeper, _LeaderKeeper):
            self._auth = _LeaderAuth(keeper, self._resources.origins)
        return super().auth

    def __repr__(self) -> str:
        if hasattr(self, "_state") and self._closed:
            return f"<{type(self).__name__} {self._resources.origins.base_url}: closed>"
        return super().__repr__()

    @property
    def _closed(self) -> bool:
        return self._resources.lifetime.ended or super()._closed

    def _check_open(self) -> None:
        super()._check_open()
        _check_open(self._resources.lifetime)

    def _change(self, timeout: float | None) -> SessionChange:
        keeper = self._keeper
        if not isinstance(keeper, _LeaderKeeper):  # a session of `for_token` or `guest`
            return super()._change(timeout)
        unwrap(keeper.refusal(), self._state.mark)  # before anything is sent
        return _LeaderChange(keeper, self._deadline(timeout))


def _check_open(lifetime: Lifetime) -> None:
    """Raise if service_sync is closed; the leader may go on without it."""
    if lifetime.ended:
        message = "service_sync is closed"
        raise RuntimeError(message)


class _LeaderKeeper(TokenKeeper):
    """
    Has the leader's own keeper, in its event loop, do everything that may wait.

    Each function of the leader is given the deadline of the thread that waits for it. So it ends
    first, and says why, unless the event loop is blocked.
    """

    __slots__ = ("_bridge", "_client", "_lifetime", "_removers", "leader")

    def __init__(self, client: AsyncSessionClient, source: TokenSource, lifetime: Lifetime) -> None:
        self._bridge = Bridge()
        self._client = client
        self._lifetime = lifetime
        self._removers: set[Callable[[], None]] = set()
        self.leader, _ = client.auth.shared
        super().__init__(self.leader.state, source, None, active_tasks=set())

    def check_open(self) -> None:
        """Raise if the session is closed, or this half of it."""
        if self._lifetime.ended:
            self.state.check_open()
            _check_open(self._lifetime)

    def refusal(self) -> StoreError | None:
        """Return an error in the event loop's own thread, where waiting would never end."""
        if not self._bridge.is_here:
            return None
        return StoreError("service_sync is for `def` endpoints: in an `async def` one use service")

    def call(
        self,
        work: Callable[[], Awaitable[T | KoyebSessionError]],
        deadline: Deadline,
        *,
        goes_on: str | None = None,
    ) -> T | KoyebSessionError:
        """
        Do some work in the event loop, and wait for its result.

        Args:
            work: The work; it goes on when the thread's time is up.
            deadline: The end of the wait; the work should end by then.
            goes_on: For the error where the thread must not wait. `None`: there, and once this
                half is closed, the work does not begin.

        Raises:
            Exception: The work raised it.
            RuntimeError: The session is closed.
        """
        if refusal := self.refusal():
            return refusal
        if goes_on is None:
            self.check_open()
            if not self.may_wait:
                return cannot_wait("try again")
        call = LoopCall(self._bridge, work)
        if goes_on is not None and not self.may_wait:
            return cannot_wait(goes_on)
        if not call.wait(deadline.left() + _LATE):
            return TransportTimeoutError(
                f"no answer from the event loop within {deadline.seconds:g} s: "
                "an `async def` function may be blocking it"
            )
        if call.cut_off:
            return TransportError("it was cut off: its event loop ended")
        return call.outcome

    def usable_snapshot(
        self, *, wait_for_renewal: bool = False, deadline: Deadline | None = None
    ) -> Snapshot | KoyebSessionError:
        """See `TokenKeeper`; the event loop's own thread gets a token that needs no wait."""
        held = self.state.snapshot
        if held is not None and not held.is_due(self.state.clock):
            return held
        leader = self.leader
        if refusal := self.refusal():
            seen = self.state.observe()
            return leader.serve_now(seen, wait_for_renewal=wait_for_renewal) or refusal
        deadline = deadline or Deadline(self._timeout)
        work = partial(leader.usable_snapshot, wait_for_renewal=wait_for_renewal, deadline=deadline)
        return self.call(work, deadline)

    def replace_rejected(
        self, signed: Snapshot, deadline: Deadline | None = None
    ) -> Snapshot | KoyebSessionError | None:
        """See `TokenKeeper`."""
        deadline = deadline or Deadline(self._timeout)
        return self.call(partial(self.leader.replace_rejected, signed, deadline), deadline)

    def renew(
        self,
        old: Snapshot | None,
        deadline: Deadline | None = None,
        urgency: Urgency = Urgency.REQUESTED,
        failure: LastFailure | None = None,
    ) -> Snapshot | KoyebSessionError:
        """See `TokenKeeper`."""
        deadline = deadline or Deadline(self._timeout)
        return self.call(partial(self.leader.renew, old, deadline, urgency, failure), deadline)

    def renew_ahead_of_need(self, running: Callable[[], bool]) -> None:
        """See `TokenKeeper`."""
        obstacle = self.refusal() or (None if self.may_wait else cannot_wait("try again"))
        unwrap(obstacle, self.state.mark)
        call = LoopCall(self._bridge, partial(self.leader.renew_ahead_of_need, running))
        call.wait(math.inf)

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
        self._bridge.call_soon(self.leader.wake)


class _LeaderAuth(SessionAuth):
    """Signs with the leader's token, until the blocking client is closed."""

    _keeper: _LeaderKeeper

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """See `SessionAuth`."""
        if self._origins.trusts(request):
            self._keeper.check_open()
        return super().sync_auth_flow(request)


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
        begin = partial(
            self._change.begin, new_token, account=account, bound=bound, continues=continues
        )
        return self._keeper.call(begin, self.deadline, goes_on="the new session begins")

    def end(self) -> KoyebSessionError | None:
        """See `SessionChange`."""
        return self._keeper.call(self._change.end, self.deadline, goes_on="logout: it goes on")
