"""Where a session's token is kept between processes, and the store for one process alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from .._concurrency import AsyncLock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from .._models import Token


class AsyncTokenStore(Protocol):
    """
    Keeps one session's token.

    Any error that a method raises is logged, and the session goes on in memory.
    """

    async def load(self) -> Token | None:
        """Return what was saved last, `None` when there is nothing."""
        ...

    async def save(self, token: Token) -> None:
        """Keep ``token`` in place of what was there."""
        ...

    async def delete(self) -> None:
        """Forget the token; nothing happens when there is none."""
        ...

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Keep all others who use this store from renewing the token until the block ends."""
        ...


class AsyncMemoryTokenStore:
    """
    Keeps the token for as long as the object lives.

    Several clients in one process that are given the same store share one session.
    """

    def __init__(self) -> None:
        self._token: Token | None = None
        self._lock = AsyncLock()

    async def load(self) -> Token | None:
        """Return what was saved last."""
        return self._token

    async def save(self, token: Token) -> None:
        """Keep ``token``."""
        self._token = token

    async def delete(self) -> None:
        """Forget the token."""
        self._token = None

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Keep the other clients from renewing the token meanwhile."""
        return self._lock.held()


class AsyncNoStore:
    """Keeps nothing: the session lives in its client."""

    async def load(self) -> Token | None:
        """Return `None`."""
        return None

    async def save(self, token: Token) -> None:
        """Do nothing."""

    async def delete(self) -> None:
        """Do nothing."""

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Hold nothing."""
        yield


async_no_store: Final = AsyncNoStore()
