"""The protocol of a token store, and the store in memory for a single process."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager
from typing import NoReturn, Protocol

from ..._concurrency.event_loop.waiting import AsyncLock
from ..._core.models import Token


class AsyncTokenStore(Protocol):
    """
    Keeps one session's token. A store of your own has these four methods and no base class.

    All of them are called by whoever renews, logs in or logs out; requests with a fresh token ask
    no store. Any error that a method raises is logged, and the session goes on in memory: raise
    soon rather than wait for a database that is away.

    :mod:`koyeb_session.stores` has a whole store for a database, and what to mind.
    ``koyeb_session.testing.async_check_store`` checks what can be checked in one process.
    """

    __module__: str = "koyeb_session"  # its public name, also in pickles

    async def load(self) -> Token | None:
        """Return what was saved last with all its fields, `None` when there is nothing."""
        ...

    async def save(self, token: Token) -> None:
        """
        Keep ``token`` in place of what was there, whole or not at all.

        Keep all its fields. ``id`` and ``renewal`` are secrets; an ``id`` has some thousand
        characters. ``provenance`` says whose the token is, and ``issued_at`` how old it is.
        """
        ...

    async def delete(self) -> None:
        """Forget the token; nothing happens when there is none."""
        ...

    def lock(self) -> AbstractAsyncContextManager[None]:
        """
        Keep all others who use this store from renewing the token until the block ends.

        `load`, the exchange at the service and `save` happen inside, within the session's
        ``timeout``; waiting for the lock and `load` have half of it. One object's lock is asked for
        by many at once. It is free again however the block ends, cancelled or not, and some time
        after its holder was killed. It need not be reentrant. Waiting for it must have an end: a
        `TimeoutError`, or a `StoreError` with one as its cause, says that somebody else holds it,
        so that the token is not exchanged; any other error, that nobody can have it.
        """
        ...


@contextlib.contextmanager
def needed(extra: str) -> Generator[None]:
    """Name the extra to install if an import in the block fails."""
    try:
        yield
    except ImportError as exc:
        # Quoted, as some shells take the brackets for a file pattern.
        message = f'this store needs an extra: pip install "koyeb-session[{extra}]"'
        raise ImportError(message, name=exc.name) from exc


class AsyncMemoryTokenStore:
    """
    Keeps the token for as long as the object lives.

    Several clients in one process that are given the same store share one session. It can be
    neither pickled nor copied: a copy would be another session's store.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    def __init__(self) -> None:
        self._token: Token | None = None
        self._lock = AsyncLock()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied: give the same object to each "
            "client, and to another process a store that both can reach, such as a file's"
        )

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
