"""A hold of the store's lock, shared by all callers that have work at the store."""

from __future__ import annotations

import enum
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from .._concurrency.event_loop.calls import exceptions_only
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.event_loop.waiting import AsyncEvent, AsyncWakeup
from .._concurrency.runtime import state_lock
from .._core.errors import StoreError
from .._core.log import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._concurrency.event_loop.shared_task import AsyncWork
    from .._core.deadline import Deadline
    from .._core.models import Token
    from .._core.tokens import Identity
    from .stores.protocol import AsyncTokenStore


class _Stage(enum.Enum):
    """The way of a hold to the lock, and from it."""

    WAITING = enum.auto()
    """It waits for the lock."""
    LOCKED = enum.auto()
    """It has the lock, and reads the store."""
    READY = enum.auto()
    """It has the lock, and has read the store."""
    HELD_ELSEWHERE = enum.auto()
    """It has given up: another process or client has the lock."""
    NO_LOCK = enum.auto()
    """It has given up: nobody can have the lock."""
    OVER = enum.auto()
    """It has released the lock, or lost it."""


class _Job:
    """A piece of work under the lock, and the event that its caller waits for."""

    __slots__ = ("done", "returned", "work")

    def __init__(self, work: AsyncWork[None]) -> None:
        self.done = AsyncEvent()
        """Set at the latest when the hold ends."""
        self.returned = False
        """Whether the work has been done, rather than given up."""
        self.work = work


class AsyncStoreHold:
    """
    One hold of the store's lock, in its own shared task.

    Only that task calls the store under the lock; callers queue jobs for it. So cancelling a caller
    interrupts no job, and a store that hangs blocks only the task. Callers stop waiting when they
    want. The lock is released once each caller that joined has left and no job is queued.

    Joining, queueing a job and ending the hold each happen under `state_lock`. So a caller either
    joins before the end, and its jobs still run, or starts a new hold.
    """

    def __init__(
        self,
        store: AsyncTokenStore,
        read: Callable[[AsyncStoreHold], Any],
        give_up: Callable[[AsyncStoreHold], Any],
        error: Callable[[str, Exception], StoreError],
        *,
        known: Identity | None,
        seconds: float,
        active_tasks: set[AsyncSharedTask[Any]],
        owner: object,
    ) -> None:
        self.found: Token | None = None
        """The saved token, as this hold last read or wrote it."""
        self.known: Identity | None = known
        """The identity of the token that the session last judged or wrote before this hold."""
        self.problem: StoreError | None = None
        """The error that kept this hold from locking, reading or unlocking the store."""
        self.left: str | None = None
        """The state of the store, for people, if nobody can have its lock."""
        self._task = AsyncSharedTask(
            self._run, seconds=seconds, active_tasks=active_tasks, owner=owner
        )
        self._jobs: deque[_Job] = deque()  # the first one may be running
        self._stage = _Stage.WAITING
        self._is_over = False
        self._wakeup = AsyncWakeup()
        self._error = error
        self._give_up = give_up
        self._read = read
        self._ready = AsyncEvent()
        self._store = store
        self._users = 1  # the caller that makes this hold has joined it

    @property
    def alive(self) -> bool:
        """Whether it holds the lock, or waits for it."""
        return self._task.alive

    def start(self) -> None:
        """Start to wait for the lock."""
        # Never in the calling thread, which must be able to stop waiting for the store.
        self._task.start(alone=True)
        if not self.alive and not self._ready.is_set():  # no thread could be started
            self.problem = StoreError("no thread can be had to use the token store")
            self._finish()

    def join(self) -> bool:
        """Join this hold; `False` if it is over or ending. The caller holds `state_lock`."""
        if self._is_over or not self.alive:
            return False
        self._users += 1
        return True

    async def leave(self, deadline: Deadline) -> None:
        """
        Leave this hold; the last caller to leave waits until the lock is released.

        That wait ends by the deadline.
        """
        with state_lock:
            self._users -= 1
        self._wakeup.set()  # after the decrement: the task that wakes sees that the caller has left
        if self.locked and not self._users:
            await self._task.join(deadline.left())

    async def wait_done(self, seconds: float) -> None:
        """Wait until the hold is over, for at most ``seconds``."""
        await self._task.wait_done(seconds)

    async def ready(self, seconds: float) -> None:
        """Wait until the store is locked and read, or has failed, for at most ``seconds``."""
        await self._ready.wait(seconds)

    async def do(self, job: AsyncWork[None], seconds: float) -> bool:
        """
        Run a job under the lock, and wait for at most ``seconds``.

        Returns:
            Whether the job is done. After `False` it stays queued and still runs, unless the lock
            cannot be acquired, or is lost.
        """
        queued = _Job(job)
        with state_lock:
            if self._is_over:
                return False
            self._jobs.append(queued)
        self._wakeup.set()  # after the append: the task that wakes finds the job
        await queued.done.wait(seconds)
        return queued.returned

    async def read_again(self, seconds: float) -> None:
        """Read the store again."""
        await self.do(partial(self._read, self), seconds)

    async def _run(self) -> None:
        try:
            with exceptions_only():
                async with self._store.lock():
                    self._stage = _Stage.LOCKED
                    if not self._is_done():  # everyone may have left during the wait
                        await self._read(self)
                        self._stage = _Stage.READY
                        self._ready.set()
                        await self._serve()
        except Exception as exc:  # noqa: BLE001 - the user's store may raise anything
            self.problem = self._error("unlocked" if self.locked else "locked", exc)
            if self.locked:
                self._stage = _Stage.OVER
                log.warning("%s", self.problem)
            elif isinstance(self.problem.__cause__, TimeoutError):
                self._stage = _Stage.HELD_ELSEWHERE
            else:
                self._stage = _Stage.NO_LOCK
            self._ready.set()
            # Here, and before the end: no other hold of this session works at the store meanwhile.
            if self.cannot_be_had:
                await self._give_up(self)
        finally:
            self._finish()

    def _finish(self) -> None:
        """Release every waiter; a job that has not run counts as not done."""
        # First: after this, no job can be queued that the loop below would miss.
        with state_lock:
            is_served, self._is_over = self._is_over, True
        if self.locked:
            self._stage = _Stage.OVER
        elif self._stage is _Stage.WAITING:  # it had no thread, or was cancelled
            self._stage = _Stage.NO_LOCK
        # The event loop may have cancelled the task: no caller may take the store for locked.
        if not is_served and self.problem is None:
            self.problem = StoreError("the token store's lock was lost")
        self._ready.set()
        for job in self._jobs:
            job.done.set()

    async def _serve(self) -> None:
        """Run the queued jobs one by one, until no caller and no job is left."""
        while not self._is_done():
            if not self._jobs:
                await self._wakeup.sleep(None)
                continue
            # Removed only after it has run: if it raises, `_finish` releases its caller.
            job = self._jobs[0]
            await job.work()
            self._jobs.popleft()
            job.returned = True
            job.done.set()

    def _is_done(self) -> bool:
        """Return whether no caller and no job is left; the hold is over then."""
        # One step: no caller can join or queue a job between the check and `_is_over`.
        with state_lock:
            self._is_over = not self._jobs and self._users <= 0
            return self._is_over

    @property
    def locked(self) -> bool:
        """Whether it has the lock now."""
        return self._stage in {_Stage.LOCKED, _Stage.READY}

    @property
    def not_ready(self) -> StoreError | None:
        """The reason if the store is not both locked and read."""
        if self.problem is not None or self._stage is _Stage.READY:
            return self.problem
        what = "read" if self.locked else "locked"
        return StoreError(f"the token store could not be {what} in time")

    @property
    def cannot_be_had(self) -> bool:
        """Whether the store has no lock, for this session or any other."""
        return self._stage is _Stage.NO_LOCK

    @property
    def is_held_elsewhere(self) -> bool:
        """Whether another process or client, perhaps refreshing the same token, has the lock."""
        return self._stage in {_Stage.WAITING, _Stage.HELD_ELSEWHERE}
