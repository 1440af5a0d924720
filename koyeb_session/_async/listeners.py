"""Tells those who asked of each change of the token, in order."""

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
"""Changes that are kept while a listener hangs; of more, the oldest are told to nobody."""
_telling: Final[ContextVar[object]] = ContextVar("koyeb_session_telling", default=None)
"""Those whose listener runs in this context."""


class AsyncListeners:
    """
    Calls listeners after the change, outside of all locks, one change after the other.

    The task that reports a change delivers all pending changes, unless another task is already
    delivering them. So a listener may call the client, and is not told of a change inside of
    another one.
    """

    def __init__(self) -> None:
        self._listeners: dict[object, Callable[[Token | None], object]] = {}
        self._news: deque[Token | None] = deque(maxlen=_UNTOLD)
        self._teller: object = None
        self._told: AsyncEvent | None = None
        """Set once the present teller has told all, or is not to be waited for."""

    def add(self, listener: Callable[[Token | None], object]) -> Callable[[], None]:
        """Add a listener; what is returned takes it away, and may be called twice."""
        key = object()
        self._listeners[key] = listener

        def unsubscribe() -> None:
            self._listeners.pop(key, None)

        return unsubscribe

    def post(self, token: Token | None) -> None:
        """Note a change, to be told of soon."""
        self._news.append(token)

    async def tell(self) -> None:
        """Tell all news, unless somebody in this place is telling."""
        here = current_loop()
        with state_lock:
            if self._teller is here:
                return
            self._teller = here
            self._told = told = AsyncEvent()
        within = _telling.set(self)
        try:
            while True:
                with state_lock:
                    if not self._news:
                        self._teller = None
                        return
                    token = self._news.popleft()
                for listener in tuple(self._listeners.values()):
                    await self._call(listener, token)
        except BaseException:  # cancelled or interrupted: the next change tells the rest
            if self._teller is here:
                self._teller = None
            raise
        finally:
            _telling.reset(within)
            told.set()

    async def drain(self, timeout: float) -> None:
        """
        Wait until all is told, for at most ``timeout`` seconds.

        Not where a listener is what waits, as by closing the client: it would wait for itself.
        """
        deadline = Deadline(timeout)
        await AsyncSharedTask(self.tell, seconds=timeout).run(deadline.left())
        if self._told is not None and self._teller is current_loop():
            await self._told.wait(deadline.left())

    def let_go(self) -> None:
        """Have nobody wait for a listener that closes the client."""
        if _telling.get() is self and self._told is not None:
            self._told.set()

    async def _call(self, listener: Callable[[Token | None], object], token: Token | None) -> None:
        try:
            await async_call(listener, token)
        except Exception:  # noqa: BLE001 - the user's code may raise anything
            log.exception("a listener for token changes raised; the session goes on")
