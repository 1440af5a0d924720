"""Tells those who asked of each change of the token, in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from .._concurrency.async_calls import async_call
from .._concurrency.places import async_place, atomic
from .._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._models import Token


_UNTOLD: Final = 100
"""Changes that are kept while a listener hangs; of more, the oldest are told to nobody."""


class AsyncListeners:
    """
    Calls listeners after the change, outside of all locks, one change after the other.

    Whoever brings news tells all that there is, unless somebody is telling already, who then goes
    on with it. So a listener may call the client, and is not told of a change inside of another.
    """

    def __init__(self) -> None:
        self._listeners: dict[object, Callable[[Token | None], object]] = {}
        self._news: deque[Token | None] = deque(maxlen=_UNTOLD)
        self._teller: object = None

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
        here = async_place()
        with atomic:
            if self._teller is here:
                return
            self._teller = here
        try:
            while True:
                with atomic:
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

    async def _call(self, listener: Callable[[Token | None], object], token: Token | None) -> None:
        try:
            await async_call(listener, token)
        except Exception:  # noqa: BLE001 - the user's code may raise anything
            log.exception("a listener for token changes raised; the session goes on")
