"""Deliver each change of the token to the listeners, in order."""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from .._concurrency.event_loop.calls import async_call
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.event_loop.waiting import AsyncEvent
from .._concurrency.runtime import current_loop, state_lock
from .._core.deadline import Deadline
from .._core.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.models import Token


_UNTOLD: Final = 100
"""The number of changes that are kept while a listener hangs; then the oldest are dropped."""
_telling: Final[ContextVar[object]] = ContextVar("koyeb_session_telling", default=None)
"""The `AsyncListeners` that is calling a listener in this context."""


class AsyncListeners:
    """
    Calls listeners after the change, outside all locks, one change after the other.

    The task that reports a change delivers all pending changes, unless another task is already
    delivering them. So a listener may call the client, and no change is delivered during the
    delivery of another one.
    """

    def __init__(self) -> None:
        self._listeners: dict[object, Callable[[Token | None], object]] = {}
        self._news: deque[Token | None] = deque(maxlen=_UNTOLD)
        self._teller: object = None
        self._told: AsyncEvent | None = None
        """Set once the delivering task has delivered everything, or should not be waited for."""

    def add(self, listener: Callable[[Token | None], object]) -> Callable[[], None]:
        """Add a listener; return a function that removes it and may be called twice."""
        key = object()
        self._listeners[key] = listener

        def unsubscribe() -> None:
            self._listeners.pop(key, None)

        return unsubscribe

    def post(self, token: Token | None) -> None:
        """Queue a change for delivery."""
        self._news.append(token)

    async def tell(self) -> None:
        """Deliver all pending changes, unless another task of this loop or process is doing so."""
        here = current_loop()
        # `_teller` is the event loop or process of the delivering task. One of another loop or
        # process is replaced, as it may have ended without reporting it.
        with state_lock:
            if self._teller is here:
                return
            self._teller = here
            self._told = told = AsyncEvent()
        within = _telling.set(self)
        try:
            while True:
                with state_lock:
                    # One step: a change posted after it finds no teller, and starts a new one.
                    if not self._news:
                        self._teller = None
                        return
                    token = self._news.popleft()
                for listener in tuple(self._listeners.values()):
                    await self._call(listener, token)
        except BaseException:  # cancelled or interrupted: the next change delivers the rest
            if self._teller is here:
                self._teller = None
            raise
        finally:
            _telling.reset(within)
            told.set()

    async def drain(self, timeout: float) -> None:
        """
        Wait until everything is delivered, for at most ``timeout`` seconds.

        A listener that closes the client does not wait here: `let_go` spares it the deadlock.
        """
        deadline = Deadline(timeout)
        await AsyncSharedTask(self.tell, seconds=timeout).run(deadline.left())
        if self._told is not None and self._teller is current_loop():
            await self._told.wait(deadline.left())

    def let_go(self) -> None:
        """Keep anyone from waiting for the listener that is calling this, to close the client."""
        if _telling.get() is self and self._told is not None:
            self._told.set()

    async def _call(self, listener: Callable[[Token | None], object], token: Token | None) -> None:
        try:
            await async_call(listener, token)
        except Exception:  # noqa: BLE001 - the user's code may raise anything
            log.exception("a listener for token changes raised; the session goes on")
