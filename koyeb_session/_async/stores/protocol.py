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
    Keeps one session's token. Your own store has these four methods and no base class.

    ```python
    store: AsyncTokenStore = AsyncMemoryTokenStore()
    async with AsyncSessionClient(store=store) as session:
        await session.login("me@example.com", "correct horse")
        assert await store.load() == session.token
    ```

    A renewal, a sign-in and a sign-out call all of them; requests with a fresh token call none. An
    error that a method raises is logged, and the session goes on in memory: raise soon rather than
    wait for a database that is away.

    `koyeb_session.stores` says what to mind, and ``examples/own_store_sqlite.py`` is a whole store
    for a database. ``koyeb_session.testing.async_check_store`` checks a store in one process.
    """

    __module__: str = "koyeb_session"  # its public name, also in pickles

    async def load(self) -> Token | None:
        """Return the token that was saved last, with all its fields; `None`: there is none."""
        ...

    async def save(self, token: Token) -> None:
        """
        Replace the saved token by this one, whole or not at all.

        Keep all its fields. ``id`` and ``renewal`` are secrets; an ``id`` has some thousand
        characters. ``provenance`` names the token's owner, and ``issued_at`` tells its age.
        """
        ...

    async def delete(self) -> None:
        """Forget the token; nothing happens when there is none."""
        ...

    def lock(self) -> AbstractAsyncContextManager[None]:
        """
        Keep all other users of this store from renewing the token until the block ends.

        `load`, the renewal and `save` happen inside, within twice the session's ``timeout``;
        waiting for the lock and `load` have half of ``timeout``. Many callers ask for one object's
        lock at once. It is free again however the block ends, cancelled or not, and some time after
        its holder was killed. It need not be reentrant. Waiting for it must have an end.

        Raises:
            TimeoutError: Another process holds the lock; the token is then not renewed here. A
                `StoreError` with a `TimeoutError` as its cause means the same.
            Exception: Any other error means that nobody can have the lock.
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

    Clients of one process that have the same store share one session.

    ```python
    store = AsyncMemoryTokenStore()
    async with AsyncSessionClient(store=store) as one, AsyncSessionClient(store=store) as another:
        token = await one.login("me@example.com", "correct horse")
        assert await another.current_token() == token
    ```

    It can be neither pickled nor copied: a copy would be another session's store.
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
        """Return the token that was saved last; `None`: there is none."""
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
