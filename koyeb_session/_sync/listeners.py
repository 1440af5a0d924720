# Generated from koyeb_session/_async/listeners.py by .ci/generate_sync.py: edit that, not this.

"""Tells those who asked of each change of the token, in order."""

from __future__ import annotations

from collections import deque
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from .._concurrency.calls import call
from .._concurrency.flights import Flight
from .._concurrency.places import atomic, place
from .._concurrency.waiting import Event
from .._deadline import Deadline
from .._log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._models import Token


_UNTOLD: Final = 100
"""Changes that are kept while a listener hangs; of more, the oldest are told to nobody."""
_telling: Final[ContextVar[object]] = ContextVar("koyeb_session_telling", default=None)
"""Those whose listener runs in this context."""


class Listeners:
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
        self._told: Event | None = None
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

    def tell(self) -> None:
        """Tell all news, unless somebody in this place is telling."""
        here = place()
        with atomic:
            if self._teller is here:
                return
            self._teller = here
            self._told = told = Event()
        within = _telling.set(self)
        try:
            while True:
                with atomic:
                    if not self._news:
                        self._teller = None
                        return
                    token = self._news.popleft()
                for listener in tuple(self._listeners.values()):
                    self._call(listener, token)
        except BaseException:  # cancelled or interrupted: the next change tells the rest
            if self._teller is here:
                self._teller = None
            raise
        finally:
            _telling.reset(within)
            told.set()

    def drain(self, timeout: float) -> None:
        """
        Wait until all is told, for at most ``timeout`` seconds.

        Not where a listener is what waits, as by closing the client: it would wait for itself.
        """
        deadline = Deadline(timeout)
        Flight(self.tell, seconds=timeout).lead(deadline.left())
        if self._told is not None and self._teller is place():
            self._told.wait(deadline.left())

    def let_go(self) -> None:
        """Have nobody wait for a listener that closes the client."""
        if _telling.get() is self and self._told is not None:
            self._told.set()

    def _call(self, listener: Callable[[Token | None], object], token: Token | None) -> None:
        try:
            call(listener, token)
        except Exception:  # noqa: BLE001 - the user's code may raise anything
            log.exception("a listener for token changes raised; the session goes on")
