"""Look in the store for tokens of others, while this session may not renew its own."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import state_lock
from .._core.snapshot import LONGEST_SLEEP, Need, Urgency

if TYPE_CHECKING:
    from .._concurrency.event_loop.shared_task import AsyncWork
    from .._core.snapshot import Observation
    from .._core.state import SessionState
    from .renewal import AsyncRenewal

_PAUSE: Final = 1.0
"""Seconds from one look to the next, and the longest wait for one."""


class AsyncLookout:
    """
    Looks in the store once a second, while a back-off spares the service.

    A look is a shared task, one at a time: of a store that hangs, each look leaves a task or a
    thread behind. It goes on when its callers have stopped waiting.
    """

    __slots__ = ("_began", "_state", "_task")

    def __init__(self, state: SessionState) -> None:
        self._began = -math.inf  # on the session's monotonic clock
        self._state = state
        self._task: AsyncSharedTask[None] | None = None

    def may_find(self, seen: Observation) -> bool:
        """Return whether a look is due, or under way, so that `look` may find a newer token."""
        return seen.now.mono - self._began < _PAUSE or self._is_due(seen)

    async def look(
        self,
        seen: Observation,
        renewal: AsyncRenewal,
        then: AsyncWork[None],
        seconds: float,
    ) -> bool:
        """
        Take over a token that others have saved; return whether the session has changed.

        Args:
            seen: The observation of a caller that gets no token otherwise.
            renewal: It loads the record, and commits its token.
            then: Called after the look, in its task.
            seconds: The time that a look should take at most.
        """
        state = self._state
        # One step under the lock: of two threads that find it due, only one begins it.
        with state_lock:
            begins = self._is_due(seen)
            if begins:
                self._began = seen.now.mono
                need = Need(seen.snapshot, state.generation, Urgency.AHEAD, seconds)
                work = partial(renewal.look, need)
                self._task = AsyncSharedTask(work, then, seconds=seconds, owner=state)
            task = self._task
        if task is not None and self.may_find(seen):
            if begins:
                task.start()
            await task.join(_PAUSE)
        return state.snapshot is not seen.snapshot

    def _is_due(self, seen: Observation) -> bool:
        last = self._began if seen.failure is None else max(self._began, seen.failure.mono)
        has_ended = self._task is None or self._task.ended
        return seen.now.mono - last >= (_PAUSE if has_ended else LONGEST_SLEEP)
