"""One hold of a store's lock, which everybody who has something to do there shares."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.event_loop.waiting import AsyncEvent, AsyncWakeup
from .._concurrency.runtime import state_lock
from .._core.errors import StoreError
from .._core.log import log
from .._core.results import store_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._concurrency.event_loop.shared_task import AsyncWork
    from .._core.deadline import Deadline
    from .._core.models import Token
    from .stores.protocol import AsyncTokenStore

UNKNOWN: Final = "?"
"""Stands for what the store holds before it has been read."""


class AsyncStoreHold:
    """
    One hold of the store's lock, in a task or thread of its own.

    The lock is released once all who have joined have left. A store that hangs keeps only this
    waiting: callers wait for as long as they like.
    """

    def __init__(
        self,
        store: AsyncTokenStore,
        read: Callable[[AsyncStoreHold], Any],
        *,
        seconds: float,
        active_tasks: set[AsyncSharedTask[Any]],
    ) -> None:
        self.found: Token | None = None
        """What the store held when it was last read in this turn."""
        self.known: str | None = UNKNOWN
        """The id of what the session had last read or written before that."""
        self.locked: bool = False
        self.problem: StoreError | None = None
        """Why the lock could not be had, or the store not be read."""
        self._task = AsyncSharedTask(self._run, seconds=seconds, active_tasks=active_tasks)
        self._jobs: deque[tuple[AsyncWork[None], AsyncEvent]] = deque()
        self._is_over = False
        self._wakeup = AsyncWakeup()
        self._read = read
        self._ready = AsyncEvent()
        self._store = store
        self._users = 1

    @property
    def alive(self) -> bool:
        """Whether it holds the lock, or waits for it."""
        return self._task.alive

    def start(self) -> None:
        """Begin to wait for the lock."""
        self._task.start(alone=True)
        if not self.alive and not self._ready.is_set():  # it could not be begun
            self.problem = StoreError("no thread can be had to use the token store")
            self._finish()

    def join(self) -> bool:
        """Take part in it; `False`: it is over, or about to be. The caller holds `state_lock`."""
        if self._is_over or not self.alive:
            return False
        self._users += 1
        return True

    async def leave(self, deadline: Deadline) -> None:
        """Let the lock be released when nobody else has anything to do, and wait for that."""
        with state_lock:
            self._users -= 1
        self._wakeup.set()
        if self.locked and not self._users:
            await self._task.join(deadline.left())

    async def wait_done(self, seconds: float) -> None:
        """Wait until it is over."""
        await self._task.wait_done(seconds)

    async def ready(self, seconds: float) -> bool:
        """Wait until the store is locked and read, or cannot be; tell whether that is so."""
        return await self._ready.wait(seconds)

    async def do(self, job: AsyncWork[None], seconds: float) -> bool:
        """
        Do something under the lock.

        Returns:
            Whether it is done. If it is not yet, it is done when its turn comes, unless the lock
            cannot be had.
        """
        done = AsyncEvent()
        with state_lock:
            if self._is_over:
                return False
            self._jobs.append((job, done))
        self._wakeup.set()
        await done.wait(seconds)
        return done.is_set() and self.locked

    async def read_again(self, seconds: float) -> None:
        """Read the store once more."""
        await self.do(partial(self._read, self), seconds)

    async def _run(self) -> None:
        try:
            async with self._store.lock():
                self.locked = True
                if self._users or self._jobs:
                    await self._read(self)
                self._ready.set()
                await self._serve()
        except Exception as exc:  # noqa: BLE001 - a store of the user's may raise anything
            what = "locked" if not self.locked else "unlocked"
            self.problem = store_error(what, exc)
            if self.locked:
                log.warning("%s", self.problem)
        finally:
            self._finish()

    def _finish(self) -> None:
        with state_lock:
            self._is_over = True
        self._ready.set()
        for _, done in self._jobs:
            done.set()

    async def _serve(self) -> None:
        """Do what is to be done, until nobody has anything left."""
        while True:
            with state_lock:
                if not self._jobs and self._users <= 0:
                    self._is_over = True
                    return
                job, done = self._jobs[0] if self._jobs else (None, None)
            if job is None or done is None:
                await self._wakeup.sleep(None)
                continue
            await job()
            self._jobs.popleft()
            done.set()

    @property
    def is_ready(self) -> bool:
        """Whether the store is locked and read."""
        return self.locked and self._ready.is_set()

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether somebody else holds the lock, who may be exchanging the same token."""
        if self.locked:
            return False
        return self.problem is None or isinstance(self.problem.__cause__, TimeoutError)
