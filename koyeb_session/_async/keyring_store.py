"""A session in the keyring of the person who is logged in."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import _records as records
from .._concurrency.async_calls import async_in_thread
from .._concurrency.async_waiting import AsyncLock
from .._errors import StoreError
from .._log import log
from .._outcomes import bare
from .stores import needed

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from .._models import Token


class AsyncKeyringTokenStore:
    """
    Keeps the token in the operating system's keyring, on a person's own machine.

    A keyring has no lock: only clients that share this object renew one after another. Where many
    processes share a session, use a file or Redis.

    Example:
        .. code-block:: python

            session = AsyncSessionClient(store=AsyncKeyringTokenStore())

    Args:
        service: The entry's service.
        name: The entry's user name; one for each session.

    Raises:
        ImportError: The extra ``keyring`` is not installed.
    """

    def __init__(self, service: str = "koyeb-session", name: str = "default") -> None:
        with needed("keyring"):
            self._keyring: Any = import_module("keyring")
        self._entry = (service, name)
        self._lock = AsyncLock()

    async def load(self) -> Token | None:
        """
        Return what was saved last; what cannot be read counts as nothing, with a warning.

        Raises:
            StoreError: The keyring cannot be used.
        """
        record = await self._call("get_password")
        found = None if record is None else records.read_record(record)
        if isinstance(found, ValueError):
            log.warning("the entry in the keyring is passed over: %s", found)
            return None
        return found

    async def save(self, token: Token) -> None:
        """
        Keep ``token``.

        Raises:
            StoreError: The keyring cannot be used.
        """
        await self._call("set_password", records.write_record(token))

    async def delete(self) -> None:
        """
        Forget the token.

        Raises:
            StoreError: The keyring cannot be used.
        """
        if await self._call("get_password") is not None:
            await self._call("delete_password")

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Keep the other clients of this object from renewing the token meanwhile."""
        return self._lock.held()

    async def _call(self, method: str, *arguments: str) -> Any:
        try:
            return await async_in_thread(getattr(self._keyring, method), *self._entry, *arguments)
        except Exception as exc:  # noqa: BLE001 - each back end has errors of its own
            error = StoreError(f"the keyring cannot be used: {type(exc).__name__}")
            error.__cause__ = bare(exc, "")
        raise error
