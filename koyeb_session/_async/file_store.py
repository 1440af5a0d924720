"""A session in a file, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _files as files
from .._arguments import checked, wrong_timeout
from .._concurrency.async_calls import async_in_thread
from .._concurrency.async_waiting import async_sleep
from .._errors import StoreError
from .stores import needed

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from .._models import Token

_PAUSE = 0.01


class AsyncFileTokenStore:
    """
    Keeps the token in a file that only its owner may read.

    The file is replaced as a whole: whoever reads it, after whatever crash, finds the old token or
    the new one. A file that holds no token of this version is renamed, with a warning in the log.
    The lock lies beside it, and ends with the process that holds it.

    Example:
        .. code-block:: python

            session = AsyncSessionClient(store=AsyncFileTokenStore())

    Args:
        path: The file; its folder is made, closed to others, when it is not there. `None`:
            ``session.json`` in the user's own folder for state (``platformdirs``).
        lock_timeout: Seconds to wait for another process's renewal; above 0. A session waits for
            half of its ``timeout`` at most.

    Raises:
        ImportError: The extra ``file`` is not installed.
        ValueError: ``lock_timeout`` is not above 0, or has no end.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, lock_timeout: float = 10.0
    ) -> None:
        checked(wrong_timeout(lock_timeout, "lock_timeout"))
        with needed("file"):
            self._filelock: Any = import_module("filelock")
            if path is None:
                folder = import_module("platformdirs").user_state_path("koyeb-session")
                path = Path(folder, "session.json")
        self._path = Path(path).absolute()
        self._lock_path = self._path.with_name(f"{self._path.name}.lock")
        self._lock_timeout = lock_timeout

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    async def load(self) -> Token | None:
        """
        Return what was saved last.

        Raises:
            StoreError: The file cannot be read, or is a symlink.
        """
        return await async_in_thread(files.read, self._path)

    async def save(self, token: Token) -> None:
        """
        Replace the file.

        Raises:
            StoreError: The folder is read-only or full, or the file is a symlink.
        """
        await async_in_thread(files.write, self._path, token)

    async def delete(self) -> None:
        """
        Remove the file.

        Raises:
            StoreError: It cannot be removed.
        """
        await async_in_thread(files.remove, self._path)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """
        Keep all other processes, and all others in this one, from renewing the token.

        Raises:
            StoreError: Somebody holds it for too long, or the file system cannot lock.
        """
        # One for each block: it belongs to no other thread, task or, after a fork, process.
        lock: Any = self._filelock.FileLock(str(self._lock_path), mode=0o600, thread_local=False)
        waits = int(self._lock_timeout / _PAUSE)
        try:
            while not await async_in_thread(self._take, lock):
                waits -= 1
                if waits < 0:
                    message = f"{self._lock_path} is held for over {self._lock_timeout:g} s"
                    raise StoreError(message) from TimeoutError()
                await async_sleep(_PAUSE)
            yield
        finally:
            await async_in_thread(self._give_back, lock)

    def _take(self, lock: Any) -> bool:
        try:
            with files.failing_as("locked", self._lock_path):
                files.make_folder(self._lock_path)
                try:
                    lock.acquire(timeout=0)
                except self._filelock.Timeout:  # an `OSError`, too
                    return False
        except NotImplementedError as exc:
            raise StoreError(f"{self._lock_path}: this file system has no locks") from exc
        return True

    def _give_back(self, lock: Any) -> None:
        with files.failing_as("unlocked", self._lock_path):
            lock.release()
