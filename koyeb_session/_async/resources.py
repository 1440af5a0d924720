"""The parts that the sessions of one client share: connections, and the work that uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .._concurrency.runtime import state_lock
from .._core.deadline import Deadline
from .._core.state import Lifetime
from .http.connections import AsyncConnections
from .http.sender import AsyncSender

if TYPE_CHECKING:
    import httpx

    from .._concurrency.event_loop.shared_task import AsyncSharedTask
    from .._core.models import Clock
    from .._core.origins import Origins
    from .._core.policy import RefreshPolicy, RetryPolicy
    from .keeper import AsyncTokenKeeper


class AsyncResources:
    """
    The connections and policies of a client, and the work that its closing waits for.

    A client makes one object, and closes it. The sessions of `for_token` and `guest` use it.
    """

    __slots__ = (
        "_keepers",
        "active_tasks",
        "connections",
        "lifetime",
        "operation_connections",
        "origins",
        "policy",
        "sender",
    )

    def __init__(
        self,
        origins: Origins,
        transport: httpx.AsyncBaseTransport | None,
        *,
        policy: RefreshPolicy,
        retry: RetryPolicy,
        timeout: float,
        clock: Clock,
    ) -> None:
        self._keepers: WeakSet[AsyncTokenKeeper] = WeakSet()
        self.active_tasks: set[AsyncSharedTask[Any]] = set()
        # Operations have their own connections: a full pool must not block a renewal.
        self.connections: AsyncConnections = AsyncConnections(transport)
        self.operation_connections: AsyncConnections = (
            self.connections if transport else AsyncConnections()
        )
        self.lifetime: Lifetime = Lifetime()
        self.origins: Origins = origins
        self.policy: RefreshPolicy = policy
        self.sender: AsyncSender = AsyncSender(
            origins.base_url, self.operation_connections, retry=retry, timeout=timeout, clock=clock
        )

    @property
    def opened(self) -> bool:
        """Whether there is anything to close in the process that created this object."""
        return self.operation_connections.opened or self.connections.opened

    def list_for_closing(self, keeper: AsyncTokenKeeper) -> None:
        """List a session among those that the closing of the client has to tell."""
        with state_lock:
            self._keepers.add(keeper)

    def listed_keepers(self) -> list[AsyncTokenKeeper]:
        """Return the sessions that somebody listens to, or keeps current."""
        with state_lock:
            return [*self._keepers]

    def end(self) -> None:
        """Have no session begin a renewal, or send anything, from now on."""
        with state_lock:
            self.lifetime.ended = True

    async def drain(self, own: AsyncTokenKeeper) -> None:
        """Wait for the tasks of all sessions, and for the listeners of all but the client's own."""
        for task in tuple(self.active_tasks):
            await task.wait()
        deadline = Deadline(self.sender.timeout)
        for keeper in self.listed_keepers():
            if keeper is not own and keeper.listeners is not None:
                await keeper.listeners.drain(deadline.left())

    async def shut(self) -> None:
        """Wake each `keep_current`, which then returns, and close the connections, for good."""
        for keeper in self.listed_keepers():
            keeper.wake()
        # Both are the same object if the user gave a transport, whose closing may raise.
        try:
            await self.operation_connections.shut()
        finally:
            if self.connections is not self.operation_connections:
                await self.connections.shut()
