"""A session in a file, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ..._concurrency.event_loop.calls import async_in_thread
from ..._concurrency.event_loop.deadlines import async_within
from ..._concurrency.event_loop.waiting import async_sleep
from ..._core.errors import StoreError
from ..._core.models import Token
from ..._core.results import unwrap
from ..._core.validation import name_error, path_error, timeout_error
from ..._storage import files
from .protocol import needed

if TYPE_CHECKING:
    from filelock import BaseFileLock

_PAUSE = 0.01
_RELEASE = 10.0
"""Seconds that a file system may take to release a lock."""


class AsyncFileTokenStore:
    """
    Keeps the token in a file that only its owner may read.

    ```python
    store = AsyncFileTokenStore()
    store_for_ci = AsyncFileTokenStore(name="ci")
    async with AsyncSessionClient(store=store) as session:
        await session.login("me@example.com", "correct horse")  # the next run finds the session
    ```

    The file is replaced as a whole: any reader, after any crash, finds the old token or the new
    one. An empty file holds no token, and neither does a damaged one, or one of a later version; of
    these the log has a warning. A file of another program is refused, and stays as it is. The lock
    lies beside the file, and ends with the process that holds it. The store can be pickled and
    copied: all copies are of the same file.

    For containers, mount the folder of the file. A file that is a mount of its own cannot be
    replaced and is written in place, and each container has a lock of its own beside it: two that
    share the file may renew at once, and lose the session.

    Args:
        path: The file; ``~`` is the home folder. Its folders are made, closed to others, when they
            are not there. `None`: a file in the user's own folder for state (``platformdirs``).
        name: Which of this user's sessions it is, one for each account: letters, digits, ``-`` and
            ``_``. ``"default"`` is ``session.json``, another one ``session-<name>.json``, in the
            user's own folder for state. Excludes ``path``.
        lock_timeout: Seconds to wait for another process's renewal; above 0. A session waits for
            half of its ``timeout`` at most.

    Raises:
        ImportError: The extra ``file`` is not installed.
        TypeError: An argument is of the wrong type.
        ValueError: ``path`` is empty, no file's, below an unknown home, or given together with
            ``name``; ``name`` has other characters; ``lock_timeout`` is not above 0, or endless.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        name: str = "default",
        lock_timeout: float = 10.0,
    ) -> None:
        unwrap(
            path_error(path, name)
            or name_error(name)
            or timeout_error(lock_timeout, "lock_timeout")
        )
        with needed("file"):
            import filelock  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport] - used in `lock`
            import platformdirs  # noqa: PLC0415 - an extra
        if path is None:
            file = "session.json" if name == "default" else f"session-{name}.json"
            path = platformdirs.user_state_path("koyeb-session") / file
        self._path = unwrap(files.absolute(path))
        self._lock_path = self._path.with_name(f"{self._path.name}.lock")
        self._lock_timeout = lock_timeout

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    async def load(self) -> Token | None:
        """
        Return the token that was saved last; `None`: there is none.

        Raises:
            StoreError: The file cannot be read, is a symlink or no file, holds something else than
                a session, or may have been written by another user of this machine.
        """
        return await async_in_thread(files.read, self._path)

    async def save(self, token: Token) -> None:
        """
        Replace the file.

        Raises:
            StoreError: The folder is read-only or full; the file is a symlink, or holds something
                else than a session; or its file system lets other users write to it.
        """
        await async_in_thread(files.write, self._path, token)

    async def delete(self) -> None:
        """
        Remove the file; one of another program stays.

        Raises:
            StoreError: The file cannot be removed.
        """
        await async_in_thread(files.remove, self._path)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """
        Keep all other processes and tasks from renewing the token.

        Raises:
            StoreError: Another process or task holds the lock for ``lock_timeout`` seconds, or the
                file system has no locks.
        """
        from filelock import FileLock  # noqa: PLC0415 - an extra

        # One lock object for each block: no other thread, task or forked process shares it.
        lock = FileLock(str(self._lock_path), mode=0o600, thread_local=False)
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
            # Bounded: the end of an event loop waits for this even if the file system hangs.
            await async_within(_RELEASE, lambda: async_in_thread(self._release, lock))

    def _take(self, lock: BaseFileLock) -> bool:
        from filelock import Timeout  # noqa: PLC0415 - an extra

        try:
            with files.failing_as("locked", self._lock_path):
                files.make_folder(self._lock_path)
                try:
                    lock.acquire(timeout=0)
                except Timeout:  # caught here, as it is an `OSError` too
                    return False
        except NotImplementedError as exc:
            raise StoreError(f"{self._lock_path}: this file system has no locks") from exc
        return True

    def _release(self, lock: BaseFileLock) -> None:
        with files.failing_as("unlocked", self._lock_path):
            lock.release()
