"""Shared work: any number of callers wait for one thread, and none of them owns it."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import math
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ..nesting import enter
from ..runtime import GRACE, current_process, state_lock
from .deadlines import ends
from .launch import launch
from .waiting import Event

T = TypeVar("T")

Work: TypeAlias = Callable[[], T]

_at_exit: Final[set[SharedTask[Any]]] = set()
"""
Tasks that the interpreter waits for at its end; as daemon threads they would be cut off.

A forked child does not wait for its parent's tasks: see `SharedTask.wait_done`.
"""
_registered: object = None
"""The process that has registered the hook for its end."""
_ended: object = None if threading.main_thread().is_alive() else current_process()
"""
The process that is ending: its hook has begun, so a task that starts now is waited for at once.

`Thread.is_alive` answers once, here. Before Python 3.13, a signal handler that raises in the midst
of it has the main thread taken for ended, and the interpreter's end then waits for no thread.
"""


class SharedTask(Generic[T]):
    """
    The blocking twin of `AsyncSharedTask`: one run of ``work`` in a daemon thread.

    Python runs signal handlers in the main thread only, so none interrupts this thread. An
    exception that a handler raises reaches only the caller that waits in the main thread. A normal
    end of the interpreter waits for the task until it should have ended.

    The owner only has to wait: each waiter starts the thread unless it was launched, and `_begun`
    makes sure that ``work`` runs once. ``first`` runs in the thread, before ``work``.
    """

    __slots__ = (
        "__weakref__",
        "_active_tasks",
        "_all_done",
        "_begun",
        "_context",
        "_done",
        "_ends",
        "_first",
        "_home",
        "_launched",
        "_on_done",
        "_outcome",
        "_raised",
        "_returned",
        "_runner",
        "_work",
        "owner",
    )

    def __init__(
        self,
        work: Work[T],
        on_done: Work[None] | None = None,
        *,
        first: Work[object] | None = None,
        seconds: float = math.inf,
        active_tasks: set[SharedTask[Any]] | None = None,
        owner: object = None,
    ) -> None:
        self._first = first
        self._work = work
        self._on_done = on_done
        self._home = current_process()
        self._ends = time.monotonic() + seconds
        self._begun = False
        self._launched = False
        self._done = Event()  # set when the work has ended
        self._all_done = Event()  # set when `on_done` has ended, too
        self._outcome: T | None = None
        self._raised: Exception | None = None
        self._returned = False
        self._runner: int | None = None
        self._active_tasks = active_tasks
        self.owner: object = owner
        self._context = contextvars.copy_context()
        self._context.run(ends.set, math.inf)  # its own deadline, not the caller's

    @property
    def alive(self) -> bool:
        """
        Whether it is running in this process, or is about to start.

        A task that hangs counts as dead: a thread cannot be stopped, so callers go on without it.
        """
        if self._done.is_set() or self._home is not current_process():
            return False
        return time.monotonic() < self._ends + GRACE

    @property
    def ended(self) -> bool:
        """Whether the work has ended."""
        return self._done.is_set()

    @property
    def under_way(self) -> bool:
        """See `alive`: unlike its twin, a thread belongs to no event loop."""
        return self.alive

    @property
    def is_running(self) -> bool:
        """Whether the work has begun and not ended, in this process."""
        return self._runner is not None and self._home is current_process()

    @property
    def runs_here(self) -> bool:
        """Whether the calling thread does the work."""
        return self._runner == threading.get_ident()

    @property
    def succeeded(self) -> bool:
        """Whether ``work`` has returned."""
        return self._returned

    @property
    def outcome(self) -> T | None:
        """
        The return value of ``work``; `None` while it runs.

        Raises:
            Exception: ``work`` raised it.
        """
        if self._raised is not None:
            raise self._raised
        return self._outcome

    def start(self, *, at_exit: bool = True, alone: bool = False) -> None:
        """
        Start the thread, once, and return without waiting for it.

        Python 3.12 and later start no thread once the main thread has ended. Then the work runs in
        the calling thread, or, if it must run ``alone``, not at all.
        """
        if self._launched or self._home is not current_process():
            return
        if at_exit:
            _wait_at_exit(self)
        if self._active_tasks is not None:
            self._active_tasks.add(self)
        if not self._launch():
            if alone:
                self._begun = True
                self._end()
            else:
                self._run()
        # Only now: if a signal handler raises before this line, the next waiter starts it again.
        self._launched = True
        if self._all_done.is_set():  # it was listed once more after its end
            self._end()
        elif at_exit and not alone and _ended is current_process():
            self.at_exit()  # nothing else waits for this task

    def _launch(self) -> bool:
        """Run it in a thread of its own; the second one to begin does nothing."""
        return launch(partial(self._context.copy().run, self._run))

    def run(self, timeout: float | None = None) -> T | None:
        """Start it, and wait as `join` does."""
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> T | None:
        """
        Wait for at most ``timeout`` seconds; with `None`, until the work is late by `GRACE`.

        Raises:
            Exception: ``work`` raised it.
        """
        self.wait(timeout)
        return self.outcome

    def wait(self, timeout: float | None = None) -> None:
        """
        Wait as `join` does, but raise no exception of ``work``.

        Return at once for a task of the process before a fork, whose thread the child does not
        have. Return at once in the task's own thread too, where a finalizer may call this.
        """
        if self._home is not current_process() or self.runs_here:
            return
        self.start()
        until = self._ends + GRACE if timeout is None else time.monotonic() + timeout
        if self._done.wait(min(until - time.monotonic(), _FIRST_LOOK)):
            return
        if not self._begun:
            self._launch()  # a finalizer that waits has interrupted the thread that launches it
        self._done.wait(until - time.monotonic())

    def wait_done(self, timeout: float) -> None:
        """Wait for the work and for ``on_done``, for at most ``timeout`` seconds."""
        if self._home is current_process():
            self.start()
            self._all_done.wait(timeout)

    def at_exit(self) -> None:
        """Wait until the work should have ended, as the interpreter is about to end."""
        self.wait_done(self._ends + GRACE - time.monotonic())

    def _run(self) -> None:
        # One step: of two threads that `wait` has launched, one does the work.
        with state_lock:
            begun, self._begun = self._begun, True
        if begun:  # launched twice: see `start`
            return
        # Set before the work: a finalizer in this thread may wait for this very task.
        self._runner = threading.get_ident()
        try:
            try:
                enter(self)
                if self.alive:  # otherwise it started so late that another task has replaced it
                    if self._first is not None:
                        self._first()
                    self._outcome = self._work()
                    self._returned = True
            except Exception as exc:  # noqa: BLE001 - see `outcome`
                self._raised = exc
            finally:
                self._set_done()
            if self._on_done is not None:
                self._on_done()
        finally:
            self._end()

    def _set_done(self) -> None:
        self._done.set()
        self._runner = None  # only now: before, a finalizer here must not wait for this task
        if self._active_tasks is not None:
            self._active_tasks.discard(self)

    def _end(self) -> None:
        self._set_done()
        self._all_done.set()
        _at_exit.discard(self)


_FIRST_LOOK: Final = 1.0
"""Seconds after which a thread should have begun."""


def _wait_at_exit(task: SharedTask[Any]) -> None:
    global _registered  # noqa: PLW0603 - it changes with each fork
    if _registered is not current_process():
        atexit.register(_finish)
        _finish_in_child()
        _registered = current_process()  # last: a signal handler may raise before
    _at_exit.add(task)


def _finish_in_child() -> None:
    """Make a process of `multiprocessing` wait too: it ends without running `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _finish, exitpriority=0)


def _finish() -> None:
    """Wait for every running task, each until it should have ended."""
    global _ended  # noqa: PLW0603 - it changes with each fork
    _ended = current_process()  # first: a task that is listed after the last look sees it
    while _at_exit:
        with contextlib.suppress(KeyError):  # the last one has just ended
            task = _at_exit.pop()
            task.at_exit()


atexit.register(_finish)  # a handler that was registered before this one may begin the first task
