"""A session in the keyring of the logged-in user."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Final

from ..._concurrency.event_loop.calls import async_in_thread
from ..._concurrency.event_loop.waiting import AsyncLock
from ..._core.models import Token
from ..._core.results import unwrap
from ..._core.validation import text_error
from ..._storage import keyring_entry
from .protocol import needed

_locks: Final[dict[tuple[str, str], AsyncLock]] = {}
"""One lock for each entry, so that copies of a store exclude each other."""


class AsyncKeyringTokenStore:
    """
    Keeps the token in the operating system's keyring, on a person's own machine.

    ```python
    async with AsyncSessionClient(store=AsyncKeyringTokenStore()) as session:
        await session.login("me@example.com", "correct horse")  # the next run finds the session
    ```

    A keyring has no lock: only clients of one process renew one after another. Where many processes
    share a session, use a file or Redis. The store can be pickled and copied: all copies are of the
    same entry. Windows takes 1,280 characters at most.

    Args:
        service: The entry's service.
        name: The entry's user name; one for each session.

    Raises:
        ImportError: The extra ``keyring`` is not installed.
        TypeError: An argument is no text.
        ValueError: An argument is empty.
    """

    def __init__(self, service: str = "koyeb-session", name: str = "default") -> None:
        unwrap(text_error("service", service) or text_error("name", name))
        with needed("keyring"):
            import keyring  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport] - see `_keyring`
        self._entry = (service, name)
        self._lock = _locks.setdefault(self._entry, AsyncLock())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._entry}"

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), self._entry  # without the lock, which belongs to the process

    async def load(self) -> Token | None:
        """
        Return the token that was saved last; `None`: there is none.

        A damaged entry counts as none, with a warning in the log.

        Raises:
            StoreError: The keyring cannot be used, or the entry is no session.
        """
        return await async_in_thread(keyring_entry.read, *self._entry)

    async def save(self, token: Token) -> None:
        """
        Keep ``token``.

        Raises:
            StoreError: The keyring cannot be used, or takes no entry of that length; or the entry
                is no session.
        """
        await async_in_thread(keyring_entry.write, *self._entry, token)

    async def delete(self) -> None:
        """
        Forget the token; an entry that is no session stays.

        Raises:
            StoreError: The keyring cannot be used.
        """
        await async_in_thread(keyring_entry.remove, *self._entry)

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Keep the other clients of this process from renewing the token meanwhile."""
        return self._lock.held()
